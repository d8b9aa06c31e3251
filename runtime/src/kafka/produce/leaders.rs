//! What the cluster says of the producer's topics: how many partitions they have, who leads them, and where that is.
//!
//! Pure. What an answer leaves out stays as it was, but for leaders: one that is not named is not known.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::batches::Place;
use crate::kafka::wire::{Address, metadata};

struct Topic {
    name: TopicName,
    /// Of each partition the broker's id; `None` = there is no leader, or it is not known.
    leaders: Vec<Option<i32>>,
    problem: Option<ResponseError>,
}

pub(super) struct Leaders {
    topics: Vec<Topic>,
    addresses: BTreeMap<i32, Address>,
}

impl Leaders {
    pub fn new(names: Vec<String>) -> Leaders {
        let topic =
            |name| Topic { name: TopicName(StrBytes::from_string(name)), leaders: Vec::new(), problem: None };
        Leaders { topics: names.into_iter().map(topic).collect(), addresses: BTreeMap::new() }
    }

    pub fn request(&self) -> MetadataRequest {
        metadata::request(self.topics.iter().map(|topic| topic.name.clone()))
    }

    pub fn read(&mut self, response: MetadataResponse) {
        let known: BTreeMap<i32, Address> = metadata::addresses(response.brokers).collect();
        // A broker that has just started may not know the others.
        if !known.is_empty() {
            self.addresses = known;
        }
        for answer in response.topics {
            let Some(name) = answer.name else { continue };
            let Some(topic) = self.topics.iter_mut().find(|topic| topic.name == name) else { continue };
            topic.problem = ResponseError::try_from_code(answer.error_code);
            if topic.problem.is_some() {
                topic.leaders.iter_mut().for_each(|leader| *leader = None);
                continue;
            }
            topic.leaders = vec![None; answer.partitions.len()];
            for partition in answer.partitions {
                let index = usize::try_from(partition.partition_index).ok();
                if let Some(leader) = index.and_then(|index| topic.leaders.get_mut(index)) {
                    *leader = (partition.leader_id.0 >= 0).then_some(partition.leader_id.0);
                }
            }
        }
    }

    /// 0 = not known.
    pub fn partitions(&self, topic: usize) -> usize {
        self.topics.get(topic).map_or(0, |topic| topic.leaders.len())
    }

    /// Why a topic is not known.
    pub fn problem(&self, topic: usize) -> Option<ResponseError> {
        self.topics.get(topic).and_then(|topic| topic.problem)
    }

    pub fn leader(&self, place: Place) -> Option<i32> {
        *self.topics.get(place.topic)?.leaders.get(place.partition)?
    }

    pub fn name(&self, topic: usize) -> TopicName {
        self.topics.get(topic).map(|topic| topic.name.clone()).unwrap_or_default()
    }

    pub fn topic(&self, name: &TopicName) -> Option<usize> {
        self.topics.iter().position(|topic| topic.name == *name)
    }

    pub fn address(&self, broker: i32) -> Option<&Address> {
        self.addresses.get(&broker)
    }

    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.values()
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };

    use super::*;

    fn named(name: &str) -> TopicName {
        TopicName(StrBytes::from_string(name.to_owned()))
    }

    fn topic(name: &str, leaders: &[(i32, i32)]) -> MetadataResponseTopic {
        let partition = |&(index, leader): &(i32, i32)| {
            MetadataResponsePartition::default().with_partition_index(index).with_leader_id(BrokerId(leader))
        };
        MetadataResponseTopic::default()
            .with_name(Some(named(name)))
            .with_partitions(leaders.iter().map(partition).collect())
    }

    fn answer(topics: Vec<MetadataResponseTopic>) -> MetadataResponse {
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(4))
            .with_host(StrBytes::from_static_str("broker"))
            .with_port(9092);
        MetadataResponse::default().with_brokers(vec![broker]).with_topics(topics)
    }

    fn leaders(leaders: &Leaders) -> Vec<Option<i32>> {
        (0..leaders.partitions(1)).map(|partition| leaders.leader(Place { topic: 1, partition })).collect()
    }

    #[test]
    fn leaders_are_found_in_whatever_order_they_are_told() {
        let mut known = Leaders::new(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(known.partitions(1), 0);
        known.read(answer(vec![topic("x", &[(0, 9)]), topic("b", &[(2, 4), (0, 4), (1, -1)])]));
        assert_eq!(leaders(&known), [Some(4), None, Some(4)]);
        assert_eq!(known.address(4).map(|address| address.port), Some(9092));
        assert_eq!((known.topic(&named("b")), known.topic(&named("x"))), (Some(1), None));
    }

    #[test]
    fn an_answer_that_makes_no_sense_points_nowhere() {
        let mut known = Leaders::new(vec!["a".to_owned(), "b".to_owned()]);
        known.read(answer(vec![topic("b", &[(-1, 4), (i32::MAX, 4), (1, 4)])]));
        assert_eq!(leaders(&known), [None, Some(4), None]);
        assert_eq!(known.leader(Place { topic: 7, partition: 0 }), None);
    }

    #[test]
    fn a_topic_that_is_missing_for_a_moment_keeps_its_partitions_and_loses_its_leaders() {
        let mut known = Leaders::new(vec!["a".to_owned(), "b".to_owned()]);
        known.read(answer(vec![topic("b", &[(0, 4), (1, 4)])]));
        let missing = topic("b", &[]).with_error_code(ResponseError::UnknownTopicOrPartition.code());
        known.read(MetadataResponse::default().with_topics(vec![missing]));
        assert_eq!(leaders(&known), [None, None]);
        assert_eq!(known.problem(1), Some(ResponseError::UnknownTopicOrPartition));
        assert!(known.address(4).is_some(), "an answer without brokers says nothing of them");
    }
}
