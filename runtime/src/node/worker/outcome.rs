//! What a worker does with the outcome of a commit: the whole failure policy of the commit path.

use std::collections::BTreeSet;

use super::{
    BACKOFF_MAX, BACKOFF_MIN, Consumer, Slot, SlotState, Standing, Worker, asks, edits, running, unpark,
};
use crate::config::deployment::Guarantee;
use crate::faults::{Bug, planted};
use crate::node::commit::{Done, Job};
use crate::ports::{CommitError, Membership, SourceError, TaskOffset};
use crate::store::StoreError;
use crate::task::Sealed;
use crate::telemetry::TaskState;

impl<C: Consumer> Worker<C> {
    pub(super) fn serve_outcome(&mut self, done: Done) {
        match done {
            Done::Committed { sealed, took } => {
                // One that begins a revision also looks coordinators up and connects to them: the next will not.
                if !running(&mut self.slots).any(|(_, task)| task.is_adopting()) {
                    self.pace.finished(took);
                }
                self.end_doubt();
                self.metrics.commits.add(1);
                self.metrics.commit_latency.observe(took);
                self.commit_offsets(&sealed);
                for (task, applied) in sealed {
                    self.settle(task, applied);
                }
            }
            Done::Refused { sealed, membership, error: CommitError::Generation(reason) } => {
                self.metrics.commits_refused.add(1);
                self.hold_refused(sealed, membership, &reason);
            }
            Done::Refused { sealed, error, .. } => {
                self.metrics.commits_refused.add(1);
                tracing::warn!(deployment = %self.deployment, worker = self.index, %error, "Publish error: commit refused; looking for the record at fault");
                self.take_back(sealed, &error.to_string());
            }
            Done::Unknown { sealed, reason } => self.recover(sealed, &reason),
            Done::Renewed => {
                self.producer = Standing::Ready;
                self.producer_backoff = BACKOFF_MIN;
                // What commits fail for a new producer does not mend.
                if !self.doubt.is_lasting() {
                    self.board.worker_ready(self.index);
                }
            }
            Done::NotRenewed(error) => self.back_off_producer(&error),
        }
    }

    /// Without a transaction the group's offsets follow once the effects are there, and after the
    /// stores: a store is never behind them.
    fn commit_offsets(&mut self, sealed: &[(Sealed, Result<(), StoreError>)]) {
        let Some(consumer) = self.consumer.as_mut() else { return };
        if self.guarantee != Guarantee::AtLeastOnce && !planted(Bug::OffsetsOutside) {
            return;
        }
        let applied = sealed.iter().filter(|(_, applied)| applied.is_ok());
        let offsets: Vec<TaskOffset> =
            applied.flat_map(|(sealed, _)| sealed.offsets.iter().cloned()).collect();
        consumer.commit(&offsets);
    }

    /// Kafka has it; gives each task its store back.
    fn settle(&mut self, sealed: Sealed, applied: Result<(), StoreError>) {
        let partition = sealed.partition;
        let Some(Slot { state: SlotState::Running(task), metrics, .. }) = self.slots.get_mut(&partition)
        else {
            self.give_back(partition, sealed.into_store());
            return;
        };
        self.metrics.commit_records.add(sealed.records);
        for emissions in &sealed.emissions {
            metrics.records_out.add(emissions.len() as u64);
            metrics.bytes_out.add(emissions.bytes() as u64);
        }
        if applied.is_ok() {
            edits::answer_edits(&mut self.edits, &sealed);
            asks::answer_asks(&mut self.asks, &sealed);
            unpark::answer_unparks(&mut self.unparks, &sealed);
        }
        let adopts = task.is_adopting();
        let committed = match applied {
            Ok(()) => task.committed(sealed).map(|()| (task.rewind(), task.trim())),
            Err(error) => {
                tracing::error!(deployment = %self.deployment, partition, %error, "a commit is in Kafka but not in the store");
                self.park(partition, Some(sealed));
                return;
            }
        };
        let adopts = adopts && !task.is_adopting();
        if adopts {
            self.board.task_running(partition, self.index, task);
        }
        self.board.task_committed(partition, self.index, task);
        self.restorer.committed(partition);
        match committed {
            Ok((rewind, trim)) => {
                if let Some(before) = trim {
                    self.restorer.trim_inbox(partition, before);
                }
                match rewind {
                    None if adopts => self.begin_to_flow(partition),
                    None => {}
                    // Records were held back from this commit: they are read again.
                    Some(positions) => self.start_inputs(partition, &positions),
                }
            }
            Err(error) => self.task_failed(partition, &error),
        }
        // The last rows may be gone with it.
        self.note_outbox(partition);
    }

    /// After a generation refusal the worker serves the rebalance that caused it, then sends the
    /// same commit again for the tasks it has held without interruption. The rebalance may have been
    /// served while the commit was under way; it is then sent again at once.
    fn hold_refused(&mut self, sealed: Vec<Sealed>, refused_as: Membership, reason: &str) {
        tracing::info!(deployment = %self.deployment, worker = self.index, reason, "commit waits for the rebalance");
        self.refused = Some((sealed, refused_as));
    }

    pub(super) fn resend_refused(&mut self) {
        let (Some((_, refused_as)), Some(consumer)) = (&self.refused, &self.consumer) else { return };
        let membership = consumer.membership();
        if self.committer.is_busy() || !membership.is_valid() || membership == *refused_as {
            return;
        }
        if let Some((sealed, _)) = self.refused.take()
            && !sealed.is_empty()
        {
            self.committer.commit(Job { sealed, membership }, self.clock.monotonic());
        }
    }

    /// Of revoked or lost tasks, the refused commit is dropped with everything after it.
    pub(super) fn drop_refused_of(&mut self, partitions: &BTreeSet<i32>) {
        let Some((sealed, membership)) = self.refused.take() else { return };
        let (gone, kept): (Vec<_>, Vec<_>) =
            sealed.into_iter().partition(|sealed| partitions.contains(&sealed.partition));
        self.refused = Some((kept, membership));
        for sealed in gone {
            self.park(sealed.partition, Some(sealed));
        }
    }

    /// A definite refusal of a record: drop the commit and what was built on it, and read the
    /// records again, in ever smaller commits until the one at fault stands alone.
    fn take_back(&mut self, sealed: Vec<Sealed>, reason: &str) {
        let alone = sealed.len() == 1;
        for sealed in sealed {
            let partition = sealed.partition;
            let Some((_, task)) = running(&mut self.slots).find(|(number, _)| *number == partition) else {
                self.give_back(partition, sealed.into_store());
                continue;
            };
            match task.refuse(sealed, reason, alone) {
                Ok(_) if planted(Bug::NoRewind) => {}
                Ok(positions) => {
                    // Whether there is room to park is found out anew.
                    self.board.task_state(partition, self.index, TaskState::Running, "");
                    self.start_inputs(partition, &positions);
                }
                Err(error) => self.task_failed(partition, &error),
            }
        }
    }

    /// Rule P1: the outcome is unknown or another owner exists. Forget everything that is not
    /// committed, make a new producer, recover every task by the one rule. The consumer goes on
    /// being polled meanwhile.
    fn recover(&mut self, sealed: Vec<Sealed>, reason: &str) {
        tracing::warn!(deployment = %self.deployment, worker = self.index, reason, "Publish error: outcome of a commit unknown; recovering");
        for sealed in sealed {
            self.park(sealed.partition, Some(sealed));
        }
        if let Some((sealed, _)) = self.refused.take() {
            for sealed in sealed {
                self.park(sealed.partition, Some(sealed));
            }
        }
        let active: Vec<i32> = running(&mut self.slots).map(|(partition, _)| partition).collect();
        for partition in active {
            self.park(partition, None);
        }
        // A restore that is under way compares with offsets that may be decided only now. It goes on for its store.
        for slot in self.slots.values_mut() {
            if matches!(slot.state, SlotState::Restoring { .. }) {
                slot.state = SlotState::Waiting { store: None };
            }
        }
        self.metrics.commits_unknown.add(1);
        self.metrics.client_restarts.add(1);
        let pause = self.doubt.again(self.clock.monotonic());
        self.producer = self.down_for(pause);
        if self.doubt.is_lasting() {
            self.board.worker_failed(self.index, &format!("commits fail again and again: {reason}"));
        }
    }

    /// A commit was made, or none has failed for long.
    fn end_doubt(&mut self) {
        if self.doubt.end() {
            self.board.worker_ready(self.index);
        }
    }

    fn back_off_producer(&mut self, error: &SourceError) {
        tracing::warn!(deployment = %self.deployment, worker = self.index, %error, backoff_ms = self.producer_backoff.as_millis() as u64, "no producer; Retrying Kafka operation");
        self.board.worker_failed(self.index, &error.to_string());
        self.producer = self.down_for(self.producer_backoff);
        self.producer_backoff = (self.producer_backoff * 2).min(BACKOFF_MAX);
    }

    /// Makes the consumer and the producer that are missing, when their back-off has passed.
    pub(super) fn keep_clients(&mut self) {
        let now = self.clock.monotonic();
        if self.doubt.is_outdated(now) && self.producer == Standing::Ready {
            self.end_doubt();
        }
        if let Standing::Down { until } = self.producer
            && until <= now
            && !self.committer.is_busy()
        {
            self.producer = Standing::Pending;
            self.committer.renew(now);
        }
        if let Standing::Down { until } = self.consumer_standing
            && until <= now
        {
            match (self.consumers)() {
                Ok(consumer) => {
                    self.consumer = Some(consumer);
                    self.consumer_standing = Standing::Ready;
                    self.consumer_backoff = BACKOFF_MIN;
                }
                Err(error) => {
                    tracing::warn!(deployment = %self.deployment, worker = self.index, %error, "no consumer; Retrying Kafka operation");
                    self.consumer_standing = self.down_for(self.consumer_backoff);
                    self.consumer_backoff = (self.consumer_backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }
}
