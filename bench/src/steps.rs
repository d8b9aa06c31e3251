//! Steps on a record's way that can be called by themselves, without Kafka, in nanoseconds of CPU time per record.
//!
//! What a step costs here is with its data in the cache and nothing else running, so it is the least that it costs in
//! a node. What RocksDB flushes and compacts on threads of its own is not in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::TempDir;
use tidemill::effects::Order;
use tidemill::ports::Handler;
use tidemill::record::{Batch, Offset};
use tidemill::store::{
    BudgetConfig, CacheBudget, Identity, Progress, Store, StoreBudget, Stores, View, ViewLimits,
};
use tidemill::wasm::{WasmHandler, thread_cpu_time};

use crate::boundary::{self, Boundary, RECORDS};
use crate::keys::{Keys, Stream};
use crate::terms::{Work, Workload};
use crate::threads::{COMMIT, WORKER};

/// Batches of a commit: 20,000 records, about what a task handles in 100 ms.
pub const BATCHES: usize = 40;
/// Before anything is measured: most keys have been seen.
const WARM_UP_COMMITS: usize = 50;
const COMMITS: u32 = 20;
/// A quarter of the default, as of one of four tasks.
const CACHE_BYTES: usize = 32 << 20;
/// In the order of a record's way, and the row of [`crate::threads::ROWS`] that each is part of.
pub const STEPS: [(&str, usize); 6] = [
    ("prefetch", WORKER),
    ("handle", WORKER),
    ("absorb", WORKER),
    ("freeze", WORKER),
    ("apply", COMMIT),
    ("settle", WORKER),
];

/// One of them, measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub row: usize,
    pub ns: f64,
}

/// The steps of a workload; none of a work that has none to be called by itself.
pub fn of(workload: &Workload, boundary: Option<&Boundary>) -> Result<Vec<Step>> {
    match workload.work {
        Work::Map => {
            let handle =
                |boundary: &Boundary| Step { name: "handle", row: WORKER, ns: boundary.through_wasm_ns };
            Ok(boundary.map(handle).into_iter().collect())
        }
        Work::Count => counted(one_of_four(workload.keys)),
        Work::Filter | Work::Json | Work::Dedupe => Ok(Vec::new()),
    }
}

/// The keys of one of four tasks.
fn one_of_four(keys: Keys) -> Keys {
    match keys {
        Keys::Zipf(count) => Keys::Zipf(count / 4),
        Keys::Uniform(count) => Keys::Uniform(count / 4),
        others => others,
    }
}

fn counted(keys: Keys) -> Result<Vec<Step>> {
    let mut task = Task::new(keys)?;
    let mut spent = [Duration::ZERO; STEPS.len()];
    for _ in 0..COMMITS {
        for (spent, took) in spent.iter_mut().zip(task.commit()?) {
            *spent += took;
        }
    }
    let records = f64::from(COMMITS) * (BATCHES * RECORDS) as f64;
    let measured = STEPS.into_iter().zip(spent);
    Ok(measured
        .map(|((name, row), spent)| Step { name, row, ns: spent.as_nanos() as f64 / records })
        .collect())
}

/// The state of a task that counts per key, and its handler.
pub struct Task {
    handler: WasmHandler,
    view: View,
    store: Store,
    keys: Stream,
    commits: u64,
    _directory: TempDir,
}

impl Task {
    pub fn new(keys: Keys) -> Result<Task> {
        let linked = boundary::link("plugins/count")?;
        let stores = Arc::new(Stores::new(&linked.manifest().stores)?);
        let directory = tempfile::tempdir()?;
        let budget = StoreBudget::new(BudgetConfig::default())?;
        let identity = Identity {
            cluster_id: "bench".into(),
            incarnation: "bench".into(),
            changelog_topic_id: "bench".into(),
        };
        let store = Store::create(&budget, &directory.path().join("0"), &identity)?;
        let cache = CacheBudget::new(CACHE_BYTES);
        let view = View::new(stores, Some(store.reader()), &cache, ViewLimits::default());
        let (handler, keys) = (linked.instantiate(0)?, Stream::new(keys));
        let mut task = Task { handler, view, store, keys, commits: 0, _directory: directory };
        for _ in 0..WARM_UP_COMMITS {
            task.commit()?;
        }
        Ok(task)
    }

    /// Handles and commits some batches, and answers what each of [`STEPS`] took.
    pub fn commit(&mut self) -> Result<[Duration; STEPS.len()]> {
        let [mut prefetch, mut handle, mut absorb] = [Duration::ZERO; 3];
        for _ in 0..BATCHES {
            let batch = self.batch();
            let mut clock = Clock::start();
            let prefetched = self.view.prefetch(&batch.keys)?;
            prefetch += clock.lap();
            let effects = self.handler.handle(&batch, Order::All, prefetched, &mut self.view)?;
            handle += clock.lap();
            self.view.absorb(&effects.writes, |_| true)?;
            absorb += clock.lap();
        }
        let mut clock = Clock::start();
        let (changes, _) = self.view.freeze().context("frozen already")?;
        let freeze = clock.lap();
        self.commits += 1;
        let rows = changes.keys.iter().zip(changes.values.iter());
        let rows = rows.map(|(key, value)| (key.unwrap_or_default(), value));
        let progress =
            Progress { changelog_next: Offset(self.commits), changelog_ms: 0, inbox_next: Offset(0) };
        self.store.write(rows, progress)?;
        let apply = clock.lap();
        self.view.committed();
        Ok([prefetch, handle, absorb, freeze, apply, clock.lap()])
    }

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        for record in 0..RECORDS as i64 {
            batch.offsets.push(record);
            batch.timestamps.push(1_700_000_000_000 + record);
            batch.keys.push(Some(&self.keys.key()));
            batch.values.push(Some(&[b'v'; 100]));
        }
        batch
    }
}

struct Clock(Duration);

impl Clock {
    fn start() -> Clock {
        Clock(thread_cpu_time())
    }

    /// Since the start or the last lap.
    fn lap(&mut self) -> Duration {
        let before = std::mem::replace(&mut self.0, thread_cpu_time());
        self.0 - before
    }
}
