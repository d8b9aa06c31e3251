//! Which rows wait to be delivered, and whose turn is next: an index in memory of the outbox rows that
//! the task's overlay and store hold.
//!
//! ```text
//!   emitted --> Queued --commit known, first of its key--> ready --> InAir --+--> Done --commit known--> gone
//!                 ^                                                         |
//!                 +------------------- fails, due later --------------------+
//! ```
//!
//! Nothing is ready before the commit that holds it is known. Rows of a key go one after the other; rows
//! without a key wait for nobody. A row that is done with stays until the commit that deletes it is known:
//! if the overlay is dropped, the next one deletes it again, and it is not delivered again meanwhile.
//!
//! Invariant: `committed_next <= sealed_next <= next`; a row below `committed_next` is in the store.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::ROW_NUMBER_MAX;
use crate::config::failures::Backoff;
use crate::config::jitter::spread;
use crate::faults::{Bug, planted};
use crate::ports::{AFTER_MAX, Landed};
use crate::store::{OutboxRow, StoreError, StoreReader, Table};

/// Rows read from a store at once.
const PAGE_ROWS: u32 = 1000;
/// Bytes of one task that are under way to one destination, but for the last row.
const AIR_BYTES: u64 = 16 << 20;
/// What a row costs in memory beside its bytes, which are in the store.
const INDEX_BYTES: u64 = 256;
/// Longest reason that is kept, in bytes.
const REASON_BYTES_MAX: usize = 512;

/// What a task is told of an output whose records go through the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRule {
    /// Of the output.
    pub name: Arc<str>,
    /// At a bound the task's input pauses.
    pub rows: u64,
    pub bytes: u64,
    /// Deliveries under way at once.
    pub in_flight: usize,
    pub retry: Backoff,
    /// How often a row is tried again; none = until it is delivered.
    pub attempts: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stand {
    /// Its commit is not known, another of its key is before it, or it is not due.
    Queued,
    InAir,
    /// To be deleted, with a dead letter in its place or without.
    Done {
        letter: Option<Letter>,
        /// The deletion is in the commit that is out.
        sealed: bool,
    },
}

/// What is said in the dead letter of a row, beside what the row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub reason: String,
    pub attempts: u32,
    /// When it was given up; milliseconds since the epoch.
    pub wall_ms: i64,
}

#[derive(Debug)]
struct Row {
    destination: Arc<str>,
    key: Option<Box<[u8]>>,
    bytes: u64,
    created_ms: i64,
    attempts: u32,
    /// Of the last failure.
    reason: String,
    /// When it may be tried, once it is the first of its key; `Duration::MAX` = held for a person.
    due: Duration,
    stand: Stand,
}

/// The rows of one output.
#[derive(Debug, Default)]
struct Lane {
    /// None = the running revision has no such destination: its rows stay.
    rule: Option<Arc<OutboxRule>>,
    /// By key: rows that are not done with, in order.
    keys: HashMap<Box<[u8]>, VecDeque<u64>>,
    /// Rows whose turn it is, the oldest first.
    ready: BTreeSet<u64>,
    /// Rows that would be ready but have failed: when they are.
    later: BTreeSet<(Duration, u64)>,
    /// Every row that is not done with.
    waiting: BTreeSet<u64>,
    in_air: usize,
    /// Bytes of those.
    air_bytes: u64,
    rows: u64,
    bytes: u64,
}

/// How an output's rows are, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxStatus {
    pub destination: Arc<str>,
    pub rows: u64,
    pub bytes: u64,
    pub in_flight: u64,
    /// Of the oldest row that is not delivered; milliseconds since the epoch.
    pub oldest_ms: Option<i64>,
    pub full: bool,
}

/// What is known of a row beside what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowStatus {
    pub sequence: u64,
    pub attempts: u32,
    pub reason: String,
    /// On the clock of the worker; none while it is under way, or held.
    pub due: Option<Duration>,
    pub in_flight: bool,
    pub held: bool,
}

/// What a landing leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    /// Nobody waits for it: the row is gone, or was never sent.
    Ignored,
    /// Delivered: to be deleted.
    Delete,
    /// Given up: to be deleted, and to become a dead letter.
    Bury { destination: Arc<str>, reason: String, attempts: u32 },
    /// Tried again later.
    Again,
}

#[derive(Debug, Default)]
pub struct Outbox {
    lanes: BTreeMap<Arc<str>, Lane>,
    rows: BTreeMap<u64, Row>,
    /// Sequence number of the next row.
    next: u64,
    /// The same as of the seal that is out, and of the last commit that is known.
    sealed_next: u64,
    committed_next: u64,
    /// Rows that are done with and not deleted by a commit that is known.
    done: BTreeSet<u64>,
    /// Of those, the ones that no seal has taken.
    unsealed: u64,
}

impl Outbox {
    /// What the store holds. `next` is the position record's.
    pub fn load(
        reader: Option<&StoreReader>,
        rules: impl Iterator<Item = Arc<OutboxRule>>,
        next: u64,
    ) -> Result<Outbox, StoreError> {
        let next = checked(next.max(1))?;
        let mut outbox = Outbox { next, sealed_next: next, committed_next: next, ..Outbox::default() };
        outbox.bind(rules);
        let Some(reader) = reader else { return Ok(outbox) };
        let mut start = Vec::new();
        loop {
            let page = reader.rows(Table::Outbox, &start, PAGE_ROWS)?;
            for (key, value) in page.keys.iter().zip(page.values.iter()) {
                let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
                let (sequence, row) = decode(key, value)?;
                outbox.next = outbox.next.max(sequence + 1);
                (outbox.sealed_next, outbox.committed_next) = (outbox.next, outbox.next);
                outbox.insert(sequence, &row);
                start = [key, b"\0"].concat();
            }
            if !page.more {
                return Ok(outbox);
            }
        }
    }

    /// Another revision's destinations: their rows go on as they are.
    pub fn bind(&mut self, rules: impl Iterator<Item = Arc<OutboxRule>>) {
        self.lanes.values_mut().for_each(|lane| lane.rule = None);
        for rule in rules {
            let name = Arc::clone(&rule.name);
            self.lanes.entry(name).or_default().rule = Some(rule);
        }
        self.lanes.retain(|_, lane| lane.rule.is_some() || lane.rows > 0);
    }

    /// Of the next row.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes a row in. The caller writes it under the number that it gets.
    pub fn push(&mut self, row: &OutboxRow) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.insert(sequence, row);
        sequence
    }

    fn insert(&mut self, sequence: u64, row: &OutboxRow) {
        let bytes = size(row);
        let (destination, lane) = match self.lanes.get_key_value(row.output.as_str()) {
            Some((name, _)) => (Arc::clone(name), self.lanes.get_mut(row.output.as_str())),
            None => (Arc::from(row.output.as_str()), None),
        };
        let lane = match lane {
            Some(lane) => lane,
            None => self.lanes.entry(Arc::clone(&destination)).or_default(),
        };
        lane.rows += 1;
        lane.bytes += bytes;
        lane.waiting.insert(sequence);
        let key: Option<Box<[u8]>> = row.key.as_deref().map(Into::into);
        if let Some(key) = &key {
            lane.keys.entry(key.clone()).or_default().push_back(sequence);
        }
        let row = Row {
            destination,
            key,
            bytes,
            created_ms: row.created_ms,
            attempts: 0,
            reason: String::new(),
            due: Duration::ZERO,
            stand: Stand::Queued,
        };
        self.rows.insert(sequence, row);
        self.promote(sequence);
    }

    /// Makes a row ready if its turn has come.
    fn promote(&mut self, sequence: u64) {
        let Some(row) = self.rows.get(&sequence) else { return };
        let is_known = sequence < self.committed_next || planted(Bug::OutboxEarly);
        if row.stand != Stand::Queued || !is_known || row.due == Duration::MAX {
            return;
        }
        let Some(lane) = self.lanes.get_mut(&row.destination) else { return };
        let first = row.key.as_ref().and_then(|key| lane.keys.get(key)?.front());
        if first.is_none_or(|&first| first == sequence) {
            lane.later.insert((row.due, sequence));
        }
    }

    /// The oldest row that may be sent now, to a destination that takes any.
    pub fn due(&mut self, now: Duration, admits: impl Fn(&str) -> bool) -> Option<u64> {
        let mut oldest: Option<u64> = None;
        for (name, lane) in &mut self.lanes {
            lane.ripen(now);
            let Some(rule) = &lane.rule else { continue };
            let Some(&sequence) = lane.ready.first() else { continue };
            let has_room = lane.in_air < rule.in_flight && lane.air_bytes < AIR_BYTES;
            let takes = has_room && oldest.is_none_or(|oldest| sequence < oldest);
            if takes && admits(name) {
                oldest = Some(sequence);
            }
        }
        oldest
    }

    pub fn sent(&mut self, sequence: u64) {
        let Some(row) = self.rows.get_mut(&sequence) else { return };
        let Some(lane) = self.lanes.get_mut(&row.destination) else { return };
        lane.leave(row.due, sequence);
        if row.stand == Stand::Queued {
            row.stand = Stand::InAir;
            lane.in_air += 1;
            lane.air_bytes += row.bytes;
        }
    }

    /// It was not sent after all.
    pub fn unsent(&mut self, sequence: u64) {
        self.landed_row(sequence);
        self.promote(sequence);
    }

    /// Back from the air; false if it was not there.
    fn landed_row(&mut self, sequence: u64) -> bool {
        let Some(row) = self.rows.get_mut(&sequence) else { return false };
        if row.stand != Stand::InAir {
            return false;
        }
        row.stand = Stand::Queued;
        if let Some(lane) = self.lanes.get_mut(&row.destination) {
            lane.in_air -= 1;
            lane.air_bytes -= row.bytes;
        }
        true
    }

    /// A delivery has ended.
    pub fn landed(&mut self, sequence: u64, landed: &Landed, now: Duration) -> Reaction {
        if !self.landed_row(sequence) {
            return Reaction::Ignored;
        }
        let (reason, after) = match landed {
            Landed::Delivered => return Reaction::Delete,
            Landed::Permanent { reason } => (reason, None),
            Landed::Transient { reason, after } => (reason, Some(after.unwrap_or_default())),
        };
        let Some(row) = self.rows.get_mut(&sequence) else { return Reaction::Ignored };
        row.attempts += 1;
        row.reason = reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned();
        let rule = self.lanes.get(&row.destination).and_then(|lane| lane.rule.as_ref());
        let (attempts, reason) = (row.attempts, row.reason.clone());
        let given_up = rule.and_then(|rule| rule.attempts).is_some_and(|most| attempts > most);
        let Some(after) = after.filter(|_| !given_up) else {
            return Reaction::Bury { destination: Arc::clone(&row.destination), reason, attempts };
        };
        let pause = rule.map_or(Duration::from_secs(1), |rule| rule.retry.pause(attempts - 1));
        // Rows of other tasks have the same numbers, but have not landed at the same moment.
        let seed = sequence ^ u64::from(attempts).rotate_left(48) ^ now.as_nanos() as u64;
        row.due = now + spread(pause, seed).max(after.min(AFTER_MAX));
        self.promote(sequence);
        Reaction::Again
    }

    /// The row is deleted in the overlay; the next of its key has its turn.
    pub fn finish(&mut self, sequence: u64, letter: Option<Letter>) {
        let Some(row) = self.rows.get_mut(&sequence) else { return };
        row.stand = Stand::Done { letter, sealed: false };
        self.unsealed += u64::from(self.done.insert(sequence));
        let Some(lane) = self.lanes.get_mut(&row.destination) else { return };
        lane.leave(row.due, sequence);
        lane.waiting.remove(&sequence);
        let Some(key) = &row.key else { return };
        let next = lane.keys.get_mut(key).and_then(|queue| {
            queue.retain(|&other| other != sequence);
            queue.front().copied()
        });
        match next {
            Some(next) => self.promote(next),
            None => drop(lane.keys.remove(key)),
        }
    }

    /// The row can neither be delivered nor buried: a person must decide.
    pub fn hold(&mut self, sequence: u64, reason: String) {
        if let Some(row) = self.rows.get_mut(&sequence) {
            (row.due, row.reason) = (Duration::MAX, reason);
        }
    }

    /// Rows of a destination are tried now, however often they have failed. Answers how many there are.
    pub fn retry(&mut self, destination: Option<&str>, sequences: &[u64]) -> u64 {
        let chosen: Vec<u64> = self.chosen(destination, sequences).collect();
        for &sequence in &chosen {
            let Some(row) = self.rows.get_mut(&sequence) else { continue };
            if let Some(lane) = self.lanes.get_mut(&row.destination) {
                lane.leave(row.due, sequence);
            }
            (row.due, row.attempts) = (Duration::ZERO, 0);
            self.promote(sequence);
        }
        chosen.len() as u64
    }

    /// Rows that are not under way and not done with. One whose commit is not known is none of them: it goes with its
    /// overlay, and comes back under whatever number its record gives it then.
    pub fn chosen<'a>(
        &'a self,
        destination: Option<&'a str>,
        sequences: &'a [u64],
    ) -> impl Iterator<Item = u64> + 'a {
        self.rows
            .range(..self.committed_next)
            .filter(move |(sequence, row)| {
                row.stand == Stand::Queued
                    && destination.is_none_or(|name| *row.destination == *name)
                    && (sequences.is_empty() || sequences.contains(sequence))
            })
            .map(|(&sequence, _)| sequence)
    }

    /// Rows done with that no seal has taken.
    pub fn unsealed(&self) -> u64 {
        self.unsealed
    }

    pub fn seal(&mut self) {
        self.sealed_next = self.next;
        self.unsealed = 0;
        for sequence in &self.done {
            if let Some(Row { stand: Stand::Done { sealed, .. }, .. }) = self.rows.get_mut(sequence) {
                *sealed = true;
            }
        }
    }

    /// The seal that was out is committed.
    pub fn committed(&mut self) {
        let is_gone = |sequence: &u64| {
            matches!(self.rows.get(sequence).map(|row| &row.stand), Some(Stand::Done { sealed: true, .. }))
        };
        let gone: Vec<u64> = self.done.iter().copied().filter(is_gone).collect();
        for sequence in gone {
            self.done.remove(&sequence);
            self.forget(sequence);
        }
        let fresh = self.committed_next..self.sealed_next;
        self.committed_next = self.sealed_next;
        let fresh: Vec<u64> = self.rows.range(fresh).map(|(&sequence, _)| sequence).collect();
        fresh.into_iter().for_each(|sequence| self.promote(sequence));
    }

    /// Forgets rows that are not committed. Answers those that are to be deleted again, with their dead letters.
    pub fn drop_uncommitted(&mut self) -> Vec<(u64, Option<Letter>)> {
        let fresh: Vec<u64> = self.rows.range(self.committed_next..).map(|(&sequence, _)| sequence).collect();
        for sequence in fresh {
            self.done.remove(&sequence);
            self.forget(sequence);
        }
        (self.next, self.sealed_next) = (self.committed_next, self.committed_next);
        self.unsealed = self.done.len() as u64;
        let mut again = Vec::new();
        for &sequence in &self.done {
            if let Some(Row { stand: Stand::Done { sealed, letter }, .. }) = self.rows.get_mut(&sequence) {
                *sealed = false;
                again.push((sequence, letter.clone()));
            }
        }
        again
    }

    fn forget(&mut self, sequence: u64) {
        let Some(row) = self.rows.remove(&sequence) else { return };
        let Some(lane) = self.lanes.get_mut(&row.destination) else { return };
        lane.leave(row.due, sequence);
        lane.waiting.remove(&sequence);
        if row.stand == Stand::InAir {
            lane.in_air -= 1;
            lane.air_bytes -= row.bytes;
        }
        lane.rows -= 1;
        lane.bytes -= row.bytes;
        if let Some(key) = &row.key
            && let Some(queue) = lane.keys.get_mut(key)
        {
            queue.retain(|&other| other != sequence);
            if queue.is_empty() {
                lane.keys.remove(key);
            }
        }
    }

    /// A destination that holds what it may.
    pub fn full(&self) -> Option<&Arc<OutboxRule>> {
        let rules = self.lanes.values().filter(|lane| lane.is_full(0)).filter_map(|lane| lane.rule.as_ref());
        rules.min_by_key(|rule| &rule.name)
    }

    /// A tenth of every bound is free again: less would pause and resume with every record.
    pub fn has_ample_room(&self) -> bool {
        self.lanes.values().all(|lane| !lane.is_full(10))
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Deliveries under way.
    pub fn in_air(&self) -> usize {
        self.lanes.values().map(|lane| lane.in_air).sum()
    }

    /// What the destination of a row keeps, and of it for how many rows and bytes.
    pub fn load_of(&self, destination: &str) -> (u64, u64) {
        self.lanes.get(destination).map_or((0, 0), |lane| (lane.rows, lane.bytes))
    }

    pub fn status(&self) -> Vec<OutboxStatus> {
        let status = |(name, lane): (&Arc<str>, &Lane)| {
            let oldest = lane.waiting.first().and_then(|sequence| self.rows.get(sequence));
            OutboxStatus {
                destination: Arc::clone(name),
                rows: lane.rows,
                bytes: lane.bytes,
                in_flight: lane.in_air as u64,
                oldest_ms: oldest.map(|row| row.created_ms),
                full: lane.is_full(0),
            }
        };
        self.lanes.iter().map(status).collect()
    }

    /// Of rows that are not done with, beyond `after`.
    pub fn rows(&self, destination: Option<&str>, after: u64, limit: usize) -> Vec<RowStatus> {
        let waits = |row: &&Row| {
            let is_of = destination.is_none_or(|name| *row.destination == *name);
            is_of && !matches!(row.stand, Stand::Done { .. })
        };
        let rows = self.rows.range(after.saturating_add(1)..).filter(|(_, row)| waits(row));
        rows.take(limit)
            .map(|(&sequence, row)| RowStatus {
                sequence,
                attempts: row.attempts,
                reason: row.reason.clone(),
                due: (row.stand == Stand::Queued && row.due != Duration::MAX).then_some(row.due),
                in_flight: row.stand == Stand::InAir,
                held: row.due == Duration::MAX,
            })
            .collect()
    }
}

impl Lane {
    /// What was to be tried later and is due joins the others by its age, so that nothing starves.
    fn ripen(&mut self, now: Duration) {
        while let Some(&(due, sequence)) = self.later.first()
            && due <= now
        {
            self.later.pop_first();
            self.ready.insert(sequence);
        }
    }

    /// It is not its turn any more.
    fn leave(&mut self, due: Duration, sequence: u64) {
        if !self.ready.remove(&sequence) {
            self.later.remove(&(due, sequence));
        }
    }

    /// No more room than this percentage of a bound.
    fn is_full(&self, percent: u64) -> bool {
        let Some(rule) = &self.rule else { return false };
        let reaches = |used: u64, most: u64| used > most - (most * percent).div_ceil(100) || used >= most;
        reaches(self.rows, rule.rows) || reaches(self.bytes, rule.bytes)
    }
}

/// What a row counts for against the bound.
pub fn size(row: &OutboxRow) -> u64 {
    let own = [row.key.as_ref(), row.value.as_ref(), Some(&row.headers)];
    let own: usize = own.into_iter().flatten().map(Vec::len).sum();
    (own + row.key.as_ref().map_or(0, Vec::len)) as u64 + INDEX_BYTES
}

pub fn encode_key(sequence: u64) -> [u8; 8] {
    sequence.to_be_bytes()
}

fn decode(key: &[u8], value: &[u8]) -> Result<(u64, OutboxRow), StoreError> {
    let corrupt = |what: String| StoreError::Corrupt(format!("outbox row: {what}"));
    let sequence = key.try_into().map_err(|_| corrupt(format!("a key of {} bytes", key.len())))?;
    Ok((checked(u64::from_be_bytes(sequence))?, decode_row(value)?))
}

/// A number that a row has, or the next one is to have.
fn checked(sequence: u64) -> Result<u64, StoreError> {
    if sequence > ROW_NUMBER_MAX {
        return Err(StoreError::Corrupt(format!("outbox row: no task gives one the number {sequence}")));
    }
    Ok(sequence)
}

pub fn decode_row(value: &[u8]) -> Result<OutboxRow, StoreError> {
    OutboxRow::decode(value).map_err(|error| StoreError::Corrupt(format!("outbox row: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outbox of a task that has committed so many rows of this size.
    fn filled(rows: usize, bytes: usize) -> Outbox {
        let rule = OutboxRule {
            name: "hook".into(),
            rows: 100,
            bytes: 1 << 30,
            in_flight: 100,
            retry: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(1) },
            attempts: None,
        };
        let mut outbox = Outbox::load(None, [Arc::new(rule)].into_iter(), 1).expect("nothing is read");
        let row = OutboxRow { output: "hook".into(), value: Some(vec![0; bytes]), ..OutboxRow::default() };
        for _ in 0..rows {
            outbox.push(&row);
        }
        outbox.seal();
        outbox.committed();
        outbox
    }

    #[test]
    fn rows_of_several_tasks_that_fail_within_a_moment_are_not_tried_at_one() {
        let failed = Landed::Transient { reason: "503".into(), after: None };
        let began = Duration::from_secs(7);
        let pause = |moment: u64| {
            let (mut outbox, now) = (filled(1, 1), began + Duration::from_nanos(moment));
            outbox.sent(1);
            assert_eq!(outbox.landed(1, &failed, now), Reaction::Again);
            outbox.rows(None, 0, 1)[0].due.expect("it waits") - now
        };
        let pauses: BTreeSet<Duration> = (0..8).map(pause).collect();
        assert_eq!(pauses.len(), 8, "each another: {pauses:?}");
        let (half, all) = (Duration::from_millis(500), Duration::from_secs(1));
        assert!(pauses.iter().all(|pause| (half..=all).contains(pause)), "{pauses:?}");
        assert_eq!(pause(3), pause(3), "a simulated run repeats itself");
    }

    #[test]
    fn as_many_bytes_are_under_way_as_may_be_and_one_row() {
        let mut outbox = filled(6, 5 << 20);
        let send = |outbox: &mut Outbox| {
            let sequence = outbox.due(Duration::ZERO, |_| true)?;
            outbox.sent(sequence);
            Some(sequence)
        };
        let sent: Vec<u64> = std::iter::from_fn(|| send(&mut outbox)).collect();
        assert_eq!(sent, [1, 2, 3, 4], "three are less than 16 MiB, and the fourth is the last");
        outbox.landed(2, &Landed::Delivered, Duration::ZERO);
        assert_eq!((send(&mut outbox), send(&mut outbox)), (Some(5), None));
    }
}
