//! What brokers say of their cluster.

use std::time::{Duration, Instant};

use rdkafka_sys as rd;

use super::{Client, KafkaError, check, millis, text};

/// A broker's answer, destroyed when dropped.
struct Metadata(*const rd::rd_kafka_metadata);

impl Metadata {
    /// Whether the broker that answered is known by its number, as no bootstrap server is.
    fn is_numbered(&self) -> bool {
        // SAFETY: live until dropped.
        unsafe { (*self.0).orig_broker_id >= 0 }
    }

    /// Names and partition counts.
    fn topics(&self) -> Vec<(String, i32)> {
        // SAFETY: live until dropped, with `topic_cnt` topics, read field by field because of their error codes.
        unsafe {
            let count = usize::try_from((*self.0).topic_cnt).unwrap_or(0);
            (0..count)
                .map(|index| (*self.0).topics.add(index))
                .map(|topic| (text((*topic).topic), (*topic).partition_cnt))
                .collect()
        }
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        // SAFETY: owned, dropped once.
        unsafe { rd::rd_kafka_metadata_destroy(self.0) }
    }
}

impl Client {
    /// Asks a broker that is up, and waits for one: of all topics, or of those that the client uses.
    fn ask_metadata(&self, all: bool, wait: Duration) -> Result<Metadata, KafkaError> {
        let mut metadata: *const rd::rd_kafka_metadata = std::ptr::null();
        // SAFETY: the handle is live; the out-pointer is to a local, and what it gets on success is ours.
        let code = unsafe {
            rd::rd_kafka_metadata(self.raw(), all.into(), std::ptr::null_mut(), &mut metadata, millis(wait))
        };
        check(code as i32)?;
        Ok(Metadata(metadata))
    }

    /// Names and partition counts of every topic of the cluster.
    pub fn metadata(&self, wait: Duration) -> Result<Vec<(String, i32)>, KafkaError> {
        Ok(self.ask_metadata(true, wait)?.topics())
    }

    /// The cluster's id; `None` when no broker answered in time.
    pub fn cluster_id(&self, wait: Duration) -> Option<String> {
        // SAFETY: the handle is live; the string is ours to free with librdkafka's allocator.
        unsafe {
            let id = rd::rd_kafka_clusterid(self.raw(), millis(wait));
            if id.is_null() {
                return None;
            }
            let copy = text(id);
            rd::rd_kafka_mem_free(self.raw(), id.cast());
            Some(copy)
        }
    }

    /// Waits until a broker answers that is known by its number. The connection that learned of it, to one of
    /// the bootstrap servers, is given up then, and librdkafka connects to another when something is asked. The answer
    /// is also of who leads the topics that the client uses.
    pub fn settle(&self, wait: Duration) {
        let deadline = Instant::now() + wait;
        // A bootstrap server's answer, a question that is lost with its connection, a broker's answer.
        for _ in 0..3 {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.ask_metadata(false, left).is_ok_and(|metadata| metadata.is_numbered()) {
                return;
            }
        }
    }
}
