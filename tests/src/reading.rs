//! Ordinary consumers that know nothing of tidemill and join no group.

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// The settings of one; `group` only names whose committed offsets it may ask for. Without
/// `committed` it also sees what was aborted or is undecided.
pub fn reading(bootstrap: &str, group: &str, committed: bool) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("isolation.level", if committed { "read_committed" } else { "read_uncommitted" });
    config
}

/// Reads these partitions of a topic, and nothing else, from `start` on.
pub fn assign(
    consumer: &BaseConsumer,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    start: Offset,
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, partition, start)?;
    }
    consumer.assign(&list)
}
