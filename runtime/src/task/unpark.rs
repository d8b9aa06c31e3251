//! An operator's hand in parked records: released, they are tried now; dropped, they are given up.
//!
//! ```text
//!   released:  [ head, held ] <- [ waits ] <- [ waits ]     the head is due, its attempts count anew
//!   dropped:   [ head ] --> dead letter, or gone            the next of its key has its turn
//! ```
//!
//! Neither touches the order of a key: a release changes when its first record is tried and nothing else, and
//! a drop takes records out. Both are part of the next commit, like every write, and fenced by its offsets.
//!
//! What is to be dropped is chosen in one moment and withheld until it is, so that a record which has its turn
//! meanwhile is not given up in the place of the one that was meant.

use std::collections::VecDeque;

use prost::Message;
use tidemill_proto::v1::ParkedFilter;

use super::event::Verdict;
use super::parked::RowId;
use super::redrive::Ended;
use super::{Failure, FailureKind, TakenAt, Task, TaskError};
use crate::record::Offset;
use crate::store::{ParkedRecord, StoreError, Table};

/// Rows looked at in one go, so that input is not kept waiting.
const ROWS_AT_ONCE: usize = 200;

/// What is to become of the records that are meant.
#[derive(Debug, Clone, PartialEq)]
pub enum Unpark {
    Release {
        filter: ParkedFilter,
    },
    Drop {
        filter: ParkedFilter,
        /// Also what waits behind them.
        waiting: bool,
        /// Without a dead letter.
        discard: bool,
    },
}

/// An [`Unpark`] on its way: the rows that it is about, as they were when it began.
#[derive(Debug)]
pub struct Unparking {
    what: Unpark,
    rows: VecDeque<Chosen>,
    /// Why the first record of the key in hand has failed: those behind it are given up for the same.
    failed: Option<(FailureKind, String)>,
    /// Why the first record of the key in hand stays: those behind it stay as well.
    stays: Option<String>,
    pub done: Unparked,
}

#[derive(Debug, Clone, Copy)]
struct Chosen {
    id: RowId,
    /// Of its key, or it has none.
    is_first: bool,
}

/// What has become of them so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unparked {
    /// Keys, and records without one.
    pub keys: u64,
    pub records: u64,
    /// Records that stay parked, because there can be no dead letter of them, and why.
    pub left: u64,
    pub reason: String,
}

/// The first record of a queue, as a filter sees it.
#[derive(Debug, Clone, Copy)]
pub struct First<'a> {
    pub key: Option<&'a [u8]>,
    pub topic: &'a str,
    pub offset: u64,
    /// Empty = it has not been tried.
    pub kind: &'a str,
    pub held: bool,
}

/// Whether a filter means the queue that begins with this record.
pub fn accepts(filter: &ParkedFilter, first: &First<'_>) -> bool {
    accepts_key(filter, first.key)
        && (filter.topics.is_empty() || filter.topics.iter().any(|wanted| wanted == first.topic))
        && (filter.kinds.is_empty() || filter.kinds.iter().any(|wanted| wanted == first.kind))
        && (!filter.held || first.held)
        && filter.offset.is_none_or(|wanted| wanted == first.offset)
}

fn accepts_key(filter: &ParkedFilter, key: Option<&[u8]>) -> bool {
    filter.keys.is_empty() || key.is_some_and(|key| filter.keys.iter().any(|wanted| wanted == key))
}

impl Task {
    /// Chooses the rows; none if that cannot be now, and why.
    pub fn begin_unpark(&mut self, what: Unpark) -> Result<Result<Unparking, &'static str>, TaskError> {
        if self.is_careful() {
            return Ok(Err("the task looks for a record that the broker refused"));
        }
        if self.is_adopting() {
            return Ok(Err("a new version begins, or the task has just been started"));
        }
        let filter = match &what {
            Unpark::Release { filter } | Unpark::Drop { filter, .. } => filter,
        };
        let mut unparking = Unparking {
            what: what.clone(),
            rows: VecDeque::new(),
            failed: None,
            stays: None,
            done: Unparked::default(),
        };
        for queue in self.parked.queues(|key| accepts_key(filter, Some(key))) {
            let Some(&(head, _)) = queue.rows.first() else { continue };
            // The index does not know the key of a record that waits for nobody.
            let key = match (queue.key, filter.keys.is_empty()) {
                (None, false) => self.parked_record(head)?.and_then(|record| record.key).map(Into::into),
                (key, _) => key,
            };
            let first = First {
                key: key.as_deref(),
                topic: self.numbers.topic(head.input().into()).0,
                offset: queue.offset,
                kind: queue.kind.map_or("", FailureKind::as_str),
                held: queue.held,
            };
            if !accepts(filter, &first) {
                continue;
            }
            let has_input = self.parked.has_input(head);
            match what {
                // It waits for a version that has its input, whoever wants it tried.
                Unpark::Release { .. } if !has_input => {}
                Unpark::Release { .. } => {
                    unparking.done.keys += 1;
                    unparking.done.records += queue.rows.len() as u64;
                    let later = queue.rows.iter().filter(|(_, later)| *later);
                    unparking.rows.extend(later.map(|&(id, _)| Chosen { id, is_first: id == head }));
                }
                // One that has not been tried is no failure that anybody has seen, unless it cannot be.
                Unpark::Drop { .. } if queue.kind.is_none() && has_input => {}
                Unpark::Drop { waiting, .. } => {
                    let rows = match waiting {
                        true => queue.rows.len(),
                        // What is of no input never has its turn: all of it that comes before what has one.
                        false => {
                            let unbound = queue.rows.iter().take_while(|(id, _)| !self.parked.has_input(*id));
                            unbound.count().max(1)
                        }
                    };
                    for &(id, _) in &queue.rows[..rows] {
                        self.parked.set_due(id, key.as_deref(), i64::MAX);
                        unparking.rows.push_back(Chosen { id, is_first: id == head });
                    }
                }
            }
        }
        Ok(Ok(unparking))
    }

    /// Goes on with some of the rows, as far as the overlay has room. True once that is all of them: they are
    /// part of the next commit then.
    pub fn unpark(&mut self, unparking: &mut Unparking, taken: TakenAt) -> Result<bool, TaskError> {
        for _ in 0..ROWS_AT_ONCE {
            if self.is_full() {
                break;
            }
            let Some(chosen) = unparking.rows.pop_front() else { break };
            let Some(record) = self.parked_record(chosen.id)? else { continue };
            match unparking.what {
                Unpark::Release { .. } => self.release_parked(chosen.id, record),
                Unpark::Drop { .. } => self.drop_parked(chosen, &record, taken, unparking)?,
            }
        }
        self.note_parked();
        Ok(unparking.rows.is_empty())
    }

    fn release_parked(&mut self, id: RowId, mut record: ParkedRecord) {
        (record.attempts, record.next_attempt_ms, record.held) = (0, 0, false);
        record.releases = record.releases.saturating_add(1);
        self.view.set_row(Table::Parked, &id.encode(), Some(&record.encode_to_vec()));
        let due_ms = self.parked.due_ms(&record);
        self.parked.set_due(id, record.key.as_deref(), due_ms);
        self.edits += 1;
    }

    fn drop_parked(
        &mut self,
        chosen: Chosen,
        record: &ParkedRecord,
        taken: TakenAt,
        unparking: &mut Unparking,
    ) -> Result<(), TaskError> {
        let (id, key) = (chosen.id, record.key.as_deref());
        let discard = matches!(unparking.what, Unpark::Drop { discard: true, .. });
        if chosen.is_first {
            (unparking.failed, unparking.stays) = (None, None);
        }
        let failure = self.given_up(record, &mut unparking.failed);
        let given_up = match unparking.stays.take() {
            None => self.give_up(record, &failure, discard, taken),
            Some(reason) => Err(reason),
        };
        if let Err(reason) = given_up {
            unparking.done.left += 1;
            unparking.done.reason.clone_from(&reason);
            unparking.stays = Some(reason);
            let due_ms = self.parked.due_ms(record);
            self.parked.set_due(id, key, due_ms);
            return Ok(());
        }
        unparking.done.keys += u64::from(chosen.is_first);
        unparking.done.records += 1;
        self.view.set_row(Table::Parked, &id.encode(), None);
        self.parked.remove(id, key);
        self.edits += 1;
        self.ended(record, if discard { Ended::Dropped } else { Ended::Again })
    }

    /// The failure that a dropped record is said to have: its own, or that of the record it waited behind.
    fn given_up(&self, record: &ParkedRecord, failed: &mut Option<(FailureKind, String)>) -> Failure {
        let kind = FailureKind::parse(&record.kind);
        let reason = match (kind, &failed) {
            (Some(_), _) => format!("dropped by hand: {}", record.reason),
            (None, Some((_, reason))) => format!("dropped by hand behind a record that failed: {reason}"),
            (None, None) => "dropped by hand".to_owned(),
        };
        if let Some(kind) = kind {
            *failed = Some((kind, record.reason.clone()));
        }
        let kind = failed.as_ref().map_or(FailureKind::Permanent, |(kind, _)| *kind);
        self.failure_of(record.input, record.offset, (kind, reason))
    }

    /// Writes the dead letter, or says in the log what is gone.
    fn give_up(
        &mut self,
        record: &ParkedRecord,
        failure: &Failure,
        discard: bool,
        taken: TakenAt,
    ) -> Result<(), String> {
        if !discard {
            self.dead_letter(record, failure, taken)?;
            self.tell(record, failure, Verdict::DeadLettered, taken);
            return Ok(());
        }
        self.tell(record, failure, Verdict::Discarded, taken);
        let Failure { topic, partition, offset: Offset(offset), reason, .. } = failure;
        tracing::warn!(
            deployment = self.config.deployment,
            topic,
            partition,
            offset,
            reason,
            "a parked record is discarded"
        );
        self.metrics.skipped.add(1);
        Ok(())
    }

    /// None = it is parked no more.
    pub(super) fn parked_record(&self, id: RowId) -> Result<Option<ParkedRecord>, TaskError> {
        let Some(bytes) = self.view.row(Table::Parked, &id.encode())? else { return Ok(None) };
        let record = ParkedRecord::decode(bytes.as_slice())
            .map_err(|error| StoreError::Corrupt(format!("parked record: {error}")))?;
        Ok(Some(record))
    }
}
