//! Ordinary consumers that know nothing of tidemill and join no group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Longest time to read a topic to its end.
const READ_MAX: Duration = Duration::from_secs(60);

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

/// The value of a record's first header of that name.
pub fn header<'a>(record: &'a impl Message, name: &str) -> Option<&'a [u8]> {
    record.headers()?.iter().find(|header| header.key == name)?.value
}

/// Hands over what is committed in a topic: of each of these partitions from its offset to the end that it has, in its
/// order. The offsets move along, so the next call goes on where this one ends.
pub fn read_on(
    bootstrap: &str,
    topic: &str,
    next: &mut BTreeMap<i32, i64>,
    mut take: impl FnMut(&BorrowedMessage<'_>),
) {
    let consumer: BaseConsumer =
        reading(bootstrap, "reader", true).set("enable.partition.eof", "true").create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    for (&partition, &offset) in next.iter() {
        // The first record that there is may have another offset.
        let start = if offset == 0 { Offset::Beginning } else { Offset::Offset(offset) };
        list.add_partition_offset(topic, partition, start).expect("an offset");
    }
    consumer.assign(&list).expect("assigned");
    // By number: an end is told again where the marker of a transaction comes behind it.
    let mut open: BTreeSet<i32> = next.keys().copied().collect();
    let deadline = Instant::now() + READ_MAX;
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "{topic} could not be read to its end: {open:?} are not done");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            // Lost connections and the like; librdkafka goes on by itself.
            None | Some(Err(_)) => {}
            Some(Ok(record)) => {
                next.insert(record.partition(), record.offset() + 1);
                take(&record);
            }
        }
    }
}
