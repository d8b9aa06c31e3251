//! How far a consumer group has come: the one thing that all contenders tell in the same way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::topics::{ANSWER_MAX, config};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Reads the offsets that a group has committed on one topic.
pub struct GroupProgress {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl GroupProgress {
    pub fn new(bootstrap: &str, group: &str, topic: &str, partitions: i32) -> Result<GroupProgress> {
        let consumer = config(bootstrap).set("group.id", group).create()?;
        Ok(GroupProgress { consumer, topic: topic.to_owned(), partitions })
    }

    /// By partition; 0 where nothing is committed yet.
    pub fn committed(&self) -> Result<Vec<i64>> {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.topic, 0, self.partitions - 1);
        let committed = self.consumer.committed_offsets(list, ANSWER_MAX)?;
        let mut next = vec![0; usize::try_from(self.partitions)?];
        for element in committed.elements() {
            if let (Offset::Offset(offset), Ok(partition)) =
                (element.offset(), usize::try_from(element.partition()))
            {
                next[partition] = offset;
            }
        }
        Ok(next)
    }

    /// Waits until the group has committed these offsets; `alive` fails if there is nobody left who would.
    pub fn wait_for(
        &self,
        offsets: &[i64],
        limit: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        ensure!(offsets.len() == usize::try_from(self.partitions)?, "an offset for each partition");
        let started = Instant::now();
        loop {
            // A coordinator that has just been elected refuses at first.
            let committed = self.committed();
            if let Ok(committed) = &committed
                && committed.iter().zip(offsets).all(|(committed, wanted)| committed >= wanted)
            {
                return Ok(());
            }
            alive()?;
            if started.elapsed() > limit {
                bail!("only {committed:?} of {offsets:?} committed after {limit:?}");
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}
