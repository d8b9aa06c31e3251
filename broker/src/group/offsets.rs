//! Committed offsets of a group, and those that wait for a transaction to be decided.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// One committed offset: the **next** record to read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Next record to read.
    pub offset: i64,
    /// Leader epoch that the client saw, or -1.
    pub leader_epoch: i32,
    /// Whatever the client wants to keep with it.
    pub metadata: String,
    /// When it was committed, ms since 1970.
    pub at_ms: i64,
}

type Key = (String, i32);

#[derive(Debug, Clone)]
struct Slot {
    committed: Committed,
    /// Order of arrival, so that a transaction that ends late does not undo a later commit.
    sequence: u64,
}

/// Offsets of one group.
#[derive(Debug, Default)]
pub struct Offsets {
    slots: BTreeMap<Key, Slot>,
    /// Producer id -> offsets of its open transaction.
    pending: HashMap<i64, BTreeMap<Key, Slot>>,
    sequence: u64,
}

impl Offsets {
    /// Whether there is neither a committed nor a pending offset.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.pending.is_empty()
    }

    /// Stores a committed offset.
    pub fn commit(&mut self, committed: Committed) {
        let (key, slot) = self.slot(committed);
        self.slots.insert(key, slot);
    }

    /// Stores an offset that counts once the producer's transaction commits.
    pub fn commit_pending(&mut self, producer_id: i64, committed: Committed) {
        let (key, slot) = self.slot(committed);
        self.pending.entry(producer_id).or_default().insert(key, slot);
    }

    fn slot(&mut self, committed: Committed) -> (Key, Slot) {
        self.sequence += 1;
        let key = (committed.topic.clone(), committed.partition);
        (key, Slot { committed, sequence: self.sequence })
    }

    /// Whether a producer has offsets that are not decided.
    pub fn has_pending(&self, producer_id: i64) -> bool {
        self.pending.contains_key(&producer_id)
    }

    /// Decides a producer's pending offsets, if there are any.
    pub fn decide(&mut self, producer_id: i64, commit: bool) {
        let pending = self.pending.remove(&producer_id).unwrap_or_default();
        for (key, slot) in pending {
            let newer = self.slots.get(&key).is_none_or(|now| now.sequence < slot.sequence);
            if commit && newer {
                self.slots.insert(key, slot);
            }
        }
    }

    /// The committed offset of a partition.
    pub fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.slots.get(&(topic.to_owned(), partition)).map(|slot| &slot.committed)
    }

    /// Whether an undecided transaction may change the offset of a partition.
    pub fn unstable(&self, topic: &str, partition: i32) -> bool {
        let key = (topic.to_owned(), partition);
        self.pending.values().any(|pending| pending.contains_key(&key))
    }

    /// All committed offsets.
    pub fn iter(&self) -> impl Iterator<Item = &Committed> {
        self.slots.values().map(|slot| &slot.committed)
    }

    /// All pending offsets by producer.
    pub fn pending(&self) -> impl Iterator<Item = (i64, Vec<Committed>)> {
        let values =
            |slots: &BTreeMap<Key, Slot>| slots.values().map(|slot| slot.committed.clone()).collect();
        self.pending.iter().map(move |(producer_id, slots)| (*producer_id, values(slots)))
    }

    /// Deletes a committed offset. Returns whether there was one.
    pub fn delete(&mut self, topic: &str, partition: i32) -> bool {
        self.slots.remove(&(topic.to_owned(), partition)).is_some()
    }

    /// Deletes everything of a topic that no longer exists.
    pub fn delete_topic(&mut self, topic: &str) {
        self.slots.retain(|(name, _), _| name != topic);
        for pending in self.pending.values_mut() {
            pending.retain(|(name, _), _| name != topic);
        }
        self.pending.retain(|_, pending| !pending.is_empty());
    }
}
