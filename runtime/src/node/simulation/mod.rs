//! The life of tasks under every fault at once, one seed a case.
//!
//! Real workers, commit halves, tasks, stores (RocksDB in memory: a kill loses what was not flushed)
//! and recovery; a model of Kafka's transactions; one thread, one seeded loop. A failed seed is
//! printed, and runs again alone, with a trace, with `TIDEMILL_SEED=N`. `TIDEMILL_SEEDS=N` runs that
//! many. The same seed takes the same steps on every machine.
//!
//! | file | subject |
//! |---|---|
//! | `case` | what a seed decides |
//! | `world`, `state` | the loop, and what it shares |
//! | `faults`, `process` | what breaks, what a kill takes with it |
//! | `broker` | logs, transactions, the group |
//! | `client`, `sink`, `restore`, `driver` | the edges of a worker |
//! | `relay` | a receiver of outboxes, and the network before it |
//! | `edits`, `letters` | an operator who edits state, releases what is parked, and gives dead letters back, meanwhile |
//! | `handler` | two handlers and the truth about them |
//! | `check` | the invariants |
//! | `named` | three interleavings, each scripted |
//! | `stopped` | scripted, too: which restores end before their time |
//! | `taken` | and so: what becomes of records between a take and their handler, and what is said when none come |

mod broker;
mod case;
mod check;
mod client;
mod driver;
mod edits;
mod faults;
mod handler;
mod letters;
mod named;
mod process;
pub(super) mod random;
mod relay;
mod restore;
mod sink;
mod state;
mod stopped;
mod taken;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use case::Case;
use world::World;

use crate::store::{BudgetConfig, StoreBudget};

/// Cases of a run that does not say how many.
const SEEDS: u64 = 1000;
/// Cases run on so many threads at most; each case on one.
const THREADS_MAX: usize = 8;

/// Runs one case; the sentence says what it violated.
fn run(seed: u64, root: &std::path::Path) -> Result<(), String> {
    let budget = StoreBudget::in_memory(BudgetConfig::default()).map_err(|error| error.to_string())?;
    let world = World::new(Case::new(seed), budget, root.join(seed.to_string()));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        while world.lock().turns < world.case.turns {
            world.turn();
        }
        check::check(&world)
    }));
    world.end();
    let _ = std::fs::remove_dir_all(root.join(seed.to_string()));
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(violation)) => Err(format!("violation: {violation}")),
        Err(_) => Err("panic, see above".into()),
    }
}

/// For the directories that RocksDB's crate makes of databases in memory as well. They stay empty, and
/// where there is a file system in memory they take no time.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

#[test]
fn simulation() {
    let root = directory();
    if let Some(seed) = number("TIDEMILL_SEED") {
        tracing_subscriber::fmt().with_env_filter("debug").with_writer(std::io::stderr).init();
        eprintln!("{:?}", Case::new(seed).0);
        run(seed, root.path()).unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
        return;
    }
    let seeds = number("TIDEMILL_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let next = AtomicU64::new(1);
    let failed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed > seeds {
                            return None;
                        }
                        if let Err(reason) = run(seed, root.path()) {
                            next.store(seeds + 1, Ordering::Relaxed);
                            return Some((seed, reason));
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).min()
    });
    if let Some((seed, reason)) = failed {
        panic!("seed {seed}: {reason}; again with TIDEMILL_SEED={seed}");
    }
    eprintln!("simulation: {seeds} seeds, 0 violations, {} s", started.elapsed().as_secs());
}
