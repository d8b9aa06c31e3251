//! Dead letters that come back: as parked records, ahead of what is parked behind their key.
//!
//! ```text
//!   letter --> of this life, matches? --> marked? --> back too often? --> parked, marked, counted
//!               no: passed                 passed      left, counted       one commit, like everything else
//! ```
//!
//! A mark names a letter by its place in the dead-letter topic, and says that it was given back or discarded.
//! Row, mark and progress change in one commit, so whatever happens a letter is given back once. What then
//! becomes of the record is the failure policy's business, as for any parked record: when it fails again it is
//! a new letter, with a `retry_count` that is one higher. What could not be delivered is a row of its outbox
//! again, behind those that are there.
//!
//! Invariant: below `next` of a redrive's progress every letter has been decided about.

use std::collections::VecDeque;

use prost::Message;
use tidemill_proto::v1::{LetterFilter, OffsetRange};

use super::letter::{Letter, Undelivered};
use super::{FailureKind, Task, TaskConfig, TaskError, undelivered};
use crate::ports::TopicRecord;
use crate::record::Offset;
use crate::store::{OutboxRow, ParkedRecord, RedriveProgress, StoreError, StoreReader, Table};

/// Kinds of rows. On disk and in Kafka since 0.2: add, never renumber.
const MARK: u8 = 1;
const PROGRESS: u8 = 2;
/// Rows that are looked at in one go when old ones are removed.
const SWEEP_ROWS: u32 = 1_000;

/// What is to be done with letters, as one task sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Redrive {
    pub id: u64,
    /// Letters are marked, and not given back.
    pub discard: bool,
    pub filter: LetterFilter,
    /// Letters that came back this often are left.
    pub retries_max: u32,
    /// Kafka's id of the dead-letter topic.
    pub topic_id: String,
    /// The first letter beyond it, in this task's partition.
    pub end: Offset,
    /// When it was asked for; milliseconds since the epoch.
    pub asked_at_ms: i64,
}

/// Consecutive records of a dead-letter topic, in their order; or some that come before their turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterPage {
    pub records: VecDeque<TopicRecord>,
    /// Everything below has been looked at once the page is used up; none for letters before their turn.
    pub next: Option<Offset>,
    /// Where the topic begins now.
    pub log_start: Offset,
}

/// What a task has taken of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    pub letters: usize,
    /// All of it, its `next` included: the page may be forgotten.
    pub is_used_up: bool,
    /// The next one waits for room: see [`Task::letters_reason`].
    pub waits: bool,
}

/// How a redrive stands to a letter that nobody has marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It came back too often.
    OverLimit,
    /// Its record's topic is no input, or its output no destination.
    Unbound,
    /// It is a record of this input.
    Of(u16),
    /// It could not be delivered, and the output is a destination.
    Delivery,
}

/// How the way of a record that came back ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Ok,
    Again,
    Dropped,
}

/// True for a letter that the filter means. Partitions are the caller's business.
pub fn accepts(filter: &LetterFilter, letter: &Letter) -> bool {
    let any = |list_is_empty: bool, found: bool| list_is_empty || found;
    let kinds = &filter.error_types;
    any(filter.keys.is_empty(), letter.key.as_ref().is_some_and(|key| filter.keys.contains(key)))
        && any(kinds.is_empty(), kinds.contains(&letter.error_type) || kinds.contains(&letter.error_class))
        && filter.from_ms.is_none_or(|from_ms| from_ms <= letter.failed_at_ms)
        && filter.to_ms.is_none_or(|to_ms| letter.failed_at_ms < to_ms)
        && any(
            filter.versions.is_empty() && filter.revisions.is_empty(),
            filter.versions.contains(&letter.revision) || is_within(&filter.revisions, letter.revision),
        )
        && any(filter.offsets.is_empty(), is_within(&filter.offsets, letter.offset))
}

/// Every error type of letters, and every kind.
pub fn error_types() -> Vec<&'static str> {
    let of_records = FailureKind::ALL.map(|kind| [kind.error_type(), kind.as_str()]);
    [of_records.as_flattened(), &[undelivered::ERROR_TYPE, undelivered::ERROR_CLASS]].concat()
}

fn is_within(ranges: &[OffsetRange], number: u64) -> bool {
    ranges.iter().any(|range| (range.from..range.to).contains(&number))
}

/// The row that marks a letter.
pub fn mark_key(topic_id: &str, letter: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + topic_id.len() + 8);
    key.extend([MARK, u8::try_from(topic_id.len()).unwrap_or(u8::MAX)]);
    key.extend(topic_id.as_bytes());
    key.extend(letter.to_be_bytes());
    key
}

fn progress_key(id: u64) -> Vec<u8> {
    [&[PROGRESS][..], &id.to_be_bytes()].concat()
}

/// What the store knows of redrives, by their ids.
pub fn progress_of(reader: &StoreReader) -> Result<Vec<(u64, RedriveProgress)>, StoreError> {
    let page = reader.rows(Table::Letters, &[PROGRESS], SWEEP_ROWS)?;
    let mut all = Vec::new();
    for (key, value) in page.keys.iter().zip(page.values.iter()) {
        let id = key.and_then(|key| <[u8; 8]>::try_from(key.get(1..)?).ok()).map(u64::from_be_bytes);
        let id = id.ok_or_else(|| StoreError::Corrupt("a row about a redrive has no id".into()))?;
        all.push((id, decode(value)?));
    }
    Ok(all)
}

fn decode(value: Option<&[u8]>) -> Result<RedriveProgress, StoreError> {
    RedriveProgress::decode(value.unwrap_or_default())
        .map_err(|error| StoreError::Corrupt(format!("progress of a redrive: {error}")))
}

/// Whether a letter could come back to a deployment with these inputs and destinations, and to which.
pub fn standing<'a>(
    mut inputs: impl Iterator<Item = &'a str>,
    mut destinations: impl Iterator<Item = &'a str>,
    letter: &Letter,
    retries_max: u32,
) -> Standing {
    let place = match &letter.undelivered {
        Some(undelivered) => {
            destinations.any(|name| name == undelivered.destination).then_some(Standing::Delivery)
        }
        None => {
            let input = inputs.position(|input| input == letter.topic);
            input.and_then(|input| u16::try_from(input).ok()).map(Standing::Of)
        }
    };
    match place {
        None => Standing::Unbound,
        Some(_) if letter.retry_count >= retries_max => Standing::OverLimit,
        Some(place) => place,
    }
}

impl TaskConfig {
    /// Whether a letter could come back, and to which input.
    pub fn standing(&self, letter: &Letter, retries_max: u32) -> Standing {
        let inputs = self.inputs.iter().map(|input| input.topic.as_str());
        let outboxes = self.outputs.iter().filter_map(|output| output.outbox.as_ref());
        standing(inputs, outboxes.map(|outbox| &*outbox.name), letter, retries_max)
    }

    /// The letter in a record of the dead-letter topic, if a redrive with this filter is about it.
    pub fn letter_of(&self, filter: &LetterFilter, partition: i32, record: &TopicRecord) -> Option<Letter> {
        let letter = Letter::read(record)?;
        let is_meant =
            letter.is_of(&self.deployment, &self.incarnation, partition) && accepts(filter, &letter);
        is_meant.then_some(letter)
    }
}

impl Task {
    /// How far a redrive is here; what is not committed included.
    pub fn progress(&self, id: u64) -> Result<RedriveProgress, TaskError> {
        let row = self.view.row(Table::Letters, &progress_key(id))?;
        Ok(row.map(|row| decode(Some(&row))).transpose()?.unwrap_or_default())
    }

    /// A redrive begins here, or goes on: forgets marks of letters that the topic has no more, and redrives
    /// older than `oldest`, some at a time.
    pub fn begin_redrive(
        &mut self,
        redrive: &Redrive,
        log_start: Offset,
        oldest: u64,
    ) -> Result<(), TaskError> {
        let Some(reader) = self.reader.clone() else { return Ok(()) };
        let ranges = [
            (mark_key(&redrive.topic_id, 0), mark_key(&redrive.topic_id, log_start.0)),
            (progress_key(0), progress_key(oldest)),
        ];
        for (from, to) in ranges {
            let page = reader.rows(Table::Letters, &from, SWEEP_ROWS)?;
            for key in page.keys.iter().flatten().take_while(|key| *key < to.as_slice()) {
                self.view.set_row(Table::Letters, key, None);
                self.edits += 1;
            }
        }
        Ok(())
    }

    /// Gives letters of a page back, at most `most`, as far as there is room and the task takes anything now;
    /// what is left of the page waits for another call. Part of the next commit, like everything.
    pub fn give_back(
        &mut self,
        redrive: &Redrive,
        page: &mut LetterPage,
        most: usize,
    ) -> Result<Given, TaskError> {
        if !self.takes_records() || self.is_careful() || self.store_less() {
            return Ok(Given::default());
        }
        let before = self.progress(redrive.id)?;
        let mut progress = before.clone();
        let mut given = 0;
        while let Some(record) = page.records.front() {
            let decided = match self.config.letter_of(&redrive.filter, self.partition, record) {
                None => true,
                Some(letter) => {
                    let may_give = given < most && self.may_give(redrive);
                    let was_given = progress.given;
                    let decided = self.decide(redrive, letter, may_give, &mut progress)?;
                    given += (progress.given - was_given) as usize;
                    decided
                }
            };
            if !decided {
                break;
            }
            if page.next.is_some() {
                progress.next = record.offset.0 + 1;
            }
            page.records.pop_front();
        }
        if let (Some(next), true) = (page.next, page.records.is_empty()) {
            progress.next = progress.next.max(next.0);
            progress.ended = progress.next >= redrive.end.0;
        }
        if progress != before {
            self.set_progress(redrive.id, &progress);
            self.edits += 1;
        }
        self.note_parked();
        let is_used_up = page.records.is_empty();
        let waits = !is_used_up && !redrive.discard && !self.has_room_for_letters();
        Ok(Given { letters: given, is_used_up, waits })
    }

    /// A redrive cannot go on here; a person reads why.
    pub fn end_redrive(&mut self, id: u64, trouble: &str) -> Result<(), TaskError> {
        let mut progress = self.progress(id)?;
        progress.ended = true;
        progress.trouble = trouble.to_owned();
        self.set_progress(id, &progress);
        self.edits += 1;
        Ok(())
    }

    /// False if the letter must wait for another call.
    fn decide(
        &mut self,
        redrive: &Redrive,
        letter: Letter,
        may_give: bool,
        progress: &mut RedriveProgress,
    ) -> Result<bool, TaskError> {
        let mark = mark_key(&redrive.topic_id, letter.offset);
        if self.view.row_once(Table::Letters, &mark)?.is_some() {
            // One that came before its turn has been counted.
            progress.marked += u64::from(!self.is_mark_of(redrive.id, &mark)?);
            return Ok(true);
        }
        let standing = self.config.standing(&letter, redrive.retries_max);
        match standing {
            _ if redrive.discard => {}
            Standing::OverLimit => {
                progress.over_limit += 1;
                self.metrics.over_limit.add(1);
                let (deployment, partition) = (&self.config.deployment, self.partition);
                let (retry_count, offset) = (letter.retry_count, letter.offset);
                tracing::warn!(
                    deployment,
                    partition,
                    offset,
                    retry_count,
                    "a dead letter came back too often and is left: find out why it fails, then redrive it with a higher --retry-limit, \
                     or discard it"
                );
                log(&letter, "DLQ message received: it came back too often and is left");
                return Ok(true);
            }
            Standing::Unbound => {
                progress.unbound += 1;
                return Ok(true);
            }
            Standing::Of(_) | Standing::Delivery => {}
        }
        if !may_give {
            return Ok(false);
        }
        match standing {
            _ if redrive.discard => {}
            Standing::OverLimit | Standing::Unbound => {}
            Standing::Of(input) => {
                let record = self.record_of(redrive.id, input, &letter);
                if !self.fits_changelog(&record) {
                    progress.unbound += 1;
                    return Ok(true);
                }
                log(&letter, "DLQ message received");
                self.note_forgotten(redrive.id, &letter, progress);
                let id = self.parked.push_letter(&record, letter.offset);
                self.view.set_row(Table::Parked, &id.encode(), Some(&record.encode_to_vec()));
                self.metrics.redriven.add(1);
            }
            Standing::Delivery => {
                log(&letter, "DLQ message received");
                self.keep(&self.row_of(redrive, &letter));
                self.metrics.redriven.add(1);
                progress.ok += 1;
            }
        }
        self.view.set_row(Table::Letters, &mark, Some(&redrive.id.to_be_bytes()));
        progress.given += 1;
        Ok(true)
    }

    fn is_mark_of(&self, id: u64, mark: &[u8]) -> Result<bool, TaskError> {
        let row = self.view.row_once(Table::Letters, mark)?;
        Ok(row.is_some_and(|row| row == id.to_be_bytes()))
    }

    fn may_give(&self, redrive: &Redrive) -> bool {
        !self.is_full() && (redrive.discard || self.has_room_for_letters())
    }

    /// Of either kind.
    fn has_room_for_letters(&self) -> bool {
        self.parked.has_room_for_letters() && self.outbox.full().is_none()
    }

    /// Counts a letter whose repetitions the inbox would not notice.
    fn note_forgotten(&self, id: u64, letter: &Letter, progress: &mut RedriveProgress) {
        if !self.inbox.as_ref().is_some_and(|inbox| inbox.has_forgotten(letter.timestamp_ms)) {
            return;
        }
        if progress.forgotten == 0 {
            let (deployment, partition) = (&self.config.deployment, self.partition);
            tracing::warn!(
                deployment,
                partition,
                redrive = id,
                "letters come back that are older than inbox.ttl: repetitions which had their effect meanwhile are not noticed"
            );
        }
        progress.forgotten += 1;
    }

    /// The row that a letter was, behind those that are there. It fitted the changelog before.
    fn row_of(&self, redrive: &Redrive, letter: &Letter) -> OutboxRow {
        let Undelivered { destination, id } = letter.undelivered.clone().unwrap_or_default();
        OutboxRow {
            output: destination,
            key: letter.key.clone(),
            value: letter.value.clone(),
            headers: letter.headers.clone().unwrap_or_default(),
            timestamp_ms: letter.timestamp_ms,
            id,
            revision: self.config.revision,
            created_ms: redrive.asked_at_ms,
            retry_count: letter.retry_count + 1,
        }
    }

    fn store_less(&self) -> bool {
        self.reader.is_none()
    }

    /// The record that a letter was, to be tried as soon as its turn comes.
    fn record_of(&self, redrive: u64, input: u16, letter: &Letter) -> ParkedRecord {
        ParkedRecord {
            input: self.numbers.number(input).into(),
            offset: letter.original_offset,
            timestamp_ms: letter.timestamp_ms,
            key: letter.key.clone(),
            value: letter.value.clone(),
            headers: letter.headers.clone(),
            kind: letter.error_class.clone(),
            reason: letter.reason.clone(),
            revision: self.config.revision,
            retry_count: letter.retry_count + 1,
            redrive,
            ..ParkedRecord::default()
        }
    }

    /// A parked record is done with; if it came back from the dead letters, its redrive counts that.
    pub(super) fn ended(&mut self, record: &ParkedRecord, how: Ended) -> Result<(), TaskError> {
        if record.redrive == 0 {
            return Ok(());
        }
        let mut progress = self.progress(record.redrive)?;
        let count = match how {
            Ended::Ok => &mut progress.ok,
            Ended::Again => &mut progress.again,
            Ended::Dropped => &mut progress.dropped,
        };
        *count += 1;
        // Part of what the record did, so no edit of its own.
        self.set_progress(record.redrive, &progress);
        Ok(())
    }

    fn set_progress(&mut self, id: u64, progress: &RedriveProgress) {
        self.view.set_row(Table::Letters, &progress_key(id), Some(&progress.encode_to_vec()));
    }
}

/// For whoever investigates.
fn log(letter: &Letter, message: &'static str) {
    tracing::info!(
        deployment = letter.deployment,
        original_topic = letter.topic,
        failure_reason = letter.reason,
        correlation_id = letter.correlation_id,
        error_type = letter.error_type,
        partition = letter.partition,
        original_offset = letter.original_offset,
        retry_count = letter.retry_count,
        "{message}"
    );
}
