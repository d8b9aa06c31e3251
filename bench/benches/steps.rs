//! What each step on a record's way costs that can be called by itself, without Kafka: `make bench-steps`.
//!
//! Criterion's iteration is a record, so what it prints are nanoseconds per record, of this thread's CPU
//! time. Read them as a budget: the rest of what a workload needs is librdkafka, the kernel and waiting.
//!
//! | workload | step |
//! |---|---|
//! | b1 | the handler in Wasm, and the same through the same loop of the SDK natively |
//! | b4 | `prefetch` the counts of a batch, `handle` it in Wasm, `absorb` the new counts into the overlay |
//! | | and for each commit: `freeze` (coalesced and sorted, as the changelog gets them), `apply` to the store, `settle` into the cache |
//!
//! What RocksDB flushes and compacts on threads of its own is not in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use tempfile::TempDir;
use tidemill::effects::Order;
use tidemill::ports::Handler;
use tidemill::record::{Batch, Offset};
use tidemill::store::{
    BudgetConfig, CacheBudget, Identity, Progress, Store, StoreBudget, Stores, View, ViewLimits,
};
use tidemill::wasm::{WasmHandler, thread_cpu_time};
use tidemill_bench::boundary::{self, RECORDS};
use tidemill_bench::keys::{Keys, Stream};

/// Batches of a commit: 20,000 records, about what a task handles in 100 ms.
const BATCHES: usize = 40;
/// Before anything is measured: most keys have been seen.
const WARM_UP_COMMITS: usize = 50;
/// A quarter of the default, as of one of four tasks.
const CACHE_BYTES: usize = 32 << 20;
/// In the order of a record's way.
const STEPS: [&str; 6] = ["prefetch", "handle", "absorb", "freeze", "apply", "settle"];

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("b1");
    per_call(&mut group, "handle", boundary::through_wasm().expect("a handler"));
    per_call(&mut group, "handle natively", boundary::natively().expect("a handler"));
    group.finish();
    // A quarter of the workloads' keys, as of one of four tasks.
    for (name, keys) in [("b4-zipf", Keys::Zipf(2_500)), ("b4-uniform", Keys::Uniform(250_000))] {
        let mut group = criterion.benchmark_group(name);
        let mut task = Task::new(keys).expect("a task");
        for (number, step) in STEPS.iter().enumerate() {
            per_record(&mut group, step, BATCHES * RECORDS, || task.commit().expect("a commit")[number]);
        }
        group.finish();
    }
}

fn per_call(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut call: impl FnMut() -> Result<()>) {
    per_record(group, name, RECORDS, || {
        let started = thread_cpu_time();
        call().expect("a call");
        thread_cpu_time() - started
    });
}

/// `call` handles so many records at once, and answers how long a step took.
fn per_record(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    records_a_call: usize,
    mut call: impl FnMut() -> Duration,
) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|records| {
            let calls = records.div_ceil(records_a_call as u64);
            let spent: Duration = (0..calls).map(|_| call()).sum();
            spent.mul_f64(records as f64 / (calls * records_a_call as u64) as f64)
        });
    });
}

/// The state of a task that counts per key, and its handler.
struct Task {
    handler: WasmHandler,
    view: View,
    store: Store,
    keys: Stream,
    commits: u64,
    _directory: TempDir,
}

impl Task {
    fn new(keys: Keys) -> Result<Task> {
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
    fn commit(&mut self) -> Result<[Duration; STEPS.len()]> {
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

criterion_group! {
    name = record;
    config = Criterion::default().sample_size(20).without_plots();
    targets = steps
}
criterion_main!(record);
