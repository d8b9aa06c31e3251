//! Topics full of records for a run to read, and offsets to tell when it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Size of every key: a number, padded.
pub const KEY_BYTES: usize = 16;
/// Size of every value.
pub const VALUE_BYTES: usize = 100;

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// Makes a topic; one that exists is fine.
pub fn create_topic(bootstrap: &str, name: &str, partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let created = block_on(admin.create_topics([&topic], &AdminOptions::new()))?;
    for result in created {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, error)) => bail!("{topic}: {error}"),
        }
    }
    Ok(())
}

/// Deletes a topic and what it holds.
pub fn delete_topic(bootstrap: &str, name: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    for result in block_on(admin.delete_topics(&[name], &AdminOptions::new()))? {
        result.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    Ok(())
}

/// Writes `records` records: keys count up, values are 100 bytes of text, timestamps are now.
pub fn fill(bootstrap: &str, topic: &str, records: u64) -> Result<()> {
    let producer = producer(bootstrap, "50")?;
    let value = value();
    for number in 0..records {
        let key = key(number);
        let mut record = BaseRecord::to(topic).key(&key).payload(&value);
        while let Err((error, returned)) = producer.send(record) {
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {}
                other => return Err(other.into()),
            }
            producer.poll(Duration::from_millis(5));
            record = returned;
        }
        if number % 1_000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(ANSWER_MAX).context("flush")
}

fn producer(bootstrap: &str, linger_ms: &str) -> Result<BaseProducer<DefaultProducerContext>> {
    let producer = config(bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", linger_ms)
        .set("partitioner", "murmur2_random")
        .create()?;
    Ok(producer)
}

fn key(number: u64) -> String {
    format!("{number:0width$}", width = KEY_BYTES)
}

fn value() -> String {
    "tidemill ".repeat(VALUE_BYTES / 9 + 1)[..VALUE_BYTES].to_owned()
}

/// Writes a few hundred records a second, of keys that [`fill`] wrote, until it is dropped.
pub struct Trickle {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Trickle {
    const PAUSE: Duration = Duration::from_millis(5);

    pub fn start(bootstrap: &str, topic: &str, keys: u64) -> Result<Trickle> {
        let producer = producer(bootstrap, "0")?;
        let (topic, value) = (topic.to_owned(), value());
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            // A step that shares no factor with the number of keys visits all of them.
            let numbers = (0..).map(|step: u64| step.wrapping_mul(7_919) % keys);
            for number in numbers.take_while(|_| !flag.load(Ordering::Relaxed)) {
                // A full queue only means that the next record follows later.
                let _ = producer.send(BaseRecord::to(&topic).key(&key(number)).payload(&value));
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

/// Reads how far a consumer group has come.
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

    /// Sum of the committed offsets; a topic without transactions has as many records.
    pub fn committed(&self) -> Result<u64> {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.topic, 0, self.partitions - 1);
        let committed = self.consumer.committed_offsets(list, ANSWER_MAX)?;
        let offsets = committed.elements().into_iter().map(|element| match element.offset() {
            Offset::Offset(next) => u64::try_from(next).unwrap_or(0),
            _ => 0,
        });
        Ok(offsets.sum())
    }

    /// Waits until the group has committed `records` records.
    pub fn wait_for(&self, records: u64, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let committed = self.committed()?;
            if committed >= records {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!("only {committed} of {records} records committed after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Polls one admin future to its end; there is no runtime here and none is needed.
fn block_on<F: Future>(future: F) -> F::Output {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
