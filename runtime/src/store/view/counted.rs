//! The half of a view that counts what the stores hold ([`Quota`]) and says which record would go beyond
//! what they may.

use std::collections::HashMap;

use super::super::StoreError;
use super::super::keymap::{KeyRef, Known};
use super::super::keys::{StoreDef, Stores};
use super::super::quota::{Quota, StoreBytes, size};
use super::super::sort::sort_keys;
use super::{View, hash, prefix};
use crate::effects::{Effects, Status, Writes};

/// The first record of a call that would make the stores hold more than they may.
#[derive(Debug, PartialEq, Eq)]
pub struct Beyond {
    pub row: usize,
    pub reason: String,
}

/// A write of a call, as its simulation needs it.
struct Row<'a> {
    source: u32,
    store: u16,
    key: &'a [u8],
    value: Known<'a>,
}

impl View {
    /// From now on the stores may hold `bytes_max` together. `known` says what one holds, where that is
    /// known; the others are counted, which reads all of them.
    pub fn count(
        &mut self,
        bytes_max: u64,
        known: impl Fn(&StoreDef) -> Option<u64>,
    ) -> Result<(), StoreError> {
        let Some(stores) = &self.stores else { return Ok(()) };
        let counted = |def: &StoreDef| match (known(def), &self.reader) {
            (Some(bytes), _) => Ok(bytes),
            (None, Some(reader)) => reader.bytes(&def.prefix),
            (None, None) => Ok(0),
        };
        let committed: StoreBytes = stores.iter().map(counted).collect::<Result<_, _>>()?;
        self.quota = Some(Quota::new(bytes_max, committed));
        Ok(())
    }

    /// Another bound, or none. What is counted stays counted.
    pub fn set_bytes_max(&mut self, bytes_max: Option<u64>) {
        match (bytes_max, &mut self.quota) {
            (Some(bytes_max), Some(quota)) => quota.bytes_max = bytes_max,
            (_, quota) => *quota = None,
        }
    }

    /// Goes on counting where another view of the same stores was, with everything committed.
    pub fn count_on(&mut self, former: &mut View) {
        self.quota = former.quota.take();
    }

    /// What each store holds as of the last seal, by the name that its keys carry; nothing while nobody counts.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        let defs = self.stores.iter().flat_map(|stores| stores.iter());
        let sizes = self.quota.iter().flat_map(|quota| quota.sealed());
        defs.map(|def| def.key_name.as_str()).zip(sizes.copied())
    }

    /// As [`View::absorb`], with every write counted.
    pub(super) fn absorb_counted(
        &mut self,
        writes: &Writes,
        keep: impl Fn(u32) -> bool,
    ) -> Result<(), StoreError> {
        let stores = self.stores.clone();
        for row in rows(writes).filter(|row| keep(row.source)) {
            let prefix = prefix(stores.as_deref(), row.store)?;
            let key = KeyRef {
                hash: hash(&self.hasher, row.store, row.key),
                store: row.store,
                prefix: &prefix,
                key: row.key,
            };
            let before = self.known_size(key);
            let new = self.active.put(key, row.value, is_ordered(stores.as_deref(), row.store));
            let Some(quota) = &mut self.quota else { continue };
            quota.replace(row.store, before.unwrap_or(0), size(row.key.len(), row.value.map(<[u8]>::len)));
            quota.unknown.extend(new.filter(|_| before.is_none()));
        }
        Ok(())
    }

    /// Looks up what the sizes still lack, by one read of all their keys.
    pub fn settle_sizes(&mut self) -> Result<(), StoreError> {
        let Some(quota) = &mut self.quota else { return Ok(()) };
        let unknown = std::mem::take(&mut quota.unknown);
        let Some(reader) = self.reader.as_ref().filter(|_| !unknown.is_empty()) else { return Ok(()) };
        let map = self.active.map();
        let order = sort_keys(unknown.len(), |at| map.full_key(unknown[at as usize]));
        let keys = order.iter().map(|&at| map.full_key(unknown[at as usize]));
        let found = reader.multi_get(keys, |at, value| {
            let key = map.key(unknown[order[at] as usize]);
            quota.replace(key.store, size(key.key.len(), value.map(<[u8]>::len)), 0);
        });
        if found.is_err() {
            // Whoever goes on after it looks again.
            quota.unknown = unknown;
        }
        found
    }

    /// The first `ok` record of a call, whose writes are `scratch` and then those of `effects`, that adds to the
    /// stores beyond what they may hold. Costs a comparison while there is room for all of them.
    pub fn first_beyond(
        &mut self,
        effects: &Effects,
        scratch: &[Writes],
    ) -> Result<Option<Beyond>, StoreError> {
        let Some(quota) = &self.quota else { return Ok(None) };
        let bytes = |writes: &Writes| writes.keys.bytes().len() + writes.values.bytes().len();
        let most: usize = scratch.iter().chain([&effects.writes]).map(bytes).sum();
        if most == 0 || quota.total() + most as u64 <= quota.bytes_max {
            return Ok(None);
        }
        self.settle_sizes()?;
        let Some(quota) = &self.quota else { return Ok(None) };
        let (bytes_max, mut total) = (quota.bytes_max, quota.total());
        if total + most as u64 <= bytes_max {
            return Ok(None);
        }
        let is_ok = |row: &Row<'_>| effects.statuses.get(row.source as usize) == Some(&Status::Ok);
        let mut all: Vec<Row<'_>> =
            scratch.iter().chain([&effects.writes]).flat_map(rows).filter(is_ok).collect();
        // By record, and those of a record in the order in which they take effect.
        all.sort_by_key(|row| row.source);
        let mut written: HashMap<(u16, &[u8]), u64> = HashMap::new();
        for record in all.chunk_by(|one, other| one.source == other.source) {
            let before_record = total;
            for row in record {
                let after = size(row.key.len(), row.value.map(<[u8]>::len));
                let before = match written.insert((row.store, row.key), after) {
                    Some(before) => before,
                    None => size(row.key.len(), self.get(row.store, row.key)?.map(|value| value.len())),
                };
                total = (total + after).saturating_sub(before);
            }
            // One that does not grow what is too large already makes nothing worse.
            if total > bytes_max && total > before_record {
                let reason = format!(
                    "the task's stores would hold {total} bytes, limits.store_bytes allows {bytes_max}"
                );
                return Ok(record.first().map(|row| Beyond { row: row.source as usize, reason }));
            }
        }
        Ok(None)
    }

    /// The size of an entry, if that can be told without reading from disk.
    fn known_size(&mut self, key: KeyRef<'_>) -> Option<u64> {
        let layers = [Some(&self.active), self.frozen.as_ref()].into_iter().flatten();
        let known = layers.filter_map(|layer| layer.map().get(key)).next();
        let known = known.or_else(|| self.cache.get_mut().get(key))?;
        Some(size(key.key.len(), known.map(<[u8]>::len)))
    }
}

fn is_ordered(stores: Option<&Stores>, store: u16) -> bool {
    stores.and_then(|stores| stores.get(store)).is_some_and(|def| def.ordered)
}

fn rows(writes: &Writes) -> impl Iterator<Item = Row<'_>> {
    let values = writes.keys.iter().zip(writes.values.iter());
    let columns = writes.sources.iter().zip(&writes.stores).zip(values);
    columns.map(|((&source, &store), (key, value))| Row {
        source,
        store,
        key: key.unwrap_or_default(),
        value,
    })
}
