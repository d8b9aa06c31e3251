//! The traits at the edges of a task and a worker: where records come from, where effects go, who
//! runs the handler, what time it is. Each has one real implementation and one fake.

mod stop;

use std::sync::Arc;
use std::time::Duration;

pub use stop::{Interest, Stop};

use crate::effects::{Effects, Emitted, Fault, Order, Prefetched};
use crate::record::{Batch, Column, InputPartition, Offset};
use crate::store::View;

/// One instance of a handler, owned by one task.
pub trait Handler: Send {
    /// Runs one batch. `state` is lent for the call and given back whatever happens; effects are
    /// returned, never carried out. After a `Fault` the instance has been replaced by a fresh one.
    fn handle(
        &mut self,
        batch: &Batch,
        order: Order,
        prefetched: Prefetched,
        state: &mut View,
    ) -> Result<Effects, Fault>;

    /// Forgets instance memory. Called whenever an overlay is dropped, because what the guest
    /// remembers may rest on effects that never happened.
    fn renew(&mut self) -> Result<(), Fault>;

    /// CPU time that the last call took, with that of a fresh instance if there had to be one; or the last
    /// renewal, if that was later.
    fn used(&self) -> Duration;
}

/// What a worker's consumer hands over.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one is moved a batch; a box would be an allocation a batch")]
pub enum Taken {
    Batch(Batch),
    /// The group gave these partitions to this worker; answer with [`Group::assign`].
    Assigned(Vec<InputPartition>),
    /// The group wants these back; finish or drop their work, then answer with [`Group::unassign`].
    Revoked(Vec<InputPartition>),
    /// They are gone already: drop their work, commit nothing, then [`Group::unassign`].
    Lost(Vec<InputPartition>),
    /// The broker refuses to serve a partition (offset out of range, topic gone, authorisation).
    Failed {
        partition: InputPartition,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The consumer is beyond repair and must be built anew (rule P1 applies to it as well).
    #[error("consumer failed: {0}")]
    Fatal(String),
    /// Kafka cannot be reached or did not answer in time; try again later.
    #[error("{0}")]
    Unavailable(String),
    /// Only a person can help: unknown topic, authorisation, wrong configuration.
    #[error("{0}")]
    Refused(String),
    /// Nobody wants the answer any more ([`Stop`]); only whoever was given one says so.
    #[error("nobody waits for it any more")]
    Stopped,
}

/// The records of the partitions that a worker runs.
pub trait Source {
    /// Waits up to `wait` for the first of anything, then appends what is there without waiting for
    /// more. Batches respect the configured record and byte limits; records of partitions that are
    /// not started, or of a former assignment, never come out. Serves rebalances.
    fn take(&mut self, wait: Duration, out: &mut Vec<Taken>) -> Result<(), SourceError>;

    /// The same for whoever has no room for records: waits for what the group wants, and serves it. Records stay where
    /// they are, no more of them than are fetched ahead at any time, and come with the next [`Source::take`].
    fn listen(&mut self, wait: Duration, out: &mut Vec<Taken>) -> Result<(), SourceError>;

    /// Seeks an assigned partition and lets it flow. Also how a dropped task rewinds.
    fn start(&mut self, partition: InputPartition, at: Offset) -> Result<(), SourceError>;

    /// Stops an assigned partition from flowing; what was fetched ahead is discarded.
    fn stop(&mut self, partition: InputPartition) -> Result<(), SourceError>;

    /// The next offset to be fetched to the application, past transaction markers and aborted
    /// records; `None` unless the partition is started and took something since its last start.
    fn position(&self, partition: InputPartition) -> Option<Offset>;

    /// What keeps records from coming and only a person can mend, such as a password that is wrong by now. It is tried
    /// again all the same, and no reason to give up what there is.
    fn obstacle(&self) -> Option<String>;
}

/// Group metadata, captured inside the last rebalance callback that was served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    pub group: String,
    /// Below 0 = not a member.
    pub generation: i32,
    /// Empty = not a member.
    pub member_id: String,
    pub instance_id: Option<String>,
}

impl Membership {
    /// A commit without a valid membership would not be fenced, so it is refused before it is sent.
    pub fn is_valid(&self) -> bool {
        self.generation >= 0 && !self.member_id.is_empty()
    }
}

/// A worker's place in its consumer group.
pub trait Group {
    /// As captured inside the last rebalance callback that [`Source::take`] or [`Source::listen`] served.
    fn membership(&self) -> Membership;

    /// Accepts partitions at explicit offsets, paused until [`Source::start`].
    fn assign(&mut self, partitions: &[(InputPartition, Offset)]) -> Result<(), SourceError>;

    fn unassign(&mut self, partitions: &[InputPartition]) -> Result<(), SourceError>;

    /// Commits offsets outside a transaction (`at_least_once` only). Does not wait: they are sent until
    /// the group has them, later ones replace them, or their partition goes.
    fn commit(&mut self, offsets: &[TaskOffset]);
}

/// One offset to commit for the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOffset {
    pub partition: InputPartition,
    /// Next record to read.
    pub offset: Offset,
    /// Of a stateless task: what its position record would say. Empty otherwise.
    pub metadata: String,
}

/// Changelog records of one task, in order; the position record is the last row. Or its records for the inbox's topic.
#[derive(Debug, Clone, Default)]
pub struct ChangelogRows {
    pub partition: i32,
    pub keys: Column,
    /// Null = the key is deleted.
    pub values: Column,
    /// Writer and commit number, stamped on every record under `at_least_once`.
    pub stamp: Option<(u64, u64)>,
}

/// What a sink writes.
#[derive(Debug, Clone, Copy)]
pub enum Produce<'a> {
    Emissions(&'a Emitted),
    Changelog(&'a ChangelogRows),
    /// Ids of the inbox, packed into records of its own topic.
    Inbox(&'a ChangelogRows),
}

/// One of the two topics that a task's store is rebuilt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Compacted: state, parked records, positions.
    Changelog,
    /// Trimmed from its beginning: ids.
    Inbox,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Commit,
    Abort,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The group has moved on (ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID,
    /// REBALANCE_IN_PROGRESS): definite once the transaction is aborted.
    #[error("the group refused the offsets: {0}")]
    Generation(String),
    /// The broker refused a record for what it is (too large, invalid): definite once aborted.
    #[error("the broker refused a record for {topic}: {reason}")]
    Record { topic: String, reason: String },
    /// Anything else. Whether the commit happened is unknown: rule P1.
    #[error("outcome unknown: {0}")]
    Indefinite(String),
}

/// Where a worker's commits go. Making one fences its predecessor (`init_transactions`); after an
/// indefinite outcome it is dropped and a new one is made. Under `at_least_once` the same calls
/// work without a transaction: `end` flushes, and offsets are committed through [`Group::commit`].
pub trait Sink: Send {
    fn begin(&mut self) -> Result<(), CommitError>;

    /// Queues rows; may send them ahead, never makes them visible.
    fn produce(&mut self, rows: Produce<'_>) -> Result<(), CommitError>;

    /// Waits until everything produced is acknowledged, then commits the offsets with the transaction.
    fn send_offsets(&mut self, offsets: &[TaskOffset], membership: &Membership) -> Result<(), CommitError>;

    fn end(&mut self, end: End) -> Result<(), CommitError>;
}

/// A record read back from an internal topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub offset: Offset,
    /// Milliseconds since the epoch, set by the broker (LogAppendTime).
    pub timestamp_ms: i64,
    pub key: Vec<u8>,
    /// Null = tombstone.
    pub value: Option<Vec<u8>>,
    pub stamp: Option<(u64, u64)>,
}

/// The same, lent by whoever reads it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogView<'a> {
    pub offset: Offset,
    pub timestamp_ms: i64,
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
    pub stamp: Option<(u64, u64)>,
}

impl LogRecord {
    pub fn view(&self) -> LogView<'_> {
        let LogRecord { offset, timestamp_ms, stamp, .. } = *self;
        LogView { offset, timestamp_ms, key: &self.key, value: self.value.as_deref(), stamp }
    }
}

impl LogView<'_> {
    pub fn to_record(self) -> LogRecord {
        let LogView { offset, timestamp_ms, stamp, .. } = self;
        let (key, value) = (self.key.to_vec(), self.value.map(<[u8]>::to_vec));
        LogRecord { offset, timestamp_ms, key, value, stamp }
    }
}

/// A record of any topic, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRecord {
    pub offset: Offset,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// Null stays null.
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// In Kafka's encoding; none = it has none.
    pub headers: Option<Vec<u8>>,
}

/// Committed offset of a partition, with its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    pub offset: Offset,
    pub metadata: String,
}

/// What recovery reads from Kafka. Blocking; runs on a restore thread. One that was given a [`Stop`] answers
/// [`SourceError::Stopped`] soon after it is raised, whatever it waits for.
pub trait Recovery: Send {
    /// The group's stable committed offsets; repeated while any partition is unstable. An error of
    /// one partition is an error, not "none".
    fn committed(
        &mut self,
        partitions: &[InputPartition],
    ) -> Result<Vec<Option<CommittedOffset>>, SourceError>;

    /// Forgets who the group's coordinator is, so that the next fetch looks it up: one that has just
    /// resigned may have answered "none".
    fn look_up_again(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Log start and high watermark of the task's partition of a log. The high watermark is read
    /// through a read_uncommitted handle: the last stable offset may lie below later commits.
    fn log_bounds(&mut self, log: Log, partition: i32) -> Result<(Offset, Offset), SourceError>;

    /// Reads that partition read_committed from the first to the second offset, until the position
    /// reaches it, waiting out undecided transactions. `apply` is lent each record, and answers false to end it early,
    /// which is no error.
    fn read_log(
        &mut self,
        log: Log,
        partition: i32,
        range: (Offset, Offset),
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError>;
}

/// One row of an outbox on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Of the task; with `sequence` the row's name.
    pub partition: i32,
    /// Rises from row to row of a task, and so from row to row of a key.
    pub sequence: u64,
    /// Name of the output.
    pub destination: Arc<str>,
    /// The same each time the row is delivered.
    pub id: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// Kafka's own encoding; empty = none.
    pub headers: Vec<u8>,
    /// Milliseconds since the epoch; -1 = none.
    pub timestamp_ms: i64,
}

/// The longest that a destination is left alone because it asks for it.
pub const AFTER_MAX: Duration = Duration::from_secs(3600);

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Landed {
    /// The destination has it.
    Delivered,
    /// It may have it or not: to be sent again, not before `after`, or [`AFTER_MAX`], if that is given.
    Transient { reason: String, after: Option<Duration> },
    /// It will never take it.
    Permanent { reason: String },
}

/// The end of a delivery that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landing {
    pub partition: i32,
    pub sequence: u64,
    pub landed: Landed,
}

/// What carries a worker's deliveries out.
pub trait Relay: Send {
    /// A delivery there has a chance now: the destination is known and not paused, and its breaker is not open.
    fn admits(&self, destination: &str) -> bool;

    /// Starts a delivery, which lands exactly once. One that is not admitted after all comes back.
    fn send(&mut self, delivery: Delivery) -> Result<(), Box<Delivery>>;

    /// The next landing, waited for up to `wait`.
    fn land(&mut self, wait: Duration) -> Option<Landing>;

    /// A person asks for another attempt: an open breaker lets one through at once.
    fn knock(&self, destination: &str);

    /// Why the breaker of a destination has opened that had not been in trouble under the revision before this
    /// one. Told once.
    fn opened(&mut self) -> Option<String>;
}

/// Time, so that tests can own it.
pub trait Clock: Send {
    /// Milliseconds since the epoch.
    fn wall_ms(&self) -> i64;

    /// Since an arbitrary start; never goes back.
    fn monotonic(&self) -> Duration;

    /// Lets up to `wait` pass.
    fn pause(&self, wait: Duration);
}
