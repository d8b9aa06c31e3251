//! The native loop: consume, work, produce, commit, as a plain librdkafka program without a runtime
//! around it. It does what the node does and no more: whole batches from the consumer's queue, record
//! timestamps kept, keys placed by murmur2, offsets committed with the output; state in a hash map, and
//! in a changelog topic as one record for each key that a commit interval has changed. It is no floor
//! for a node whose own client reads and writes: librdkafka makes a message of every record.
//!
//! What would be unfair is left out on purpose: it assigns its partitions by hand (no group to
//! join), calls librdkafka's C functions directly (rdkafka's own `flush` and `commit_transaction`
//! poll in 100 ms steps), and leaves 2 ms after a commit before it produces again (a broker that
//! still writes markers answers CONCURRENT_TRANSACTIONS, and librdkafka then waits 20 ms). It never
//! reads its changelog: it could not survive what the node survives.
//!
//! With [`Produce::Batch`] it does less: what it emits has no timestamps. That is for seeing what they cost.

use std::io::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench_order::Order;
use clap::{Args, ValueEnum};
use hashbrown::DefaultHashBuilder;
use indexmap::IndexMap;
use indexmap::map::Entry;

use crate::load::{MESSAGE_BYTES_MAX, now_ms};
use crate::raw::{Consumer, Message, Producer, Record, Topic};
use crate::terms::{Guarantee, Work};

/// Records of one `consume_batch_queue`.
const BATCH_RECORDS: usize = 1_000;
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// From a commit to the next first produce.
const AFTER_COMMIT: Duration = Duration::from_millis(2);

/// What to do until killed.
#[derive(Debug, Clone, Args)]
pub struct Job {
    #[arg(long)]
    pub bootstrap: String,
    #[arg(long)]
    pub input: String,
    #[arg(long)]
    pub output: String,
    /// Written by works with state only
    #[arg(long)]
    pub changelog: String,
    #[arg(long)]
    pub group: String,
    #[arg(long)]
    pub partitions: i32,
    #[arg(long)]
    pub work: Work,
    #[arg(long)]
    pub guarantee: Guarantee,
    #[arg(long, value_enum, default_value_t = Produce::Record)]
    pub produce: Produce,
    /// NAME=VALUE of its producer, beside what is its own
    #[arg(long, value_parser = property)]
    pub producer: Vec<(String, String)>,
}

/// How what is emitted is handed to librdkafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Produce {
    /// Each record by a call of its own, with its timestamp
    Record,
    /// What a consumed batch has come to by one call, `rd_kafka_produce_batch`, which takes no timestamps: less work
    Batch,
}

fn property(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').with_context(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Works until it is killed.
pub fn run(job: &Job) -> Result<()> {
    let mut consumer = consumer(job)?;
    let producer = producer(job)?;
    let (output, changelog) = (producer.topic(&job.output)?, producer.topic(&job.changelog)?);
    let exactly_once = job.guarantee == Guarantee::ExactlyOnce;
    if exactly_once {
        producer.init_transactions()?;
    }
    let mut state = State::default();
    let mut next = vec![0; usize::try_from(job.partitions)?];
    let mut uncommitted_since = None;
    loop {
        let batch = consumer.take(10)?;
        if !batch.is_empty() && uncommitted_since.is_none() {
            uncommitted_since = Some(Instant::now());
            if exactly_once {
                producer.begin()?;
            }
        }
        let mut together = Vec::new();
        for record in batch.records() {
            let record = record?;
            if let Some(emitted) = handle(job.work, &record, &mut state)? {
                match job.produce {
                    Produce::Record => {
                        producer.send(&output, &emitted.message(&state.text))?;
                        state.text.clear();
                    }
                    Produce::Batch => together.push(emitted),
                }
            }
            let partition = usize::try_from(record.partition).context("partition")?;
            next[partition] = record.offset + 1;
        }
        let text = &state.text[..];
        producer.send_batch(&output, together.iter().map(|emitted| emitted.message(text)))?;
        state.text.clear();
        drop(together);
        drop(batch);
        producer.poll(0);
        if uncommitted_since.is_none_or(|since: Instant| since.elapsed() < COMMIT_INTERVAL) {
            continue;
        }
        uncommitted_since = None;
        state.write_changes(&producer, &changelog)?;
        if exactly_once {
            producer.send_offsets(&consumer, &next)?;
            producer.commit()?;
            std::thread::sleep(AFTER_COMMIT);
        } else {
            producer.flush()?;
            consumer.commit(&next)?;
        }
    }
}

/// What comes of a record.
struct Emitted<'a> {
    timestamp: i64,
    key: Option<&'a [u8]>,
    value: Value<'a>,
}

enum Value<'a> {
    OfRecord(Option<&'a [u8]>),
    /// A part of [`State::text`].
    Text(Range<usize>),
}

impl Emitted<'_> {
    fn message<'a>(&'a self, text: &'a [u8]) -> Message<'a> {
        let value = match &self.value {
            Value::OfRecord(value) => *value,
            Value::Text(range) => Some(&text[range.clone()]),
        };
        Message { timestamp: self.timestamp, key: self.key, value }
    }
}

/// What the handlers do that the loop is compared with.
fn handle<'a>(work: Work, record: &Record<'a>, state: &mut State) -> Result<Option<Emitted<'a>>> {
    let Record { timestamp, key, value, .. } = *record;
    let some_key = || key.context("a record without a key");
    let value = match work {
        Work::Map => Value::OfRecord(value),
        Work::Filter if some_key()?.ends_with(b"0") => Value::OfRecord(value),
        Work::Json => {
            let mut order: Order<'_> = serde_json::from_slice(value.context("a record without a value")?)?;
            order.total_up();
            let start = state.text.len();
            serde_json::to_writer(&mut state.text, &order)?;
            Value::Text(start..state.text.len())
        }
        Work::Count => {
            let count = state.add(some_key()?);
            let start = state.text.len();
            write!(state.text, "{count}")?;
            Value::Text(start..state.text.len())
        }
        Work::Dedupe if state.insert(some_key()?, timestamp) => Value::OfRecord(value),
        Work::Filter | Work::Dedupe => return Ok(None),
    };
    Ok(Some(Emitted { timestamp, key, value }))
}

/// A number for each key, and which of them the changelog has not seen yet.
#[derive(Default)]
struct State {
    numbers: IndexMap<Box<[u8]>, Number, DefaultHashBuilder>,
    changed: Vec<usize>,
    /// Values on their way out; one allocation for all of them.
    text: Vec<u8>,
}

struct Number {
    number: u64,
    changed: bool,
}

impl State {
    /// Adds one to the number of a key and answers the sum.
    fn add(&mut self, key: &[u8]) -> u64 {
        let Some((index, _, number)) = self.numbers.get_full_mut(key) else {
            self.insert_new(key, 1);
            return 1;
        };
        number.number += 1;
        if !std::mem::replace(&mut number.changed, true) {
            self.changed.push(index);
        }
        number.number
    }

    /// Keeps a timestamp for a key; false if there is one.
    fn insert(&mut self, key: &[u8], timestamp: i64) -> bool {
        let number = Number { number: timestamp.cast_unsigned(), changed: true };
        // Ids are new as a rule, so a key is hashed once.
        let Entry::Vacant(entry) = self.numbers.entry(key.into()) else { return false };
        self.changed.push(entry.index());
        entry.insert(number);
        true
    }

    fn insert_new(&mut self, key: &[u8], number: u64) {
        let (index, _) = self.numbers.insert_full(key.into(), Number { number, changed: true });
        self.changed.push(index);
    }

    fn write_changes(&mut self, producer: &Producer, changelog: &Topic<'_>) -> Result<()> {
        let timestamp = now_ms()?;
        for index in self.changed.drain(..) {
            let Some((key, number)) = self.numbers.get_index_mut(index) else { continue };
            number.changed = false;
            let value = number.number.to_le_bytes();
            producer.send(changelog, &Message { timestamp, key: Some(key), value: Some(&value) })?;
        }
        Ok(())
    }
}

fn consumer(job: &Job) -> Result<Consumer> {
    let settings = [
        ("bootstrap.servers", job.bootstrap.as_str()),
        ("group.id", job.group.as_str()),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "error"),
        ("isolation.level", "read_committed"),
        ("check.crcs", "true"),
        // As a node has them where librdkafka fetches: beyond the default of 100,000 a partition is left alone for a
        // second, and what is taken from a long queue is not in the cache any more.
        ("queued.min.messages", "20000"),
        ("fetch.queue.backoff.ms", "5"),
    ];
    Consumer::new(&settings, &job.input, job.partitions, BATCH_RECORDS)
}

fn producer(job: &Job) -> Result<Producer> {
    let mut settings = vec![
        ("bootstrap.servers", job.bootstrap.as_str()),
        ("partitioner", "murmur2_random"),
        ("enable.idempotence", "true"),
        ("acks", "all"),
        ("linger.ms", "20"),
        ("message.max.bytes", MESSAGE_BYTES_MAX),
        ("queue.buffering.max.messages", "1000000"),
        // As a node has it where librdkafka writes: with the default of five, the thread of the broker runs without a
        // pause. Side by side it is 1.10 CPU-s per million instead of 1.18 (docs/performance.md).
        ("max.in.flight", "2"),
        // Nobody reads the delivery reports of records that arrived; failed ones fail the flush
        // or the transaction.
        ("delivery.report.only.error", "true"),
    ];
    if job.guarantee == Guarantee::ExactlyOnce {
        settings.push(("transactional.id", job.group.as_str()));
        settings.push(("transaction.timeout.ms", "10000"));
    }
    // What is set twice is what it was set to last.
    settings.extend(job.producer.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    Producer::new(&settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changelog_gets_one_record_for_each_key_that_changed() {
        let mut state = State::default();
        assert_eq!([state.add(b"a"), state.add(b"b"), state.add(b"a")], [1, 1, 2]);
        assert_eq!(state.changed, [0, 1]);
    }

    #[test]
    fn only_the_first_of_an_id_is_new() {
        let mut state = State::default();
        assert_eq!([state.insert(b"a", 5), state.insert(b"a", 6)], [true, false]);
    }
}
