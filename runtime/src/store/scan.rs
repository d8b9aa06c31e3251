//! Range reads: layers of changes merged over committed data, a page at a time.

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};

use super::StoreError;
use super::overlay::{Change, Changes};
use super::quota;
use crate::record::Column;

/// Keys and values of one page, unless its first row alone is larger.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// One page of a scan, in key order.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub keys: Column,
    pub values: Column,
    /// True when there are keys beyond this page.
    pub more: bool,
}

/// Committed rows of a key range.
pub(super) struct Committed<'a> {
    rows: DBRawIteratorWithThreadMode<'a, DB>,
}

impl<'a> Committed<'a> {
    /// `start..end` are prefixed keys; `make` makes the iterator, of a database or of a snapshot.
    pub fn new(
        start: &[u8],
        end: &[u8],
        make: impl FnOnce(ReadOptions) -> DBRawIteratorWithThreadMode<'a, DB>,
    ) -> Committed<'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end);
        let mut rows = make(options);
        rows.seek(start);
        Committed { rows }
    }

    /// Keys, without the first `prefix_len` bytes, and values of all rows, added up.
    pub fn bytes(mut self, prefix_len: usize) -> Result<u64, StoreError> {
        let mut bytes = 0;
        while let (Some(key), Some(value)) = (self.rows.key(), self.rows.value()) {
            bytes += quota::size(key.len().saturating_sub(prefix_len), Some(value.len()));
            self.rows.next();
        }
        self.rows.status()?;
        Ok(bytes)
    }

    /// The next keys, at most `limit`.
    pub fn keys(mut self, limit: usize) -> Result<Column, StoreError> {
        let mut keys = Column::default();
        while keys.len() < limit
            && let Some(key) = self.rows.key()
        {
            keys.push(Some(key));
            self.rows.next();
        }
        self.rows.status()?;
        Ok(keys)
    }
}

/// Merges `layers` (the first wins) over committed rows into one page. `prefix_len` bytes are cut
/// off each key.
pub(super) fn page(
    layers: Vec<Changes<'_>>,
    mut committed: Option<Committed<'_>>,
    prefix_len: usize,
    limit: u32,
) -> Result<Page, StoreError> {
    let mut layers: Vec<_> = layers.into_iter().map(Iterator::peekable).collect();
    let mut page = Page::default();
    let mut bytes = 0;
    loop {
        let on_disk = committed.as_ref().and_then(|committed| committed.rows.key());
        let changed = layers.iter_mut().filter_map(|layer| layer.peek().map(|change| change.0)).min();
        let key = match (changed, on_disk) {
            (Some(changed), Some(on_disk)) => changed.min(on_disk),
            (Some(key), None) | (None, Some(key)) => key,
            (None, None) => break,
        };
        // The topmost layer that knows the key decides; all layers move past it.
        let is_on_disk = on_disk == Some(key);
        let mut change: Option<Change<'_>> = None;
        for layer in &mut layers {
            let here = layer.next_if(|&(other, _)| other == key);
            change = change.or(here);
        }
        let value = match change {
            Some((_, value)) => value,
            None => committed.as_ref().and_then(|committed| committed.rows.value()),
        };
        if let Some(value) = value {
            let key = key.get(prefix_len..).unwrap_or_default();
            let size = key.len() + value.len();
            if page.keys.len() as u64 >= u64::from(limit) || (bytes > 0 && bytes + size > PAGE_BYTES_MAX) {
                page.more = true;
                return Ok(page);
            }
            bytes += size.max(1);
            page.keys.push(Some(key));
            page.values.push(Some(value));
        }
        if let Some(committed) = committed.as_mut().filter(|_| is_on_disk) {
            committed.rows.next();
        }
    }
    if let Some(committed) = committed {
        // An iterator ends at the range's end and at an error alike.
        committed.rows.status()?;
    }
    Ok(page)
}
