//! Produce: every batch is checked, judged on behalf of its producer, appended, announced.

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, ResponseKind};
use tidemill_batches::{self as batch, BatchError, Header, NO_PRODUCER_ID};
use uuid::Uuid;

use super::{Call, Core, Outcome, text};
use crate::log::producers::{SequenceError, Verdict};
use crate::settings::Settings;

/// From this version on a client knows TRANSACTION_ABORTABLE.
const KNOWS_ABORTABLE: i16 = 11;
/// From this version on a client may use zstd.
const KNOWS_ZSTD: i16 = 7;
const ZSTD: i16 = 4;

/// Where a batch has ended up.
struct Placed {
    base_offset: i64,
    append_time_ms: i64,
}

/// A refusal with what is wrong, as far as it helps.
type Refusal = (ResponseError, Option<BatchError>);

impl Core {
    pub(super) fn produce(&mut self, request: ProduceRequest, call: &Call<'_>) -> Outcome {
        let acks = request.acks;
        let mut touched = Vec::new();
        let mut responses = Vec::with_capacity(request.topic_data.len());
        for topic in request.topic_data {
            let id = self.topics.id(&topic.name);
            let mut partitions = Vec::with_capacity(topic.partition_data.len());
            for data in topic.partition_data {
                let placed = match (id, acks) {
                    (_, ..=-2 | 2..) => Err((ResponseError::InvalidRequiredAcks, None)),
                    (None, _) => Err((ResponseError::UnknownTopicOrPartition, None)),
                    (Some(id), _) => {
                        let transactional_id = request.transactional_id.as_ref().map(|t| t.as_str());
                        self.place(id, &data, transactional_id, call)
                    }
                };
                if let (Ok(_), Some(id)) = (&placed, id) {
                    touched.push((id, data.index));
                }
                partitions.push(self.answer_partition(id, data.index, placed));
            }
            responses.push(
                TopicProduceResponse::default().with_name(topic.name).with_partition_responses(partitions),
            );
        }
        for (id, partition) in touched {
            self.wake(id, partition);
        }
        match acks {
            0 => Outcome::Silent,
            _ => Outcome::Answer(ResponseKind::Produce(ProduceResponse::default().with_responses(responses))),
        }
    }

    fn answer_partition(
        &self,
        id: Option<Uuid>,
        index: i32,
        placed: Result<Placed, Refusal>,
    ) -> PartitionProduceResponse {
        let start = id.and_then(|id| self.topics.log(id, index)).map_or(-1, |log| log.start());
        let response = PartitionProduceResponse::default().with_index(index);
        match placed {
            Ok(Placed { base_offset, append_time_ms }) => response
                .with_base_offset(base_offset)
                .with_log_append_time_ms(append_time_ms)
                .with_log_start_offset(start),
            Err((error, reason)) => response
                .with_error_code(error.code())
                .with_base_offset(-1)
                .with_log_append_time_ms(-1)
                .with_log_start_offset(-1)
                .with_error_message(reason.map(|reason| text(reason.to_string()))),
        }
    }

    /// Checks one partition's batch and appends it.
    fn place(
        &mut self,
        id: Uuid,
        data: &PartitionProduceData,
        transactional_id: Option<&str>,
        call: &Call<'_>,
    ) -> Result<Placed, Refusal> {
        let refuse = |error: ResponseError| (error, None);
        let bytes = data.records.as_ref().ok_or((ResponseError::InvalidRecord, None))?;
        let (log, settings) =
            self.topics.log_mut(id, data.index).ok_or((ResponseError::UnknownTopicOrPartition, None))?;
        let header = check(bytes, settings, call)?;
        let open = log.producers.open_since(header.producer_id);
        if header.transactional() {
            self.check_transaction(&header, (id, data.index), transactional_id, call).map_err(refuse)?;
        } else if open.is_some() {
            return Err(refuse(ResponseError::InvalidTxnState));
        }
        if self.config.data_dir.is_none() && self.memory_used() > self.config.memory_bytes_max {
            tracing::warn!(bytes = self.config.memory_bytes_max, "logs in memory are full");
            return Err(refuse(ResponseError::KafkaStorageError));
        }
        let unknown = || refuse(ResponseError::UnknownTopicOrPartition);
        let (log, settings) = self.topics.log_mut(id, data.index).ok_or_else(unknown)?;
        if header.producer_id != NO_PRODUCER_ID {
            match log.producers.judge(&header) {
                Ok(Verdict::New) => {}
                Ok(Verdict::Duplicate { base_offset, timestamp_ms }) => {
                    let append_time_ms = if settings.log_append_time { timestamp_ms } else { -1 };
                    return Ok(Placed { base_offset, append_time_ms });
                }
                Err(SequenceError::StaleEpoch) => return Err(refuse(ResponseError::InvalidProducerEpoch)),
                Err(SequenceError::OutOfOrder) => {
                    return Err(refuse(ResponseError::OutOfOrderSequenceNumber));
                }
            }
        }
        let mut batch = BytesMut::from(&bytes[..]);
        let base_offset = log.append(&mut batch, settings, call.now.wall).map_err(|error| {
            tracing::error!(%error, topic = %id, partition = data.index, "cannot append");
            refuse(ResponseError::KafkaStorageError)
        })?;
        let append_time_ms = if settings.log_append_time { call.now.wall } else { -1 };
        self.memory_bytes += batch.len() as u64;
        Ok(Placed { base_offset, append_time_ms })
    }

    /// A transactional batch must belong to an open transaction that includes the partition
    /// (KIP-890, part 1), or a late batch of a fenced producer would stay open for ever.
    fn check_transaction(
        &self,
        header: &Header,
        partition: (Uuid, i32),
        transactional_id: Option<&str>,
        call: &Call<'_>,
    ) -> Result<(), ResponseError> {
        let id = transactional_id.ok_or(ResponseError::TransactionalIdAuthorizationFailed)?;
        let transaction = self.transactions.get(id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        transaction.check_owner(header.producer_id, header.producer_epoch).map_err(|error| match error {
            ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
            other => other,
        })?;
        if transaction.state.preparing().is_some() {
            // Retriable: the producer's next transaction waits for the markers of its last one.
            return Err(ResponseError::NotEnoughReplicas);
        }
        let open = transaction.state == crate::txn::State::Ongoing;
        match open && transaction.partitions.contains(&partition) {
            true => Ok(()),
            false if call.version >= KNOWS_ABORTABLE => Err(ResponseError::TransactionAbortable),
            false => Err(ResponseError::InvalidTxnState),
        }
    }
}

/// Everything that can be said of a batch without the partition's state.
fn check(bytes: &Bytes, settings: &Settings, call: &Call<'_>) -> Result<Header, Refusal> {
    let header = Header::check(bytes).map_err(refusal)?;
    let invalid = Err((ResponseError::InvalidRecord, Some(BatchError::Header)));
    // One batch per partition and request, as Kafka demands; also nothing after it.
    if header.size() != bytes.len() || i64::from(header.count) != i64::from(header.last_offset_delta) + 1 {
        return invalid;
    }
    let sequenced = header.base_sequence >= 0 && header.producer_epoch >= 0;
    let has_producer = header.producer_id != NO_PRODUCER_ID;
    if header.control() || has_producer != sequenced || (header.transactional() && !has_producer) {
        return invalid;
    }
    if header.codec() > ZSTD || (header.codec() == ZSTD && call.version < KNOWS_ZSTD) {
        return Err((ResponseError::UnsupportedCompressionType, None));
    }
    if bytes.len() > settings.message_bytes_max {
        return Err((ResponseError::MessageTooLarge, None));
    }
    if !settings.log_append_time {
        let newest = call.now.wall.saturating_add(settings.timestamp_after_max_ms);
        let oldest = call.now.wall.saturating_sub(settings.timestamp_before_max_ms);
        if header.max_timestamp > newest || (header.base_timestamp >= 0 && header.base_timestamp < oldest) {
            return Err((ResponseError::InvalidTimestamp, None));
        }
    }
    // Compressed records are opened only where compaction will have to do so too.
    if header.codec() == 0 || settings.compact {
        check_records(&header, bytes, settings.compact).map_err(refusal)?;
    }
    Ok(header)
}

fn check_records(header: &Header, bytes: &Bytes, key_required: bool) -> Result<(), BatchError> {
    let records = batch::records_of(header, bytes)?;
    let mut count = 0;
    for record in batch::walk(&records) {
        let record = record?;
        if record.offset_delta != i64::from(count) || (key_required && record.key.is_none()) {
            return Err(BatchError::Record);
        }
        count += 1;
    }
    if count == header.count { Ok(()) } else { Err(BatchError::Header) }
}

fn refusal(error: BatchError) -> Refusal {
    let response = match error {
        BatchError::Crc | BatchError::Short | BatchError::Compression => ResponseError::CorruptMessage,
        BatchError::Magic => ResponseError::UnsupportedForMessageFormat,
        BatchError::Header | BatchError::Record => ResponseError::InvalidRecord,
    };
    (response, Some(error))
}
