//! The producer: records of a thousand keys in turn, and what is planted in them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::read::now_ms;
use super::stage::INPUT;

pub const KEYS: u32 = 1_000;
/// One key in so many has everything that fails.
const POISONED_EVERY: u32 = 10;
const FLUSH_MAX: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ok,
    Flaky,
    Bad,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Ok => "ok",
            Kind::Flaky => "flaky",
            Kind::Bad => "bad",
        }
    }
}

/// A record that is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub key: u32,
    pub sequence: u64,
    pub kind: Kind,
}

/// Nothing of such a key ever fails.
pub fn is_clean(key: u32) -> bool {
    !key.is_multiple_of(POISONED_EVERY)
}

/// Numbers the records of each key.
pub struct Feed {
    producer: BaseProducer,
    next: HashMap<u32, u64>,
    sent: Vec<Sent>,
}

impl Feed {
    pub fn new(bootstrap: &str) -> Feed {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "1")
            .create()
            .expect("a producer");
        Feed { producer, next: HashMap::new(), sent: Vec::new() }
    }

    /// To the partition of its key, or to a certain one.
    pub fn send(&mut self, key: u32, kind: Kind, partition: Option<i32>, due_ms: i64) {
        let next = self.next.entry(key).or_default();
        let (name, value) = (format!("k{key}"), format!("{next},{}", kind.as_str()));
        let record = || {
            let record = BaseRecord::to(INPUT).key(&name).payload(&value).timestamp(due_ms);
            match partition {
                Some(partition) => record.partition(partition),
                None => record,
            }
        };
        while self.producer.send(record()).is_err() {
            self.producer.poll(Duration::from_millis(20));
        }
        self.sent.push(Sent { key, sequence: *next, kind });
        *next += 1;
    }

    /// All of one kind, of these keys in turn.
    pub fn plant(&mut self, kind: Kind, keys: &[u32], records: u64) {
        for number in 0..records {
            let key = keys[number as usize % keys.len()];
            self.send(key, kind, None, now_ms());
            if number % 1_000 == 0 {
                self.producer.poll(Duration::ZERO);
            }
        }
        self.flush();
    }

    pub fn flush(&self) {
        self.producer.flush(FLUSH_MAX).expect("every record is acknowledged");
    }

    pub fn sent(&self) -> &[Sent] {
        &self.sent
    }
}

/// Keys that something may be planted in.
pub fn poisoned() -> Vec<u32> {
    (0..KEYS).filter(|key| !is_clean(*key)).collect()
}

/// Feeds at a rate on a thread of its own. Open loop: a record's time is when it was due.
pub struct Feeder {
    stop: Arc<AtomicBool>,
    poison: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<Feed>,
}

impl Feeder {
    pub fn start(feed: Feed, rate: u64, seed: u64) -> Feeder {
        let (stop, poison) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let count = Arc::new(AtomicU64::new(0));
        let theirs = (Arc::clone(&stop), Arc::clone(&poison), Arc::clone(&count));
        let thread = std::thread::spawn(move || run(feed, rate, seed, &theirs));
        Feeder { stop, poison, count, thread }
    }

    /// From now on one record in a hundred is bad and five are flaky, or none are.
    pub fn set_poison(&self, poison: bool) {
        self.poison.store(poison, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn finish(self) -> Feed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the feeder did not panic")
    }
}

fn run(
    mut feed: Feed,
    rate: u64,
    seed: u64,
    (stop, poison, count): &(Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicU64>),
) -> Feed {
    let mut rng = Rng::with_seed(seed);
    let (began, began_ms, mut number) = (Instant::now(), now_ms(), 0);
    while !stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() as u64 * rate / 1_000_000;
        while number < due {
            let key = (number % u64::from(KEYS)) as u32;
            let may_fail = poison.load(Ordering::Relaxed) && !is_clean(key);
            feed.send(key, kind(&mut rng, may_fail), None, began_ms + (number * 1_000 / rate) as i64);
            number += 1;
        }
        count.store(number, Ordering::Relaxed);
        feed.producer.poll(TICK);
    }
    feed.flush();
    feed
}

/// Of all records one in a hundred is bad and five are flaky, all of them of the keys that may fail.
fn kind(rng: &mut Rng, may_fail: bool) -> Kind {
    match rng.u32(..100) {
        _ if !may_fail => Kind::Ok,
        roll if roll < POISONED_EVERY => Kind::Bad,
        roll if roll < 6 * POISONED_EVERY => Kind::Flaky,
        _ => Kind::Ok,
    }
}

/// A value that threads look at together.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
