//! The consumer: every committed record of the output in its order, and when it was seen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;

use super::feed::lock;
use super::stage::{OUTPUT, PARTITIONS};
use crate::reading::{assign, reading};

/// A record that came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    pub key: u32,
    pub sequence: u64,
    /// Of the key's records, by the handler's own count.
    pub count: u64,
    /// When its record was due, and when it was seen; milliseconds since the epoch.
    pub due_ms: i64,
    pub seen_ms: i64,
}

/// Reads on a thread of its own.
pub struct Reader {
    stop: Arc<AtomicBool>,
    out: Arc<Mutex<Vec<Out>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    pub fn start(bootstrap: &str) -> Reader {
        let consumer: BaseConsumer = reading(bootstrap, "poison-reader", true)
            .set("fetch.wait.max.ms", "5")
            .create()
            .expect("a consumer");
        assign(&consumer, OUTPUT, 0..PARTITIONS, Offset::Beginning).expect("the output can be read");
        let (stop, out) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopping, seen) = (Arc::clone(&stop), Arc::clone(&out));
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                // Lost connections and the like; librdkafka goes on by itself.
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
                    let due_ms = message.timestamp().to_millis().unwrap_or_default();
                    let parsed = parse(message.key(), message.payload());
                    let (key, sequence, count) = parsed.expect("a record of the handler");
                    lock(&seen).push(Out { key, sequence, count, due_ms, seen_ms: now_ms() });
                }
            }
        });
        Reader { stop, out, thread: Some(thread) }
    }

    pub fn count(&self) -> u64 {
        lock(&self.out).len() as u64
    }

    pub fn all(&self) -> Vec<Out> {
        lock(&self.out).clone()
    }

    /// How late the last of a hundred was, of what was due between two moments of keys that are meant.
    pub fn p99_ms(&self, (from_ms, to_ms): (i64, i64), is_meant: impl Fn(u32) -> bool) -> f64 {
        let out = lock(&self.out);
        let of = out.iter().filter(|one| (from_ms..to_ms).contains(&one.due_ms) && is_meant(one.key));
        let mut late: Vec<i64> = of.map(|one| one.seen_ms - one.due_ms).collect();
        late.sort_unstable();
        late.get(late.len() * 99 / 100).map_or(f64::INFINITY, |late| *late as f64)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it has not read is missing, and shows as that.
            let _ = thread.join();
        }
    }
}

fn parse(key: Option<&[u8]>, value: Option<&[u8]>) -> Option<(u32, u64, u64)> {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes?.to_vec()).ok();
    let (key, value) = (text(key)?, text(value)?);
    let (sequence, count) = value.split_once(',')?;
    Some((key.strip_prefix('k')?.parse().ok()?, sequence.parse().ok()?, count.parse().ok()?))
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
