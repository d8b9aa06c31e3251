//! The core alone, with a clock that only the test moves: what happens exactly when.

use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, CreateTopicsRequest, DescribeGroupsRequest,
    EndTxnRequest, FetchRequest, GroupId, InitProducerIdRequest, InitProducerIdResponse, JoinGroupRequest,
    TopicName, TransactionalId, TxnOffsetCommitRequest,
};

use super::*;
use crate::txn::State;

const WALL_MS: i64 = 1_700_000_000_000;

struct Bench {
    core: Core,
    mono: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Config::default())
    }

    fn with(config: Config) -> Bench {
        let identity = Identity { host: "test".to_owned(), port: 1, cluster_id: String::new() };
        let core = Core::open(config, identity, at(0)).expect("opens");
        let mut bench = Bench { core, mono: 0 };
        let topic = CreatableTopic::default()
            .with_name(TopicName(text("t")))
            .with_num_partitions(1)
            .with_replication_factor(1);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]);
        bench.answer(RequestKind::CreateTopics(request), 7);
        bench
    }

    fn handle(&mut self, request: RequestKind, version: i16) -> Outcome {
        let now = at(self.mono);
        let call = Call { reply_to: 1, version, client_id: "test", client_host: "/test", now };
        self.core.handle(request, &call)
    }

    fn answer(&mut self, request: RequestKind, version: i16) -> ResponseKind {
        match self.handle(request, version) {
            Outcome::Answer(response) => response,
            Outcome::Later => self.core.take_replies().remove(0).1,
            other => panic!("unexpected {other:?}"),
        }
    }

    fn advance_to(&mut self, mono: u64) {
        self.mono = mono;
        self.core.tick(at(mono));
    }
}

fn at(mono: u64) -> Now {
    Now { mono, wall: WALL_MS + mono as i64 }
}

fn fetch(wait_ms: i32) -> RequestKind {
    let partition = FetchPartition::default().with_partition_max_bytes(1000).with_current_leader_epoch(-1);
    let topic = FetchTopic::default().with_topic(TopicName(text("t"))).with_partitions(vec![partition]);
    let request =
        FetchRequest::default().with_max_wait_ms(wait_ms).with_min_bytes(1).with_topics(vec![topic]);
    RequestKind::Fetch(request)
}

#[test]
fn a_waiting_fetch_is_answered_when_its_time_is_up_and_not_before() {
    let mut bench = Bench::new();
    assert!(matches!(bench.handle(fetch(500), 12), Outcome::Later));
    bench.advance_to(500);
    assert!(bench.core.take_replies().is_empty());
    bench.advance_to(501);
    assert_eq!(bench.core.take_replies().len(), 1);
}

#[test]
fn a_fetch_that_is_over_leaves_no_timer_behind() {
    let mut bench = Bench::new();
    bench.advance_to(1);
    let due = bench.core.next_deadline();
    assert!(matches!(bench.handle(fetch(10), 12), Outcome::Later));
    assert_ne!(bench.core.next_deadline(), due);
    bench.core.disconnected(1);
    assert_eq!(bench.core.next_deadline(), due);
}

#[test]
fn a_stale_timer_does_not_answer_a_later_fetch_of_the_same_client() {
    let mut bench = Bench::new();
    assert!(matches!(bench.handle(fetch(500), 12), Outcome::Later));
    bench.core.disconnected(1);
    bench.advance_to(400);
    assert!(matches!(bench.handle(fetch(500), 12), Outcome::Later));
    bench.advance_to(600);
    assert!(bench.core.take_replies().is_empty());
    bench.advance_to(901);
    assert_eq!(bench.core.take_replies().len(), 1);
}

/// The owner of `x`, whose transaction has the only partition of `t`.
fn begin(bench: &mut Bench) -> InitProducerIdResponse {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(text("x"))))
        .with_transaction_timeout_ms(10_000)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let ResponseKind::InitProducerId(granted) = bench.answer(RequestKind::InitProducerId(request), 4) else {
        panic!("another answer");
    };
    let topic = AddPartitionsToTxnTopic::default().with_name(TopicName(text("t"))).with_partitions(vec![0]);
    let request = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(TransactionalId(text("x")))
        .with_v3_and_below_producer_id(granted.producer_id)
        .with_v3_and_below_producer_epoch(granted.producer_epoch)
        .with_v3_and_below_topics(vec![topic]);
    bench.answer(RequestKind::AddPartitionsToTxn(request), 3);
    granted
}

/// Makes a group part of the transaction of `x`, and answers the error.
fn add_group(bench: &mut Bench, owner: &InitProducerIdResponse, group: &str) -> i16 {
    let request = AddOffsetsToTxnRequest::default()
        .with_transactional_id(TransactionalId(text("x")))
        .with_producer_id(owner.producer_id)
        .with_producer_epoch(owner.producer_epoch)
        .with_group_id(GroupId(text(group)));
    match bench.answer(RequestKind::AddOffsetsToTxn(request), 3) {
        ResponseKind::AddOffsetsToTxn(response) => response.error_code,
        _ => panic!("another answer"),
    }
}

#[test]
fn a_transaction_is_aborted_by_the_first_scan_after_its_time_out() {
    let mut bench = Bench::new();
    begin(&mut bench);
    let state = |bench: &Bench| (bench.core.transactions["x"].state, bench.core.transactions["x"].epoch);
    bench.advance_to(10_000);
    assert_eq!(state(&bench), (State::Ongoing, 0));
    bench.advance_to(11_001);
    assert_eq!(state(&bench), (State::CompleteAbort, 1));
}

#[test]
fn a_transaction_has_so_many_groups_at_most() {
    let mut bench = Bench::new();
    let owner = begin(&mut bench);
    let mut add = |group: usize| add_group(&mut bench, &owner, &group.to_string());
    assert!((0..transactions::GROUPS_MAX).all(|group| add(group) == 0));
    assert_eq!(add(transactions::GROUPS_MAX), ResponseError::PolicyViolation.code());
    assert_eq!(add(0), 0, "it has that one");
}

#[test]
fn a_transaction_is_complete_once_the_journal_knows_what_became_of_its_offsets() {
    let mut bench = Bench::with(Config { marker_delay: Duration::from_millis(100), ..Config::default() });
    let owner = begin(&mut bench);
    assert_eq!(add_group(&mut bench, &owner, "g"), 0);
    let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(5);
    let topic = TxnOffsetCommitRequestTopic::default().with_name(TopicName(text("t")));
    let request = TxnOffsetCommitRequest::default()
        .with_transactional_id(TransactionalId(text("x")))
        .with_group_id(GroupId(text("g")))
        .with_producer_id(owner.producer_id)
        .with_producer_epoch(owner.producer_epoch)
        .with_generation_id(-1)
        .with_topics(vec![topic.with_partitions(vec![partition])]);
    bench.answer(RequestKind::TxnOffsetCommit(request), 3);
    let request = EndTxnRequest::default()
        .with_transactional_id(TransactionalId(text("x")))
        .with_producer_id(owner.producer_id)
        .with_producer_epoch(owner.producer_epoch)
        .with_committed(true);
    bench.answer(RequestKind::EndTxn(request), 3);
    let outcome = |bench: &Bench| {
        let offset = bench.core.groups["g"].offsets.get("t", 0).map(|committed| committed.offset);
        (bench.core.transactions["x"].state, offset)
    };
    bench.core.journal = Some(Journal::full());
    bench.advance_to(200);
    assert_eq!(outcome(&bench), (State::PrepareCommit, None));
    bench.core.journal = None;
    bench.advance_to(1_300);
    assert_eq!(outcome(&bench), (State::CompleteCommit, Some(5)));
}

fn join() -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(60_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

#[test]
fn a_group_that_is_full_lets_in_no_static_member_that_it_does_not_know() {
    let mut bench = Bench::with(Config { group_members_max: 1, ..Config::default() });
    let join_as = |instance: &str| {
        let request = join().with_group_instance_id(Some(text(instance)));
        match bench.answer(RequestKind::JoinGroup(request), 5) {
            ResponseKind::JoinGroup(response) => response.error_code,
            _ => panic!("another answer"),
        }
    };
    let full = ResponseError::GroupMaxSizeReached.code();
    assert_eq!(["a", "b", "a"].map(join_as), [0, full, 0]);
}

#[test]
fn a_member_that_falls_silent_is_removed_exactly_when_its_session_ends() {
    let mut bench = Bench::new();
    bench.answer(RequestKind::JoinGroup(join()), 3);
    let members = |bench: &mut Bench| {
        let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text("g"))]);
        match bench.answer(RequestKind::DescribeGroups(request), 5) {
            ResponseKind::DescribeGroups(response) => response.groups[0].members.len(),
            _ => panic!("another answer"),
        }
    };
    bench.advance_to(9_999);
    assert_eq!(members(&mut bench), 1);
    bench.advance_to(10_000);
    assert_eq!(members(&mut bench), 0);
}
