//! Ways in which a restore can write what it has read of a changelog, in keys a second: `make bench-ingestion`.
//!
//! All are given the same records, in an order that is none of their keys, as a changelog has them. As a node's
//! restore does (`task/recovery/replay.rs`), each collects 16 MiB of them, sorts these, and leaves the last of each
//! key. What differs is how such a run gets into RocksDB:
//!
//! | way | how |
//! |---|---|
//! | `batches` | as a node does it: one batch for each run, no write-ahead log |
//! | `large memtable` | the same into memtables of 64 MiB instead of 16, without their filter |
//! | `vector memtable` | the same into vectors, which are sorted when they are flushed; nothing is compacted; then flushed and opened again as a store is, for nobody can read from them |
//! | `ingestion` | a file for each run, which the database takes in as it is; of keys that several files have, and of deletions, the later file counts |
//!
//! A way ends when what it has written can be read. What it leaves in memtables has to be flushed later, so what it
//! costs with that is told as well; compaction is in neither. Kafka is in none of them: fetching costs all the same.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use rocksdb::{
    BlockBasedOptions, DB, DBCompressionType, IngestExternalFileOptions, MemtableFactory, Options,
    SstFileWriter, WriteBatch, WriteOptions,
};
use tidemill::record::Offset;
use tidemill::store::{BudgetConfig, Identity, Progress, Run, Store, StoreBudget};

use crate::process;
use crate::rounds::{Spread, mixed, order};

const STORE: &str = "counts";
/// In front of every key of that store (`store/keys.rs`).
const PREFIX: &[u8] = b"\x01\x06counts";
/// Of a key without its prefix, and of a value.
const KEY_BYTES: usize = 16;
const VALUE_BYTES: usize = 8;
/// Of a run: rows and what holds them.
const RUN_BYTES: usize = 16 << 20;
const MEMTABLE_BYTES: usize = 16 << 20;
const LARGE_MEMTABLE_BYTES: usize = 64 << 20;

#[derive(Args)]
pub struct Arguments {
    /// Distinct keys, of all tasks together
    #[arg(long, default_value_t = 1_000_000)]
    keys: u32,
    /// Stores that are restored at the same time, each by a thread of its own
    #[arg(long, default_value_t = 4)]
    tasks: u32,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Batches,
    LargeMemtable,
    VectorMemtable,
    Ingestion,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Batches, "batches (as it is)"),
    (Way::LargeMemtable, "large memtable"),
    (Way::VectorMemtable, "vector memtable"),
    (Way::Ingestion, "ingestion"),
];

/// What one restore of all keys has taken.
struct Figures {
    keys_per_second: f64,
    /// CPU time of all threads, RocksDB's included, in microseconds a key.
    cpu_us: f64,
    /// The same once memtables are flushed.
    flushed_cpu_us: f64,
}

/// Measures every way in every round, and prints what each takes.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { keys, tasks, rounds } = *arguments;
    ensure!(rounds > 0 && tasks > 0 && keys >= tasks, "at least one round, one task and a key for each");
    let tasks: Vec<Vec<u64>> = (0..tasks)
        .map(|task| (task..keys).step_by(tasks as usize).map(|key| mixed(key.into())).collect())
        .collect();
    let mut measured: [Vec<Figures>; WAYS.len()] = Default::default();
    for round in 0..rounds {
        for number in order(WAYS.len(), round) {
            let (way, name) = WAYS[number];
            let figures = measure(way, &tasks)?;
            println!("round {}: {name}, {:.0} keys/s", round + 1, figures.keys_per_second);
            measured[number].push(figures);
        }
    }
    let tasks = tasks.len();
    println!("\n{keys} keys of {KEY_BYTES} B with values of {VALUE_BYTES} B, {tasks} tasks at once");
    println!("median (min..max) of {rounds} rounds:");
    println!("{:<20} {:>24} {:>24} {:>24}", "way", "1,000 keys/s", "CPU, us/key", "and flushed, us/key");
    for ((_, name), figures) in WAYS.iter().zip(&measured) {
        let rate = spread(figures, |figures| figures.keys_per_second / 1e3);
        let cpu = spread(figures, |figures| figures.cpu_us);
        let flushed = spread(figures, |figures| figures.flushed_cpu_us);
        println!("{name:<20} {rate:>24} {cpu:>24} {flushed:>24}");
    }
    Ok(())
}

/// Of all rounds, as it is printed.
fn spread(rounds: &[Figures], of: impl Fn(&Figures) -> f64) -> String {
    Spread::of(rounds.iter().map(of)).map(|spread| spread.to_string()).unwrap_or_default()
}

fn measure(way: Way, tasks: &[Vec<u64>]) -> Result<Figures> {
    let directory = tempfile::tempdir()?;
    let shared = Shared::new()?;
    let own = std::process::id();
    let (started, before) = (Instant::now(), process::cpu_time(own)?);
    let targets = thread::scope(|scope| -> Result<Vec<Target>> {
        let begun = tasks.iter().enumerate().map(|(number, keys)| {
            let (shared, directory) = (&shared, directory.path().join(number.to_string()));
            scope.spawn(move || restore(Target::open(way, shared, &directory)?, keys))
        });
        let threads: Vec<_> = begun.collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a task panicked"))?);
        ended.collect()
    })?;
    let (clock, restored) = (started.elapsed(), process::cpu_time(own)? - before);
    targets.iter().try_for_each(Target::flush)?;
    let flushed = process::cpu_time(own)? - before;
    for (target, keys) in targets.iter().zip(tasks) {
        for &number in keys.iter().step_by(1_000) {
            let found = target.get(&key(number))?;
            ensure!(found.is_some_and(|found| found == value(number)), "{way:?}: a key is lost");
        }
    }
    let keys = tasks.iter().map(Vec::len).sum::<usize>() as f64;
    Ok(Figures {
        keys_per_second: keys / clock.as_secs_f64(),
        cpu_us: restored.as_secs_f64() * 1e6 / keys,
        flushed_cpu_us: flushed.as_secs_f64() * 1e6 / keys,
    })
}

/// Reads a changelog with these keys.
fn restore(mut target: Target, keys: &[u64]) -> Result<Target> {
    let mut run = Run::default();
    for &number in keys {
        run.push(&key(number), Some(&value(number)));
        if run.bytes() >= RUN_BYTES {
            target.write(&sorted(&run))?;
            run.clear();
        }
    }
    target.write(&sorted(&run))?;
    target.finish()
}

/// Key and value; none = deleted.
type Row<'a> = (&'a [u8], Option<&'a [u8]>);

/// In the order of keys, of each the last.
fn sorted(run: &Run) -> Vec<Row<'_>> {
    run.last_of_each_key().collect()
}

fn key(number: u64) -> [u8; PREFIX.len() + KEY_BYTES] {
    let mut key = [0; PREFIX.len() + KEY_BYTES];
    let (prefix, rest) = key.split_at_mut(PREFIX.len());
    prefix.copy_from_slice(PREFIX);
    rest[..KEY_BYTES / 2].copy_from_slice(&number.to_be_bytes());
    rest[KEY_BYTES / 2..].copy_from_slice(&number.reverse_bits().to_be_bytes());
    key
}

fn value(number: u64) -> [u8; VALUE_BYTES] {
    number.to_le_bytes()
}

/// What the stores of a process share, and the databases that stand for them.
struct Shared {
    budget: StoreBudget,
    /// As a node's stores have them (`store/budget.rs`), as far as they matter here.
    options: Options,
}

impl Shared {
    fn new() -> Result<Shared> {
        let mut table = BlockBasedOptions::default();
        table.set_bloom_filter(10.0, false);
        table.set_format_version(5);
        table.set_optimize_filters_for_memory(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(MEMTABLE_BYTES);
        options.set_max_write_buffer_number(3);
        options.set_memtable_prefix_bloom_ratio(0.01);
        options.set_memtable_whole_key_filtering(true);
        options.set_allow_concurrent_memtable_write(false);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_max_background_jobs(2);
        options.set_block_based_table_factory(&table);
        Ok(Shared { budget: StoreBudget::new(BudgetConfig::default())?, options })
    }

    /// Of a database that is written to in this way.
    fn options(&self, way: Way) -> Options {
        let mut options = self.options.clone();
        if way == Way::VectorMemtable {
            options.prepare_for_bulk_load();
            options.set_memtable_factory(MemtableFactory::Vector);
        }
        if matches!(way, Way::LargeMemtable | Way::VectorMemtable) {
            options.set_write_buffer_size(LARGE_MEMTABLE_BYTES);
            options.set_memtable_prefix_bloom_ratio(0.0);
            options.set_memtable_whole_key_filtering(false);
        }
        options
    }
}

/// A store that is restored.
enum Target {
    Store {
        store: Box<Store>,
        next: u64,
    },
    Batches(DB),
    /// To be opened again, with these options.
    Vectors {
        db: DB,
        directory: PathBuf,
        options: Options,
    },
    Files {
        db: DB,
        directory: PathBuf,
        options: Options,
        count: usize,
    },
}

impl Target {
    fn open(way: Way, shared: &Shared, directory: &Path) -> Result<Target> {
        let db = || DB::open(&shared.options(way), directory);
        let options = shared.options.clone();
        Ok(match way {
            Way::Batches => {
                let [cluster_id, incarnation, changelog_topic_id] = [(); 3].map(|()| "bench".to_owned());
                let identity = Identity { cluster_id, incarnation, changelog_topic_id };
                let store = Store::create(&shared.budget, directory, &identity)?;
                Target::Store { store: Box::new(store), next: 0 }
            }
            Way::LargeMemtable => Target::Batches(db()?),
            Way::VectorMemtable => Target::Vectors { db: db()?, directory: directory.to_owned(), options },
            Way::Ingestion => Target::Files { db: db()?, directory: directory.to_owned(), options, count: 0 },
        })
    }

    /// Rows in the order of their keys, each key once.
    fn write(&mut self, rows: &[Row<'_>]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        match self {
            Target::Store { store, next } => {
                *next += rows.len() as u64;
                let changelog_next = Offset(*next);
                let progress = Progress {
                    changelog_next,
                    changelog_ms: 0,
                    inbox_next: Offset(0),
                    inbox_ids: 0,
                    closed: None,
                };
                Ok(store.write(rows.iter().copied(), progress)?)
            }
            Target::Batches(db) | Target::Vectors { db, .. } => write_batch(db, rows),
            Target::Files { db, directory, options, count } => {
                *count += 1;
                let file = directory.join(format!("{count}.run"));
                write_file(options, &file, rows)?;
                let mut how = IngestExternalFileOptions::default();
                how.set_move_files(true);
                Ok(db.ingest_external_file_opts(&how, vec![file])?)
            }
        }
    }

    /// Everything is written: makes it readable, as a store is read.
    fn finish(self) -> Result<Target> {
        match self {
            Target::Vectors { db, directory, options } => {
                db.flush()?;
                drop(db);
                Ok(Target::Batches(DB::open(&options, directory)?))
            }
            readable => Ok(readable),
        }
    }

    fn flush(&self) -> Result<()> {
        match self {
            Target::Store { store, .. } => Ok(store.reader().flush()?),
            Target::Batches(db) | Target::Vectors { db, .. } | Target::Files { db, .. } => Ok(db.flush()?),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self {
            Target::Store { store, .. } => {
                Ok(store.reader().snapshot(|snapshot| snapshot.get(STORE, &key[PREFIX.len()..]))?)
            }
            Target::Batches(db) | Target::Vectors { db, .. } | Target::Files { db, .. } => Ok(db.get(key)?),
        }
    }
}

fn write_batch(db: &DB, rows: &[Row<'_>]) -> Result<()> {
    let mut batch = WriteBatch::default();
    for &(key, value) in rows {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        }
    }
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    Ok(db.write_opt(batch, &options)?)
}

fn write_file(options: &Options, path: &Path, rows: &[Row<'_>]) -> Result<()> {
    let mut writer = SstFileWriter::create(options);
    writer.open(path)?;
    for &(key, value) in rows {
        match value {
            Some(value) => writer.put(key, value)?,
            None => writer.delete(key)?,
        }
    }
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_records_of_a_key_the_last_one_counts_in_whichever_way_they_are_written() {
        let shared = Shared::new().expect("a budget");
        let key = |name: &str| [PREFIX, name.as_bytes()].concat();
        let [changed, gone, kept] = ["changed", "gone", "kept"].map(key);
        let first = [&changed, &gone, &kept].map(|key| (&key[..], Some(&b"1"[..])));
        let second = [(&changed[..], Some(&b"2"[..])), (&gone[..], None)];
        for (way, name) in WAYS {
            let directory = tempfile::tempdir().expect("a directory");
            let mut target = Target::open(way, &shared, &directory.path().join("0")).expect(name);
            target.write(&first).expect(name);
            target.write(&second).expect(name);
            let target = target.finish().expect(name);
            let found = [&changed, &gone, &kept].map(|key| target.get(key).expect(name));
            assert_eq!(found, [Some(b"2".to_vec()), None, Some(b"1".to_vec())], "{name}");
        }
    }
}
