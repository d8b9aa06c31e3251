//! End to end: from the moment at which a record is due to be written to its arrival at a reader that
//! reads only what is committed.
//!
//! The load is open: records are due at a fixed rate whether or not anybody keeps up, and one that is
//! written late (by us, or because a queue is full) has waited since it was due. Writer and reader are
//! threads of this process, so that one clock times both.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::keys::{Keys, Stream};
use crate::load::{VALUE_BYTES, Values, now_ms};
use crate::raw::{Consumer, Message, Producer};
use crate::rounds::{Late, Latency};

/// Before the load starts, so that everybody is up.
const FIRST_RECORDS: u64 = 100;
const UP_MAX: Duration = Duration::from_secs(120);
/// Load that nobody measures.
const WARM_UP: Duration = Duration::from_secs(20);
/// For the last record, after it is written.
const LAST_MAX: Duration = Duration::from_secs(60);
/// What the writer and the reader serve their clients with.
const BATCH_RECORDS: usize = 1_000;
/// The reader takes what is there once in this many milliseconds: a batch waits all of them, whether or not records
/// have come, so that they are added to what everybody's records have waited.
const READ_MS: i32 = 1;

/// The two ends of a contender.
pub struct Ends {
    producer: Producer,
    consumer: Consumer,
    input: String,
    keys: Stream,
    value: Vec<u8>,
    /// All times in records are since then.
    epoch: Instant,
}

/// How fast, and how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    pub per_second: u64,
    pub seconds: u64,
}

impl Ends {
    pub fn open(bootstrap: &str, [input, output]: [&str; 2], partitions: i32) -> Result<Ends> {
        let producer = Producer::new(&[
            ("bootstrap.servers", bootstrap),
            ("partitioner", "murmur2_random"),
            ("enable.idempotence", "true"),
            // The default of Kafka's own producers since 4.0. Without it each record is a request, and the broker is
            // busy with those.
            ("linger.ms", "5"),
            ("delivery.report.only.error", "true"),
            ("log_level", "3"),
        ])?;
        let consumer = Consumer::new(
            &[
                ("bootstrap.servers", bootstrap),
                ("group.id", "bench-latency"),
                ("enable.auto.commit", "false"),
                ("isolation.level", "read_committed"),
                ("fetch.wait.max.ms", "100"),
            ],
            output,
            partitions,
            BATCH_RECORDS,
        )?;
        let value = Values::Text(VALUE_BYTES).text().into_bytes();
        let keys = Stream::new(Keys::New);
        Ok(Ends { producer, consumer, input: input.to_owned(), keys, value, epoch: Instant::now() })
    }

    /// Waits until records come out; `alive` fails if none can.
    pub fn wait_until_up(&mut self, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let topic = self.producer.topic(&self.input)?;
        for _ in 0..FIRST_RECORDS {
            let key = self.keys.key();
            let (timestamp, key, value) = (now_ms()?, Some(&key[..]), Some(&self.value[..]));
            self.producer.send(&topic, &Message { timestamp, key, value })?;
        }
        self.producer.flush()?;
        let started = Instant::now();
        let mut arrived = 0;
        while arrived < FIRST_RECORDS {
            arrived += self.consumer.take(READ_MS)?.len() as u64;
            alive()?;
            ensure!(started.elapsed() < UP_MAX, "only {arrived} of {FIRST_RECORDS} records after {UP_MAX:?}");
        }
        Ok(())
    }

    /// Writes at a pace and reads what comes out. `at_start` is called when what counts begins.
    pub fn measure(self, pace: Pace, at_start: impl FnOnce() -> Result<()>) -> Result<Latency> {
        let Ends { producer, mut consumer, input, mut keys, mut value, epoch } = self;
        let begin = epoch.elapsed();
        let counts_from = begin + WARM_UP;
        let end = counts_from + Duration::from_secs(pace.seconds);
        // All of it at once: nothing is to be moved while records are due.
        let mut late = Vec::with_capacity(usize::try_from(pace.per_second * pace.seconds)? + 1);
        let writer = thread::spawn(move || -> Result<(u64, Vec<Duration>)> {
            let topic = producer.topic(&input)?;
            let gap = Duration::from_secs(1) / u32::try_from(pace.per_second)?;
            let mut written = 0;
            let mut due = begin;
            while due < end {
                // A late wake-up is made up for: the record is due when it was due.
                thread::sleep(due.saturating_sub(epoch.elapsed()));
                value[..8].copy_from_slice(&u64::try_from(due.as_micros())?.to_le_bytes());
                let key = keys.key();
                let (timestamp, key, value) = (now_ms()?, Some(&key[..]), Some(&value[..]));
                producer.send(&topic, &Message { timestamp, key, value })?;
                if due >= counts_from {
                    late.push(epoch.elapsed().saturating_sub(due));
                }
                producer.poll(0);
                written += 1;
                due += gap;
            }
            producer.flush()?;
            Ok((written, late))
        });
        let mut at_start = Some(at_start);
        let (mut waits, mut arrived, mut all) = (Vec::new(), 0, None);
        let (mut writer, mut late) = (Some(writer), Vec::new());
        while all.is_none_or(|all| arrived < all) {
            for record in consumer.take(READ_MS)?.records() {
                let value = record?.value.and_then(|value| value.first_chunk::<8>());
                let due = Duration::from_micros(u64::from_le_bytes(*value.context("not a record of ours")?));
                arrived += 1;
                if due >= counts_from {
                    waits.push(epoch.elapsed().saturating_sub(due));
                }
            }
            let now = epoch.elapsed();
            if now >= counts_from
                && let Some(at_start) = at_start.take()
            {
                at_start()?;
            }
            // Not earlier: waiting for it would delay what is read.
            if writer.as_ref().is_some_and(|writer| writer.is_finished())
                && let Some(writer) = writer.take()
            {
                let (written, was_late) =
                    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
                (all, late) = (Some(written), was_late);
            }
            ensure!(now < end + LAST_MAX, "only {arrived} of {all:?} records came out");
        }
        percentiles(waits, late).context("nothing came out")
    }
}

/// What records have waited, and how late they were written. `None` of nothing.
fn percentiles(mut waits: Vec<Duration>, mut late: Vec<Duration>) -> Option<Latency> {
    waits.sort_unstable();
    late.sort_unstable();
    let written_late = Late { p99: percentile(&late, 0.99)?, max: percentile(&late, 1.0)? };
    let mean = waits.iter().sum::<Duration>().as_secs_f64() * 1e3 / waits.len() as f64;
    let at = |share| percentile(&waits, share);
    Some(Latency {
        p50: at(0.5)?,
        p95: at(0.95)?,
        p99: at(0.99)?,
        p99_9: at(0.999)?,
        max: at(1.0)?,
        mean,
        written_late,
    })
}

/// In milliseconds, of what is sorted; `None` of nothing.
fn percentile(sorted: &[Duration], share: f64) -> Option<f64> {
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).map(|duration| duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_wait_that_so_many_do_not_exceed() {
        let waits = (1..=1_000).map(Duration::from_millis).collect();
        let late = (1..=100).rev().map(Duration::from_millis).collect();
        let latency = percentiles(waits, late).expect("waits");
        assert_eq!([latency.p50, latency.p95, latency.p99], [500.0, 950.0, 990.0]);
        assert_eq!([latency.p99_9, latency.max, latency.mean], [999.0, 1_000.0, 500.5]);
        assert_eq!(latency.written_late, Late { p99: 99.0, max: 100.0 });
        assert!(percentiles(Vec::new(), Vec::new()).is_none());
    }
}
