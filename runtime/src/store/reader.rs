//! Reading committed data from any thread: one value, many, a range, or several under one snapshot.

use std::sync::{Arc, MutexGuard, PoisonError};

use rocksdb::{BottommostLevelCompaction, CompactOptions, DB, SnapshotWithThreadMode, properties};

use super::budget::{self, COLUMN_FAMILY};
use super::db::{Shared, decode_position, read_lock};
use super::flush::{Unflushed, Watch};
use super::keys::Table;
use super::scan::{self, Committed, Page};
use super::{Position, StoreError, keys};
use crate::record::Column;

/// Reads committed data from any thread. Cheap to clone.
#[derive(Clone)]
pub struct StoreReader {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for StoreReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreReader")
    }
}

/// What a store holds, estimated by RocksDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    pub keys: u64,
    pub disk_bytes: u64,
    pub memtable_bytes: u64,
}

impl StoreReader {
    /// Runs `read` against one moment of the store. The store cannot be closed meanwhile, so `read`
    /// must be bounded: a page, not a store.
    pub fn snapshot<R>(
        &self,
        read: impl FnOnce(&Snapshot<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        self.with(|db| read(&Snapshot { snapshot: db.snapshot() }))
    }

    /// Writes the memtable to disk. Blocks until it is there.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.with(|db| Ok(db.flush_opt(&budget::flush_options())?))?;
        self.watch().flushed();
        Ok(())
    }

    /// Rewrites what holds ids, so that those which have expired are dropped. Blocks for the writing; ends
    /// early when the store is to be closed.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let Some(_under_way) = self.shared.sweep.start() else { return Ok(()) };
        self.with(|db| {
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            // What is lowest has the oldest ids, and is left alone otherwise.
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            for prefix in keys::INBOX.map(keys::Table::prefix) {
                db.compact_range_opt(Some(prefix), Some(keys::prefix_end(prefix)), &options);
            }
            Ok(())
        })
    }

    pub(super) fn is_sweep_due(&self) -> bool {
        self.shared.sweep.is_due()
    }

    pub fn sizes(&self) -> Result<Sizes, StoreError> {
        self.with(|db| {
            let property = |name| db.property_int_value(name).map(Option::unwrap_or_default);
            Ok(Sizes {
                keys: property(properties::ESTIMATE_NUM_KEYS)?,
                disk_bytes: property(properties::LIVE_SST_FILES_SIZE)?,
                memtable_bytes: property(properties::CUR_SIZE_ALL_MEM_TABLES)?,
            })
        })
    }

    /// Returns once no compaction is due, so that what is measured does not hang on when one ran.
    #[cfg(test)]
    pub fn settle(&self) -> Result<(), StoreError> {
        self.with(|db| Ok(db.wait_for_compact(&rocksdb::WaitForCompactOptions::default())?))
    }

    /// 0 bytes = everything is on disk. An empty memtable still has memory, which does not count.
    pub(super) fn unflushed(&self) -> Result<Unflushed, StoreError> {
        self.with(|db| {
            let entries =
                db.property_int_value(properties::NUM_ENTRIES_ACTIVE_MEM_TABLE)?.unwrap_or_default();
            let bytes = match entries {
                0 => 0,
                _ => db.property_int_value(properties::CUR_SIZE_ACTIVE_MEM_TABLE)?.unwrap_or_default(),
            };
            Ok(Unflushed { bytes, sequence: db.latest_sequence_number() })
        })
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Watch> {
        self.shared.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Committed rows of a table with keys from `start`, one page of them.
    pub fn rows(&self, table: Table, start: &[u8], limit: u32) -> Result<Page, StoreError> {
        let prefix = table.prefix();
        let (start, end) = ([prefix, start].concat(), keys::prefix_end(prefix));
        self.scan_raw(&start, &end, |rows| scan::page(Vec::new(), Some(rows), prefix.len(), limit))
    }

    /// Up to `limit` committed keys that begin with `prefix`, from `from` on; whole keys, in order.
    pub fn keys(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Column, StoreError> {
        let start = if from.is_empty() { prefix } else { from };
        self.scan_raw(start, &keys::prefix_end(prefix), |rows| rows.keys(limit))
    }

    /// Keys and values below a store's prefix, added up. Reads all of it.
    pub(super) fn bytes(&self, prefix: &[u8]) -> Result<u64, StoreError> {
        self.scan_raw(prefix, &keys::prefix_end(prefix), |rows| rows.bytes(prefix.len()))
    }

    /// One committed value, by its prefixed key, as changelogs have it.
    pub fn get_raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|db| Ok(db.get(key)?))
    }

    /// Many committed values at once. `keys` are sorted and prefixed; `found` gets one call for each,
    /// in order.
    pub(super) fn multi_get<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
        mut found: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), StoreError> {
        self.with(|db| {
            let family = db.cf_handle(COLUMN_FAMILY).ok_or(StoreError::Closed)?;
            for (index, value) in db.batched_multi_get_cf(&family, keys, true).into_iter().enumerate() {
                found(index, value?.as_deref());
            }
            Ok(())
        })
    }

    /// Hands committed rows of `start..end` (prefixed keys) to `read`.
    pub(super) fn scan_raw<R>(
        &self,
        start: &[u8],
        end: &[u8],
        read: impl FnOnce(Committed<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        self.with(|db| read(Committed::new(start, end, |options| db.raw_iterator_opt(options))))
    }

    fn with<R>(&self, use_db: impl FnOnce(&DB) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let guard = read_lock(&self.shared);
        use_db(&guard.as_ref().ok_or(StoreError::Closed)?.db)
    }
}

/// One moment of a store: position and values belong together.
pub struct Snapshot<'a> {
    snapshot: SnapshotWithThreadMode<'a, DB>,
}

impl Snapshot<'_> {
    /// The input that the values are true for; none before the task's first commit.
    pub fn position(&self) -> Result<Option<Position>, StoreError> {
        decode_position(self.snapshot.get_pinned(keys::POSITION)?.as_deref())
    }

    /// `store` is named as its keys do ([`super::key_name`]).
    pub fn get(&self, store: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let full = [&keys::state_prefix(store), key].concat();
        Ok(self.snapshot.get(full)?)
    }

    /// A row of the task's own.
    pub fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.snapshot.get([table.prefix(), key].concat())?)
    }

    /// Rows of a table with keys from `start`, one page of them.
    pub fn rows(&self, table: Table, start: &[u8], limit: u32) -> Result<Page, StoreError> {
        let prefix = table.prefix();
        let (start, end) = ([prefix, start].concat(), keys::prefix_end(prefix));
        let rows = Committed::new(&start, &end, |options| self.snapshot.raw_iterator_opt(options));
        scan::page(Vec::new(), Some(rows), prefix.len(), limit)
    }

    /// Up to `limit` keys in `start..end` (`None` = to the last key), in key order. `store` as for `get`.
    pub fn scan(
        &self,
        store: &str,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let prefix = keys::state_prefix(store);
        let start = [&prefix, start].concat();
        let end = end.map_or_else(|| keys::prefix_end(&prefix), |end| [&prefix, end].concat());
        let rows = Committed::new(&start, &end, |options| self.snapshot.raw_iterator_opt(options));
        scan::page(Vec::new(), Some(rows), prefix.len(), limit)
    }
}
