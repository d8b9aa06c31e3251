//! What a Kafka broker must do for tidemill, as one suite for two brokers.
//!
//! `TIDEMILL_KAFKA=embedded` (the default) runs it against the embedded broker in this process,
//! `TIDEMILL_KAFKA=apache` against Apache Kafka. A test that passes on one and fails on the other
//! is a bug of the embedded broker. Most tests use librdkafka, as the node does; `raw` speaks the
//! protocol itself for what a well-behaved client never sends.

mod cluster;
#[path = "../common/raw.rs"]
mod raw;

mod compaction;
mod groups;
mod groups_raw;
mod idempotence;
mod java;
mod limits;
mod offsets;
mod produce_fetch;
mod topics;
mod transactions;
mod transactions_raw;
