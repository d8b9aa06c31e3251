//! What recovery reads: the group's stable offsets, and changelogs up to their high watermark.
//!
//! Records of logs are the node's own to fetch (`fetched`), or librdkafka's (`reader`), as those of inputs are
//! (`kafka.client`). Offsets and bounds are librdkafka's in any case.
//!
//! A read ends soon once nobody wants it any more ([`LogReader::until`]), whoever reads. Questions are calls of librdkafka's,
//! which nothing interrupts: [`Impatient`] leaves them alone.

mod fetched;
mod impatient;

use std::time::{Duration, Instant};

use fetched::{FetchedLogs, Part};
pub use impatient::Impatient;

use super::config::KafkaConfig;
use super::epochs::Epochs;
use super::ffi::consumer::Consumer;
use super::ffi::partitions::{Partitions, Row};
use super::ffi::{Client, Code, KafkaError, Message};
use super::reader::{PartitionReader, TO_THE_END};
use super::sink::read_stamp;
use super::{REQUEST_WAIT, bounds, source_error};
use crate::config::node::KafkaClient;
use crate::faults::{Bug, planted};
use crate::ports::{CommittedOffset, Log, LogRecord, LogView, Recovery, SourceError, Stop};
use crate::record::{InputPartition, Offset};

/// Requests are repeated until this runs out. Undecided transactions end after their time-out and
/// the broker's next abort scan, 10 s each by default. A reader that makes no progress for much
/// longer than that says so instead of hanging.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two questions for offsets that are not stable yet.
const UNSTABLE_PAUSE: Duration = Duration::from_millis(50);

/// Reads back what a deployment committed.
pub struct LogReader {
    config: KafkaConfig,
    group: String,
    committed_only: bool,
    committed: PartitionReader,
    /// Sees the true end of a partition: the last stable offset, which a read_committed handle
    /// would answer, may lie below later commits while an older transaction is open. `None` without logs.
    uncommitted: Option<Consumer>,
    /// `None` = librdkafka reads the logs, if there are any: `committed` does.
    fetched: Option<FetchedLogs>,
    inputs: Vec<String>,
    logs: Logs,
    epochs: Epochs,
    stop: Stop,
}

/// The topics that a deployment's stores are rebuilt from, as far as it has them.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    pub changelog: Option<String>,
    pub inbox: Option<String>,
}

impl Logs {
    /// Of a deployment without an inbox.
    pub fn changelog(changelog: Option<String>) -> Logs {
        Logs { changelog, inbox: None }
    }

    fn topics(&self) -> Vec<String> {
        self.changelog.iter().chain(&self.inbox).cloned().collect()
    }
}

impl LogReader {
    /// `inputs` in the manifest's order.
    pub fn new(
        config: &KafkaConfig,
        group: &str,
        inputs: Vec<String>,
        logs: Logs,
    ) -> Result<LogReader, SourceError> {
        let has_logs = logs.changelog.is_some() || logs.inbox.is_some();
        let uncommitted = has_logs.then(|| uncommitted(config, group)).transpose()?;
        let committed_only = !planted(Bug::RestoreUncommitted);
        let committed = PartitionReader::new(config, group, committed_only, TO_THE_END)?;
        let fetched = match config.client() {
            KafkaClient::Own if has_logs => Some(FetchedLogs::new(config, logs.topics(), committed_only)?),
            KafkaClient::Own | KafkaClient::Librdkafka => None,
        };
        // While both connect. Without a connection librdkafka finds nobody to ask who leads a partition, and looks
        // again half a second later (`rd_kafka_topic_partition_list_query_leaders` in rdkafka_partition.c).
        if let Some(handle) = &uncommitted {
            handle.client().settle(REQUEST_WAIT);
        }
        let (config, group) = (config.clone(), group.to_owned());
        Ok(LogReader {
            config,
            group,
            committed_only,
            committed,
            uncommitted,
            fetched,
            inputs,
            logs,
            epochs: Epochs::default(),
            stop: Stop::never(),
        })
    }

    /// Leader epochs of committed offsets go there.
    pub fn telling(self, epochs: Epochs) -> LogReader {
        LogReader { epochs, ..self }
    }

    /// Ends what it does once that is raised, as soon as a call of librdkafka's has come back.
    pub fn until(self, stop: &Stop) -> LogReader {
        LogReader { stop: stop.clone(), ..self }
    }

    fn topic(&self, log: Log) -> Result<String, SourceError> {
        let topic = match log {
            Log::Changelog => &self.logs.changelog,
            Log::Inbox => &self.logs.inbox,
        };
        topic.clone().ok_or_else(|| there_is_no(log))
    }

    /// Asks for committed offsets until every one of them is stable.
    fn stable_offsets(&self, partitions: &[InputPartition]) -> Result<Vec<Row>, SourceError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // librdkafka gives up after two retries, with overall success: look at each row.
            let mut list = Partitions::with_capacity(partitions.len());
            for id in partitions {
                list.add(&self.inputs[usize::from(id.input)], id.partition, -1001, "");
            }
            let answer = self.committed.raw().committed(&list, REQUEST_WAIT);
            let rows = list.rows();
            let error = match answer {
                Err(error) => Some(error),
                Ok(()) => rows.iter().find_map(|row| row.error.clone()),
            };
            let Some(error) = error else { return Ok(rows) };
            if !is_passing(&error) {
                return Err(source_error("cannot fetch committed offsets", &error));
            }
            if Instant::now() >= deadline {
                return Err(self.never_stable(&list, &error));
            }
            tracing::debug!(%error, "committed offsets are not stable yet");
            if !self.stop.pause(UNSTABLE_PAUSE) {
                return Err(SourceError::Stopped);
            }
        }
    }

    /// Why offsets have not become stable in a time in which every transaction ends. If the coordinator answers whoever
    /// takes unstable ones, then it is there, and only the end of a transaction is missing.
    ///
    /// Apache Kafka 4.x loses it when a broker dies between the two phases of a commit and comes back while the group's
    /// partition has no leader: `KRaftMetadataCache.getPartitionLeaderEndpoint` then answers as for a deleted topic, and
    /// `TransactionMarkerChannelManager` completes the transaction without its marker there.
    fn never_stable(&self, list: &Partitions, error: &KafkaError) -> SourceError {
        let answers = |handle: &Consumer| {
            handle.committed(list, REQUEST_WAIT).is_ok() && list.rows().iter().all(|row| row.error.is_none())
        };
        let answered = match &self.uncommitted {
            Some(handle) => answers(handle),
            None => uncommitted(&self.config, &self.group).is_ok_and(|handle| answers(&handle)),
        };
        if !answered {
            return source_error("cannot fetch committed offsets", error);
        }
        SourceError::Unavailable(format!(
            "the offsets of group {} are part of a transaction that does not end: the brokers have lost its end; \
             docs/operations.md, \"A transaction that hangs\", says how to find and end it",
            self.group
        ))
    }
}

/// A handle that hides nothing.
fn uncommitted(config: &KafkaConfig, group: &str) -> Result<Consumer, SourceError> {
    Consumer::new(&config.reader(group, false, TO_THE_END), group)
        .map_err(|error| SourceError::Refused(error.to_string()))
}

/// What has become of a partition that nobody leads, if it is known to hold no more what is to be read of it up to `to`.
fn lost(client: &Client, (topic, partition): (&str, i32), to: Offset, stop: &Stop) -> Option<SourceError> {
    match bounds(client, topic, partition, stop) {
        Ok((_, end)) if end < to => Some(SourceError::Unavailable(format!(
            "{topic} [{partition}] ends at offset {end} now, and was to be read up to {to}: it was made again, or the brokers have \
             lost its end"
        ))),
        // It may be back.
        Ok(_) | Err(SourceError::Unavailable(_)) => None,
        Err(error) => Some(error),
    }
}

fn there_is_no(log: Log) -> SourceError {
    let what = match log {
        Log::Changelog => "changelog",
        Log::Inbox => "inbox",
    };
    SourceError::Refused(format!("the deployment has no {what}"))
}

/// Errors of an offset fetch that time heals.
fn is_passing(error: &KafkaError) -> bool {
    error.is_any(&[
        Code::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT,
        Code::RD_KAFKA_RESP_ERR__WAIT_COORD,
        Code::RD_KAFKA_RESP_ERR__TIMED_OUT,
        Code::RD_KAFKA_RESP_ERR__TRANSPORT,
        Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    ])
}

impl Recovery for LogReader {
    fn committed(
        &mut self,
        partitions: &[InputPartition],
    ) -> Result<Vec<Option<CommittedOffset>>, SourceError> {
        let rows = self.stable_offsets(partitions)?;
        // The answer is old news, perhaps older than what the consumer knows by now.
        if self.stop.is_raised() {
            return Err(SourceError::Stopped);
        }
        let found = |id: &InputPartition| {
            let topic = &self.inputs[usize::from(id.input)];
            let row = rows.iter().find(|row| row.partition == id.partition && row.topic == *topic)?;
            self.epochs.committed(topic, id.partition, row.offset, row.leader_epoch);
            (row.offset >= 0).then(|| CommittedOffset {
                offset: Offset(row.offset as u64),
                metadata: row.metadata.clone(),
            })
        };
        Ok(partitions.iter().map(found).collect())
    }

    /// A handle keeps what it knows of coordinators; a new one knows none.
    fn look_up_again(&mut self) -> Result<(), SourceError> {
        self.committed = PartitionReader::new(&self.config, &self.group, self.committed_only, TO_THE_END)?;
        Ok(())
    }

    fn log_bounds(&mut self, log: Log, partition: i32) -> Result<(Offset, Offset), SourceError> {
        let topic = self.topic(log)?;
        let deadline = Instant::now() + PATIENCE;
        let uncommitted = self.uncommitted.as_ref().ok_or_else(|| there_is_no(log))?;
        let to_stable = planted(Bug::RestoreToStable);
        let reader = if to_stable { self.committed.raw() } else { uncommitted };
        loop {
            match bounds(reader.client(), &topic, partition, &self.stop) {
                Err(SourceError::Unavailable(_)) if Instant::now() < deadline => {}
                other => return other,
            }
        }
    }

    fn read_log(
        &mut self,
        log: Log,
        partition: i32,
        (from, to): (Offset, Offset),
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError> {
        if from >= to {
            return Ok(());
        }
        let (topic, stop) = (self.topic(log)?, &self.stop);
        if let (Some(fetched), Some(handle)) = (&mut self.fetched, &self.uncommitted) {
            let lost = || {
                let (client, topic, asked) = (handle.shared_client(), topic.clone(), stop.clone());
                stop.aside(move || lost(&client, (&topic, partition), to, &asked)).unwrap_or_else(Some)
            };
            return fetched.read(&Part { topic: &topic, partition, from, to, lost: &lost, stop }, apply);
        }
        let reader = &mut self.committed;
        reader.open(&topic, partition, from)?;
        // librdkafka asks for the leaders of a topic that it has not heard of once a second, and reads nothing of it
        // before (`rd_kafka_topic_scan_all` in rdkafka_topic.c). This asks at once.
        let client = reader.raw().shared_client();
        let settled = stop.aside(move || client.settle(REQUEST_WAIT));
        let result =
            settled.and_then(|()| read_until(reader, to, stop, &mut |message| apply(log_view(message))));
        reader.close();
        result
    }
}

/// Recovers a task without logs whose group has committed nothing for it, as its node knows already: a client to ask
/// with would take longer than the rest of the start.
pub struct Untouched;

impl Recovery for Untouched {
    fn committed(
        &mut self,
        partitions: &[InputPartition],
    ) -> Result<Vec<Option<CommittedOffset>>, SourceError> {
        Ok(vec![None; partitions.len()])
    }

    fn log_bounds(&mut self, log: Log, _: i32) -> Result<(Offset, Offset), SourceError> {
        Err(there_is_no(log))
    }

    fn read_log(
        &mut self,
        log: Log,
        _: i32,
        _: (Offset, Offset),
        _: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError> {
        Err(there_is_no(log))
    }
}

/// Reads until the position reaches `to`, as long as there is progress now and then, and somebody wants it.
pub(super) fn read_until(
    reader: &mut PartitionReader,
    to: Offset,
    stop: &Stop,
    apply: &mut dyn FnMut(&Message) -> bool,
) -> Result<(), SourceError> {
    let mut progress = (reader.position(), Instant::now());
    while reader.position() < to {
        if stop.is_raised() {
            return Err(SourceError::Stopped);
        }
        if !reader.poll(Duration::from_millis(100), apply)? {
            return Ok(());
        }
        if reader.position() != progress.0 {
            progress = (reader.position(), Instant::now());
        } else if progress.1.elapsed() >= PATIENCE {
            return Err(SourceError::Unavailable(format!(
                "{}: no progress at offset {} of {to} for {} s: {}",
                reader.place(),
                reader.position(),
                PATIENCE.as_secs(),
                reader.silence(progress.1),
            )));
        }
    }
    Ok(())
}

pub(super) fn log_record(message: &Message) -> LogRecord {
    log_view(message).to_record()
}

fn log_view(message: &Message) -> LogView<'_> {
    LogView {
        offset: Offset(message.offset() as u64),
        timestamp_ms: message.timestamp(),
        key: message.key().unwrap_or_default(),
        value: message.value(),
        stamp: message.header(c"tidemill-commit").and_then(read_stamp),
    }
}
