//! What everybody may know about a deployment on this node: its tasks, their positions, their state.
//!
//! Workers write it when something changes and once per commit, never per record; the control plane
//! reads it. One board per deployment.
//!
//! Each worker has entries of its own: while a partition moves between two workers of a node, the one
//! that has lost it may learn of that last, and must not take the other's entry with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::edits::EditRequest;
use super::outbox::OutboxRequest;
use super::restore::Ticket;
use super::unpark::UnparkRequest;
use crate::record::Offset;
use crate::store::{StoreReader, Stores};
use crate::task::Task;
use crate::telemetry::{OutboxMetrics, TaskMetrics, TaskState, Telemetry, WorkerMetrics};

#[derive(Debug, Clone)]
pub struct TaskEntry {
    pub state: TaskState,
    /// Why it is halted, or running and paused; empty otherwise.
    pub reason: String,
    /// Why no letter comes back although it runs; empty otherwise.
    pub letters_wait: String,
    pub worker: u32,
    /// Of the restore that was begun last.
    pub ticket: Ticket,
    /// Of the deployment, that the task runs or is about to run.
    pub revision: u64,
    /// By input: where that revision began, once a commit says so.
    pub first: Option<Vec<Offset>>,
    /// Committed positions, by input.
    pub positions: Vec<(u16, Offset)>,
    /// Committed state; none for a stateless task and while restoring.
    pub reader: Option<StoreReader>,
    /// What the revision that the task runs finds there.
    pub stores: Arc<Stores>,
    pub skipped: u64,
    pub metrics: Arc<TaskMetrics>,
}

impl TaskEntry {
    fn show(&mut self, state: TaskState, reason: &str) {
        self.state = state;
        self.metrics.set_state(state);
        self.reason = reason.to_owned();
        if state != TaskState::Running {
            self.letters_wait.clear();
        }
        if state == TaskState::Restoring {
            self.reader = None;
        }
    }
}

#[derive(Debug)]
pub struct Board {
    deployment: String,
    telemetry: Arc<Telemetry>,
    /// By partition and worker.
    tasks: Mutex<BTreeMap<(i32, u32), TaskEntry>>,
    /// So many restores have been begun.
    restores: AtomicU64,
    /// Told of every change of `tasks`.
    changed: Condvar,
    /// When a worker here was last given partitions, or told that it has none.
    rebalanced: Mutex<Option<Instant>>,
    /// Where each worker takes edits of state.
    editors: Mutex<BTreeMap<u32, Sender<EditRequest>>>,
    /// Where each worker takes requests about outboxes.
    askers: Mutex<BTreeMap<u32, Sender<OutboxRequest>>>,
    /// Where each worker takes requests about parked records.
    unparkers: Mutex<BTreeMap<u32, Sender<UnparkRequest>>>,
    /// Why the deployment as a whole does not run, by worker; empty when it does.
    trouble: Mutex<BTreeMap<u32, String>>,
    /// What keeps records from workers that run, and only a person can mend.
    obstacles: Mutex<BTreeMap<u32, String>>,
}

impl Board {
    pub fn new(deployment: &str, telemetry: Arc<Telemetry>) -> Board {
        Board {
            deployment: deployment.to_owned(),
            telemetry,
            tasks: Mutex::default(),
            restores: AtomicU64::default(),
            changed: Condvar::new(),
            rebalanced: Mutex::default(),
            editors: Mutex::default(),
            askers: Mutex::default(),
            unparkers: Mutex::default(),
            trouble: Mutex::default(),
            obstacles: Mutex::default(),
        }
    }

    /// The metrics of a worker, to be written without a lock.
    pub fn worker(&self, index: u32) -> Arc<WorkerMetrics> {
        self.telemetry.worker(&self.deployment, index)
    }

    /// The metrics of a task, to be written without a lock.
    pub fn metrics(&self, partition: i32) -> Arc<TaskMetrics> {
        self.telemetry.task(&self.deployment, partition)
    }

    /// The metrics of one output's rows in a task.
    pub fn outbox(&self, partition: i32, destination: &str) -> Arc<OutboxMetrics> {
        self.telemetry.outbox(&self.deployment, destination, partition)
    }

    /// Every task here; of two workers that name the same one, what [`Board::task`] answers.
    pub fn tasks(&self) -> BTreeMap<i32, TaskEntry> {
        let tasks = self.lock();
        let mut shown: BTreeMap<i32, &TaskEntry> = BTreeMap::new();
        for (&(partition, _), entry) in tasks.iter() {
            let place = shown.entry(partition).or_insert(entry);
            if rank(entry) > rank(place) {
                *place = entry;
            }
        }
        shown.into_iter().map(|(partition, entry)| (partition, entry.clone())).collect()
    }

    /// The entry of the worker that is furthest with this task.
    pub fn task(&self, partition: i32) -> Option<TaskEntry> {
        let tasks = self.lock();
        of(&tasks, partition).max_by_key(|entry| rank(entry)).cloned()
    }

    /// What [`Board::task`] answers once it satisfies `done`, or at `until`.
    pub fn wait_for(
        &self,
        partition: i32,
        until: Instant,
        done: impl Fn(Option<&TaskEntry>) -> bool,
    ) -> Option<TaskEntry> {
        let mut tasks = self.lock();
        loop {
            let entry = of(&tasks, partition).max_by_key(|entry| rank(entry));
            let left = until.saturating_duration_since(Instant::now());
            if done(entry) || left.is_zero() {
                return entry.cloned();
            }
            let waited = self.changed.wait_timeout(tasks, left);
            (tasks, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The group has given a worker its partitions, or none.
    pub fn rebalanced(&self) {
        *lock(&self.rebalanced) = Some(Instant::now());
    }

    pub fn was_rebalanced_within(&self, time: Duration) -> bool {
        lock(&self.rebalanced).is_some_and(|at| at.elapsed() < time)
    }

    pub fn is_halted(&self) -> bool {
        self.tasks().values().any(|task| task.state == TaskState::Halted)
    }

    /// The first worker's trouble, if any; otherwise what keeps records from one.
    pub fn trouble(&self) -> Option<String> {
        let first = |of: &Mutex<BTreeMap<u32, String>>| lock(of).values().next().cloned();
        first(&self.trouble).or_else(|| first(&self.obstacles))
    }

    /// A revision begins: what its predecessor's workers failed for is over.
    pub fn begin(&self) {
        lock(&self.trouble).clear();
        lock(&self.obstacles).clear();
    }

    /// A restore of a task begins, with the ticket that is answered.
    pub fn assigned(&self, partition: i32, worker: u32, revision: u64) -> Ticket {
        let ticket = Ticket(self.restores.fetch_add(1, Ordering::Relaxed));
        let metrics = self.metrics(partition);
        metrics.set_state(TaskState::Restoring);
        let entry = TaskEntry {
            state: TaskState::Restoring,
            reason: String::new(),
            letters_wait: String::new(),
            worker,
            ticket,
            revision,
            first: None,
            positions: Vec::new(),
            reader: None,
            stores: Arc::default(),
            skipped: 0,
            metrics,
        };
        let mut tasks = self.lock();
        tasks.insert((partition, worker), entry);
        self.count(&tasks, worker);
        self.changed.notify_all();
        ticket
    }

    /// How a task is meanwhile, as its restore has it. One that is not awaited any more says nothing: another has
    /// begun since, after which the task may run.
    pub fn restore_says(&self, partition: i32, ticket: Ticket, state: TaskState, reason: &str) {
        let mut tasks = self.lock();
        let mut entries = tasks.range_mut((partition, 0)..=(partition, u32::MAX)).map(|(_, entry)| entry);
        if let Some(entry) = entries.find(|entry| entry.ticket == ticket) {
            entry.show(state, reason);
            self.changed.notify_all();
        }
    }

    fn count(&self, tasks: &BTreeMap<(i32, u32), TaskEntry>, worker: u32) {
        let held = tasks.values().filter(|task| task.worker == worker).count();
        self.worker(worker).partitions.set(held as u64);
    }

    pub fn task_state(&self, partition: i32, worker: u32, state: TaskState, reason: &str) {
        self.change(partition, worker, |entry| entry.show(state, reason));
    }

    /// Letters wait for room, for this reason; empty = they do not any more.
    pub fn letters_wait(&self, partition: i32, worker: u32, reason: &str) {
        self.change(partition, worker, |entry| reason.clone_into(&mut entry.letters_wait));
    }

    pub fn task_running(&self, partition: i32, worker: u32, task: &Task) {
        self.change(partition, worker, |entry| {
            entry.state = TaskState::Running;
            entry.metrics.set_state(TaskState::Running);
            entry.reason.clear();
            entry.revision = task.config().revision;
            entry.first = task.first_offsets().map(<[Offset]>::to_vec);
            entry.positions = committed(task);
            entry.reader = task.reader().cloned();
            entry.stores = Arc::clone(&task.config().stores);
        });
    }

    pub fn task_committed(&self, partition: i32, worker: u32, task: &Task) {
        self.change(partition, worker, |entry| {
            entry.positions = committed(task);
            entry.skipped = task.stats().failures.iter().sum();
            entry.metrics.overlay_bytes.set(task.pending().bytes as u64);
        });
    }

    fn change(&self, partition: i32, worker: u32, change: impl FnOnce(&mut TaskEntry)) {
        if let Some(entry) = self.lock().get_mut(&(partition, worker)) {
            change(entry);
            self.changed.notify_all();
        }
    }

    pub fn gone(&self, partition: i32, worker: u32) {
        let mut tasks = self.lock();
        let Some(entry) = tasks.remove(&(partition, worker)) else { return };
        // The metrics of a task are one, whoever of this node runs it.
        let left = of(&tasks, partition).max_by_key(|entry| rank(entry));
        if left.is_none() {
            self.telemetry.outboxes(&self.deployment, partition).iter().for_each(|(_, cells)| cells.leave());
        }
        entry.metrics.set_state(left.map_or(TaskState::Absent, |entry| entry.state));
        self.count(&tasks, worker);
        self.changed.notify_all();
    }

    /// A worker has ended without a word: what it had is nobody's here.
    pub fn worker_lost(&self, worker: u32) {
        let lost: Vec<i32> = self.lock().keys().filter(|key| key.1 == worker).map(|key| key.0).collect();
        lost.into_iter().for_each(|partition| self.gone(partition, worker));
    }

    /// A worker begins; the one before it under this number takes no more.
    pub fn takes_edits(&self, worker: u32, editor: Sender<EditRequest>) {
        lock(&self.editors).insert(worker, editor);
    }

    /// Hands an edit to the worker that runs its task; false when none does, or it has too many.
    pub fn edit(&self, request: EditRequest) -> bool {
        let Some(task) = self.task(request.partition) else { return false };
        let editor = lock(&self.editors).get(&task.worker).cloned();
        editor.is_some_and(|editor| editor.try_send(request).is_ok())
    }

    /// As [`Board::takes_edits`], for requests about outboxes.
    pub fn takes_asks(&self, worker: u32, asker: Sender<OutboxRequest>) {
        lock(&self.askers).insert(worker, asker);
    }

    /// Hands a request to the worker that runs its task; false when none does, or it has too many.
    pub fn ask_outbox(&self, request: OutboxRequest) -> bool {
        let Some(task) = self.task(request.partition) else { return false };
        let asker = lock(&self.askers).get(&task.worker).cloned();
        asker.is_some_and(|asker| asker.try_send(request).is_ok())
    }

    /// As [`Board::takes_edits`], for requests about parked records.
    pub fn takes_unparks(&self, worker: u32, unparker: Sender<UnparkRequest>) {
        lock(&self.unparkers).insert(worker, unparker);
    }

    /// Hands a request to the worker that runs its task; false when none does, or it has too many.
    pub fn unpark(&self, request: UnparkRequest) -> bool {
        let Some(task) = self.task(request.partition) else { return false };
        let unparker = lock(&self.unparkers).get(&task.worker).cloned();
        unparker.is_some_and(|unparker| unparker.try_send(request).is_ok())
    }

    /// A worker cannot work at all: no consumer or no producer.
    pub fn worker_failed(&self, worker: u32, reason: &str) {
        lock(&self.trouble).insert(worker, reason.to_owned());
    }

    /// A worker has what it needs again.
    pub fn worker_ready(&self, worker: u32) {
        lock(&self.trouble).remove(&worker);
    }

    /// Records do not come to a worker that has all it needs, for that reason; none = they do again.
    pub fn obstacle(&self, worker: u32, reason: Option<&str>) {
        let mut obstacles = lock(&self.obstacles);
        match reason {
            Some(reason) => drop(obstacles.insert(worker, reason.to_owned())),
            None => drop(obstacles.remove(&worker)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(i32, u32), TaskEntry>> {
        lock(&self.tasks)
    }
}

fn of(tasks: &BTreeMap<(i32, u32), TaskEntry>, partition: i32) -> impl Iterator<Item = &TaskEntry> {
    tasks.range((partition, 0)..=(partition, u32::MAX)).map(|(_, entry)| entry)
}

/// Which of two workers' entries of a task tells more.
fn rank(entry: &TaskEntry) -> u8 {
    match entry.state {
        TaskState::Absent => 0,
        TaskState::Restoring => 1,
        TaskState::Halted => 2,
        TaskState::Running => 3,
    }
}

fn committed(task: &Task) -> Vec<(u16, Offset)> {
    (0..).map_while(|input| Some((input, task.committed_offset(input)?))).collect()
}

/// A panic elsewhere leaves values that are still whole: every critical section here is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_that_is_not_awaited_any_more_says_nothing_of_its_task() {
        let board = Board::new("count", Telemetry::new());
        let shown = || board.task(0).map(|entry| (entry.state, entry.reason));
        let given_up = board.assigned(0, 1, 7);
        board.restore_says(0, given_up, TaskState::Halted, "no space");
        assert_eq!(shown(), Some((TaskState::Halted, "no space".to_owned())));
        let next = board.assigned(0, 1, 8);
        board.task_state(0, 1, TaskState::Running, "");
        board.restore_says(0, given_up, TaskState::Restoring, "no answer");
        assert_eq!(shown(), Some((TaskState::Running, String::new())));
        board.gone(0, 1);
        board.restore_says(0, next, TaskState::Restoring, "no answer");
        assert_eq!(shown(), None);
        // Another worker's, or the same one's that has begun anew.
        board.assigned(0, 2, 8);
        for earlier in [given_up, next] {
            board.restore_says(0, earlier, TaskState::Halted, "no space");
            assert_eq!(shown(), Some((TaskState::Restoring, String::new())));
        }
    }
}
