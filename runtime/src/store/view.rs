//! What a task's handler sees of its state, and where its changes wait for their commit.
//!
//! ```text
//!   scratch   writes of the call in progress, tagged by record (put_many only)
//!   active    changes since the last seal; fills while the commit below is under way
//!   frozen    changes of the commit under way
//!   cache     committed values read or written lately
//!   RocksDB   everything committed
//! ```
//!
//! A read takes the first layer that knows the key. Changes move down only: the task merges scratch
//! and effects into active ([`View::absorb`]), a seal freezes active, a commit that is known to have
//! succeeded turns frozen into cache. Dropping clears everything above RocksDB.

mod counted;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::cache::{Cache, CacheBudget};
use super::keymap::KeyRef;
use super::keys::{self, Stores, Table};
use super::overlay::Overlay;
use super::pack::{Packed, Packer};
use super::quota::Quota;
use super::scan::{self, Page};
use super::{StoreError, StoreReader};
use crate::effects::{Prefetched, Writes};
use crate::record::Column;

/// What a write costs beside its bytes: source, store, lengths.
const WRITE_BYTES: usize = 14;

/// Bounds of one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewLimits {
    /// What one call may hand over in `put_many`.
    pub scratch_bytes_max: usize,
    /// Values handed to a call beforehand; the handler asks for the rest.
    pub prefetch_bytes_max: usize,
    /// Memory that an emptied overlay keeps for the next one.
    pub overlay_keep_bytes: usize,
}

impl Default for ViewLimits {
    fn default() -> ViewLimits {
        ViewLimits { scratch_bytes_max: 64 << 20, prefetch_bytes_max: 1 << 20, overlay_keep_bytes: 16 << 20 }
    }
}

/// The distinct keys that were changed, in RocksDB's and the changelog's form, sorted.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub keys: Column,
    /// Null = deleted.
    pub values: Column,
}

/// Scratch over overlays over the committed store. `View::default()` has no store behind it and
/// accepts any store number, which is what a test of a handler needs.
#[derive(Debug)]
pub struct View {
    /// None = any store number is accepted.
    stores: Option<Arc<Stores>>,
    reader: Option<StoreReader>,
    limits: ViewLimits,
    hasher: DefaultHashBuilder,
    scratch: Overlay,
    /// What `scratch` was made from, with the records that caused it, in the order it came.
    scratch_log: Vec<Writes>,
    /// Memory of it, nearly.
    scratch_log_bytes: usize,
    active: Overlay,
    frozen: Option<Overlay>,
    /// Emptied, for the next freeze.
    spare: Overlay,
    /// Behind a cell because a read may fill it.
    cache: RefCell<Cache>,
    prefetcher: Prefetcher,
    /// Waited for RocksDB and not asked for yet. Nothing is decided by it.
    reading: Cell<Duration>,
    /// None = nobody counts.
    quota: Option<Quota>,
}

impl Default for View {
    fn default() -> View {
        View::over(None, None, CacheBudget::new(8 << 20), ViewLimits::default())
    }
}

impl View {
    /// The state of one task. Without a reader nothing is committed yet, nor will it be.
    pub fn new(
        stores: Arc<Stores>,
        reader: Option<StoreReader>,
        cache: &Arc<CacheBudget>,
        limits: ViewLimits,
    ) -> View {
        // Nothing to keep, no share.
        let cache = if reader.is_some() { Arc::clone(cache) } else { CacheBudget::new(0) };
        View::over(Some(stores), reader, cache, limits)
    }

    fn over(
        stores: Option<Arc<Stores>>,
        reader: Option<StoreReader>,
        cache: Arc<CacheBudget>,
        limits: ViewLimits,
    ) -> View {
        View {
            stores,
            reader,
            limits,
            hasher: DefaultHashBuilder::default(),
            scratch: Overlay::default(),
            scratch_log: Vec::new(),
            scratch_log_bytes: 0,
            active: Overlay::default(),
            frozen: None,
            spare: Overlay::default(),
            cache: RefCell::new(Cache::new(cache)),
            prefetcher: Prefetcher::default(),
            reading: Cell::default(),
            quota: None,
        }
    }

    /// How long reads have waited for RocksDB, since this was asked last.
    pub fn take_reading_time(&mut self) -> Duration {
        self.reading.take()
    }

    /// Only around reads that memory did not answer, which take a hundred times as long as the clock.
    fn timed<R>(&self, read: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let answer = read();
        self.reading.set(self.reading.get() + start.elapsed());
        answer
    }

    pub fn get(&self, store: u16, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let prefix = prefix(self.stores.as_deref(), store)?;
        self.look_up(KeyRef { hash: hash(&self.hasher, store, key), store, prefix: &prefix, key })
    }

    /// A row of the task's own.
    pub fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.look_up(self.row_key(table, key))
    }

    /// A row of the task's own that is asked for once: it does not displace what is asked for often.
    pub fn row_once(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = self.row_key(table, key);
        if let Some(known) = self.layers().find_map(|layer| layer.map().get(key)) {
            return Ok(known.map(<[u8]>::to_vec));
        }
        match &self.reader {
            Some(reader) => self.timed(|| reader.get_raw(&[key.prefix, key.key].concat())),
            None => Ok(None),
        }
    }

    /// Many of them, which differ from each other: those that are not in memory by one batched read. `found`
    /// gets the number of a key in `keys` and its row, in no order.
    pub fn rows_once(
        &self,
        table: Table,
        keys: &[&[u8]],
        found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), StoreError> {
        self.read_rows(table, keys, None, found)
    }

    /// The same of rows that are asked for again and again.
    pub fn rows(
        &self,
        table: Table,
        keys: &[&[u8]],
        found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), StoreError> {
        self.read_rows(table, keys, Some(&mut *self.cache.borrow_mut()), found)
    }

    fn read_rows(
        &self,
        table: Table,
        keys: &[&[u8]],
        mut cache: Option<&mut Cache>,
        mut found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), StoreError> {
        let mut misses = Vec::with_capacity(keys.len());
        for (number, key) in keys.iter().enumerate() {
            let key = self.row_key(table, key);
            let known = self.layers().find_map(|layer| layer.map().get(key));
            match known.or_else(|| cache.as_mut()?.get(key)) {
                Some(known) => found(number, known),
                None => misses.push(number),
            }
        }
        let Some(reader) = self.reader.as_ref().filter(|_| !misses.is_empty()) else {
            misses.into_iter().for_each(|number| found(number, None));
            return Ok(());
        };
        misses.sort_unstable_by(|&a, &b| keys[a].cmp(keys[b]));
        let prefix = table.prefix();
        let mut arena =
            Vec::with_capacity(misses.iter().map(|&number| prefix.len() + keys[number].len()).sum());
        let mut ends = Vec::with_capacity(misses.len());
        for &number in &misses {
            arena.extend_from_slice(prefix);
            arena.extend_from_slice(keys[number]);
            ends.push(arena.len());
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let full = starts.zip(&ends).map(|(start, &end)| &arena[start..end]);
        reader.multi_get(full, |nth, row| {
            let number = misses[nth];
            if let Some(cache) = &mut cache {
                cache.put(self.row_key(table, keys[number]), row);
            }
            found(number, row);
        })
    }

    /// Sets a row of the task's own, or deletes it. Part of the next commit, like every change.
    pub fn set_row(&mut self, table: Table, key: &[u8], value: Option<&[u8]>) {
        let key = self.row_key(table, key);
        self.active.put(key, value, false);
    }

    /// Deletes rows of dropped generations, by their whole keys. Part of the next commit.
    pub fn delete_dropped(&mut self, keys: &Column) {
        for key in keys.iter().flatten() {
            let hash = hash(&self.hasher, keys::DROPPED, key);
            self.active.put(KeyRef { hash, store: keys::DROPPED, prefix: &[], key }, None, false);
        }
    }

    fn row_key<'a>(&self, table: Table, key: &'a [u8]) -> KeyRef<'a> {
        let store = table.number();
        KeyRef { hash: hash(&self.hasher, store, key), store, prefix: table.prefix(), key }
    }

    fn look_up(&self, key: KeyRef<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        for layer in self.layers() {
            if let Some(known) = layer.map().get(key) {
                return Ok(known.map(<[u8]>::to_vec));
            }
        }
        if let Some(known) = self.cache.borrow_mut().get(key) {
            return Ok(known.map(<[u8]>::to_vec));
        }
        let Some(reader) = &self.reader else {
            return Ok(None);
        };
        let value = self.timed(|| reader.get_raw(&[key.prefix, key.key].concat()))?;
        self.cache.borrow_mut().put(key, value.as_deref());
        Ok(value)
    }

    /// Up to `limit` keys in `start..end`, at most 1 MiB a page. In a store that is not declared
    /// ordered every scan sorts the part of the overlay that matches.
    pub fn scan(&self, store: u16, start: &[u8], end: Option<&[u8]>, limit: u32) -> Result<Page, StoreError> {
        let prefix = prefix(self.stores.as_deref(), store)?;
        let start = [&prefix, start].concat();
        let end = end.map_or_else(|| keys::prefix_end(&prefix), |end| [&prefix, end].concat());
        let stores = self.stores.as_deref();
        let layers = self.layers().map(|layer| layer.range(store, stores, &start, &end)).collect();
        match &self.reader {
            Some(reader) => self.timed(|| {
                reader.scan_raw(&start, &end, |rows| scan::page(layers, Some(rows), prefix.len(), limit))
            }),
            None => scan::page(layers, None, prefix.len(), limit),
        }
    }

    /// Takes writes of the call in progress, tagged by record, so that a following scan sees them.
    /// They join the overlay only with the `Ok` records of the call. Refuses unknown stores, and more
    /// bytes than a call may hand over.
    pub fn put_many(&mut self, writes: Writes) -> Result<(), StoreError> {
        let bytes = writes.keys.bytes().len() + writes.values.bytes().len();
        // What comes again and again is in the overlay once, and in the log each time; nothing at all is as well.
        let log_bytes = self.scratch_log_bytes + bytes + writes.len() * WRITE_BYTES + size_of::<Writes>();
        if log_bytes.max(self.scratch.bytes() + bytes) > self.limits.scratch_bytes_max {
            return Err(StoreError::Refused(format!(
                "put-many takes at most {} bytes a call",
                self.limits.scratch_bytes_max
            )));
        }
        merge(&mut self.scratch, self.stores.as_deref(), &self.hasher, &writes, |_| true)?;
        self.scratch_log.push(writes);
        self.scratch_log_bytes = log_bytes;
        Ok(())
    }

    /// Layers above the cache, the topmost first.
    fn layers(&self) -> impl Iterator<Item = &Overlay> {
        [Some(&self.scratch), Some(&self.active), self.frozen.as_ref()]
            .into_iter()
            .flatten()
            .filter(|layer| !layer.is_empty())
    }

    /// Values of the distinct keys of a batch in the stores declared `prefetch`: from memory where
    /// they are known, the rest by one batched read. Stops at the bound; what is missing is asked for.
    pub fn prefetch(&mut self, keys: &Column) -> Result<Prefetched, StoreError> {
        let Some(stores) = self.stores.clone() else {
            return Ok(Prefetched::default());
        };
        if !stores.iter().any(|def| def.prefetch) {
            return Ok(Prefetched::default());
        }
        let mut prefetcher = std::mem::take(&mut self.prefetcher);
        prefetcher.distinct(&self.hasher, keys);
        let fetched = self.fetch(&stores, keys, &mut prefetcher);
        self.prefetcher = prefetcher;
        fetched
    }

    fn fetch(&self, stores: &Stores, keys: &Column, work: &mut Prefetcher) -> Result<Prefetched, StoreError> {
        let mut fetched = Fetched::new(work.rows.len(), keys.bytes().len(), self.limits.prefetch_bytes_max);
        let mut cache = self.cache.borrow_mut();
        work.misses.clear();
        for (number, def) in stores.iter().enumerate().filter(|(_, def)| def.prefetch) {
            let store = number as u16;
            for row in &work.rows {
                let key = row.key(store, &def.prefix, keys.bytes());
                if fetched.is_full() {
                    break;
                }
                let known = self.layers().find_map(|layer| layer.map().get(key)).or_else(|| cache.get(key));
                match known {
                    Some(value) => fetched.push(store, key.key, value),
                    None => work.misses.push((store, *row)),
                }
            }
        }
        let Some(reader) = self.reader.as_ref().filter(|_| !work.misses.is_empty()) else {
            // Nothing behind the overlay: every miss is an absent key.
            for &(store, row) in &work.misses {
                fetched.push(store, row.bytes(keys.bytes()), None);
            }
            return Ok(fetched.rows);
        };
        work.sort_misses(stores, keys.bytes());
        let misses = &work.misses;
        let read = |index: usize, value: Option<&[u8]>| {
            let (store, row) = misses[index];
            let prefix = stores.get(store).map_or(&[][..], |def| &def.prefix);
            let key = row.key(store, prefix, keys.bytes());
            cache.put(key, value);
            if !fetched.is_full() {
                fetched.push(store, key.key, value);
            }
        };
        self.timed(|| reader.multi_get(work.full_keys(), read))?;
        Ok(fetched.rows)
    }

    /// Merges writes whose source `keep` accepts into the active overlay, in order.
    pub fn absorb(&mut self, writes: &Writes, keep: impl Fn(u32) -> bool) -> Result<(), StoreError> {
        if self.quota.is_some() {
            return self.absorb_counted(writes, keep);
        }
        merge(&mut self.active, self.stores.as_deref(), &self.hasher, writes, keep)
    }

    /// Ends a call: its scratch is no longer visible, and is handed over for merging or forgetting.
    pub fn take_scratch(&mut self) -> Vec<Writes> {
        if self.scratch_log.is_empty() {
            return Vec::new();
        }
        self.scratch.clear(self.limits.overlay_keep_bytes);
        self.scratch_log_bytes = 0;
        std::mem::take(&mut self.scratch_log)
    }

    /// Memory of changes that no seal has taken yet.
    pub fn active_bytes(&self) -> usize {
        self.active.bytes()
    }

    /// Memory of everything above RocksDB.
    pub fn bytes(&self) -> usize {
        self.layers().map(Overlay::bytes).sum::<usize>() + self.cache.borrow().bytes()
    }

    /// Freezes the active overlay and answers its changes; reads go on seeing them. `None` while a
    /// frozen overlay awaits its commit: there is at most one. What goes to the inbox's topic is answered apart, as
    /// that topic's records.
    pub fn freeze(&mut self) -> Option<(Changes, Packed)> {
        if self.frozen.is_some() {
            return None;
        }
        let frozen = std::mem::replace(&mut self.active, std::mem::take(&mut self.spare));
        let map = frozen.map();
        let of_inbox = keys::INBOX.map(Table::number);
        let ids = map.iter().filter(|(key, _)| of_inbox.contains(&key.store)).count();
        let (rows, half) = (map.len() - ids, map.bytes() / 2);
        // One more row and some bytes: the caller adds the position record.
        let room = || Column::with_capacity(rows + 1, half * rows / map.len().max(1));
        let mut changes = Changes { keys: room(), values: room() };
        let mut seen = Packer::with_capacity(2 * (half * ids / map.len().max(1)));
        for index in map.sorted() {
            let (key, value) = (map.full_key(index), map.value(index));
            if keys::is_inbox_key(key) {
                seen.push(key, value);
            } else {
                changes.keys.push(Some(key));
                changes.values.push(value);
            }
        }
        self.frozen = Some(frozen);
        if let Some(quota) = &mut self.quota {
            quota.seal();
        }
        Some((changes, seen.finish()))
    }

    /// The frozen changes are committed and in RocksDB.
    pub fn committed(&mut self) {
        let Some(mut frozen) = self.frozen.take() else {
            return;
        };
        let cache = self.cache.get_mut();
        // Nobody asks again for these, or seldom.
        let seldom = [Table::Inbox.number(), Table::Outbox.number(), keys::DROPPED];
        for (key, value) in frozen.map().iter().filter(|(key, _)| !seldom.contains(&key.store)) {
            cache.put(key, value);
        }
        frozen.clear(self.limits.overlay_keep_bytes);
        self.spare = frozen;
        if let Some(quota) = &mut self.quota {
            quota.commit();
        }
    }

    /// Forgets everything that is not in RocksDB, and the cache with it: after a drop what RocksDB
    /// holds may change underneath, by recovery.
    pub fn drop_uncommitted(&mut self) {
        self.scratch_log.clear();
        self.scratch_log_bytes = 0;
        self.scratch.clear(self.limits.overlay_keep_bytes);
        self.active.clear(self.limits.overlay_keep_bytes);
        if let Some(mut frozen) = self.frozen.take() {
            frozen.clear(self.limits.overlay_keep_bytes);
            self.spare = frozen;
        }
        self.cache.get_mut().clear();
        if let Some(quota) = &mut self.quota {
            quota.drop_uncommitted();
        }
    }
}

fn merge(
    into: &mut Overlay,
    stores: Option<&Stores>,
    hasher: &DefaultHashBuilder,
    writes: &Writes,
    keep: impl Fn(u32) -> bool,
) -> Result<(), StoreError> {
    let rows = writes.keys.iter().zip(writes.values.iter());
    for ((&source, &store), (key, value)) in writes.sources.iter().zip(&writes.stores).zip(rows) {
        if !keep(source) {
            continue;
        }
        let prefix = prefix(stores, store)?;
        let ordered = stores.and_then(|stores| stores.get(store)).is_some_and(|def| def.ordered);
        let key = key.unwrap_or_default();
        let key = KeyRef { hash: hash(hasher, store, key), store, prefix: &prefix, key };
        into.put(key, value, ordered);
    }
    Ok(())
}

fn prefix(stores: Option<&Stores>, store: u16) -> Result<Cow<'_, [u8]>, StoreError> {
    match stores {
        None => Ok(Cow::Owned(keys::state_prefix(&format!("{store:05}")).into())),
        Some(stores) => match stores.get(store) {
            Some(def) => Ok(Cow::Borrowed(&def.prefix)),
            None => {
                Err(StoreError::Refused(format!("there is no store {store}, only {} of them", stores.len())))
            }
        },
    }
}

fn hash(hasher: &DefaultHashBuilder, store: u16, key: &[u8]) -> u64 {
    in_store(hasher.hash_one(key), store)
}

/// Tells stores apart without hashing the key once for each.
fn in_store(hash: u64, store: u16) -> u64 {
    hash ^ u64::from(store).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// A distinct key of a batch: where it lies in the batch's key column.
#[derive(Debug, Clone, Copy)]
struct Row {
    hash: u64,
    at: usize,
    len: usize,
}

impl Row {
    fn bytes(self, keys: &[u8]) -> &[u8] {
        &keys[self.at..self.at + self.len]
    }

    fn key<'a>(self, store: u16, prefix: &'a [u8], keys: &'a [u8]) -> KeyRef<'a> {
        KeyRef { hash: in_store(self.hash, store), store, prefix, key: self.bytes(keys) }
    }
}

/// Working memory of prefetching, kept from batch to batch.
#[derive(Debug, Default)]
struct Prefetcher {
    seen: HashTable<u32>,
    rows: Vec<Row>,
    misses: Vec<(u16, Row)>,
    /// Prefixed keys of the misses, end to end, and where each begins.
    arena: Vec<u8>,
    starts: Vec<usize>,
}

impl Prefetcher {
    /// Collects the distinct keys of a batch; records without a key have none.
    fn distinct(&mut self, hasher: &DefaultHashBuilder, keys: &Column) {
        self.seen.clear();
        self.rows.clear();
        let bytes = keys.bytes();
        let mut at = 0;
        for key in keys.iter().flatten() {
            let row = Row { hash: hasher.hash_one(key), at, len: key.len() };
            at += key.len();
            let rows = &self.rows;
            if self.seen.find(row.hash, |&other| rows[other as usize].bytes(bytes) == key).is_some() {
                continue;
            }
            let index = rows.len() as u32;
            self.seen.insert_unique(row.hash, index, |&other| rows[other as usize].hash);
            self.rows.push(row);
        }
    }

    fn sort_misses(&mut self, stores: &Stores, keys: &[u8]) {
        let prefix = |store: u16| stores.get(store).map_or(&[][..], |def| &def.prefix[..]);
        self.misses.sort_unstable_by(|&(a, row_a), &(b, row_b)| {
            (prefix(a), row_a.bytes(keys)).cmp(&(prefix(b), row_b.bytes(keys)))
        });
        self.arena.clear();
        self.starts.clear();
        for &(store, row) in &self.misses {
            self.starts.push(self.arena.len());
            self.arena.extend_from_slice(prefix(store));
            self.arena.extend_from_slice(row.bytes(keys));
        }
        self.starts.push(self.arena.len());
    }

    fn full_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.starts.windows(2).map(|ends| &self.arena[ends[0]..ends[1]])
    }
}

/// Prefetched rows, up to a bound.
struct Fetched {
    rows: Prefetched,
    bytes: usize,
    bytes_max: usize,
}

impl Fetched {
    fn new(rows: usize, key_bytes: usize, bytes_max: usize) -> Fetched {
        let rows = Prefetched {
            stores: Vec::with_capacity(rows),
            keys: Column::with_capacity(rows, key_bytes),
            values: Column::with_capacity(rows, rows * 8),
        };
        Fetched { rows, bytes: 0, bytes_max }
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    fn push(&mut self, store: u16, key: &[u8], value: Option<&[u8]>) {
        let size = key.len() + value.map_or(0, <[u8]>::len);
        if self.bytes + size > self.bytes_max {
            self.bytes = self.bytes_max;
            return;
        }
        self.bytes += size;
        self.rows.stores.push(store);
        self.rows.keys.push(Some(key));
        self.rows.values.push(value);
    }
}
