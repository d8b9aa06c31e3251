//! The innocent deployment: counts words at a steady rate, and is measured all the while.
//!
//! Open loop: a record's time is when it was due, not when it could be sent, so that a stall costs all
//! the records that it delayed. Its answer carries that time, because an emission has its record's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::Offset;

use crate::reading::{assign, reading};

pub const NAME: &str = "neighbour";
pub const INPUT: &str = "neighbour-in";
pub const OUTPUT: &str = "neighbour-out";
pub const PARTITIONS: i32 = 2;
/// Records a second.
pub const RATE: u64 = 5_000;

/// What it is deployed by.
pub fn document() -> String {
    format!(
        "name: {NAME}\nmodule: count.wasm\ninputs: {{ in: {{ topic: {INPUT} }} }}\n\
         outputs: {{ out: {{ topic: {OUTPUT} }} }}\n"
    )
}

const KEYS: u64 = 1_000;
const TICK: Duration = Duration::from_millis(2);
/// Until the last record of a window has come out.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

/// A record that came out; milliseconds since the epoch.
#[derive(Debug, Clone, Copy)]
struct Sample {
    due_ms: i64,
    out_ms: i64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    samples: Mutex<Vec<Sample>>,
}

pub struct Neighbour {
    shared: Arc<Shared>,
    threads: [JoinHandle<Result<()>>; 2],
}

/// What the neighbour had in a stretch of time.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub p99_ms: f64,
    /// Records a second that came out of those that were due in it.
    pub rate: f64,
}

impl Neighbour {
    /// Feeds and reads; the deployment runs.
    pub fn start(bootstrap: &str) -> Neighbour {
        let shared = Arc::<Shared>::default();
        let (feeding, reading) = (Arc::clone(&shared), Arc::clone(&shared));
        let (to, from) = (bootstrap.to_owned(), bootstrap.to_owned());
        let threads = [
            std::thread::spawn(move || feed(&to, &feeding)),
            std::thread::spawn(move || read(&from, &reading)),
        ];
        Neighbour { shared, threads }
    }

    /// Measures what is due between two moments, once it is out.
    pub fn window(&self, from_ms: i64, to_ms: i64) -> Window {
        let (sent, until) = (self.shared.sent.load(Ordering::Relaxed), Instant::now() + CATCH_UP_MAX);
        while self.shared.received.load(Ordering::Relaxed) < sent && Instant::now() < until {
            std::thread::sleep(TICK);
        }
        let samples = self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let of: Vec<&Sample> = samples.iter().filter(|s| (from_ms..to_ms).contains(&s.due_ms)).collect();
        let mut late: Vec<i64> = of.iter().map(|sample| sample.out_ms - sample.due_ms).collect();
        late.sort_unstable();
        let p99_ms = late.get(late.len() * 99 / 100).copied().unwrap_or(i64::MAX) as f64;
        // A second's grace: what was due last has to come out as well.
        let in_time = of.iter().filter(|sample| sample.out_ms < to_ms + 1_000).count() as f64;
        Window { p99_ms, rate: in_time * 1_000.0 / (to_ms - from_ms).max(1) as f64 }
    }

    /// Forgets what was measured so far.
    pub fn forget(&self) {
        self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Stops feeding, and answers how many records went in and came out.
    pub fn finish(self) -> Result<(u64, u64)> {
        let Neighbour { shared, threads: [feeder, reader] } = self;
        shared.stop.store(true, Ordering::Relaxed);
        feeder.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))??;
        reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        Ok((shared.sent.load(Ordering::Relaxed), shared.received.load(Ordering::Relaxed)))
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

fn feed(bootstrap: &str, shared: &Shared) -> Result<()> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .create()?;
    let (began, began_ms) = (Instant::now(), now_ms());
    let mut sent = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() as u64 * RATE / 1_000_000;
        while sent < due {
            let due_ms = began_ms + (sent * 1_000 / RATE) as i64;
            let key = format!("k{}", sent % KEYS);
            let record = BaseRecord::<str, str>::to(INPUT).key(&key).payload("word").timestamp(due_ms);
            flights::feed::send(&producer, record)?;
            sent += 1;
            shared.sent.store(sent, Ordering::Relaxed);
        }
        producer.poll(TICK);
    }
    producer.flush(CATCH_UP_MAX).context("the neighbour's records are not acknowledged")
}

/// Until everything that was sent has come out, or nothing more does.
fn read(bootstrap: &str, shared: &Shared) -> Result<()> {
    let consumer: BaseConsumer =
        reading(bootstrap, "neighbours-reader", true).set("fetch.wait.max.ms", "5").create()?;
    assign(&consumer, OUTPUT, 0..PARTITIONS, Offset::Beginning)?;
    let mut last = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(20)) {
            Some(message) => {
                let message = message?;
                let due_ms = message.timestamp().to_millis().context("an answer has its record's time")?;
                let sample = Sample { due_ms, out_ms: now_ms() };
                shared.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                shared.received.fetch_add(1, Ordering::Relaxed);
                last = Instant::now();
            }
            None if shared.stop.load(Ordering::Relaxed) => {
                let all = shared.received.load(Ordering::Relaxed) >= shared.sent.load(Ordering::Relaxed);
                // A moment longer, for what should not come.
                if last.elapsed() > if all { Duration::from_secs(1) } else { CATCH_UP_MAX } {
                    return Ok(());
                }
            }
            None => {}
        }
    }
}
