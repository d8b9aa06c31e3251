//! The end of a transaction: markers in its partitions, decisions on its offsets.
//!
//! With `Config::marker_delay` they land one after the other, as they may in a cluster; otherwise
//! all at once. A restart in between finds the decided state and writes all markers again, which
//! readers do not notice: a marker without an open transaction means nothing.

use std::io;

use uuid::Uuid;

use super::time::Timer;
use super::{Core, Now};
use crate::journal::Entry;
use crate::txn::Transaction;

/// Pause before a marker, or a decision on offsets, that could not be written, for want of space perhaps, is tried again.
const MARKER_RETRY_MS: u64 = 1000;

/// What a decided transaction still has to reach.
#[derive(Debug, Clone)]
pub struct Remaining {
    partitions: Vec<(Uuid, i32)>,
    groups: Vec<String>,
}

impl Core {
    /// Records a decision and begins to write its markers.
    pub(super) fn decide(
        &mut self,
        id: &str,
        decided: Transaction,
        now: Now,
    ) -> Result<(), kafka_protocol::ResponseError> {
        self.record(&Entry::Transaction { id: id.to_owned(), state: decided.clone() })?;
        self.begin_markers(id, &decided);
        self.transactions.insert(id.to_owned(), decided);
        self.write_markers(id, now);
        Ok(())
    }

    /// Notes what has to be written for a transaction that is decided already.
    pub(super) fn begin_markers(&mut self, id: &str, decided: &Transaction) {
        let partitions = decided.partitions.iter().rev().copied().collect();
        let groups = decided.groups.iter().rev().cloned().collect();
        self.remaining.insert(id.to_owned(), Remaining { partitions, groups });
    }

    /// Writes the markers that are due; the last one completes the transaction.
    pub(super) fn write_markers(&mut self, id: &str, now: Now) {
        let delay = self.config.marker_delay.as_millis() as u64;
        loop {
            let Some(transaction) = self.transactions.get(id).cloned() else { return };
            let Some(commit) = transaction.state.preparing() else { return };
            let next = match self.remaining.get_mut(id) {
                Some(remaining) => (remaining.partitions.pop(), remaining.groups.last().cloned()),
                None => return,
            };
            match next {
                (Some(partition), _) => {
                    if let Err(error) = self.mark(partition, &transaction, commit, now) {
                        tracing::error!(%error, transactional_id = %id, "cannot write a marker, will try again");
                        return self.mark_later(id, partition, now);
                    }
                }
                (None, Some(group)) => {
                    if self.decide_offsets(&group, transaction.producer_id, commit).is_err() {
                        self.timers.set(now.mono + MARKER_RETRY_MS, Timer::Markers(id.to_owned()));
                        return;
                    }
                    if let Some(remaining) = self.remaining.get_mut(id) {
                        remaining.groups.pop();
                    }
                }
                (None, None) => return self.complete(id, &transaction, now),
            }
            let more =
                self.remaining.get(id).is_some_and(|r| !(r.partitions.is_empty() && r.groups.is_empty()));
            if more && delay > 0 {
                self.timers.set_after(now, delay, Timer::Markers(id.to_owned()));
                return;
            }
        }
    }

    fn mark(
        &mut self,
        (topic, partition): (Uuid, i32),
        transaction: &Transaction,
        commit: bool,
        now: Now,
    ) -> io::Result<()> {
        // A topic deleted meanwhile needs no marker.
        let Some((log, settings)) = self.topics.log_mut(topic, partition) else { return Ok(()) };
        log.append_marker((transaction.producer_id, transaction.epoch), commit, settings, now.wall)?;
        self.wake(topic, partition);
        Ok(())
    }

    /// The decision stands, so the marker must get there in the end.
    fn mark_later(&mut self, id: &str, partition: (Uuid, i32), now: Now) {
        if let Some(remaining) = self.remaining.get_mut(id) {
            remaining.partitions.push(partition);
        }
        self.timers.set(now.mono + MARKER_RETRY_MS, Timer::Markers(id.to_owned()));
    }

    /// Err if the journal does not take it. It has to, before the transaction is complete: a later start would find the
    /// offsets undecided, and the producer's next transaction would decide them its way.
    fn decide_offsets(
        &mut self,
        group_id: &str,
        producer_id: i64,
        commit: bool,
    ) -> Result<(), kafka_protocol::ResponseError> {
        if !self.groups.get(group_id).is_some_and(|group| group.offsets.has_pending(producer_id)) {
            return Ok(());
        }
        self.record(&Entry::OffsetsDecided { group: group_id.to_owned(), producer_id, commit })?;
        if let Some(group) = self.groups.get_mut(group_id) {
            group.offsets.decide(producer_id, commit);
        }
        Ok(())
    }

    fn complete(&mut self, id: &str, transaction: &Transaction, now: Now) {
        let completed = transaction.completed(now.wall);
        // If this entry is lost, the decided state makes the next start write the markers again.
        let _ = self.record(&Entry::Transaction { id: id.to_owned(), state: completed.clone() });
        self.transactions.insert(id.to_owned(), completed);
        self.remaining.remove(id);
    }

    /// Aborts transactions that have been open for too long and fences their producers.
    pub(super) fn abort_timed_out(&mut self, now: Now) {
        let interval = self.config.transaction_abort_interval.as_millis() as u64;
        self.timers.set(now.mono + interval.max(1), Timer::AbortScan);
        let late = self.transactions.iter().filter(|(_, transaction)| transaction.timed_out(now.wall));
        let late: Vec<(String, Transaction)> = late.map(|(id, t)| (id.clone(), t.clone())).collect();
        for (id, transaction) in late {
            tracing::info!(transactional_id = %id, "transaction timed out and is aborted");
            // A failure is logged and the next scan tries again.
            let _ = self.decide(&id, transaction.fenced(now.wall).prepared(false, now.wall), now);
        }
    }
}
