//! The thread that finds out who leads partitions: runs while a leader is missing, or a look is due, and asks whoever
//! answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::Telling;
use super::cluster::Leader;
use super::shared::Shared;
use crate::config::jitter::spread;
use crate::kafka::wire::{Access, Address, Connection, ConnectionError, METADATA_VERSION, metadata};
use crate::kafka::{BELIEVED_AFTER, chance};
use crate::record::InputPartition;

/// Between two questions: doubled from the first to the second, and spread, because a broker that goes is missed by every
/// worker of a fleet at once.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a broker has at first to take a connection, so that one that is gone keeps nobody from asking the next.
const HASTE: Duration = Duration::from_secs(3);

/// To brokers that have been asked, as long as there is something to ask.
type Connections = HashMap<Address, Connection>;

pub(super) fn run(shared: &Arc<Shared>) {
    let mut hasty = shared.access.clone();
    hasty.connect_timeout = hasty.connect_timeout.min(HASTE);
    let mut connections = Connections::new();
    let mut pause = PAUSE.0;
    // Nobody has answered, and it was no accident.
    let mut lasting_since: Option<Instant> = None;
    let (mut silence, mut vacancy) = (Telling::default(), Telling::default());
    while let Some((topics, addresses)) = shared.look() {
        let access = if pause == PAUSE.0 { &hasty } else { &shared.access };
        let names: Vec<&str> =
            topics.iter().map(|input| shared.topics[usize::from(*input)].as_str()).collect();
        if pause == PAUSE.1 && vacancy.is_due() {
            tracing::warn!(
                topics = names.join(", "),
                "some partition has no leader that is reached, or only one that is older than what was read, or of another topic of \
                 the name; asking again"
            );
        }
        match ask(shared, access, &mut connections, (&names[..], addresses)) {
            Ok(response) => {
                lasting_since = None;
                let (addresses, leaders) = read(shared, response);
                shared.found(addresses, leaders);
            }
            Err(errors) => {
                let lasts = errors.iter().any(ConnectionError::lasts);
                lasting_since = lasts.then(|| lasting_since.unwrap_or_else(Instant::now));
                if lasting_since.is_some_and(|since| since.elapsed() >= BELIEVED_AFTER) {
                    shared.unanswered(&errors);
                }
                if silence.is_due() {
                    let errors: Vec<_> = errors.iter().map(ConnectionError::to_string).collect();
                    tracing::warn!(errors = errors.join("; "), "no broker says who leads what; trying again");
                }
            }
        }
        shared.pause(spread(pause, chance()));
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Asks one broker after the other until one answers.
fn ask(
    shared: &Shared,
    access: &Access,
    connections: &mut Connections,
    (topics, addresses): (&[&str], Vec<Address>),
) -> Result<MetadataResponse, Vec<ConnectionError>> {
    let named = |name: &&str| TopicName(StrBytes::from_string((*name).to_owned()));
    let request = metadata::request(topics.iter().map(named));
    let mut errors = Vec::new();
    let mut left = addresses.len();
    for address in addresses {
        left -= 1;
        let is_valid = |there: &Connection| !there.is_expired();
        let there = match connections.remove(&address).filter(is_valid) {
            Some(there) => Ok(there),
            None => Connection::open(access, &address),
        };
        // The last one has its time; none before it keeps anybody from asking the next.
        let patience = match left {
            0 => access.request_timeout,
            _ => access.connect_timeout.min(access.request_timeout),
        };
        let answer = there.and_then(|mut there| {
            let response = there.call(&request, METADATA_VERSION, patience)?;
            Ok((there, response))
        });
        match answer {
            Ok((there, response)) => {
                connections.insert(address, there);
                return Ok(response);
            }
            Err(error) => errors.push(error),
        }
        if shared.has_ended() {
            break;
        }
    }
    Err(errors)
}

/// Brokers' addresses, and the leaders of the partitions that have one. What is missing is asked for again. Partitions are
/// numbered without a gap: other numbers are none, or an answer after the other could have more and more kept.
fn read(
    shared: &Shared,
    response: MetadataResponse,
) -> (HashMap<i32, Address>, Vec<(InputPartition, Leader)>) {
    let addresses = metadata::addresses(response.brokers).collect();
    let mut leaders = Vec::new();
    for topic in response.topics {
        let Some(name) = topic.name else { continue };
        let Some(input) = shared.topics.iter().position(|topic| topic.as_str() == name.as_str()) else {
            continue;
        };
        let is_one = |index: i32| usize::try_from(index).is_ok_and(|index| index < topic.partitions.len());
        let is_led = |partition: &&MetadataResponsePartition| {
            partition.leader_id.0 >= 0 && is_one(partition.partition_index)
        };
        for partition in topic.partitions.iter().filter(is_led) {
            let id = InputPartition { input: input as u16, partition: partition.partition_index };
            let (broker, epoch) = (partition.leader_id.0, partition.leader_epoch);
            leaders.push((id, Leader { broker, epoch, topic: topic.topic_id }));
        }
    }
    (addresses, leaders)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::metadata_response::MetadataResponseTopic;

    use super::*;
    use crate::kafka::config::KafkaConfig;

    #[test]
    fn a_number_that_no_partition_can_have_has_no_leader() {
        let config = KafkaConfig::new("localhost:9092");
        let access = Access::new(&config).expect("plain");
        let topics = vec!["words".to_owned()];
        let shared = Shared::new(access, config.fetching(), topics, &[], Box::new(|| {}));
        let partition = |index: i32| {
            MetadataResponsePartition::default().with_partition_index(index).with_leader_id(BrokerId(4))
        };
        let topic = MetadataResponseTopic::default()
            .with_name(Some(TopicName(StrBytes::from_static_str("words"))))
            .with_partitions(Vec::from([-1, 2, 0, i32::MAX].map(partition)));
        let (_, leaders) = read(&shared, MetadataResponse::default().with_topics(vec![topic]));
        let led: Vec<i32> = leaders.iter().map(|(id, _)| id.partition).collect();
        assert_eq!(led, [2, 0]);
    }
}
