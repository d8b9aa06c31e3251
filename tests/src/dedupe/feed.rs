//! The producer of W6: every record of the plan once, and which of them are acknowledged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::INPUT;
use super::plan::{Event, id_text, key_text, parse_value, value_text};

/// Longest wait for the last acknowledgements.
const FLUSH_MAX: Duration = Duration::from_secs(60);

/// By id, a bit for each of its records that is acknowledged.
#[derive(Default)]
struct Acknowledged(Mutex<Vec<u8>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Ok(message) = result else { return };
        if let Some((id, time)) = message.payload().and_then(parse_value) {
            let mut bits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            bits[id as usize] |= 1 << time;
        }
    }
}

/// Feeds on a thread of its own.
pub struct Feeder {
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<Vec<u8>>>,
}

impl Feeder {
    /// `rate` in records a second.
    pub fn start(bootstrap: &str, events: Vec<Event>, began_ms: i64, rate: u64) -> Feeder {
        let sent = Arc::new(AtomicU64::new(0));
        let (bootstrap, theirs) = (bootstrap.to_owned(), Arc::clone(&sent));
        let thread = std::thread::spawn(move || feed(&bootstrap, &events, (began_ms, rate), &theirs));
        Feeder { sent, thread }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns when every record is acknowledged or given up: by id, a bit for each acknowledged one.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))?
    }
}

fn feed(
    bootstrap: &str,
    events: &[Event],
    (began_ms, rate): (i64, u64),
    sent: &AtomicU64,
) -> Result<Vec<u8>> {
    let ids = events.iter().map(|event| event.id as usize + 1).max().unwrap_or(0);
    let producer: BaseProducer<Acknowledged> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "20")
        .create_with_context(Acknowledged(Mutex::new(vec![0; ids])))?;
    let started = Instant::now();
    for (number, event) in (0..).zip(events) {
        let due = started + Duration::from_secs_f64(number as f64 / rate as f64);
        let early = due.saturating_duration_since(Instant::now());
        // Shorter waits are caught up with by the next longer one.
        if early > Duration::from_millis(5) {
            std::thread::sleep(early);
        }
        let (id, key, value) = (id_text(event.id), key_text(event.id), value_text(event));
        let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(&id) });
        let record = BaseRecord::to(INPUT).key(&key).payload(&value).headers(headers);
        flights::feed::send(&producer, record.timestamp(event.timestamp_ms(began_ms)))?;
        sent.store(number + 1, Ordering::Relaxed);
        producer.poll(Duration::ZERO);
    }
    producer.flush(FLUSH_MAX).context("not every record has an outcome")?;
    let bits = &producer.context().0;
    Ok(std::mem::take(&mut *bits.lock().unwrap_or_else(PoisonError::into_inner)))
}
