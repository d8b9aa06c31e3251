//! Feeds the flights into their topic, each exactly once however often the demo is started.
//!
//! Flight number `i` goes to partition `i % partitions`, so that it has offset `i / partitions`
//! there and the end of a partition says which of its flights are in it already. The topic has one
//! idempotent writer at a time and no transactions, so offsets have no gaps.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::ToBytes;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer, ProducerContext};

pub const TOPIC: &str = "flights";
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What the feeder tells the table, and the other way round.
#[derive(Debug, Default)]
pub struct Progress {
    /// Flights that are in the topic or on their way to it.
    pub fed: AtomicU64,
    /// Set to end the feed early.
    pub stop: AtomicBool,
}

/// The flights of the file, one CSV line each, without its header.
pub fn read_flights(path: &Path) -> Result<Vec<String>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let lines = BufReader::new(GzDecoder::new(file)).lines().skip(1);
    Ok(lines.collect::<Result<_, _>>()?)
}

/// Sends what the topic does not hold yet, at most `rate` flights a second (0 = as fast as it goes),
/// and returns when all of it is acknowledged.
pub fn feed(bootstrap: &str, flights: &[String], rate: u64, progress: &Arc<Progress>) -> Result<()> {
    let producer: BaseProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .create()?;
    let ends = end_offsets(&producer)?;
    let partitions = ends.len() as u64;
    progress.fed.store(ends.iter().sum(), Ordering::Relaxed);

    let started = Instant::now();
    let mut sent = 0;
    for (number, flight) in (0u64..).zip(flights) {
        let partition = number % partitions;
        if number / partitions < ends[partition as usize] {
            continue;
        }
        if progress.stop.load(Ordering::Relaxed) {
            break;
        }
        send(&producer, BaseRecord::<(), str>::to(TOPIC).partition(partition as i32).payload(flight))?;
        sent += 1;
        progress.fed.fetch_add(1, Ordering::Relaxed);
        pace(&producer, started, sent, rate);
    }
    producer.flush(ANSWER_MAX).context("the broker did not take all flights")
}

/// Next offset of every partition of the topic.
fn end_offsets(producer: &BaseProducer<DefaultProducerContext>) -> Result<Vec<u64>> {
    let client = producer.client();
    let metadata = client.fetch_metadata(Some(TOPIC), ANSWER_MAX)?;
    let topic = metadata.topics().first().context("the topic has no metadata")?;
    let partitions = i32::try_from(topic.partitions().len())?;
    let end = |partition| -> Result<u64> {
        let (_, high) = client.fetch_watermarks(TOPIC, partition, ANSWER_MAX)?;
        Ok(u64::try_from(high)?)
    };
    (0..partitions).map(end).collect()
}

/// Queues a record, after a wait for room if the local queue is full.
pub fn send<C, K, P>(producer: &BaseProducer<C>, mut record: BaseRecord<'_, K, P>) -> Result<()>
where
    C: ProducerContext<DeliveryOpaque = ()>,
    K: ToBytes + ?Sized,
    P: ToBytes + ?Sized,
{
    while let Err((error, returned)) = producer.send(record) {
        if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
            return Err(error.into());
        }
        producer.poll(Duration::from_millis(5));
        record = returned;
    }
    Ok(())
}

/// Waits until the `sent`-th record is due.
fn pace(producer: &BaseProducer<DefaultProducerContext>, started: Instant, sent: u64, rate: u64) {
    producer.poll(Duration::ZERO);
    if rate == 0 {
        return;
    }
    let due = started + Duration::from_secs_f64(sent as f64 / rate as f64);
    let early = due.saturating_duration_since(Instant::now());
    // Shorter waits are caught up with by the next longer one.
    if early > Duration::from_millis(5) {
        producer.poll(early);
    }
}
