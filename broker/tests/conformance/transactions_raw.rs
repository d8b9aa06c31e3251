//! The transaction protocol step by step: what is refused, and what stays pending until the end.

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, DescribeProducersRequest, DescribeTransactionsRequest,
    EndTxnRequest, FetchRequest, GroupId, InitProducerIdRequest, ListTransactionsRequest, OffsetFetchRequest,
    TransactionalId, TxnOffsetCommitRequest, describe_producers_request,
};

use crate::cluster::{PATIENCE, connect, read, topic, unique, values, wait_until};
use crate::raw::{
    Raw, Stamp, batch, fetch_request, find_coordinator, init_producer, produce_raw, produce_version, retry,
    text, topic_name,
};

const INVALID_PRODUCER_EPOCH: i16 = 47;
const INVALID_TXN_STATE: i16 = 48;
const INVALID_PRODUCER_ID_MAPPING: i16 = 49;
const PRODUCER_FENCED: i16 = 90;

/// A transactional producer, one request at a time.
struct Owner {
    raw: Raw,
    transactional_id: String,
    id: i64,
    epoch: i16,
}

fn owner(name: &str) -> Owner {
    let transactional_id = unique(name);
    let mut raw = connect();
    find_coordinator(&mut raw, &transactional_id, 1);
    let (id, epoch) = init_producer(&mut raw, &transactional_id, 60_000);
    Owner { raw, transactional_id, id, epoch }
}

impl Owner {
    fn add(&mut self, topic: &str) -> i16 {
        let topics =
            vec![AddPartitionsToTxnTopic::default().with_name(topic_name(topic)).with_partitions(vec![0])];
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(text(&self.transactional_id)))
            .with_v3_and_below_producer_id(self.id.into())
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(topics);
        retry(|| {
            let response = self.raw.call(&request, 3);
            let error =
                response.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code;
            (error, error)
        })
    }

    fn stamp(&self, sequence: i32) -> Stamp {
        Stamp { id: self.id, epoch: self.epoch, sequence, transactional: true }
    }

    fn produce(&mut self, topic: &str, sequence: i32, value: &str) -> i16 {
        let batch = batch(self.stamp(sequence), &[value]);
        produce_raw(&mut self.raw, topic, Some(&self.transactional_id), batch).error_code
    }

    fn add_offsets(&mut self, group: &str) -> i16 {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(text(&self.transactional_id)))
            .with_producer_id(self.id.into())
            .with_producer_epoch(self.epoch)
            .with_group_id(GroupId(text(group)));
        retry(|| {
            let error = self.raw.call(&request, 3).error_code;
            (error, error)
        })
    }

    fn commit_offset(
        &mut self,
        group: &str,
        topic: &str,
        offset: i64,
        member: (&str, Option<&str>, i32),
    ) -> i16 {
        let (id, instance, generation) = member;
        let partition =
            TxnOffsetCommitRequestPartition::default().with_partition_index(0).with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(text(&self.transactional_id)))
            .with_producer_id(self.id.into())
            .with_producer_epoch(self.epoch)
            .with_group_id(GroupId(text(group)))
            .with_member_id(text(id))
            .with_group_instance_id(instance.map(text))
            .with_generation_id(generation)
            .with_topics(vec![topic]);
        retry(|| {
            let error = self.raw.call(&request, 3).topics[0].partitions[0].error_code;
            (error, error)
        })
    }

    fn end(&mut self, commit: bool) -> i16 {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(&self.transactional_id)))
            .with_producer_id(self.id.into())
            .with_producer_epoch(self.epoch)
            .with_committed(commit);
        retry(|| {
            let error = self.raw.call(&request, 3).error_code;
            (error, error)
        })
    }
}

/// Error and offset of partition 0 as a group has it.
fn fetch_offset(raw: &mut Raw, group: &str, topic: &str, stable: bool) -> (i16, i64) {
    let topics =
        OffsetFetchRequestTopics::default().with_name(topic_name(topic)).with_partition_indexes(vec![0]);
    let wanted = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![topics]));
    let request = OffsetFetchRequest::default().with_groups(vec![wanted]).with_require_stable(stable);
    retry(|| {
        let response = raw.call(&request, 8);
        let partition = &response.groups[0].topics[0].partitions[0];
        (response.groups[0].error_code, (partition.error_code, partition.committed_offset))
    })
}

const NO_MEMBER: (&str, Option<&str>, i32) = ("", None, -1);

#[test]
fn a_partition_must_be_added_before_it_is_written_to() {
    let (added, other) = (topic("added", 1, &[]), topic("other", 1, &[]));
    let mut owner = owner("added");
    assert_eq!(owner.produce(&added, 0, "early"), INVALID_TXN_STATE);
    assert_eq!(owner.add(&added), 0);
    assert_eq!(owner.produce(&added, 0, "v"), 0);
    assert_eq!(owner.produce(&other, 0, "v"), INVALID_TXN_STATE);
    let again = batch(owner.stamp(0), &["v"]);
    let id = owner.transactional_id.clone();
    let refused = produce_version(&mut owner.raw, &other, Some(&id), again, 11);
    assert_eq!(refused.error_code, 120, "newer clients are told that they can abort");
    assert_eq!(owner.end(true), 0);
    wait_until("the marker is there", || !read(&added, 0, 0, "read_committed").is_empty());
    assert_eq!(values(&read(&added, 0, 0, "read_committed")), ["v"]);
    assert!(read(&other, 0, 0, "read_uncommitted").is_empty());
}

#[test]
fn a_batch_that_comes_after_the_end_is_refused() {
    let topic = topic("late", 1, &[]);
    let mut owner = owner("late");
    assert_eq!(owner.add(&topic), 0);
    assert_eq!(owner.produce(&topic, 0, "v"), 0);
    assert_eq!(owner.end(true), 0);
    wait_until("the marker is there", || read(&topic, 0, 0, "read_committed").len() == 1);
    wait_until("the end is complete", || owner.end(true) == 0);
    assert_eq!(owner.produce(&topic, 1, "late"), INVALID_TXN_STATE);
}

#[test]
fn a_former_owner_is_fenced_from_everything() {
    let topic = topic("former", 1, &[]);
    let group = unique("former");
    let mut former = owner("former");
    assert_eq!(former.add(&topic), 0);
    assert_eq!(former.add_offsets(&group), 0);
    assert_eq!(former.produce(&topic, 0, "v"), 0);
    let mut raw = connect();
    let (id, epoch) = init_producer(&mut raw, &former.transactional_id, 60_000);
    assert_eq!(id, former.id);
    // One raise to abort the open transaction, another for the new owner.
    assert_eq!(epoch, former.epoch + 2);
    assert_eq!(former.add(&topic), PRODUCER_FENCED);
    assert_eq!(former.add_offsets(&group), PRODUCER_FENCED);
    assert_eq!(former.end(true), PRODUCER_FENCED);
    assert_eq!(former.produce(&topic, 1, "v"), INVALID_PRODUCER_EPOCH);
    assert_eq!(former.commit_offset(&group, &topic, 1, NO_MEMBER), INVALID_PRODUCER_EPOCH);
    assert!(read(&topic, 0, 0, "read_committed").is_empty());
}

#[test]
fn unknown_ids_are_refused() {
    let topic = topic("mapping", 1, &[]);
    let mut owner = owner("mapping");
    owner.id += 1_000_000;
    assert_eq!(owner.add(&topic), INVALID_PRODUCER_ID_MAPPING);
    assert_eq!(owner.end(true), INVALID_PRODUCER_ID_MAPPING);
    owner.transactional_id = unique("nobody");
    assert_eq!(owner.add(&topic), INVALID_PRODUCER_ID_MAPPING);
    let nowhere = unique("nowhere");
    owner.id -= 1_000_000;
    assert_eq!(owner.add(&nowhere), 3);
}

#[test]
fn a_time_out_beyond_the_limit_is_refused() {
    let id = unique("time-out");
    let mut raw = connect();
    find_coordinator(&mut raw, &id, 1);
    for timeout in [0, -5, i32::MAX] {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(text(&id))))
            .with_transaction_timeout_ms(timeout)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let error = retry(|| {
            let error = raw.call(&request, 4).error_code;
            (error, error)
        });
        assert_eq!(error, 50, "{timeout} ms");
    }
}

#[test]
fn an_end_may_be_repeated_but_not_turned_around() {
    let topic = topic("ends", 1, &[]);
    let mut owner = owner("ends");
    assert_eq!(owner.end(true), INVALID_TXN_STATE, "there is no transaction");
    for commit in [true, false] {
        assert_eq!(owner.add(&topic), 0);
        assert_eq!(owner.end(commit), 0);
        assert_eq!(owner.end(commit), 0);
        assert_eq!(owner.end(!commit), INVALID_TXN_STATE);
    }
}

#[test]
fn a_producer_that_goes_on_after_an_error_gets_the_next_epoch() {
    let mut owner = owner("goes-on");
    let mut resume = |epoch: i16| {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(text(&owner.transactional_id))))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(owner.id.into())
            .with_producer_epoch(epoch);
        let response = owner.raw.call(&request, 4);
        (response.error_code, response.producer_epoch)
    };
    assert_eq!(resume(0), (0, 1));
    assert_eq!(resume(0), (0, 1), "the answer got lost");
    assert_eq!(resume(1), (0, 2));
    assert_eq!(resume(0).0, PRODUCER_FENCED);
}

#[test]
fn offsets_are_unstable_until_the_transaction_ends() {
    let topic = topic("unstable", 1, &[]);
    let group = unique("unstable");
    let mut owner = owner("unstable");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    for (offset, commit, after) in [(5, false, -1), (7, true, 7), (9, false, 7)] {
        let before = fetch_offset(&mut raw, &group, &topic, false);
        assert_eq!(owner.add_offsets(&group), 0);
        assert_eq!(owner.commit_offset(&group, &topic, offset, NO_MEMBER), 0);
        assert_eq!(fetch_offset(&mut raw, &group, &topic, true), (88, -1));
        assert_eq!(fetch_offset(&mut raw, &group, &topic, false), before);
        assert_eq!(owner.end(commit), 0);
        wait_until("it is stable", || fetch_offset(&mut raw, &group, &topic, true) == (0, after));
    }
}

#[test]
fn offsets_of_a_group_that_was_not_added_are_refused() {
    let topic = topic("not-added", 1, &[]);
    let mut owner = owner("not-added");
    let group = unique("not-added");
    find_coordinator(&mut owner.raw, &group, 0);
    assert_eq!(owner.commit_offset(&group, &topic, 1, NO_MEMBER), INVALID_TXN_STATE);
    assert_eq!(owner.add(&topic), 0);
    assert_eq!(owner.commit_offset(&group, &topic, 1, NO_MEMBER), INVALID_TXN_STATE);
}

#[test]
fn offsets_from_outside_the_current_generation_are_refused() {
    use bytes::Bytes;
    use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
    use kafka_protocol::messages::{JoinGroupRequest, SyncGroupRequest};

    let topic = topic("outside", 1, &[]);
    let group = unique("outside");
    let mut member = connect();
    find_coordinator(&mut member, &group, 0);
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::new());
    let join = JoinGroupRequest::default()
        .with_group_id(GroupId(text(&group)))
        .with_session_timeout_ms(20_000)
        .with_rebalance_timeout_ms(20_000)
        .with_group_instance_id(Some(text("one")))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    let joined = member.call(&join, 5);
    let sync = SyncGroupRequest::default()
        .with_group_id(GroupId(text(&group)))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_group_instance_id(Some(text("one")));
    assert_eq!(member.call(&sync, 3).error_code, 0);
    let (id, generation) = (joined.member_id.to_string(), joined.generation_id);

    let mut owner = owner("outside");
    assert_eq!(owner.add_offsets(&group), 0);
    let mut commit = |member| owner.commit_offset(&group, &topic, 1, member);
    assert_eq!(commit((&id, None, generation + 1)), 22);
    assert_eq!(commit((&id, None, generation - 1)), 22);
    assert_eq!(commit(("somebody", None, generation)), 25);
    assert_eq!(commit(("somebody", Some("one"), generation)), 82);
    assert_eq!(commit((&id, Some("two"), generation)), 25);
    assert_eq!(commit((&id, Some("one"), generation)), 0);
    assert_eq!(owner.end(true), 0);
    wait_until("it is stable", || fetch_offset(&mut member, &group, &topic, true) == (0, 1));
}

#[test]
fn a_fetch_lists_the_aborted_transactions_it_overlaps() {
    let topic = topic("aborted-list", 1, &[]);
    let mut owner = owner("aborted-list");
    for (sequence, commit) in [(0, false), (1, true), (2, false)] {
        assert_eq!(owner.add(&topic), 0);
        assert_eq!(owner.produce(&topic, sequence, "v"), 0);
        assert_eq!(owner.end(commit), 0);
        wait_until("it is complete", || owner.end(commit) == 0);
    }
    let mut list = |offset| {
        let request = fetch_request(&topic, offset, PATIENCE, 1).with_isolation_level(1);
        let response = owner.raw.call::<FetchRequest>(&request, 12);
        let partition = &response.responses[0].partitions[0];
        assert_eq!((partition.last_stable_offset, partition.high_watermark), (6, 6));
        let aborted = partition.aborted_transactions.as_ref().expect("a list");
        aborted.iter().map(|aborted| aborted.first_offset).collect::<Vec<_>>()
    };
    assert_eq!(list(0), [0, 4]);
    assert_eq!(list(1), [0, 4], "the marker belongs to the transaction");
    assert_eq!(list(2), [4]);
}

#[test]
fn markers_are_laid_out_as_kafka_lays_them_out() {
    let topic = topic("marker", 1, &[]);
    let mut owner = owner("marker");
    for (sequence, commit) in [(0, true), (1, false)] {
        assert_eq!(owner.add(&topic), 0);
        assert_eq!(owner.produce(&topic, sequence, "v"), 0);
        assert_eq!(owner.end(commit), 0);
        wait_until("it is complete", || owner.end(commit) == 0);
        let at = i64::from(sequence) * 2 + 1;
        let response = owner.raw.call(&fetch_request(&topic, at, PATIENCE, 1), 12);
        let bytes = response.responses[0].partitions[0].records.clone().expect("a marker");
        assert_eq!(bytes.len(), 78);
        assert_eq!(bytes[21..23], [0, 0x30], "a transactional control batch");
        assert_eq!(bytes[43..51], owner.id.to_be_bytes());
        assert_eq!(bytes[51..53], owner.epoch.to_be_bytes());
        assert_eq!(bytes[53..57], (-1i32).to_be_bytes());
        let key_and_value = [8, 0, 0, 0, u8::from(commit), 12, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes[61..], [&[32, 0, 0, 0][..], &key_and_value].concat());
    }
}

#[test]
fn transactions_and_producers_can_be_described() {
    let topic = topic("described", 1, &[]);
    let mut owner = owner("described");
    assert_eq!(owner.add(&topic), 0);
    assert_eq!(owner.produce(&topic, 0, "v"), 0);
    let ids = vec![TransactionalId(text(&owner.transactional_id))];
    let request = DescribeTransactionsRequest::default().with_transactional_ids(ids);
    let described = owner.raw.call(&request, 0).transaction_states.remove(0);
    assert_eq!((described.error_code, described.transaction_state.as_str()), (0, "Ongoing"));
    assert_eq!((described.producer_id.0, described.producer_epoch), (owner.id, owner.epoch));
    assert_eq!(described.topics[0].topic.as_str(), topic);

    let request = ListTransactionsRequest::default().with_producer_id_filters(vec![owner.id.into()]);
    let listed = owner.raw.call(&request, 0).transaction_states;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].transactional_id.as_str(), owner.transactional_id);

    let wanted = describe_producers_request::TopicRequest::default()
        .with_name(topic_name(&topic))
        .with_partition_indexes(vec![0]);
    let request = DescribeProducersRequest::default().with_topics(vec![wanted]);
    let response = owner.raw.call(&request, 0);
    let producer = &response.topics[0].partitions[0].active_producers[0];
    assert_eq!((producer.producer_id.0, producer.last_sequence), (owner.id, 0));
    assert_eq!(producer.current_txn_start_offset, 0);
}
