//! What is known of the cluster: who leads what, where brokers listen, and who of them is in trouble.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Telling;
use crate::kafka::BELIEVED_AFTER;
use crate::kafka::wire::Address;
use crate::record::InputPartition;

/// Without any cause the cluster is asked who leads what as often as Java's consumer does (`metadata.max.age.ms`): a broker
/// that has lost touch with the others answers on, with nothing new.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(300);
/// For how long a broker that could not be reached is left alone: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Who leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leader {
    pub broker: i32,
    pub epoch: i32,
    /// Which topic of that name; nil = the cluster does not say.
    pub topic: Uuid,
}

/// A broker that could not be reached, or made no sense.
struct Trouble {
    until: Instant,
    pause: Duration,
    telling: Telling,
    /// Nothing else has come of it since then but what only a person can mend.
    lasting_since: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Cluster {
    /// Outlives runs, until a broker or newer metadata say otherwise.
    leaders: HashMap<InputPartition, Leader>,
    /// Ids of topics, as far as they are known; no other of the name is read.
    topics: HashMap<u16, Uuid>,
    /// Epoch of who has answered for a partition last. Metadata that are older are not believed.
    served: HashMap<InputPartition, i32>,
    addresses: HashMap<i32, Address>,
    troubled: HashMap<i32, Trouble>,
    /// When it was asked last, and how often.
    looked: Option<Instant>,
    looks: usize,
}

impl Cluster {
    /// As [`State::of`](super::state::State::of).
    pub fn of(topics: &[Uuid]) -> Cluster {
        let known = (0..).zip(topics.iter().copied()).filter(|(_, id)| !id.is_nil());
        Cluster { topics: known.collect(), ..Cluster::default() }
    }

    pub fn leader(&self, partition: &InputPartition) -> Option<&Leader> {
        self.leaders.get(partition)
    }

    pub fn address(&self, broker: i32) -> Option<&Address> {
        self.addresses.get(&broker)
    }

    /// This one does not lead it, says who was asked.
    pub fn forget(&mut self, partition: &InputPartition) {
        self.leaders.remove(partition);
    }

    /// This one has answered for it.
    pub fn served(&mut self, partition: InputPartition, leader: Leader) {
        self.served.insert(partition, leader.epoch);
        if !leader.topic.is_nil() {
            self.topics.entry(partition.input).or_insert(leader.topic);
        }
    }

    /// Forgets leaders that nobody would fetch from: the cluster does not know them any more, and nobody `is_connected`.
    pub fn keep_leaders(&mut self, is_connected: impl Fn(i32) -> bool) {
        let Cluster { leaders, addresses, .. } = self;
        leaders.retain(|_, leader| is_connected(leader.broker) || addresses.contains_key(&leader.broker));
    }

    /// A broker has answered as it should: that it takes a connection is not enough.
    pub fn answered(&mut self, broker: i32) {
        self.troubled.remove(&broker);
    }

    /// Only a person can mend why nothing is fetched from it.
    pub fn is_barred(&self, broker: i32, now: Instant) -> bool {
        let since = self.troubled.get(&broker).and_then(|trouble| trouble.lasting_since);
        since.is_some_and(|since| now.saturating_duration_since(since) >= BELIEVED_AFTER)
    }

    /// A broker cannot be reached, or makes no sense, for a reason that `lasts` or not: what it led is looked for again. True
    /// if a person should hear of it.
    pub fn lost(&mut self, broker: i32, lasts: bool, now: Instant) -> bool {
        self.leaders.retain(|_, leader| leader.broker != broker);
        let before = self.troubled.remove(&broker);
        let pause = before.as_ref().map_or(PAUSE.0, |trouble| (trouble.pause * 2).min(PAUSE.1));
        let before_lasted = before.as_ref().and_then(|trouble| trouble.lasting_since);
        let lasting_since = lasts.then(|| before_lasted.unwrap_or(now));
        let mut telling = before.map(|trouble| trouble.telling).unwrap_or_default();
        let is_told = telling.is_due();
        self.troubled.insert(broker, Trouble { until: now + pause, pause, telling, lasting_since });
        is_told
    }

    /// It was asked at all, and not in that time.
    pub fn is_look_due(&self, every: Duration, now: Instant) -> bool {
        self.looked.is_some_and(|looked| now.saturating_duration_since(looked) >= every)
    }

    /// It is asked now: the addresses that are known, another one first each time, because one may know less than the others;
    /// last those that are in trouble, or `is_late`.
    pub fn look(&mut self, now: Instant, is_late: impl Fn(i32) -> bool) -> Vec<Address> {
        self.looked = Some(now);
        self.looks = self.looks.wrapping_add(1);
        let mut known: Vec<(i32, &Address)> =
            self.addresses.iter().map(|(id, address)| (*id, address)).collect();
        known.sort_by_key(|(id, _)| *id);
        let first = self.looks % known.len().max(1);
        known.rotate_left(first);
        known.sort_by_key(|(id, _)| self.troubled.contains_key(id) || is_late(*id));
        known.into_iter().map(|(_, address)| address.clone()).collect()
    }

    /// What it said. Answers the partitions whose leader is news.
    pub fn found(
        &mut self,
        addresses: HashMap<i32, Address>,
        leaders: Vec<(InputPartition, Leader)>,
        now: Instant,
    ) -> Vec<InputPartition> {
        self.addresses = addresses;
        let mut moved = Vec::new();
        for (partition, leader) in leaders {
            let is_troubled = self.troubled.get(&leader.broker).is_some_and(|trouble| trouble.until > now);
            let is_there = self.addresses.contains_key(&leader.broker) && !is_troubled;
            let is_news = self.leaders.get(&partition).is_none_or(|known| leader.epoch > known.epoch);
            if is_there && is_news && self.is_believed(partition, leader) {
                self.leaders.insert(partition, leader);
                moved.push(partition);
            }
        }
        moved
    }

    /// False for a leader that is older than one that has answered, and for that of another topic of the same name: a topic
    /// that was made again is not read on with, and `node::inputs` says what to do about it.
    fn is_believed(&self, partition: InputPartition, leader: Leader) -> bool {
        let is_same = |topic: &Uuid| *topic == leader.topic || leader.topic.is_nil();
        let is_as_new = |served: &i32| leader.epoch < 0 || leader.epoch >= *served;
        self.topics.get(&partition.input).is_none_or(is_same)
            && self.served.get(&partition).is_none_or(is_as_new)
    }
}
