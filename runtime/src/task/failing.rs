//! The failure policy: what a failed record comes to, and the life of parked records.
//!
//! ```text
//!   run --ok--> passed
//!    |
//!    fails --+-- attempts left, or `then: park` --> parked --due--> run again --ok--> released
//!            |                                        ^                |
//!            |                                        +-- fails again -+
//!            +-- `then:` of its kind: halt | skip | dead_letter <------+ attempts used up
//! ```
//!
//! A parked record has been passed: the position is beyond it, and its row is what keeps it. Row,
//! position and effects change in one commit. While a key is parked its later records wait behind it
//! (`order: park_key`); no room for one more blocks the task exactly before that record.

use prost::Message;

use super::apply::{Failed, kind_of};
use super::event::Verdict;
use super::letter::{self, Sender, Written};
use super::numbers::identity;
use super::parked::{self, Due};
use super::redrive::Ended;
use super::relay::{Blocked, one};
use super::{Applied, Failure, FailureKind, TakenAt, Task, TaskError, TaskState};
use crate::config::failures::{LetterFormat, ParkOrder, Then};
use crate::config::jitter::{dice, seed_of, spread};
use crate::effects::{Emissions, Status};
use crate::record::{Batch, Column, InputPartition, Offset};
use crate::store::{ParkedRecord, StoreError, Table};

/// Parked records tried in one go, so that input is not kept waiting.
const RETRIES_MAX: usize = 100;
/// Longest reason that is kept, in bytes.
pub(super) const REASON_BYTES_MAX: usize = 1024;
/// What the envelope of a record in Kafka adds at most, as in the checks of effects.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 512;
/// What a letter adds to a record: its headers' names and values, the reason among them, and the envelope. A correlation
/// id that is no text takes three times its bytes.
const LETTER_BYTES_MAX: usize = REASON_BYTES_MAX + 5120 + RECORD_OVERHEAD_BYTES;
/// What a byte takes in a JSON text at most.
const ESCAPED_BYTES_MAX: usize = 6;
/// What is noted of a failure in a parked record, beside the reason.
const NOTE_BYTES_MAX: usize = 64;
/// Keeps the dice of samples apart from those of pauses.
const SAMPLE_SEED: u64 = 0x5A5A_5A5A_5A5A_5A5A;
/// A due time further ahead than any back-off comes from a clock that has been set back since.
const AHEAD_SLACK_MS: i64 = 1_000;

/// What one failure of a record leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    Halt,
    Skip,
    DeadLetter,
    /// Parked, and tried again at this time; ms since the epoch.
    Again {
        at_ms: i64,
    },
    /// Parked until another revision runs.
    Hold,
}

impl Task {
    /// The only place that decides what a failure leads to. `attempts` counts this failure.
    fn reaction(&self, kind: FailureKind, attempts: u32, record: &ParkedRecord, now_ms: i64) -> Reaction {
        let policy = self.config.failures.policy(kind);
        if attempts <= policy.attempts {
            // By the place, which says whose record it is: every deployment that reads one fails with it at once.
            let seed = seed_of(&self.place_of(record)) ^ u64::from(attempts).rotate_left(48);
            let pause = spread(policy.backoff.pause(attempts - 1), seed);
            return Reaction::Again { at_ms: now_ms.saturating_add(pause.as_millis() as i64) };
        }
        // Not the dice of a pause, and the same whenever the record comes here.
        match policy.end(dice(record.offset ^ SAMPLE_SEED ^ self.partition as u64)) {
            Then::Halt => Reaction::Halt,
            Then::Skip => Reaction::Skip,
            Then::DeadLetter => Reaction::DeadLetter,
            Then::Park => Reaction::Hold,
        }
    }

    /// A record of an input has failed for the first time.
    pub(super) fn fail(
        &mut self,
        batch: &Batch,
        row: usize,
        failed: Failed,
        taken: TakenAt,
        applied: &mut Applied,
    ) -> Result<(), TaskError> {
        let offset = batch.offsets[row] as u64;
        let failure = self.failure(batch.input, offset, failed);
        let mut record = self.kept(batch, row);
        note(&mut record, &failure, self.config.revision);
        let reaction = self.reaction(failure.kind, 1, &record, taken.wall_ms);
        let parks = matches!(reaction, Reaction::Again { .. } | Reaction::Hold);
        let bytes = parked::size(&record);
        if parks && self.fits_changelog(&record) && !self.parked.has_room(1, bytes) {
            return self.block(batch, row, bytes, taken);
        }
        applied.failed += 1;
        applied.failure.get_or_insert_with(|| failure.clone());
        self.count(&failure);
        let reason = match reaction {
            Reaction::Halt => Some(failure.reason.clone()),
            Reaction::Skip => {
                self.metrics.skipped.add(1);
                None
            }
            Reaction::DeadLetter => self.dead_letter(&record, &failure, taken).err(),
            Reaction::Again { .. } | Reaction::Hold if !self.fits_changelog(&record) => {
                Some(format!("{}; it is too large for the changelog, so it cannot be parked", failure.reason))
            }
            Reaction::Again { .. } | Reaction::Hold => {
                schedule(&mut record, reaction);
                self.park(&record);
                None
            }
        };
        self.tell_reaction(&record, &failure, (reaction, reason.as_deref()), taken);
        match reason {
            None => self.pass(batch, row + 1, taken)?,
            Some(reason) => {
                self.pass(batch, row, taken)?;
                // The record itself may lie beyond a gap.
                self.advance(batch.input, failure.offset);
                self.state = TaskState::Halted(Failure { reason, ..failure });
            }
        }
        Ok(())
    }

    /// A record whose key is parked, or was when its call began: it waits for its turn.
    pub(super) fn wait_behind(
        &mut self,
        batch: &Batch,
        row: usize,
        taken: TakenAt,
        applied: &mut Applied,
    ) -> Result<(), TaskError> {
        let mut record = self.kept(batch, row);
        record.revision = self.config.revision;
        if !self.fits_changelog(&record) {
            let reason =
                "its key is parked, and it is too large for the changelog to wait behind it".to_owned();
            let failure = self.failure(batch.input, record.offset, (FailureKind::Limit, reason));
            self.pass(batch, row, taken)?;
            self.advance(batch.input, failure.offset);
            self.tell(&record, &failure, Verdict::Halted, taken);
            self.state = TaskState::Halted(failure);
            return Ok(());
        }
        let bytes = parked::size(&record);
        if !self.parked.has_room(1, bytes) {
            return self.block(batch, row, bytes, taken);
        }
        self.park(&record);
        applied.waiting += 1;
        self.pass(batch, row + 1, taken)
    }

    /// The first of these rows that the task may not get past: it halts, or there may be no room for
    /// it. What is behind that row is not taken over before the policy has decided about it.
    pub(super) fn stop_row(&self, batch: &Batch, statuses: &[Status], rows: usize) -> Option<usize> {
        let (mut records, mut bytes) = (0, 0);
        let failed = statuses.iter().enumerate().take(rows).filter(|(_, status)| **status != Status::Ok);
        for (row, &status) in failed {
            let record = self.kept(batch, row);
            let stops = match kind_of(status).map(|kind| self.reaction(kind, 1, &record, 0)) {
                Some(Reaction::Halt) => true,
                Some(Reaction::Skip) => false,
                Some(Reaction::DeadLetter) => !self.may_send(&record),
                Some(Reaction::Again { .. } | Reaction::Hold) | None => {
                    records += 1;
                    bytes += parked::size(&record) + REASON_BYTES_MAX as u64;
                    !self.fits_changelog_with(&record, NOTE_BYTES_MAX)
                        || !self.parked.has_room(records, bytes)
                }
            };
            if stops {
                return Some(row);
            }
        }
        None
    }

    /// Tries parked records whose time has come, the most urgent first; to be asked of a careful task too. What it does is part of the
    /// next commit, like everything else, and the offsets that this commit sends fence it.
    pub fn retry(&mut self, taken: TakenAt) -> Result<Applied, TaskError> {
        let mut applied = Applied::default();
        let longest = FailureKind::ALL.map(|kind| self.config.failures.policy(kind).backoff.max);
        let longest_ms = longest.iter().max().map_or(0, |longest| longest.as_millis() as i64);
        self.turn.begin();
        for _ in 0..RETRIES_MAX {
            let is_free = !self.is_full() && self.outbox.full().is_none();
            let may_go_on = self.is_running() && !self.is_adopting() && !self.turn.is_over();
            if !may_go_on || self.allowance() == 0 || !is_free {
                break;
            }
            let Some(due) = self.parked.due(taken.wall_ms, longest_ms + AHEAD_SLACK_MS) else {
                self.end_search();
                break;
            };
            self.try_again(&due, taken, &mut applied)?;
        }
        self.note_parked();
        Ok(applied)
    }

    fn try_again(&mut self, due: &Due, taken: TakenAt, applied: &mut Applied) -> Result<(), TaskError> {
        let missing = || StoreError::Corrupt("a parked record is gone from the store".into());
        let mut record = self.parked_record(due.id)?.ok_or_else(missing)?;
        if record.revision != self.config.revision {
            // Another version begins anew.
            record.attempts = 0;
        }
        // What is of no input is never due.
        let input =
            self.numbers.input(record.input).ok_or(TaskError::Misuse("a parked record of no input"))?;
        let mut batch = batch_of(&record, input, self.partition);
        if let Some(inbox) = &self.inbox {
            inbox.fill(&mut batch, self.numbers.number(input));
        }
        self.metrics.retries.add(1);
        self.pending_records += 1;
        self.oldest.get_or_insert(taken.monotonic);
        self.first.get_or_insert((batch.input, record.offset as i64));
        let Err(failed) = self.attempt(&batch, taken)? else {
            applied.ok += 1;
            self.free(due);
            return self.ended(&record, Ended::Ok);
        };
        record.attempts = record.attempts.saturating_add(1);
        let failure = self.failure(batch.input, record.offset, failed);
        note(&mut record, &failure, self.config.revision);
        applied.failed += 1;
        applied.failure.get_or_insert_with(|| failure.clone());
        self.count(&failure);
        let reaction = self.reaction(failure.kind, record.attempts, &record, taken.wall_ms);
        let reason = match reaction {
            Reaction::Halt => Some(failure.reason.clone()),
            Reaction::Skip => {
                self.metrics.skipped.add(1);
                self.free(due);
                self.ended(&record, Ended::Dropped)?;
                None
            }
            Reaction::DeadLetter => {
                let sent = self.dead_letter(&record, &failure, taken);
                if sent.is_ok() {
                    self.free(due);
                    self.ended(&record, Ended::Again)?;
                }
                sent.err()
            }
            Reaction::Again { .. } | Reaction::Hold => {
                schedule(&mut record, reaction);
                self.view.set_row(Table::Parked, &due.id.encode(), Some(&record.encode_to_vec()));
                self.parked.postpone(due, &record);
                None
            }
        };
        self.tell_reaction(&record, &failure, (reaction, reason.as_deref()), taken);
        if let Some(reason) = reason {
            self.state = TaskState::Halted(Failure { reason, ..failure });
        }
        Ok(())
    }

    /// Tells what a failure has led to; with a reason to a halt, whatever the reaction was to be.
    fn tell_reaction(
        &mut self,
        record: &ParkedRecord,
        failure: &Failure,
        (reaction, halts): (Reaction, Option<&str>),
        taken: TakenAt,
    ) {
        if self.config.events.is_none() {
            return;
        }
        let verdict = match (halts, reaction) {
            (Some(reason), _) => {
                let failure = Failure { reason: reason.to_owned(), ..failure.clone() };
                return self.tell(record, &failure, Verdict::Halted, taken);
            }
            (None, Reaction::Halt) => Verdict::Halted,
            (None, Reaction::Skip) => Verdict::Skipped,
            (None, Reaction::DeadLetter) => Verdict::DeadLettered,
            (None, Reaction::Again { .. }) => Verdict::RetryScheduled,
            (None, Reaction::Hold) => Verdict::Parked,
        };
        self.tell(record, failure, verdict, taken);
    }

    /// The task stands before a record that it has no room to park, or whose effects its outbox has no room
    /// for. Its input is ignored meanwhile.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// To be asked now and then: where a task that was blocked continues, now that there is room.
    pub fn unblock(&mut self) -> Option<Vec<(InputPartition, Offset)>> {
        let has_room = match self.blocked.as_ref()? {
            // A large one may find none where a tenth is free, and would be read and fail again and again.
            Blocked::Park { bytes } => self.parked.has_ample_room() && self.parked.has_room(1, *bytes),
            Blocked::Outbox(_) => self.outbox.has_ample_room(),
        };
        if !has_room {
            return None;
        }
        self.blocked = None;
        self.note_parked();
        Some(self.positions().collect())
    }

    /// Records that are parked, and their bytes.
    pub fn parked(&self) -> (u64, u64) {
        let parked::Load { records, bytes } = self.parked.all();
        (records, bytes)
    }

    pub(super) fn takes_records(&self) -> bool {
        self.is_running() && self.blocked.is_none() && !self.is_adopting()
    }

    pub(super) fn note_parked(&self) {
        let (records, bytes) = self.parked();
        self.metrics.parked_records.set(records);
        self.metrics.parked_bytes.set(bytes);
        let is_full = matches!(self.blocked, Some(Blocked::Park { .. }));
        self.metrics.parked_full.set(u64::from(is_full));
    }

    /// Stops exactly before this record, which would take so many bytes of the park.
    fn block(&mut self, batch: &Batch, row: usize, bytes: u64, taken: TakenAt) -> Result<(), TaskError> {
        self.pass(batch, row, taken)?;
        self.blocked = Some(Blocked::Park { bytes });
        Ok(())
    }

    fn park(&mut self, record: &ParkedRecord) {
        let id = self.parked.push(record);
        self.view.set_row(Table::Parked, &id.encode(), Some(&record.encode_to_vec()));
    }

    fn free(&mut self, due: &Due) {
        self.view.set_row(Table::Parked, &due.id.encode(), None);
        self.parked.release(due);
    }

    /// Also once it carries a reason.
    pub(super) fn fits_changelog(&self, record: &ParkedRecord) -> bool {
        self.fits_changelog_with(record, 0)
    }

    /// The same with so many bytes more.
    fn fits_changelog_with(&self, record: &ParkedRecord, more: usize) -> bool {
        let bytes = record.encoded_len() - record.reason.len() + REASON_BYTES_MAX + more;
        bytes + RECORD_OVERHEAD_BYTES <= self.config.changelog.record_bytes_max
    }

    /// A letter of this record surely fits its topic.
    fn may_send(&self, record: &ParkedRecord) -> bool {
        let rule = self.config.dead_letters.and_then(|output| self.config.outputs.get(usize::from(output)));
        let factor = match self.config.failures.letter_format {
            LetterFormat::Raw => 1,
            // The key is there as it is, too.
            LetterFormat::Envelope => ESCAPED_BYTES_MAX + 1,
        };
        let bytes = factor * (parked::size(record) as usize + LETTER_BYTES_MAX);
        rule.is_some_and(|rule| bytes <= rule.record_bytes_max)
    }

    /// Adds the letter to what the next commit emits, or says why there can be none. The one place where
    /// letters are written.
    pub(super) fn dead_letter(
        &mut self,
        record: &ParkedRecord,
        failure: &Failure,
        taken: TakenAt,
    ) -> Result<(), String> {
        let Some(output) = self.config.dead_letters else {
            return Err(format!("{}; and the deployment has no dead-letter topic", failure.reason));
        };
        let place = self.place_of(record);
        let sender = self.config.sender(&place, taken.wall_ms);
        let Written { value, headers } = letter::write(record, failure, &sender);
        let parts = (record.key.as_deref(), value.as_deref(), &headers[..]);
        self.send_letter(output, parts, taken).map_err(|why| format!("{}; {why}", failure.reason))
    }

    /// Adds a letter of this key, value and headers to what the next commit emits.
    pub(super) fn send_letter(
        &mut self,
        output: u16,
        (key, value, headers): (Option<&[u8]>, Option<&[u8]>, &[u8]),
        taken: TakenAt,
    ) -> Result<(), String> {
        let rule =
            self.config.outputs.get(usize::from(output)).ok_or("the deployment has no dead-letter topic")?;
        let bytes: usize = [key, value, Some(headers)].into_iter().flatten().map(<[u8]>::len).sum();
        if bytes + RECORD_OVERHEAD_BYTES > rule.record_bytes_max {
            return Err(format!(
                "its dead letter of {bytes} bytes is above the max.message.bytes of {}, {}: raise it",
                rule.topic, rule.record_bytes_max
            ));
        }
        self.emit(Emissions {
            sources: vec![0],
            outputs: vec![output],
            partitions: vec![self.partition],
            timestamps: vec![taken.wall_ms],
            keys: one(key),
            values: one(value),
            headers: one(Some(headers)),
        });
        self.metrics.dead_letters.add(1);
        Ok(())
    }

    pub(super) fn failure(&self, input: u16, offset: u64, failed: Failed) -> Failure {
        self.failure_of(self.numbers.number(input).into(), offset, failed)
    }

    /// The same of a record of the input of this number, which may be unbound.
    pub(super) fn failure_of(&self, number: u32, offset: u64, (kind, mut reason): Failed) -> Failure {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let (topic, _) = self.numbers.topic(number);
        Failure { kind, topic: topic.to_owned(), partition: self.partition, offset: Offset(offset), reason }
    }

    /// The place of a record that failed, see [`super::TaskConfig::place`].
    pub(super) fn place_of(&self, record: &ParkedRecord) -> String {
        let (topic, topic_id) = self.numbers.topic(record.input);
        self.config.place(identity(topic, topic_id), self.partition, record.offset)
    }

    /// A record of a batch, whole.
    fn kept(&self, batch: &Batch, row: usize) -> ParkedRecord {
        let copy = |column: &Column| column.row(row).map(<[u8]>::to_vec);
        ParkedRecord {
            input: self.numbers.number(batch.input).into(),
            offset: batch.offsets[row] as u64,
            timestamp_ms: batch.timestamps[row],
            key: copy(&batch.keys),
            value: copy(&batch.values),
            headers: copy(&batch.headers),
            ..ParkedRecord::default()
        }
    }

    fn count(&mut self, failure: &Failure) {
        self.stats.failures[failure.kind as usize] += 1;
        super::counter(failure.kind, &self.metrics).add(1);
    }
}

impl super::TaskConfig {
    /// Who tells of the record at that place.
    pub(super) fn sender<'a>(&'a self, place: &'a str, now_ms: i64) -> Sender<'a> {
        Sender {
            deployment: &self.deployment,
            incarnation: &self.incarnation,
            revision: self.revision,
            format: self.failures.letter_format,
            place,
            now_ms,
        }
    }

    /// Records behind a parked one of their key wait.
    pub(super) fn parks_keys(&self) -> bool {
        self.failures.parks() && self.failures.order == ParkOrder::ParkKey
    }
}

/// The batch that a parked record of this input was.
fn batch_of(record: &ParkedRecord, input: u16, partition: i32) -> Batch {
    let mut batch = Batch {
        input,
        partition,
        offsets: vec![record.offset as i64],
        timestamps: vec![record.timestamp_ms],
        ..Batch::default()
    };
    batch.keys.push(record.key.as_deref());
    batch.values.push(record.value.as_deref());
    batch.headers.push(record.headers.as_deref());
    batch
}

/// Writes down that and why it failed.
fn note(record: &mut ParkedRecord, failure: &Failure, revision: u64) {
    record.attempts = record.attempts.max(1);
    record.kind = failure.kind.as_str().to_owned();
    record.reason.clone_from(&failure.reason);
    record.revision = revision;
}

fn schedule(record: &mut ParkedRecord, reaction: Reaction) {
    record.held = reaction == Reaction::Hold;
    record.next_attempt_ms = match reaction {
        Reaction::Again { at_ms } => at_ms,
        _ => 0,
    };
}
