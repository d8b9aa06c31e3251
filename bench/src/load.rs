//! Records for contenders to read.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::keys::{Keys, Random, Stream};
use crate::raw::{Message, Producer};
use crate::topics::ends;

/// Size of every key: a number, padded.
pub const KEY_BYTES: usize = 16;
/// Size of the values where nothing else is said.
pub const VALUE_BYTES: usize = 100;
/// What a topic takes by default, of which a record of 1 MB is just below; librdkafka's own default is 1,000,000.
pub const MESSAGE_BYTES_MAX: &str = "1048588";
/// How often the producer's callbacks are served, in records.
const SERVE_EVERY: u64 = 1_000;

/// What records look like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub keys: Keys,
    pub values: Values,
}

/// What stands in every record of a topic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values {
    /// So many bytes of text.
    Text(usize),
    /// So many letters by chance, others in every record: who compresses has something to do.
    Letters(usize),
    /// An order in JSON, 500 bytes.
    Order,
}

impl Values {
    /// What every record has; of letters, only as many.
    pub fn text(self) -> String {
        match self {
            Values::Text(bytes) => "tidemill ".repeat(bytes / 9 + 1)[..bytes].to_owned(),
            Values::Letters(bytes) => "A".repeat(bytes),
            Values::Order => bench_order::SAMPLE.to_owned(),
        }
    }
}

/// Records in a topic: some to warm up with, and others that nobody sees before [`Backlog::appear`].
///
/// They are in a transaction that is still open, and everybody reads `read_committed`. So they are all
/// there at one moment, none of them was fetched ahead, and whoever is measured was idle just before.
pub struct Backlog {
    producer: Producer,
    /// By partition: what is committed once the first records are handled.
    pub warm: Vec<i64>,
    /// The same for all of them.
    pub end: Vec<i64>,
}

impl Backlog {
    /// Writes `first` records to warm up with and `then` to measure.
    pub fn write(
        bootstrap: &str,
        (topic, partitions): (&str, i32),
        shape: Shape,
        (first, then): (u64, u64),
    ) -> Result<Backlog> {
        let producer = transactional(bootstrap, topic)?;
        let mut keys = Stream::new(shape.keys);
        producer.begin()?;
        write(&producer, topic, &mut keys, shape.values, first)?;
        producer.commit()?;
        // The last offset of each partition is the transaction's marker.
        let warm = ends(bootstrap, topic, partitions)?.into_iter().map(|end| end - 1).collect();
        producer.begin()?;
        write(&producer, topic, &mut keys, shape.values, then)?;
        let end = ends(bootstrap, topic, partitions)?;
        Ok(Backlog { producer, warm, end })
    }

    /// Lets everybody see the second half.
    pub fn appear(&self) -> Result<()> {
        self.producer.commit()
    }
}

/// Writes `records` records that are there at once, outside any transaction.
pub fn fill(bootstrap: &str, topic: &str, shape: Shape, records: u64) -> Result<()> {
    let producer = Producer::new(&settings(bootstrap))?;
    write(&producer, topic, &mut Stream::new(shape.keys), shape.values, records)
}

fn settings(bootstrap: &str) -> Vec<(&str, &str)> {
    vec![
        ("bootstrap.servers", bootstrap),
        ("partitioner", "murmur2_random"),
        ("enable.idempotence", "true"),
        ("linger.ms", "50"),
        ("message.max.bytes", MESSAGE_BYTES_MAX),
        ("queue.buffering.max.messages", "1000000"),
        ("delivery.report.only.error", "true"),
        // That a coordinator is still loading is no news.
        ("log_level", "3"),
    ]
}

fn transactional(bootstrap: &str, topic: &str) -> Result<Producer> {
    let mut settings = settings(bootstrap);
    settings.push(("transactional.id", topic));
    // The warm-up of the slowest fits; it is the longest that brokers allow by default.
    settings.push(("transaction.timeout.ms", "900000"));
    let producer = Producer::new(&settings)?;
    producer.init_transactions()?;
    Ok(producer)
}

fn write(producer: &Producer, topic: &str, keys: &mut Stream, values: Values, records: u64) -> Result<()> {
    let topic = producer.topic(topic)?;
    let (mut value, mut random) = (values.text().into_bytes(), Random::seeded());
    for number in 0..records {
        if matches!(values, Values::Letters(_)) {
            random.letters(&mut value);
        }
        let (key, timestamp) = (keys.key(), now_ms()?);
        producer.send(&topic, &Message { timestamp, key: Some(&key), value: Some(&value) })?;
        if number % SERVE_EVERY == 0 {
            producer.poll(0);
        }
    }
    producer.flush()
}

/// Milliseconds since the epoch.
pub fn now_ms() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
