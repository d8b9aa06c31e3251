//! One partition's log, as far as transactions matter.
//!
//! ```text
//!   offset     0   1   2   3   4        a0, a1: records of an open transaction
//!   entry      x   a0  y   a1  C(y)     last stable offset: 1, high watermark: 5
//! ```

use std::collections::BTreeMap;

use crate::record::Offset;

#[derive(Debug, Clone)]
pub struct Row {
    pub key: Vec<u8>,
    /// Null = deleted.
    pub value: Option<Vec<u8>>,
    pub timestamp_ms: i64,
}

#[derive(Debug)]
enum Entry {
    Committed(Row),
    /// Of this producer's transaction, which is not decided here yet.
    Open(i64, Row),
    /// A record that compaction took: no reader meets it, only whoever looks at what happened.
    Compacted(Row),
    /// A transaction marker, or an aborted record.
    Nothing,
}

#[derive(Debug, Default)]
pub struct Log {
    entries: Vec<Entry>,
    /// Where each open transaction began, by producer.
    open: BTreeMap<i64, u64>,
}

/// What a reader meets at an offset.
pub enum Met<'a> {
    Row(&'a Row),
    Nothing,
    /// The last stable offset, or the end.
    Wait,
}

impl Log {
    /// The high watermark: there is one replica.
    pub fn end(&self) -> Offset {
        Offset(self.entries.len() as u64)
    }

    /// The last stable offset.
    pub fn stable(&self) -> Offset {
        self.open.values().min().map_or(self.end(), |&first| Offset(first))
    }

    pub fn append(&mut self, row: Row) {
        self.entries.push(Entry::Committed(row));
    }

    /// An offset without a record, as an upstream producer's marker leaves.
    pub fn append_nothing(&mut self) {
        self.entries.push(Entry::Nothing);
    }

    pub fn append_open(&mut self, producer: i64, row: Row) {
        let end = self.end().0;
        self.open.entry(producer).or_insert(end);
        self.entries.push(Entry::Open(producer, row));
    }

    /// A transaction's marker reaches this partition.
    pub fn mark(&mut self, producer: i64, commit: bool) {
        if let Some(first) = self.open.remove(&producer) {
            for entry in &mut self.entries[first as usize..] {
                let Entry::Open(of, row) = entry else { continue };
                if *of != producer {
                    continue;
                }
                let row = row.clone();
                *entry = if commit { Entry::Committed(row) } else { Entry::Nothing };
            }
        }
        self.append_nothing();
    }

    /// What a read_committed reader meets at `at`.
    pub fn meet(&self, at: Offset) -> Met<'_> {
        if at >= self.stable() {
            return Met::Wait;
        }
        match &self.entries[at.0 as usize] {
            Entry::Committed(row) => Met::Row(row),
            Entry::Open(..) | Entry::Compacted(_) | Entry::Nothing => Met::Nothing,
        }
    }

    /// What a read_uncommitted reader meets at `at`.
    pub fn meet_uncommitted(&self, at: Offset) -> Met<'_> {
        match self.entries.get(at.0 as usize) {
            None => Met::Wait,
            Some(Entry::Committed(row) | Entry::Open(_, row)) => Met::Row(row),
            Some(Entry::Compacted(_) | Entry::Nothing) => Met::Nothing,
        }
    }

    /// Every committed record, in order.
    pub fn committed(&self) -> impl Iterator<Item = &Row> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Committed(row) => Some(row),
            _ => None,
        })
    }

    /// Every record that was ever committed, in order.
    pub fn all_committed(&self) -> impl Iterator<Item = &Row> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Committed(row) | Entry::Compacted(row) => Some(row),
            _ => None,
        })
    }

    /// Every record that was ever committed, or will be: those of transactions that `is_decided` knows of.
    pub fn decided(&self, is_decided: impl Fn(i64) -> bool) -> impl Iterator<Item = &Row> {
        self.entries.iter().filter_map(move |entry| match entry {
            Entry::Committed(row) | Entry::Compacted(row) => Some(row),
            Entry::Open(producer, row) => is_decided(*producer).then_some(row),
            Entry::Nothing => None,
        })
    }

    /// Keeps the last record of each key below `to`, and never touches what is not stable.
    pub fn compact(&mut self, to: Offset) {
        let to = to.min(self.stable()).0 as usize;
        let mut last: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for (at, entry) in self.entries[..to].iter().enumerate() {
            if let Entry::Committed(row) = entry {
                last.insert(row.key.clone(), at);
            }
        }
        for (at, entry) in self.entries[..to].iter_mut().enumerate() {
            if let Entry::Committed(row) = entry
                && last[&row.key] != at
            {
                *entry = Entry::Compacted(row.clone());
            }
        }
    }
}
