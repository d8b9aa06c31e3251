//! What comes out of a contender: records that a reader sees only once they are committed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::topics::{ANSWER_MAX, config};

const FIRST_OUTPUT_MAX: Duration = Duration::from_secs(120);

/// Waits for records that are committed to a topic after this was made.
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
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            let (_, end) = consumer.fetch_watermarks(topic, partition, ANSWER_MAX)?;
            list.add_partition_offset(topic, partition, Offset::Offset(end))?;
        }
        consumer.assign(&list)?;
        Ok(Outputs { consumer, partitions })
    }

    /// Waits for the next record and answers its partition.
    pub fn first(&self) -> Result<i32> {
        match self.consumer.poll(FIRST_OUTPUT_MAX) {
            Some(record) => Ok(record.context("the output topic")?.partition()),
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
