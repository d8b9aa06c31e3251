//! Blocking helpers for the command line: put rows into a topic, look at what is in one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::config::KafkaConfig;
use super::ffi::consumer::Consumer;
use super::ffi::partitions::Partitions;
use super::ffi::producer::{Outgoing, Producer};
use super::ffi::{Code, KafkaError, Message};
use super::reader::FOLLOW;
use crate::record::headers;

const FLUSH_WAIT: Duration = Duration::from_secs(60);
const WATERMARKS_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ToolError(String);

impl ToolError {
    fn new(topic: &str, error: &KafkaError) -> ToolError {
        ToolError(format!("{topic}: {error}"))
    }
}

/// A header's name and value; null stays null.
pub type Header = (String, Option<Vec<u8>>);

/// A record to produce.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<Header>,
    /// Milliseconds since the epoch; `None` = now.
    pub timestamp_ms: Option<i64>,
    /// `None` = by the key.
    pub partition: Option<i32>,
}

/// What was produced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Produced {
    pub count: u64,
    /// Next offset after the last row of each partition that got one: what was produced lies below.
    pub next: BTreeMap<i32, u64>,
}

/// Produces rows and waits until all are acknowledged. `rate` is in rows per second. `progress`
/// hears the count now and then and at the end. Fails at the first row that is refused.
pub fn produce(
    config: &KafkaConfig,
    topic: &str,
    rows: impl IntoIterator<Item = Row>,
    rate: Option<f64>,
    progress: &mut dyn FnMut(u64),
) -> Result<Produced, ToolError> {
    let told = |error: KafkaError| ToolError::new(topic, &error);
    let mut producer = Producer::new(&config.reporting_producer(), "produce").map_err(told)?;
    producer.follow_positions();
    let index = producer.topic(topic).map_err(told)?;
    let begun = Instant::now();
    let mut count = 0u64;
    for row in rows {
        if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
            let due = begun + Duration::from_secs_f64(count as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        send(&producer, index, &row).map_err(told)?;
        count += 1;
        if count.is_multiple_of(1000) {
            progress(count);
            refused(&producer)?;
        }
    }
    let flushed = producer.flush(FLUSH_WAIT);
    refused(&producer)?;
    flushed.map_err(told)?;
    progress(count);
    Ok(Produced { count, next: producer.positions() })
}

fn send(producer: &Producer, topic: usize, row: &Row) -> Result<(), KafkaError> {
    let list: Vec<_> = row.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref())).collect();
    let record = Outgoing {
        partition: row.partition.unwrap_or(-1),
        key: row.key.as_deref(),
        value: row.value.as_deref(),
        timestamp: row.timestamp_ms.unwrap_or(-1),
        ticket: 0,
    };
    let deadline = Instant::now() + FLUSH_WAIT;
    loop {
        match producer.produce(topic, record, &list) {
            Err(error) if error.is(Code::RD_KAFKA_RESP_ERR__QUEUE_FULL) && Instant::now() < deadline => {
                let _ = producer.flush(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn refused(producer: &Producer) -> Result<(), ToolError> {
    match producer.failures().into_iter().next() {
        None => Ok(()),
        Some(failure) => Err(ToolError::new(&failure.topic, &failure.error)),
    }
}

/// Where to begin in each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Beginning,
    End,
    Offset(u64),
    /// This many offsets before the end of each partition.
    Last(u64),
}

#[derive(Debug, Clone)]
pub struct ConsumeSpec {
    pub topic: String,
    /// Empty = all of them.
    pub partitions: Vec<i32>,
    pub from: From,
    pub max: Option<u64>,
    /// Hides open and aborted transactions.
    pub committed: bool,
    /// Goes on at the end instead of stopping at the one that there is when it begins.
    pub follow: bool,
}

/// A record as the command line shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumed {
    pub partition: i32,
    pub offset: u64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<Header>,
}

/// Hands records to `each` until it answers false, the maximum is reached, or, unless following,
/// every partition has been read to the end that it had at first: to whatever is the end by then it would never come, where
/// more is written all the time. `each` also hears `None` about every 100 ms while
/// nothing comes, so that it can end an idle wait.
pub fn consume(
    config: &KafkaConfig,
    spec: &ConsumeSpec,
    each: &mut dyn FnMut(Option<Consumed>) -> bool,
) -> Result<u64, ToolError> {
    let told = |error: KafkaError| ToolError::new(&spec.topic, &error);
    let mut raw =
        Consumer::new(&config.reader("tidemill-tools", spec.committed, FOLLOW), "consume").map_err(told)?;
    let partitions = partitions_of(&raw, spec)?;
    let mut list = Partitions::with_capacity(partitions.len());
    for &partition in &partitions {
        list.add(&spec.topic, partition, start_of(&raw, spec, partition).map_err(told)?, "");
    }
    raw.assign(Some(&list)).map_err(told)?;
    let mut open = ends(&raw, spec, &partitions).map_err(told)?;
    let mut count = 0;
    while spec.max.is_none_or(|max| count < max) {
        raw.fill_wait(500, Instant::now() + Duration::from_millis(100), || false);
        if !raw.has_pending() && !each(None) {
            break;
        }
        while let Some(message) = raw.front() {
            match message.error() {
                None if open.get(&message.partition()).is_none_or(|end| message.offset() >= *end) => {
                    open.remove(&message.partition());
                }
                None => {
                    let go_on = each(Some(consumed(message)));
                    count += 1;
                    if !go_on || spec.max.is_some_and(|max| count >= max) {
                        return Ok(count);
                    }
                }
                Some(error) if error.is(Code::RD_KAFKA_RESP_ERR__PARTITION_EOF) => {
                    if !spec.follow {
                        open.remove(&message.partition());
                    }
                }
                Some(error) if error.code > 0 || error.is(Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET) => {
                    return Err(told(error));
                }
                Some(error) => tracing::debug!(%error, "consume"),
            }
            raw.pop();
        }
        if open.is_empty() {
            break;
        }
    }
    Ok(count)
}

/// Where each partition ends that is read; never, if followed.
fn ends(raw: &Consumer, spec: &ConsumeSpec, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let end = |partition: i32| match spec.follow {
        true => Ok((partition, i64::MAX)),
        false => Ok((partition, raw.client().watermarks(&spec.topic, partition, WATERMARKS_WAIT)?.1)),
    };
    partitions.iter().map(|&partition| end(partition)).collect()
}

fn partitions_of(raw: &Consumer, spec: &ConsumeSpec) -> Result<Vec<i32>, ToolError> {
    let told = |error: KafkaError| ToolError::new(&spec.topic, &error);
    let topics = raw.client().metadata(Duration::from_secs(30)).map_err(told)?;
    let count = topics.into_iter().find(|(name, _)| *name == spec.topic).map(|(_, count)| count);
    let Some(count) = count.filter(|count| *count > 0) else {
        return Err(ToolError(format!("topic `{}` does not exist", spec.topic)));
    };
    if let Some(wrong) = spec.partitions.iter().find(|partition| !(0..count).contains(*partition)) {
        return Err(ToolError(format!(
            "topic `{}` has {count} partitions, no partition {wrong}",
            spec.topic
        )));
    }
    Ok(if spec.partitions.is_empty() { (0..count).collect() } else { spec.partitions.clone() })
}

fn start_of(raw: &Consumer, spec: &ConsumeSpec, partition: i32) -> Result<i64, KafkaError> {
    if let From::Offset(offset) = spec.from {
        return Ok(i64::try_from(offset).unwrap_or(i64::MAX));
    }
    let (low, high) = raw.client().watermarks(&spec.topic, partition, WATERMARKS_WAIT)?;
    Ok(match spec.from {
        From::Beginning | From::Offset(_) => low,
        From::End => high,
        From::Last(count) => high.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX)).max(low),
    })
}

fn consumed(message: &Message) -> Consumed {
    let mut bytes = Vec::new();
    let list = match message.headers(&mut bytes) {
        true => headers::decode_raw(&bytes).unwrap_or_default(),
        false => Vec::new(),
    };
    Consumed {
        partition: message.partition(),
        offset: message.offset() as u64,
        timestamp_ms: message.timestamp(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.value().map(<[u8]>::to_vec),
        headers: list
            .into_iter()
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.map(<[u8]>::to_vec)))
            .collect(),
    }
}
