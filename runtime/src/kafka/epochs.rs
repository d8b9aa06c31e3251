//! Leader epochs of input partitions: by which a broker can tell that a log was cut off below a position
//! and has grown past it again, with other records (an unclean election; KIP-320).
//!
//! A committed offset carries the epoch of the record before it, and a partition is started with it. The
//! node's own fetcher says it with every fetch (`last_fetched_epoch`, KIP-595), librdkafka asks the broker
//! once where that epoch ended (OffsetForLeaderEpoch); a position beyond that is an error of the partition
//! instead of a silent skip. Without an epoch nothing is noticed.
//!
//! The epoch of a transaction marker may be a later one than that of the record before: with the record's, a
//! marker written after a change of the leader looked like a log that was cut off. The node's own fetcher
//! knows it from the marker's batch. librdkafka does not tell it (`rd_kafka_q_serve_rkmessages` reads it from
//! a message without a topic), so where it fetches a position behind a marker has none.
//!
//! Kept by group: each reads a topic at its own pace, and what one has just been told of its committed offset
//! says nothing about where another stands.
//!
//! One value is shared by the clients of a node: the consumer learns epochs from what it takes, the sink
//! and the consumer commit them, recovery reads them back. Locked when an epoch changes and once a
//! commit, never for a record.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Changes of the leader that are kept for a partition. A position below the oldest is started unchecked.
const CHANGES_MAX: usize = 16;

/// What the clients of one node know of leader epochs.
#[derive(Debug, Clone, Default)]
pub struct NodeEpochs(Arc<Mutex<HashMap<String, Epochs>>>);

impl NodeEpochs {
    /// What the members of `group` on this node share.
    pub fn of(&self, group: &str) -> Epochs {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.entry(group.to_owned()).or_default().clone()
    }
}

/// What the members of one group know.
#[derive(Debug, Clone, Default)]
pub struct Epochs(Arc<Mutex<Known>>);

/// By topic and partition: epochs that rise, each with the first offset that is known to be of it; -1 = from there on
/// it is not known.
type Known = HashMap<(String, i32), VecDeque<(i64, i32)>>;

impl Epochs {
    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic leaves no half-made entry.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record, or transaction marker, at `offset` is of `epoch`; below 0 = it does not say.
    pub(super) fn saw(&self, topic: &str, partition: i32, offset: i64, epoch: i32) {
        if offset < 0 {
            return;
        }
        let epoch = epoch.max(-1);
        let mut known = self.known();
        let changes = known.entry((topic.to_owned(), partition)).or_default();
        let highest = changes.iter().map(|&(_, epoch)| epoch).max().unwrap_or(-1);
        match changes.back() {
            Some(&(_, last)) if last == epoch => return,
            // Another topic of the same name: it begins again from zero.
            _ if epoch >= 0 && highest > epoch => changes.clear(),
            _ => {}
        }
        changes.retain(|&(from, _)| from < offset);
        changes.push_back((offset, epoch));
        if changes.len() > CHANGES_MAX {
            changes.pop_front();
        }
    }

    /// The group's committed offset says that the record before it is of `epoch`; below 0 = it does not say.
    /// Replaces what was known: somebody else may have read on meanwhile.
    pub(super) fn committed(&self, topic: &str, partition: i32, offset: i64, epoch: i32) {
        self.known().remove(&(topic.to_owned(), partition));
        self.saw(topic, partition, offset - 1, epoch);
    }

    /// Epoch of the record before `offset`; -1 = not known.
    pub(super) fn before(&self, topic: &str, partition: i32, offset: i64) -> i32 {
        let known = self.known();
        let Some(changes) = known.get(&(topic.to_owned(), partition)) else { return -1 };
        changes.iter().rev().find(|&&(from, _)| from < offset).map_or(-1, |&(_, epoch)| epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_has_the_epoch_of_the_record_before_it() {
        let epochs = Epochs::default();
        assert_eq!(epochs.before("words", 0, 7), -1, "nothing is known");
        epochs.committed("words", 0, 7, 2);
        epochs.saw("words", 0, 9, 3);
        epochs.saw("words", 0, 11, 3);
        let before = |offset| epochs.before("words", 0, offset);
        assert_eq!([6, 7, 9, 10, 20].map(before), [-1, 2, 2, 3, 3]);
        assert_eq!(epochs.before("words", 1, 9), -1, "another partition");
    }

    /// F09: the broker came back, ended an open transaction in its next epoch, and the node was started again.
    #[test]
    fn a_position_behind_a_marker_has_no_epoch_and_the_next_record_has_its_own() {
        let epochs = Epochs::default();
        epochs.saw("entries", 3, 33, 0);
        epochs.saw("entries", 3, 44, -1);
        let before = |offset| epochs.before("entries", 3, offset);
        assert_eq!([34, 44, 45].map(before), [0, 0, -1]);
        epochs.saw("entries", 3, 45, 1);
        assert_eq!([44, 45, 46].map(before), [0, -1, 1]);
    }

    #[test]
    fn a_group_does_not_know_what_another_was_told() {
        let node = NodeEpochs::default();
        node.of("ahead").saw("words", 0, 40, 3);
        node.of("behind").committed("words", 0, 7, 1);
        assert_eq!(node.of("ahead").before("words", 0, 41), 3);
        assert_eq!(node.of("behind").before("words", 0, 41), 1);
    }

    #[test]
    fn what_is_known_is_replaced_by_a_committed_offset_and_by_a_topic_made_again() {
        let epochs = Epochs::default();
        epochs.saw("words", 0, 0, 4);
        epochs.committed("words", 0, 30, -1);
        assert_eq!(epochs.before("words", 0, 30), -1, "the offset does not say");
        epochs.saw("words", 0, 40, 4);
        epochs.saw("words", 0, 2, 0);
        assert_eq!([3, 50].map(|offset| epochs.before("words", 0, offset)), [0, 0]);
    }

    #[test]
    fn the_oldest_changes_are_forgotten() {
        let epochs = Epochs::default();
        (0..100).for_each(|n| epochs.saw("words", 0, i64::from(n) * 10, n));
        assert_eq!(epochs.before("words", 0, 830), -1);
        assert_eq!(epochs.before("words", 0, 841), 84);
        assert_eq!(epochs.before("words", 0, 2_000), 99);
    }
}
