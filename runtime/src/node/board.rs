//! What everybody may know about a deployment on this node: its tasks, their positions, their state.
//!
//! Workers write it when something changes and once per commit, never per record; the control plane
//! reads it. One board per deployment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::record::Offset;
use crate::store::StoreReader;
use crate::task::Task;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskState {
    #[default]
    Restoring,
    Running,
    Halted,
}

/// Progress of a restore, written by its thread.
#[derive(Debug, Default)]
pub struct RestoreProgress {
    /// Changelog records still to apply.
    pub remaining: AtomicU64,
    /// Applied so far, all restores of this task.
    pub records: AtomicU64,
    pub bytes: AtomicU64,
}

#[derive(Debug, Clone, Default)]
pub struct TaskEntry {
    pub state: TaskState,
    /// Why it is halted; empty otherwise.
    pub reason: String,
    pub worker: u32,
    /// Committed positions, by input.
    pub positions: Vec<(u16, Offset)>,
    /// Committed state; none for a stateless task and while restoring.
    pub reader: Option<StoreReader>,
    pub skipped: u64,
    pub restore: Arc<RestoreProgress>,
}

/// Counters of one deployment on this node since it started.
#[derive(Debug, Default)]
pub struct Counters {
    pub records: AtomicU64,
    pub skipped: AtomicU64,
    pub commits: AtomicU64,
    pub commit_micros: AtomicU64,
    pub rebalances: AtomicU64,
    /// Times rule P1 was followed.
    pub recoveries: AtomicU64,
}

#[derive(Debug, Default)]
pub struct Board {
    tasks: Mutex<BTreeMap<i32, TaskEntry>>,
    /// Why the deployment as a whole does not run, by worker; empty when it does.
    trouble: Mutex<BTreeMap<u32, String>>,
    pub counters: Counters,
}

impl Board {
    pub fn tasks(&self) -> BTreeMap<i32, TaskEntry> {
        self.lock().clone()
    }

    pub fn task(&self, partition: i32) -> Option<TaskEntry> {
        self.lock().get(&partition).cloned()
    }

    /// The first worker's trouble, if any.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).values().next().cloned()
    }

    pub fn assigned(&self, partition: i32, worker: u32) {
        let entry = TaskEntry { worker, ..TaskEntry::default() };
        self.lock().insert(partition, entry);
    }

    pub fn task_state(&self, partition: i32, state: TaskState, reason: &str) {
        if let Some(entry) = self.lock().get_mut(&partition) {
            entry.state = state;
            entry.reason = reason.to_owned();
            if state == TaskState::Restoring {
                entry.reader = None;
            }
        }
    }

    pub fn task_running(&self, partition: i32, task: &Task) {
        if let Some(entry) = self.lock().get_mut(&partition) {
            entry.state = TaskState::Running;
            entry.reason.clear();
            entry.positions = committed(task);
            entry.reader = task.reader().cloned();
        }
    }

    pub fn task_committed(&self, partition: i32, task: &Task) {
        if let Some(entry) = self.lock().get_mut(&partition) {
            entry.positions = committed(task);
            entry.skipped = task.stats().failures.iter().sum();
        }
    }

    pub fn gone(&self, partition: i32) {
        self.lock().remove(&partition);
    }

    pub fn applied(&self, records: u64, skipped: u64) {
        self.counters.records.fetch_add(records, Ordering::Relaxed);
        self.counters.skipped.fetch_add(skipped, Ordering::Relaxed);
    }

    pub fn committed(&self, worker: u32, took: Duration) {
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.counters.commit_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        lock(&self.trouble).remove(&worker);
    }

    pub fn rebalanced(&self) {
        self.counters.rebalances.fetch_add(1, Ordering::Relaxed);
    }

    pub fn recovered(&self) {
        self.counters.recoveries.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker cannot work at all: no consumer or no producer.
    pub fn worker_failed(&self, worker: u32, reason: &str) {
        lock(&self.trouble).insert(worker, reason.to_owned());
    }

    /// A worker has what it needs again.
    pub fn worker_ready(&self, worker: u32) {
        lock(&self.trouble).remove(&worker);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, TaskEntry>> {
        lock(&self.tasks)
    }
}

fn committed(task: &Task) -> Vec<(u16, Offset)> {
    (0..).map_while(|input| Some((input, task.committed_offset(input)?))).collect()
}

/// A panic elsewhere leaves values that are still whole: every critical section here is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
