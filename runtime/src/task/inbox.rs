//! Which records have had their effects already: ids, their rows, and when they are forgotten.
//!
//! An id is a row of the task's own, written with the effects of the record that ended `ok`, in the
//! same commit. Ages are measured in **stream time**: the horizon is the latest time of any record
//! that ended `ok`, and never goes back. An id is dated with the horizon at its record, and is
//! forgotten once the horizon is `ttl` beyond that.
//!
//! ```text
//!   record time    12:00   12:01   11:30   12:02      a late record does not move the horizon,
//!   horizon        12:00   12:01   12:01   12:02      and its id is kept as long as the others
//! ```
//!
//! A record's own time counts up to what the clock says, so that one wrong time stamp cannot empty the
//! inbox. While the process runs the clock counts as going on, and so does the horizon that it began with,
//! so that neither a clock that stands still nor one that was set back can freeze it.
//!
//! Because dates rise with the commits, the rows of the inbox's topic expire in their order. What has
//! expired by the last commit that is known is trimmed: `inbox_start` of the position record says up to
//! where, before anything is deleted.
//!
//! The last numbers of keys ([`super::sequence`]) are rows beside the ids: dated, forgotten and trimmed
//! in the same way. With them every record that is passed moves the horizon, repetitions of an id
//! excepted: a key whose records all fail is forgotten in its time, too.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::HashSet;
use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use sha2::{Digest, Sha256};

use super::TakenAt;
use super::sequence::Lines;
use crate::config::deployment::{Gaps, IdSource, InboxSpec, Place, join_id};
use crate::config::units::show_hex;
use crate::faults::{Bug, planted};
use crate::record::{Batch, Column, Offset, headers};
use crate::store::{Ages, Store};

/// Longest id, and longest key that has a sequence, in bytes.
pub const ID_BYTES_MAX: usize = 1024;
/// Clocks of producers may be ahead of this one by so much.
pub const CLOCK_SLACK_MS: i64 = 60_000;

/// The row of an id. On disk and in Kafka since 0.2: little endian, add at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The horizon when its record ended `ok`; ms since the epoch.
    pub horizon_ms: i64,
    /// Of that record: its input's number ([`super::numbers`]).
    pub input: u16,
    pub offset: u64,
    /// Of the deployment that handled it.
    pub revision: u64,
}

impl Seen {
    pub fn encode(self) -> [u8; 26] {
        let mut bytes = [0; 26];
        bytes[..8].copy_from_slice(&self.horizon_ms.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.input.to_le_bytes());
        bytes[10..18].copy_from_slice(&self.offset.to_le_bytes());
        bytes[18..].copy_from_slice(&self.revision.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Seen> {
        Some(Seen {
            horizon_ms: i64::from_le_bytes(bytes.get(..8)?.try_into().ok()?),
            input: u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?),
            offset: u64::from_le_bytes(bytes.get(10..18)?.try_into().ok()?),
            revision: u64::from_le_bytes(bytes.get(18..26)?.try_into().ok()?),
        })
    }
}

/// What a task knows of its inbox beside the rows.
#[derive(Debug)]
pub struct Inbox {
    spec: InboxSpec,
    /// A value of the overlay: dropped with it.
    horizon_ms: i64,
    /// Of the last commit that is known.
    committed_ms: i64,
    /// Below it the topic holds expired rows only, by the last commit that was known at the last seal.
    start: Offset,
    /// Of what has not expired by then.
    ages: Ages,
    /// The store does not have them as they are.
    ages_changed: bool,
    /// Up to where the topic has been, or is being, trimmed.
    trimmed: Offset,
    /// The first time that was seen, and the horizon then: from then on either at least keeps up with the
    /// monotonic clock.
    began: Option<(TakenAt, i64)>,
    /// Rows have been written since the last seal, or it may be that nothing says of those that there are whose they are.
    pub(super) has_news: bool,
    /// Of breaks of sequences.
    pub(super) lines: Lines,
    /// Of the planted bug: ids that were seen, whatever became of their commit.
    pub outside: HashSet<Vec<u8>>,
}

impl Inbox {
    pub fn new(spec: InboxSpec, store: Option<&Store>) -> Inbox {
        let position = store.and_then(Store::position);
        let horizon_ms = position.map_or(i64::MIN, |position| position.inbox_horizon_ms);
        let horizon_ms = if horizon_ms == 0 { i64::MIN } else { horizon_ms };
        // Of a life that begins with the ids of another it is where they begin: no position says so, and from the first
        // one on a restore takes it at its word.
        let begins = store.map_or(Offset(0), Store::inbox_begins);
        let start = position.map_or(begins, |position| Offset(position.inbox_start));
        let (next, ids) = store.map_or((Offset(0), 0), |store| {
            let progress = store.progress();
            (progress.inbox_next, progress.inbox_ids)
        });
        let mut ages = store.and_then(Store::ages).cloned().unwrap_or_default();
        // After a reset there is no position, but the ids are those of the life before.
        let horizon_ms = horizon_ms.max(ages.latest_ms().unwrap_or(i64::MIN));
        ages.note(next, ids, horizon_ms, millis(spec.ttl));
        if let Some(store) = store {
            store.begin_inbox(ages.swept);
        }
        Inbox {
            spec,
            horizon_ms,
            committed_ms: horizon_ms,
            start,
            ages,
            ages_changed: true,
            trimmed: start,
            began: None,
            has_news: false,
            lines: Lines::default(),
            outside: HashSet::new(),
        }
    }

    /// Says what tells the batch's records apart: ids and numbers; none = a record has none. `input` is the number of
    /// theirs ([`super::numbers`]).
    pub fn fill(&self, batch: &mut Batch, input: u16) {
        let (id, sequence) = (self.spec.id.as_deref(), self.spec.sequence.as_ref());
        let rows = batch.len();
        let mut ids = Column::with_capacity(id.map_or(0, |_| rows), id.map_or(0, |_| rows * 16));
        let mut numbers = Vec::with_capacity(sequence.map_or(0, |_| rows));
        let mut values = batch.values.iter();
        let (mut keys, mut all_headers) = (batch.keys.iter(), batch.headers.iter());
        for &offset in &batch.offsets {
            let (key, value) = (keys.next().flatten(), values.next().flatten());
            let own = all_headers.next().flatten();
            // At most once, whatever lies within it.
            let json = LazyCell::new(|| serde_json::from_slice::<serde_json::Value>(value?).ok());
            let within = |pointer: &str| json.as_ref().and_then(|json| member(json, pointer));
            let header = |name: &str| own.and_then(|own| headers::find(own, name).ok()?);
            let part = |source: &IdSource| -> Option<Cow<'_, [u8]>> {
                match source {
                    IdSource::Key => key.map(Cow::Borrowed),
                    IdSource::In(Place::Header(name)) => header(name).map(Cow::Borrowed),
                    IdSource::In(Place::Json(pointer)) => {
                        within(pointer).map(|text| Cow::Owned(text.into_bytes()))
                    }
                    IdSource::Hash => value.map(|value| Cow::Owned(digest(value))),
                    IdSource::Offset => {
                        Some(Cow::Owned([&input.to_be_bytes()[..], &offset.to_be_bytes()].concat()))
                    }
                }
            };
            let fits = |id: &Cow<'_, [u8]>| !id.is_empty() && id.len() <= ID_BYTES_MAX;
            match id {
                None => {}
                Some([source]) => ids.push(part(source).filter(fits).as_deref()),
                Some(sources) => {
                    let parts: Option<Vec<_>> =
                        sources.iter().map(|source| part(source).filter(fits)).collect();
                    let joined = parts.map(|parts| join_id(&parts));
                    ids.push(joined.as_deref().filter(|id| id.len() <= ID_BYTES_MAX));
                }
            }
            let Some(sequence) = sequence else { continue };
            let number = match &sequence.number {
                // A record without a key has no place in a sequence.
                _ if key.is_none_or(|key| key.len() > ID_BYTES_MAX) => None,
                Place::Header(name) => header(name).and_then(number),
                Place::Json(pointer) => within(pointer).and_then(|text| number(text.as_bytes())),
            };
            numbers.push(number);
        }
        (batch.ids, batch.numbers) = (ids, numbers);
    }

    /// Why this record of a batch fails: it has no id, or a key and no number.
    pub fn missing(&self, batch: &Batch, row: usize) -> Option<String> {
        if lacks_id(batch, row) {
            let sources: Vec<String> = self.spec.id.iter().flatten().map(ToString::to_string).collect();
            let sources = sources.join(" and ");
            return Some(format!(
                "the record has no id of 1 to {ID_BYTES_MAX} bytes at {sources} (inbox.id)"
            ));
        }
        let sequence = self.spec.sequence.as_ref().filter(|_| lacks_number(batch, row))?;
        let long = batch.keys.lengths().get(row).is_some_and(|&length| length > ID_BYTES_MAX as i32);
        Some(match long {
            true => {
                format!("the record's key is longer than the {ID_BYTES_MAX} bytes of one with a sequence")
            }
            false => format!(
                "the record has no whole number from 0 to {} at {} (inbox.sequence)",
                u64::MAX,
                sequence.number
            ),
        })
    }

    /// What a number says that is above the next one.
    pub fn gaps(&self) -> Gaps {
        self.spec.sequence.as_ref().map_or(Gaps::Ignore, |sequence| sequence.gaps)
    }

    /// Whether a record of this time repeats what was seen: judged by the horizon, or by its own time if
    /// that is later.
    pub fn is_remembered(&self, seen: Seen, timestamp_ms: i64, taken: TakenAt) -> bool {
        self.is_current(seen.horizon_ms, timestamp_ms, taken)
    }

    /// The same of any row with this date.
    pub fn is_current(&self, dated_ms: i64, timestamp_ms: i64, taken: TakenAt) -> bool {
        let now_ms = self.horizon_ms.max(self.time_ms(timestamp_ms, taken));
        dated_ms.saturating_add(self.ttl_ms()) > now_ms
    }

    /// A record of this time may repeat one that is forgotten.
    pub fn has_forgotten(&self, timestamp_ms: i64) -> bool {
        self.spec.id.is_some()
            && timestamp_ms >= 0
            && timestamp_ms.saturating_add(self.ttl_ms()) <= self.horizon_ms
    }

    pub fn expires_ms(&self, seen: Seen) -> i64 {
        seen.horizon_ms.saturating_add(self.ttl_ms())
    }

    /// A record of this time has ended `ok`, or has been passed and has a number: what its row is dated with.
    pub fn pass(&mut self, timestamp_ms: i64, taken: TakenAt) -> i64 {
        self.began.get_or_insert((taken, self.horizon_ms));
        self.horizon_ms = self.horizon_ms.max(self.time_ms(timestamp_ms, taken));
        self.horizon_ms
    }

    /// What a record's time counts for.
    pub fn time_ms(&self, timestamp_ms: i64, taken: TakenAt) -> i64 {
        let (began, horizon_ms) = self.began.unwrap_or((taken, self.horizon_ms));
        let ran_ms = millis(taken.monotonic.saturating_sub(began.monotonic));
        let now_ms = taken.wall_ms.max(began.wall_ms.saturating_add(ran_ms));
        // The horizon without the slack, or each start would move it by that much.
        let latest_ms = now_ms.saturating_add(CLOCK_SLACK_MS).max(horizon_ms.saturating_add(ran_ms));
        if timestamp_ms < 0 { now_ms } else { timestamp_ms.min(latest_ms) }
    }

    /// The date of what says which inputs are meant, if the commit that is being sealed needs it: some of its rows name
    /// inputs.
    pub fn named_ms(&mut self) -> Option<i64> {
        let has_news = std::mem::take(&mut self.has_news);
        (has_news && self.spec.names_inputs()).then_some(self.horizon_ms)
    }

    /// Horizon and start of the commit that is being sealed.
    pub fn seal(&mut self) -> (i64, Offset) {
        if let Some(expired) = self.ages.expire(self.committed_ms, self.ttl_ms()) {
            self.start = self.start.max(expired);
            self.ages_changed = true;
        }
        (self.horizon_ms, self.start)
    }

    /// What the store is to keep with the commit that is being sealed, if it is news: up to where it was
    /// swept, and how old the rest is.
    pub fn ages(&mut self, swept: u64) -> Option<Vec<u8>> {
        self.ages_changed |= self.ages.swept != swept;
        self.ages.swept = swept;
        std::mem::take(&mut self.ages_changed).then(|| self.ages.encode())
    }

    /// A commit with that horizon is known; `next` is where the topic stands at least, and `ids` have come in all.
    pub fn committed(&mut self, horizon_ms: i64, next: Offset, ids: u64) {
        self.committed_ms = horizon_ms;
        self.ages_changed |= self.ages.note(next, ids, horizon_ms, self.ttl_ms());
    }

    pub fn drop_uncommitted(&mut self) {
        // They may have been sealed into what is dropped.
        self.ages_changed = true;
        if !planted(Bug::HorizonKept) {
            self.horizon_ms = self.committed_ms;
        }
        // Nothing has a date as long as nothing is committed.
        self.has_news = self.horizon_ms > i64::MIN;
    }

    /// Ids dated before it are forgotten, by the last commit that is known; ms since the epoch.
    pub fn expired_before_ms(&self) -> i64 {
        self.committed_ms.saturating_sub(self.ttl_ms()).saturating_add(1)
    }

    /// So many of the ids that have come are known to be dated so.
    pub fn expired(&self) -> u64 {
        self.ages.expired
    }

    /// Up to where the topic may be trimmed now that a commit with this start is known; none when that
    /// is nothing new.
    pub fn trim(&mut self, start: Offset) -> Option<Offset> {
        (start > self.trimmed).then(|| {
            self.trimmed = start;
            start
        })
    }

    fn ttl_ms(&self) -> i64 {
        millis(self.spec.ttl)
    }
}

/// The ids that a stretch of a batch has met so far.
#[derive(Debug, Default)]
pub struct Met<'a> {
    ids: HashMap<&'a [u8], Known>,
}

/// What is known of an id.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// It is being looked up.
    Asked,
    /// The inbox may have a row.
    Row(Option<Seen>),
    /// A record of this stretch has it, and its outcome is not known.
    Taken,
}

impl<'a> Met<'a> {
    /// The ids from row `at` on that have to be looked up, and the row where that ends: before an id that
    /// comes twice among them, whose second record cannot be judged yet.
    pub fn ask(&mut self, ids: &[Option<&'a [u8]>], at: usize, end: usize) -> (Vec<&'a [u8]>, usize) {
        let mut asked = Vec::with_capacity(end - at);
        for (row, id) in ids.iter().enumerate().take(end).skip(at) {
            // A record without an id fails, alone; it is no repetition.
            let Some(id) = id else { continue };
            match self.ids.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert(Known::Asked);
                    asked.push(*id);
                }
                Entry::Occupied(entry) if matches!(entry.get(), Known::Asked) => return (asked, row),
                Entry::Occupied(_) => {}
            }
        }
        (asked, end)
    }

    /// The answer to what was asked.
    pub fn answer(&mut self, id: &'a [u8], row: Option<&[u8]>) {
        self.ids.insert(id, Known::Row(row.and_then(Seen::decode)));
    }

    /// Whether the next record, which has this id, repeats what was seen; one that does not is taken. None if
    /// that depends on records of this stretch whose outcome is not known: one of them has the id, or,
    /// should they end `ok`, the horizon will have passed the end of the id's time.
    pub fn repeats(
        &mut self,
        id: &'a [u8],
        is_remembered: impl Fn(Seen) -> bool,
        is_perhaps_forgotten: impl Fn(Seen) -> bool,
    ) -> Option<bool> {
        let known = self.ids.get_mut(id)?;
        match *known {
            Known::Taken => return None,
            Known::Row(Some(seen)) if is_remembered(seen) => {
                return (!is_perhaps_forgotten(seen)).then_some(true);
            }
            Known::Row(_) | Known::Asked => *known = Known::Taken,
        }
        Some(false)
    }
}

/// The inbox has ids, and this record has none.
pub fn lacks_id(batch: &Batch, row: usize) -> bool {
    batch.ids.lengths().get(row).is_some_and(|&length| length < 0)
}

/// The inbox has sequences, and this record has a key but no place in its sequence.
pub fn lacks_number(batch: &Batch, row: usize) -> bool {
    batch.numbers.get(row).is_some_and(Option::is_none)
        && batch.keys.lengths().get(row).is_some_and(|&length| length >= 0)
}

/// Decimal digits, at most as many as a `u64` has.
fn number(text: &[u8]) -> Option<u64> {
    let is_plain = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok()
}

/// SHA-256, in hexadecimal digits.
fn digest(value: &[u8]) -> Vec<u8> {
    show_hex(&Sha256::digest(value)).into_bytes()
}

/// A text, number or boolean within a JSON value.
fn member(value: &serde_json::Value, pointer: &str) -> Option<String> {
    match value.pointer(pointer)? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Null | serde_json::Value::Array(_) | serde_json::Value::Object(_) => None,
        serde_json::Value::Number(number) if !is_told_apart(number) => None,
        scalar => Some(scalar.to_string()),
    }
}

/// A whole number beyond 64 bits is read as a float, and so are those near it: two records would have one id.
fn is_told_apart(number: &serde_json::Number) -> bool {
    const WHOLE_MAX: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|value| value.abs() < WHOLE_MAX)
}

pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
