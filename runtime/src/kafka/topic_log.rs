//! A single-partition topic as an append-only log: what the registry is built on.
//!
//! [`TopicLog::append`] answers the record's offset, so that a proposer knows where it stands;
//! [`Tail`] reads from any offset on. Neither uses transactions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::config::{APPEND_TIMEOUT, KafkaConfig};
use super::ffi::producer::{Outgoing, Producer};
use super::ffi::{Code, KafkaError};
use super::reader::{FOLLOW, PartitionReader};
use super::recovery::{log_record, read_until};
use super::{bounds, source_error};
use crate::config::failures::TIMEOUT_ERROR;
use crate::ports::{LogRecord, SourceError, Stop};
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

/// One end of the log. Threads may append through the same value. It is there to be kept: librdkafka asks for the id
/// of a new producer after half a second (`rd_kafka_idemp_init` in rdkafka_idempotence.c), and sends nothing before.
pub struct TopicLog {
    config: KafkaConfig,
    topic: String,
    /// Replaced when it can send no more.
    appender: Mutex<Arc<Appender>>,
    tickets: AtomicU64,
}

/// A producer, and its index of the log's topic.
struct Appender {
    producer: Producer,
    index: usize,
}

impl Appender {
    fn new(config: &KafkaConfig, topic: &str) -> Result<Appender, KafkaError> {
        let mut producer = Producer::new(&config.appender(), topic)?;
        let index = producer.topic(topic)?;
        Ok(Appender { producer, index })
    }
}

impl TopicLog {
    /// The topic must exist and have one partition.
    pub fn open(config: &KafkaConfig, topic: &str) -> Result<TopicLog, SourceError> {
        let appender =
            Appender::new(config, topic).map_err(|error| SourceError::Refused(error.to_string()))?;
        Ok(TopicLog {
            config: config.clone(),
            topic: topic.to_owned(),
            appender: Mutex::new(Arc::new(appender)),
            tickets: AtomicU64::new(1),
        })
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Appends a record and waits until every replica in sync has it.
    pub fn append(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Offset, AppendError> {
        let refused = |error: KafkaError| AppendError::Refused(format!("{}: {error}", self.topic));
        let appender = self.appender().map_err(refused)?;
        let producer = &appender.producer;
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = bounded(1);
        producer.expect_ticket(ticket, Box::new(move |delivered| drop(tell.send(delivered))));
        let record = Outgoing { partition: 0, key, value, timestamp: -1, ticket };
        if let Err(error) = producer.produce(appender.index, record, &[]) {
            producer.forget_ticket(ticket);
            return Err(refused(error));
        }
        // The producer gives the record up by itself before that, and says so.
        let Ok(delivered) = told.recv_timeout(APPEND_TIMEOUT + Duration::from_secs(5)) else {
            producer.forget_ticket(ticket);
            let reason = format!("{}: {TIMEOUT_ERROR}: no acknowledgement in time", self.topic);
            return Err(AppendError::Unknown(reason));
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
        let appender = self.appender().map_err(|error| source_error(&self.topic, &error))?;
        let (_, high) = bounds(appender.producer.client(), &self.topic, 0, &Stop::never())?;
        Ok(high)
    }

    /// The producer, or a new one if that can send no more.
    fn appender(&self) -> Result<Arc<Appender>, KafkaError> {
        let mut appender = self.appender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = appender.producer.client().fatal() {
            let topic = &self.topic;
            tracing::warn!(topic, %reason, "a log's producer can send no more; a new one takes its place");
            *appender = Arc::new(Appender::new(&self.config, topic)?);
        }
        Ok(Arc::clone(&appender))
    }

    /// A reader that starts at `from`, or at the log's start if that is higher.
    pub fn tail(&self, from: Offset) -> Result<Tail, SourceError> {
        let mut reader = PartitionReader::new(&self.config, "tidemill-log", false, FOLLOW)?;
        let (low, _) = bounds(reader.raw().client(), &self.topic, 0, &Stop::never())?;
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
        let (_, high) = bounds(self.reader.raw().client(), &self.topic, 0, &Stop::never())?;
        read_until(&mut self.reader, high, &Stop::never(), &mut |message| {
            apply(log_record(message));
            true
        })?;
        Ok(self.position())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_that_can_send_no_more_is_replaced_by_the_next_append() {
        let nowhere = KafkaConfig::new("127.0.0.1:1");
        let log = TopicLog::open(&nowhere, "t").expect("opens without a cluster");
        let former = log.appender().expect("a producer");
        former.producer.client().fail();
        let next = log.appender().expect("another producer");
        assert_eq!(next.producer.client().fatal(), None);
        let same = log.appender().expect("the same one");
        assert!(Arc::ptr_eq(&next, &same));
    }
}
