//! The part of a node that a handler needs: its stores, and the writes of the call in progress.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::Level;
use crate::bindings::tidemill::handler::types::{Page, Writes};
use crate::column::Column;
use crate::guest::Host;

/// Bytes that a page of a scan holds at most, as in a node.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// One write of a call.
pub struct Row<'a> {
    pub source: usize,
    pub store: usize,
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

pub fn rows(writes: &Writes) -> impl Iterator<Item = Row<'_>> {
    let ids = writes.source.iter().zip(&writes.store);
    ids.zip(writes.key.rows()).zip(writes.value.rows()).map(|(((source, store), key), value)| Row {
        source: *source as usize,
        store: usize::from(*store),
        key: key.unwrap_or_default(),
        value,
    })
}

pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

pub trait WriteEntry {
    fn write(&mut self, key: &[u8], value: Option<&[u8]>);
}

impl WriteEntry for Entries {
    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => self.insert(key.to_vec(), value.to_vec()),
            None => self.remove(key),
        };
    }
}

/// The node's side of the imports.
pub struct Node {
    pub stores: Vec<Entries>,
    /// What `put-many` handed over in the call in progress, in order.
    pub handed: Vec<Writes>,
    /// The same as one view over `stores`; none = deleted.
    pub scratch: BTreeMap<(usize, Vec<u8>), Option<Vec<u8>>>,
    pub logs: Vec<(Level, String)>,
    pub reads: u64,
}

impl Node {
    pub fn new(stores: usize) -> Node {
        Node {
            stores: vec![Entries::new(); stores],
            handed: Vec::new(),
            scratch: BTreeMap::new(),
            logs: Vec::new(),
            reads: 0,
        }
    }
}

impl Host for Rc<RefCell<Node>> {
    fn get(&mut self, store: u16, key: &[u8]) -> Option<Vec<u8>> {
        let mut node = self.borrow_mut();
        node.reads += 1;
        let store = usize::from(store);
        match node.scratch.get(&(store, key.to_vec())) {
            Some(value) => value.clone(),
            None => node.stores[store].get(key).cloned(),
        }
    }

    fn scan(&mut self, store: u16, start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
        let node = self.borrow();
        let mut view = node.stores[usize::from(store)].clone();
        for ((of, key), value) in &node.scratch {
            if *of == usize::from(store) {
                view.write(key, value.as_deref());
            }
        }
        let mut page = Page { key: Column::new(), value: Column::new(), more: false };
        for (key, value) in view.range(start.to_vec()..) {
            if end.is_some_and(|end| key.as_slice() >= end) {
                break;
            }
            let full = page.key.bytes.len() + page.value.bytes.len() >= PAGE_BYTES_MAX;
            if full || page.key.lengths.len() as u32 == limit {
                page.more = true;
                break;
            }
            page.key.push(Some(key));
            page.value.push(Some(value));
        }
        page
    }

    fn put_many(&mut self, writes: &Writes) {
        let mut node = self.borrow_mut();
        for row in rows(writes) {
            node.scratch.insert((row.store, row.key.to_vec()), row.value.map(<[u8]>::to_vec));
        }
        node.handed.push(writes.clone());
    }

    fn log(&mut self, level: Level, text: &str) {
        self.borrow_mut().logs.push((level, text.into()));
    }
}
