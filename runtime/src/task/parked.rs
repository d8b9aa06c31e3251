//! Which keys are parked, and whose turn is next: an index in memory of the parked rows that the
//! task's overlay and store hold.
//!
//! ```text
//!   key a:  [ 1.7 failed twice, due 12:00:03 ] <- [ 1.9 waits ] <- [ 1.12 waits ]
//!   key b:  [ 1.8 held for a person ]
//!   (no key) [ 1.10 failed once, due 12:00:01 ]     records without a key wait for nobody
//! ```
//!
//! The first row of a queue is its head: the only one that is ever tried. A record of an input that this version
//! does not have is held, until one has it again or somebody drops it; meanwhile it does not count against the bounds,
//! for it would stop inputs that can do nothing about it. Invariant: the index names
//! exactly the rows that overlay and store show; so it is made again, from the store, whenever the
//! overlay is dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message;

use super::ROW_NUMBER_MAX;
use crate::config::failures::{FailureKind, ParkOrder, ParkedLimits};
use crate::store::{ParkedRecord, StoreError, StoreReader, Table};

/// Rows read from a store at once.
const PAGE_ROWS: u32 = 1000;

/// Ranks of rows of one key. On disk since 0.2: add, never renumber. What comes back from the dead
/// letters goes ahead of what is parked: it is older.
const RANK_LETTER: u8 = 0;
const RANK_PARKED: u8 = 1;

/// Names a parked row; their order is the order in which rows of a key are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    rank: u8,
    /// In the order of parking; of a letter, its record's offset.
    number: u64,
    /// Number of its record's input ([`super::numbers`]).
    input: u16,
    /// Offset of the letter, so that two of one record are two rows; 0 of what was never one.
    letter: u64,
}

impl RowId {
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(19);
        bytes.push(self.rank);
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.input.to_be_bytes());
        if self.rank == RANK_LETTER {
            bytes.extend(self.letter.to_be_bytes());
        }
        bytes
    }

    /// Number of its record's input.
    pub fn input(self) -> u16 {
        self.input
    }

    fn decode(bytes: &[u8]) -> Option<RowId> {
        let (rank, rest) = bytes.split_first()?;
        let (number, rest) = rest.split_at_checked(8)?;
        let (input, letter) = rest.split_at_checked(2)?;
        let letter = match *rank {
            RANK_LETTER => u64::from_be_bytes(letter.try_into().ok()?),
            _ => 0,
        };
        Some(RowId {
            rank: *rank,
            number: u64::from_be_bytes(number.try_into().ok()?),
            input: u16::from_be_bytes(input.try_into().ok()?),
            letter,
        })
    }
}

/// What a queue is named by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Key(Box<[u8]>),
    /// A record that waits for nobody and that nobody waits for.
    Alone(RowId),
}

#[derive(Debug, Clone, Copy)]
struct Row {
    bytes: u64,
    /// When it may be tried, once it is the head; `i64::MAX` = held for a person.
    due_ms: i64,
    /// Of the record.
    offset: u64,
    /// Of its last failure; none = it has not been tried.
    kind: Option<FailureKind>,
}

impl Row {
    fn of(record: &ParkedRecord, due_ms: i64) -> Row {
        Row { bytes: size(record), due_ms, offset: record.offset, kind: FailureKind::parse(&record.kind) }
    }
}

type Queue = BTreeMap<RowId, Row>;

/// One queue, for whoever chooses among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// None for a record that waits for nobody, with or without a key.
    pub key: Option<Box<[u8]>>,
    /// Of the first record.
    pub kind: Option<FailureKind>,
    pub held: bool,
    pub offset: u64,
    /// Its rows in their order, each with whether its time has not come yet.
    pub rows: Vec<(RowId, bool)>,
}

/// How much is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub records: u64,
    pub bytes: u64,
}

/// The head of a queue, when its time has come.
#[derive(Debug, Clone)]
pub struct Due {
    pub id: RowId,
    name: Name,
}

#[derive(Debug, Default)]
pub struct Parked {
    order: ParkOrder,
    limits: ParkedLimits,
    /// The one that runs.
    revision: u64,
    /// Numbers of the inputs that it has.
    inputs: Vec<u16>,
    keys: HashMap<Box<[u8]>, Queue>,
    alone: BTreeMap<RowId, Row>,
    /// Heads that are not held, the most urgent first.
    heads: BTreeSet<(i64, RowId, Name)>,
    /// Of the inputs that it has: what the bounds are about.
    bound: Load,
    /// Of those that it does not have.
    unbound: Load,
    next_number: u64,
}

impl Parked {
    /// What the store holds. `revision` is the one that runs: it tries again what an earlier one gave up. `inputs` are
    /// the numbers of those that it has.
    pub fn load(
        reader: Option<&StoreReader>,
        order: ParkOrder,
        limits: ParkedLimits,
        revision: u64,
        inputs: &[u16],
    ) -> Result<Parked, StoreError> {
        let mut parked = Parked { order, limits, revision, inputs: inputs.to_vec(), ..Parked::default() };
        let Some(reader) = reader else { return Ok(parked) };
        let mut start = Vec::new();
        loop {
            let page = reader.rows(Table::Parked, &start, PAGE_ROWS)?;
            for (key, value) in page.keys.iter().zip(page.values.iter()) {
                let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
                let (id, record) = decode(key, value)?;
                let row = Row::of(&record, parked.due_ms(&record));
                parked.insert(id, record.key.as_deref(), row);
                start = [key, b"\0"].concat();
            }
            if !page.more {
                return Ok(parked);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.all() == Load::default()
    }

    pub fn all(&self) -> Load {
        let Parked { bound, unbound, .. } = self;
        Load { records: bound.records + unbound.records, bytes: bound.bytes + unbound.bytes }
    }

    /// Of inputs that this revision has.
    pub fn bound(&self) -> Load {
        self.bound
    }

    /// Of inputs that it does not have.
    pub fn unbound(&self) -> Load {
        self.unbound
    }

    /// When a record may be tried by this revision: never, if this is the one that holds it for a person, or does
    /// not have its input. What another one gave up is tried again.
    pub fn due_ms(&self, record: &ParkedRecord) -> i64 {
        let is_held = record.held && record.revision == self.revision;
        let has_input = self.inputs.iter().any(|&input| u32::from(input) == record.input);
        if is_held || !has_input { i64::MAX } else { record.next_attempt_ms }
    }

    /// This revision has the input of the row's record.
    pub fn has_input(&self, id: RowId) -> bool {
        self.inputs.contains(&id.input)
    }

    /// A record of this key must wait.
    pub fn holds(&self, key: Option<&[u8]>) -> bool {
        !self.keys.is_empty() && key.is_some_and(|key| self.keys.contains_key(key))
    }

    /// A record of this offset is parked, of the input of that number.
    pub fn has(&self, input: u16, offset: u64) -> bool {
        let mut rows = self.keys.values().flatten().chain(&self.alone);
        rows.any(|(id, row)| (id.input, row.offset) == (input, offset))
    }

    /// That many more would be within the bounds. One record always fits an empty park.
    pub fn has_room(&self, records: u64, bytes: u64) -> bool {
        let Load { records: parked, bytes: used } = self.bound;
        let fits = parked + records <= self.limits.records && used + bytes <= self.limits.bytes;
        fits || (parked == 0 && records <= 1)
    }

    /// A tenth of the bounds is free again: less would pause and resume with every record.
    pub fn has_ample_room(&self) -> bool {
        let ample = |used: u64, most: u64| used <= most - most.div_ceil(10);
        ample(self.bound.records, self.limits.records) && ample(self.bound.bytes, self.limits.bytes)
    }

    /// More letters may come back: half of the bounds is left to records of the inputs that fail.
    pub fn has_room_for_letters(&self) -> bool {
        let Load { records, bytes } = self.bound;
        records == 0 || (records < self.limits.records / 2 && bytes < self.limits.bytes / 2)
    }

    /// Takes a record in, behind those of its key. The caller writes the row of the name it gets.
    pub fn push(&mut self, record: &ParkedRecord) -> RowId {
        let input = u16::try_from(record.input).unwrap_or(u16::MAX);
        self.push_as(RowId { rank: RANK_PARKED, number: self.next_number, input, letter: 0 }, record)
    }

    /// Takes in a record that comes back as this letter: behind those of its key that came back before it
    /// and are older, ahead of all that is parked.
    pub fn push_letter(&mut self, record: &ParkedRecord, letter: u64) -> RowId {
        let input = u16::try_from(record.input).unwrap_or(u16::MAX);
        self.push_as(RowId { rank: RANK_LETTER, number: record.offset, input, letter }, record)
    }

    fn push_as(&mut self, id: RowId, record: &ParkedRecord) -> RowId {
        let row = Row::of(record, self.due_ms(record));
        self.insert(id, record.key.as_deref(), row);
        id
    }

    fn insert(&mut self, id: RowId, key: Option<&[u8]>, row: Row) {
        if id.rank == RANK_PARKED {
            self.next_number = self.next_number.max(id.number + 1);
        }
        let load = self.load_mut(id);
        load.records += 1;
        load.bytes += row.bytes;
        let Some(key) = key.filter(|_| self.order == ParkOrder::ParkKey) else {
            self.alone.insert(id, row);
            self.heads.extend(head(id, row.due_ms, Name::Alone(id)));
            return;
        };
        let queue = self.keys.entry(key.into()).or_default();
        let before = queue.first_key_value().map(|(&id, row)| (id, row.due_ms));
        queue.insert(id, row);
        if before.is_none_or(|(first, _)| id < first) {
            if let Some((first, due_ms)) = before {
                self.heads.remove(&(due_ms, first, Name::Key(key.into())));
            }
            self.heads.extend(head(id, row.due_ms, Name::Key(key.into())));
        }
    }

    /// The head to be tried now. A time so far ahead that no back-off explains it comes from a clock
    /// that has been set back since, and counts as come.
    pub fn due(&self, now_ms: i64, ahead_ms_max: i64) -> Option<Due> {
        let of = |(_, id, name): &(i64, RowId, Name)| Due { id: *id, name: name.clone() };
        if let Some(first) = self.heads.first().filter(|(due_ms, ..)| *due_ms <= now_ms) {
            return Some(of(first));
        }
        self.heads.last().filter(|(due_ms, ..)| *due_ms > now_ms.saturating_add(ahead_ms_max)).map(of)
    }

    /// The head has failed again: it is due at that time, or held.
    pub fn postpone(&mut self, due: &Due, record: &ParkedRecord) {
        let now = Row::of(record, self.due_ms(record));
        let Some(row) = self.row_mut(due) else { return };
        let before = std::mem::replace(row, now);
        self.heads.remove(&(before.due_ms, due.id, due.name.clone()));
        let load = self.load_mut(due.id);
        load.bytes = load.bytes - before.bytes + now.bytes;
        self.heads.extend(head(due.id, now.due_ms, due.name.clone()));
    }

    /// A row, the head of its queue or not, may be tried from another time on; `i64::MAX` = not at all.
    pub fn set_due(&mut self, id: RowId, key: Option<&[u8]>, due_ms: i64) {
        let at = Due { id, name: self.name(id, key) };
        let Some(row) = self.row_mut(&at) else { return };
        let before_ms = std::mem::replace(&mut row.due_ms, due_ms);
        let is_head = match &at.name {
            Name::Alone(_) => true,
            Name::Key(key) => {
                self.keys.get(key).and_then(BTreeMap::first_key_value).is_some_and(|(&first, _)| first == id)
            }
        };
        if is_head {
            self.heads.remove(&(before_ms, id, at.name.clone()));
            self.heads.extend(head(id, due_ms, at.name));
        }
    }

    /// A row, the head of its queue or not, is done with.
    pub fn remove(&mut self, id: RowId, key: Option<&[u8]>) {
        self.release(&Due { id, name: self.name(id, key) });
    }

    fn name(&self, id: RowId, key: Option<&[u8]>) -> Name {
        match key.filter(|_| self.order == ParkOrder::ParkKey) {
            Some(key) => Name::Key(key.into()),
            None => Name::Alone(id),
        }
    }

    /// Where a row counts.
    fn load_mut(&mut self, id: RowId) -> &mut Load {
        if self.has_input(id) { &mut self.bound } else { &mut self.unbound }
    }

    fn row_mut(&mut self, at: &Due) -> Option<&mut Row> {
        match &at.name {
            Name::Alone(id) => self.alone.get_mut(id),
            Name::Key(key) => self.keys.get_mut(key).and_then(|queue| queue.get_mut(&at.id)),
        }
    }

    /// The queues of the keys that are wanted and of every record that waits for nobody, the oldest first.
    pub fn queues(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<Queued> {
        let of = |key: Option<&[u8]>, rows: &mut dyn Iterator<Item = (&RowId, &Row)>| {
            let mut rows = rows.peekable();
            let &(_, first) = rows.peek()?;
            let (kind, held, offset) = (first.kind, first.due_ms == i64::MAX, first.offset);
            let rows = rows.map(|(&id, row)| (id, row.due_ms != 0)).collect();
            Some(Queued { key: key.map(Into::into), kind, held, offset, rows })
        };
        let keys = self.keys.iter().filter(|(key, _)| wanted(key));
        let keyed = keys.filter_map(|(key, queue)| of(Some(key), &mut queue.iter()));
        let alone = self.alone.iter().filter_map(|row| of(None, &mut std::iter::once(row)));
        let mut queues: Vec<Queued> = keyed.chain(alone).collect();
        queues.sort_unstable_by_key(|queue| queue.rows.first().map(|(id, _)| *id));
        queues
    }

    /// The head is done with: the next of its key has its turn.
    pub fn release(&mut self, due: &Due) {
        let row = match &due.name {
            Name::Alone(id) => self.alone.remove(id),
            Name::Key(key) => self.keys.get_mut(key).and_then(|queue| queue.remove(&due.id)),
        };
        let Some(row) = row else { return };
        self.heads.remove(&(row.due_ms, due.id, due.name.clone()));
        let load = self.load_mut(due.id);
        load.records -= 1;
        load.bytes -= row.bytes;
        if let Name::Key(key) = &due.name {
            match self.keys.get(key).and_then(BTreeMap::first_key_value) {
                Some((&id, next)) => self.heads.extend(head(id, next.due_ms, due.name.clone())),
                None => drop(self.keys.remove(key)),
            }
        }
    }
}

fn head(id: RowId, due_ms: i64, name: Name) -> Option<(i64, RowId, Name)> {
    (due_ms != i64::MAX).then_some((due_ms, id, name))
}

/// What a record counts for against the bound: what was kept of it, and some for the index.
pub fn size(record: &ParkedRecord) -> u64 {
    const INDEX_BYTES: usize = 128;
    let bytes = [&record.key, &record.value, &record.headers];
    let kept: usize = bytes.into_iter().map(|bytes| bytes.as_ref().map_or(0, Vec::len)).sum();
    (kept + record.reason.len() + INDEX_BYTES) as u64
}

fn decode(key: &[u8], value: &[u8]) -> Result<(RowId, ParkedRecord), StoreError> {
    let corrupt = |what: String| StoreError::Corrupt(format!("parked record: {what}"));
    let id = RowId::decode(key).ok_or_else(|| corrupt(format!("a key of {} bytes", key.len())))?;
    if id.number > ROW_NUMBER_MAX {
        return Err(corrupt(format!("no task gives one the number {}", id.number)));
    }
    let record = ParkedRecord::decode(value).map_err(|error| corrupt(error.to_string()))?;
    Ok((id, record))
}
