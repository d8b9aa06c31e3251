//! The thread that finds out who leads partitions: runs while a leader is missing, and asks whoever answers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::shared::Shared;
use super::state::Leader;
use crate::kafka::wire::{Address, Connection, ConnectionError, METADATA_VERSION};
use crate::record::InputPartition;

/// Between two questions: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

pub(super) fn run(shared: &Arc<Shared>) {
    let mut pause = PAUSE.0;
    let mut said = None;
    while let Some(topics) = shared.leaderless() {
        match ask(shared, &topics) {
            Ok(response) => {
                let (addresses, leaders) = read(shared, response);
                shared.found(addresses, leaders);
            }
            Err(errors) => {
                let errors: Vec<_> = errors.iter().map(ConnectionError::to_string).collect();
                let errors = errors.join("; ");
                // Every worker asks every second: the same reason is said once.
                if said.as_ref() != Some(&errors) {
                    tracing::warn!(errors, "no broker says who leads what; trying again");
                    said = Some(errors);
                }
            }
        }
        shared.pause(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Asks one broker after the other until one answers.
fn ask(shared: &Shared, topics: &BTreeSet<u16>) -> Result<MetadataResponse, Vec<ConnectionError>> {
    let named = |input: &u16| {
        let name = StrBytes::from_string(shared.topics[usize::from(*input)].clone());
        MetadataRequestTopic::default().with_name(Some(TopicName(name)))
    };
    let request = MetadataRequest::default()
        .with_topics(Some(topics.iter().map(named).collect()))
        .with_allow_auto_topic_creation(false);
    let mut errors = Vec::new();
    for address in &shared.addresses() {
        let answer = Connection::open(&shared.access, address).and_then(|mut connection| {
            connection.call(&request, METADATA_VERSION, shared.access.request_timeout)
        });
        match answer {
            Ok(response) => return Ok(response),
            Err(error) => errors.push(error),
        }
    }
    Err(errors)
}

/// Brokers' addresses, and the leaders of the partitions that have one. What is missing is asked for again.
fn read(
    shared: &Shared,
    response: MetadataResponse,
) -> (HashMap<i32, Address>, Vec<(InputPartition, Leader)>) {
    let mut addresses = HashMap::new();
    for broker in response.brokers {
        if let Ok(port) = u16::try_from(broker.port) {
            addresses.insert(broker.node_id.0, Address { host: broker.host.to_string(), port });
        }
    }
    let mut leaders = Vec::new();
    for topic in response.topics {
        let Some(name) = topic.name else { continue };
        let Some(input) = shared.topics.iter().position(|topic| topic.as_str() == name.as_str()) else {
            continue;
        };
        for partition in topic.partitions.iter().filter(|partition| partition.leader_id.0 >= 0) {
            let id = InputPartition { input: input as u16, partition: partition.partition_index };
            leaders.push((id, Leader { broker: partition.leader_id.0, epoch: partition.leader_epoch }));
        }
    }
    (addresses, leaders)
}
