//! Restores on threads of their own: Kafka and disk in, a task at its position out.
//!
//! Whatever one waits for, be it a permit, the store, Kafka, or time to pass, it waits no longer than its worker wants the task.
//! Then it lets go of everything: of a store that it has done nothing to as it is, of any other closed, with what it holds by then.

mod known;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_proto::v1::FirstCommitEntry;
use tidemill_proto::v1::control_entry::Entry;

use super::board::Board;
use super::deployment::{wall_ms, words};
use super::first_commits::FirstCommits;
use super::lease::{Lease, Leases};
use super::restore::{Outcome, RestoreRequest, Restorer, Ticket, Verdict, Verdicts};
use super::revision::Revision;
use super::runtime::NodeRuntime;
use crate::faults::{Bug, planted};
use crate::ports::{SourceError, Stop};
use crate::record::Offset;
use crate::store::{Store, StoreError};
use crate::task::recovery::{self, Disk, Hooks, Job, OldTail, RecoveryError, Report, Rules};
use crate::task::{Start, Task, TaskConfig};
use crate::telemetry::{TaskMetrics, TaskState};

/// How long a restore waits for the former holder of its store.
const LEASE_WAIT: Duration = Duration::from_secs(30);
/// Pause before a restore that Kafka did not answer is tried again.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// Pause before a worker whose deployment has changed asks again.
const STALE_PAUSE: Duration = Duration::from_millis(100);

/// Pause before a disk that refused is tried again.
const DISK_PAUSE: Duration = Duration::from_secs(5);

/// Pause before a restore that panicked is tried again: it may have read much until then.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// Restores the tasks of one worker.
pub struct KafkaRestorer {
    context: Arc<Context>,
    first_commits: FirstCommits,
}

/// The store's former holder has not let go of it in time.
struct Busy;

/// What a restore is asked for.
struct Asked {
    partition: i32,
    /// By which the board knows it.
    ticket: Ticket,
    stop: Stop,
}

/// What every restore of a worker shares.
struct Context {
    node: Arc<NodeRuntime>,
    revision: Arc<Revision>,
    /// Of this life of the deployment.
    board: Arc<Board>,
    task_config: Arc<TaskConfig>,
}

impl KafkaRestorer {
    pub fn new(node: Arc<NodeRuntime>, revision: Arc<Revision>) -> KafkaRestorer {
        let board = node.board_for(&revision.registered.name);
        let task_config = Arc::new(revision.task_config());
        KafkaRestorer {
            context: Arc::new(Context { node, revision, board, task_config }),
            first_commits: FirstCommits::default(),
        }
    }
}

impl KafkaRestorer {
    /// What the tasks that it restores are told.
    pub fn task_config(&self) -> Arc<TaskConfig> {
        Arc::clone(&self.context.task_config)
    }
}

impl Restorer for KafkaRestorer {
    fn begin(&mut self, request: RestoreRequest, verdicts: Verdicts) {
        let context = Arc::clone(&self.context);
        let RestoreRequest { partition, ticket, store, stop } = request;
        let asked = Asked { partition, ticket, stop };
        let name = format!("restore-{}-{partition}", context.revision.registered.name);
        let for_failure = verdicts.clone();
        let is_open = store.is_some();
        if is_open {
            self.context.node.leases.restoring(&self.context.dir(partition));
        }
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            let dir = context.dir(partition);
            let restore = |holds: &Cell<bool>| context.restore(&asked, store, holds);
            let (outcome, pause) = attempt(&context.node.leases, &dir, is_open, restore)
                .unwrap_or_else(|reason| context.panicked(&asked, &reason));
            let outcome = match asked.stop.pause(pause) {
                true => outcome,
                false => context.unwanted(partition, outcome),
            };
            if !context.is_stateless() && outcome.holds_store() {
                context.node.leases.restored(&dir);
            }
            // A worker that has ended gave its stores back; this one goes the same way.
            if let Err(late) = verdicts.deliver(Verdict { partition, ticket, outcome })
                && let Some(store) = late.outcome.into_store()
            {
                context.put_back(partition, store);
            }
        });
        if let Err(error) = spawned {
            if is_open {
                // It has gone with the thread that there is not.
                self.context.node.leases.free(&self.context.dir(partition));
            }
            let reason = format!("no thread to restore on: {error}; raise the limit on threads");
            // The worker that is calling has not ended.
            let _ = for_failure.deliver(Verdict {
                partition,
                ticket,
                outcome: Outcome::Halt { reason, store: None },
            });
        }
    }

    fn release(&mut self, partition: i32, store: Store) {
        self.context.put_back(partition, store);
    }

    fn destroy(&mut self, partition: i32, store: Store) {
        let dir = self.context.dir(partition);
        drop(store);
        if let Err(error) = Store::destroy(&self.context.node.store_budget, &dir) {
            tracing::error!(%error, "cannot delete a store that is to be rebuilt");
        }
        self.context.node.leases.free(&dir);
    }

    fn trim_inbox(&mut self, partition: i32, before: Offset) {
        let context = Arc::clone(&self.context);
        // Not on the worker's thread: it waits for Kafka.
        let spawned = std::thread::Builder::new().name("trim-inbox".into()).spawn(move || {
            let Some(topic) = &context.revision.inbox else { return };
            if let Err(error) = context.node.admin.delete_records(topic, partition, before) {
                tracing::warn!(topic, partition, %error, "expired ids stay for now");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(partition, %error, "no thread to trim the inbox's topic; expired ids stay for now");
        }
    }

    fn committed(&mut self, partition: i32) {
        if !self.first_commits.begin(partition, Instant::now()) {
            return;
        }
        let context = Arc::clone(&self.context);
        let incarnation = context.revision.registered.incarnation.clone();
        let topics: Vec<String> = context.revision.inputs.iter().map(|input| input.topic.clone()).collect();
        let view = context.node.control_log.view();
        if topics.iter().all(|topic| view.has_committed(&incarnation, topic, partition)) {
            return;
        }
        // Not on the worker's thread: it waits for Kafka.
        let first_commits = self.first_commits.clone();
        let spawned = std::thread::Builder::new().name("first-commit".into()).spawn(move || {
            let deployment = context.revision.registered.name.clone();
            let first = Entry::FirstCommit(FirstCommitEntry { deployment, incarnation, partition, topics });
            let tell = |entry| context.node.control_log.propose(entry).map_err(|error| error.to_string());
            let told = context.changelog_began().and_then(|began| {
                began.into_iter().chain([first]).try_for_each(|entry| tell(entry).map(drop))
            });
            if let Err(error) = told {
                tracing::warn!(%error, partition, "the registry does not know of a first commit yet");
                first_commits.failed(partition, Instant::now());
            }
        });
        if spawned.is_err() {
            self.first_commits.failed(partition, Instant::now());
        }
    }
}

/// Runs a restore, which says when it `holds` the directory. Of one that panics, answers the words: its store
/// has gone with it, and so its hold on the directory.
fn attempt<T>(
    leases: &Leases,
    dir: &Path,
    is_open: bool,
    restore: impl FnOnce(&Cell<bool>) -> T,
) -> Result<T, String> {
    let holds = Cell::new(is_open);
    catch_unwind(AssertUnwindSafe(|| restore(&holds))).map_err(|panic| {
        if holds.get() {
            leases.free(dir);
        }
        words(&*panic)
    })
}

impl Context {
    fn dir(&self, partition: i32) -> PathBuf {
        self.node.store_dir(&self.revision.registered, partition)
    }

    /// Reads the control topic to its end, so that a partition that comes from a node with a newer
    /// revision is not run by an older one here.
    fn is_current(&self) -> bool {
        let registered = &self.revision.registered;
        if planted(Bug::RevisionOld) {
            return true;
        }
        match self.node.control_log.catch_up() {
            Ok(view) => {
                view.deployments.get(&registered.name).is_some_and(|now| now.revision == registered.revision)
            }
            Err(error) => {
                tracing::warn!(deployment = registered.name, %error, "cannot tell whether this revision is the last one");
                false
            }
        }
    }

    fn put_back(&self, partition: i32, store: Store) {
        self.node.leases.put(&self.dir(partition), store);
    }

    /// Of a restore that was stopped: its worker may be busy for long, and somebody else wait for the store.
    fn unwanted(&self, partition: i32, outcome: Outcome) -> Outcome {
        if let Some(store) = outcome.into_store() {
            self.put_back(partition, store);
        }
        Outcome::Again { store: None }
    }

    fn is_stateless(&self) -> bool {
        self.task_config.is_stateless()
    }

    /// Asks what Kafka or the fleet has to answer, which nothing interrupts.
    fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        stop: &Stop,
        question: impl FnOnce(&Context) -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        let context = Arc::clone(self);
        stop.aside(move || question(&context))
    }

    /// Runs a restore to its outcome, and says how long to wait before the worker hears of it: it tries
    /// again at once what cannot be had now.
    fn restore(
        self: &Arc<Self>,
        asked: &Asked,
        open: Option<Store>,
        holds: &Cell<bool>,
    ) -> (Outcome, Duration) {
        let (partition, stop) = (asked.partition, &asked.stop);
        match self.ask(stop, Context::is_current) {
            Ok(true) => {}
            // The supervisor stops this worker as soon as it knows, or has.
            Ok(false) | Err(SourceError::Stopped) => return (Outcome::Again { store: open }, STALE_PAUSE),
            Err(error) => {
                self.tell(asked, TaskState::Restoring, &error.to_string());
                return (Outcome::Again { store: open }, AGAIN_PAUSE);
            }
        }
        if !self.is_stateless() && partition >= self.revision.partitions {
            // Added to the inputs since the start, so its changelog may not be there: whether this
            // deployment goes on or stops is decided at the next refresh, by `super::inputs`.
            return (Outcome::Again { store: open }, AGAIN_PAUSE);
        }
        let Some(_permit) = self.node.restores.take(stop) else {
            return (Outcome::Again { store: open }, Duration::ZERO);
        };
        let metrics = self.node.telemetry.task(&self.revision.registered.name, partition);
        let start = Instant::now();
        let open = match self.store(asked, open) {
            Ok(open) => open,
            Err(Busy) => return (Outcome::Again { store: None }, Duration::ZERO),
        };
        holds.set(!self.is_stateless());
        let (outcome, pause) = match self.recover(asked, open, &metrics) {
            Ok(outcome) => (outcome, Duration::ZERO),
            Err(error) => self.failed(asked, &error),
        };
        metrics.restore_remaining.set(0);
        metrics.restore_time.add(start.elapsed());
        // Whatever has not come back open is closed.
        if !self.is_stateless() && !outcome.holds_store() {
            self.node.leases.free(&self.dir(partition));
        }
        (outcome, pause)
    }

    /// The right to open the store, and the store itself if it is open.
    fn store(&self, asked: &Asked, open: Option<Store>) -> Result<Option<Store>, Busy> {
        if self.is_stateless() || open.is_some() {
            return Ok(open);
        }
        match self.node.leases.acquire(&self.dir(asked.partition), LEASE_WAIT, &asked.stop) {
            Lease::Open(store) => Ok(Some(store)),
            Lease::Closed => Ok(None),
            Lease::Busy => Err(Busy),
        }
    }

    fn failed(&self, asked: &Asked, error: &RecoveryError) -> (Outcome, Duration) {
        let halt = |reason: String| (Outcome::Halt { reason, store: None }, Duration::ZERO);
        match error {
            RecoveryError::Kafka(SourceError::Refused(reason)) => halt(reason.clone()),
            RecoveryError::Store(StoreError::Locked(_) | StoreError::Refused(_)) => halt(error.to_string()),
            RecoveryError::Store(StoreError::Io(reason)) => {
                self.blocked(asked, reason);
                (Outcome::Again { store: None }, DISK_PAUSE)
            }
            RecoveryError::Kafka(_) | RecoveryError::Store(_) => {
                let name = &self.revision.registered.name;
                let partition = asked.partition;
                tracing::warn!(deployment = name, partition, %error, "restore failed; trying again");
                self.tell(asked, TaskState::Restoring, &error.to_string());
                (Outcome::Again { store: None }, AGAIN_PAUSE)
            }
        }
    }

    /// A fault of this program, which the worker must hear of like of any failure: it waits for a verdict.
    fn panicked(&self, asked: &Asked, reason: &str) -> (Outcome, Duration) {
        let (name, partition) = (&self.revision.registered.name, asked.partition);
        tracing::error!(deployment = name, partition, reason, "restore panicked; trying again");
        self.tell(asked, TaskState::Restoring, &format!("its restore panicked: {reason}"));
        (Outcome::Again { store: None }, PANIC_PAUSE)
    }

    /// Shows how the task is meanwhile.
    fn tell(&self, asked: &Asked, state: TaskState, reason: &str) {
        self.board.restore_says(asked.partition, asked.ticket, state, reason);
    }

    /// A person must help, but need not tell: the task goes on by itself once the disk takes writes.
    fn blocked(&self, asked: &Asked, reason: &str) {
        let (name, partition) = (&self.revision.registered.name, asked.partition);
        let reason = format!(
            "the state directory {} refuses: {reason}; free some space, or see to the disk: it is tried again every {} s",
            self.node.state_dir.path().display(),
            DISK_PAUSE.as_secs(),
        );
        tracing::error!(deployment = name, partition, reason, "halted until the disk takes writes again");
        self.tell(asked, TaskState::Halted, &reason);
    }

    fn recover(
        self: &Arc<Self>,
        asked: &Asked,
        mut open: Option<Store>,
        metrics: &Arc<TaskMetrics>,
    ) -> Result<Outcome, RecoveryError> {
        let (revision, partition, stop) = (&self.revision, asked.partition, &asked.stop);
        let mut kafka = match self.source(asked) {
            Ok(kafka) => kafka,
            Err(SourceError::Stopped) => return Ok(Outcome::Again { store: open }),
            Err(error) => return Err(error.into()),
        };
        let dir = self.dir(partition);
        // Twice at most: a `start:` that had to be resolved is in the registry the second time.
        let mut resolved = false;
        loop {
            let mut known = self.known(partition);
            if planted(Bug::StartAgain) && !resolved {
                known.started.fill(None);
            }
            let job = Job {
                config: &self.task_config,
                partition,
                known,
                cluster_id: &self.node.cluster_id,
                disk: Disk { budget: &self.node.store_budget, dir: &dir, open: open.take() },
                rules: Rules {
                    delete_retention: revision.spec.changelog.delete_retention,
                    min_compaction_lag: revision.spec.changelog.min_compaction_lag,
                    old_tail: OldTail::default(),
                    wall_ms: wall_ms(),
                },
            };
            let mut hooks = Hooks {
                progress: &mut |progress| {
                    metrics.restore_remaining.set(progress.remaining);
                    !stop.is_raised()
                },
                pause: &mut |wait| stop.pause(wait),
            };
            match recovery::recover(job, &mut kafka, &mut hooks)? {
                recovery::Outcome::Start(start, report) => {
                    return Ok(self.task(partition, start, &report, metrics));
                }
                recovery::Outcome::Unresolved(inputs, store) => {
                    open = store;
                    resolved = true;
                    let answer = self.ask(stop, move |context| context.resolve(partition, &inputs));
                    if matches!(answer, Err(SourceError::Stopped)) {
                        return Ok(Outcome::Again { store: open });
                    }
                    if let Err(reason) = answer.unwrap_or_else(|error| Err(error.to_string())) {
                        tracing::warn!(
                            deployment = revision.registered.name,
                            partition,
                            reason,
                            "cannot resolve where to start"
                        );
                        stop.pause(AGAIN_PAUSE);
                        return Ok(Outcome::Again { store: open });
                    }
                }
                recovery::Outcome::Halt(reason) => return Ok(Outcome::Halt { reason, store: None }),
                recovery::Outcome::Stopped => return Ok(Outcome::Again { store: None }),
            }
        }
    }

    fn task(&self, partition: i32, start: Start, report: &Report, metrics: &Arc<TaskMetrics>) -> Outcome {
        let replayed = &report.replayed;
        metrics.restored_records.add(replayed.records);
        metrics.restored_bytes.add(replayed.bytes);
        if report.rebuilt.is_some() {
            metrics.rebuilds.add(1);
        }
        let next: Vec<String> = start.next.iter().map(Offset::to_string).collect();
        tracing::info!(
            deployment = self.revision.registered.name,
            partition,
            offset = next.join(","),
            changelog_from = report.from.0,
            restored_records = replayed.records,
            restored_bytes = replayed.bytes,
            "task starts"
        );
        let handler = match self.revision.handler(partition) {
            Ok(handler) => handler,
            Err(error) => {
                self.revision.trial.unfit(format!("task {partition} cannot start: {error}"));
                return Outcome::Halt { reason: error.to_string(), store: start.store };
            }
        };
        match Task::new(Arc::clone(&self.task_config), partition, handler, start) {
            Ok(task) => {
                let log = self.node.handler_logs.ring(&self.revision.registered.name);
                Outcome::Start(Box::new(task.counting(Arc::clone(metrics)).logging_to(log)))
            }
            Err(error) => Outcome::Halt { reason: error.to_string(), store: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::permits::Permits;
    use super::*;
    use crate::kafka::recovery::{Impatient, Untouched};
    use crate::ports::{CommittedOffset, Interest, Log, LogView, Recovery};
    use crate::record::InputPartition;

    fn panics_at_once(_: &Cell<bool>) {
        panic!("no luck")
    }

    fn panics_once_it_holds(holds: &Cell<bool>) {
        holds.set(true);
        panic!("no luck")
    }

    /// Says when it is asked, and answers when the test lets it.
    struct Silent {
        asked: Sender<()>,
        answers: Receiver<()>,
    }

    impl Recovery for Silent {
        fn committed(&mut self, _: &[InputPartition]) -> Result<Vec<Option<CommittedOffset>>, SourceError> {
            let _ = self.asked.send(());
            let _ = self.answers.recv();
            Ok(Vec::new())
        }

        fn log_bounds(&mut self, _: Log, _: i32) -> Result<(Offset, Offset), SourceError> {
            Ok((Offset(0), Offset(0)))
        }

        fn read_log(
            &mut self,
            _: Log,
            _: i32,
            _: (Offset, Offset),
            _: &mut dyn FnMut(LogView<'_>) -> bool,
        ) -> Result<(), SourceError> {
            Ok(())
        }
    }

    /// Of the one permit, and of the one store, as a restore takes and leaves them.
    #[test]
    fn a_restore_that_nobody_wants_any_more_lets_another_one_begin() {
        let (permits, leases, dir) = (Permits::new(1), Leases::default(), Path::new("a"));
        let restore = |reader: Box<dyn Recovery>, stop: &Stop| {
            let _permit = permits.take(stop)?;
            let Lease::Closed = leases.acquire(dir, LEASE_WAIT, stop) else { return None };
            let answer = Impatient::new(reader, stop.clone()).committed(&[]);
            leases.free(dir);
            Some(answer)
        };
        let ((ask, asked), (_answer, answers)) = (channel(), channel());
        let interest = Interest::default();
        let stop = interest.stop();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| restore(Box::new(Silent { asked: ask, answers }), &stop));
            asked.recv().expect("the first has begun");
            let next = scope.spawn(|| restore(Box::new(Untouched), &Stop::never()));
            drop(interest);
            assert_eq!(first.join().expect("no panic"), Some(Err(SourceError::Stopped)));
            assert_eq!(next.join().expect("no panic"), Some(Ok(Vec::new())));
        });
        assert!(!leases.is_held(dir));
    }

    #[test]
    fn a_restore_that_panics_ends_with_its_words_and_lets_go_of_what_it_held() {
        let (leases, dir) = (Leases::default(), Path::new("a"));
        let panicked = Err("no luck".to_owned());
        leases.restoring(dir);
        assert_eq!(attempt(&leases, dir, true, panics_at_once), panicked);
        assert!(!leases.is_held(dir), "the worker had kept its store open");
        leases.restoring(dir);
        assert_eq!(attempt(&leases, dir, false, panics_once_it_holds), panicked);
        assert!(!leases.is_held(dir), "it was to open the store itself");
        leases.restored(dir);
        assert_eq!(attempt(&leases, dir, false, panics_at_once), panicked);
        assert!(leases.is_held(dir), "by somebody else, whom it was waiting for");
    }
}
