//! What comes out of a contender: records that a reader sees only once they are committed.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::topics::{self, ANSWER_MAX, config};

const FIRST_OUTPUT_MAX: Duration = Duration::from_secs(120);
/// For a transaction that has ended to be marked as such in every partition.
const DECIDED_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Counts the records that are committed to a topic from these offsets on. Markers of transactions are none, and no
/// transaction is open when it is counted.
pub fn committed_since(bootstrap: &str, topic: &str, begin: &[i64]) -> Result<u64> {
    let partitions = i32::try_from(begin.len())?;
    let started = Instant::now();
    while topics::stable_ends(bootstrap, topic, partitions)? != topics::ends(bootstrap, topic, partitions)? {
        ensure!(started.elapsed() < DECIDED_MAX, "a transaction is open in {topic} after {DECIDED_MAX:?}");
        thread::sleep(LOOK_EVERY);
    }
    let consumer: BaseConsumer = config(bootstrap)
        .set("group.id", "bench-count")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()?;
    consumer.assign(&from(topic, begin)?)?;
    let mut open: HashSet<i32> = (0..partitions).collect();
    let mut count = 0;
    while !open.is_empty() {
        match consumer.poll(ANSWER_MAX) {
            Some(Ok(_)) => count += 1,
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(error).with_context(|| topic.to_owned()),
            None => bail!("nothing more of {topic} after {ANSWER_MAX:?}, and not its end in {open:?}"),
        }
    }
    Ok(count)
}

/// Partitions 0, 1, ... of a topic, each from its offset on.
fn from(topic: &str, begin: &[i64]) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, &offset) in (0..).zip(begin) {
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    }
    Ok(list)
}

/// Waits for records that are written to a topic after this was made, and committed. What was written before is none of
/// them, even if its transaction was open still: whoever was killed may have been about to commit it.
pub struct Outputs {
    consumer: BaseConsumer,
    partitions: i32,
}

impl Outputs {
    pub fn of(bootstrap: &str, topic: &str, partitions: i32) -> Result<Outputs> {
        let consumer: BaseConsumer = config(bootstrap)
            .set("group.id", "bench-first-output")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        consumer.assign(&from(topic, &topics::ends(bootstrap, topic, partitions)?)?)?;
        Ok(Outputs { consumer, partitions })
    }

    /// Waits for the next record and answers its partition.
    pub fn first(&self) -> Result<i32> {
        Ok(self.record()?.partition())
    }

    fn record(&self) -> Result<BorrowedMessage<'_>> {
        match self.consumer.poll(FIRST_OUTPUT_MAX) {
            Some(record) => record.context("the output topic"),
            None => bail!("no output after {FIRST_OUTPUT_MAX:?}"),
        }
    }

    /// Every task runs when each has had an output.
    pub fn of_every_partition(&self) -> Result<()> {
        let started = Instant::now();
        let mut seen = HashSet::new();
        while seen.len() < self.partitions as usize {
            seen.insert(self.first()?);
            ensure!(started.elapsed() < FIRST_OUTPUT_MAX, "output of the partitions {seen:?} only");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidemill_broker::{Broker, Config};

    use super::*;
    use crate::raw;

    #[test]
    fn an_output_that_was_written_before_is_not_new_though_it_is_committed_after() {
        let broker = Broker::start(Config::default()).expect("a broker");
        let bootstrap = broker.address().to_string();
        topics::create(&bootstrap, "out", 1).expect("a topic");
        let settings = [("bootstrap.servers", &bootstrap[..]), ("transactional.id", "writer")];
        let producer = raw::Producer::new(&settings).expect("a producer");
        producer.init_transactions().expect("a writer");
        let topic = producer.topic("out").expect("a topic");
        let write = |value: &[u8]| {
            producer.begin().expect("a transaction");
            let record = raw::Message { timestamp: 1, key: None, value: Some(value) };
            producer.send(&topic, &record).expect("queued");
            producer.flush().expect("written");
        };
        write(b"old");
        let outputs = Outputs::of(&bootstrap, "out", 1).expect("a reader");
        producer.commit().expect("committed");
        write(b"new");
        producer.commit().expect("committed");
        let record = outputs.record().expect("a record");
        assert_eq!(record.payload(), Some(&b"new"[..]));
    }
}
