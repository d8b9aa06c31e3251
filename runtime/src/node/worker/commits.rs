//! When a worker commits, and what goes into a commit. Who carries it out is [`crate::node::commit`]; what its outcome
//! means is [`super::outcome`].

use std::collections::BTreeMap;

use super::{Consumer, Slot, SlotState, Standing, Worker, running};
use crate::faults::{Bug, planted};
use crate::node::commit::Job;
use crate::node::pace::Waiting;

impl<C: Consumer> Worker<C> {
    /// Nothing is under way that a commit would have to wait for.
    pub(super) fn may_commit(&self) -> bool {
        !self.committer.is_busy() && self.refused.is_none() && self.producer == Standing::Ready
    }

    pub(super) fn commit_if_due(&mut self) {
        if !self.may_commit() {
            return;
        }
        let now = self.clock.monotonic();
        // Records wait for it.
        let adopting = running(&mut self.slots).any(|(_, task)| task.is_adopting());
        if adopting || self.pace.is_due(now, waiting(&self.slots), self.dry) {
            self.start_commit();
        }
    }

    /// Seals every task that has something and hands it to the commit thread.
    pub(super) fn start_commit(&mut self) {
        let Some(consumer) = &self.consumer else { return };
        let membership = consumer.membership();
        if !membership.is_valid() && !planted(Bug::CommitLost) {
            return; // Not a member now: a rebalance is on its way and decides.
        }
        let wall_ms = self.clock.wall_ms();
        // A task that looks for the record which the broker refused commits alone.
        let careful = running(&mut self.slots)
            .find(|(_, task)| task.is_careful() && !task.pending().is_empty())
            .map(|(partition, _)| partition);
        let mut sealed = Vec::new();
        let mut failed = Vec::new();
        for (partition, task) in running(&mut self.slots) {
            if careful.is_some_and(|careful| careful != partition) {
                continue;
            }
            match task.seal(wall_ms) {
                Ok(seal) => sealed.extend(seal),
                Err(error) => failed.push((partition, error)),
            }
        }
        if !sealed.is_empty() {
            let now = self.clock.monotonic();
            self.pace.started(now, self.budget.spend(self.seat, now));
            self.committer.commit(Job { sealed, membership }, now);
        }
        for (partition, error) in failed {
            self.task_failed(partition, &error);
        }
    }

    /// Waits for the outcome of the commit in flight, and starts one of everything, if that can be.
    pub(super) fn commit_next(&mut self) {
        self.waits_for_commit();
        if let Some(done) = self.committer.wait() {
            self.serve_outcome(done);
        }
        if self.may_commit() {
            self.start_commit();
        }
    }

    /// Commits everything and waits for the outcome; bounded by the sink's time-outs. What could
    /// not be committed has been dropped or is held as refused.
    pub(super) fn commit_now(&mut self) {
        self.commit_next();
        if let Some(done) = self.committer.wait() {
            self.serve_outcome(done);
        }
    }
}

pub(super) fn waiting(slots: &BTreeMap<i32, Slot>) -> Waiting {
    let mut sum = Waiting::default();
    for slot in slots.values() {
        if let SlotState::Running(task) = &slot.state {
            let pending = task.pending();
            // What is acknowledged is to be deleted as soon as what is handled is to be committed.
            sum.records += pending.records + pending.acknowledged;
            sum.bytes += pending.bytes as u64;
            sum.moved |= pending.moved;
        }
    }
    sum
}
