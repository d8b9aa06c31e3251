//! The thread of one broker: fetches what it leads of what runs, one request at a time, until it leads nothing more.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::chunk::{Aborted, Chunk};
use super::shared::Shared;
use super::state::{Answer, Plan, Refusal, Wanted};
use crate::kafka::wire::{Address, Connection, ConnectionError, FETCH_BY_ID_VERSION, FETCH_VERSION};

/// A request that is no part of a fetch session (KIP-227).
const NO_SESSION: (i32, i32) = (0, -1);

pub(super) fn run(shared: &Arc<Shared>, broker: i32) {
    if let Err(error) = serve(shared, broker) {
        shared.lost(broker, &error);
    }
}

fn serve(shared: &Arc<Shared>, broker: i32) -> Result<(), ConnectionError> {
    // Once for each connection.
    while let Some(address) = shared.address(broker) {
        let mut connection = Connection::open(&shared.access, &address)?;
        let unusable =
            |reason| ConnectionError::Broken { address: address.clone(), what: "Fetch".to_owned(), reason };
        shared.connected(broker, &address, connection.socket().map_err(unusable)?);
        loop {
            let Some(plan) = shared.plan(broker) else { return Ok(()) };
            if connection.is_expired() {
                break;
            }
            let patience = plan.wait + shared.access.request_timeout;
            let version = version(&connection, &plan);
            match connection.call(&request(shared, &plan), version, patience) {
                Ok(response) => {
                    check(&response, &address)?;
                    shared.answered(broker, sort(shared, plan, response, version));
                }
                // The next plan has what has begun meanwhile.
                Err(_) if shared.was_interrupted(broker) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// By topic ids wherever broker and cluster have them: by its name a topic that was made again between two fetches would be
/// read on with.
fn version(connection: &Connection, plan: &Plan) -> i16 {
    let has_ids = plan.wanted.iter().all(|wanted| !wanted.topic.is_nil());
    if has_ids && connection.fetches_by_id() { FETCH_BY_ID_VERSION } else { FETCH_VERSION }
}

fn request(shared: &Shared, plan: &Plan) -> FetchRequest {
    let fetching = &shared.fetching;
    // In the order of the plan, as far as one that goes by topics can be.
    let mut topics: Vec<((u16, Uuid), Vec<FetchPartition>)> = Vec::new();
    for wanted in &plan.wanted {
        let partition = FetchPartition::default()
            .with_partition(wanted.partition.partition)
            .with_current_leader_epoch(wanted.leader_epoch)
            .with_fetch_offset(wanted.next)
            .with_last_fetched_epoch(wanted.epoch)
            .with_partition_max_bytes(fetching.partition_bytes);
        let topic = (wanted.partition.input, wanted.topic);
        match topics.iter_mut().find(|(known, _)| *known == topic) {
            Some((_, partitions)) => partitions.push(partition),
            None => topics.push((topic, vec![partition])),
        }
    }
    let named = |((input, id), partitions): ((u16, Uuid), Vec<FetchPartition>)| {
        let name = StrBytes::from_string(shared.topics[usize::from(input)].clone());
        FetchTopic::default().with_topic(TopicName(name)).with_topic_id(id).with_partitions(partitions)
    };
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(i32::try_from(plan.wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(fetching.min_bytes)
        .with_max_bytes(plan.bytes)
        .with_isolation_level(i8::from(fetching.committed_only))
        .with_session_id(NO_SESSION.0)
        .with_session_epoch(NO_SESSION.1)
        .with_topics(topics.into_iter().map(named).collect())
}

/// An error of the request as a whole.
fn check(response: &FetchResponse, address: &Address) -> Result<(), ConnectionError> {
    match response.error_code {
        0 => Ok(()),
        code => Err(ConnectionError::Malformed {
            address: address.clone(),
            what: "Fetch".to_owned(),
            reason: describe(code),
        }),
    }
}

/// What came back of each partition that was asked for in that version; one that the broker left out has nothing.
fn sort(shared: &Shared, plan: Plan, response: FetchResponse, version: i16) -> Vec<(Wanted, Answer)> {
    let mut answers = Vec::with_capacity(plan.wanted.len());
    // What comes later in the answer then waits for another one, in which it comes first.
    let mut most = usize::try_from(plan.bytes).unwrap_or(0).saturating_mul(shared.fetching.unpacks);
    most = most.max(shared.fetching.queue_bytes);
    let (mut sent, mut held) = (0, 0);
    let name = |wanted: &Wanted| shared.topics[usize::from(wanted.partition.input)].as_str();
    for topic in response.responses {
        let is_of = |wanted: &Wanted| match version {
            FETCH_BY_ID_VERSION => wanted.topic == topic.topic_id,
            _ => name(wanted) == topic.topic.as_str(),
        };
        for data in topic.partitions {
            sent += data.records.as_ref().map_or(0, Bytes::len);
            let is_asked =
                |wanted: &&Wanted| wanted.partition.partition == data.partition_index && is_of(wanted);
            let Some(asked) = plan.wanted.iter().find(is_asked) else { continue };
            let code = data.error_code;
            let answer = answer(asked, data, most);
            if matches!(answer, Answer::Again { leads: true }) && shared.is_refusal_told() {
                let (topic, partition) = (name(asked), asked.partition.partition);
                tracing::warn!(topic, partition, error = describe(code), "a fetch was refused; trying again");
            }
            if let Answer::Records { chunk, .. } = &answer {
                held += chunk.bytes();
                most = most.saturating_sub(chunk.bytes());
            }
            answers.push((asked.clone(), answer));
        }
    }
    // Little that is a part of much would keep all of it: of what was aborted, or is not asked for any more.
    if held < sent / 2 {
        for (_, answer) in &mut answers {
            if let Answer::Records { chunk, .. } = answer {
                chunk.detach();
            }
        }
    }
    answers
}

/// `most` = what its records may take, unpacked.
fn answer(asked: &Wanted, data: PartitionData, most: usize) -> Answer {
    use ResponseError as E;
    match ResponseError::try_from_code(data.error_code) {
        None if data.diverging_epoch.epoch >= 0 => Answer::Refused(Refusal::OutOfRange(format!(
            "the log was cut off at offset {} (of epoch {}), and what was written since is not what was read",
            data.diverging_epoch.end_offset, data.diverging_epoch.epoch
        ))),
        None => records(asked, data, most),
        Some(E::OffsetOutOfRange) => Answer::Refused(Refusal::OutOfRange(describe(data.error_code))),
        Some(E::CorruptMessage) => Answer::Refused(Refusal::Damaged(describe(data.error_code))),
        Some(E::TopicAuthorizationFailed | E::UnsupportedCompressionType) => {
            Answer::Refused(Refusal::Other(describe(data.error_code)))
        }
        Some(
            E::NotLeaderOrFollower
            | E::LeaderNotAvailable
            | E::ReplicaNotAvailable
            | E::UnknownTopicOrPartition
            | E::UnknownTopicId
            | E::InconsistentTopicId
            | E::FencedLeaderEpoch
            | E::UnknownLeaderEpoch
            | E::KafkaStorageError
            | E::OffsetNotAvailable,
        ) => Answer::Again { leads: false },
        Some(_) => Answer::Again { leads: true },
    }
}

fn records(asked: &Wanted, data: PartitionData, most: usize) -> Answer {
    let (end, stable) = (data.high_watermark, data.last_stable_offset);
    let records = data.records.unwrap_or_default();
    if records.is_empty() || most == 0 {
        return Answer::Nothing { end, stable };
    }
    let aborted = data.aborted_transactions.unwrap_or_default().into_iter();
    let aborted = aborted
        .map(|aborted| Aborted { producer_id: aborted.producer_id.0, first_offset: aborted.first_offset });
    let (chunk, damage) = Chunk::read(records, asked.next, aborted.collect(), most);
    Answer::Records { chunk, refusal: damage.as_ref().map(Refusal::damaged) }
}

/// A broker's error by its name.
fn describe(code: i16) -> String {
    match ResponseError::try_from_code(code) {
        Some(error) => format!("the broker says {error:?}"),
        None => format!("the broker says error {code}"),
    }
}
