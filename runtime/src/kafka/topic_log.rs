//! A single-partition topic as an append-only log: what the registry is built on.
//!
//! [`TopicLog::append`] answers the record's offset, so that a proposer knows where it stands;
//! [`Tail`] reads from any offset on. Neither uses transactions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::bounds;
use super::config::{APPEND_TIMEOUT, KafkaConfig};
use super::ffi::Code;
use super::ffi::producer::{Outgoing, Producer};
use super::reader::{FOLLOW, PartitionReader};
use super::recovery::{log_record, read_until};
use crate::ports::{LogRecord, SourceError};
use crate::record::Offset;

/// Why an append has no offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The record is not in the log and never will be.
    #[error("not appended: {0}")]
    Refused(String),
    /// It may or may not be in the log: read the log to find out.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// One end of the log. Threads may append through the same value.
pub struct TopicLog {
    config: KafkaConfig,
    topic: String,
    producer: Producer,
    index: usize,
    tickets: AtomicU64,
}

impl TopicLog {
    /// The topic must exist and have one partition.
    pub fn open(config: &KafkaConfig, topic: &str) -> Result<TopicLog, SourceError> {
        let refused = |error: super::KafkaError| SourceError::Refused(error.to_string());
        let mut producer = Producer::new(&config.appender(), topic).map_err(refused)?;
        let index = producer.topic(topic).map_err(refused)?;
        Ok(TopicLog {
            config: config.clone(),
            topic: topic.to_owned(),
            producer,
            index,
            tickets: AtomicU64::new(1),
        })
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Appends a record and waits until every replica in sync has it.
    pub fn append(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Offset, AppendError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = bounded(1);
        self.producer.expect_ticket(ticket, Box::new(move |delivered| drop(tell.send(delivered))));
        let record = Outgoing { partition: 0, key, value, timestamp: -1, ticket };
        if let Err(error) = self.producer.produce(self.index, record, &[]) {
            self.producer.forget_ticket(ticket);
            return Err(AppendError::Refused(format!("{}: {error}", self.topic)));
        }
        // The producer gives the record up by itself before that, and says so.
        let Ok(delivered) = told.recv_timeout(APPEND_TIMEOUT + Duration::from_secs(5)) else {
            self.producer.forget_ticket(ticket);
            return Err(AppendError::Unknown(format!("{}: no acknowledgement in time", self.topic)));
        };
        match delivered.result {
            Ok(offset) => Ok(Offset(offset.max(0) as u64)),
            Err(error) => {
                let text = format!("{}: {error}", self.topic);
                let unknown =
                    delivered.possibly_persisted || error.is(Code::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT);
                Err(if unknown { AppendError::Unknown(text) } else { AppendError::Refused(text) })
            }
        }
    }

    /// Where the log ends now.
    pub fn end(&self) -> Result<Offset, SourceError> {
        let (_, high) = bounds(self.producer.client(), &self.topic, 0)?;
        Ok(high)
    }

    /// A reader that starts at `from`, or at the log's start if that is higher.
    pub fn tail(&self, from: Offset) -> Result<Tail, SourceError> {
        let mut reader = PartitionReader::new(&self.config, "tidemill-log", false, FOLLOW)?;
        let (low, _) = bounds(reader.raw().client(), &self.topic, 0)?;
        reader.open(&self.topic, 0, from.max(low))?;
        Ok(Tail { reader, topic: self.topic.clone() })
    }
}

/// Reads the log in order, each record once.
pub struct Tail {
    reader: PartitionReader,
    topic: String,
}

impl Tail {
    /// Next offset to read.
    pub fn position(&self) -> Offset {
        self.reader.position()
    }

    /// Hands out what is there, waiting up to `wait` for the first record.
    pub fn next(&mut self, wait: Duration, apply: &mut dyn FnMut(LogRecord)) -> Result<usize, SourceError> {
        let deadline = Instant::now() + wait;
        let mut count = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.reader.poll(left, &mut |message| {
                apply(log_record(message));
                count += 1;
                true
            })?;
            if count > 0 || Instant::now() >= deadline {
                return Ok(count);
            }
        }
    }

    /// Reads until everything that was in the log when this was called has been handed out.
    pub fn read_to_end(&mut self, apply: &mut dyn FnMut(LogRecord)) -> Result<Offset, SourceError> {
        let (_, high) = bounds(self.reader.raw().client(), &self.topic, 0)?;
        read_until(&mut self.reader, high, &mut |message| {
            apply(log_record(message));
            true
        })?;
        Ok(self.position())
    }
}
