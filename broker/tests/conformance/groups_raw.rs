//! The group protocol step by step: generations, fencing, time-outs.

use bytes::Bytes;
use std::time::{Duration, Instant};

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    ListGroupsRequest, OffsetCommitRequest, OffsetDeleteRequest, SyncGroupRequest,
};

use crate::cluster::{connect, topic, unique, wait_until};
use crate::raw::{Raw, find_coordinator, text, topic_name};

const REBALANCE_IN_PROGRESS: i16 = 27;
const ILLEGAL_GENERATION: i16 = 22;
const INCONSISTENT_GROUP_PROTOCOL: i16 = 23;
const UNKNOWN_MEMBER_ID: i16 = 25;
const MEMBER_ID_REQUIRED: i16 = 79;
const FENCED_INSTANCE_ID: i16 = 82;

/// A consumer's subscription to one topic, as consumers encode it.
fn subscription(topic: &str) -> Bytes {
    let mut bytes = vec![0, 0, 0, 0, 0, 1];
    bytes.extend((topic.len() as i16).to_be_bytes());
    bytes.extend(topic.as_bytes());
    bytes.extend([0xff; 4]);
    bytes.into()
}

fn join(group: &str, member: &str, instance: Option<&str>) -> JoinGroupRequest {
    let protocol =
        JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(subscription("t"));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_member_id(text(member))
        .with_group_instance_id(instance.map(text))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

fn sync(
    group: &str,
    joined: &JoinGroupResponse,
    instance: Option<&str>,
    give: &[(&str, &str)],
) -> SyncGroupRequest {
    let assignment = |(member, bytes): &(&str, &str)| {
        SyncGroupRequestAssignment::default()
            .with_member_id(text(member))
            .with_assignment(Bytes::copy_from_slice(bytes.as_bytes()))
    };
    SyncGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_group_instance_id(instance.map(text))
        .with_assignments(give.iter().map(assignment).collect())
}

fn heartbeat(raw: &mut Raw, group: &str, member: &str, instance: Option<&str>, generation: i32) -> i16 {
    let request = HeartbeatRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_member_id(text(member))
        .with_group_instance_id(instance.map(text))
        .with_generation_id(generation);
    raw.call(&request, 3).error_code
}

fn commit(
    raw: &mut Raw,
    group: &str,
    topic: &str,
    member: &str,
    instance: Option<&str>,
    generation: i32,
) -> i16 {
    let partition = OffsetCommitRequestPartition::default().with_partition_index(0).with_committed_offset(1);
    let topic =
        OffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(generation)
        .with_member_id(text(member))
        .with_group_instance_id(instance.map(text))
        .with_topics(vec![topic]);
    raw.call(&request, 7).topics[0].partitions[0].error_code
}

/// A group with one member that has its assignment.
struct Alone {
    raw: Raw,
    group: String,
    joined: JoinGroupResponse,
}

fn alone(instance: Option<&str>) -> Alone {
    let group = unique("group");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    let mut joined = raw.call(&join(&group, "", instance), 5);
    if joined.error_code == MEMBER_ID_REQUIRED {
        joined = raw.call(&join(&group, &joined.member_id, instance), 5);
    }
    assert_eq!(joined.error_code, 0);
    let id = joined.member_id.to_string();
    let synced = raw.call(&sync(&group, &joined, instance, &[(&id, "mine")]), 3);
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"mine"[..]));
    Alone { raw, group, joined }
}

#[test]
fn a_new_member_is_given_an_id_to_join_with() {
    let group = unique("id");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    let refused = raw.call(&join(&group, "", None), 4);
    assert_eq!(refused.error_code, MEMBER_ID_REQUIRED);
    assert!(!refused.member_id.is_empty());
    let joined = raw.call(&join(&group, &refused.member_id, None), 4);
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    assert_eq!((&joined.member_id, &joined.leader), (&refused.member_id, &refused.member_id));
    let unknown = connect().call(&join(&group, "no-such-member", None), 5);
    assert_eq!(unknown.error_code, UNKNOWN_MEMBER_ID);
}

#[test]
fn old_clients_join_without_an_id() {
    for version in 0..=3 {
        let group = unique("old");
        let mut raw = connect();
        find_coordinator(&mut raw, &group, 0);
        let joined = raw.call(&join(&group, "", None), version);
        assert_eq!((joined.error_code, joined.members.len()), (0, 1), "version {version}");
    }
}

#[test]
fn senseless_joins_are_refused() {
    let group = unique("senseless");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    assert_eq!(raw.call(&join("", "", None), 5).error_code, 24);
    let hasty = join(&group, "", None).with_session_timeout_ms(1);
    assert_eq!(raw.call(&hasty, 5).error_code, 26);
    let empty = join(&group, "", None).with_protocols(Vec::new());
    assert_eq!(raw.call(&empty, 5).error_code, INCONSISTENT_GROUP_PROTOCOL);
}

#[test]
fn members_must_have_a_strategy_in_common() {
    let Alone { group, .. } = &alone(None);
    let other = JoinGroupRequestProtocol::default().with_name(text("roundrobin"));
    let request = join(group, "", None).with_protocols(vec![other]);
    assert_eq!(connect().call(&request, 3).error_code, INCONSISTENT_GROUP_PROTOCOL);
    let other_type = join(group, "", None).with_protocol_type(text("connect"));
    assert_eq!(connect().call(&other_type, 3).error_code, INCONSISTENT_GROUP_PROTOCOL);
}

#[test]
fn only_the_current_generation_of_a_known_member_counts() {
    let topic = topic("generation", 1, &[]);
    let Alone { mut raw, group, joined } = alone(None);
    let (id, generation) = (joined.member_id.to_string(), joined.generation_id);
    assert_eq!(heartbeat(&mut raw, &group, &id, None, generation), 0);
    assert_eq!(heartbeat(&mut raw, &group, &id, None, generation + 1), ILLEGAL_GENERATION);
    assert_eq!(heartbeat(&mut raw, &group, "nobody", None, generation), UNKNOWN_MEMBER_ID);
    assert_eq!(heartbeat(&mut raw, &unique("none"), &id, None, generation), UNKNOWN_MEMBER_ID);
    assert_eq!(commit(&mut raw, &group, &topic, &id, None, generation), 0);
    assert_eq!(commit(&mut raw, &group, &topic, &id, None, generation - 1), ILLEGAL_GENERATION);
    assert_eq!(commit(&mut raw, &group, &topic, "nobody", None, generation), UNKNOWN_MEMBER_ID);
    assert_eq!(commit(&mut raw, &group, &topic, "", None, -1), UNKNOWN_MEMBER_ID);
    assert_eq!(commit(&mut raw, &unique("none"), &topic, &id, None, 1), ILLEGAL_GENERATION);
    let stale = sync(&group, &joined, None, &[]).with_generation_id(generation + 1);
    assert_eq!(raw.call(&stale, 3).error_code, ILLEGAL_GENERATION);
    // Who asks again is told again.
    assert_eq!(&raw.call(&sync(&group, &joined, None, &[]), 3).assignment[..], b"mine");
}

#[test]
fn a_rebalance_is_announced_waits_for_all_and_hands_out_what_the_leader_says() {
    let Alone { mut raw, group, joined } = alone(None);
    let leader = joined.member_id.to_string();
    let mut second = connect();
    let id = second.call(&join(&group, "", None), 5).member_id;
    second.send(&join(&group, &id, None), 5);
    wait_until("the rebalance is announced", || {
        heartbeat(&mut raw, &group, &leader, None, 1) == REBALANCE_IN_PROGRESS
    });
    assert_eq!(raw.call(&sync(&group, &joined, None, &[]), 3).error_code, REBALANCE_IN_PROGRESS);
    let first_joined = raw.call(&join(&group, &leader, None), 5);
    let second_joined = second.receive::<JoinGroupRequest>(5);
    assert_eq!((first_joined.generation_id, second_joined.generation_id), (2, 2));
    assert_eq!((first_joined.members.len(), second_joined.members.len()), (2, 0));
    assert_eq!(second_joined.leader.as_str(), leader);

    second.send(&sync(&group, &second_joined, None, &[]), 3);
    let give = [(leader.as_str(), "one"), (id.as_str(), "two")];
    let first_synced = raw.call(&sync(&group, &first_joined, None, &give), 3);
    let second_synced = second.receive::<SyncGroupRequest>(3);
    assert_eq!((&first_synced.assignment[..], &second_synced.assignment[..]), (&b"one"[..], &b"two"[..]));
}

#[test]
fn commits_wait_until_a_completing_rebalance_is_over() {
    let topic = topic("completing", 1, &[]);
    let Alone { mut raw, group, joined } = alone(None);
    let id = joined.member_id.to_string();
    let again = raw.call(&join(&group, &id, None), 5);
    assert_eq!(again.generation_id, 2);
    assert_eq!(commit(&mut raw, &group, &topic, &id, None, 2), REBALANCE_IN_PROGRESS);
    assert_eq!(raw.call(&sync(&group, &again, None, &[(&id, "mine")]), 3).error_code, 0);
    assert_eq!(commit(&mut raw, &group, &topic, &id, None, 2), 0);
}

#[test]
fn a_member_that_does_not_join_again_is_left_behind() {
    let group = unique("left-behind");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    // It has so long to ask for its assignment too.
    let hasty = |member: &str| join(&group, member, None).with_rebalance_timeout_ms(2_000);
    let id = raw.call(&hasty(""), 5).member_id;
    let joined = raw.call(&hasty(&id), 5);
    raw.call(&sync(&group, &joined, None, &[(&id, "mine")]), 3);
    let mut second = connect();
    let second_id = second.call(&hasty(""), 5).member_id;
    let started = Instant::now();
    let second_joined = second.call(&hasty(&second_id), 5);
    assert!(started.elapsed() >= Duration::from_millis(1_990), "waited {:?}", started.elapsed());
    assert_eq!((second_joined.generation_id, second_joined.members.len()), (2, 1));
    assert_eq!(heartbeat(&mut raw, &group, &id, None, 1), UNKNOWN_MEMBER_ID);
}

#[test]
fn a_member_that_never_asks_for_its_assignment_is_left_behind() {
    let group = unique("no-sync");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    let hasty = |member: &str| join(&group, member, None).with_rebalance_timeout_ms(300);
    let id = raw.call(&hasty(""), 5).member_id;
    assert_eq!(raw.call(&hasty(&id), 5).error_code, 0);
    wait_until("it is gone", || heartbeat(&mut raw, &group, &id, None, 1) == UNKNOWN_MEMBER_ID);
}

#[test]
fn a_silent_member_is_removed_when_its_session_ends() {
    let group = unique("silent");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    let brief = |member: &str| join(&group, member, None).with_session_timeout_ms(3_000);
    let id = raw.call(&brief(""), 5).member_id;
    let joined = raw.call(&brief(&id), 5);
    raw.call(&sync(&group, &joined, None, &[(&id, "mine")]), 3);
    let state = |raw: &mut Raw| {
        let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text(&group))]);
        raw.call(&request, 5).groups[0].group_state.to_string()
    };
    assert_eq!(state(&mut raw), "Stable");
    // A broker may forget an empty group without offsets at any time, and then calls it dead.
    wait_until("the group is empty", || ["Empty", "Dead"].contains(&state(&mut raw).as_str()));
    assert_eq!(heartbeat(&mut raw, &group, &id, None, 1), UNKNOWN_MEMBER_ID);
}

#[test]
fn a_static_member_comes_back_under_a_new_id_and_fences_the_old_one() {
    let topic = topic("fenced", 1, &[]);
    let Alone { mut raw, group, joined } = alone(Some("one"));
    let old = joined.member_id.to_string();
    let mut again = connect();
    let back = again.call(&join(&group, "", Some("one")), 5);
    assert_eq!((back.error_code, back.generation_id), (0, 1), "no rebalance");
    assert_ne!(back.member_id.as_str(), old);
    assert_ne!(back.leader, back.member_id, "an old client must not assign");
    let synced = again.call(&sync(&group, &back, Some("one"), &[]), 3);
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"mine"[..]));

    assert_eq!(heartbeat(&mut raw, &group, &old, Some("one"), 1), FENCED_INSTANCE_ID);
    assert_eq!(commit(&mut raw, &group, &topic, &old, Some("one"), 1), FENCED_INSTANCE_ID);
    assert_eq!(raw.call(&sync(&group, &joined, Some("one"), &[]), 3).error_code, FENCED_INSTANCE_ID);
    assert_eq!(raw.call(&join(&group, &old, Some("one")), 5).error_code, FENCED_INSTANCE_ID);
    assert_eq!(heartbeat(&mut raw, &group, &old, None, 1), UNKNOWN_MEMBER_ID);
    assert_eq!(heartbeat(&mut raw, &group, "any", Some("other"), 1), UNKNOWN_MEMBER_ID);
}

#[test]
fn a_static_leader_that_comes_back_is_told_not_to_assign() {
    let Alone { group, joined, .. } = alone(Some("leader"));
    let back = connect().call(&join(&group, "", Some("leader")), 9);
    assert_eq!((back.error_code, back.generation_id), (0, joined.generation_id));
    assert_eq!(back.leader, back.member_id);
    assert!(back.skip_assignment);
    assert_eq!(back.members.len(), 1);
}

#[test]
fn members_leave_one_by_one_or_together_and_static_ones_by_name() {
    let Alone { mut raw, group, joined } = alone(Some("named"));
    let leaving = |member: &str, instance: Option<&str>| {
        MemberIdentity::default().with_member_id(text(member)).with_group_instance_id(instance.map(text))
    };
    let members = vec![
        leaving("nobody", None),
        leaving("wrong", Some("named")),
        leaving("", Some("unknown")),
        leaving("", Some("named")),
    ];
    let request = LeaveGroupRequest::default().with_group_id(GroupId(text(&group))).with_members(members);
    let response = raw.call(&request, 3);
    let errors: Vec<i16> = response.members.iter().map(|member| member.error_code).collect();
    assert_eq!(errors, [UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID, UNKNOWN_MEMBER_ID, 0]);
    assert_eq!(heartbeat(&mut raw, &group, &joined.member_id, Some("named"), 1), UNKNOWN_MEMBER_ID);

    let Alone { mut raw, group, joined } = alone(None);
    let request = LeaveGroupRequest::default()
        .with_group_id(GroupId(text(&group)))
        .with_member_id(joined.member_id.clone());
    assert_eq!(raw.call(&request, 1).error_code, 0);
    assert_eq!(raw.call(&request, 1).error_code, UNKNOWN_MEMBER_ID);
}

#[test]
fn groups_are_described_and_listed_by_state() {
    let Alone { mut raw, group, joined } = alone(None);
    let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text(&group))]);
    for version in 0..=6 {
        let described = raw.call(&request, version).groups.remove(0);
        assert_eq!((described.error_code, described.group_state.as_str()), (0, "Stable"));
        assert_eq!(described.protocol_data.as_str(), "range");
        let member = &described.members[0];
        assert_eq!(member.member_id, joined.member_id);
        assert_eq!((&member.member_assignment[..], member.client_id.as_str()), (&b"mine"[..], "raw"));
    }
    let none = DescribeGroupsRequest::default().with_groups(vec![GroupId(text(&unique("none")))]);
    assert_eq!(raw.call(&none, 5).groups[0].group_state.as_str(), "Dead");
    assert_eq!(raw.call(&none, 6).groups[0].error_code, 69);

    let mut listed = |state: &str| {
        let request = ListGroupsRequest::default().with_states_filter(vec![text(state)]);
        let response = raw.call(&request, 4);
        response.groups.iter().any(|found| found.group_id.as_str() == group)
    };
    assert!(listed("Stable"));
    assert!(!listed("Empty"));
}

#[test]
fn offsets_of_a_topic_in_use_cannot_be_deleted() {
    let (used, unused) = (topic("used", 1, &[]), topic("unused", 1, &[]));
    let group = unique("offset-delete");
    let mut raw = connect();
    find_coordinator(&mut raw, &group, 0);
    let protocol =
        JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(subscription(&used));
    let request = |member: &str| join(&group, member, None).with_protocols(vec![protocol.clone()]);
    let id = raw.call(&request(""), 5).member_id;
    let joined = raw.call(&request(&id), 5);
    raw.call(&sync(&group, &joined, None, &[(&id, "mine")]), 3);
    assert_eq!(commit(&mut raw, &group, &used, &id, None, 1), 0);
    assert_eq!(commit(&mut raw, &group, &unused, &id, None, 1), 0);
    let mut delete = |topic: &str| {
        let partition = OffsetDeleteRequestPartition::default().with_partition_index(0);
        let topic =
            OffsetDeleteRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
        let request =
            OffsetDeleteRequest::default().with_group_id(GroupId(text(&group))).with_topics(vec![topic]);
        let response = raw.call(&request, 0);
        (response.error_code, response.topics[0].partitions[0].error_code)
    };
    assert_eq!(delete(&used), (0, 86));
    assert_eq!(delete(&unused), (0, 0));
    let request = OffsetDeleteRequest::default().with_group_id(GroupId(text(&unique("none"))));
    assert_eq!(raw.call(&request, 0).error_code, 69);
}
