//! Single requests, named; each returns the protocol's error code or none if the broker is gone.

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, CreateTopicsRequest, EndTxnRequest, FetchRequest,
    GroupId, InitProducerIdRequest, ListOffsetsRequest, OffsetFetchRequest, ProduceRequest, TransactionalId,
    TxnOffsetCommitRequest,
};
use kafka_protocol::records::RecordBatchDecoder;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::raw::{Raw, Stamp, batch, fetch_request, text, topic_name};

/// Waits for a condition, and fails with its name if it does not come true.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub fn create(raw: &mut Raw, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let config = |(key, value): &(&str, &str)| {
        CreatableTopicConfig::default().with_name(text(key)).with_value(Some(text(value)))
    };
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(1)
        .with_configs(settings.iter().map(config).collect());
    let request = CreateTopicsRequest::default().with_topics(vec![topic]);
    assert_eq!(raw.call(&request, 7).topics[0].error_code, 0);
}

/// A transactional producer whose calls may find the broker gone.
pub struct Producer {
    pub name: String,
    pub id: i64,
    pub epoch: i16,
}

impl Producer {
    /// Takes over the transactional id; repeats while a former transaction is being ended.
    pub fn init(raw: &mut Raw, name: &str, timeout_ms: i32) -> Option<Producer> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(text(name))))
            .with_transaction_timeout_ms(timeout_ms)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        loop {
            let response = raw.try_call(&request, 4)?;
            match response.error_code {
                0 => {
                    let (id, epoch) = (response.producer_id.0, response.producer_epoch);
                    return Some(Producer { name: name.to_owned(), id, epoch });
                }
                51 => std::thread::park_timeout(Duration::from_millis(5)),
                other => panic!("init: error {other}"),
            }
        }
    }

    pub fn add(&self, raw: &mut Raw, topic: &str, partitions: &[i32]) -> Option<i16> {
        let topic = AddPartitionsToTxnTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(partitions.to_vec());
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(text(&self.name)))
            .with_v3_and_below_producer_id(self.id.into())
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![topic]);
        let response = raw.try_call(&request, 3)?;
        Some(response.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code)
    }

    pub fn produce(
        &self,
        raw: &mut Raw,
        topic: &str,
        partition: i32,
        sequence: i32,
        value: &str,
    ) -> Option<i16> {
        let stamp = Stamp { id: self.id, epoch: self.epoch, sequence, transactional: true };
        let batch = batch(stamp, &[value]);
        let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
        let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_transactional_id(Some(TransactionalId(text(&self.name))))
            .with_acks(-1)
            .with_topic_data(vec![topic]);
        Some(raw.try_call(&request, 9)?.responses[0].partition_responses[0].error_code)
    }

    pub fn commit_offset(&self, raw: &mut Raw, group: &str, topic: &str, offset: i64) -> Option<i16> {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(text(&self.name)))
            .with_producer_id(self.id.into())
            .with_producer_epoch(self.epoch)
            .with_group_id(GroupId(text(group)));
        let error = raw.try_call(&request, 3)?.error_code;
        if error != 0 {
            return Some(error);
        }
        let partition =
            TxnOffsetCommitRequestPartition::default().with_partition_index(0).with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(text(&self.name)))
            .with_producer_id(self.id.into())
            .with_producer_epoch(self.epoch)
            .with_group_id(GroupId(text(group)))
            .with_generation_id(-1)
            .with_topics(vec![topic]);
        Some(raw.try_call(&request, 3)?.topics[0].partitions[0].error_code)
    }

    pub fn end(&self, raw: &mut Raw, commit: bool) -> Option<i16> {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(&self.name)))
            .with_producer_id(self.id.into())
            .with_producer_epoch(self.epoch)
            .with_committed(commit);
        Some(raw.try_call(&request, 3)?.error_code)
    }
}

/// Committed offset of partition 0, or -1; waits until no transaction can change it.
pub fn stable_offset(raw: &mut Raw, group: &str, topic: &str) -> i64 {
    let mut found = (0, -1);
    wait_until("the offset is stable", || {
        found = offset(raw, group, topic, true);
        found.0 != 88
    });
    assert_eq!(found.0, 0);
    found.1
}

pub fn offset(raw: &mut Raw, group: &str, topic: &str, stable: bool) -> (i16, i64) {
    let topics =
        OffsetFetchRequestTopics::default().with_name(topic_name(topic)).with_partition_indexes(vec![0]);
    let wanted = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![topics]));
    let request = OffsetFetchRequest::default().with_groups(vec![wanted]).with_require_stable(stable);
    let response = raw.call(&request, 8);
    let partition = &response.groups[0].topics[0].partitions[0];
    (partition.error_code, partition.committed_offset)
}

/// End of a partition for readers of this isolation level.
pub fn end_offset(raw: &mut Raw, topic: &str, partition: i32, isolation: i8) -> i64 {
    let wanted = ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(-1);
    let topic = ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(vec![wanted]);
    let request = ListOffsetsRequest::default().with_isolation_level(isolation).with_topics(vec![topic]);
    raw.call(&request, 7).topics[0].partitions[0].offset
}

/// Values of all committed records of a partition, as a client filters them.
pub fn committed(raw: &mut Raw, topic: &str, partition: i32) -> Vec<String> {
    let end = end_offset(raw, topic, partition, 1);
    let mut values = Vec::new();
    let mut at = 0;
    while at < end {
        let mut request = fetch_request(topic, at, Duration::ZERO, 1).with_isolation_level(1);
        request.topics[0].partitions[0].partition = partition;
        let response = raw.call::<FetchRequest>(&request, 12);
        let data = &response.responses[0].partitions[0];
        let mut bytes = data.records.clone().expect("records");
        let mut aborted = data.aborted_transactions.clone().unwrap_or_default();
        aborted.sort_by_key(|aborted| aborted.first_offset);
        let mut ignored = HashSet::new();
        for set in RecordBatchDecoder::decode_all(&mut bytes).expect("decodes") {
            for record in set.records {
                aborted.retain(|entry| {
                    let begun = entry.first_offset <= record.offset;
                    if begun {
                        ignored.insert(entry.producer_id.0);
                    }
                    !begun
                });
                if record.control {
                    ignored.remove(&record.producer_id);
                } else if !(record.transactional && ignored.contains(&record.producer_id))
                    && record.offset >= at
                {
                    let value = record.value.unwrap_or_default();
                    values.push(String::from_utf8_lossy(&value).into_owned());
                }
                at = at.max(record.offset + 1);
            }
        }
    }
    values
}
