//! Steps on a record's way that are measured by themselves, in nanoseconds of CPU time per record, and in instructions
//! where the machine counts them. Those between a worker and its brokers are [`queues`]'; the others need no Kafka.
//!
//! What a step costs here is with nothing else running, and, but for what was fetched ahead, with its data in the cache.
//! It is no bound of what it costs in a node: of a map the threads there have needed less than their steps here. What
//! RocksDB flushes and compacts on threads of its own is not in it.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::TempDir;
use tidemill::effects::{Emission, Emissions, Emitted, Order};
use tidemill::ports::{ChangelogRows, Handler};
use tidemill::record::{Batch, Offset};
use tidemill::store::{
    BudgetConfig, CacheBudget, Identity, Progress, Store, StoreBudget, Stores, View, ViewLimits,
};
use tidemill::wasm::WasmHandler;

use crate::boundary::{self, RECORDS};
use crate::keys::{Keys, Stream};
use crate::load::Shape;
use crate::meter::{Meter, Spent};
use crate::queues::{self, Queues};
use crate::terms::{Work, Workload};
use crate::threads::{COMMIT, WORKER};

/// Batches of a commit.
const BATCHES: usize = 40;
/// About what a task handles in 100 ms.
pub const COMMIT_RECORDS: usize = BATCHES * RECORDS;
/// Before anything is measured: most keys have been seen.
const WARM_UP_COMMITS: usize = 50;
const COMMITS: usize = 20;
/// A quarter of the default, as of one of four tasks.
const CACHE_BYTES: usize = 32 << 20;
/// Of records that are handled here.
const TIMESTAMP: i64 = 1_700_000_000_000;
/// Of a task, in the order of a record's way, and the row of [`crate::threads::ROWS`] that each is part of.
pub const STEPS: [(&str, usize); 6] = [
    ("prefetch", WORKER),
    ("handle", WORKER),
    ("absorb", WORKER),
    ("freeze", WORKER),
    ("apply", COMMIT),
    ("settle", WORKER),
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
    fn new((name, row): (&'static str, usize), spent: Spent, records: usize) -> Step {
        let per_record = |count: f64| count / records as f64;
        let instructions = (spent.instructions > 0).then(|| per_record(spent.instructions as f64));
        Step { name, row, ns: per_record(spent.time.as_nanos() as f64), instructions }
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
    let mut steps = at_queues(shape, &passed_on(shape), None)?;
    let (mut handle, mut meter) = (boundary::through_wasm()?, Meter::of_this_thread());
    for _ in 0..BATCHES {
        handle()?;
    }
    meter.start();
    for _ in 0..COMMITS * BATCHES {
        handle()?;
    }
    steps.push(Step::new(("handle", WORKER), meter.lap(), COMMITS * COMMIT_RECORDS));
    Ok(steps)
}

fn counted(shape: Shape) -> Result<Vec<Step>> {
    let mut task = Task::new(one_of_four(shape.keys))?;
    let mut committed = task.commit()?;
    let mut spent = committed.spent;
    for _ in 1..COMMITS {
        committed = task.commit()?;
        add(&mut spent, committed.spent);
    }
    let mut steps = at_queues(shape, &committed.emissions, Some(&committed.changelog))?;
    steps.extend(per_record(STEPS, spent));
    Ok(steps)
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
    (0..BATCHES).map(batch).collect()
}

/// Of commits that are all the same.
fn at_queues(shape: Shape, emissions: &[Emitted], changelog: Option<&ChangelogRows>) -> Result<Vec<Step>> {
    let mut queues = Queues::open(shape)?;
    // Not counted: connections are made.
    queues.round(emissions, changelog)?;
    let mut spent = [Spent::default(); queues::STEPS.len()];
    for _ in 0..COMMITS {
        add(&mut spent, queues.round(emissions, changelog)?);
    }
    // Without a changelog, its step was not taken.
    Ok(per_record(queues::STEPS, spent).filter(|step| step.ns > 0.0).collect())
}

fn add<const N: usize>(spent: &mut [Spent; N], more: [Spent; N]) {
    spent.iter_mut().zip(more).for_each(|(spent, more)| *spent += more);
}

/// Of what [`COMMITS`] have spent.
fn per_record<const N: usize>(
    names: [(&'static str, usize); N],
    spent: [Spent; N],
) -> impl Iterator<Item = Step> {
    names.into_iter().zip(spent).map(|(name, spent)| Step::new(name, spent, COMMITS * COMMIT_RECORDS))
}

/// The state of a task that counts per key, and its handler.
pub struct Task {
    handler: WasmHandler,
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
        let meter = Meter::of_this_thread();
        let mut task = Task { handler, view, store, keys, commits: 0, meter, _directory: directory };
        for _ in 0..WARM_UP_COMMITS {
            task.commit()?;
        }
        Ok(task)
    }

    /// Handles and commits [`COMMIT_RECORDS`].
    pub fn commit(&mut self) -> Result<Committed> {
        let [mut prefetch, mut handle, mut absorb] = [Spent::default(); 3];
        let mut emissions = Vec::with_capacity(BATCHES);
        for _ in 0..BATCHES {
            let batch = self.batch();
            self.meter.start();
            let prefetched = self.view.prefetch(&batch.keys)?;
            prefetch += self.meter.lap();
            let effects = self.handler.handle(&batch, Order::All, prefetched, &mut self.view)?;
            handle += self.meter.lap();
            self.view.absorb(&effects.writes, |_| true)?;
            absorb += self.meter.lap();
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
        let progress = Progress { changelog_next, changelog_ms: 0, inbox_next: Offset(0), inbox_ids: 0 };
        self.meter.start();
        self.store.write(rows, progress)?;
        let apply = self.meter.lap();
        self.view.committed();
        let spent = [prefetch, handle, absorb, freeze, apply, self.meter.lap()];
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
