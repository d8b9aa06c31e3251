//! Raw dumps of what is in Kafka, by ordinary clients that know nothing of tidemill.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::evidence::{Committed, Ends, Row};
use crate::reading::{assign, reading};

/// Longest time to read one topic, or to get one answer.
const READ_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Reads one cluster.
pub struct Dump {
    bootstrap: String,
}

impl Dump {
    pub fn of(bootstrap: &str) -> Dump {
        Dump { bootstrap: bootstrap.to_owned() }
    }

    /// Every record of a topic up to the end that this isolation level sees.
    pub fn topic(&self, topic: &str, committed: bool) -> Result<Vec<Row>> {
        let consumer = self.consumer("dump", committed)?;
        let partitions = partitions(&consumer, topic)?;
        assign(&consumer, topic, partitions.iter().copied(), Offset::Beginning)?;
        let (mut rows, mut open) = (Vec::new(), partitions);
        let deadline = Instant::now() + READ_MAX;
        while !open.is_empty() {
            if Instant::now() > deadline {
                bail!("{topic} could not be read to its end: partitions {open:?} are not done");
            }
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                // Lost connections and the like; librdkafka goes on by itself.
                Some(Err(_)) => {}
                Some(Ok(record)) => rows.push(Row {
                    partition: record.partition(),
                    offset: record.offset(),
                    key: record.key().map(<[u8]>::to_vec),
                    value: record.payload().map(<[u8]>::to_vec),
                }),
            }
        }
        Ok(rows)
    }

    /// Last stable offset and high watermark of every partition.
    pub fn ends(&self, topic: &str) -> Result<Vec<Ends>> {
        let (stable, high) = (self.consumer("dump", true)?, self.consumer("dump", false)?);
        let mut ends = Vec::new();
        for partition in partitions(&stable, topic)? {
            let end = |consumer: &BaseConsumer| -> Result<i64> {
                let marks = consumer.fetch_watermarks(topic, partition, ANSWER_MAX);
                Ok(marks.with_context(|| format!("the end of {topic}/{partition}"))?.1)
            };
            ends.push(Ends { topic: topic.to_owned(), partition, stable: end(&stable)?, high: end(&high)? });
        }
        Ok(ends)
    }

    /// What a deployment's group has committed for its input.
    pub fn committed(&self, deployment: &str, topic: &str) -> Result<Vec<Committed>> {
        let consumer = self.consumer(&format!("local.default.{deployment}"), true)?;
        let mut list = TopicPartitionList::new();
        for partition in partitions(&consumer, topic)? {
            list.add_partition(topic, partition);
        }
        let offsets = consumer.committed_offsets(list, ANSWER_MAX).context("the group's offsets")?;
        let of = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| Committed {
            deployment: deployment.to_owned(),
            topic: topic.to_owned(),
            partition: element.partition(),
            offset: match element.offset() {
                Offset::Offset(offset) => offset,
                _ => -1,
            },
        };
        Ok(offsets.elements().iter().map(of).collect())
    }

    fn consumer(&self, group: &str, committed: bool) -> Result<BaseConsumer> {
        Ok(reading(&self.bootstrap, group, committed).set("enable.partition.eof", "true").create()?)
    }
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<BTreeSet<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_MAX)?;
    let topic = metadata.topics().first().context("the topic has metadata")?;
    Ok(topic.partitions().iter().map(|partition| partition.id()).collect())
}
