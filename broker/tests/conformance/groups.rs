//! Groups as librdkafka uses them: sharing, moving and keeping partitions.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::admin::AdminOptions;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::cluster::{PATIENCE, Seen, admin, block_on, client, produce, producer, topic, unique};

/// Keeps count of what a rebalance did.
#[derive(Default)]
struct Log {
    assigned: Mutex<Vec<usize>>,
    revoked: Mutex<Vec<usize>>,
}

impl ClientContext for Log {}

impl ConsumerContext for Log {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => self.assigned.lock().expect("lock").push(list.count()),
            Rebalance::Revoke(list) => self.revoked.lock().expect("lock").push(list.count()),
            Rebalance::Error(error) => panic!("rebalance: {error}"),
        }
    }
}

type Member = BaseConsumer<Log>;

fn member(group: &str, topic: &str, settings: &[(&str, &str)]) -> Member {
    let mut config = client();
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "100")
        .set("fetch.wait.max.ms", "50");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    let consumer: Member = config.create_with_context(Log::default()).expect("is created");
    consumer.subscribe(&[topic]).expect("subscribes");
    consumer
}

fn held(member: &Member) -> Vec<i32> {
    let assignment = member.assignment().expect("is known");
    let mut partitions: Vec<i32> = assignment.elements().iter().map(|element| element.partition()).collect();
    partitions.sort_unstable();
    partitions
}

/// Polls all members until the condition holds; returns the records they got meanwhile.
fn poll_until(members: &[&Member], what: &str, mut condition: impl FnMut() -> bool) -> Vec<Seen> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        for member in members {
            if let Some(Ok(message)) = member.poll(Duration::from_millis(10)) {
                seen.push(Seen::of(&message));
            }
        }
    }
    seen
}

#[test]
fn range_members_share_the_partitions_and_take_over_from_one_that_leaves() {
    let topic = topic("range", 4, &[]);
    let group = unique("range");
    let settings = [("partition.assignment.strategy", "range")];
    let first = member(&group, &topic, &settings);
    poll_until(&[&first], "the first has all", || held(&first) == [0, 1, 2, 3]);
    let second = member(&group, &topic, &settings);
    poll_until(&[&first, &second], "they share", || held(&first).len() == 2 && held(&second).len() == 2);
    drop(second);
    poll_until(&[&first], "the first has all again", || held(&first) == [0, 1, 2, 3]);
}

#[test]
fn cooperative_members_give_up_only_what_moves() {
    let topic = topic("cooperative", 4, &[]);
    let group = unique("cooperative");
    let settings = [("partition.assignment.strategy", "cooperative-sticky")];
    let first = member(&group, &topic, &settings);
    poll_until(&[&first], "the first has all", || held(&first).len() == 4);
    let second = member(&group, &topic, &settings);
    poll_until(&[&first, &second], "they share", || held(&first).len() == 2 && held(&second).len() == 2);
    let revoked = first.context().revoked.lock().expect("lock").clone();
    assert_eq!(revoked.iter().sum::<usize>(), 2, "only what moved was revoked: {revoked:?}");
}

#[test]
fn a_member_that_dies_is_replaced_when_its_session_ends() {
    let topic = topic("session", 2, &[]);
    let group = unique("session");
    let first = member(&group, &topic, &[]);
    // Static, so that going away says nothing to the group.
    let second = member(&group, &topic, &[("group.instance.id", "gone"), ("session.timeout.ms", "500")]);
    poll_until(&[&first, &second], "they share", || held(&first).len() == 1 && held(&second).len() == 1);
    drop(second);
    poll_until(&[&first], "the first has all", || held(&first).len() == 2);
}

#[test]
fn a_static_member_gets_its_partitions_back_without_a_rebalance() {
    let topic = topic("static", 4, &[]);
    let group = unique("static");
    // The callbacks of the first member until the second has its share. Range: all, none of it, its
    // half. Cooperative: all, without the other's half, nothing new, and nothing new in the next
    // generation, which gives that half to the other.
    for (strategy, callbacks) in [("range", 3), ("cooperative-sticky", 4)] {
        let group = format!("{group}-{strategy}");
        let settings = |instance| {
            [
                ("partition.assignment.strategy", strategy),
                ("group.instance.id", instance),
                ("session.timeout.ms", "20000"),
            ]
        };
        let stays = member(&group, &topic, &settings("stays"));
        poll_until(&[&stays], "the first has all", || held(&stays).len() == 4);
        let restarts = member(&group, &topic, &settings("restarts"));
        poll_until(&[&stays, &restarts], "they share", || {
            rebalances(&stays) == callbacks && held(&stays).len() == 2 && held(&restarts).len() == 2
        });
        let partitions = held(&restarts);
        drop(restarts);
        let started = Instant::now();
        let again = member(&group, &topic, &settings("restarts"));
        poll_until(&[&stays, &again], "it is back", || held(&again) == partitions);
        // Before the session has ended, that is.
        assert!(started.elapsed() < Duration::from_secs(20), "{strategy}: took {:?}", started.elapsed());
        assert_eq!(rebalances(&stays), callbacks, "{strategy}: the other member saw nothing");
    }
}

fn rebalances(member: &Member) -> usize {
    let context = member.context();
    context.assigned.lock().expect("lock").len() + context.revoked.lock().expect("lock").len()
}

#[test]
fn a_group_goes_on_where_it_committed() {
    let topic = topic("resume", 1, &[]);
    let group = unique("resume");
    produce(&producer(&[]), &topic, 0, &[("k", "a"), ("k", "b"), ("k", "c")]);
    let first = member(&group, &topic, &[]);
    poll_until(&[&first], "it has its partition", || held(&first) == [0]);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(2)).expect("is valid");
    first.commit(&list, CommitMode::Sync).expect("is committed");
    drop(first);
    let second = member(&group, &topic, &[]);
    let deadline = Instant::now() + PATIENCE;
    let next = loop {
        assert!(Instant::now() < deadline, "no record");
        if let Some(Ok(message)) = second.poll(Duration::from_millis(100)) {
            break message.offset();
        }
    };
    assert_eq!(next, 2);
}

#[test]
fn groups_are_listed_and_only_empty_ones_deleted() {
    let topic = topic("listed", 1, &[]);
    let group = unique("listed");
    let first = member(&group, &topic, &[]);
    poll_until(&[&first], "it has all", || held(&first).len() == 1);
    let list = first.fetch_group_list(Some(&group), PATIENCE).expect("is answered");
    let found = &list.groups()[0];
    assert_eq!((found.state(), found.protocol_type(), found.members().len()), ("Stable", "consumer", 1));
    assert!(found.members()[0].assignment().is_some_and(|bytes| !bytes.is_empty()));

    let admin = admin();
    let delete = || block_on(admin.delete_groups(&[&group], &AdminOptions::new())).expect("is answered");
    assert!(delete()[0].is_err(), "the group has a member");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&topic, 0, Offset::Offset(0)).expect("is valid");
    first.commit(&offsets, CommitMode::Sync).expect("is committed");
    first.unsubscribe();
    drop(first);
    assert!(delete()[0].is_ok(), "the group is empty");
    assert!(delete()[0].is_err(), "the group is gone");
}
