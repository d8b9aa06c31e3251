//! Where commits go: to the node's own producer ([`produce`](super::produce)), with a transaction (`exactly_once`) or without
//! (`at_least_once`); or over librdkafka, [`TransactionalSink`] and [`PlainSink`].
//!
//! The calls of librdkafka are made directly; rdkafka's wrappers around flush and commit poll in
//! 100 ms steps. Failures of single records arrive through delivery reports (of failures only) on
//! librdkafka's background thread and are looked at after every flush.

use std::time::{Duration, Instant};

use super::config::KafkaConfig;
use super::epochs::Epochs;
use super::ffi::partitions::Partitions;
use super::ffi::producer::{Outgoing, Producer};
use super::ffi::{Code, Failure, KafkaError};

use super::produce;
use super::source_error;
use crate::config::node::KafkaClient;
use crate::effects::{Emitted, EmittedRow};
use crate::faults::{CrashPoint, crash_point};
use crate::ports::{ChangelogRows, CommitError, End, Membership, Produce, Sink, SourceError, TaskOffset};
use crate::record::Column;
use crate::record::headers::{self, MalformedHeaders};

/// The header that carries writer and commit number of a changelog record: two big-endian u64.
/// In Kafka since 0.1.
pub const STAMP_HEADER: &str = "tidemill-commit";

/// Between a commit and the next first produce. The coordinator answers CONCURRENT_TRANSACTIONS
/// until its markers are written, and librdkafka then waits a fixed 20 ms before it asks again.
const MARKER_PAUSE: Duration = Duration::from_millis(2);

/// How long a full local queue may take to move before the outcome counts as unknown.
const QUEUE_FULL_WAIT: Duration = Duration::from_secs(30);

/// What a sink writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkSpec {
    /// Topics of the manifest's outputs, in its order; `None` for one that is no topic.
    pub outputs: Vec<Option<String>>,
    /// `None` for a deployment without state.
    pub changelog: Option<String>,
    /// `None` for a deployment without an inbox.
    pub inbox: Option<String>,
    /// Topics of the inputs in the manifest's order; offsets are committed for them.
    pub inputs: Vec<String>,
    /// Largest batch, in bytes: at most the smallest `max.message.bytes` of the topics above, or a
    /// broker refuses whole batches of records that are each small enough.
    pub batch_bytes: u32,
}

/// Topics of one producer by their index in the manifest.
struct Topics {
    producer: Producer,
    outputs: Vec<Option<usize>>,
    changelog: Option<usize>,
    inbox: Option<usize>,
    spec: SinkSpec,
}

impl Topics {
    fn new(
        config: &KafkaConfig,
        spec: SinkSpec,
        transactional_id: Option<&str>,
    ) -> Result<Topics, KafkaError> {
        let label = transactional_id.unwrap_or("producer");
        let mut producer = Producer::new(&config.producer(transactional_id, spec.batch_bytes), label)?;
        let outputs = spec.outputs.iter();
        let outputs = outputs.map(|name| name.as_ref().map(|name| producer.topic(name)).transpose());
        let outputs = outputs.collect::<Result<_, _>>()?;
        let changelog = spec.changelog.as_ref().map(|name| producer.topic(name)).transpose()?;
        let inbox = spec.inbox.as_ref().map(|name| producer.topic(name)).transpose()?;
        Ok(Topics { producer, outputs, changelog, inbox, spec })
    }

    /// Queues every row in order; the default partition and timestamp are the producer's.
    fn emissions(&self, rows: &Emitted) -> Result<(), CommitError> {
        for EmittedRow { output, partition, timestamp, key, value, headers } in rows.rows() {
            let index = usize::from(output);
            let (Some(&Some(topic)), Some(Some(name))) =
                (self.outputs.get(index), self.spec.outputs.get(index))
            else {
                return Err(CommitError::Record {
                    topic: format!("output {output}"),
                    reason: "the deployment has no such topic".to_owned(),
                });
            };
            let list = match headers {
                None => Vec::new(),
                Some(bytes) => headers::decode_raw(bytes).map_err(|MalformedHeaders| {
                    CommitError::Record { topic: name.clone(), reason: MalformedHeaders.to_string() }
                })?,
            };
            let record = Outgoing { partition, key, value, timestamp, ticket: 0 };
            self.patiently(|| self.producer.produce(topic, record, &list))
                .map_err(|error| refusal(name, &error))?;
        }
        Ok(())
    }

    /// Queues changelog rows in order. Their time is the broker's to set, so that they can go in
    /// batches unless each carries a stamp.
    fn changelog(&self, rows: &ChangelogRows, range: std::ops::Range<usize>) -> Result<(), CommitError> {
        let Some(topic) = self.changelog else {
            return Err(CommitError::Indefinite("this sink has no changelog topic".to_owned()));
        };
        let name = self.spec.changelog.as_deref().unwrap_or_default();
        let columns = rows.keys.iter().zip(rows.values.iter()).skip(range.start).take(range.len());
        match rows.stamp {
            None => self.batch(topic, rows.partition, columns),
            Some(stamp) => {
                let stamp = stamp_bytes(stamp);
                let list = [(STAMP_HEADER.as_bytes(), Some(&stamp[..]))];
                columns.into_iter().try_for_each(|(key, value)| {
                    let record = Outgoing { partition: rows.partition, key, value, timestamp: -1, ticket: 0 };
                    self.patiently(|| self.producer.produce(topic, record, &list))
                })
            }
        }
        .map_err(|error| refusal(name, &error))
    }

    /// Queues records of the inbox, in which ids are packed; the broker sets their time as well.
    fn inbox(&self, rows: &ChangelogRows) -> Result<(), CommitError> {
        let Some(topic) = self.inbox else {
            return Err(CommitError::Indefinite("this sink has no inbox topic".to_owned()));
        };
        let columns = rows.keys.iter().zip(rows.values.iter());
        let name = self.spec.inbox.as_deref().unwrap_or_default();
        self.batch(topic, rows.partition, columns).map_err(|error| refusal(name, &error))
    }

    fn batch<'a>(
        &self,
        topic: usize,
        partition: i32,
        rows: impl Iterator<Item = (Option<&'a [u8]>, Option<&'a [u8]>)> + Clone,
    ) -> Result<(), KafkaError> {
        let mut done = 0;
        self.patiently(|| {
            let (taken, result) = self.producer.produce_batch(topic, partition, rows.clone().skip(done));
            done += taken;
            result
        })
    }

    /// Repeats a produce call while the local queue is full.
    fn patiently(&self, mut produce: impl FnMut() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
        let mut deadline = None;
        loop {
            match produce() {
                Err(error) if error.is(Code::RD_KAFKA_RESP_ERR__QUEUE_FULL) => {
                    let end = *deadline.get_or_insert_with(|| Instant::now() + QUEUE_FULL_WAIT);
                    if Instant::now() >= end {
                        return Err(error);
                    }
                    // A flush sends what lingers; a short one, because any progress will do.
                    let _ = self.producer.flush(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// Waits for every acknowledgement, then looks at what was refused.
    fn settle(&self, wait: Duration) -> Result<(), CommitError> {
        let flushed = self.producer.flush(wait);
        worst(self.producer.failures())?;
        flushed.map_err(|error| CommitError::Indefinite(format!("records were not acknowledged: {error}")))
    }
}

/// Under `exactly_once` with librdkafka: one transaction per commit.
struct TransactionalSink {
    topics: Topics,
    config: KafkaConfig,
    transactional_id: String,
    /// The longest that a call may take before its outcome counts as unknown.
    patience: Duration,
    ended: Option<Instant>,
    /// A broker refused a record of the open transaction. librdkafka then counts sequence numbers
    /// that the broker never saw, and the next transaction would fail with
    /// OUT_OF_ORDER_SEQUENCE_NUMBER; so the producer is replaced once the abort has succeeded.
    refused: bool,
    epochs: Epochs,
}

impl TransactionalSink {
    /// Makes the producer and fences its predecessor of the same transactional id, whose open
    /// transaction is aborted.
    fn new(
        config: &KafkaConfig,
        transactional_id: &str,
        spec: SinkSpec,
    ) -> Result<TransactionalSink, SourceError> {
        Ok(TransactionalSink {
            topics: initialised(config, transactional_id, spec)?,
            config: config.clone(),
            transactional_id: transactional_id.to_owned(),
            patience: config.limits.transaction_timeout,
            ended: None,
            refused: false,
            epochs: Epochs::default(),
        })
    }

    /// Offsets are committed with the leader epochs that the consumer of the same worker learns.
    fn knowing(self, epochs: Epochs) -> TransactionalSink {
        TransactionalSink { epochs, ..self }
    }

    fn settle(&mut self) -> Result<(), CommitError> {
        let result = self.topics.settle(self.patience);
        self.refused |= matches!(result, Err(CommitError::Record { .. }));
        result
    }

    fn abort(&mut self) -> Result<(), CommitError> {
        self.topics.producer.abort_transaction(self.patience).map_err(indefinite)?;
        match std::mem::take(&mut self.refused) {
            true => self.replace(),
            false => Ok(()),
        }
    }

    /// A new producer in the place of one that must not begin another transaction: a record of it was
    /// refused, or a request of its last transaction had no answer.
    ///
    /// librdkafka sends such a request again by itself, and the first one may still be on its way. A
    /// late EndTxn would end the transaction after its own, half-made as that is (KAFKA-17754), for
    /// client and broker do not both know the second part of KIP-890. The new producer's epoch is what
    /// makes it come too late.
    fn replace(&mut self) -> Result<(), CommitError> {
        let spec = self.topics.spec.clone();
        self.topics = initialised(&self.config, &self.transactional_id, spec)
            .map_err(|error| CommitError::Indefinite(error.to_string()))?;
        Ok(())
    }
}

/// A producer whose predecessors of the same id are fenced. librdkafka does not say whether the coordinator is away or still
/// writes the markers of a predecessor's transaction, so the first is waited for no longer than by the node's own producer, and
/// so is the second: whoever tries again finds it ended, or goes on waiting.
fn initialised(config: &KafkaConfig, id: &str, spec: SinkSpec) -> Result<Topics, SourceError> {
    let topics =
        Topics::new(config, spec, Some(id)).map_err(|error| SourceError::Refused(error.to_string()))?;
    topics
        .producer
        .init_transactions(produce::REACH_WAIT)
        .map_err(|error| source_error(&format!("cannot initialise `{id}`"), &error))?;
    Ok(topics)
}

/// The sink of `exactly_once`: the node's own producer, or librdkafka's where the configuration has it so. Making it fences
/// the predecessor of the same transactional id, whose open transaction is aborted. Offsets are committed with the leader
/// epochs that the consumer of the same worker learns.
pub fn transactional(
    config: &KafkaConfig,
    transactional_id: &str,
    spec: SinkSpec,
    epochs: Epochs,
) -> Result<Box<dyn Sink>, SourceError> {
    Ok(match config.client() {
        KafkaClient::Own => {
            Box::new(produce::Producer::transactional(config, transactional_id, spec, epochs)?)
        }
        KafkaClient::Librdkafka => {
            Box::new(TransactionalSink::new(config, transactional_id, spec)?.knowing(epochs))
        }
    })
}

/// The sink of `at_least_once`: the node's own producer, or librdkafka's where the configuration has it so. Offsets are
/// committed by the consumer of the same worker, after the stores.
pub fn plain(config: &KafkaConfig, spec: SinkSpec) -> Result<Box<dyn Sink>, SourceError> {
    Ok(match config.client() {
        KafkaClient::Own => Box::new(produce::Producer::plain(config, spec)?),
        KafkaClient::Librdkafka => Box::new(PlainSink::new(config, spec)?),
    })
}

/// Runs `init_transactions` once for the id of a worker that no longer exists, so that what it left
/// open is aborted.
pub fn fence(config: &KafkaConfig, transactional_id: &str) -> Result<(), SourceError> {
    let spec = SinkSpec {
        outputs: Vec::new(),
        changelog: None,
        inbox: None,
        inputs: Vec::new(),
        batch_bytes: 1 << 20,
    };
    transactional(config, transactional_id, spec, Epochs::default()).map(drop)
}

impl Sink for TransactionalSink {
    fn begin(&mut self) -> Result<(), CommitError> {
        if let Some(ended) = self.ended {
            std::thread::sleep(MARKER_PAUSE.saturating_sub(ended.elapsed()));
        }
        if self.topics.producer.has_unanswered() {
            self.replace()?;
        }
        drop(self.topics.producer.failures());
        self.topics.producer.begin_transaction().map_err(indefinite)
    }

    fn produce(&mut self, rows: Produce<'_>) -> Result<(), CommitError> {
        match rows {
            Produce::Emissions(rows) => self.topics.emissions(rows),
            Produce::Changelog(rows) => self.topics.changelog(rows, 0..rows.keys.len()),
            Produce::Inbox(rows) => self.topics.inbox(rows),
        }
    }

    /// Refuses before anything is sent when the membership could not fence, or when there is
    /// nothing to fence with.
    fn send_offsets(&mut self, offsets: &[TaskOffset], membership: &Membership) -> Result<(), CommitError> {
        crash_point(CrashPoint::BeforeFlush);
        self.settle()?;
        crash_point(CrashPoint::AfterFlush);
        if !membership.is_valid() {
            return Err(CommitError::Generation("this worker is not a member of its group".to_owned()));
        }
        if offsets.is_empty() {
            return Err(CommitError::Indefinite("a commit without offsets would not be fenced".to_owned()));
        }
        let mut list = Partitions::with_capacity(offsets.len());
        for row in offsets {
            let topic = &self.topics.spec.inputs[usize::from(row.partition.input)];
            let (partition, offset) = (row.partition.partition, row.offset.0 as i64);
            list.add(topic, partition, offset, &row.metadata);
            list.set_leader_epoch(self.epochs.before(topic, partition, offset));
        }
        self.topics.producer.send_offsets(&list, membership, self.patience).map_err(|error| {
            // By code, never by librdkafka's "abortable" flag, which it also sets where the outcome
            // is not known.
            match error.is_any(&GENERATION) && !error.fatal {
                true => CommitError::Generation(error.to_string()),
                false => indefinite(error),
            }
        })
    }

    fn end(&mut self, end: End) -> Result<(), CommitError> {
        let result = match end {
            End::Commit => {
                self.settle()?;
                self.topics.producer.commit_transaction(self.patience).map_err(indefinite)
            }
            End::Abort => self.abort(),
        };
        self.ended = Some(Instant::now());
        result
    }
}

/// Answers to `send_offsets` that say for certain that the offsets were not taken.
const GENERATION: [Code; 4] = [
    Code::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
    Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
    Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
    Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
];

/// Refusals of a record for what it is.
const RECORD: [Code; 7] = [
    Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
    Code::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE,
    Code::RD_KAFKA_RESP_ERR_INVALID_RECORD,
    Code::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
    Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
    Code::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE,
    Code::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
];

fn indefinite(error: KafkaError) -> CommitError {
    CommitError::Indefinite(error.to_string())
}

fn refusal(topic: &str, error: &KafkaError) -> CommitError {
    match error.is_any(&RECORD) && !error.fatal {
        true => CommitError::Record { topic: topic.to_owned(), reason: error.to_string() },
        false => CommitError::Indefinite(format!("{topic}: {error}")),
    }
}

/// One error for all failures of a commit. A record that was purged because another failed says
/// nothing by itself; a refused record counts only if no outcome is unknown.
fn worst(failures: Vec<Failure>) -> Result<(), CommitError> {
    let purged = [Code::RD_KAFKA_RESP_ERR__PURGE_QUEUE, Code::RD_KAFKA_RESP_ERR__PURGE_INFLIGHT];
    let is_purged = |failure: &Failure| failure.error.is_any(&purged);
    let (purged, told): (Vec<_>, Vec<_>) = failures.into_iter().partition(is_purged);
    let mut refused = None;
    for failure in if told.is_empty() { purged } else { told } {
        match refusal(&failure.topic, &failure.error) {
            record @ CommitError::Record { .. } => {
                refused.get_or_insert(record);
            }
            unknown => return Err(unknown),
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Under `at_least_once` with librdkafka: the same calls without a transaction.
///
/// A position record closes its commit, so it is held back until everything before it, the
/// emissions of every task included, has been acknowledged.
struct PlainSink {
    topics: Topics,
    config: KafkaConfig,
    held: Vec<ChangelogRows>,
}

/// How long brokers may take to acknowledge a commit's records, where no transaction says so.
pub(super) const FLUSH_WAIT: Duration = Duration::from_secs(30);

impl PlainSink {
    fn new(config: &KafkaConfig, spec: SinkSpec) -> Result<PlainSink, SourceError> {
        let topics =
            Topics::new(config, spec, None).map_err(|error| SourceError::Refused(error.to_string()))?;
        Ok(PlainSink { topics, config: config.clone(), held: Vec::new() })
    }

    /// Sends the position records once nothing before them is in doubt.
    fn settle(&mut self) -> Result<(), CommitError> {
        self.topics.settle(FLUSH_WAIT)?;
        if self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        let closed = held
            .iter()
            .try_for_each(|rows| self.topics.changelog(rows, 0..rows.keys.len()))
            .and_then(|()| self.topics.settle(FLUSH_WAIT));
        match closed {
            // Some of them may be there, which close the commits of their tasks.
            Err(error @ CommitError::Record { .. }) if held.len() > 1 => {
                Err(CommitError::Indefinite(error.to_string()))
            }
            closed => closed,
        }
    }
}

impl Sink for PlainSink {
    fn begin(&mut self) -> Result<(), CommitError> {
        self.held.clear();
        drop(self.topics.producer.failures());
        Ok(())
    }

    fn produce(&mut self, rows: Produce<'_>) -> Result<(), CommitError> {
        match rows {
            Produce::Emissions(rows) => self.topics.emissions(rows),
            Produce::Inbox(rows) => self.topics.inbox(rows),
            Produce::Changelog(rows) => {
                let Some((ahead, position)) = closing(rows) else { return Ok(()) };
                self.topics.changelog(rows, 0..ahead)?;
                self.held.push(position);
                Ok(())
            }
        }
    }

    /// Only waits: under `at_least_once` offsets are committed by the consumer, after the store.
    fn send_offsets(&mut self, _: &[TaskOffset], _: &Membership) -> Result<(), CommitError> {
        self.settle()
    }

    fn end(&mut self, end: End) -> Result<(), CommitError> {
        match end {
            End::Commit => self.settle(),
            End::Abort => {
                // What came later, in the midst of the next commit of the same writer, would hide the
                // first of that one's rows from a restore.
                self.topics.producer.flush(FLUSH_WAIT).map_err(indefinite)?;
                match worst(self.topics.producer.failures()) {
                    Ok(()) | Err(CommitError::Record { .. }) => {}
                    Err(unknown) => return Err(unknown),
                }
                // A new producer: an idempotent one that has had a record refused, or queued records
                // thrown away, has counted sequence numbers that the broker never saw.
                self.held.clear();
                let spec = self.topics.spec.clone();
                self.topics = Topics::new(&self.config, spec, None).map_err(indefinite)?;
                Ok(())
            }
        }
    }
}

/// The last of a task's rows by itself, its position record, and how many are before it; `None` without a row.
pub(super) fn closing(rows: &ChangelogRows) -> Option<(usize, ChangelogRows)> {
    let last = rows.keys.len().checked_sub(1)?;
    let one = |column: &Column| {
        let mut copy = Column::default();
        copy.push(column.row(last));
        copy
    };
    let (keys, values) = (one(&rows.keys), one(&rows.values));
    Some((last, ChangelogRows { partition: rows.partition, keys, values, stamp: rows.stamp }))
}

/// The value of a stamp header.
pub(super) fn stamp_bytes((writer, commit): (u64, u64)) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&writer.to_be_bytes());
    bytes[8..].copy_from_slice(&commit.to_be_bytes());
    bytes
}

/// Writer and commit number from a stamp header's value; `None` when it is not one.
pub(super) fn read_stamp(value: &[u8]) -> Option<(u64, u64)> {
    let (writer, commit) = value.split_at_checked(8)?;
    Some((u64::from_be_bytes(writer.try_into().ok()?), u64::from_be_bytes(commit.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: Code) -> Failure {
        Failure { topic: "out".to_owned(), error: KafkaError::from_code(code as i32) }
    }

    #[test]
    fn a_refused_record_explains_the_purged_ones() {
        let failures = vec![
            failure(Code::RD_KAFKA_RESP_ERR__PURGE_QUEUE),
            failure(Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE),
        ];
        assert!(matches!(worst(failures), Err(CommitError::Record { .. })));
    }

    #[test]
    fn an_unknown_outcome_outweighs_a_refused_record() {
        let failures = vec![
            failure(Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE),
            failure(Code::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT),
        ];
        assert!(matches!(worst(failures), Err(CommitError::Indefinite(_))));
    }

    #[test]
    fn a_position_record_is_told_from_the_rows_before_it() {
        assert!(closing(&ChangelogRows::default()).is_none());
        let mut rows = ChangelogRows { partition: 3, stamp: Some((1, 2)), ..ChangelogRows::default() };
        for (key, value) in [("k", None), ("position", Some("p"))] {
            rows.keys.push(Some(key.as_bytes()));
            rows.values.push(value.map(str::as_bytes));
        }
        let (ahead, position) = closing(&rows).expect("there are rows");
        assert_eq!((ahead, position.partition, position.stamp), (1, 3, Some((1, 2))));
        let only = |column: &Column| (column.len(), column.row(0).map(<[u8]>::to_vec));
        assert_eq!(only(&position.keys), (1, Some(b"position".to_vec())));
        assert_eq!(only(&position.values), (1, Some(b"p".to_vec())));
    }

    #[test]
    fn stamps_survive_the_way_there_and_back() {
        assert_eq!(read_stamp(&stamp_bytes((7, u64::MAX))), Some((7, u64::MAX)));
        assert_eq!(read_stamp(b"short"), None);
        assert_eq!(read_stamp(&[0; 17]), None);
    }
}
