//! Producers of the workloads' input: unique records, and what became of each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::case::Case;
use crate::evidence::{Ack, Outcome};

/// Longest wait for the last acknowledgements.
const FLUSH_MAX: Duration = Duration::from_secs(60);
/// Every so many records is a transfer.
const TRANSFER_EVERY: u64 = 5;
const ACCOUNTS: usize = 50;
const KEYS_PER_PARTITION: usize = 40;

/// How many of the first `sent` records are the chain's.
pub fn chained(sent: u64) -> u64 {
    sent - sent / TRANSFER_EVERY
}

/// Collects the outcome of every record.
#[derive(Default)]
struct Outcomes {
    acks: Mutex<Vec<Ack>>,
}

impl ClientContext for Outcomes {}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let ack = match result {
            Ok(message) => ack(message, Outcome::Ok),
            // What was purged before it left is the only thing that certainly did not arrive.
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue), message)) => {
                ack(message, Outcome::Failed)
            }
            Err((_, message)) => ack(message, Outcome::Unknown),
        };
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
    }
}

fn ack(message: &BorrowedMessage<'_>, outcome: Outcome) -> Ack {
    Ack {
        outcome,
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().unwrap_or_default().to_vec(),
    }
}

#[derive(Default)]
struct Shared {
    finish: AtomicBool,
    sent: AtomicU64,
}

/// Feeds on a thread of its own, at the case's rate until told to finish.
pub struct Feeder {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Vec<Ack>>>,
}

impl Feeder {
    pub fn start(bootstrap: &str, case: &Case) -> Feeder {
        let shared = Arc::new(Shared::default());
        let (bootstrap, case) = (bootstrap.to_owned(), case.clone());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || feed(&bootstrap, &case, &theirs));
        Feeder { shared, thread }
    }

    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Sends what is missing to the case's records, and returns when every outcome is known.
    pub fn finish(self) -> Result<Vec<Ack>> {
        self.shared.finish.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))?
    }
}

fn feed(bootstrap: &str, case: &Case, shared: &Shared) -> Result<Vec<Ack>> {
    let producer: BaseProducer<Outcomes> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .create_with_context(Outcomes::default())?;
    let mut source = Source::new(case);
    let started = Instant::now();
    loop {
        let sent = shared.sent.load(Ordering::Relaxed);
        let finish = shared.finish.load(Ordering::Relaxed);
        if finish && sent >= case.records {
            break;
        }
        let due = started + Duration::from_secs_f64(sent as f64 / case.rate as f64);
        let early = due.saturating_duration_since(Instant::now());
        // Shorter waits are caught up with by the next longer one.
        if !finish && early > Duration::from_millis(5) {
            producer.poll(early.min(Duration::from_millis(100)));
            continue;
        }
        let (topic, key, value) = source.next();
        flights::feed::send(&producer, BaseRecord::to(topic).key(&key).payload(&value))?;
        shared.sent.store(sent + 1, Ordering::Relaxed);
        producer.poll(Duration::ZERO);
    }
    producer.flush(FLUSH_MAX).context("not every record has an outcome")?;
    let acks = &producer.context().acks;
    Ok(std::mem::take(&mut *acks.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// The records, in order: `kN` with `kN,SEQUENCE,TOKEN`, and now and then `tN` with `FROM,TO,AMOUNT`.
struct Source {
    rng: Rng,
    chain_only: bool,
    keys: usize,
    sequences: HashMap<usize, u64>,
    made: u64,
}

impl Source {
    fn new(case: &Case) -> Source {
        let keys = KEYS_PER_PARTITION * case.partitions as usize;
        let chain_only = case.special.chain_only;
        Source { rng: Rng::with_seed(case.seed), chain_only, keys, sequences: HashMap::new(), made: 0 }
    }

    fn next(&mut self) -> (&'static str, String, String) {
        self.made += 1;
        if !self.chain_only && self.made.is_multiple_of(TRANSFER_EVERY) {
            let from = self.rng.usize(..ACCOUNTS);
            // Never to oneself.
            let to = (from + self.rng.usize(1..ACCOUNTS)) % ACCOUNTS;
            let amount = self.rng.u32(1..=1_000);
            return ("transfers", format!("t{}", self.made), format!("a{from},a{to},{amount}"));
        }
        let key = self.rng.usize(..self.keys);
        let sequence = self.sequences.entry(key).or_default();
        let value = format!("k{key},{sequence},{:08x}", self.rng.u32(..));
        *sequence += 1;
        ("chain-in", format!("k{key}"), value)
    }
}
