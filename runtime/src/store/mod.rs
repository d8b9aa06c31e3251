//! State: RocksDB, and the overlay in front of it. (Contract only for now: the in-memory stand-in
//! below has the signatures the other modules build against.)

use std::collections::BTreeMap;

use crate::effects::Writes;
use crate::record::Column;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Io(String),
}

/// One page of a scan, in key order.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub keys: Column,
    pub values: Column,
    /// True when there are keys beyond this page.
    pub more: bool,
}

/// What a handler call sees of its task's state: scratch over overlay over committed store.
#[derive(Debug, Default)]
pub struct View {
    entries: BTreeMap<(u16, Vec<u8>), Vec<u8>>,
}

impl View {
    pub fn get(&self, store: u16, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.entries.get(&(store, key.to_vec())).cloned())
    }

    /// Up to `limit` keys in `start..end`, at most 1 MiB a page.
    pub fn scan(&self, store: u16, start: &[u8], end: Option<&[u8]>, limit: u32) -> Result<Page, StoreError> {
        let mut page = Page::default();
        for ((s, key), value) in self.entries.range((store, start.to_vec())..) {
            if *s != store || end.is_some_and(|end| key.as_slice() >= end) {
                break;
            }
            if page.keys.len() as u32 == limit {
                page.more = true;
                break;
            }
            page.keys.push(Some(key));
            page.values.push(Some(value));
        }
        Ok(page)
    }

    /// Takes writes of the call in progress, tagged by record, so that a following scan sees them.
    /// They join the overlay only with the `Ok` records of the call.
    pub fn put_many(&mut self, writes: Writes) -> Result<(), StoreError> {
        for ((store, key), value) in writes.stores.iter().zip(writes.keys.iter()).zip(writes.values.iter()) {
            let id = (*store, key.unwrap_or_default().to_vec());
            match value {
                Some(value) => self.entries.insert(id, value.to_vec()),
                None => self.entries.remove(&id),
            };
        }
        Ok(())
    }
}
