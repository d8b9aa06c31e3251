//! What a worker does when the group gives and takes partitions, and when a task must stop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Consumer, Slot, SlotState, Standing, Worker};
use crate::faults::{Bug, CrashPoint, crash_point, planted};
use crate::node::restore::{Outcome, RestoreRequest};
use crate::ports::{Interest, SourceError};
use crate::record::{InputPartition, Offset};
use crate::store::{Store, StoreError};
use crate::task::{Sealed, TaskError};
use crate::telemetry::TaskState;

/// A rebalance of the classic protocol takes every partition away and gives most of them back at once. For as long as this
/// a restore goes on without its partition: ended each time, one that takes longer than rebalances are apart would never
/// come to its end where the changelog is old, because what it has read is too old to go on from.
const AWAY_MAX: Duration = Duration::from_secs(5);

impl<C: Consumer> Worker<C> {
    /// Accepts partitions, paused; the restore says where they begin.
    pub(super) fn assigned(&mut self, partitions: &[InputPartition]) {
        self.metrics.rebalances_assigned.add(1);
        self.board.rebalanced();
        tracing::info!(deployment = %self.deployment, worker = self.index, partitions = %list(partitions), "assigned");
        for partition in partitions {
            let slot = self.slots.entry(partition.partition).or_insert_with(|| Slot {
                held: BTreeSet::new(),
                flowing: false,
                state: SlotState::Waiting { store: None },
                interest: Interest::default(),
                own_calls: Duration::ZERO,
                metrics: self.board.metrics(partition.partition),
            });
            slot.held.insert(partition.input);
            if let Some((interest, _)) = self.away.remove(&partition.partition) {
                slot.interest = interest;
            }
        }
        // It is a member, whatever its consumer's predecessor had failed for.
        if self.producer == Standing::Ready {
            self.board.worker_ready(self.index);
        }
        // The offset is a stand-in: nothing flows before `start`, which seeks.
        let offsets: Vec<_> = partitions.iter().map(|&partition| (partition, Offset(0))).collect();
        if let Some(consumer) = self.consumer.as_mut()
            && let Err(error) = consumer.assign(&offsets)
        {
            self.lose_consumer(&error);
        }
    }

    /// Finishes the commit in flight, commits the overlay or drops it, closes the stores, and only
    /// then lets the partitions go.
    pub(super) fn revoked(&mut self, partitions: &[InputPartition]) {
        self.metrics.rebalances_revoked.add(1);
        tracing::info!(deployment = %self.deployment, worker = self.index, partitions = %list(partitions), "revoked");
        self.doubt_restores(partitions);
        self.settle_deliveries(partitions);
        self.commit_now();
        self.forget(partitions);
        crash_point(CrashPoint::InRevocation);
        if let Some(consumer) = self.consumer.as_mut()
            && let Err(error) = consumer.unassign(partitions)
        {
            self.lose_consumer(&error);
        }
    }

    /// They are another worker's already: nothing of them may be committed.
    pub(super) fn lost(&mut self, partitions: &[InputPartition]) {
        self.metrics.rebalances_lost.add(1);
        tracing::warn!(deployment = %self.deployment, worker = self.index, partitions = %list(partitions), "lost");
        self.doubt_restores(partitions);
        self.finish_in_flight();
        if planted(Bug::CommitLost) {
            self.commit_now();
        }
        self.forget(partitions);
        if let Some(consumer) = self.consumer.as_mut()
            && let Err(error) = consumer.unassign(partitions)
        {
            self.lose_consumer(&error);
        }
    }

    /// Of partitions that go, and may come back: see [`AWAY_MAX`].
    fn doubt_restores(&mut self, partitions: &[InputPartition]) {
        let until = self.clock.monotonic() + AWAY_MAX;
        let numbers = partitions.iter().map(|partition| partition.partition);
        put_away(&mut self.away, &mut self.slots, numbers, until);
    }

    /// Ends the restores of partitions that have not come back.
    pub(super) fn end_doubted_restores(&mut self) {
        if !self.away.is_empty() {
            let now = self.clock.monotonic();
            self.away.retain(|_, (_, until)| now < *until);
        }
    }

    /// Nobody here wants any task any more.
    fn end_restores(&mut self) {
        self.away.clear();
        self.slots.values_mut().for_each(|slot| slot.interest = Interest::default());
    }

    /// Waits for the outcome of the commit in flight without starting another.
    fn finish_in_flight(&mut self) {
        if let Some(done) = self.committer.wait() {
            self.serve_outcome(done);
        }
    }

    fn forget(&mut self, partitions: &[InputPartition]) {
        let numbers: BTreeSet<i32> = partitions.iter().map(|partition| partition.partition).collect();
        self.drop_refused_of(&numbers);
        for number in numbers {
            let gone = partitions.iter().filter(|p| p.partition == number).map(|p| p.input);
            let Some(slot) = self.slots.get_mut(&number) else { continue };
            for input in gone {
                slot.held.remove(&input);
            }
            if slot.held.is_empty() {
                self.release(number);
            } else {
                // A task needs its partition of every input; what is left of this one waits, paused.
                self.park(number, None);
            }
        }
    }

    /// Closes what a slot holds and removes it.
    pub(super) fn release(&mut self, partition: i32) {
        self.forget_rest(partition);
        if let Some(slot) = self.slots.remove(&partition) {
            if let Some(store) = into_store(slot.state, None) {
                self.restorer.release(partition, store);
            }
            self.board.gone(partition, self.index);
        }
    }

    /// Takes a task out of service until a restore brings it back: stops its inputs, drops what is
    /// not committed, keeps its store open. `sealed` is the task's commit that is out, if one is.
    pub(super) fn park(&mut self, partition: i32, sealed: Option<Sealed>) {
        let Some(slot) = self.slots.get_mut(&partition) else {
            self.give_back(partition, sealed.and_then(Sealed::into_store));
            return;
        };
        let before = std::mem::replace(&mut slot.state, SlotState::Waiting { store: None });
        slot.state = SlotState::Waiting { store: into_store(before, sealed) };
        let held: Vec<u16> = slot.held.iter().copied().collect();
        self.stop_inputs(partition, &held);
        self.board.task_state(partition, self.index, TaskState::Restoring, "");
    }

    /// A store that comes back from a commit whose task no longer runs.
    pub(super) fn give_back(&mut self, partition: i32, store: Option<Store>) {
        let Some(store) = store else { return };
        match self.slots.get_mut(&partition).map(|slot| &mut slot.state) {
            Some(SlotState::Waiting { store: place } | SlotState::Halted { store: place }) => {
                *place = Some(store)
            }
            _ => self.restorer.release(partition, store),
        }
    }

    pub(super) fn stop_inputs(&mut self, partition: i32, inputs: &[u16]) {
        self.forget_rest(partition);
        if let Some(slot) = self.slots.get_mut(&partition) {
            slot.flowing = false;
        }
        let Some(consumer) = self.consumer.as_mut() else { return };
        for &input in inputs {
            if let Err(error) = consumer.stop(InputPartition { input, partition }) {
                // Records that still arrive are not of a running task, so they are dropped.
                tracing::debug!(deployment = %self.deployment, partition, %error, "cannot pause");
            }
        }
    }

    /// Stops one task for a person to look at; everything else goes on.
    pub(super) fn halt(&mut self, partition: i32, reason: String) {
        tracing::error!(deployment = %self.deployment, partition, reason, "halted");
        // What came before the failure is good work: commit it, so that the position names the record.
        self.commit_now();
        let Some(slot) = self.slots.get_mut(&partition) else { return };
        let before = std::mem::replace(&mut slot.state, SlotState::Waiting { store: None });
        slot.state = SlotState::Halted { store: into_store(before, None) };
        let held: Vec<u16> = slot.held.iter().copied().collect();
        self.stop_inputs(partition, &held);
        self.board.task_state(partition, self.index, TaskState::Halted, &reason);
    }

    /// Sorts what went wrong in a task, and was no record's fault, by what to do about it.
    pub(super) fn task_failed(&mut self, partition: i32, error: &TaskError) {
        match error {
            TaskError::Interrupted => self.stalled = true,
            TaskError::Store(StoreError::Corrupt(_)) | TaskError::State(_) => {
                self.rebuild(partition, &error.to_string())
            }
            TaskError::Handler(_) => {
                self.trial.unfit(format!("task {partition} halted: {error}"));
                self.halt(partition, error.to_string());
            }
            TaskError::Store(_) | TaskError::Misuse(_) => self.halt(partition, error.to_string()),
        }
    }

    /// The local store cannot be trusted: delete it and restore it from the changelog.
    pub(super) fn rebuild(&mut self, partition: i32, reason: &str) {
        tracing::error!(deployment = %self.deployment, partition, reason, "store failed; rebuilding it from the changelog");
        self.finish_in_flight();
        if let Some(slot) = self.slots.get(&partition) {
            slot.metrics.rebuilds.add(1);
        }
        self.park(partition, None);
        if let Some(Slot { state: SlotState::Waiting { store }, .. }) = self.slots.get_mut(&partition)
            && let Some(store) = store.take()
        {
            self.restorer.destroy(partition, store);
        }
    }

    /// Starts a restore of every slot that is complete, once there is a producer: making one has
    /// fenced our own former transactions, which comes before the committed offsets are fetched.
    pub(super) fn begin_restores(&mut self) {
        if self.producer != Standing::Ready || self.consumer.is_none() {
            return;
        }
        let now = self.clock.monotonic();
        for (&partition, slot) in &mut self.slots {
            if slot.held.len() < usize::from(self.inputs) {
                continue;
            }
            if let SlotState::Waiting { store } = &mut slot.state {
                let ticket = self.board.assigned(partition, self.index, self.revision);
                let (store, stop) = (store.take(), slot.interest.stop());
                let request = RestoreRequest { partition, ticket, store, stop };
                slot.state = SlotState::Restoring { ticket, since: now };
                self.restorer.begin(request, self.verdicts.clone());
            }
        }
    }

    pub(super) fn serve_verdicts(&mut self) {
        while let Some(verdict) = self.verdicts.take() {
            let partition = verdict.partition;
            let awaited = matches!(
                self.slots.get(&partition),
                Some(Slot { state: SlotState::Restoring { ticket, .. }, .. }) if *ticket == verdict.ticket
            );
            if !awaited {
                // The partition has moved meanwhile.
                if let Some(store) = verdict.outcome.into_store() {
                    self.restorer.release(partition, store);
                }
                continue;
            }
            match verdict.outcome {
                Outcome::Start(task) => self.start_task(partition, task),
                Outcome::Halt { reason, store } => {
                    self.set_state(partition, SlotState::Halted { store });
                    self.board.task_state(partition, self.index, TaskState::Halted, &reason);
                    tracing::error!(deployment = %self.deployment, partition, reason, "halted");
                }
                Outcome::Again { store } => self.set_state(partition, SlotState::Waiting { store }),
            }
        }
    }

    fn start_task(&mut self, partition: i32, task: Box<crate::task::Task>) {
        let positions = super::positions(&task);
        let is_beyond = |first: &[Offset]| positions.iter().zip(first).any(|((_, next), first)| next > first);
        if task.first_offsets().is_some_and(is_beyond) {
            self.trial.was_used();
        }
        // One that has yet to adopt its revision runs from that commit on.
        if !task.is_adopting() {
            self.board.task_running(partition, self.index, &task);
        }
        self.set_state(partition, SlotState::Running(task));
        self.remember_deliveries(partition);
        self.note_outbox(partition);
        self.start_inputs(partition, &positions);
    }

    fn set_state(&mut self, partition: i32, state: SlotState) {
        if let Some(slot) = self.slots.get_mut(&partition) {
            slot.state = state;
        }
    }

    /// Seeks the inputs of a task and lets them flow; those of one that is adopting its revision wait.
    pub(super) fn start_inputs(&mut self, partition: i32, positions: &[(InputPartition, Offset)]) {
        self.forget_rest(partition);
        match self.slots.get_mut(&partition) {
            Some(Slot { state: SlotState::Running(task), flowing, .. }) => {
                *flowing = !task.is_adopting();
                if task.is_adopting() {
                    return;
                }
            }
            _ => return,
        }
        let Some(consumer) = self.consumer.as_mut() else { return };
        for &(input, offset) in positions {
            match consumer.start(input, offset) {
                Ok(()) => {}
                // A rebalance waits for its answer, or Kafka for its return: begin again after it.
                Err(SourceError::Unavailable(reason)) => {
                    tracing::debug!(deployment = %self.deployment, partition, reason, "cannot start yet");
                    self.park(partition, None);
                    return;
                }
                Err(error) => {
                    self.lose_consumer(&error);
                    return;
                }
            }
        }
    }

    /// Leaves the group as a stop does and joins it with a new consumer.
    pub(super) fn rejoin(&mut self) {
        self.doubt_restores(&self.everything());
        self.leave_everything(true);
        self.consumer_standing = Standing::Down { until: self.clock.monotonic() };
    }

    /// Gives up everything, and every restore with it. `leave`: the group is told.
    pub(super) fn give_up_everything(&mut self, leave: bool) {
        self.end_restores();
        self.leave_everything(leave);
    }

    /// Commits, ends the consumer and closes what every slot holds.
    fn leave_everything(&mut self, leave: bool) {
        let all = self.everything();
        self.settle_deliveries(&all);
        self.commit_now();
        if let Some(done) = self.committer.wait() {
            self.serve_outcome(done);
        }
        let partitions: BTreeSet<i32> = self.slots.keys().copied().collect();
        // A refused commit holds stores; they are given back with the others.
        self.drop_refused_of(&partitions);
        if let Some(consumer) = self.consumer.take()
            && leave
        {
            consumer.leave();
        }
        for partition in partitions {
            self.release(partition);
        }
    }

    /// A partition of every slot.
    fn everything(&self) -> Vec<InputPartition> {
        self.slots.keys().map(|&partition| InputPartition { input: 0, partition }).collect()
    }

    /// The consumer cannot be used any more: everything it held is as good as lost.
    pub(super) fn lose_consumer(&mut self, error: &SourceError) {
        tracing::error!(deployment = %self.deployment, worker = self.index, %error, "the consumer failed; making a new one");
        self.doubt_restores(&self.everything());
        self.finish_in_flight();
        if let Some((sealed, _)) = self.refused.take() {
            for sealed in sealed {
                self.park(sealed.partition, Some(sealed));
            }
        }
        self.consumer = None;
        self.metrics.client_restarts.add(1);
        let partitions: Vec<i32> = self.slots.keys().copied().collect();
        for partition in partitions {
            self.release(partition);
        }
        self.consumer_standing = self.down_for(self.consumer_backoff);
        self.consumer_backoff = (self.consumer_backoff * 2).min(super::BACKOFF_MAX);
        self.board.worker_failed(self.index, &error.to_string());
    }
}

/// A task goes with its partition of every input, one after the other: what went with the first is what its restore has.
fn put_away(
    away: &mut BTreeMap<i32, (Interest, Duration)>,
    slots: &mut BTreeMap<i32, Slot>,
    numbers: impl Iterator<Item = i32>,
    until: Duration,
) {
    for number in numbers {
        let Some(slot) = slots.get_mut(&number) else { continue };
        let known = away.entry(number).or_insert_with(|| (std::mem::take(&mut slot.interest), until));
        known.1 = until;
    }
}

fn into_store(state: SlotState, sealed: Option<Sealed>) -> Option<Store> {
    match state {
        SlotState::Running(task) => task.close(sealed).store,
        SlotState::Waiting { store } | SlotState::Halted { store } => {
            store.or(sealed.and_then(Sealed::into_store))
        }
        SlotState::Restoring { .. } => sealed.and_then(Sealed::into_store),
    }
}

fn list(partitions: &[InputPartition]) -> String {
    partitions.iter().map(|p| p.partition.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    #[test]
    fn a_restore_goes_on_for_a_while_without_its_partition_of_every_input() {
        let slot = Slot {
            held: BTreeSet::from([0, 1]),
            flowing: false,
            state: SlotState::Waiting { store: None },
            interest: Interest::default(),
            own_calls: Duration::ZERO,
            metrics: Telemetry::new().task("d", 0),
        };
        let stop = slot.interest.stop();
        let (mut away, mut slots) = (BTreeMap::new(), BTreeMap::from([(0, slot)]));
        put_away(&mut away, &mut slots, [0, 0].into_iter(), AWAY_MAX);
        assert!(!stop.is_raised());
        drop(away);
        assert!(stop.is_raised(), "and no longer");
    }
}
