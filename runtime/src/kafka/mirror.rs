//! One topic of any cluster, for records that are delivered one by one and whose acknowledgements matter.
//!
//! Idempotent, acknowledged by all replicas in sync; no transaction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::config::KafkaConfig;
use super::ffi::producer::{Outgoing, Producer};
use super::ffi::{Code, Delivered, KafkaError};
use crate::ports::SourceError;
use crate::record::headers::{self, RawHeader};

/// A record for it.
#[derive(Debug, Clone, Copy)]
pub struct MirrorRecord<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [RawHeader<'a>],
    /// Milliseconds since the epoch; -1 = now.
    pub timestamp_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// The topic will never take it.
    #[error("{0}")]
    Refused(String),
    /// It may be there or not.
    #[error("{0}")]
    Unknown(String),
}

/// A producer of one topic. Threads may send through the same value.
pub struct Mirror {
    producer: Producer,
    topic: String,
    index: usize,
    tickets: AtomicU64,
}

impl Mirror {
    /// Does not wait for the cluster. A record that is not acknowledged within `timeout` is given up.
    pub fn new(config: &KafkaConfig, topic: &str, timeout: Duration) -> Result<Mirror, SourceError> {
        let refused = |error: KafkaError| SourceError::Refused(error.to_string());
        let mut producer = Producer::new(&config.mirror(timeout), topic).map_err(refused)?;
        let index = producer.topic(topic).map_err(refused)?;
        Ok(Mirror { producer, topic: topic.to_owned(), index, tickets: AtomicU64::new(1) })
    }

    /// The error after which nothing is sent any more: another one must be made.
    pub fn fatal(&self) -> Option<String> {
        self.producer.client().fatal().map(|error| error.to_string())
    }

    /// Makes it have such an error.
    #[cfg(test)]
    pub fn fail(&self) {
        self.producer.client().fail();
    }

    /// Queues a record. `done` hears once whether every replica in sync has it, on a thread of the client's, which
    /// it must not hold up; it is dropped unheard if the producer ends before. Records of a key keep the order in
    /// which they were queued, also one that was given up and is queued again.
    pub fn send(
        &self,
        record: MirrorRecord<'_>,
        done: impl FnOnce(Result<(), MirrorError>) + Send + 'static,
    ) -> Result<(), MirrorError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let topic = self.topic.clone();
        let notice = move |delivered: Delivered| {
            done(delivered.result.map(drop).map_err(|error| sorted(&topic, &error)));
        };
        self.producer.expect_ticket(ticket, Box::new(notice));
        let outgoing = Outgoing {
            partition: -1,
            key: record.key,
            value: record.value,
            timestamp: record.timestamp_ms,
            ticket,
        };
        self.producer.produce(self.index, outgoing, record.headers).map_err(|error| {
            self.producer.forget_ticket(ticket);
            sorted(&self.topic, &error)
        })
    }
}

/// Refusals of a record for what it is.
const REFUSED: [Code; 5] = [
    Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
    Code::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE,
    Code::RD_KAFKA_RESP_ERR_INVALID_RECORD,
    Code::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
    Code::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE,
];

fn sorted(topic: &str, error: &KafkaError) -> MirrorError {
    let text = format!("{topic}: {error}");
    match error.is_any(&REFUSED) && !error.fatal {
        true => MirrorError::Refused(text),
        false => MirrorError::Unknown(text),
    }
}

/// Kafka's own encoding, read; what is no headers is none.
pub fn headers_of(encoded: &[u8]) -> Vec<RawHeader<'_>> {
    if encoded.is_empty() { Vec::new() } else { headers::decode_raw(encoded).unwrap_or_default() }
}
