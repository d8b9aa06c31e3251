//! Its place in the group: rebalances, asked and answered, and the membership.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::slot::Slot;
use super::{Consumer, ConsumerSpec, Question};
use crate::config::node::GroupProtocol;
use crate::faults::{Bug, planted};
use crate::kafka::config::KafkaConfig;
use crate::kafka::fetch::Fetcher;
use crate::kafka::ffi::{Change, KafkaError};
use crate::kafka::source_error;
use crate::ports::{Group, Membership, Source, SourceError, Taken, TaskOffset};
use crate::record::{InputPartition, Offset};

/// How long a member that is to be evicted may take to be let in.
const EVICT_WAIT: Duration = Duration::from_secs(60);
/// It is asked this often whether anybody still wants that.
const EVICT_LOOK: Duration = Duration::from_millis(200);

/// Takes a static member out of its group whose process is gone: joins in its name, and leaves. Its
/// partitions would otherwise wait for its session to end. Ends early once `given_up` is true.
pub fn evict(config: &KafkaConfig, spec: ConsumerSpec, given_up: &AtomicBool) -> Result<(), SourceError> {
    let mut consumer = Consumer::new(config, spec)?;
    let deadline = Instant::now() + EVICT_WAIT;
    while !consumer.await_membership(EVICT_LOOK)? {
        if given_up.load(Ordering::Relaxed) || Instant::now() >= deadline {
            return Err(SourceError::Unavailable("a member that is no more could not be evicted".to_owned()));
        }
    }
    consumer.leave();
    Ok(())
}

impl Consumer {
    /// Waits until the group has let this member in; false if it has not in that time.
    pub(super) fn await_membership(&mut self, wait: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + wait;
        while !self.membership.is_valid() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.take(left, &mut Vec::new())?;
        }
        Ok(true)
    }

    /// Answers what the group still asks, because librdkafka cannot close while it waits for that.
    pub(super) fn settle_question(&mut self) {
        self.serve_rebalances(&mut Vec::new());
        let _ = match self.question {
            Some(Question::Assign(_)) => self.assign(&[]),
            Some(Question::Unassign(_)) => self.unassign(&[]),
            None => Ok(()),
        };
        self.drop_slots(|_| true);
    }

    /// What a consumer does for its group after every poll.
    pub(super) fn serve_group(&mut self, out: &mut Vec<Taken>) -> Result<(), SourceError> {
        if self.raw.client().shared().panicked() || self.fetcher.as_ref().is_some_and(Fetcher::has_panicked) {
            return Err(SourceError::Fatal("a callback or a thread of the consumer panicked".to_owned()));
        }
        self.serve_rebalances(out);
        self.send_offsets();
        Ok(())
    }

    /// Hands out what the rebalance callback left, and stops what is going away.
    pub(super) fn serve_rebalances(&mut self, out: &mut Vec<Taken>) {
        for rebalance in self.raw.rebalances() {
            self.membership = rebalance.membership;
            let partitions: Vec<_> = rebalance
                .partitions
                .iter()
                .filter_map(|(topic, partition)| self.input_partition(topic, *partition))
                .collect();
            if rebalance.change == Change::Assign {
                self.question = Some(Question::Assign(partitions.clone()));
                out.push(Taken::Assigned(partitions));
                continue;
            }
            for &id in &partitions {
                if let Some(index) = self.slot(id) {
                    self.stop_slot(index);
                }
            }
            if rebalance.change == Change::Lost {
                self.offsets.forget(&partitions);
            }
            self.question = Some(Question::Unassign(partitions.clone()));
            out.push(match rebalance.change {
                Change::Lost => Taken::Lost(partitions),
                _ => Taken::Revoked(partitions),
            });
        }
        // KIP-848 moves the member epoch without a rebalance event. It may be read again only here:
        // on the consuming thread, after a poll that served no event, while nothing is lost.
        if self.spec.protocol == GroupProtocol::Consumer
            && self.question.is_none()
            && !self.raw.assignment_lost()
        {
            let now = self.raw.membership();
            if now.generation > 0 {
                self.membership = now;
            }
        }
    }
}

impl Group for Consumer {
    fn membership(&self) -> Membership {
        if planted(Bug::MembershipLate) {
            return self.raw.membership();
        }
        self.membership.clone()
    }

    /// Answers [`Taken::Assigned`], as a whole: a partition of the event that is not listed is
    /// accepted too, at the log's start, and stays stopped.
    fn assign(&mut self, partitions: &[(InputPartition, Offset)]) -> Result<(), SourceError> {
        let Some(Question::Assign(asked)) = &self.question else {
            return Err(SourceError::Unavailable("no assignment waits for an answer".to_owned()));
        };
        let at = |id: InputPartition| {
            partitions.iter().find(|(listed, _)| *listed == id).map_or(0, |(_, offset)| offset.0 as i64)
        };
        let added: Vec<_> = asked.iter().map(|&id| (id, at(id))).collect();
        let list = self.list(added.iter().copied());
        let told = |error: KafkaError| source_error("cannot accept an assignment", &error);
        if self.is_cooperative() {
            self.raw.incremental_assign(&list).map_err(told)?;
        } else {
            self.raw.assign(Some(&list)).map_err(told)?;
            self.drop_slots(|_| true);
            self.raw.discard_all();
        }
        self.question = None;
        for (id, next) in added {
            self.slots.push(Slot::new(id, next));
        }
        self.raw.pause(&list).map_err(told)
    }

    /// Answers [`Taken::Revoked`] and [`Taken::Lost`], as a whole. Without such an event it only
    /// stops the partitions.
    fn unassign(&mut self, partitions: &[InputPartition]) -> Result<(), SourceError> {
        let told = |error: KafkaError| source_error("cannot give partitions back", &error);
        let Some(Question::Unassign(asked)) = &self.question else {
            return partitions.iter().try_for_each(|&id| self.stop(id));
        };
        let gone: Vec<_> = asked.clone();
        self.settle_offsets();
        self.offsets.forget(&gone);
        if self.is_cooperative() {
            self.raw.incremental_unassign(&self.list(gone.iter().map(|&id| (id, 0)))).map_err(told)?;
        } else {
            self.raw.assign(None).map_err(told)?;
        }
        self.question = None;
        let eager = !self.is_cooperative();
        self.drop_slots(|id| eager || gone.contains(&id));
        Ok(())
    }

    fn commit(&mut self, offsets: &[TaskOffset]) {
        self.offsets.add(offsets);
        self.send_offsets();
    }
}
