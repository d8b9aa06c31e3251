//! One generation of uncommitted changes: a map of the changed keys, with an order beside it for
//! stores that are scanned.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::keymap::{KeyMap, KeyRef, Known};
use super::keys::Stores;

/// What an ordered key costs beyond the map: its copy's allocation and its share of a tree node.
const ORDERED_ENTRY_BYTES: usize = 48;

#[derive(Debug, Default)]
pub(super) struct Overlay {
    map: KeyMap,
    /// Prefixed keys of the ordered stores, each with its entry in `map`.
    order: BTreeMap<Box<[u8]>, u32>,
    order_bytes: usize,
}

/// A changed key and what it was changed to.
pub(super) type Change<'a> = (&'a [u8], Known<'a>);

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.map.bytes() + self.order_bytes
    }

    pub fn map(&self) -> &KeyMap {
        &self.map
    }

    /// Answers the index of an entry that is new to the map.
    pub fn put(&mut self, key: KeyRef<'_>, value: Option<&[u8]>, ordered: bool) -> Option<u32> {
        let index = self.map.put(key, value)?;
        if ordered {
            let full: Box<[u8]> = self.map.full_key(index).into();
            self.order_bytes += full.len() + ORDERED_ENTRY_BYTES;
            self.order.insert(full, index);
        }
        Some(index)
    }

    /// Changes of one store in `start..end` (prefixed keys), in key order. For an ordered store this
    /// costs what it yields; for any other it sorts what matches, so it is for rare scans.
    pub fn range<'a>(
        &'a self,
        store: u16,
        stores: Option<&Stores>,
        start: &[u8],
        end: &'a [u8],
    ) -> Changes<'a> {
        let ordered = stores.and_then(|stores| stores.get(store)).is_some_and(|def| def.ordered);
        if ordered {
            let range = if start < end {
                self.order.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            } else {
                Default::default()
            };
            return Changes::Ordered { map: &self.map, range };
        }
        let mut matching: Vec<u32> = self
            .map
            .of_store(store)
            .filter(|&index| {
                let key = self.map.full_key(index);
                start <= key && key < end
            })
            .collect();
        // Descending, so that the smallest is popped off the end.
        matching.sort_unstable_by(|&a, &b| self.map.full_key(b).cmp(self.map.full_key(a)));
        Changes::Sorted { map: &self.map, matching }
    }

    pub fn clear(&mut self, keep_bytes: usize) {
        self.map.clear(keep_bytes);
        self.order.clear();
        self.order_bytes = 0;
    }
}

pub(super) enum Changes<'a> {
    Ordered { map: &'a KeyMap, range: std::collections::btree_map::Range<'a, Box<[u8]>, u32> },
    Sorted { map: &'a KeyMap, matching: Vec<u32> },
}

impl<'a> Iterator for Changes<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        match self {
            Changes::Ordered { map, range } => {
                let (key, &index) = range.next()?;
                Some((key, map.value(index)))
            }
            Changes::Sorted { map, matching } => {
                let index = matching.pop()?;
                Some((map.full_key(index), map.value(index)))
            }
        }
    }
}
