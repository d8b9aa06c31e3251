//! What a restart is measured with: new records that keep coming, and the first output that follows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::topics::{ANSWER_MAX, config};
use crate::{keys, load};

/// Writes a few hundred records a second, of keys that [`crate::load::fill`] wrote, until it is dropped.
pub struct Trickle {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Trickle {
    const PAUSE: Duration = Duration::from_millis(5);

    pub fn start(bootstrap: &str, topic: &str, keys: u64) -> Result<Trickle> {
        let producer: BaseProducer = config(bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("partitioner", "murmur2_random")
            .create()?;
        let (topic, value) = (topic.to_owned(), load::value(load::VALUE_BYTES));
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            // A step that shares no factor with the number of keys visits all of them.
            let numbers = (0..).map(|step: u64| step.wrapping_mul(7_919) % keys);
            for number in numbers.take_while(|_| !flag.load(Ordering::Relaxed)) {
                // A full queue only means that the next record follows later.
                let _ = producer.send(BaseRecord::to(&topic).key(&keys::padded(number)).payload(&value));
                producer.poll(Trickle::PAUSE);
            }
        });
        Ok(Trickle { stopping, thread: Some(thread) })
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a record that is committed to a topic after this was made.
pub struct FirstOutput {
    consumer: BaseConsumer,
}

impl FirstOutput {
    pub fn of(bootstrap: &str, topic: &str, partitions: i32) -> Result<FirstOutput> {
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
        Ok(FirstOutput { consumer })
    }

    pub fn wait(&self, limit: Duration) -> Result<()> {
        match self.consumer.poll(limit) {
            Some(record) => record.map(drop).context("the output topic"),
            None => bail!("no output after {limit:?}"),
        }
    }
}
