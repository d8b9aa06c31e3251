//! The counters that threads add to. Plain atomics, one writer each in the normal case.
//!
//! Invariant: a counter never goes back while the process lives, also when its task is revoked and
//! assigned again, because the board keeps the cells by name.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::spent::Spent;

/// Only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter of time; exported in seconds.
#[derive(Debug, Default)]
pub struct Elapsed(AtomicU64);

impl Elapsed {
    /// Saturates after 584 years.
    pub fn add(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn seconds(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1e9
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a latency histogram, in seconds: from a loopback round trip to a stuck call.
pub const LATENCY_BOUNDS_S: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Latencies, counted per bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one counts what is above every bound.
    buckets: [AtomicU64; LATENCY_BOUNDS_S.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let at = LATENCY_BOUNDS_S.partition_point(|&bound| bound < seconds);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Sum in seconds, count, and how many fell into each bucket (not cumulative).
    pub fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = LATENCY_BOUNDS_S.iter().copied().chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.nanos.load(Ordering::Relaxed) as f64 / 1e9, count, buckets)
    }
}

/// Life cycle of a task as an operator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskState {
    /// Not on this node: only its counters are left.
    Absent = 0,
    Restoring = 1,
    Running = 2,
    Halted = 3,
}

impl TaskState {
    /// The states that have a sample.
    pub const SHOWN: [(TaskState, &'static str); 3] =
        [(TaskState::Restoring, "restoring"), (TaskState::Running, "running"), (TaskState::Halted, "halted")];
}

/// One task of one deployment. Written by its worker, once a batch or once a commit.
#[derive(Debug, Default)]
pub struct TaskMetrics {
    pub records_in: Counter,
    pub bytes_in: Counter,
    /// Emissions, counted when their commit is known to have succeeded.
    pub records_out: Counter,
    pub bytes_out: Counter,
    /// Records whose effects were dropped by `failures: skip`.
    pub skipped: Counter,
    /// Records that the handler itself failed.
    pub failed_transient: Counter,
    pub failed_permanent: Counter,
    pub failed_decode: Counter,
    pub failed_schema: Counter,
    pub traps: Counter,
    pub timeouts: Counter,
    pub limit_faults: Counter,
    /// Records whose id the inbox had seen: they had no effect.
    pub duplicates: Counter,
    /// Records whose number breaks the sequence of their key.
    pub sequence_losses: Counter,
    pub sequence_reorderings: Counter,
    pub sequence_repetitions: Counter,
    /// Records tried again after a failure, and records sent to the dead-letter topic.
    pub retries: Counter,
    pub dead_letters: Counter,
    /// Letters given back, and those that a redrive leaves because they came back too often.
    pub redriven: Counter,
    pub over_limit: Counter,
    /// Parked records: those that failed and are kept, and those that wait behind them.
    pub parked_records: Gauge,
    pub parked_bytes: Gauge,
    /// 1 while the input is paused because no more may be parked.
    pub parked_full: Gauge,
    /// Calls into the guest, and the time spent there.
    pub handler_calls: Counter,
    pub handler_time: Elapsed,
    /// One observation a call, that is, a batch.
    pub handler_duration: Histogram,
    pub restored_records: Counter,
    pub restored_bytes: Counter,
    pub restore_time: Elapsed,
    /// Changelog records still to apply.
    pub restore_remaining: Gauge,
    /// Stores that were thrown away and rebuilt from offset zero.
    pub rebuilds: Counter,
    /// On disk and in the write buffer.
    pub store_bytes: Gauge,
    /// Lines that the handler logged beyond what its deployment may.
    pub log_lines_dropped: Counter,
    /// Uncommitted effects in memory.
    pub overlay_bytes: Gauge,
    /// What it did with its time.
    pub spent: Spent,
    state: AtomicU8,
}

impl TaskMetrics {
    pub fn set_state(&self, state: TaskState) {
        self.state.store(state as u8, Ordering::Relaxed);
        if state == TaskState::Absent {
            // Another node has it now; a gauge left behind would count twice in a sum.
            self.spent.forget_recent();
            let kept = [&self.parked_records, &self.parked_bytes, &self.parked_full];
            for gauge in
                [&self.restore_remaining, &self.store_bytes, &self.overlay_bytes].into_iter().chain(kept)
            {
                gauge.set(0);
            }
        }
    }

    pub fn state(&self) -> TaskState {
        match self.state.load(Ordering::Relaxed) {
            1 => TaskState::Restoring,
            2 => TaskState::Running,
            3 => TaskState::Halted,
            _ => TaskState::Absent,
        }
    }
}

/// The rows of one output of one task. Written by its worker.
#[derive(Debug, Default)]
pub struct OutboxMetrics {
    pub rows: Gauge,
    pub bytes: Gauge,
    pub in_flight: Gauge,
    /// When the oldest row was written, milliseconds since the epoch; 0 = there is none.
    pub oldest_ms: Gauge,
    /// 1 while the task's input is paused because no more rows may be kept.
    pub full: Gauge,
    /// Rows that were given up.
    pub buried: Counter,
}

impl OutboxMetrics {
    /// Age of the oldest row, in seconds.
    pub fn age_s(&self) -> f64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now_ms = now.map_or(0, |now| now.as_millis() as u64);
        match self.oldest_ms.get() {
            0 => 0.0,
            oldest_ms => now_ms.saturating_sub(oldest_ms) as f64 / 1e3,
        }
    }

    /// Another node has the task now.
    pub fn leave(&self) {
        for gauge in [&self.rows, &self.bytes, &self.in_flight, &self.oldest_ms, &self.full] {
            gauge.set(0);
        }
    }
}

/// Whether a destination is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum BreakerState {
    #[default]
    Closed = 0,
    /// One delivery is let through, and decides.
    HalfOpen = 1,
    /// Nothing is sent for a while.
    Open = 2,
}

impl BreakerState {
    pub const ALL: [(BreakerState, &'static str); 3] = [
        (BreakerState::Closed, "closed"),
        (BreakerState::HalfOpen, "half_open"),
        (BreakerState::Open, "open"),
    ];
}

/// One destination of a deployment, as this node sees it. Written by its relays.
#[derive(Debug, Default)]
pub struct DestinationMetrics {
    /// Attempts, by how they ended.
    pub deliveries: Counter,
    pub failed: Counter,
    pub refused: Counter,
    /// Of attempts that delivered.
    pub duration: Histogram,
    /// How often the breaker opened.
    pub opened: Counter,
    breaker: AtomicU8,
}

impl DestinationMetrics {
    pub fn set_breaker(&self, state: BreakerState) {
        self.breaker.store(state as u8, Ordering::Relaxed);
    }

    pub fn breaker(&self) -> BreakerState {
        match self.breaker.load(Ordering::Relaxed) {
            0 => BreakerState::Closed,
            1 => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }
}

/// One worker of one deployment.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    pub commits: Counter,
    /// From sealing the overlay to the last store's write batch.
    pub commit_latency: Histogram,
    pub commit_records: Counter,
    /// Commits that were refused for certain; nothing of them is visible.
    pub commits_refused: Counter,
    /// Commits whose outcome was unknown, so that everything was read again (rule P1).
    pub commits_unknown: Counter,
    pub rebalances_assigned: Counter,
    pub rebalances_revoked: Counter,
    pub rebalances_lost: Counter,
    /// Consumers and producers that had to be made anew.
    pub client_restarts: Counter,
    /// Partitions this worker holds.
    pub partitions: Gauge,
}

/// The node itself.
#[derive(Debug, Default)]
pub struct NodeMetrics {
    /// Deployments the registry holds.
    pub deployments: Gauge,
    /// Those of which a start or a stop here should have ended, and does not.
    pub deployments_hanging: Gauge,
    /// Nodes whose heartbeat is fresh, this one included.
    pub nodes: Gauge,
    /// Next record of the registry topic.
    pub registry_offset: Gauge,
    /// Registry entries that this node could not understand.
    pub registry_errors: Counter,
    /// Modules compiled, and the time it took.
    pub modules_compiled: Counter,
    pub compile_time: Elapsed,
    pub block_cache_bytes: Gauge,
    pub write_buffer_bytes: Gauge,
    /// Free space below the state directory.
    pub state_free_bytes: Gauge,
    /// Of directories of state that are of no use and wait to be collected, and how many have been.
    pub unused_state_bytes: Gauge,
    pub collected_state: Counter,
    /// Uploads of modules that this node has deleted from the fleet's topic.
    pub collected_uploads: Counter,
    /// From the sending of a heartbeat to its acknowledgement by every replica in sync.
    pub broker_latency: Histogram,
    /// Versions that this node took back, by what it found.
    pub rollbacks_failures: Counter,
    pub rollbacks_halted: Counter,
    pub rollbacks_lag: Counter,
    pub rollbacks_breaker: Counter,
    /// Calls of the control plane, and those that failed.
    pub control_calls: Counter,
    pub control_errors: Counter,
    /// Of those, the ones that the caller may not make.
    pub control_refused: Counter,
    /// Connections that ended before they were one: no certificate, a wrong one, no TLS.
    pub tls_refused: Counter,
}
