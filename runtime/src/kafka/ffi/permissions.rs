//! What this client may do, as the brokers say it: the operations that a description lists on demand
//! (KIP-430), and whether a topic could be made.

use std::ffi::c_int;
use std::time::Duration;

use rd::rd_kafka_admin_op_t as Op;
use rdkafka_sys as rd;

use super::admin::{Described, Post, TopicSpec, borrowed, topic_info};
use super::{Client, KafkaError, c_string, consume};

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
        let names: Vec<_> = names.iter().map(|name| c_string(name)).collect();
        let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the collection copies the names and is destroyed here; descriptions and their
        // operations are read while the reply lives.
        unsafe {
            let topics = rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait, |post| {
                with_operations(post);
                rd::rd_kafka_DescribeTopics(post.rk, topics, post.options, post.queue);
            });
            rd::rd_kafka_TopicCollection_destroy(topics);
            let reply = reply?;
            let mut count = 0;
            let found = rd::rd_kafka_DescribeTopics_result_topics(
                rd::rd_kafka_event_DescribeTopics_result(reply.0),
                &mut count,
            );
            Ok((0..count)
                .map(|index| {
                    let topic = *found.add(index);
                    let mut count = 0;
                    let operations = rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
                    (topic_info(topic), allowed(operations, count))
                })
                .collect())
        }
    }

    /// What this client may do with a group, whether or not the group exists.
    pub fn group_operations(&self, group: &str, wait: Duration) -> Result<Allowed, KafkaError> {
        let name = c_string(group);
        let mut names = [name.as_ptr()];
        // SAFETY: as for `describe_permitted`.
        unsafe {
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, wait, |post| {
                with_operations(post);
                rd::rd_kafka_DescribeConsumerGroups(post.rk, names.as_mut_ptr(), 1, post.options, post.queue);
            })?;
            let mut count = 0;
            let found = rd::rd_kafka_DescribeConsumerGroups_result_groups(
                rd::rd_kafka_event_DescribeConsumerGroups_result(reply.0),
                &mut count,
            );
            if count == 0 {
                return Ok(None);
            }
            borrowed(rd::rd_kafka_ConsumerGroupDescription_error(*found))?;
            let mut count = 0;
            let operations = rd_kafka_ConsumerGroupDescription_authorized_operations(*found, &mut count);
            Ok(allowed(operations, count))
        }
    }

    /// Whether a topic could be made; nothing is.
    pub fn could_create(&self, spec: &TopicSpec<'_>, wait: Duration) -> Result<(), KafkaError> {
        self.create(spec, true, wait)
    }
}

/// # Safety
/// The options of `post` are live.
unsafe fn with_operations(post: &Post) {
    // SAFETY: by the function's contract; the error object, if there is one, is ours. It says that the request
    // cannot list operations, and then the reply has none.
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
