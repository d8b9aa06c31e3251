//! From a batch to effects in the overlay: which records go into one call, what a call's outcome
//! means for each of them, and the failure policy.
//!
//! A batch normally is one call, and its emissions are moved, not copied. Everything else is rare:
//! a split at a limit or at a suspect, a replay one record per call after a fault, a second call for
//! the records behind one whose effects Kafka would refuse.

use super::checks::{Checks, Refused, check_statuses};
use super::{Applied, Failure, FailureKind, SUSPECTS_MAX, Suspect, TakenAt, Task, TaskError, TaskState};
use crate::config::deployment::Failures;
use crate::effects::{Effects, Emissions, Fault, Status, Writes};
use crate::record::{Batch, Offset};

impl Task {
    /// Runs a batch of one of the task's inputs. Records below the task's position are ignored, and
    /// so is everything given to a halted task. After an error nothing of the batch's last call is in
    /// the overlay, but earlier calls may be: drop the task or close it.
    pub fn apply(&mut self, batch: Batch, taken: TakenAt) -> Result<Applied, TaskError> {
        let next = self.next(batch.input).ok_or(TaskError::Misuse("the task has no such input"))?;
        let mut applied = Applied::default();
        let len = batch.len();
        let mut at = len;
        if self.is_running() {
            at = batch.offsets.partition_point(|&offset| offset < 0 || (offset as u64) < next.0);
        }
        while at < len && self.is_running() {
            let allowance = usize::try_from(self.allowance()).unwrap_or(usize::MAX);
            if allowance == 0 {
                self.gate();
                break;
            }
            let to = self.stretch(&batch, at).min(at.saturating_add(allowance));
            if (at, to) == (0, len) {
                self.run(&batch, taken, &mut applied)?;
            } else {
                self.run(&batch.slice(at..to), taken, &mut applied)?;
            }
            at = to;
        }
        applied.ignored = len - applied.ok - applied.failed;
        Ok(applied)
    }

    /// The end of the records from `at` that may share a call: within the limits of a call, and a
    /// suspect alone.
    fn stretch(&self, batch: &Batch, at: usize) -> usize {
        let is_whole = at == 0 && batch.len() <= self.config.call_records_max;
        if is_whole && batch.bytes() <= self.config.call_bytes_max && self.suspects.is_empty() {
            return batch.len();
        }
        let is_suspect = |row: usize| self.suspected(batch.input, batch.offsets[row]).is_some();
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
        while to < batch.len() && to - at < self.config.call_records_max && !is_suspect(to) {
            sum += bytes(to);
            if sum > self.config.call_bytes_max {
                break;
            }
            to += 1;
        }
        to
    }

    /// Runs records that may share a call.
    fn run(&mut self, batch: &Batch, taken: TakenAt, applied: &mut Applied) -> Result<(), TaskError> {
        if batch.len() == 1 && batch.bytes() > self.config.call_bytes_max {
            let reason =
                format!("a record of {} bytes, a call takes {}", batch.bytes(), self.config.call_bytes_max);
            self.fail(batch, 0, (FailureKind::Limit, reason), taken, applied);
            return Ok(());
        }
        if let Some(Suspect { refused: Some(reason), .. }) = self.suspected(batch.input, batch.offsets[0])
            && batch.len() == 1
        {
            let reason = reason.clone();
            self.fail(batch, 0, (FailureKind::Limit, reason), taken, applied);
            return Ok(());
        }
        let effects = match self.call(batch)? {
            Ok(effects) => effects,
            Err(fault) if batch.len() == 1 => {
                self.suspect(batch.input, batch.offsets[0]);
                self.fail(batch, 0, sort(fault), taken, applied);
                return Ok(());
            }
            Err(_) => {
                // Which record is at fault shows only one by one.
                self.stats.replays += 1;
                for row in 0..batch.len() {
                    self.run(&batch.slice(row..row + 1), taken, applied)?;
                    if !self.is_running() {
                        break;
                    }
                }
                return Ok(());
            }
        };
        let Some(refused) = self.settle(batch, effects, taken, applied)? else {
            return Ok(());
        };
        // Later records of that call may have seen the refused record's writes, and so may the instance.
        self.handler.renew().map_err(TaskError::Handler)?;
        let behind = refused.row + 1;
        self.fail(batch, refused.row, (FailureKind::Limit, refused.reason), taken, applied);
        if self.is_running() && behind < batch.len() {
            self.run(&batch.slice(behind..batch.len()), taken, applied)?;
        }
        Ok(())
    }

    /// One call. The outer error is trouble that is no record's fault.
    fn call(&mut self, batch: &Batch) -> Result<Result<Effects, Fault>, TaskError> {
        let order = self.config.order();
        let prefetched = self.view.prefetch(&batch.keys)?;
        self.stats.calls += 1;
        let fault = match self.handler.handle(batch, order, prefetched, &mut self.view) {
            Ok(effects) => match check_statuses(&effects.statuses, order, batch.len()) {
                Ok(()) => return Ok(Ok(effects)),
                Err(lie) => {
                    self.handler.renew().map_err(TaskError::Handler)?;
                    Fault::Trap(lie)
                }
            },
            Err(fault) => fault,
        };
        self.view.take_scratch();
        match fault {
            Fault::Store(reason) => Err(TaskError::State(reason)),
            fault => Ok(Err(fault)),
        }
    }

    /// Takes over the effects of the `ok` records and applies the policy to the failed ones. Answers
    /// the record that Kafka would refuse, if any; it and what is behind it have not been taken over.
    fn settle(
        &mut self,
        batch: &Batch,
        effects: Effects,
        taken: TakenAt,
        applied: &mut Applied,
    ) -> Result<Option<Refused>, TaskError> {
        let scratch = self.view.take_scratch();
        let refused = self.checks(taken).first_refused(&effects, &scratch);
        let statuses = &effects.statuses;
        if refused.is_none() && statuses.iter().all(|&status| status == Status::Ok) {
            self.absorb(&scratch, &effects.writes, |_| true)?;
            self.emit(effects.emissions);
            applied.ok += batch.len();
            self.pass(batch, batch.len(), taken);
            return Ok(None);
        }
        let rows = refused.as_ref().map_or(batch.len(), |refused| refused.row);
        let keep =
            |source: u32| (source as usize) < rows && statuses.get(source as usize) == Some(&Status::Ok);
        self.absorb(&scratch, &effects.writes, keep)?;
        self.emit(filter(&effects.emissions, keep));
        let reasons: Vec<_> = effects.reasons.iter().collect();
        for (row, &status) in statuses.iter().enumerate().take(rows) {
            let kind = match status {
                Status::Ok => {
                    applied.ok += 1;
                    continue;
                }
                Status::Transient => FailureKind::Transient,
                // With the orders that a task asks for, a blocked record follows one that halted it.
                Status::Permanent | Status::Blocked => FailureKind::Permanent,
            };
            let reason = reasons.get(row).copied().flatten().unwrap_or(b"no reason given");
            self.fail(batch, row, (kind, String::from_utf8_lossy(reason).into_owned()), taken, applied);
            if !self.is_running() {
                return Ok(None);
            }
        }
        self.pass(batch, rows, taken);
        Ok(refused)
    }

    /// The failure policy. There is no other place where it is decided.
    fn fail(
        &mut self,
        batch: &Batch,
        row: usize,
        (kind, reason): (FailureKind, String),
        taken: TakenAt,
        applied: &mut Applied,
    ) {
        let topic = self.config.inputs.get(usize::from(batch.input)).map(|input| input.topic.clone());
        let failure = Failure {
            kind,
            topic: topic.unwrap_or_default(),
            partition: batch.partition,
            offset: Offset(batch.offsets[row] as u64),
            reason,
        };
        applied.failed += 1;
        applied.failure.get_or_insert_with(|| failure.clone());
        self.stats.failures[kind as usize] += 1;
        kind.counter(&self.metrics).add(1);
        match self.config.failures {
            Failures::Halt => {
                self.pass(batch, row, taken);
                // The record itself may lie beyond a gap.
                self.advance(batch.input, failure.offset);
                self.state = TaskState::Halted(failure);
            }
            Failures::Skip => {
                self.metrics.skipped.add(1);
                self.pass(batch, row + 1, taken);
            }
        }
    }

    /// Moves the position past the first `rows` records of `batch`, unless it is there already.
    fn pass(&mut self, batch: &Batch, rows: usize, taken: TakenAt) {
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

    fn emit(&mut self, emissions: Emissions) {
        if emissions.is_empty() {
            return;
        }
        self.stats.emissions += emissions.len() as u64;
        // 32: what an emission costs beside its bytes (source, output, partition, timestamp, lengths).
        self.emission_bytes += emissions.bytes() + emissions.len() * 32;
        self.emissions.push(emissions);
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

    fn suspected(&self, input: u16, offset: i64) -> Option<&Suspect> {
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

/// Sorts the fault of a call with one record.
fn sort(fault: Fault) -> (FailureKind, String) {
    let reason = fault.to_string();
    match fault {
        Fault::Timeout { .. } => (FailureKind::Timeout, reason),
        Fault::Limit(_) => (FailureKind::Limit, reason),
        Fault::Trap(_) | Fault::Store(_) => (FailureKind::Trap, reason),
    }
}

/// Copies the emissions whose source `keep` accepts.
fn filter(emissions: &Emissions, keep: impl Fn(u32) -> bool) -> Emissions {
    let mut kept = Emissions::default();
    let columns = emissions.keys.iter().zip(emissions.values.iter()).zip(emissions.headers.iter());
    for (row, ((key, value), headers)) in columns.enumerate() {
        if !keep(emissions.sources[row]) {
            continue;
        }
        kept.sources.push(emissions.sources[row]);
        kept.outputs.push(emissions.outputs[row]);
        kept.partitions.push(emissions.partitions[row]);
        kept.timestamps.push(emissions.timestamps[row]);
        kept.keys.push(key);
        kept.values.push(value);
        kept.headers.push(headers);
    }
    kept
}
