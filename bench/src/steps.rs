//! Steps on a record's way that are measured by themselves, in nanoseconds of CPU time per record, and in instructions
//! where the machine counts them. Those between a worker and its brokers are [`queues`]'; the others need no Kafka.
//!
//! Calls and commits are as large as those of a node under load. Of many commits, after some that nobody counts, the mean
//! of the fastest quarter is told: what else the machine does meanwhile can only add to a step, and is in the mean of all.
//! A step that varies by itself, as `apply` does with how full RocksDB's memory is, is so taken at its cheaper.
//!
//! It is no bound of what a step costs in a node, where other threads run beside it and what a call emits stays until the
//! commit. What RocksDB flushes and compacts on threads of its own is not in it.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tempfile::TempDir;
use tidemill::effects::{Emission, Emissions, Emitted, Order};
use tidemill::ports::{ChangelogRows, Handler};
use tidemill::record::{Batch, Offset};
use tidemill::store::{
    BudgetConfig, CacheBudget, Identity, Progress, Store, StoreBudget, Stores, View, ViewLimits,
};
use tidemill::wasm::WasmHandler;
use tidemill_count::Count;
use tidemill_sdk::guest::{Guest, NoNode};

use crate::boundary::{self, RECORDS};
use crate::keys::{Keys, Stream};
use crate::load::Shape;
use crate::meter::{Meter, Spent};
use crate::queues::{self, Queues};
use crate::terms::{Work, Workload};
use crate::threads::{COMMIT, WORKER};

/// Of a worker, one for each partition.
const TASKS: usize = 4;
/// Calls that a task has in a commit.
const CALLS: usize = 40;
/// Records that a task has in a commit.
pub const TASK_RECORDS: usize = CALLS * RECORDS;
/// Of a worker under load: about what a count handles in the 100 ms between two commits. A map's commits end at three
/// quarters of it, where `commit.overlay_bytes` has no more room.
pub const COMMIT_RECORDS: usize = TASKS * TASK_RECORDS;
/// Of a task, before anything is measured: most keys have been seen.
const WARM_UP_COMMITS: usize = 50;
/// Before anything else is measured: connections and memory are there.
const WARM_UP_ROUNDS: usize = 5;
/// Measured, of which a quarter counts.
const COMMITS: usize = 40;
/// A quarter of the default, as of one of four tasks.
const CACHE_BYTES: usize = 32 << 20;
/// Of records that are handled here.
const TIMESTAMP: i64 = 1_700_000_000_000;
/// A call of the handler through Wasm. In a budget it is in two parts, the next two.
const HANDLE: (&str, usize) = ("handle", WORKER);
/// What the same handler costs through the same loop of the SDK natively.
const NATIVELY: (&str, usize) = ("handle, natively", WORKER);
/// The rest: batches copied into the guest, effects copied out and checked, the call.
pub const BOUNDARY: (&str, usize) = ("handle, boundary", WORKER);
/// Of a task, in the order of a record's way, and the row of [`crate::threads::ROWS`] that each is part of. The last is
/// no step, but a part of one.
pub const STEPS: [(&str, usize); 7] = [
    ("prefetch", WORKER),
    HANDLE,
    ("absorb", WORKER),
    ("freeze", WORKER),
    ("apply", COMMIT),
    ("settle", WORKER),
    NATIVELY,
];

/// One of them, measured; per record.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub row: usize,
    pub ns: f64,
    /// In user mode. `None` where nobody counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<f64>,
}

impl Step {
    /// Of what it took each time, always for so many records: the mean of the fastest quarter.
    fn of((name, row): (&'static str, usize), mut spent: Vec<Spent>, records: usize) -> Step {
        spent.sort_unstable_by_key(|spent| spent.time);
        spent.truncate(spent.len().div_ceil(4));
        let mut sum = Spent::default();
        spent.iter().for_each(|&one| sum += one);
        let per_record = |count: f64| count / (spent.len() * records) as f64;
        let instructions = (sum.instructions > 0).then(|| per_record(sum.instructions as f64));
        Step { name, row, ns: per_record(sum.time.as_nanos() as f64), instructions }
    }

    /// What is left of it without a part.
    fn without(self, part: Step, (name, row): (&'static str, usize)) -> Step {
        let instructions = self.instructions.zip(part.instructions).map(|(all, part)| all - part);
        Step { name, row, ns: self.ns - part.ns, instructions }
    }
}

/// The steps of a workload, those of each row in the order in which they are taken; none of a work that has none to be
/// measured by itself.
pub fn of(workload: &Workload) -> Result<Vec<Step>> {
    let shape = Shape { keys: workload.keys, values: workload.values };
    match workload.work {
        Work::Map => passed(shape),
        Work::Count => counted(shape),
        Work::Filter | Work::Json | Work::Dedupe => Ok(Vec::new()),
    }
}

fn passed(shape: Shape) -> Result<Vec<Step>> {
    // First, because the threads of a broker are not gone at once.
    let handled = handled()?;
    let mut steps = at_queues(shape, &passed_on(shape), &[])?;
    steps.extend(handled);
    Ok(in_parts(steps))
}

/// A call of a handler that passes everything on, and the same natively, in turns.
fn handled() -> Result<Vec<Step>> {
    let (mut through_wasm, mut natively) = (boundary::through_wasm()?, boundary::natively()?);
    let mut meter = Meter::of_this_thread();
    let mut commits = Vec::with_capacity(COMMITS);
    for round in 0..WARM_UP_ROUNDS + COMMITS {
        meter.start();
        for _ in 0..COMMIT_RECORDS / RECORDS {
            through_wasm()?;
        }
        let handle = meter.lap();
        for _ in 0..COMMIT_RECORDS / RECORDS {
            natively()?;
        }
        let natively = meter.lap();
        if round >= WARM_UP_ROUNDS {
            commits.push([handle, natively]);
        }
    }
    Ok(each([HANDLE, NATIVELY], &commits, COMMIT_RECORDS))
}

fn counted(shape: Shape) -> Result<Vec<Step>> {
    let mut task = Task::new(one_of_four(shape.keys))?;
    let mut commits = Vec::with_capacity(COMMITS);
    for _ in 0..COMMITS {
        commits.push(task.commit()?.spent);
    }
    let (emissions, changelogs) = task.commit_of_all()?;
    let mut steps = at_queues(shape, &emissions, &changelogs)?;
    steps.extend(each(STEPS, &commits, TASK_RECORDS));
    Ok(in_parts(steps))
}

/// With the two parts of `handle` in its place.
fn in_parts(steps: Vec<Step>) -> Vec<Step> {
    let find = |(name, _): (&str, usize)| steps.iter().find(|step| step.name == name).copied();
    let (Some(handle), Some(natively)) = (find(HANDLE), find(NATIVELY)) else { return steps };
    let others = steps.iter().filter(|step| step.name != natively.name);
    let parts = |step: &Step| match step.name == handle.name {
        true => vec![natively, handle.without(natively, BOUNDARY)],
        false => vec![*step],
    };
    others.flat_map(parts).collect()
}

/// The keys of one of four tasks.
fn one_of_four(keys: Keys) -> Keys {
    match keys {
        Keys::Zipf(count) => Keys::Zipf(count / 4),
        Keys::Uniform(count) => Keys::Uniform(count / 4),
        others => others,
    }
}

/// What a commit emits whose handler passes everything on.
pub fn passed_on(shape: Shape) -> Vec<Emitted> {
    let (mut keys, value) = (Stream::new(shape.keys), shape.values.text().into_bytes());
    let batch = |_| {
        let mut rows = Emissions::default();
        for source in 0..RECORDS as u32 {
            let (key, value) = (keys.key(), Some(&value[..]));
            let (output, partition, timestamp, headers) = (0, -1, TIMESTAMP, None);
            rows.push(Emission { source, output, partition, timestamp, key: Some(&key), value, headers });
        }
        Emitted::from(rows)
    };
    (0..COMMIT_RECORDS / RECORDS).map(batch).collect()
}

/// Of commits that are all the same.
fn at_queues(shape: Shape, emissions: &[Emitted], changelogs: &[ChangelogRows]) -> Result<Vec<Step>> {
    let mut queues = Queues::open(shape)?;
    for _ in 0..WARM_UP_ROUNDS {
        queues.round(emissions, changelogs)?;
    }
    let mut commits = Vec::with_capacity(COMMITS);
    for _ in 0..COMMITS {
        commits.push(queues.round(emissions, changelogs)?);
    }
    let mut steps = each(queues::STEPS, &commits, COMMIT_RECORDS);
    // Without a changelog, its step was not taken.
    steps.retain(|step| step.ns > 0.0);
    Ok(steps)
}

/// Of commits with so many records.
fn each<const N: usize>(
    names: [(&'static str, usize); N],
    commits: &[[Spent; N]],
    records: usize,
) -> Vec<Step> {
    let of = |(number, name): (usize, (&'static str, usize))| {
        let spent = commits.iter().map(|commit: &[Spent; N]| commit[number]).collect();
        Step::of(name, spent, records)
    };
    names.into_iter().enumerate().map(of).collect()
}

/// The state of a task that counts per key, and its handler.
pub struct Task {
    handler: WasmHandler,
    /// The same, linked.
    natively: Guest<Count>,
    view: View,
    store: Store,
    keys: Stream,
    commits: u64,
    meter: Meter,
    _directory: TempDir,
}

/// A commit of a task: what there is to hand to Kafka, and what each of [`STEPS`] took.
pub struct Committed {
    pub emissions: Vec<Emitted>,
    pub changelog: ChangelogRows,
    pub spent: [Spent; STEPS.len()],
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
        let natively = Guest::<Count>::create(b"{}", Box::new(NoNode)).map_err(anyhow::Error::msg)?;
        let (commits, meter) = (0, Meter::of_this_thread());
        let mut task = Task { handler, natively, view, store, keys, commits, meter, _directory: directory };
        for _ in 0..WARM_UP_COMMITS {
            task.commit()?;
        }
        Ok(task)
    }

    /// A commit of four tasks, as it is handed to Kafka.
    pub fn commit_of_all(&mut self) -> Result<(Vec<Emitted>, Vec<ChangelogRows>)> {
        let (mut emissions, mut changelogs) = (Vec::new(), Vec::new());
        for partition in 0..TASKS as i32 {
            let committed = self.commit()?;
            emissions.extend(committed.emissions);
            changelogs.push(ChangelogRows { partition, ..committed.changelog });
        }
        Ok((emissions, changelogs))
    }

    /// Handles and commits [`TASK_RECORDS`].
    pub fn commit(&mut self) -> Result<Committed> {
        let [mut prefetch, mut handle, mut absorb, mut natively] = [Spent::default(); 4];
        let mut emissions = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let batch = self.batch();
            self.meter.start();
            let prefetched = self.view.prefetch(&batch.keys)?;
            prefetch += self.meter.lap();
            let (records, state) = (boundary::native_batch(&batch), boundary::native_state(&prefetched));
            self.meter.start();
            let effects = self.handler.handle(&batch, Order::All, prefetched, &mut self.view)?;
            handle += self.meter.lap();
            self.view.absorb(&effects.writes, |_| true)?;
            absorb += self.meter.lap();
            let same = self.natively.handle(&records, state);
            natively += self.meter.lap();
            ensure!(same.emit.source.len() == effects.emissions.len(), "it does the same natively");
            emissions.push(Emitted::from(effects.emissions));
        }
        self.meter.start();
        let (changes, _) = self.view.freeze().context("frozen already")?;
        let freeze = self.meter.lap();
        self.commits += 1;
        let (keys, values) = (changes.keys, changes.values);
        let changelog = ChangelogRows { partition: 0, keys, values, stamp: None };
        let rows = changelog.keys.iter().zip(changelog.values.iter());
        let rows = rows.map(|(key, value)| (key.unwrap_or_default(), value));
        let changelog_next = Offset(self.commits);
        let progress =
            Progress { changelog_next, changelog_ms: 0, inbox_next: Offset(0), inbox_ids: 0, closed: None };
        self.meter.start();
        self.store.write(rows, progress)?;
        let apply = self.meter.lap();
        self.view.committed();
        let spent = [prefetch, handle, absorb, freeze, apply, self.meter.lap(), natively];
        Ok(Committed { emissions, changelog, spent })
    }

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        for record in 0..RECORDS as i64 {
            batch.offsets.push(record);
            batch.timestamps.push(TIMESTAMP + record);
            batch.keys.push(Some(&self.keys.key()));
            batch.values.push(Some(&[b'v'; 100]));
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn step((name, row): (&'static str, usize), ns: f64, instructions: Option<f64>) -> Step {
        Step { name, row, ns, instructions }
    }

    #[test]
    fn a_step_is_the_mean_of_its_fastest_quarter() {
        let spent = |ns| Spent { time: Duration::from_nanos(ns), instructions: 2 * ns };
        let commits = [900, 100, 4_000, 300, 1_000, 800, 700, 600].map(spent);
        let told = Step::of(HANDLE, commits.to_vec(), 10);
        assert_eq!(told, step(HANDLE, 20.0, Some(40.0)));
        let uncounted = Spent { instructions: 0, ..spent(100) };
        assert_eq!(Step::of(HANDLE, vec![uncounted], 10), step(HANDLE, 10.0, None));
    }

    #[test]
    fn a_call_is_told_in_two_parts_that_sum_up_to_it() {
        let [take, settle] = [("take", WORKER), ("settle", WORKER)].map(|name| step(name, 5.0, None));
        let (handle, natively) = (step(HANDLE, 66.0, Some(90.0)), step(NATIVELY, 37.0, Some(50.0)));
        let boundary = step(BOUNDARY, 29.0, Some(40.0));
        let parts = in_parts(vec![take, handle, settle, natively]);
        assert_eq!(parts, [take, natively, boundary, settle]);
        assert_eq!(in_parts(vec![take, settle]), [take, settle], "of what has no handler");
    }
}
