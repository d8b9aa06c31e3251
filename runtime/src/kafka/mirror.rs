//! One topic of any cluster, for records that are delivered one by one and whose acknowledgements matter.
//!
//! Idempotent, acknowledged by all replicas in sync; no transaction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::config::KafkaConfig;
use super::ffi::producer::{Outgoing, Producer};
use super::ffi::{Code, KafkaError};
use crate::ports::SourceError;
use crate::record::headers::{self, Header};

/// Beyond the time-out of a record the producer has surely given it up.
const SLACK: Duration = Duration::from_secs(5);

/// A record for it.
#[derive(Debug, Clone, Copy)]
pub struct MirrorRecord<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [Header<'a>],
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
    timeout: Duration,
}

impl Mirror {
    /// Does not wait for the cluster. A record that is not acknowledged within `timeout` is given up.
    pub fn new(config: &KafkaConfig, topic: &str, timeout: Duration) -> Result<Mirror, SourceError> {
        let refused = |error: KafkaError| SourceError::Refused(error.to_string());
        let mut producer = Producer::new(&config.mirror(timeout), topic).map_err(refused)?;
        let index = producer.topic(topic).map_err(refused)?;
        Ok(Mirror { producer, topic: topic.to_owned(), index, tickets: AtomicU64::new(1), timeout })
    }

    /// Sends a record and waits until every replica in sync has it. Records of a key keep their order, also
    /// one that was given up and is sent again.
    pub fn send(&self, record: MirrorRecord<'_>) -> Result<(), MirrorError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.producer.expect_ticket(ticket);
        let outgoing = Outgoing {
            partition: -1,
            key: record.key,
            value: record.value,
            timestamp: record.timestamp_ms,
            ticket,
        };
        if let Err(error) = self.producer.produce(self.index, outgoing, record.headers) {
            let _ = self.producer.wait_ticket(ticket, Duration::ZERO);
            return Err(self.sorted(&error));
        }
        match self.producer.wait_ticket(ticket, self.timeout + SLACK) {
            None => Err(MirrorError::Unknown(format!("{}: no acknowledgement in time", self.topic))),
            Some(delivered) => delivered.result.map(drop).map_err(|error| self.sorted(&error)),
        }
    }

    fn sorted(&self, error: &KafkaError) -> MirrorError {
        /// Refusals of a record for what it is.
        const REFUSED: [Code; 5] = [
            Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            Code::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE,
            Code::RD_KAFKA_RESP_ERR_INVALID_RECORD,
            Code::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
            Code::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE,
        ];
        let text = format!("{}: {error}", self.topic);
        match error.is_any(&REFUSED) && !error.fatal {
            true => MirrorError::Refused(text),
            false => MirrorError::Unknown(text),
        }
    }
}

/// Kafka's own encoding, read; what is no headers is none.
pub fn headers_of(encoded: &[u8]) -> Vec<Header<'_>> {
    if encoded.is_empty() { Vec::new() } else { headers::decode(encoded).unwrap_or_default() }
}
