//! State as one `handle` call sees it: what the node handed over beforehand, what was read, what
//! was written.
//!
//! Lives for one call. Instance memory is not state: it may be dropped between any two batches, so
//! nothing read in one call is believed in the next. Only capacity is kept.
//!
//! A write is appended to the columns that go back to the node and is never changed afterwards, so
//! every row stays with the record that made it. A record that fails is rolled back: its rows are
//! cut off, and `undo` gives each entry it touched its former value.

use crate::bindings::tidemill::handler::types::{Page, Prefetched, Writes};
use crate::column::{Column, ColumnMark};
use crate::guest::Host;

/// Most bytes of values kept from reads in one call; beyond it a read is repeated when asked again.
const READ_BYTES_MAX: usize = 4 << 20;

/// No slot; ends a probe.
const EMPTY: u32 = u32::MAX;

/// Where the value of a slot lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// Not read yet.
    Unknown,
    /// The store has no such key.
    Absent,
    /// In `State::read`.
    Read(Span),
    /// In the value column of `State::writes`.
    Written(Span),
    /// In `State::once`: too much was read to keep it. No slot holds this.
    Once,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start as usize..][..self.len as usize]
    }
}

/// One key of one store.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u64,
    key: Span,
    store: u16,
    cell: Cell,
}

/// What a write of the record in progress replaced.
#[derive(Debug, Clone, Copy)]
struct Undo {
    slot: u32,
    before: Cell,
}

/// Rows of `State::writes` at some moment.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    rows: usize,
    keys: ColumnMark,
    values: ColumnMark,
}

pub(crate) struct State {
    slots: Vec<Slot>,
    /// Open addressing over `slots`; its length is a power of two, at least twice theirs.
    table: Vec<u32>,
    /// Keys of the slots.
    keys: Vec<u8>,
    /// Values handed over beforehand or read.
    read: Vec<u8>,
    /// The last value that was not kept.
    once: Vec<u8>,
    writes: Writes,
    undo: Vec<Undo>,
    /// Where the record in progress began.
    record: Mark,
    /// What `put-many` has handed over: `handed <= writes`.
    handed: Mark,
    source: u32,
}

impl State {
    pub(crate) fn new() -> State {
        State {
            slots: Vec::new(),
            table: vec![EMPTY; 64],
            keys: Vec::new(),
            read: Vec::new(),
            once: Vec::new(),
            writes: no_writes(),
            undo: Vec::new(),
            record: Mark::default(),
            handed: Mark::default(),
            source: 0,
        }
    }

    /// Starts a call with what the node handed over; whatever an earlier call left is forgotten.
    pub(crate) fn begin(&mut self, prefetched: Prefetched) {
        self.slots.clear();
        self.table.fill(EMPTY);
        self.undo.clear();
        self.writes = no_writes();
        self.record = Mark::default();
        self.handed = Mark::default();
        // The arenas start as the columns themselves, so that nothing is copied.
        let Prefetched { store, key, value } = prefetched;
        self.keys = key.bytes;
        self.read = value.bytes;
        let (mut key_at, mut value_at) = (0, 0);
        for ((store, key_len), value_len) in store.into_iter().zip(key.lengths).zip(value.lengths) {
            let key = Span { start: key_at, len: key_len.max(0) as u32 };
            key_at += key.len;
            let cell = match u32::try_from(value_len) {
                Ok(len) => {
                    let span = Span { start: value_at, len };
                    value_at += len;
                    Cell::Read(span)
                }
                Err(_) => Cell::Absent,
            };
            let hash = hash(store, key.of(&self.keys));
            self.insert(Slot { hash, key, store, cell });
        }
    }

    #[inline]
    pub(crate) fn begin_record(&mut self, source: u32) {
        self.source = source;
        self.record = self.mark();
        self.undo.clear();
    }

    /// Takes back what the record in progress wrote.
    pub(crate) fn rollback(&mut self, host: &mut dyn Host) {
        if self.handed.rows > self.record.rows {
            self.compensate(host);
        }
        // Rows that `put-many` handed over stay in the arena, but are not returned again.
        let keep = if self.handed.rows > self.record.rows { self.handed } else { self.record };
        self.writes.source.truncate(keep.rows);
        self.writes.store.truncate(keep.rows);
        self.writes.key.truncate(keep.keys);
        self.writes.value.truncate(keep.values);
        while let Some(Undo { slot, before }) = self.undo.pop() {
            self.slots[slot as usize].cell = before;
        }
    }

    /// The writes to return: all but those that `put-many` handed over.
    pub(crate) fn finish(&mut self) -> Writes {
        let mut writes = std::mem::replace(&mut self.writes, no_writes());
        if self.handed.rows > 0 {
            writes.source.drain(..self.handed.rows);
            writes.store.drain(..self.handed.rows);
            writes.key.drop_before(self.handed.keys);
            writes.value.drop_before(self.handed.values);
        }
        writes
    }

    /// The value of a key. The node is asked only for what this call has not seen.
    #[inline]
    pub(crate) fn get(&mut self, host: &mut dyn Host, store: u16, key: &[u8]) -> Option<&[u8]> {
        let hash = hash(store, key);
        let cell = match self.find(hash, store, key) {
            Ok(index) if self.slots[index as usize].cell != Cell::Unknown => self.slots[index as usize].cell,
            found => self.fetch(host, found.ok(), hash, store, key),
        };
        match cell {
            Cell::Unknown | Cell::Absent => None,
            Cell::Read(span) => Some(span.of(&self.read)),
            Cell::Written(span) => Some(span.of(&self.writes.value.bytes)),
            Cell::Once => Some(&self.once),
        }
    }

    /// Appends a write; `encode` writes the value and answers false for a deletion. An error leaves
    /// everything as it was.
    #[inline]
    pub(crate) fn put<E>(
        &mut self,
        store: u16,
        key: &[u8],
        encode: impl FnOnce(&mut Vec<u8>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let start = self.writes.value.bytes.len();
        let present = match encode(&mut self.writes.value.bytes) {
            Ok(present) => present,
            Err(error) => {
                self.writes.value.bytes.truncate(start);
                return Err(error);
            }
        };
        self.writes.value.close_row(start, present);
        self.writes.key.push(Some(key));
        self.writes.source.push(self.source);
        self.writes.store.push(store);
        let cell = if present {
            let len = (self.writes.value.bytes.len() - start) as u32;
            Cell::Written(Span { start: start as u32, len })
        } else {
            Cell::Absent
        };
        let hash = hash(store, key);
        let slot = match self.find(hash, store, key) {
            Ok(slot) => slot,
            Err(_) => {
                let key = self.keep_key(key);
                self.insert(Slot { hash, key, store, cell: Cell::Unknown })
            }
        };
        let before = std::mem::replace(&mut self.slots[slot as usize].cell, cell);
        self.undo.push(Undo { slot, before });
        Ok(())
    }

    /// One page of a scan. What was written so far goes to the node first, so that the page has it.
    pub(crate) fn scan(
        &mut self,
        host: &mut dyn Host,
        store: u16,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
    ) -> Page {
        if self.writes.source.len() > self.handed.rows {
            self.hand_over(host);
        }
        host.scan(store, start, end, limit)
    }

    fn hand_over(&mut self, host: &mut dyn Host) {
        // Should this record fail later, its rows at the node must be answered with the values they
        // replaced. They are looked up while the node still has them.
        for index in 0..self.undo.len() {
            let Undo { slot, before } = self.undo[index];
            if before == Cell::Unknown {
                let Slot { store, key, .. } = self.slots[slot as usize];
                let value = host.get(store, key.of(&self.keys));
                self.undo[index].before = self.keep_value(value.as_deref());
            }
        }
        let Mark { rows, keys, values } = self.handed;
        host.put_many(&Writes {
            source: self.writes.source[rows..].to_vec(),
            store: self.writes.store[rows..].to_vec(),
            key: self.writes.key.after(keys),
            value: self.writes.value.after(values),
        });
        self.handed = self.mark();
    }

    /// Restores, at the node, the values that handed-over rows of a failed record replaced, so that
    /// later scans of this call do not see them. The node drops both with the record.
    fn compensate(&mut self, host: &mut dyn Host) {
        let mut writes = no_writes();
        for Undo { slot, before } in self.undo.iter().rev() {
            let Slot { store, key, .. } = self.slots[*slot as usize];
            let value = match before {
                // Written after the last hand-over, so the node never had it.
                Cell::Unknown | Cell::Once => continue,
                Cell::Absent => None,
                Cell::Read(span) => Some(span.of(&self.read)),
                Cell::Written(span) => Some(span.of(&self.writes.value.bytes)),
            };
            writes.source.push(self.source);
            writes.store.push(store);
            writes.key.push(Some(key.of(&self.keys)));
            writes.value.push(value);
        }
        host.put_many(&writes);
    }

    #[cold]
    fn fetch(&mut self, host: &mut dyn Host, slot: Option<u32>, hash: u64, store: u16, key: &[u8]) -> Cell {
        let value = host.get(store, key);
        if self.read.len() + value.as_ref().map_or(0, Vec::len) > READ_BYTES_MAX {
            return value.map_or(Cell::Absent, |value| {
                self.once = value;
                Cell::Once
            });
        }
        let cell = self.keep_value(value.as_deref());
        match slot {
            Some(slot) => self.slots[slot as usize].cell = cell,
            None => {
                let key = self.keep_key(key);
                self.insert(Slot { hash, key, store, cell });
            }
        }
        cell
    }

    fn keep_key(&mut self, key: &[u8]) -> Span {
        let span = Span { start: self.keys.len() as u32, len: key.len() as u32 };
        self.keys.extend_from_slice(key);
        span
    }

    fn keep_value(&mut self, value: Option<&[u8]>) -> Cell {
        let Some(value) = value else { return Cell::Absent };
        let span = Span { start: self.read.len() as u32, len: value.len() as u32 };
        self.read.extend_from_slice(value);
        Cell::Read(span)
    }

    fn mark(&self) -> Mark {
        Mark {
            rows: self.writes.source.len(),
            keys: self.writes.key.mark(),
            values: self.writes.value.mark(),
        }
    }

    /// The slot of a key, or the place in `table` where it belongs.
    #[inline]
    fn find(&self, hash: u64, store: u16, key: &[u8]) -> Result<u32, usize> {
        let mask = self.table.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let index = self.table[at];
            if index == EMPTY {
                return Err(at);
            }
            let slot = &self.slots[index as usize];
            if slot.hash == hash && slot.store == store && slot.key.of(&self.keys) == key {
                return Ok(index);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a slot whose key is not there yet.
    fn insert(&mut self, slot: Slot) -> u32 {
        if (self.slots.len() + 1) * 2 > self.table.len() {
            let len = self.table.len() * 2;
            self.table.clear();
            self.table.resize(len, EMPTY);
            for index in 0..self.slots.len() {
                self.place(self.slots[index].hash, index as u32);
            }
        }
        let index = self.slots.len() as u32;
        self.place(slot.hash, index);
        self.slots.push(slot);
        index
    }

    fn place(&mut self, hash: u64, index: u32) {
        let mask = self.table.len() - 1;
        let mut at = hash as usize & mask;
        while self.table[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.table[at] = index;
    }
}

fn no_writes() -> Writes {
    Writes { source: Vec::new(), store: Vec::new(), key: Column::new(), value: Column::new() }
}

/// Eight bytes a step. A table holds the keys of one batch, so a flood of chosen collisions costs
/// the time of that batch and no more, and the node's time limit bounds that.
#[inline]
pub(crate) fn hash(store: u16, key: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |hash: u64, word: u64| (hash.rotate_left(23) ^ word).wrapping_mul(MULTIPLIER);
    let mut hash = step(u64::from(store), key.len() as u64);
    let (words, tail) = key.as_chunks::<8>();
    for word in words {
        hash = step(hash, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    hash = step(hash, u64::from_le_bytes(last));
    hash ^ (hash >> 32)
}
