//! The node's own producer: where commits go, with a transaction (`exactly_once`) or without (`at_least_once`).
//!
//! Everything happens on the thread that calls, which waits for brokers with a limit: no thread, no callback, no queue
//! that somebody else empties. Rows go straight into the batches that brokers will keep, and a commit is their delivery,
//! with the requests of Kafka's transaction protocol before and after, one after the other:
//!
//! ```text
//!                 with a transaction                               without
//!   begin         nothing                                          nothing
//!   produce       rows into batches; what is full goes ahead:      the same, but for position records:
//!                   AddPartitionsToTxn -> coordinator,
//!                   Produce -> leaders (several under way)           Produce -> leaders
//!   send_offsets  the same with the rest; AddOffsetsToTxn ->       the same with the rest; once all is
//!                 coordinator, while leaders write; once all is    acknowledged, position records, and
//!                 acknowledged, TxnOffsetCommit -> coordinator     that they are
//!                 of the group
//!   end(Commit)   EndTxn -> coordinator                            nothing
//!   end(Abort)    InitProducerId -> coordinator                    waits for answers; InitProducerId -> anybody
//! ```
//!
//! The life of a commit, and so of the producer:
//!
//! ```text
//!            begin           end(Commit)
//!     Idle ---------> Open -------------> Idle
//!                      |
//!                      +--- a record, or the offsets, are refused for what they are ---> Refused
//!                      +--- anything else: time, a lost answer, another producer ------> Lost
//!
//!     Open, Refused --- end(Abort) ---> Idle, in the next epoch or with another id; or Lost
//! ```
//! Invariants:
//! - A commit in which anything failed is never ended as one. The producer is `Lost` from the beginning of each step to
//!   its good end, EndTxn(commit) included, so that no way out of one is forgotten.
//! - **A request that has no answer is followed by no other commit with the same id and epoch.** It may arrive at any time,
//!   and a coordinator or leader could take it for a part of that commit (KAFKA-17754). Within a commit record batches
//!   are sent again, if they have sequence numbers, which keep them from being taken twice, and what adds partitions to a
//!   transaction, which a second time changes nothing. After any other request the call fails, with an unknown outcome.
//!   Either way there is another epoch, or producer id, before another commit begins.
//! - A producer that is lost says so to every call. Only making another tells what became of its last commit (rule P1).
//! - What is produced and not acknowledged stays within the limit, but for one record.
//! - From `begin` to `end` a transaction has the time that its coordinator gives it, and each way to end it as much again.
//!   Without one each call has its time.
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
//! **Without a transaction nothing refuses a batch that comes late and was in no log before**, and a row of an aborted commit
//! between two of the next one of the same writer would hide the first of them from a restore. So an abort waits for every
//! answer, and if one is missing the producer is `Lost`: the task begins anew with another writer's number, by which a
//! restore tells its rows from late ones.
//!
//! | file | what it does |
//! |---|---|
//! | `form` | with a transaction or without: all in which the two differ |
//! | `transaction` | what a transaction adds to a commit |
//! | `coordinator` | the requests that make a transaction |
//! | `plain` | a commit without one |
//! | `rows` | where each record goes, and when what waits is sent |
//! | `partition` | one partition's batches: sequence numbers, and the order in which they go |
//! | `batches` | all of them |
//! | `partitioner` | where a record without a partition goes |
//! | `delivery` | Produce requests: several at once, and again if need be |
//! | `outage` | how often it is said that brokers are away |
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
mod form;
mod leaders;
mod outage;
mod partition;
mod partitioner;
mod patience;
mod plain;
mod rows;
mod settings;
mod transaction;

use std::time::Duration;

use answers::Trouble;
use batches::Batches;
use cluster::Cluster;
use delivery::Delivery;
use form::Form;
use partitioner::Partitioner;
use patience::Deadline;
use plain::Plain;
use rows::{AHEAD_BYTES, Topics, now_ms};
use settings::Limits;
use transaction::Transaction;

use super::chance;
use super::config::KafkaConfig;
use super::epochs::Epochs;
use super::sink::{FLUSH_WAIT, SinkSpec};
use super::wire::Access;
use crate::faults::{CrashPoint, crash_point};
use crate::ports::{CommitError, End, Membership, Produce, Sink, SourceError, TaskOffset};

/// How long all brokers, or the coordinator, may be away before that is said, whichever client writes. A worker that is to
/// stop, or whose partitions are another's by now, waits as long, so it is less than a node has to stop (`shutdown_timeout`).
pub(super) const REACH_WAIT: Duration = Duration::from_secs(10);

/// Where the producer is in its life: the drawing above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Open,
    Refused,
    Lost,
}

/// The commits of a worker: see the module.
pub struct Producer {
    topics: Topics,
    limits: Limits,
    partitioner: Partitioner,
    cluster: Cluster,
    batches: Batches,
    delivery: Delivery,
    form: Form,
    state: State,
    /// Where records without a key go, modulo the topic's partitions. Moves on with every batch.
    sticky: i32,
    /// So many bytes must wait before they are sent ahead: more, while they cannot be.
    ahead: usize,
    /// In this commit it was looked whether a topic has more partitions.
    has_looked: bool,
}

impl Producer {
    /// With one transaction per commit. Making it fences its predecessor of the same transactional id, whose open
    /// transaction is aborted. Offsets are committed with the leader epochs that the consumer of the same worker learns.
    pub fn transactional(
        config: &KafkaConfig,
        transactional_id: &str,
        spec: SinkSpec,
        epochs: Epochs,
    ) -> Result<Producer, SourceError> {
        let limits = settings::limits(config, config.limits.transaction_timeout);
        let inputs = spec.inputs.clone();
        let transaction = Transaction::new(transactional_id, limits.patience, inputs, epochs);
        Producer::new(config, &spec, Form::Transaction(Box::new(transaction)), limits)
    }

    /// Without transactions, acknowledged and idempotent as configured. Fences nobody.
    pub fn plain(config: &KafkaConfig, spec: SinkSpec) -> Result<Producer, SourceError> {
        let form = Form::Plain(Plain::new(settings::acks(config), config.enable_idempotence));
        Producer::new(config, &spec, form, settings::limits(config, FLUSH_WAIT))
    }

    fn new(
        config: &KafkaConfig,
        spec: &SinkSpec,
        mut form: Form,
        limits: Limits,
    ) -> Result<Producer, SourceError> {
        let access = Access::new(config).map_err(|error| SourceError::Refused(error.to_string()))?;
        let format = settings::format(config, spec.batch_bytes).map_err(SourceError::Refused)?;
        let partitioner = config.partitioner.parse::<Partitioner>().map_err(SourceError::Refused)?;
        let topics = Topics::new(spec);
        let mut cluster = Cluster::new(access, topics.names.clone());
        let context = form.beginning();
        let failed = |trouble: Trouble| trouble.into_source_error(&context);
        let near = Deadline::after(REACH_WAIT);
        cluster.reach(near).map_err(Trouble::Unknown).map_err(failed)?;
        form.reach(&mut cluster, near).map_err(failed)?;
        let until = Deadline::after(form.first_wait(limits.patience));
        let identity = form.renew(&mut cluster, until).map_err(failed)?;
        let batches = Batches::new(topics.names.len(), format, identity, chance());
        let delivery = Delivery::new(form.transactional_id(), form.acks(), &limits);
        Ok(Producer {
            topics,
            limits,
            partitioner,
            cluster,
            batches,
            delivery,
            form,
            state: State::Idle,
            // Workers that start together do not all begin with the same partition.
            sticky: (now_ms() & 0xffff) as i32,
            ahead: AHEAD_BYTES,
            has_looked: false,
        })
    }

    /// Runs a part of an open commit. After an error it can be aborted, if that is a definite one.
    fn part(
        &mut self,
        until: Deadline,
        run: impl FnOnce(&mut Producer, Deadline) -> Result<(), Trouble>,
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
                State::Idle => "no commit is open",
                State::Open => "a commit is open already",
                State::Refused => "a part of the commit was refused, and it can only be aborted",
                State::Lost => "what became of the last commit is not known; another producer must find out",
            }
            .to_owned(),
        )
    }

    /// Lets every partition with something in it be written to; in a transaction its coordinator has to know of them.
    fn add_partitions(&mut self, until: Deadline) -> Result<(), Trouble> {
        let places = self.batches.unadded();
        if places.is_empty() {
            return Ok(());
        }
        if let Form::Transaction(transaction) = &mut self.form {
            transaction.add_partitions(&mut self.cluster, &places, until)?;
        }
        self.batches.added(&places);
        Ok(())
    }

    /// Seals every batch, and sends what can be sent.
    fn flush(&mut self, until: Deadline) -> Result<(), Trouble> {
        self.batches.seal_all();
        self.add_partitions(until)?;
        self.delivery.send(&mut self.batches, &self.cluster, until)
    }

    /// Has every sealed batch acknowledged.
    fn settle(&mut self, until: Deadline) -> Result<(), Trouble> {
        let until = until.within(self.limits.delivery);
        self.delivery.deliver(&mut self.batches, &mut self.cluster, 0, until)
    }

    /// Sends the position records that were kept, now that nothing before them is in doubt.
    fn close(&mut self, until: Deadline) -> Result<(), Trouble> {
        let kept = self.form.kept();
        if kept.is_empty() {
            return Ok(());
        }
        let closed = kept
            .iter()
            .try_for_each(|rows| self.changelog(rows, rows.keys.len(), until))
            .and_then(|()| self.flush(until))
            .and_then(|()| self.settle(until));
        match kept.len() {
            // If it is refused, nothing is closed.
            1 => closed,
            // Some of them may be there, which close the commits of their tasks.
            _ => closed.map_err(Trouble::in_doubt),
        }
    }

    /// In a transaction, refuses before anything more is sent when the membership could not fence, or when there is
    /// nothing to fence with. Without one the consumer commits the offsets, after the stores.
    fn offsets(
        &mut self,
        offsets: &[TaskOffset],
        membership: &Membership,
        until: Deadline,
    ) -> Result<(), Trouble> {
        if let Form::Transaction(_) = &self.form {
            Transaction::check(offsets, membership)?;
        }
        crash_point(CrashPoint::BeforeFlush);
        self.flush(until)?;
        if let Form::Transaction(transaction) = &mut self.form {
            // Leaders write meanwhile.
            transaction.coordinator.add_offsets(&mut self.cluster, &membership.group, until)?;
        }
        self.settle(until)?;
        self.close(until)?;
        crash_point(CrashPoint::AfterFlush);
        match &mut self.form {
            Form::Transaction(transaction) => {
                transaction.commit_offsets(&mut self.cluster, offsets, membership, until)
            }
            Form::Plain(_) => Ok(()),
        }
    }

    fn commit(&mut self, until: Deadline) -> Result<(), Trouble> {
        self.flush(until)?;
        self.settle(until)?;
        self.close(until)?;
        match &mut self.form {
            Form::Transaction(transaction) => transaction.commit(&mut self.cluster, until),
            Form::Plain(_) => Ok(()),
        }
    }

    fn abort(&mut self, until: Deadline) -> Result<(), CommitError> {
        self.state = State::Lost;
        match &self.form {
            // No broker has heard of it.
            Form::Transaction(transaction) if !transaction.coordinator.has_begun() => {
                self.batches.forget();
                self.state = State::Idle;
                return Ok(());
            }
            Form::Transaction(_) => {}
            Form::Plain(_) => {
                self.delivery.drain(&mut self.batches, &self.cluster, until);
                if self.delivery.has_unanswered() {
                    let why = "records of a commit that was refused have no answer, and may be written still";
                    return Err(CommitError::Indefinite(why.to_owned()));
                }
            }
        }
        self.renew(until)
    }

    /// Another epoch, by which whatever this producer has open, or on its way, is aborted or refused; or another producer id.
    fn renew(&mut self, until: Deadline) -> Result<(), CommitError> {
        self.state = State::Lost;
        let identity = self.form.renew(&mut self.cluster, until).map_err(CommitError::from)?;
        self.batches.renew(identity);
        self.delivery.renew();
        self.state = State::Idle;
        Ok(())
    }
}

impl Sink for Producer {
    fn begin(&mut self) -> Result<(), CommitError> {
        if self.state != State::Idle {
            return Err(self.out_of_turn());
        }
        let until = Deadline::after(self.limits.patience);
        if self.delivery.has_unanswered() || self.form.has_unanswered() {
            self.renew(until)?;
        }
        if self.cluster.is_older_than(self.limits.metadata_refresh)
            && let Err(error) = self.cluster.look(until)
        {
            tracing::debug!(%error, "no broker says whether topics have changed");
        }
        self.batches.begin();
        self.form.begin(until);
        self.sticky = self.sticky.wrapping_add(1);
        self.ahead = AHEAD_BYTES;
        self.has_looked = false;
        self.state = State::Open;
        Ok(())
    }

    fn produce(&mut self, rows: Produce<'_>) -> Result<(), CommitError> {
        self.part(self.form.until(self.limits.patience), |producer, until| match rows {
            Produce::Emissions(rows) => producer.emissions(rows, until),
            Produce::Changelog(rows) => {
                let ahead = producer.form.ahead(rows);
                producer.changelog(rows, ahead, until)
            }
            Produce::Inbox(rows) => producer.inbox(rows, until),
        })
    }

    fn send_offsets(&mut self, offsets: &[TaskOffset], membership: &Membership) -> Result<(), CommitError> {
        self.part(self.form.until(self.limits.patience), |producer, until| {
            producer.offsets(offsets, membership, until)
        })
    }

    fn end(&mut self, end: End) -> Result<(), CommitError> {
        match (end, self.state) {
            (End::Commit, _) => {
                self.part(Deadline::after(self.limits.patience), Producer::commit)?;
                self.state = State::Idle;
                Ok(())
            }
            (End::Abort, State::Idle) => Ok(()),
            (End::Abort, State::Lost) => Err(self.out_of_turn()),
            (End::Abort, State::Open | State::Refused) => self.abort(Deadline::after(self.limits.patience)),
        }
    }
}
