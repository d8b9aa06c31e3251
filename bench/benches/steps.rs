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

use std::time::Duration;

use anyhow::Result;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use tidemill::wasm::thread_cpu_time;
use tidemill_bench::boundary::{self, RECORDS};
use tidemill_bench::keys::Keys;
use tidemill_bench::steps::{BATCHES, STEPS, Task};

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("b1");
    per_call(&mut group, "handle", boundary::through_wasm().expect("a handler"));
    per_call(&mut group, "handle natively", boundary::natively().expect("a handler"));
    group.finish();
    // A quarter of the workloads' keys, as of one of four tasks.
    for (name, keys) in [("b4-zipf", Keys::Zipf(2_500)), ("b4-uniform", Keys::Uniform(250_000))] {
        let mut group = criterion.benchmark_group(name);
        let mut task = Task::new(keys).expect("a task");
        for (number, (step, _)) in STEPS.iter().enumerate() {
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

criterion_group! {
    name = record;
    config = Criterion::default().sample_size(20).without_plots();
    targets = steps
}
criterion_main!(record);
