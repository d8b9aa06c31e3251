//! Looking at letters: those of one partition, by the node that runs its task, which knows the marks.

use std::collections::HashMap;
use std::sync::Arc;

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::{LetterFilter, LetterState};

use super::RETRIES_MAX;
use crate::kafka::scan::TopicScan;
use crate::node::handle::{ControlError, Handle};
use crate::node::history::History;
use crate::node::owners::{self, Owner};
use crate::node::runtime::NodeRuntime;
use crate::ports::{SourceError, TopicRecord};
use crate::record::{Offset, headers};
use crate::store::{RedriveProgress, StoreError, StoreReader, Table};
use crate::task::letter::Letter;
use crate::task::redrive::{self, Standing, accepts, mark_key, standing};
use crate::telemetry::TaskState;

/// Letters of one page of one partition end after so many records of the topic, so that a call ends.
const PAGE_RECORDS_MAX: u64 = 200_000;

/// The letters of one task.
pub struct Shelf {
    node: Arc<NodeRuntime>,
    deployment: String,
    incarnation: String,
    history: History,
    inputs: Vec<String>,
    destinations: Vec<String>,
    /// The inbox's time to live, if there is one.
    ttl_ms: Option<i64>,
    partition: i32,
    topic: String,
    marks: StoreReader,
    /// Why the task takes no letters now; empty = it does.
    pub reason: String,
}

/// The partition of a request that another node has forwarded.
pub fn partition_of(partition: Option<i32>) -> Result<i32, ControlError> {
    partition.ok_or_else(|| ControlError::Invalid(vec!["a local call names its partition".into()]))
}

impl Shelf {
    /// Of a task that this node runs.
    pub fn find(node: &Arc<NodeRuntime>, name: &str, partition: i32) -> Result<Shelf, ControlError> {
        let view = node.control_log.view();
        let registered = view
            .deployments
            .get(name)
            .ok_or_else(|| ControlError::NotFound(format!("{name} is not deployed")))?;
        let spec = registered.parsed.spec.clone().map_err(ControlError::Unmet)?;
        let task = node.board(name).and_then(|board| board.task(partition)).ok_or_else(|| {
            let elsewhere = match owners::elsewhere(node, name, partition) {
                Some(Owner::At { node, address }) => format!("it is on {node} at {address}"),
                Some(Owner::Here) | None => "it is on no other node either; try again".to_owned(),
            };
            ControlError::Unavailable(format!(
                "partition {partition} of {name} is not on {}: {elsewhere}",
                node.id
            ))
        })?;
        let marks = match (task.state, task.reader) {
            (TaskState::Running | TaskState::Halted, Some(reader)) => reader,
            (TaskState::Running, None) => {
                return Err(ControlError::Precondition(format!(
                    "{name} keeps nothing, so it has neither dead letters nor parked records: give it a `failures:` block"
                )));
            }
            _ => {
                return Err(ControlError::Unavailable(format!(
                    "partition {partition} of {name} is restoring or halted without its store; try again"
                )));
            }
        };
        Ok(Shelf {
            node: Arc::clone(node),
            deployment: name.to_owned(),
            incarnation: registered.incarnation.clone(),
            history: registered.history.clone(),
            inputs: registered.topics(),
            destinations: spec.destinations().map(|(name, _)| name.clone()).collect(),
            ttl_ms: spec
                .inbox
                .as_ref()
                .filter(|inbox| inbox.id.is_some())
                .map(|inbox| inbox.ttl.as_millis() as i64),
            partition,
            topic: node.letters_of(&spec),
            marks,
            reason: if task.reason.is_empty() { task.letters_wait } else { task.reason },
        })
    }

    pub fn progress(&self) -> Result<Vec<(u64, RedriveProgress)>, ControlError> {
        redrive::progress_of(&self.marks).map_err(|error| self.store_failed(error))
    }

    /// Hands out the letters of this task that a filter means, from an offset on, each with its state, until
    /// `each` answers false. Answers where reading ended; none = at the end of the topic.
    fn read(
        &self,
        filter: &LetterFilter,
        from: Offset,
        each: &mut dyn FnMut(Letter, LetterState) -> bool,
    ) -> Result<Option<Offset>, ControlError> {
        let topic = self.node.admin.topic(&self.topic)?;
        let topic_id = topic.id.to_string();
        if self.partition >= topic.partitions {
            return Ok(None);
        }
        let mut scan = TopicScan::new(&self.node.kafka, &self.topic, self.partition).map_err(kafka_failed)?;
        let (start, end) = scan.bounds().map_err(kafka_failed)?;
        let range = (from.max(start), end);
        let (mut stopped, mut failed, mut records) = (None, None, 0);
        let mut take = |record: TopicRecord| {
            records += 1;
            if records > PAGE_RECORDS_MAX {
                stopped = Some(record.offset);
                return false;
            }
            let letter = Letter::read(&record)
                .filter(|letter| letter.is_of(&self.deployment, &self.incarnation, self.partition))
                .filter(|letter| accepts(filter, letter));
            let Some(letter) = letter else { return true };
            match self.state(&topic_id, &letter) {
                Ok(state) if each(letter, state) => return true,
                Ok(_) => stopped = Some(record.offset),
                Err(error) => failed = Some(error),
            }
            false
        };
        scan.scan(range, &mut take).map_err(kafka_failed)?;
        match failed {
            Some(error) => Err(self.store_failed(error)),
            None => Ok(stopped),
        }
    }

    fn standing(&self, letter: &Letter, retries_max: u32) -> Standing {
        let (inputs, destinations) = (self.inputs.iter(), self.destinations.iter());
        standing(inputs.map(String::as_str), destinations.map(String::as_str), letter, retries_max)
    }

    /// Ids of records up to this time are forgotten; -1 = none are, or there is no inbox.
    fn remembered_from_ms(&self) -> Result<i64, ControlError> {
        let Some(ttl_ms) = self.ttl_ms else { return Ok(-1) };
        let position = self.marks.snapshot(|marks| marks.position());
        let position = position.map_err(|error| self.store_failed(error))?;
        let horizon_ms = position.map_or(0, |position| position.inbox_horizon_ms);
        Ok(if horizon_ms > ttl_ms { horizon_ms - ttl_ms } else { -1 })
    }

    fn state(&self, topic_id: &str, letter: &Letter) -> Result<LetterState, StoreError> {
        let mark = mark_key(topic_id, letter.offset);
        let is_marked = self.marks.snapshot(|marks| marks.row(Table::Letters, &mark))?.is_some();
        Ok(if is_marked { LetterState::Marked } else { LetterState::Waiting })
    }

    fn store_failed(&self, error: StoreError) -> ControlError {
        match error {
            StoreError::Closed => ControlError::Unavailable(format!(
                "partition {} of {} is moving; try again",
                self.partition, self.deployment
            )),
            error => ControlError::Internal(error.to_string()),
        }
    }
}

fn kafka_failed(error: SourceError) -> ControlError {
    match error {
        SourceError::Refused(reason) => ControlError::Precondition(reason),
        SourceError::Unavailable(reason) | SourceError::Fatal(reason) => ControlError::Unavailable(reason),
        SourceError::Stopped => ControlError::Unavailable(error.to_string()),
    }
}

impl Handle {
    /// One page of the letters of a partition that this node runs. The page token is the next offset, 8 bytes
    /// big endian.
    pub fn letters_list(
        &self,
        request: &proto::ListLettersRequest,
    ) -> Result<proto::ListLettersResponse, ControlError> {
        let partition = partition_of(request.partition)?;
        let from = match <[u8; 8]>::try_from(request.page_token.as_slice()) {
            Ok(bytes) => Offset(u64::from_be_bytes(bytes)),
            Err(_) if request.page_token.is_empty() => Offset(0),
            Err(_) => return Err(ControlError::Invalid(vec!["page_token: it is not from a page".into()])),
        };
        let filter = request.filter.clone().unwrap_or_default();
        let mut letters = Vec::new();
        let shelf = Shelf::find(&self.node, &request.deployment, partition)?;
        let limit = request.limit as usize;
        let next = shelf.read(&filter, from, &mut |letter, state| {
            if letters.len() == limit {
                return false;
            }
            if request.marked || state == LetterState::Waiting {
                letters.push(shown(Letter { value: None, headers: None, ..letter }, state, &shelf.history));
            }
            true
        })?;
        let next_page_token = next.map(|next| next.0.to_be_bytes().to_vec()).unwrap_or_default();
        Ok(proto::ListLettersResponse { letters, next_page_token })
    }

    /// One letter of a partition that this node runs.
    pub fn letters_show(
        &self,
        request: &proto::ShowLetterRequest,
    ) -> Result<proto::ShowLetterResponse, ControlError> {
        let shelf = Shelf::find(&self.node, &request.deployment, request.partition)?;
        let range = proto::OffsetRange { from: request.offset, to: request.offset.saturating_add(1) };
        let filter = LetterFilter { offsets: vec![range], ..LetterFilter::default() };
        let mut found = None;
        shelf.read(&filter, Offset(request.offset), &mut |letter, state| {
            found = Some(shown(letter, state, &shelf.history));
            false
        })?;
        match found {
            Some(letter) => Ok(proto::ShowLetterResponse { letter: Some(letter) }),
            None => Err(ControlError::NotFound(format!(
                "{}/{} has no letter of {} at offset {}",
                shelf.topic, request.partition, request.deployment, request.offset
            ))),
        }
    }

    /// Counts the letters of a partition that this node runs.
    pub fn letters_count(
        &self,
        request: &proto::CountLettersRequest,
    ) -> Result<proto::CountLettersResponse, ControlError> {
        let partition = partition_of(request.partition)?;
        let filter = request.filter.clone().unwrap_or_default();
        let retries_max = if request.retries_max == 0 { RETRIES_MAX } else { request.retries_max };
        let shelf = Shelf::find(&self.node, &request.deployment, partition)?;
        let mut counts = proto::LetterCounts { partition, ..proto::LetterCounts::default() };
        let mut by_error_type: HashMap<String, u64> = HashMap::new();
        let remembered_ms = shelf.remembered_from_ms()?;
        let mut from = Some(Offset(0));
        while let Some(at) = from {
            from = shelf.read(&filter, at, &mut |letter, state| {
                if state == LetterState::Marked {
                    counts.marked += 1;
                    return true;
                }
                match shelf.standing(&letter, retries_max) {
                    Standing::Of(_) => {
                        counts.waiting += 1;
                        let is_forgotten = (0..=remembered_ms).contains(&letter.timestamp_ms);
                        counts.forgotten += u64::from(is_forgotten);
                    }
                    Standing::Delivery => counts.waiting += 1,
                    Standing::OverLimit => counts.over_limit += 1,
                    Standing::Unbound => counts.unbound += 1,
                }
                *by_error_type.entry(letter.error_type).or_default() += 1;
                true
            })?;
        }
        counts.by_error_type = by_error_type;
        Ok(proto::CountLettersResponse { partitions: vec![counts] })
    }
}

fn shown(letter: Letter, state: LetterState, history: &History) -> proto::Letter {
    let own = letter.headers.as_deref().and_then(|own| headers::decode_raw(own).ok()).unwrap_or_default();
    let headers = own.into_iter().map(|(name, value)| proto::LetterHeader {
        name: String::from_utf8_lossy(name).into_owned(),
        value: value.map(<[u8]>::to_vec),
    });
    proto::Letter {
        partition: letter.partition,
        offset: letter.offset,
        headers: headers.collect(),
        key: letter.key,
        value: letter.value,
        original_topic: letter.topic,
        destination: letter.undelivered.map(|undelivered| undelivered.destination).unwrap_or_default(),
        original_offset: letter.original_offset,
        original_timestamp_ms: letter.timestamp_ms,
        failure_reason: letter.reason,
        failure_timestamp_ms: letter.failed_at_ms,
        error_type: letter.error_type,
        error_class: letter.error_class,
        attempts: letter.attempts,
        retry_count: letter.retry_count,
        correlation_id: letter.correlation_id,
        version: letter.revision,
        state: state.into(),
        schema_version: letter.schema_version,
        version_number: history.at(letter.revision).map_or(0, |version| version.number),
    }
}
