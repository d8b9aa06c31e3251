//! A task's effects for destinations outside the transaction: from an emission to a row, from a row to a
//! delivery, from its landing to the commit that deletes the row.
//!
//! What is done here is part of the next commit, like everything a task does: rows are written with the
//! state and the offsets of their records, and deleted with the offsets that fence the commit.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::letter::Sender;
use super::outbox::{self, Letter, OutboxRule, OutboxStatus, Reaction, RowStatus};
use super::parked::Load;
use super::{TakenAt, Task, TaskConfig, TaskError, TaskInput, undelivered};
use crate::config::deployment::Emit;
use crate::config::failures::LetterFormat;
use crate::effects::{Emission, Emissions};
use crate::faults::{CrashPoint, crash_point};
use crate::ports::{Delivery, Landing};
use crate::record::{Batch, Column, headers};
use crate::store::{OutboxRow, StoreError, Table};

/// The header that carries the id of an emission, and of a delivery.
pub const ID_HEADER: &str = "tidemill-id";
/// Bytes of rows that one answer shows, and one row more.
const SHOWN_BYTES_MAX: u64 = 4 << 20;

/// Why a task's input is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Blocked {
    /// There is no room to park the next record, which has so many bytes there.
    Park { bytes: u64 },
    /// An output's outbox holds what it may.
    Outbox(Arc<OutboxRule>),
}

/// What a landing has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The row stays, or is none of this task's.
    Open,
    /// The next commit deletes it.
    Delivered,
    /// The next commit deletes it and has its dead letter.
    Buried { destination: Arc<str> },
}

/// One row, for a person.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownRow {
    pub status: RowStatus,
    pub row: OutboxRow,
}

impl TaskConfig {
    pub(super) fn outbox_rules(&self) -> impl Iterator<Item = Arc<OutboxRule>> {
        self.outputs.iter().filter_map(|output| output.outbox.clone())
    }

    /// Some emissions are not simply produced.
    fn names_emissions(&self) -> bool {
        self.outputs.iter().any(|output| output.ids || output.outbox.is_some())
    }

    /// Some emissions wait for the commit, because a later one may take their place.
    pub(super) fn emits_at_commit(&self) -> bool {
        self.outputs.iter().any(|output| output.emit == Emit::Commit)
    }
}

impl Task {
    /// Takes over what the records of a batch emitted: to topics with the next commit, to the outbox as rows
    /// of it.
    pub(super) fn release(&mut self, emissions: Emissions, batch: &Batch, taken: TakenAt) {
        if emissions.is_empty() || !self.config.names_emissions() {
            return self.emit(emissions);
        }
        let config = Arc::clone(&self.config);
        let mut kept = Emissions::default();
        let (mut source, mut index) = (u32::MAX, 0);
        for row in emissions.rows() {
            // Numbered among all that its record emitted, so that the number is the same whenever it is handled.
            index = if row.source == source { index + 1 } else { 0 };
            source = row.source;
            let Some(rule) = config.outputs.get(usize::from(row.output)) else { continue };
            let id = || self.id_of(batch, source as usize, index);
            if let Some(outbox) = &rule.outbox {
                let row = OutboxRow {
                    output: outbox.name.to_string(),
                    key: row.key.map(<[u8]>::to_vec),
                    value: row.value.map(<[u8]>::to_vec),
                    headers: row.headers.unwrap_or_default().to_vec(),
                    timestamp_ms: row.timestamp,
                    id: id(),
                    revision: config.revision,
                    created_ms: taken.wall_ms,
                    retry_count: 0,
                };
                self.keep(&row);
                continue;
            }
            let named = rule.ids.then(|| with_id(row.headers, &id()));
            kept.push(Emission { headers: named.as_deref().or(row.headers), ..row });
        }
        self.emit(kept);
    }

    /// Names an emission by the record it is for: the same whenever and wherever that is handled.
    fn id_of(&self, batch: &Batch, source: usize, index: u32) -> String {
        let topic = self.config.inputs.get(usize::from(batch.input)).map_or("", TaskInput::identity);
        let offset = batch.offsets.get(source).copied().unwrap_or(-1);
        format!("{}/{topic}/{}/{offset}/{index}", self.config.incarnation, self.partition)
    }

    pub(super) fn keep(&mut self, row: &OutboxRow) {
        let sequence = self.outbox.push(row);
        self.view.set_row(Table::Outbox, &outbox::encode_key(sequence), Some(&row.encode_to_vec()));
    }

    /// The next delivery that may begin: the oldest row whose commit is known, whose key has nothing else under
    /// way, and whose destination takes any. Each that is handed out lands, or comes back by
    /// [`Task::not_sent`].
    pub fn delivery(
        &mut self,
        now: Duration,
        admits: impl Fn(&str) -> bool,
    ) -> Result<Option<Delivery>, TaskError> {
        if !self.is_running() {
            return Ok(None);
        }
        let Some(sequence) = self.outbox.due(now, admits) else { return Ok(None) };
        let row = self.outbox_row(sequence)?;
        self.outbox.sent(sequence);
        Ok(Some(Delivery {
            partition: self.partition,
            sequence,
            destination: row.output.into(),
            id: row.id,
            key: row.key,
            value: row.value,
            headers: row.headers,
            timestamp_ms: row.timestamp_ms,
        }))
    }

    pub fn not_sent(&mut self, delivery: &Delivery) {
        self.outbox.unsent(delivery.sequence);
    }

    /// A delivery of an earlier life of this task on its worker is still under way: its row waits for the
    /// landing, so that the key does not overtake it.
    pub fn is_in_air(&mut self, sequence: u64) {
        self.outbox.sent(sequence);
    }

    /// A delivery has ended.
    pub fn landed(&mut self, landing: &Landing, taken: TakenAt) -> Result<Settled, TaskError> {
        let sequence = landing.sequence;
        let settled = match self.outbox.landed(sequence, &landing.landed, taken.monotonic) {
            Reaction::Ignored | Reaction::Again => return Ok(Settled::Open),
            Reaction::Delete => {
                self.finish(sequence, None);
                Settled::Delivered
            }
            Reaction::Bury { destination, reason, attempts } => {
                let letter = Letter { reason, attempts, wall_ms: taken.wall_ms };
                match self.bury(sequence, &letter)? {
                    Ok(()) => {
                        self.finish(sequence, Some(letter));
                        Settled::Buried { destination }
                    }
                    Err(why) => {
                        let (deployment, partition) = (&self.config.deployment, self.partition);
                        tracing::error!(deployment, partition, sequence, why, "an outbox row is held");
                        self.outbox.hold(sequence, format!("{}; {why}", letter.reason));
                        return Ok(Settled::Open);
                    }
                }
            }
        };
        crash_point(CrashPoint::AfterAcknowledgement);
        Ok(settled)
    }

    fn finish(&mut self, sequence: u64, letter: Option<Letter>) {
        self.view.set_row(Table::Outbox, &outbox::encode_key(sequence), None);
        self.outbox.finish(sequence, letter);
    }

    /// What was done with before its commit failed is done with in the next one.
    pub(super) fn finish_again(&mut self, again: Vec<(u64, Option<Letter>)>) -> Result<(), TaskError> {
        for (sequence, letter) in again {
            if let Some(letter) = letter {
                // It was possible before, so it is now.
                let _ = self.bury(sequence, &letter)?;
            }
            self.view.set_row(Table::Outbox, &outbox::encode_key(sequence), None);
        }
        Ok(())
    }

    /// Adds the dead letter of a row to what the next commit emits; the inner error says why there can be none.
    fn bury(&mut self, sequence: u64, letter: &Letter) -> Result<Result<(), String>, TaskError> {
        let Some(output) = self.config.dead_letters else {
            return Ok(Err("the deployment has no dead-letter topic".to_owned()));
        };
        let row = self.outbox_row(sequence)?;
        // Of the record: a row's id has the number of the emission behind it.
        let place = row.id.rsplit_once('/').map_or(row.id.as_str(), |(place, _)| place);
        let sender = Sender {
            deployment: &self.config.deployment,
            incarnation: &self.config.incarnation,
            revision: self.config.revision,
            // The row's own bytes, whatever the letters of records are.
            format: LetterFormat::Raw,
            place,
            now_ms: letter.wall_ms,
        };
        let record = self.config.record_at(place);
        let headers = undelivered::encode_headers(&row, (self.partition, sequence), record, letter, &sender);
        let taken = TakenAt { wall_ms: letter.wall_ms, ..TakenAt::default() };
        Ok(self.send_letter(output, (row.key.as_deref(), row.value.as_deref(), &headers), taken))
    }

    fn outbox_row(&self, sequence: u64) -> Result<OutboxRow, TaskError> {
        let missing = || StoreError::Corrupt("an outbox row is gone from the store".into());
        let bytes = self.view.row_once(Table::Outbox, &outbox::encode_key(sequence))?.ok_or_else(missing)?;
        Ok(outbox::decode_row(&bytes)?)
    }

    /// Deliveries under way.
    pub fn in_air(&self) -> usize {
        self.outbox.in_air()
    }

    /// Whether there is any row at all.
    pub fn has_outbox_rows(&self) -> bool {
        !self.outbox.is_empty()
    }

    pub fn outbox_status(&self) -> Vec<OutboxStatus> {
        self.outbox.status()
    }

    /// Rows beyond `after`, whole, as far as one answer holds them; those of an overlay that is not committed too.
    pub fn outbox_rows(
        &self,
        destination: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<ShownRow>, TaskError> {
        let (mut shown, mut bytes) = (Vec::new(), 0);
        for status in self.outbox.rows(destination, after, limit) {
            if bytes >= SHOWN_BYTES_MAX {
                break;
            }
            let row = self.outbox_row(status.sequence)?;
            bytes += outbox::size(&row);
            shown.push(ShownRow { status, row });
        }
        Ok(shown)
    }

    /// Tries rows now, however often they have failed; all of them if none is named. Answers how many.
    pub fn retry_outbox(&mut self, destination: Option<&str>, sequences: &[u64]) -> u64 {
        self.outbox.retry(destination, sequences)
    }

    /// Deletes rows that will not be delivered, in the next commit. Those under way are left alone, and those whose own
    /// commit is not known. Answers how many.
    pub fn discard_outbox(&mut self, destination: Option<&str>, sequences: &[u64]) -> u64 {
        let chosen: Vec<u64> = self.outbox.chosen(destination, sequences).collect();
        for &sequence in &chosen {
            self.finish(sequence, None);
        }
        chosen.len() as u64
    }

    /// How many rows [`Task::discard_outbox`] would delete.
    pub fn count_outbox(&self, destination: Option<&str>, sequences: &[u64]) -> u64 {
        self.outbox.chosen(destination, sequences).count() as u64
    }

    /// Why the task's input is paused, if it is.
    pub fn blocked_reason(&self) -> Option<String> {
        let reason = match self.blocked.as_ref()? {
            Blocked::Park { .. } => self.fill_of_park(""),
            Blocked::Outbox(rule) => self.fill_of_outbox(rule),
        };
        Some(format!("paused: {reason}"))
    }

    /// Why there is no room for letters, if there is none.
    pub fn letters_reason(&self) -> Option<String> {
        let reason = match self.parked.has_room_for_letters() {
            false => self.fill_of_park(", of which letters fill at most half"),
            true => self.fill_of_outbox(self.outbox.full()?),
        };
        Some(format!("letters wait: {reason}"))
    }

    /// `share` says what part of the bound counts.
    fn fill_of_park(&self, share: &str) -> String {
        let Load { records, bytes } = self.parked.bound();
        let limits = &self.config.failures.parked;
        let beside = match self.parked.unbound().records {
            0 => String::new(),
            more => format!(
                "; {more} more are of topics that are no inputs, and do not count, but what is behind them in their keys waits"
            ),
        };
        format!(
            "{records} records ({bytes} bytes) are parked, failures.parked allows {} ({} bytes){share}; it goes on when \
             some of them succeed or are given up, or with a higher bound{beside}",
            limits.records, limits.bytes
        )
    }

    fn fill_of_outbox(&self, rule: &OutboxRule) -> String {
        let (rows, bytes) = self.outbox.load_of(&rule.name);
        format!(
            "the outbox of {} holds {rows} rows ({bytes} bytes), {} ({} bytes) are allowed; it goes on when they \
             are delivered or discarded, or with a higher bound",
            rule.name, rule.rows, rule.bytes
        )
    }
}

/// Headers with the id behind them; one that the handler has given is replaced.
fn with_id(own: Option<&[u8]>, id: &str) -> Vec<u8> {
    let mut list = own.map(|own| headers::decode_raw(own).unwrap_or_default()).unwrap_or_default();
    list.retain(|(name, _)| *name != ID_HEADER.as_bytes());
    list.push((ID_HEADER.as_bytes(), Some(id.as_bytes())));
    headers::encode(list.into_iter())
}

/// A column of one row.
pub(super) fn one(value: Option<&[u8]>) -> Column {
    let mut column = Column::default();
    column.push(value);
    column
}
