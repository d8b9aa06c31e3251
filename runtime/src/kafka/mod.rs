//! Kafka: the only module that names `rdkafka-sys`, and the one that speaks Kafka's protocol.
//!
//! The node's own client reads the records of inputs and of the logs that stores are restored from, and writes what
//! deployments commit. Groups, with the offsets that `at_least_once` commits, the fleet's own topics, mirrors and the command
//! line are librdkafka's; and the rest, too, where the configuration has it so (`kafka.client`).
//!
//! | file | what it is |
//! |---|---|
//! | [`config`] | how to reach the cluster, and the settings that are ours to fix |
//! | [`epochs`] | which leader wrote what of an input, to notice a log that was cut off |
//! | [`consumer`] | one worker's place in its group, and its batches |
//! | `fetch` | the records of those partitions, and of restores, read from brokers by the node itself |
//! | [`sink`] | where commits go: transactional or plain, by either client |
//! | [`produce`] | the node's own producer |
//! | [`recovery`] | committed offsets and changelogs, read back |
//! | [`topic_log`] | a single-partition topic as an append-only log |
//! | [`mirror`] | one topic of any cluster, acknowledged record by record |
//! | [`admin`] | topics, groups, offsets |
//! | [`permissions`] | what the node's principal may do |
//! | [`topic_settings`] | the settings of a topic |
//! | [`probe`] | can the cluster be reached, and if not, why |
//! | [`tools`] | blocking helpers for the command line |
//! | [`peek`] | the age of the record that a partition continues with |
//! | `wire` | the node's own connections to brokers |
//! | [`headers`] | Kafka's own header encoding |
//! | `ffi` | librdkafka behind safe types; all `unsafe` is there |
//!
//! Everything here is synchronous and blocks its caller for a bounded time.

pub mod admin;
pub mod config;
pub mod consumer;
pub mod epochs;
mod fetch;
mod ffi;
mod from_node;
pub mod mirror;
pub mod peek;
pub mod permissions;
pub mod probe;
pub mod produce;
mod reader;
pub mod recovery;
pub mod scan;
pub mod sink;
pub mod tools;
pub mod topic_log;
pub mod topic_settings;
mod wire;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::ports::{SourceError, Stop};
use crate::record::Offset;
use ffi::{Code, KafkaError};

/// A broker's answer about one partition.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Until every broker knows a topic that one of them has answered for.
const KNOWN_WAIT: Duration = Duration::from_secs(5);
/// Until a partition whose leader has died has another one, or the same one again.
const LEADER_WAIT: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// That brokers are of no use for a reason that only a person can mend, such as a password, is believed once nothing else
/// has come of them for so long: one that is just starting, what it asks about passwords, or what stands before it, may
/// refuse somebody for a moment.
const BELIEVED_AFTER: Duration = Duration::from_secs(5);

/// What no other client has at this moment, on this node or another: the nanosecond. No part of a simulated run, in which
/// there is no Kafka.
fn chance() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// A batch of records does not read as it was written; there is nothing to be had of it.
fn is_damage(error: &KafkaError) -> bool {
    error.is_any(&[
        Code::RD_KAFKA_RESP_ERR__BAD_MSG,
        Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION,
        Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED,
        Code::RD_KAFKA_RESP_ERR_INVALID_MSG,
    ])
}

/// Log start and end, as [`Client::watermarks`](ffi::Client::watermarks) tells them, of a partition of a topic that is
/// there.
///
/// librdkafka calls a partition unknown that has no leader at the moment, and does not look again by itself
/// (`rd_kafka_topic_partition_list_query_leaders`). Asking for the metadata is what makes it look, and tells the
/// two apart; that a topic is missing is believed after a while, because a broker that has just come up may not know it.
fn bounds(
    client: &ffi::Client,
    topic: &str,
    partition: i32,
    stop: &Stop,
) -> Result<(Offset, Offset), SourceError> {
    let began = Instant::now();
    loop {
        let error = match client.watermarks(topic, partition, REQUEST_WAIT) {
            Ok((low, high)) => return Ok((Offset(low.max(0) as u64), Offset(high.max(0) as u64))),
            Err(error) => error,
        };
        let is_there = is_electing(&error) || {
            if !admin::is_missing(&error) {
                return Err(source_error(topic, &error));
            }
            let topics = client.metadata(REQUEST_WAIT).map_err(|error| source_error(topic, &error))?;
            topics.iter().any(|(name, count)| name == topic && partition < *count)
        };
        match is_there {
            false if began.elapsed() > KNOWN_WAIT => return Err(source_error(topic, &error)),
            true if began.elapsed() > LEADER_WAIT => {
                return Err(SourceError::Unavailable(format!(
                    "{topic} [{partition}] has no leader: {error}"
                )));
            }
            _ if stop.pause(ASK_EVERY) => {}
            _ => return Err(SourceError::Stopped),
        }
    }
}

/// The broker that was asked does not lead the partition, or not yet.
fn is_electing(error: &KafkaError) -> bool {
    error.is_any(&[
        Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
        Code::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
    ])
}

/// Sorts a client error by what the caller can do about it.
fn source_error(context: &str, error: &KafkaError) -> SourceError {
    use Code as C;
    const REFUSED: &[Code] = &[
        C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        C::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        C::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        C::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        C::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED,
        C::RD_KAFKA_RESP_ERR__AUTHENTICATION,
        C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        C::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
        C::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
        C::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
        C::RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL,
        C::RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT,
        C::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
        C::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET,
        C::RD_KAFKA_RESP_ERR__INVALID_ARG,
        C::RD_KAFKA_RESP_ERR_INVALID_CONFIG,
        C::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
        C::RD_KAFKA_RESP_ERR_INVALID_PARTITIONS,
        C::RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR,
        C::RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION,
    ];
    let text = format!("{context}: {error}");
    if error.fatal || error.is(C::RD_KAFKA_RESP_ERR__FATAL) || error.is(C::RD_KAFKA_RESP_ERR__STATE) {
        SourceError::Fatal(text)
    } else if is_damage(error) || error.is_any(REFUSED) {
        SourceError::Refused(text)
    } else {
        SourceError::Unavailable(text)
    }
}
