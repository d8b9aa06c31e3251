//! From a batch to effects in the overlay: which records go into one call, what a call's outcome
//! means for each of them. What a failed record comes to is decided in `failing`.
//!
//! A batch normally is one call, and its emissions are moved, not copied. Everything else is rare:
//! a split at a limit or at a suspect, a replay one record per call after a fault, a second call for
//! the records behind one whose effects Kafka would refuse.

use std::sync::Arc;

use super::checks::{Checks, Refused, check_statuses};
use super::config::too_large;
use super::inbox::{Inbox, Met, lacks_id, lacks_number};
use super::relay::Blocked;
use super::{Applied, FailureKind, SUSPECTS_MAX, Seen, Suspect, TakenAt, Task, TaskError};
use crate::effects::{Effects, Emissions, Emitted, Fault, Order, Status, Writes};
use crate::faults::{Bug, planted};
use crate::record::{Batch, Offset};
use crate::store::{StoreError, Table};

/// Kind and reason of a record that failed.
pub(super) type Failed = (FailureKind, String);

impl Task {
    /// Runs a batch of one of the task's inputs, as far as one turn goes. Records below the task's
    /// position are ignored, and so is everything given to a task that is halted or blocked. After an
    /// error drop the task or close it: what was handled before may be in the overlay, which is not committed
    /// if that is not all of a record. A call that is interrupted is no error, and left over with what is behind it.
    pub fn apply(&mut self, mut batch: Batch, taken: TakenAt) -> Result<Applied, TaskError> {
        let next = self.next(batch.input).ok_or(TaskError::Misuse("the task has no such input"))?;
        let mut applied = Applied::default();
        let at = batch.offsets.partition_point(|&offset| offset < 0 || (offset as u64) < next.0);
        if let Some(inbox) = &self.inbox {
            let input = self.numbers.number(batch.input);
            inbox.fill(&mut batch, input);
        }
        self.turn.begin();
        match self.drive(&batch, at, usize::MAX, taken, &mut applied) {
            Ok(()) => {}
            Err(TaskError::Interrupted) => applied.interrupted = true,
            Err(error) => {
                self.is_torn |= matches!(error, TaskError::Store(_));
                return Err(error);
            }
        }
        if (self.turn.is_over() || applied.interrupted) && self.takes_records() {
            let next = self.next(batch.input).unwrap_or_default();
            let at = batch.offsets.partition_point(|&offset| offset < 0 || (offset as u64) < next.0);
            applied.left = (at < batch.len()).then(|| batch.slice(at..batch.len()));
        }
        let left = applied.left.as_ref().map_or(0, Batch::len);
        let known = applied.ok + applied.failed + applied.waiting + applied.duplicates + left;
        applied.ignored = batch.len().saturating_sub(known);
        self.note_parked();
        Ok(applied)
    }

    /// Takes the records from row `at`, at most `company` a call, as far as the task takes any.
    fn drive(
        &mut self,
        batch: &Batch,
        mut at: usize,
        company: usize,
        taken: TakenAt,
        applied: &mut Applied,
    ) -> Result<(), TaskError> {
        let len = batch.len();
        // Of a deployment that parks nothing no key is looked at, unless letters have come back.
        let looks = self.config.failures.parks() || !self.parked.is_empty();
        let keys: Vec<Option<&[u8]>> = if looks { batch.keys.iter().collect() } else { Vec::new() };
        let key = |row: usize| keys.get(row).copied().flatten();
        let ids: Vec<Option<&[u8]>> = batch.ids.iter().collect();
        while at < len && self.takes_records() && !self.turn.is_over() {
            let allowance = usize::try_from(self.allowance()).unwrap_or(usize::MAX);
            if allowance == 0 {
                self.gate();
                break;
            }
            if let Some(rule) = self.outbox.full() {
                self.blocked = Some(Blocked::Outbox(Arc::clone(rule)));
                break;
            }
            if self.parked.holds(key(at)) {
                self.wait_behind(batch, at, taken, applied)?;
                at += 1;
                continue;
            }
            let to = self
                .stretch(batch, at, key)
                .min(at.saturating_add(allowance.min(company).min(self.turn.company())));
            at = self.run_fresh(batch, &ids, at..to, taken, applied)?;
            if self.is_full() {
                // Behind one call and not behind all of a batch, which are many when it is replayed one by one.
                self.turn.end();
            }
        }
        Ok(())
    }

    /// Runs those of the rows that are no repetitions, up to the second one of an id, or as far as one call
    /// went. Answers the row behind the last one that has been dealt with.
    fn run_fresh(
        &mut self,
        batch: &Batch,
        ids: &[Option<&[u8]>],
        rows: std::ops::Range<usize>,
        taken: TakenAt,
        applied: &mut Applied,
    ) -> Result<usize, TaskError> {
        let (fresh, to) = match ids.is_empty() {
            true => (rows.clone().collect(), rows.end),
            false => self.fresh(batch, ids, rows.clone(), taken)?,
        };
        let run = if fresh.is_empty() {
            0
        } else if fresh.len() == batch.len() {
            self.run(batch, taken, applied)?
        } else if fresh.len() == rows.len() {
            self.run(&batch.slice(rows.clone()), taken, applied)?
        } else {
            self.run(&batch.pick(&fresh), taken, applied)?
        };
        let to = fresh.get(run).copied().unwrap_or(to);
        let last = run.checked_sub(1).and_then(|last| fresh.get(last));
        let last = last.map(|&row| batch.offsets[row] as u64);
        let is_done = last.is_none_or(|last| self.next(batch.input).is_some_and(|next| next.0 > last));
        if self.takes_records() && is_done {
            let duplicates = (to - rows.start) - run;
            applied.duplicates += duplicates;
            self.metrics.duplicates.add(duplicates as u64);
            self.pass_repetitions(batch, to, taken);
        }
        Ok(to)
    }

    /// Those of the rows that are no repetitions, and where that ends: before a record that can only be
    /// judged once those before it have their outcome. Ids are looked up together.
    fn fresh(
        &self,
        batch: &Batch,
        ids: &[Option<&[u8]>],
        rows: std::ops::Range<usize>,
        taken: TakenAt,
    ) -> Result<(Vec<usize>, usize), StoreError> {
        let mut fresh = Vec::with_capacity(rows.len());
        let mut met = Met::default();
        // Where the horizon will be if every record of `fresh` ends `ok`.
        let mut ahead_ms = i64::MIN;
        let mut at = rows.start;
        while at < rows.end
            && let Some(inbox) = &self.inbox
        {
            let (asked, to) = met.ask(ids, at, rows.end);
            self.look_up(inbox, &asked, &mut met)?;
            for (row, id) in ids.iter().enumerate().take(to).skip(at) {
                let timestamp_ms = batch.timestamps[row];
                if let Some(id) = id {
                    let repeats = met.repeats(
                        id,
                        |seen| inbox.is_remembered(seen, timestamp_ms, taken),
                        |seen| inbox.expires_ms(seen) <= ahead_ms,
                    );
                    match repeats {
                        None => return Ok((fresh, row)),
                        Some(true) => {
                            self.tell_repetition(id, batch.offsets[row]);
                            continue;
                        }
                        Some(false) => {}
                    }
                }
                ahead_ms = ahead_ms.max(inbox.time_ms(timestamp_ms, taken));
                fresh.push(row);
            }
            at = to;
        }
        Ok((fresh, rows.end))
    }

    fn tell_repetition(&self, id: &[u8], offset: i64) {
        let (deployment, partition) = (&self.config.deployment, self.partition);
        let id = id.escape_ascii();
        tracing::debug!(target: "tidemill::ids", deployment, partition, offset, %id, "repetition dropped");
    }

    fn look_up<'a>(&self, inbox: &Inbox, asked: &[&'a [u8]], met: &mut Met<'a>) -> Result<(), StoreError> {
        if planted(Bug::InboxOutside) {
            // Remembered for ever, and at no horizon.
            let row = Seen { horizon_ms: i64::MAX, input: 0, offset: 0, revision: 0 }.encode();
            asked.iter().for_each(|id| met.answer(id, inbox.outside.contains(*id).then_some(&row)));
            return Ok(());
        }
        self.view.rows_once(Table::Inbox, asked, |number, row| met.answer(asked[number], row))
    }

    fn is_seen(&self, id: &[u8], timestamp_ms: i64, taken: TakenAt) -> Result<bool, StoreError> {
        let Some(inbox) = &self.inbox else { return Ok(false) };
        if planted(Bug::InboxOutside) {
            return Ok(inbox.outside.contains(id));
        }
        let row = self.view.row_once(Table::Inbox, id)?;
        Ok(row
            .and_then(|row| Seen::decode(&row))
            .is_some_and(|seen| inbox.is_remembered(seen, timestamp_ms, taken)))
    }

    /// The records whose effects have been taken over count as seen.
    fn remember(&mut self, batch: &Batch, taken: TakenAt, keep: impl Fn(u32) -> bool) {
        let Some(inbox) = &mut self.inbox else { return };
        let input = self.numbers.number(batch.input);
        for (row, id) in batch.ids.iter().enumerate().filter(|(row, _)| keep(*row as u32)) {
            let Some(id) = id else { continue };
            let seen = Seen {
                horizon_ms: inbox.pass(batch.timestamps[row], taken),
                input,
                offset: batch.offsets[row] as u64,
                revision: self.config.revision,
            };
            if planted(Bug::InboxOutside) {
                inbox.outside.insert(id.to_vec());
                continue;
            }
            self.view.set_row(Table::Inbox, id, Some(&seen.encode()));
            inbox.has_news = true;
        }
    }

    /// The end of the records from `at` that may share a call: within the limits of a call, a
    /// suspect alone, and none that must wait behind a parked one.
    fn stretch<'a>(&self, batch: &Batch, at: usize, key: impl Fn(usize) -> Option<&'a [u8]>) -> usize {
        let is_whole = at == 0 && batch.len() <= self.config.call_records_max;
        let lacks = |row: usize| lacks_id(batch, row) || lacks_number(batch, row);
        let lacks_nothing = self.inbox.is_none() || !(0..batch.len()).any(lacks);
        let alone_until = self.alone_until.get(usize::from(batch.input)).copied().unwrap_or(-1);
        let is_alone = |row: usize| batch.offsets[row] <= alone_until;
        let is_calm = self.suspects.is_empty() && self.parked.is_empty() && lacks_nothing && !is_alone(at);
        if is_whole && batch.bytes() <= self.config.call_bytes_max && is_calm {
            return batch.len();
        }
        // A record without an id or a number fails alone, uncalled.
        let is_suspect = |row: usize| {
            lacks(row) || is_alone(row) || self.suspected(batch.input, batch.offsets[row]).is_some()
        };
        if is_suspect(at) {
            return at + 1;
        }
        let bytes = |row: usize| -> usize {
            let columns = [&batch.keys, &batch.values, &batch.headers];
            columns
                .iter()
                .filter_map(|column| column.lengths().get(row))
                .map(|&length| length.max(0) as usize)
                .sum()
        };
        let mut sum = bytes(at);
        let mut to = at + 1;
        while to < batch.len() && to - at < self.config.call_records_max {
            sum += bytes(to);
            if sum > self.config.call_bytes_max || is_suspect(to) || self.parked.holds(key(to)) {
                break;
            }
            to += 1;
        }
        to
    }

    /// Runs records that may share a call. Answers how many of them have been dealt with; the others are for
    /// another call, which is the caller's to make: from here it would lie within this one, and a batch in
    /// which all are refused would take its number of records times as much of the thread's stack.
    fn run(&mut self, batch: &Batch, taken: TakenAt, applied: &mut Applied) -> Result<usize, TaskError> {
        if batch.len() == 1 {
            match self.attempt(batch, taken)? {
                Ok(()) => {
                    applied.ok += 1;
                    self.pass(batch, 1, taken)?;
                }
                Err(failed) => self.fail(batch, 0, failed, taken, applied)?,
            }
            return Ok(1);
        }
        let Ok(effects) = self.call(batch)? else {
            // Which record is at fault shows only one by one.
            self.stats.replays += 1;
            if let (Some(until), Some(&last)) =
                (self.alone_until.get_mut(usize::from(batch.input)), batch.offsets.last())
            {
                *until = last;
            }
            self.drive(batch, 0, 1, taken, applied)?;
            return Ok(batch.len());
        };
        self.settle(batch, effects, taken, applied)
    }

    /// Runs one record alone: its effects are in the overlay, or the answer says why it failed.
    pub(super) fn attempt(&mut self, batch: &Batch, taken: TakenAt) -> Result<Result<(), Failed>, TaskError> {
        if let Some(inbox) = &self.inbox {
            if let Some(reason) = inbox.missing(batch, 0) {
                return Ok(Err((FailureKind::Decode, reason)));
            }
            // Only a record that was parked can have been overtaken by another of its id.
            if let Some(id) = batch.ids.row(0)
                && self.is_seen(id, batch.timestamps[0], taken)?
            {
                self.tell_repetition(id, batch.offsets[0]);
                self.metrics.duplicates.add(1);
                return Ok(Ok(()));
            }
        }
        if batch.bytes() > self.config.call_bytes_max {
            let reason = too_large(batch.bytes(), self.config.call_bytes_max);
            return Ok(Err((FailureKind::Limit, reason)));
        }
        if let Some(Suspect { refused: Some(reason), .. }) = self.suspected(batch.input, batch.offsets[0]) {
            return Ok(Err((FailureKind::Limit, reason.clone())));
        }
        let effects = match self.call(batch)? {
            Ok(effects) => effects,
            Err(fault) => {
                self.suspect(batch.input, batch.offsets[0]);
                return Ok(Err(sort(fault)));
            }
        };
        let scratch = self.view.take_scratch();
        if let Some(failed) = failed(&effects, 0, effects.reasons.row(0)) {
            return Ok(Err(failed));
        }
        if let Some(refused) = self.first_refused(&effects, &scratch, taken)? {
            self.renew()?;
            return Ok(Err((FailureKind::Limit, refused.reason)));
        }
        self.absorb(&scratch, &effects.writes, |_| true)?;
        self.release(effects.emissions, batch, taken);
        self.remember(batch, taken, |_| true);
        Ok(Ok(()))
    }

    /// One call. The outer error is trouble that is no record's fault.
    fn call(&mut self, batch: &Batch) -> Result<Result<Effects, Fault>, TaskError> {
        let order = self.config.order();
        let prefetched = self.view.prefetch(&batch.keys)?;
        self.stats.calls += 1;
        let answer = self.handler.handle(batch, order, prefetched, &mut self.view);
        self.turn.used(self.handler.used(), batch.len());
        let fault = match answer {
            Ok(mut effects) => match check_statuses(&effects.statuses, order, batch.len()) {
                Ok(()) => {
                    if self.config.correlation && !effects.emissions.is_empty() {
                        self.config.correlate(batch, &mut effects.emissions);
                    }
                    return Ok(Ok(effects));
                }
                Err(lie) => {
                    self.renew()?;
                    Fault::Trap(lie)
                }
            },
            Err(fault) => fault,
        };
        self.view.take_scratch();
        match fault {
            Fault::Store(reason) => Err(TaskError::State(reason)),
            Fault::Interrupted => Err(TaskError::Interrupted),
            fault @ Fault::Start(_) => Err(TaskError::Handler(fault)),
            fault => Ok(Err(fault)),
        }
    }

    /// Forgets what the instance remembers. A start is a part of the turn, as a call is.
    fn renew(&mut self) -> Result<(), TaskError> {
        let renewed = self.handler.renew();
        self.turn.started(self.handler.used());
        renewed.map_err(|fault| match fault {
            Fault::Interrupted => TaskError::Interrupted,
            fault => TaskError::Handler(fault),
        })
    }

    /// Takes over the effects of the `ok` records and applies the policy to the failed ones, up to the one that
    /// the task may not get past, or that Kafka would refuse. Answers how many rows that is; what is behind
    /// them has not been taken over.
    fn settle(
        &mut self,
        batch: &Batch,
        effects: Effects,
        taken: TakenAt,
        applied: &mut Applied,
    ) -> Result<usize, TaskError> {
        let scratch = self.view.take_scratch();
        let refused = self.first_refused(&effects, &scratch, taken)?;
        let statuses = &effects.statuses;
        if refused.is_none() && statuses.iter().all(|&status| status == Status::Ok) {
            self.absorb(&scratch, &effects.writes, |_| true)?;
            self.release(effects.emissions, batch, taken);
            self.remember(batch, taken, |_| true);
            applied.ok += batch.len();
            self.pass(batch, batch.len(), taken)?;
            return Ok(batch.len());
        }
        let taken_over = refused.as_ref().map_or(batch.len(), |refused| refused.row);
        let stop = self.stop_row(batch, statuses, taken_over);
        let rows = stop.unwrap_or(taken_over);
        let keep =
            |source: u32| (source as usize) < rows && statuses.get(source as usize) == Some(&Status::Ok);
        self.absorb(&scratch, &effects.writes, keep)?;
        self.release(filter(&effects.emissions, keep), batch, taken);
        self.remember(batch, taken, keep);
        // One row more: the one that stops the task, which is given to the policy like any other.
        let judged = rows + usize::from(stop.is_some());
        for (row, reason) in effects.reasons.iter().enumerate().take(judged) {
            match failed(&effects, row, reason) {
                None if statuses.get(row) == Some(&Status::Blocked) => {
                    self.wait_behind(batch, row, taken, applied)?;
                }
                None => applied.ok += 1,
                Some(failed) => self.fail(batch, row, failed, taken, applied)?,
            }
        }
        self.pass(batch, rows, taken)?;
        if stop.is_some() {
            if self.config.order() != Order::All {
                // Records behind it were run, and what the instance remembers of them never happened.
                self.renew()?;
            }
            // Should the policy have got past it after all, what is behind it is run again.
            return Ok(judged);
        }
        let Some(refused) = refused else { return Ok(batch.len()) };
        // Later records of that call may have seen the refused record's writes, and so may the instance.
        self.renew()?;
        self.fail(batch, refused.row, (FailureKind::Limit, refused.reason), taken, applied)?;
        Ok(refused.row + 1)
    }

    /// Moves the position past the first `rows` records of `batch`, unless it is there already. Those that
    /// it moves past have come in, whatever becomes of them: their numbers are heard.
    pub(super) fn pass(&mut self, batch: &Batch, rows: usize, taken: TakenAt) -> Result<(), TaskError> {
        self.hear(batch, rows, taken)?;
        self.pass_repetitions(batch, rows, taken);
        Ok(())
    }

    /// The same where those records have come in before.
    fn pass_repetitions(&mut self, batch: &Batch, rows: usize, taken: TakenAt) {
        let Some(next) = self.next(batch.input) else {
            return;
        };
        let passed = &batch.offsets[..rows];
        let before = passed.partition_point(|&offset| (offset as u64) < next.0);
        let records = (rows - before) as u64;
        let Some(&last) = passed.last().filter(|_| records > 0) else {
            return;
        };
        self.advance(batch.input, Offset(last as u64 + 1));
        self.pending_records += records;
        self.stats.records += records;
        self.oldest.get_or_insert(taken.monotonic);
        self.first.get_or_insert((batch.input, passed[before]));
    }

    fn absorb(
        &mut self,
        scratch: &[Writes],
        writes: &Writes,
        keep: impl Fn(u32) -> bool + Copy,
    ) -> Result<(), TaskError> {
        // Scratch first: it holds what the call had written before its last scan.
        for writes in scratch.iter().chain([writes]) {
            self.view.absorb(writes, keep)?;
            self.stats.writes += writes.len() as u64;
        }
        Ok(())
    }

    pub(super) fn emit(&mut self, mut emissions: Emissions) {
        self.stats.emissions += emissions.len() as u64;
        if self.config.emits_at_commit() {
            emissions = self.latest.keep(&emissions, &self.config.outputs);
        }
        if emissions.is_empty() {
            return;
        }
        let emitted = Emitted::from(emissions);
        self.emission_bytes += emitted.memory_bytes();
        self.emissions.push(emitted);
    }

    /// The first `ok` record of a call whose effects Kafka would refuse, or for which the stores have no room.
    pub(super) fn first_refused(
        &mut self,
        effects: &Effects,
        scratch: &[Writes],
        taken: TakenAt,
    ) -> Result<Option<Refused>, TaskError> {
        let by_kafka = self.checks(taken).first_refused(effects, scratch);
        let beyond = self.view.first_beyond(effects, scratch)?;
        let by_stores = beyond.map(|beyond| Refused { row: beyond.row, reason: beyond.reason });
        Ok(by_kafka.into_iter().chain(by_stores).min_by_key(|refused| refused.row))
    }

    fn checks(&self, taken: TakenAt) -> Checks<'_> {
        let stores = &self.config.stores;
        Checks {
            outputs: &self.config.outputs,
            changelog_bytes_max: self.config.changelog.record_bytes_max,
            prefix_bytes_max: (0..stores.len())
                .map(|store| stores.prefix_len(store as u16))
                .max()
                .unwrap_or(0),
            wall_ms: taken.wall_ms,
        }
    }

    pub(super) fn suspected(&self, input: u16, offset: i64) -> Option<&Suspect> {
        self.suspects.iter().find(|suspect| (suspect.input, suspect.offset) == (input, offset))
    }

    fn suspect(&mut self, input: u16, offset: i64) {
        if self.suspected(input, offset).is_some() {
            return;
        }
        if self.suspects.len() == SUSPECTS_MAX {
            self.suspects.remove(0);
        }
        self.suspects.push(Suspect { input, offset, refused: None });
    }
}

/// Why a record of a call failed; none for one that ended `ok`, or was not run.
fn failed(effects: &Effects, row: usize, reason: Option<&[u8]>) -> Option<Failed> {
    let kind = kind_of(*effects.statuses.get(row)?)?;
    let reason = String::from_utf8_lossy(reason.unwrap_or(b"no reason given"));
    Some((kind, reason.into_owned()))
}

pub(super) fn kind_of(status: Status) -> Option<FailureKind> {
    match status {
        Status::Ok | Status::Blocked => None,
        Status::Transient => Some(FailureKind::Transient),
        Status::Permanent => Some(FailureKind::Permanent),
        Status::Decode => Some(FailureKind::Decode),
        Status::Schema => Some(FailureKind::Schema),
    }
}

/// Sorts the fault of a call with one record.
fn sort(fault: Fault) -> (FailureKind, String) {
    let reason = fault.to_string();
    match fault {
        Fault::Timeout { .. } => (FailureKind::Timeout, reason),
        Fault::Limit(_) => (FailureKind::Limit, reason),
        Fault::Trap(_) | Fault::Store(_) | Fault::Start(_) | Fault::Interrupted => {
            (FailureKind::Trap, reason)
        }
    }
}

/// Copies the emissions whose source `keep` accepts.
fn filter(emissions: &Emissions, keep: impl Fn(u32) -> bool) -> Emissions {
    let mut kept = Emissions::default();
    emissions.rows().filter(|row| keep(row.source)).for_each(|row| kept.push(row));
    kept
}
