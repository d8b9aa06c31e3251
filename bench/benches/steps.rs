//! What each step on a record's way costs that can be measured by itself: `make bench-steps`.
//!
//! Criterion's iteration is a record, so what it prints are nanoseconds per record, of this thread's CPU
//! time, the mean of all calls or commits with its spread. The rest of what a workload needs is in the threads that fetch,
//! librdkafka's and RocksDB's, and in caches that are not as warm as here.
//!
//! | workload | step |
//! |---|---|
//! | b1 | `take` records out of fetched batches, as columns; the handler in Wasm, and the same through the same loop of the SDK natively; `produce` what it emits into batches; send them and `end` the transaction |
//! | b4 | `prefetch` the counts of a batch, `handle` it in Wasm, `absorb` the new counts into the overlay |
//! | | and for each commit: `freeze` (coalesced and sorted, as the changelog gets them), `produce` the counts into batches, and the `changelog`, `apply` to the store, `settle` into the cache |
//!
//! What RocksDB flushes and compacts on threads of its own is not in it.
//!
//! In the end all of them are printed once more, as `make bench` has them beneath its budgets: of many commits the fastest
//! quarter, with sums by thread and for a record, and with instructions where the machine counts them.

use std::time::Duration;

use anyhow::Result;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use tidemill::effects::Emitted;
use tidemill::ports::ChangelogRows;
use tidemill::wasm::thread_cpu_time;
use tidemill_bench::boundary::{self, RECORDS};
use tidemill_bench::budget;
use tidemill_bench::keys::Keys;
use tidemill_bench::load::{Shape, VALUE_BYTES, Values};
use tidemill_bench::queues::{self, Queues};
use tidemill_bench::steps::{self, COMMIT_RECORDS, STEPS, TASK_RECORDS, Task, passed_on};
use tidemill_bench::table::WORKLOADS;

fn each(criterion: &mut Criterion) {
    let shape = Shape { keys: Keys::New, values: Values::Text(VALUE_BYTES) };
    let mut queues = Queues::open(shape).expect("a broker and its clients");
    let mut group = criterion.benchmark_group("b1");
    per_record(&mut group, "take", COMMIT_RECORDS, || queues.take().expect("records").time);
    per_call(&mut group, "handle", boundary::through_wasm().expect("a handler"));
    per_call(&mut group, "handle, natively", boundary::natively().expect("a handler"));
    let emissions = passed_on(shape);
    per_commit(&mut group, &["produce", "end"], &mut queues, (&emissions[..], &[][..]));
    group.finish();
    // A quarter of the workloads' keys, as of one of four tasks.
    for (name, keys) in [("b4-zipf", Keys::Zipf(2_500)), ("b4-uniform", Keys::Uniform(250_000))] {
        let mut group = criterion.benchmark_group(name);
        let mut task = Task::new(keys).expect("a task");
        for (number, (step, _)) in STEPS.iter().enumerate() {
            per_record(&mut group, step, TASK_RECORDS, || {
                task.commit().expect("a commit").spent[number].time
            });
        }
        let (emissions, changelogs) = task.commit_of_all().expect("commits");
        per_commit(&mut group, &["produce", "changelog"], &mut queues, (&emissions[..], &changelogs[..]));
        group.finish();
    }
}

/// All of them and their sums, of the workloads that have a budget.
fn list(_: &mut Criterion) {
    for workload in WORKLOADS.iter().filter(|workload| workload.has_budget) {
        budget::print_steps(workload.name, &steps::of(workload).expect("steps"));
    }
}

fn per_call(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut call: impl FnMut() -> Result<()>) {
    per_record(group, name, RECORDS, || {
        let started = thread_cpu_time();
        call().expect("a call");
        thread_cpu_time() - started
    });
}

/// Some steps of commits that are all the same.
fn per_commit(
    group: &mut BenchmarkGroup<'_, WallTime>,
    names: &[&str],
    queues: &mut Queues,
    (emissions, changelogs): (&[Emitted], &[ChangelogRows]),
) {
    // The first takes what a commit is made of.
    let steps = queues::STEPS[1..].iter().enumerate();
    for (number, (step, _)) in steps.filter(|(_, (step, _))| names.contains(step)) {
        let mut commit = || queues.commit(emissions, changelogs).expect("a commit")[number].time;
        per_record(group, step, COMMIT_RECORDS, &mut commit);
    }
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

criterion_group! {
    name = record;
    config = Criterion::default().sample_size(20).without_plots();
    targets = each, list
}
criterion_main!(record);
