//! What this client may do, as the brokers say it: the operations that a description lists on demand
//! (KIP-430), and whether a topic could be made.

use std::ffi::c_int;
use std::time::Duration;

use rdkafka_sys as rd;

use super::admin::{Coordinator, Described, Post, TopicSpec, borrowed, topic_info};
use super::{Client, KafkaError, consume};

// The same functions as in the bindings, with operations as the integers they are in C.
unsafe extern "C" {
    fn rd_kafka_TopicDescription_authorized_operations(
        topic: *const rd::rd_kafka_TopicDescription_t,
        count: *mut usize,
    ) -> *const c_int;
    fn rd_kafka_ConsumerGroupDescription_authorized_operations(
        group: *const rd::rd_kafka_ConsumerGroupDescription_t,
        count: *mut usize,
    ) -> *const c_int;
}

/// Operations by Kafka's numbers; none = the broker does not say.
pub(in crate::kafka) type Allowed = Option<Vec<i32>>;

impl Client {
    /// Describes topics, each with what this client may do with it.
    pub fn describe_permitted(
        &self,
        names: &[String],
        wait: Duration,
    ) -> Result<Vec<(Described, Allowed)>, KafkaError> {
        // SAFETY: a description and its operations are live while they are read.
        self.read_topics(names, wait, with_operations, |topic| unsafe {
            let mut count = 0;
            let operations = rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
            (topic_info(topic), allowed(operations, count))
        })
    }

    /// Whether a topic could be made; nothing is.
    pub fn could_create(&self, spec: &TopicSpec<'_>, wait: Duration) -> Result<(), KafkaError> {
        self.create(spec, true, wait)
    }
}

impl Coordinator<'_> {
    /// What this client may do with a group, whether or not the group exists.
    pub fn group_operations(&self, group: &str, wait: Duration) -> Result<Allowed, KafkaError> {
        // SAFETY: as for `describe_permitted`.
        let found = self.read_group(group, wait, with_operations, |group| unsafe {
            borrowed(rd::rd_kafka_ConsumerGroupDescription_error(group))?;
            let mut count = 0;
            let operations = rd_kafka_ConsumerGroupDescription_authorized_operations(group, &mut count);
            Ok(allowed(operations, count))
        })?;
        found.unwrap_or(Ok(None))
    }
}

fn with_operations(post: &Post) {
    // SAFETY: the options of a request are live until it is posted; the error object, if there is one, is ours.
    // It says that the request cannot list operations, and then the reply has none.
    let _ = unsafe { consume(rd::rd_kafka_AdminOptions_set_include_authorized_operations(post.options, 1)) };
}

/// # Safety
/// `operations` is null or points to `count` integers.
unsafe fn allowed(operations: *const c_int, count: usize) -> Allowed {
    if operations.is_null() {
        return None;
    }
    // SAFETY: by the function's contract.
    Some((0..count).map(|index| unsafe { *operations.add(index) }).collect())
}
