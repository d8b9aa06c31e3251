//! Fetch: answered at once if there is enough, otherwise parked until there is or its time is up.

use std::collections::HashMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{FetchRequest, FetchResponse, ProducerId, ResponseKind, TopicName};
use uuid::Uuid;

use super::time::{Timer, TimerId};
use super::{Call, Core, Outcome};
use crate::group::ReplyTo;
use crate::log::{Isolation, Log};

/// From this version on topics are named by id.
const BY_TOPIC_ID: i16 = 13;

/// One partition of a fetch.
#[derive(Debug)]
struct Wanted {
    partition: i32,
    offset: i64,
    bytes_max: usize,
    leader_epoch: i32,
}

/// One topic of a fetch. `id` is what the client sent, or what its name stood for.
#[derive(Debug)]
struct WantedTopic {
    name: TopicName,
    id: Option<Uuid>,
    partitions: Vec<Wanted>,
}

/// A fetch, ready to be answered now or later.
#[derive(Debug)]
struct Pending {
    by_id: bool,
    isolation: Isolation,
    bytes_min: u64,
    bytes_max: usize,
    topics: Vec<WantedTopic>,
}

/// Parked fetches, and who waits for which partition.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Each with the timer that ends its wait.
    fetches: HashMap<ReplyTo, (Pending, TimerId)>,
    /// Each fetch once, however often it names the partition.
    by_partition: HashMap<(Uuid, i32), Vec<ReplyTo>>,
}

impl Waiting {
    fn park(&mut self, reply_to: ReplyTo, pending: Pending, timer: TimerId) {
        for topic in &pending.topics {
            for wanted in &topic.partitions {
                let key = (topic.id.unwrap_or_default(), wanted.partition);
                let waiting = self.by_partition.entry(key).or_default();
                if waiting.last() != Some(&reply_to) {
                    waiting.push(reply_to);
                }
            }
        }
        self.fetches.insert(reply_to, (pending, timer));
    }

    fn take(&mut self, reply_to: ReplyTo) -> Option<(Pending, TimerId)> {
        let (pending, timer) = self.fetches.remove(&reply_to)?;
        for topic in &pending.topics {
            for wanted in &topic.partitions {
                let key = (topic.id.unwrap_or_default(), wanted.partition);
                if let Some(waiting) = self.by_partition.get_mut(&key) {
                    waiting.retain(|other| *other != reply_to);
                    if waiting.is_empty() {
                        self.by_partition.remove(&key);
                    }
                }
            }
        }
        Some((pending, timer))
    }
}

impl Core {
    pub(super) fn fetch(&mut self, request: FetchRequest, call: &Call<'_>) -> Outcome {
        if request.session_id != 0 && request.session_epoch > 0 {
            // No session is ever given out, so this one is not ours.
            let error = ResponseError::FetchSessionIdNotFound.code();
            return Outcome::Answer(ResponseKind::Fetch(FetchResponse::default().with_error_code(error)));
        }
        let wait_ms = u64::try_from(request.max_wait_ms).unwrap_or(0);
        let pending = self.prepare(request, call.version);
        if wait_ms == 0 || self.enough(&pending) {
            return Outcome::Answer(ResponseKind::Fetch(self.collect(&pending)));
        }
        let timer = self.timers.set_after(call.now, wait_ms, Timer::Fetch(call.reply_to));
        self.waiting.park(call.reply_to, pending, timer);
        Outcome::Later
    }

    fn prepare(&self, request: FetchRequest, version: i16) -> Pending {
        let by_id = version >= BY_TOPIC_ID;
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in request.topics {
            let wanted = |partition: &kafka_protocol::messages::fetch_request::FetchPartition| Wanted {
                partition: partition.partition,
                offset: partition.fetch_offset,
                bytes_max: usize::try_from(partition.partition_max_bytes).unwrap_or(0),
                leader_epoch: partition.current_leader_epoch,
            };
            let id = if by_id { Some(topic.topic_id) } else { self.topics.id(&topic.topic) };
            let partitions = topic.partitions.iter().map(wanted).collect();
            topics.push(WantedTopic { name: topic.topic, id, partitions });
        }
        Pending {
            by_id,
            isolation: isolation(request.isolation_level),
            bytes_min: u64::try_from(request.min_bytes).unwrap_or(0),
            bytes_max: usize::try_from(request.max_bytes).unwrap_or(0).min(self.config.fetch_bytes_max),
            topics,
        }
    }

    /// Whether a fetch can be answered: there is an error to tell, or there are enough bytes.
    fn enough(&self, pending: &Pending) -> bool {
        let mut total = 0;
        for topic in &pending.topics {
            for wanted in &topic.partitions {
                let Ok(log) = self.readable(topic, wanted, pending.by_id) else { return true };
                let upper = log.end_for(pending.isolation);
                if wanted.offset < upper {
                    let bytes = log.bytes_between(wanted.offset, upper).unwrap_or(0);
                    total += bytes.min(wanted.bytes_max as u64);
                }
            }
        }
        total >= pending.bytes_min
    }

    fn readable(&self, topic: &WantedTopic, wanted: &Wanted, by_id: bool) -> Result<&Log, ResponseError> {
        let known = topic.id.and_then(|id| self.topics.get(id));
        if by_id && known.is_none() {
            return Err(ResponseError::UnknownTopicId);
        }
        let log = known.and_then(|topic| topic.partitions.get(usize::try_from(wanted.partition).ok()?));
        let log = log.ok_or(ResponseError::UnknownTopicOrPartition)?;
        if wanted.leader_epoch > 0 {
            return Err(ResponseError::UnknownLeaderEpoch);
        }
        if wanted.offset < log.start() || wanted.offset > log.end() {
            return Err(ResponseError::OffsetOutOfRange);
        }
        Ok(log)
    }

    /// The answer with what there is now.
    fn collect(&self, pending: &Pending) -> FetchResponse {
        let mut left = pending.bytes_max;
        let mut first = true;
        let mut responses = Vec::with_capacity(pending.topics.len());
        for topic in &pending.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for wanted in &topic.partitions {
                let data = match self.readable(topic, wanted, pending.by_id) {
                    Ok(log) => read(log, wanted, pending.isolation, left, first),
                    Err(error) => failed(wanted, error),
                };
                let bytes = data.records.as_ref().map_or(0, |records| records.len());
                left = left.saturating_sub(bytes);
                first &= bytes == 0;
                partitions.push(data);
            }
            responses.push(
                FetchableTopicResponse::default()
                    .with_topic(topic.name.clone())
                    .with_topic_id(topic.id.unwrap_or_default())
                    .with_partitions(partitions),
            );
        }
        FetchResponse::default().with_responses(responses)
    }

    /// Answers fetches for which a partition has changed enough.
    pub(super) fn wake(&mut self, id: Uuid, partition: i32) {
        let Some(waiting) = self.waiting.by_partition.get(&(id, partition)) else { return };
        for reply_to in waiting.clone() {
            let ready = self.waiting.fetches.get(&reply_to).is_some_and(|(pending, _)| self.enough(pending));
            if ready {
                self.answer_fetch(reply_to);
            }
        }
    }

    /// Answers fetches of a topic that is gone.
    pub(super) fn wake_topic(&mut self, id: Uuid) {
        let keys: Vec<i32> =
            self.waiting.by_partition.keys().filter(|(topic, _)| *topic == id).map(|k| k.1).collect();
        for partition in keys {
            self.wake(id, partition);
        }
    }

    /// Whoever waits for it is gone.
    pub(super) fn forget_fetch(&mut self, reply_to: ReplyTo) {
        drop(self.unpark(reply_to));
    }

    fn unpark(&mut self, reply_to: ReplyTo) -> Option<Pending> {
        let (pending, timer) = self.waiting.take(reply_to)?;
        self.timers.cancel(timer);
        Some(pending)
    }

    /// Answers a fetch that waits with what there is: there is enough, or its time is up.
    pub(super) fn answer_fetch(&mut self, reply_to: ReplyTo) {
        if let Some(pending) = self.unpark(reply_to) {
            let response = self.collect(&pending);
            self.replies.push((reply_to, ResponseKind::Fetch(response)));
        }
    }
}

/// The protocol's isolation level.
pub(super) fn isolation(level: i8) -> Isolation {
    if level == 1 { Isolation::Committed } else { Isolation::Uncommitted }
}

fn read(log: &Log, wanted: &Wanted, isolation: Isolation, left: usize, first: bool) -> PartitionData {
    let upper = log.end_for(isolation);
    let chunk = match log.read(wanted.offset, upper, wanted.bytes_max.min(left), first) {
        Ok(chunk) => chunk,
        Err(error) => {
            tracing::error!(%error, partition = wanted.partition, "cannot read");
            return failed(wanted, ResponseError::KafkaStorageError);
        }
    };
    let aborted = match isolation {
        Isolation::Uncommitted => None,
        Isolation::Committed => {
            let list = log.producers.aborted_between(wanted.offset, chunk.next).into_iter();
            let describe = |aborted: crate::log::producers::Aborted| {
                AbortedTransaction::default()
                    .with_producer_id(ProducerId(aborted.producer_id))
                    .with_first_offset(aborted.first_offset)
            };
            Some(list.map(describe).collect())
        }
    };
    PartitionData::default()
        .with_partition_index(wanted.partition)
        .with_high_watermark(log.end())
        .with_last_stable_offset(log.stable_end())
        .with_log_start_offset(log.start())
        .with_aborted_transactions(aborted)
        .with_records(Some(chunk.bytes))
}

fn failed(wanted: &Wanted, error: ResponseError) -> PartitionData {
    PartitionData::default()
        .with_partition_index(wanted.partition)
        .with_error_code(error.code())
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_records(Some(bytes::Bytes::new()))
}
