//! A worker: one thread that owns a consumer, a commit thread and the tasks assigned to it.
//!
//! ```text
//!            +--------------------------- take ---------------------------+
//!            v                                                            |
//!   serve commands -> outcomes of commits -> finished restores -> edits -> deliveries -> the rest of slow batches
//!                -> records, rebalances -> parked records by hand -> retries -> letters -> commit if due
//! ```
//!
//! Life of a slot (one partition number that the group gave to this worker):
//!
//! ```text
//!   assigned --> Waiting --> Restoring --> Running --> Halted
//!                   ^                         |           |
//!                   +--- rule P1, rebuild ----+           |
//!                   +--------- revoked, lost -------------+--> gone
//! ```
//!
//! A slot that goes ends the restores that were begun for it. One that only begins another restore does not: the one before
//! is too late, but what it has read is in the store that the next one takes over.
//!
//! A running task takes no records before a commit says where its revision begins: its inputs flow from then
//! on. A new revision with the same inputs is adopted in place ([`Swap`]).
//!
//! Generic over its edges, so that the same loop runs against Kafka and against a simulated broker.

mod asks;
mod backoff;
mod commits;
mod doubt;
mod edits;
mod obstacle;
mod outcome;
mod parked;
mod patience;
mod rebalance;
mod redrive;
mod relay;
mod rest;
mod swap;
mod time;
mod unpark;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use asks::Asks;
use commits::waiting;
use crossbeam_channel::Receiver;
use doubt::Doubt;
use edits::Edits;
use obstacle::Obstacle;
use patience::TAKE_WAIT_MAX;
use redrive::Redrives;
use relay::Desk;
use unpark::Unparks;

use super::board::Board;
use super::commit::Committer;
use super::pace::{NodeBudget, Pace};
use super::redrive::Letters;
use super::restore::{Restorer, Ticket, Verdicts};
use super::trial::Trial;
use crate::config::deployment::{CommitSpec, Guarantee};
use crate::ports::{Clock, Group, Interest, Membership, Relay, Source, SourceError, Taken};
use crate::record::{Batch, InputPartition, Offset};
use crate::store::Store;
use crate::task::{Applied, EditedIn, Sealed, TakenAt, Task, TaskState as Life};
use crate::telemetry::{Activity, TaskMetrics, WorkerMetrics};

/// Back-off of a producer or consumer that could not be made, doubled up to the maximum; see [`backoff`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What a worker's consumer must be able to do.
pub trait Consumer: Source + Group {
    /// Leaves the group for good: unsubscribes and serves the revoke that follows. Only closing
    /// (dropping) keeps a static member's partitions for its return.
    fn leave(self);
}

pub type ConsumerFactory<C> = Box<dyn FnMut() -> Result<C, SourceError> + Send>;

pub use swap::Swap;
use time::Turn;

pub enum Command<C> {
    /// Commit, close the stores and end.
    Stop {
        /// Give the partitions up at once instead of keeping them for this member's return.
        leave: bool,
    },
    /// Commit, leave the group and join it again, so that it looks at its topics anew.
    Rejoin,
    /// Go on in another revision, at the next batch boundary where everything can be committed.
    Swap(Box<Swap<C>>),
}

/// What a worker is made of.
pub struct Parts<C> {
    pub deployment: Arc<str>,
    pub index: u32,
    /// Of the deployment.
    pub revision: u64,
    /// Inputs of the revision; a task needs its partition of each.
    pub inputs: u16,
    pub guarantee: Guarantee,
    pub commit: CommitSpec,
    /// Of the revision's version.
    pub trial: Arc<Trial>,
    pub consumers: ConsumerFactory<C>,
    /// Carries out the commits.
    pub committer: Committer,
    pub restorer: Box<dyn Restorer>,
    /// Carries out the deliveries.
    pub relay: Box<dyn Relay>,
    pub letters: Box<dyn Letters>,
    pub commands: Receiver<Command<C>>,
    pub board: Arc<Board>,
    pub budget: Arc<NodeBudget>,
    pub clock: Box<dyn Clock>,
}

struct Slot {
    /// Inputs whose partition of this number is assigned.
    held: BTreeSet<u16>,
    /// They were started, and not stopped since.
    flowing: bool,
    state: SlotState,
    /// In its restores, awaited still or not.
    interest: Interest,
    /// In calls of its task, in the turn in progress.
    own_calls: Duration,
    metrics: Arc<TaskMetrics>,
}

enum SlotState {
    /// For a producer, for a back-off to pass, or for the partition of another input.
    Waiting {
        store: Option<Store>,
    },
    Restoring {
        ticket: Ticket,
        /// Of the clock, when it began.
        since: Duration,
    },
    Running(Box<Task>),
    /// Only a person can help. The store stays, so that its state can still be read.
    Halted {
        store: Option<Store>,
    },
}

/// A resource that is rebuilt after a failure, with back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ready,
    /// Being made.
    Pending,
    /// Failed; tried again at this time of the clock.
    Down {
        until: Duration,
    },
}

pub struct Worker<C: Consumer> {
    deployment: Arc<str>,
    index: u32,
    revision: u64,
    trial: Arc<Trial>,
    inputs: u16,
    guarantee: Guarantee,
    consumers: ConsumerFactory<C>,
    consumer: Option<C>,
    consumer_standing: Standing,
    consumer_backoff: Duration,
    committer: Committer,
    producer: Standing,
    producer_backoff: Duration,
    doubt: Doubt,
    /// Refused for its generation; sent again once a rebalance has been served.
    refused: Option<(Vec<Sealed>, Membership)>,
    slots: BTreeMap<i32, Slot>,
    /// In restores of partitions that have gone a moment ago, and until when of the clock they may come back.
    away: BTreeMap<i32, (Interest, Duration)>,
    restorer: Box<dyn Restorer>,
    verdicts: Verdicts,
    commands: Receiver<Command<C>>,
    /// To be adopted as soon as everything is committed.
    swap: Option<Box<Swap<C>>>,
    edits: Edits,
    asks: Asks,
    unparks: Unparks,
    desk: Desk,
    redrives: Redrives,
    board: Arc<Board>,
    metrics: Arc<WorkerMetrics>,
    budget: Arc<NodeBudget>,
    /// In the budget.
    seat: u64,
    pace: Pace,
    clock: Box<dyn Clock>,
    turn: Turn,
    /// Where a take puts what it brings, and what of that was not served yet.
    taken: Vec<Taken>,
    arrived: VecDeque<Taken>,
    /// When the group was last heard.
    heard: Duration,
    /// What was taken and not handled: see [`rest`].
    rest: VecDeque<Batch>,
    /// Partitions that cannot be read on behind what is left of them there, and why.
    failed: Vec<(i32, String)>,
    /// The last take brought no records.
    dry: bool,
    obstacle: Obstacle,
    /// The overlay is full and cannot be committed yet, or calls are ended: nothing is handled, and nothing taken.
    stalled: bool,
}

/// What a worker asks of its consumer: [`Source::take`] or [`Source::listen`].
type Ask<C> = fn(&mut C, Duration, &mut Vec<Taken>) -> Result<(), SourceError>;

impl<C: Consumer> Worker<C> {
    pub fn new(parts: Parts<C>) -> Worker<C> {
        let mut committer = parts.committer;
        let now = parts.clock.monotonic();
        committer.renew(now);
        let (editor, edits) = Edits::new();
        parts.board.takes_edits(parts.index, editor);
        let (asker, asks) = Asks::new();
        parts.board.takes_asks(parts.index, asker);
        let (unparker, unparks) = Unparks::new();
        parts.board.takes_unparks(parts.index, unparker);
        Worker {
            deployment: parts.deployment,
            index: parts.index,
            revision: parts.revision,
            trial: parts.trial,
            inputs: parts.inputs,
            guarantee: parts.guarantee,
            pace: Pace::new(parts.commit, now),
            consumers: parts.consumers,
            consumer: None,
            consumer_standing: Standing::Down { until: now },
            consumer_backoff: BACKOFF_MIN,
            committer,
            producer: Standing::Pending,
            producer_backoff: BACKOFF_MIN,
            doubt: Doubt::default(),
            refused: None,
            slots: BTreeMap::new(),
            away: BTreeMap::new(),
            restorer: parts.restorer,
            verdicts: Verdicts::default(),
            commands: parts.commands,
            edits,
            asks,
            unparks,
            desk: Desk::new(parts.relay),
            redrives: Redrives::new(parts.letters),
            swap: None,
            metrics: parts.board.worker(parts.index),
            board: parts.board,
            seat: parts.budget.seat(),
            budget: parts.budget,
            clock: parts.clock,
            turn: Turn::at(now),
            taken: Vec::new(),
            arrived: VecDeque::new(),
            heard: now,
            rest: VecDeque::new(),
            failed: Vec::new(),
            dry: true,
            obstacle: Obstacle::default(),
            stalled: false,
        }
    }

    /// Runs until a stop command or until the channel of commands is closed.
    pub fn run(mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop { leave }) => return self.stop(leave),
                Ok(Command::Rejoin) => self.rejoin(),
                Ok(Command::Swap(swap)) => self.swap_to(swap),
                Err(crossbeam_channel::TryRecvError::Disconnected) => return self.stop(false),
                Err(crossbeam_channel::TryRecvError::Empty) => {}
            }
            self.step();
        }
    }

    /// The last one counts: it is the newest revision.
    pub fn swap_to(&mut self, swap: Box<Swap<C>>) {
        self.swap = Some(swap);
    }

    /// One turn of the loop in the file's drawing.
    pub fn step(&mut self) {
        self.keep_clients();
        if let Some(done) = self.committer.poll() {
            self.serve_outcome(done);
        }
        self.resend_refused();
        self.swap_if_clean();
        self.end_stall();
        self.end_doubted_restores();
        self.serve_verdicts();
        self.begin_restores();
        self.serve_edits();
        self.serve_asks();
        self.relay();
        self.run_rest();
        match self.may_take() {
            true => self.take(),
            false => self.listen(),
        }
        self.look_for_obstacles();
        self.serve_unparks();
        self.retry_parked();
        self.serve_redrives();
        self.commit_if_due();
        self.account();
    }

    fn take(&mut self) {
        let now = self.clock.monotonic();
        let wait = self.take_wait(now);
        self.dry = true;
        self.ask(C::take, wait);
        if self.dry {
            self.advance_idle();
        }
    }

    /// Asks the consumer, and serves what it hands over.
    fn ask(&mut self, ask: Ask<C>, wait: Duration) {
        let now = self.clock.monotonic();
        let Some(consumer) = self.consumer.as_mut() else {
            // Nothing to poll until the back-off has passed; the pause only keeps the loop from spinning.
            self.clock.pause(TAKE_WAIT_MAX);
            self.took_records(now);
            return;
        };
        self.heard = now;
        let mut taken = std::mem::take(&mut self.taken);
        let result = ask(consumer, wait, &mut taken);
        self.took_records(now);
        self.arrived.extend(taken.drain(..));
        self.taken = taken;
        while let Some(item) = self.arrived.pop_front() {
            self.serve(item);
        }
        match result {
            Ok(()) => {}
            Err(SourceError::Unavailable(reason)) => {
                tracing::debug!(deployment = %self.deployment, worker = self.index, reason, "Kafka is unavailable");
            }
            Err(error) => self.lose_consumer(&error),
        }
    }

    fn serve(&mut self, item: Taken) {
        match item {
            Taken::Batch(batch) => self.apply(batch),
            Taken::Assigned(partitions) => self.assigned(&partitions),
            Taken::Revoked(partitions) => self.revoked(&partitions),
            Taken::Lost(partitions) => self.lost(&partitions),
            Taken::Failed { partition, reason } => self.input_failed(partition.partition, reason),
        }
    }

    fn apply(&mut self, batch: Batch) {
        self.dry = false;
        if self.stalled {
            self.rest.push_back(batch);
            return;
        }
        // A full overlay is committed before it grows: once the commit in flight has ended, while the next one fills.
        // Meanwhile the batch lies where it is found if its input begins anew.
        if self.pace.must_stop_taking(waiting(&self.slots)) {
            self.rest.push_front(batch);
            self.commit_next();
            self.stalled |= self.pace.must_stop_taking(waiting(&self.slots));
            return;
        }
        let partition = batch.partition;
        let taken = TakenAt { monotonic: self.clock.monotonic(), wall_ms: self.clock.wall_ms() };
        let Some(Slot { state: SlotState::Running(task), own_calls, metrics, .. }) =
            self.slots.get_mut(&partition)
        else {
            return; // Of a task that is not running: it is read again from its position.
        };
        let bytes = batch.bytes() as u64;
        let was_blocked = task.is_blocked();
        metrics.spent.begin(Activity::Handler);
        let result = task.apply(batch, taken);
        let took = self.clock.monotonic().saturating_sub(taken.monotonic);
        self.turn.called(own_calls, metrics, took, task.take_reading_time());
        match result {
            Ok(mut applied) => {
                self.rest.extend(applied.left.take());
                self.stalled |= applied.interrupted;
                let Applied { ok, failed, .. } = applied;
                metrics.records_in.add((ok + failed) as u64);
                metrics.bytes_in.add(bytes);
                metrics.handler_calls.add(1);
                metrics.handler_time.add(took);
                metrics.handler_duration.observe(took);
                metrics.overlay_bytes.set(task.pending().bytes as u64);
                let halted = match task.state() {
                    Life::Halted(failure) => Some(failure),
                    Life::Running => None,
                };
                self.trial.count(partition, &applied, halted);
                if let Some(failure) = halted {
                    let reason = failure.to_string();
                    self.halt(partition, reason);
                } else if task.is_blocked() && !was_blocked {
                    self.blocked(partition);
                }
            }
            Err(error) => self.task_failed(partition, &error),
        }
    }

    /// Positions that moved without a record, past transaction markers, so that lag reaches 0.
    fn advance_idle(&mut self) {
        let Some(consumer) = &self.consumer else { return };
        for (&partition, slot) in &mut self.slots {
            if let SlotState::Running(task) = &mut slot.state {
                for &input in &slot.held {
                    if let Some(position) = consumer.position(InputPartition { input, partition }) {
                        task.advance(input, position);
                    }
                }
            }
        }
    }

    fn end_stall(&mut self) {
        // With a swap that cannot be made yet, the handlers may be those whose calls are ended.
        if self.stalled && self.swap.is_none() && !self.pace.must_stop_taking(waiting(&self.slots)) {
            self.stalled = false;
        }
    }

    /// Commits, gives the stores back and ends.
    pub fn stop(mut self, leave: bool) {
        self.give_up_everything(leave);
        for verdict in self.verdicts.close() {
            if let Some(store) = verdict.outcome.into_store() {
                self.restorer.release(verdict.partition, store);
            }
        }
    }
}

impl<C: Consumer> Drop for Worker<C> {
    /// Of one that panics as well, so that what is being restored finds its way back without it.
    fn drop(&mut self) {
        drop(self.verdicts.close());
        self.board.obstacle(self.index, None);
    }
}

fn running(slots: &mut BTreeMap<i32, Slot>) -> impl Iterator<Item = (i32, &mut Box<Task>)> {
    slots.iter_mut().filter_map(|(&partition, slot)| match &mut slot.state {
        SlotState::Running(task) => Some((partition, task)),
        _ => None,
    })
}

/// What an operator asks of a task that does not run is answered so.
const NOT_RUNNING: &str = "it restores, is halted, or is on its way elsewhere";

/// False once an operator's change that is not known to be committed never will be by the task that has it.
fn still_holds(slots: &mut BTreeMap<i32, Slot>, partition: i32, edited: EditedIn) -> bool {
    running(slots).any(|(number, task)| number == partition && task.still_holds(edited))
}

/// Where every input of a task continues.
fn positions(task: &Task) -> Vec<(InputPartition, Offset)> {
    let partition = task.partition();
    (0..).map_while(|input| Some((InputPartition { input, partition }, task.next(input)?))).collect()
}
