//! Offsets on their way to the group, outside a transaction (`at_least_once`): sent without waiting,
//! one request at a time, and again until the group has them or the partition has gone.
//!
//! [`Offsets`] is the bookkeeping; the consumer sends, and hears the answers. Only the latest offset of a
//! partition matters, so a slow coordinator makes requests fewer, not a queue longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Consumer;
use crate::kafka::ffi::KafkaError;
use crate::kafka::ffi::partitions::Partitions;
use crate::ports::TaskOffset;
use crate::record::InputPartition;

/// Between a refusal and the next request.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the coordinator may take to acknowledge offsets before their partitions go.
const OFFSETS_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// To be sent.
    waiting: BTreeMap<InputPartition, TaskOffset>,
    /// In the request that is out.
    sent: BTreeMap<InputPartition, TaskOffset>,
    is_out: bool,
    not_before: Option<Instant>,
}

impl Offsets {
    pub fn add(&mut self, offsets: &[TaskOffset]) {
        self.waiting.extend(offsets.iter().map(|offset| (offset.partition, offset.clone())));
    }

    /// What to send now; the request counts as out until [`Offsets::answered`].
    pub fn take_due(&mut self, now: Instant) -> Option<Vec<TaskOffset>> {
        let is_early = self.not_before.is_some_and(|not_before| now < not_before);
        if self.is_out || self.waiting.is_empty() || is_early {
            return None;
        }
        self.is_out = true;
        self.sent = std::mem::take(&mut self.waiting);
        Some(self.sent.values().cloned().collect())
    }

    /// The request that is out has been answered, or could not be sent.
    pub fn answered(&mut self, taken: bool, now: Instant) {
        self.is_out = false;
        let sent = std::mem::take(&mut self.sent);
        if taken {
            return;
        }
        self.not_before = Some(now + AGAIN);
        for (partition, offset) in sent {
            // A later one has come meanwhile.
            self.waiting.entry(partition).or_insert(offset);
        }
    }

    pub fn forget(&mut self, gone: &[InputPartition]) {
        self.waiting.retain(|partition, _| !gone.contains(partition));
        self.sent.retain(|partition, _| !gone.contains(partition));
    }

    pub fn is_out(&self) -> bool {
        self.is_out
    }

    pub fn is_idle(&self) -> bool {
        !self.is_out && self.waiting.is_empty()
    }
}

impl Consumer {
    /// Hears the answer to the last request and sends what has come since.
    pub(super) fn send_offsets(&mut self) {
        if self.offsets.is_idle() {
            return;
        }
        if let Some(answer) = self.raw.answer(Duration::ZERO) {
            self.heard(answer);
        }
        let Some(due) = self.offsets.take_due(Instant::now()) else { return };
        let mut list = Partitions::with_capacity(due.len());
        for row in due {
            let (topic, offset) = (self.topic(row.partition), row.offset.0 as i64);
            list.add(topic, row.partition.partition, offset, &row.metadata);
            list.set_leader_epoch(self.spec.epochs.before(topic, row.partition.partition, offset));
        }
        if let Err(error) = self.raw.commit(&list) {
            self.heard(Err(error));
        }
    }

    fn heard(&mut self, answer: Result<(), KafkaError>) {
        self.offsets.answered(answer.is_ok(), Instant::now());
        if let Err(error) = answer {
            // An old generation is no defect: the event that explains it is on its way.
            tracing::warn!(group = %self.spec.group, %error, "offsets are not committed yet");
        }
    }

    /// Before partitions go: waits a moment for the offsets that are on their way. What is not
    /// acknowledged is read again by the next owner, which `at_least_once` allows.
    pub(super) fn settle_offsets(&mut self) {
        let deadline = Instant::now() + OFFSETS_WAIT;
        loop {
            self.send_offsets();
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.offsets.is_out() || left.is_zero() {
                return;
            }
            match self.raw.answer(left) {
                Some(answer) => self.heard(answer),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Offset;

    fn offset(partition: i32, offset: u64) -> TaskOffset {
        let partition = InputPartition { input: 0, partition };
        TaskOffset { partition, offset: Offset(offset), metadata: String::new() }
    }

    #[test]
    fn a_refused_offset_is_sent_again_unless_a_later_one_has_come_or_its_partition_has_gone() {
        let now = Instant::now();
        let mut offsets = Offsets::default();
        offsets.add(&[offset(0, 5), offset(1, 5), offset(2, 5)]);
        assert_eq!(offsets.take_due(now).map(|due| due.len()), Some(3));
        offsets.add(&[offset(1, 9)]);
        assert_eq!(offsets.take_due(now), None, "one request at a time");
        offsets.forget(&[offset(2, 0).partition]);
        offsets.answered(false, now);
        assert_eq!(offsets.take_due(now), None, "not at once");
        assert_eq!(offsets.take_due(now + AGAIN), Some(vec![offset(0, 5), offset(1, 9)]));
        offsets.answered(true, now);
        assert!(offsets.is_idle());
    }
}
