//! The node's own transactional producer: where commits go under `exactly_once`.
//!
//! Everything happens on the thread that calls, which waits for brokers with a limit: no thread, no callback, no queue
//! that somebody else empties. Rows go straight into the batches that brokers will keep, and a commit is the requests of
//! Kafka's transaction protocol, one after the other:
//!
//! ```text
//!   begin          nothing
//!   produce        rows into batches; what is full goes ahead:
//!                    AddPartitionsToTxn -> coordinator, Produce -> leaders (several under way)
//!   send_offsets   the same with the rest; AddOffsetsToTxn -> coordinator, while leaders write;
//!                    once all is acknowledged, TxnOffsetCommit -> coordinator of the group
//!   end(Commit)    EndTxn -> coordinator
//!   end(Abort)     InitProducerId -> coordinator
//! ```
//!
//! The life of a transaction, and so of the producer:
//!
//! ```text
//!            begin           end(Commit)
//!     Idle ---------> Open -------------> Idle
//!                      |
//!                      +--- a record, or the offsets, are refused for what they are ---> Refused
//!                      +--- anything else: time, a lost answer, another producer ------> Lost
//!
//!     Open, Refused --- end(Abort) ---> Idle, in the next epoch; or Lost
//! ```
//! Invariants:
//! - A transaction in which anything failed is never committed. The producer is `Lost` from the beginning of each step to
//!   its good end, EndTxn(commit) included, so that no way out of one is forgotten.
//! - **A request that has no answer is followed by no other transaction of the same epoch.** It may arrive at any time, and
//!   a coordinator or leader could take it for a part of that transaction (KAFKA-17754). Within a transaction record batches
//!   are sent again, whose sequence numbers keep them from being taken twice, and what adds partitions to it, which a
//!   second time changes nothing. After any other request the call fails, with an unknown outcome. Either way the epoch is
//!   raised before another transaction begins.
//! - A producer that is lost says so to every call. Only making another tells what became of its last transaction (rule P1).
//! - What is produced and not acknowledged stays within the limit, but for one record.
//! - From `begin` to `end` a transaction has the time that its coordinator gives it, and each way to end it as much again.
//!
//! **Why an abort is InitProducerId alone.** A coordinator gives a producer its next epoch only when the transaction that the
//! id has open is ended, and it ends one by aborting it, unless it was decided before. EndTxn(commit) is what decides, and
//! after one of those there is no abort here (`Lost`). So the answer says that the transaction is aborted, or never began. It
//! also says more than EndTxn(abort) would: the epoch is raised *before* the abort markers are written, so that every leader
//! that was written to, that of the group's offsets included, refuses whatever of this transaction arrives later.
//! Sequence numbers begin anew, so it does not matter which of them a leader has seen.
//!
//! The request does not name the epoch that is left behind (KIP-360): a coordinator that aborts for it raises the epoch
//! first, and would then take the one who asks for a fenced one. So an abort also takes the transactional id back from
//! whoever has it by now, as making a producer does; what keeps a worker from committing what is not its own is its place
//! in the group.
//!
//! | file | what it does |
//! |---|---|
//! | `rows` | where each record goes, and when what waits is sent |
//! | `partition` | one partition's batches: sequence numbers, and the order in which they go |
//! | `batches` | all of them |
//! | `partitioner` | where a record without a partition goes |
//! | `delivery` | Produce requests: several at once, and again if need be |
//! | `coordinator` | the requests that make a transaction |
//! | `answers` | what errors mean |
//! | `leaders` | who leads what |
//! | `cluster` | connections, and whom to ask |
//! | `patience` | deadlines and pauses |
//! | `settings` | what the configuration says of it |

mod answers;
mod batches;
mod cluster;
mod coordinator;
mod delivery;
mod leaders;
mod partition;
mod partitioner;
mod patience;
mod rows;
mod settings;

use std::collections::BTreeMap;
use std::time::Duration;

use answers::Trouble;
use batches::Batches;
use cluster::Cluster;
use coordinator::{Coordinator, Offset};
use delivery::Delivery;
use partitioner::Partitioner;
use patience::Deadline;
use rows::{AHEAD_BYTES, Topics, now_ms};
use settings::Limits;

use super::config::KafkaConfig;
use super::epochs::Epochs;
use super::sink::SinkSpec;
use super::wire::Access;
use crate::faults::{CrashPoint, crash_point};
use crate::ports::{CommitError, End, Membership, Produce, Sink, SourceError, TaskOffset};

/// A predecessor's transaction is being ended meanwhile, which can take its whole time-out.
const INIT_WAIT: Duration = Duration::from_secs(30);

/// How long all brokers may be away before that is said. A worker that is to stop meanwhile waits as long, so it is less than a
/// node has to stop (`shutdown_timeout`).
const REACH_WAIT: Duration = Duration::from_secs(10);

/// Where the producer is in its life: the drawing above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Open,
    Refused,
    Lost,
}

/// Under `exactly_once`: one transaction per commit.
pub struct TransactionalProducer {
    inputs: Vec<String>,
    topics: Topics,
    limits: Limits,
    partitioner: Partitioner,
    cluster: Cluster,
    coordinator: Coordinator,
    batches: Batches,
    delivery: Delivery,
    epochs: Epochs,
    state: State,
    /// Of all before the end of the open transaction: its coordinator gives it no more time either.
    until: Deadline,
    /// Where records without a key go, modulo the topic's partitions. Moves on with every batch.
    sticky: i32,
    /// So many bytes must wait before they are sent ahead: more, while they cannot be.
    ahead: usize,
    /// In this transaction it was looked whether a topic has more partitions.
    has_looked: bool,
}

impl TransactionalProducer {
    /// Makes the producer and fences its predecessor of the same transactional id, whose open
    /// transaction is aborted.
    pub fn new(
        config: &KafkaConfig,
        transactional_id: &str,
        spec: SinkSpec,
    ) -> Result<TransactionalProducer, SourceError> {
        let access = Access::new(config).map_err(|error| SourceError::Refused(error.to_string()))?;
        let format = settings::format(config, spec.batch_bytes).map_err(SourceError::Refused)?;
        let limits = settings::limits(config);
        let partitioner = config.partitioner.parse::<Partitioner>().map_err(SourceError::Refused)?;
        let topics = Topics::new(&spec);
        let mut cluster = Cluster::new(access, topics.names.clone());
        let mut coordinator = Coordinator::new(transactional_id, limits.patience);
        let failed =
            |trouble: Trouble| trouble.into_source_error(&format!("cannot initialise `{transactional_id}`"));
        cluster.reach(Deadline::after(REACH_WAIT)).map_err(Trouble::Unknown).map_err(failed)?;
        coordinator.renew(&mut cluster, Deadline::after(INIT_WAIT.max(limits.patience))).map_err(failed)?;
        let batches = Batches::new(topics.names.len(), format, coordinator.identity());
        let delivery = Delivery::new(coordinator.id().clone(), limits.ack_timeout, limits.in_flight);
        Ok(TransactionalProducer {
            inputs: spec.inputs,
            topics,
            limits,
            partitioner,
            cluster,
            coordinator,
            batches,
            delivery,
            epochs: Epochs::default(),
            state: State::Idle,
            until: Deadline::after(Duration::ZERO),
            // Workers that start together do not all begin with the same partition.
            sticky: (now_ms() & 0xffff) as i32,
            ahead: AHEAD_BYTES,
            has_looked: false,
        })
    }

    /// Offsets are committed with the leader epochs that the consumer of the same worker learns.
    pub fn knowing(self, epochs: Epochs) -> TransactionalProducer {
        TransactionalProducer { epochs, ..self }
    }

    /// Runs a part of an open transaction. After an error it can be aborted, if that is a definite one.
    fn part(
        &mut self,
        until: Deadline,
        run: impl FnOnce(&mut TransactionalProducer, Deadline) -> Result<(), Trouble>,
    ) -> Result<(), CommitError> {
        if self.state != State::Open {
            return Err(self.out_of_turn());
        }
        self.state = State::Lost;
        let done = run(self, until);
        match &done {
            Ok(()) => self.state = State::Open,
            Err(trouble) if trouble.is_definite() => self.state = State::Refused,
            Err(_) => {}
        }
        done.map_err(CommitError::from)
    }

    fn out_of_turn(&self) -> CommitError {
        CommitError::Indefinite(
            match self.state {
                State::Idle => "no transaction is open",
                State::Open => "a transaction is open already",
                State::Refused => "a part of the transaction was refused, and it can only be aborted",
                State::Lost => {
                    "what became of the last transaction is not known; another producer must find out"
                }
            }
            .to_owned(),
        )
    }

    /// Has the coordinator know of every partition with something in it.
    fn add_partitions(&mut self, until: Deadline) -> Result<(), Trouble> {
        let places = self.batches.unadded();
        if places.is_empty() {
            return Ok(());
        }
        let mut topics: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for place in &places {
            let partition = i32::try_from(place.partition).unwrap_or(i32::MAX);
            topics.entry(place.topic).or_default().push(partition);
        }
        let named = |(topic, partitions)| (self.cluster.leaders.name(topic), partitions);
        let topics = topics.into_iter().map(named).collect();
        self.coordinator.add_partitions(&mut self.cluster, topics, until)?;
        self.batches.added(&places);
        Ok(())
    }

    /// Seals every batch, and sends what can be sent.
    fn flush(&mut self, until: Deadline) -> Result<(), Trouble> {
        self.batches.seal_all();
        self.add_partitions(until)?;
        self.delivery.send(&mut self.batches, &self.cluster, until);
        Ok(())
    }

    /// Has every sealed batch acknowledged.
    fn settle(&mut self, until: Deadline) -> Result<(), Trouble> {
        let until = until.within(self.limits.delivery);
        self.delivery.deliver(&mut self.batches, &mut self.cluster, 0, until)
    }

    /// Refuses before anything more is sent when the membership could not fence, or when there is
    /// nothing to fence with.
    fn offsets(
        &mut self,
        offsets: &[TaskOffset],
        membership: &Membership,
        until: Deadline,
    ) -> Result<(), Trouble> {
        if !membership.is_valid() {
            return Err(Trouble::Generation("this worker is not a member of its group".to_owned()));
        }
        if offsets.is_empty() {
            return Err(Trouble::Unknown("a commit without offsets would not be fenced".to_owned()));
        }
        crash_point(CrashPoint::BeforeFlush);
        self.flush(until)?;
        // Leaders write meanwhile.
        self.coordinator.add_offsets(&mut self.cluster, &membership.group, until)?;
        self.settle(until)?;
        crash_point(CrashPoint::AfterFlush);
        let mut list = Vec::with_capacity(offsets.len());
        for row in offsets {
            let (input, partition) = (usize::from(row.partition.input), row.partition.partition);
            let Some(topic) = self.inputs.get(input).map(String::as_str) else {
                return Err(Trouble::Unknown(format!("the deployment has no input {input}")));
            };
            let offset = row.offset.0 as i64;
            let leader_epoch = self.epochs.before(topic, partition, offset);
            list.push(Offset { topic, partition, offset, leader_epoch, metadata: &row.metadata });
        }
        self.coordinator.commit_offsets(&mut self.cluster, membership, &list, until)
    }

    fn commit(&mut self, until: Deadline) -> Result<(), Trouble> {
        self.flush(until)?;
        self.settle(until)?;
        // A transaction of which no broker has heard is committed as it is.
        if self.coordinator.has_begun() {
            self.coordinator.commit(&mut self.cluster, until)?;
        }
        Ok(())
    }

    /// Raises the epoch: whatever this producer has open, or on its way, is aborted or refused.
    fn renew(&mut self, until: Deadline) -> Result<(), CommitError> {
        self.state = State::Lost;
        self.coordinator.renew(&mut self.cluster, until).map_err(CommitError::from)?;
        self.batches.renew(self.coordinator.identity());
        self.delivery.renew();
        self.state = State::Idle;
        Ok(())
    }
}

impl Sink for TransactionalProducer {
    fn begin(&mut self) -> Result<(), CommitError> {
        if self.state != State::Idle {
            return Err(self.out_of_turn());
        }
        let until = Deadline::after(self.limits.patience);
        if self.delivery.has_unanswered() || self.coordinator.has_unanswered() {
            self.renew(until)?;
        }
        if self.cluster.is_older_than(self.limits.metadata_refresh)
            && let Err(error) = self.cluster.look(until)
        {
            tracing::debug!(%error, "no broker says whether topics have changed");
        }
        self.batches.begin();
        self.sticky = self.sticky.wrapping_add(1);
        self.ahead = AHEAD_BYTES;
        self.has_looked = false;
        (self.state, self.until) = (State::Open, until);
        Ok(())
    }

    fn produce(&mut self, rows: Produce<'_>) -> Result<(), CommitError> {
        self.part(self.until, |producer, until| match rows {
            Produce::Emissions(rows) => producer.emissions(rows, until),
            Produce::Changelog(rows) => match producer.topics.changelog {
                Some(topic) => producer.log(topic, rows, until),
                None => Err(Trouble::Unknown("this producer has no changelog topic".to_owned())),
            },
            Produce::Inbox(rows) => match producer.topics.inbox {
                Some(topic) => producer.log(topic, rows, until),
                None => Err(Trouble::Unknown("this producer has no inbox topic".to_owned())),
            },
        })
    }

    fn send_offsets(&mut self, offsets: &[TaskOffset], membership: &Membership) -> Result<(), CommitError> {
        self.part(self.until, |producer, until| producer.offsets(offsets, membership, until))
    }

    fn end(&mut self, end: End) -> Result<(), CommitError> {
        match (end, self.state) {
            (End::Commit, _) => {
                self.part(Deadline::after(self.limits.patience), TransactionalProducer::commit)?;
                self.state = State::Idle;
                Ok(())
            }
            (End::Abort, State::Idle) => Ok(()),
            (End::Abort, State::Lost) => Err(self.out_of_turn()),
            (End::Abort, State::Open | State::Refused) if !self.coordinator.has_begun() => {
                // No broker has heard of it.
                self.batches.forget();
                self.state = State::Idle;
                Ok(())
            }
            (End::Abort, State::Open | State::Refused) => self.renew(Deadline::after(self.limits.patience)),
        }
    }
}
