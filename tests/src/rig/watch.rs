//! Watches the chain's output and measures how long each of its partitions stands still.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;

use crate::reading::{assign, reading};

const POLL: Duration = Duration::from_millis(100);

struct Seen {
    /// When each partition was last seen to move.
    last: Vec<Instant>,
    /// Since when nothing is wrong; none while something is.
    healthy: Option<Instant>,
    /// Longest standstill of each partition while nothing was wrong.
    worst: Vec<Duration>,
    /// Longest standstill of any partition, whatever was wrong.
    longest: Duration,
    records: u64,
    /// Since when gaps are measured.
    marked: Instant,
    /// Longest standstill of each partition since then.
    gaps: Vec<Duration>,
}

impl Seen {
    /// Ends the present standstill of a partition.
    fn moves(&mut self, partition: usize, now: Instant) {
        self.longest = self.longest.max(now - self.last[partition]);
        self.stands(partition, now);
        let gap = now.saturating_duration_since(self.last[partition].max(self.marked));
        self.gaps[partition] = self.gaps[partition].max(gap);
        self.last[partition] = now;
    }

    fn stands(&mut self, partition: usize, now: Instant) {
        let Some(healthy) = self.healthy else { return };
        let still = now.saturating_duration_since(self.last[partition].max(healthy));
        self.worst[partition] = self.worst[partition].max(still);
    }
}

/// Standstills of a round.
#[derive(Debug, Clone)]
pub struct Standstill {
    pub worst: BTreeMap<i32, Duration>,
    pub longest: Duration,
}

pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn start(bootstrap: &str, topic: &str, partitions: i32) -> Result<Watch> {
        let consumer: BaseConsumer = reading(bootstrap, "watch", true).create()?;
        assign(&consumer, topic, 0..partitions, Offset::Beginning)?;
        let now = Instant::now();
        let count = partitions as usize;
        let seen = Arc::new(Mutex::new(Seen {
            last: vec![now; count],
            healthy: Some(now),
            worst: vec![Duration::ZERO; count],
            longest: Duration::ZERO,
            records: 0,
            marked: now,
            gaps: vec![Duration::ZERO; count],
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, told) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                // An error is the broker's; what it hides shows as a standstill.
                let Some(Ok(record)) = consumer.poll(POLL) else { continue };
                let mut seen = lock(&theirs);
                seen.moves(record.partition() as usize, Instant::now());
                seen.records += 1;
            }
        });
        Ok(Watch { seen, stop, thread })
    }

    /// Something is wrong from now on.
    pub fn fault(&self) {
        let now = Instant::now();
        let mut seen = lock(&self.seen);
        for partition in 0..seen.last.len() {
            seen.stands(partition, now);
        }
        seen.healthy = None;
    }

    /// Nothing is wrong from now on.
    pub fn healed(&self) {
        lock(&self.seen).healthy = Some(Instant::now());
    }

    /// Gaps are measured from now on.
    pub fn mark(&self) {
        let mut seen = lock(&self.seen);
        seen.marked = Instant::now();
        seen.gaps.fill(Duration::ZERO);
    }

    /// The longest standstill of each partition since the mark, one that lasts included.
    pub fn gaps(&self) -> Vec<Duration> {
        let (seen, now) = (lock(&self.seen), Instant::now());
        let still = seen.last.iter().map(|last| now.saturating_duration_since((*last).max(seen.marked)));
        seen.gaps.iter().zip(still).map(|(gap, still)| *gap.max(&still)).collect()
    }

    /// Records seen so far.
    pub fn records(&self) -> u64 {
        lock(&self.seen).records
    }

    /// Ends the measurement. To be called while input still flows, for a partition without input
    /// has nothing to move for.
    pub fn finish(self) -> Standstill {
        self.fault();
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread shows as a standstill.
        let _ = self.thread.join();
        let seen = lock(&self.seen);
        let worst = (0..).zip(&seen.worst).map(|(partition, still)| (partition, *still));
        Standstill { worst: worst.collect(), longest: seen.longest }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
