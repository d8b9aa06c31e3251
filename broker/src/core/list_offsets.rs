//! Questions about offsets, and the one request that moves the start of a log.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse, ListOffsetsRequest, ListOffsetsResponse,
    OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
};

use super::Core;
use super::fetch::isolation;
use crate::journal::Entry;
use crate::log::{Isolation, Log};

/// Timestamps with a meaning of their own.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;

/// The only leader epoch there ever is.
const LEADER_EPOCH: i32 = 0;

impl Core {
    pub(super) fn list_offsets(&self, request: ListOffsetsRequest) -> ListOffsetsResponse {
        let isolation = isolation(request.isolation_level);
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in request.topics {
            let answer = |wanted: &ListOffsetsPartition| {
                let response =
                    ListOffsetsPartitionResponse::default().with_partition_index(wanted.partition_index);
                let found = self.topics.find(&topic.name, wanted.partition_index);
                let found = found.ok_or(ResponseError::UnknownTopicOrPartition);
                match found.and_then(|(_, log)| look_up(log, wanted, isolation)) {
                    Ok(Some((offset, timestamp))) => {
                        response.with_offset(offset).with_timestamp(timestamp).with_leader_epoch(LEADER_EPOCH)
                    }
                    Ok(None) => response.with_offset(-1).with_timestamp(-1),
                    Err(error) => response.with_error_code(error.code()).with_offset(-1).with_timestamp(-1),
                }
            };
            let partitions = topic.partitions.iter().map(answer).collect();
            let response = ListOffsetsTopicResponse::default().with_name(topic.name);
            topics.push(response.with_partitions(partitions));
        }
        ListOffsetsResponse::default().with_topics(topics)
    }

    pub(super) fn offset_for_leader_epoch(
        &self,
        request: OffsetForLeaderEpochRequest,
    ) -> OffsetForLeaderEpochResponse {
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in request.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for wanted in &topic.partitions {
                let answer = EpochEndOffset::default().with_partition(wanted.partition);
                partitions.push(match self.topics.find(&topic.topic, wanted.partition) {
                    None => answer.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
                    Some(_) if wanted.current_leader_epoch > LEADER_EPOCH => {
                        answer.with_error_code(ResponseError::UnknownLeaderEpoch.code())
                    }
                    Some((_, log)) if wanted.leader_epoch == LEADER_EPOCH => {
                        answer.with_leader_epoch(LEADER_EPOCH).with_end_offset(log.end())
                    }
                    Some(_) => answer,
                });
            }
            let result = OffsetForLeaderTopicResult::default().with_topic(topic.topic);
            topics.push(result.with_partitions(partitions));
        }
        OffsetForLeaderEpochResponse::default().with_topics(topics)
    }

    pub(super) fn delete_records(&mut self, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in request.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for wanted in &topic.partitions {
                let deleted = self.delete_before(&topic.name, wanted.partition_index, wanted.offset);
                let error = deleted.as_ref().err().map_or(0, ResponseError::code);
                partitions.push(
                    DeleteRecordsPartitionResult::default()
                        .with_partition_index(wanted.partition_index)
                        .with_low_watermark(deleted.unwrap_or(-1))
                        .with_error_code(error),
                );
            }
            let result = DeleteRecordsTopicResult::default().with_name(topic.name);
            topics.push(result.with_partitions(partitions));
        }
        DeleteRecordsResponse::default().with_topics(topics)
    }

    /// Moves the start of a log; -1 stands for its end. Returns the new start.
    fn delete_before(&mut self, topic: &str, partition: i32, offset: i64) -> Result<i64, ResponseError> {
        let unknown = ResponseError::UnknownTopicOrPartition;
        let (id, log) = self.topics.find(topic, partition).ok_or(unknown)?;
        let offset = if offset == -1 { log.end() } else { offset };
        if offset < 0 || offset > log.end() {
            return Err(ResponseError::OffsetOutOfRange);
        }
        let offset = offset.max(log.start());
        if !self.topics.get(id).is_some_and(|topic| topic.settings.delete) {
            return Err(ResponseError::PolicyViolation);
        }
        self.record(&Entry::LogStart { id, partition, offset })?;
        let (log, _) = self.topics.log_mut(id, partition).ok_or(unknown)?;
        if let Err(error) = log.delete_before(offset) {
            // The start has moved; a file that could not be removed is only space.
            tracing::warn!(%error, "cannot remove a segment");
        }
        self.wake(id, partition);
        Ok(offset)
    }
}

/// Offset and timestamp for what was asked, if there is such a record.
fn look_up(
    log: &Log,
    wanted: &ListOffsetsPartition,
    isolation: Isolation,
) -> Result<Option<(i64, i64)>, ResponseError> {
    if wanted.current_leader_epoch > LEADER_EPOCH {
        return Err(ResponseError::UnknownLeaderEpoch);
    }
    let upper = log.end_for(isolation);
    let found = match wanted.timestamp {
        LATEST => return Ok(Some((upper, -1))),
        EARLIEST | EARLIEST_LOCAL => return Ok(Some((log.start(), -1))),
        MAX_TIMESTAMP => log.find_max_timestamp(),
        timestamp if timestamp >= 0 => log.find_timestamp(timestamp, upper),
        _ => return Err(ResponseError::UnsupportedVersion),
    };
    let found = found.map_err(|error| {
        tracing::error!(%error, "cannot read");
        ResponseError::KafkaStorageError
    })?;
    Ok(found.map(|stamped| (stamped.offset, stamped.timestamp_ms)))
}
