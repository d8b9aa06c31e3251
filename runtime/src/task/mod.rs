//! One deployment on one partition number: from records to a commit that somebody else carries out.
//!
//! A task owns its positions, its view of the state, its handler and, between commits, its store. It
//! owns no thread, no clock and no network: a worker calls it, and what a commit needs leaves it as
//! one value ([`Sealed`]).
//!
//! ```text
//!                apply(batch)*                      apply(batch)*            (fills the next overlay)
//!   Running --------------------- seal -> Sealed --------------------- committed(Sealed) -> Running
//!      |                            the sink commits it, then                    |
//!      | a record fails, `halt`     apply_to_store, on the commit thread         |
//!      v                                                                         v
//!   Halted: its position stays exactly before the failed record; what came before still commits
//!
//!   adopt(config, handler) -> the next seal commits the revision; until then nothing is handled
//!   drop_uncommitted(Option<Sealed>) -> offsets to seek to     (after a definite refusal)
//!   close(Option<Sealed>) -> Parts                              (revoked, lost, or rule P1: recover)
//! ```
//!
//! Invariants, per input: `committed <= next`; a record below `next` is never handled; at most one
//! `Sealed` is out, and with it the store.

mod adopt;
mod apply;
mod checks;
mod config;
pub mod correlation;
mod edit;
mod event;
mod failing;
mod inbox;
mod latest;
pub mod letter;
mod numbers;
mod outbox;
mod parked;
pub mod recovery;
pub mod redrive;
mod refusal;
mod relay;
mod rewrite;
mod seal;
mod sequence;
mod sweep;
mod turn;
mod undelivered;
pub mod unpark;

use std::sync::Arc;
use std::time::Duration;

pub use checks::{OutputRule, TimestampRule};
pub use config::{ChangelogConfig, EventsRule, TaskConfig, TaskInput, call_bytes_max};
pub use edit::{Edit, EditError, EditedIn};
use inbox::Inbox;
pub use inbox::{CLOCK_SLACK_MS, ID_BYTES_MAX, Seen};
use latest::Latest;
use numbers::Numbers;
pub use numbers::{numbered, topic_at};
use outbox::Outbox;
pub use outbox::{OutboxRule, OutboxStatus, RowStatus};
use parked::Parked;
use refusal::{Careful, Suspect};
use relay::Blocked;
pub use relay::{ID_HEADER, Settled, ShownRow};
pub use rewrite::Rewrites;
pub use seal::Sealed;
use sweep::Sweep;
use turn::Turn;

pub use crate::config::failures::FailureKind;

use crate::config::deployment::Guarantee;
use crate::effects::{Emitted, Fault};
use crate::faults::{Bug, planted};
use crate::ports::Handler;
use crate::record::{Batch, InputPartition, Offset};
use crate::store::{PositionInput, Store, StoreDef, StoreError, StoreReader, View};
use crate::telemetry::{self, LogRing, TaskMetrics};

/// Offsets of records that brought down a call, so that they are not tried in company again.
const SUSPECTS_MAX: usize = 256;

/// Parked records and rows of outboxes have numbers up to here. No task gets that far: a row with a higher one was not
/// written by one, or is damaged, and the numbers behind it would come to an end.
const ROW_NUMBER_MAX: u64 = u64::MAX / 2;

/// Where a task begins; the outcome of recovery.
#[derive(Debug)]
pub struct Start {
    /// None exactly when the task keeps nothing.
    pub store: Option<Store>,
    /// Next record to handle, by input.
    pub next: Vec<Offset>,
    /// Above every writer number in the changelog, as far as that was read.
    pub writer: u64,
    /// Inputs of an earlier revision; their offsets stay in the position record for a rollback.
    pub unbound: Vec<PositionInput>,
    /// By input: where this revision began, if a commit of it is known. Without one the task adopts it
    /// here.
    pub first: Option<Vec<Offset>>,
    /// What is to be written once more.
    pub rewrites: Rewrites,
}

/// What a task is made of when it ends.
pub struct Parts {
    pub store: Option<Store>,
    pub handler: Box<dyn Handler>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    Running,
    Halted(Failure),
}

fn counter(kind: FailureKind, metrics: &TaskMetrics) -> &telemetry::Counter {
    match kind {
        FailureKind::Transient => &metrics.failed_transient,
        FailureKind::Permanent => &metrics.failed_permanent,
        FailureKind::Decode => &metrics.failed_decode,
        FailureKind::Trap => &metrics.traps,
        FailureKind::Timeout => &metrics.timeouts,
        FailureKind::Limit => &metrics.limit_faults,
        FailureKind::Schema => &metrics.failed_schema,
    }
}

/// A record that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {topic}/{partition} at offset {offset} failed ({}, {}): {reason}", kind.as_str(), kind.error_type())]
pub struct Failure {
    pub kind: FailureKind,
    pub topic: String,
    pub partition: i32,
    /// Of the record itself: with `halt` also the task's next record.
    pub offset: Offset,
    pub reason: String,
}

/// Trouble that is no record's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// State could not be read during a call.
    #[error("state could not be read: {0}")]
    State(String),
    /// The deployment stops, or goes on in another revision. The task stands before the records of the call.
    #[error("interrupted")]
    Interrupted,
    /// The handler could not be made anew.
    #[error("the handler did not start: {0}")]
    Handler(Fault),
    /// A caller broke the order of calls; the task is as it was.
    #[error("{0}")]
    Misuse(&'static str),
}

/// When a batch was taken from the source, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TakenAt {
    pub monotonic: Duration,
    /// Milliseconds since the epoch.
    pub wall_ms: i64,
}

/// What became of a batch.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Records that ended `ok`.
    pub ok: usize,
    /// Records that failed. With `halt` at most one, and the task is halted.
    pub failed: usize,
    /// Records that wait behind a parked one of their key.
    pub waiting: usize,
    /// Records whose id has been seen; they have no effect.
    pub duplicates: usize,
    /// Records below the task's position, at or behind the one it halted or blocked at, or given to a task
    /// that is halted or blocked.
    pub ignored: usize,
    /// The first failure.
    pub failure: Option<Failure>,
    /// Records that were not reached in this turn: they come next of their input, before anything else.
    pub left: Option<Batch>,
    /// The deployment stops, or goes on in another revision: what is left is that one's to handle.
    pub interrupted: bool,
}

/// What the next commit would hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// Records passed, or tried again, since the last seal.
    pub records: u64,
    /// Memory of uncommitted changes and emissions since the last seal.
    pub bytes: usize,
    /// When the oldest of those records was taken.
    pub oldest: Option<Duration>,
    /// Changes of state since the last seal that no record caused.
    pub edits: u64,
    /// Outbox rows that are done with, and that the next commit deletes.
    pub acknowledged: u64,
    /// An idle position moved, past transaction markers for example, a revision is to be adopted, or a start opened,
    /// dropped rows are to be deleted, committed ones to be written once more, or the event of a halt is all there is.
    pub moved: bool,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.records == 0 && self.edits == 0 && self.acknowledged == 0 && !self.moved
    }
}

/// Counted since the task was made; for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskStats {
    pub records: u64,
    pub emissions: u64,
    pub writes: u64,
    pub calls: u64,
    /// Batches run again one record per call.
    pub replays: u64,
    /// By [`FailureKind::ALL`].
    pub failures: [u64; FailureKind::ALL.len()],
    pub commits: u64,
    pub drops: u64,
}

pub struct Task {
    config: Arc<TaskConfig>,
    partition: i32,
    handler: Box<dyn Handler>,
    view: View,
    /// None while a `Sealed` has it, and always for a stateless task.
    store: Option<Store>,
    reader: Option<StoreReader>,
    /// Next record to handle, by input.
    next: Vec<Offset>,
    /// Where the last commit that is known to have succeeded stands, by input.
    committed: Vec<Offset>,
    unbound: Vec<PositionInput>,
    /// What the rows of the task's own call an input by.
    numbers: Numbers,
    /// By input: where this revision began.
    first_offsets: Vec<Offset>,
    /// No commit says yet that this revision begins there, so nothing is handled.
    adopting: bool,
    /// Nor without transactions as long as this writer has not committed, with all that its start has to write once more.
    opening: bool,
    writer: u64,
    /// Number of the last seal; never used twice by a writer, dropped or not, because changelog rows
    /// of a commit that did not happen must not be taken for another's.
    commit: u64,
    /// Number of the seal that is out.
    in_flight: Option<u64>,
    emissions: Vec<Emitted>,
    /// Memory that they hold.
    emission_bytes: usize,
    /// Emissions to outputs that are sent the last of each key only.
    latest: Latest,
    pending_records: u64,
    edits: u64,
    oldest: Option<Duration>,
    suspects: Vec<Suspect>,
    /// By input: up to this offset records run alone, because a call with them failed.
    alone_until: Vec<i64>,
    turn: Turn,
    parked: Parked,
    inbox: Option<Inbox>,
    outbox: Outbox,
    sweep: Sweep,
    rewrites: Rewrites,
    /// Up to where the inbox's topic may be trimmed and nobody has asked yet.
    trim: Option<Offset>,
    /// There is no room to go on; the input is ignored until there is.
    blocked: Option<Blocked>,
    /// While a record that the broker refused is looked for.
    careful: Option<Careful>,
    /// The first record since the last seal: input and offset.
    first: Option<(u16, i64)>,
    /// State could not be read in the middle of something, so that overlay and position may not belong together:
    /// nothing of it is committed.
    is_torn: bool,
    state: TaskState,
    stats: TaskStats,
    /// Outlives the task: what operators see of its failures.
    metrics: Arc<TaskMetrics>,
    /// Where lines are kept for whoever asks, beside those of its handler.
    log: Option<Arc<LogRing>>,
}

impl Task {
    /// A task at the position that recovery found. The handler must be fresh.
    pub fn new(
        config: Arc<TaskConfig>,
        partition: i32,
        handler: Box<dyn Handler>,
        start: Start,
    ) -> Result<Task, TaskError> {
        if start.next.len() != config.inputs.len() {
            return Err(TaskError::Misuse("a start needs one offset for each input"));
        }
        if start.store.is_none() != config.is_stateless() {
            return Err(TaskError::Misuse("a task has a store exactly when it keeps anything"));
        }
        let reader = start.store.as_ref().map(Store::reader);
        let position = start.store.as_ref().and_then(Store::position);
        let remembered = Numbers::row(reader.as_ref())?;
        let numbers = Numbers::of(&config.inputs, position, remembered.as_deref())?;
        let parked = config.load_parked(reader.as_ref(), &numbers)?;
        let mut inbox = config.inbox.clone().map(|spec| Inbox::new(spec, start.store.as_ref()));
        if let Some(inbox) = &mut inbox {
            // Ids of before there were numbers: nothing says yet, for a life after this one, whose they are.
            let has_ids = start.store.as_ref().is_some_and(|store| store.progress().inbox_ids > 0);
            inbox.has_news = has_ids && remembered.is_none();
        }
        let outbox_next = position.map_or(0, |position| position.outbox_next);
        let outbox = Outbox::load(reader.as_ref(), config.outbox_rules(), outbox_next)?;
        let mut view = config.view(reader.clone());
        if let Some(bytes_max) = config.store_bytes_max {
            let sizes = position.map(|position| position.stores.as_slice()).unwrap_or_default();
            let known =
                |def: &StoreDef| sizes.iter().find(|size| size.store == def.key_name).map(|size| size.bytes);
            view.count(bytes_max, known)?;
        }
        Ok(Task {
            parked,
            inbox,
            outbox,
            sweep: Sweep::default(),
            rewrites: start.rewrites,
            trim: None,
            blocked: None,
            view,
            opening: start.store.is_some() && config.guarantee == Guarantee::AtLeastOnce,
            config,
            partition,
            handler,
            store: start.store,
            reader,
            committed: start.next.clone(),
            adopting: start.first.is_none() && !planted(Bug::AdoptionSkipped),
            first_offsets: start.first.unwrap_or_else(|| start.next.clone()),
            alone_until: vec![-1; start.next.len()],
            turn: Turn::default(),
            next: start.next,
            unbound: start.unbound,
            numbers,
            writer: start.writer,
            commit: 0,
            in_flight: None,
            emissions: Vec::new(),
            emission_bytes: 0,
            latest: Latest::default(),
            pending_records: 0,
            edits: 0,
            oldest: None,
            suspects: Vec::new(),
            careful: None,
            first: None,
            is_torn: false,
            state: TaskState::Running,
            stats: TaskStats::default(),
            metrics: Arc::default(),
            log: None,
        })
    }

    /// Counts failures there as well.
    pub fn counting(self, metrics: Arc<TaskMetrics>) -> Task {
        Task { metrics, ..self }
    }

    /// Keeps what it has to say about records there as well.
    pub fn logging_to(self, log: Arc<LogRing>) -> Task {
        Task { log: Some(log), ..self }
    }

    pub fn config(&self) -> &Arc<TaskConfig> {
        &self.config
    }

    pub fn partition(&self) -> i32 {
        self.partition
    }

    pub fn state(&self) -> &TaskState {
        &self.state
    }

    pub fn is_running(&self) -> bool {
        self.state == TaskState::Running
    }

    /// Committed data, for queries; none for a stateless task.
    pub fn reader(&self) -> Option<&StoreReader> {
        self.reader.as_ref()
    }

    /// Next record to handle; none for an input the deployment does not have.
    pub fn next(&self, input: u16) -> Option<Offset> {
        self.next.get(usize::from(input)).copied()
    }

    /// As of the last commit that is known to have succeeded.
    pub fn committed_offset(&self, input: u16) -> Option<Offset> {
        self.committed.get(usize::from(input)).copied()
    }

    pub fn stats(&self) -> TaskStats {
        self.stats
    }

    /// How long calls have waited for state to be read from disk, since this was asked last.
    pub fn take_reading_time(&mut self) -> Duration {
        self.view.take_reading_time()
    }

    /// A seal is out and has not come back.
    pub fn is_committing(&self) -> bool {
        self.in_flight.is_some()
    }

    pub fn pending(&self) -> Pending {
        Pending {
            records: self.pending_records,
            bytes: self.overlay_bytes() + self.sweep_bytes(),
            oldest: self.oldest,
            edits: self.edits,
            acknowledged: self.outbox.unsealed(),
            moved: self.in_flight.is_none()
                && (self.next != self.committed
                    || self.is_adopting()
                    || self.is_sweeping()
                    || self.is_rewriting()
                    || !self.emissions.is_empty()),
        }
    }

    /// The overlay holds what it may: seal, or take no more until the commit under way is done.
    pub fn is_full(&self) -> bool {
        self.overlay_bytes() >= self.config.overlay_bytes_max
    }

    /// Of uncommitted changes and emissions.
    fn overlay_bytes(&self) -> usize {
        self.view.active_bytes() + self.emission_bytes + self.latest.bytes()
    }

    /// Moves an input's position past what is not a record (transaction markers, aborted records,
    /// compacted gaps). Only for a position that the source reports after everything it handed over
    /// was applied; one below the task's own is ignored, and so is any of a task that is halted or blocked, or
    /// has ignored records.
    pub fn advance(&mut self, input: u16, position: Offset) {
        if !self.takes_records() || self.careful.as_ref().is_some_and(|careful| careful.gated) {
            return;
        }
        if let Some(next) = self.next.get_mut(usize::from(input)) {
            *next = position.max(*next);
        }
    }

    /// Drops everything that is not committed, as one operation, after a commit was refused
    /// definitely or must not be tried. Takes back the seal that is out, if one is. Answers where
    /// every input continues. A halted task runs again: the records decide anew.
    ///
    /// After an unknown outcome use [`Task::close`] and recover instead: the store may be behind.
    pub fn drop_uncommitted(
        &mut self,
        in_flight: Option<Sealed>,
    ) -> Result<Vec<(InputPartition, Offset)>, TaskError> {
        if self.in_flight.is_some() != in_flight.is_some() {
            return Err(TaskError::Misuse(
                "a task is dropped together with the seal that is out, and no other",
            ));
        }
        if let Some(sealed) = in_flight {
            self.leave_behind(sealed.changelog.as_ref());
            self.take_back(sealed)?;
        }
        // Until all of it is dropped, for whoever halts a task commits what there is first.
        self.is_torn = true;
        match planted(Bug::OverlayKept) {
            true => self.view.committed(),
            false => self.view.drop_uncommitted(),
        }
        if !planted(Bug::ParkedKept) {
            self.parked = self.config.load_parked(self.reader.as_ref(), &self.numbers)?;
        }
        if let Some(inbox) = &mut self.inbox {
            inbox.drop_uncommitted();
        }
        self.blocked = None;
        self.sweep = Sweep::default();
        self.note_parked();
        self.clear_pending();
        let again = self.outbox.drop_uncommitted();
        self.finish_again(again)?;
        if let Some(careful) = &mut self.careful {
            careful.gated = false; // The caller seeks.
        }
        self.next.clone_from(&self.committed);
        self.is_torn = false;
        // Those at fault are known as suspects.
        self.alone_until.fill(-1);
        self.state = TaskState::Running;
        self.stats.drops += 1;
        if !planted(Bug::InstanceKept) {
            self.handler.renew().map_err(TaskError::Handler)?;
        }
        Ok(self.positions().collect())
    }

    /// Ends the task; everything that is not committed is forgotten. The seal that is out comes along,
    /// or the store is lost to the caller.
    pub fn close(mut self, in_flight: Option<Sealed>) -> Parts {
        if let Some(mut sealed) = in_flight {
            if planted(Bug::StoreAfterHandover) {
                let _ = sealed.apply_to_store();
            }
            self.store = sealed.take_store().or(self.store);
        }
        Parts { store: self.store, handler: self.handler }
    }

    fn positions(&self) -> impl Iterator<Item = (InputPartition, Offset)> {
        self.next
            .iter()
            .enumerate()
            .map(|(input, &next)| (InputPartition { input: input as u16, partition: self.partition }, next))
    }

    fn clear_pending(&mut self) {
        self.emissions.clear();
        self.emission_bytes = 0;
        self.latest.clear(self.config.view_limits().overlay_keep_bytes);
        self.pending_records = 0;
        self.edits = 0;
        self.oldest = None;
        self.first = None;
    }
}

#[cfg(test)]
mod tests;
