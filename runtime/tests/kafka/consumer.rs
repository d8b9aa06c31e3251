//! Rebalances, and who is a member.

use std::time::{Duration, Instant};

use tidemill::kafka::consumer::{Consumer, ConsumerSpec};
use tidemill::ports::{Group, Source, SourceError, Taken};
use tidemill::record::Offset;

use crate::fetching::{offsets, spec, wait_for};
use crate::harness::{Cluster, Member, at, unique};

/// librdkafka answers nothing once a group has ended, so whoever asks then waits for ever.
#[test]
fn a_static_member_that_closes_at_any_moment_of_being_let_in_is_closed_soon() {
    let cluster = Cluster::get();
    let topic = cluster.topic("hasty", 1);
    let group = unique("hasty");
    for after_ms in 0..60 {
        let hasty = ConsumerSpec { instance_id: Some("hasty".into()), ..spec(&group, &[&topic]) };
        let mut consumer = Consumer::new(&cluster.config(), hasty).unwrap();
        consumer.take(Duration::from_millis(after_ms), &mut Vec::new()).unwrap();
        let began = Instant::now();
        if after_ms % 2 == 0 {
            consumer.leave()
        } else {
            drop(consumer)
        }
        assert!(began.elapsed() < Duration::from_secs(8), "{after_ms} ms: {:?}", began.elapsed());
    }
}

#[test]
fn a_member_keeps_its_partitions_flowing_while_another_joins_and_answers_when_ready() {
    let cluster = Cluster::get();
    let topic = cluster.topic("shared", 4);
    let group = unique("group");
    let mut first = Member::join(&cluster, spec(&group, &[&topic]));
    first.step_until("all partitions", |member| member.running.len() == 4);
    let before = first.consumer.membership();
    assert!(before.is_valid());

    let mut second = Member::join(&cluster, spec(&group, &[&topic]));
    // The first is asked for some of its partitions, and keeps the group waiting.
    let revoked = first.until_revoked(&mut second, Consumer::take, drop);
    assert_eq!(revoked.len(), 2);
    let mut out = Vec::new();
    for _ in 0..20 {
        first.consumer.take(Duration::from_millis(10), &mut out).unwrap();
        second.step();
    }
    assert!(second.running.is_empty(), "given away before the owner answered");
    first.consumer.unassign(&revoked).unwrap();
    first.running.retain(|id| !revoked.contains(id));

    let deadline = Instant::now() + crate::harness::PATIENCE;
    while first.running.len() + second.running.len() < 4 {
        assert!(Instant::now() < deadline, "first: {:?}, second: {:?}", first.events, second.events);
        first.step();
        second.step();
    }
    assert_eq!((first.running.len(), second.running.len()), (2, 2));
    assert!(first.consumer.membership().generation > before.generation, "the new generation is captured");

    for partition in 0..4 {
        cluster.produce_numbers(&topic, partition, 0..50);
    }
    while first.count() + second.count() < 200 {
        assert!(Instant::now() < deadline + crate::harness::PATIENCE);
        first.step();
        second.step();
    }
    for partition in 0..4 {
        let owner = if first.running.contains(&at(0, partition)) { &first } else { &second };
        assert_eq!(owner.records(at(0, partition)).len(), 50);
    }
}

#[test]
fn twelve_partitions_are_four_each_for_three_members_and_three_each_for_four() {
    let cluster = Cluster::get();
    let topic = cluster.topic("even", 12);
    let group = unique("group");
    let mut members: Vec<Member> = Vec::new();
    for (count, share) in [(3, 4), (4, 3)] {
        while members.len() < count {
            members.push(Member::join(&cluster, spec(&group, &[&topic])));
        }
        let deadline = Instant::now() + crate::harness::PATIENCE;
        while members.iter().any(|member| member.running.len() != share) {
            let shares: Vec<_> = members.iter().map(|member| member.running.len()).collect();
            assert!(Instant::now() < deadline, "{shares:?}");
            members.iter_mut().for_each(Member::step);
        }
    }
}

#[test]
fn a_static_member_that_restarts_takes_its_partitions_back_without_a_rebalance() {
    let cluster = Cluster::get();
    let topic = cluster.topic("static", 4);
    let group = unique("group");
    // No machine is so slow that a session ends by itself.
    let mut config = cluster.config();
    config.limits.session_timeout = Duration::from_secs(30);
    config.properties.insert("heartbeat.interval.ms".to_owned(), "1000".to_owned());
    let join = |name: &str| {
        let spec = ConsumerSpec { instance_id: Some(name.to_owned()), ..spec(&group, &[&topic]) };
        Member::join_with(&config, spec)
    };
    let (mut a, mut b) = (join("a"), join("b"));
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while (a.running.len(), b.running.len()) != (2, 2) {
        assert!(Instant::now() < deadline, "a: {:?}, b: {:?}", a.events, b.events);
        a.step();
        b.step();
    }
    let (mine, others) = (a.running.clone(), b.running.clone());
    drop(a);
    b.events.clear();

    let begun = Instant::now();
    let mut a = join("a");
    while a.running.len() < 2 {
        assert!(Instant::now() < deadline + crate::harness::PATIENCE, "a: {:?}", a.events);
        a.step();
        b.step();
    }
    println!("a restarted static member had its partitions back after {:?}", begun.elapsed());
    let sorted = |mut list: Vec<_>| {
        list.sort();
        list
    };
    assert_eq!(sorted(a.running.clone()), sorted(mine));
    assert_eq!(sorted(b.running.clone()), sorted(others));
    assert!(b.events.iter().all(|event| !event.contains('/')), "b lost or got partitions: {:?}", b.events);

    // Leaving, unlike closing, gives them up at once: before the session could expire.
    let begun = Instant::now();
    a.consumer.leave();
    b.step_until("all partitions", |member| member.running.len() == 4);
    println!("a left member's partitions were taken over after {:?}", begun.elapsed());
    assert!(begun.elapsed() < config.limits.session_timeout);
}

#[test]
fn several_inputs_are_assigned_together_by_partition_number() {
    let cluster = Cluster::get();
    let (left, right) = (cluster.topic("left", 4), cluster.topic("right", 4));
    let group = unique("group");
    let mut a = Member::join(&cluster, spec(&group, &[&left, &right]));
    a.step_until("all partitions", |member| member.running.len() == 8);
    let mut b = Member::join(&cluster, spec(&group, &[&left, &right]));
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while (a.running.len(), b.running.len()) != (4, 4) {
        assert!(Instant::now() < deadline, "a: {:?}, b: {:?}", a.events, b.events);
        a.step();
        b.step();
    }
    for id in a.running.iter().chain(&b.running) {
        let owner = if a.running.contains(id) { &a.running } else { &b.running };
        assert!(owner.contains(&at(1 - id.input, id.partition)), "partition {} is split", id.partition);
    }
    cluster.produce_numbers(&right, 3, 0..10);
    while a.count() + b.count() < 10 {
        assert!(Instant::now() < deadline + crate::harness::PATIENCE);
        a.step();
        b.step();
    }
    let owner = if a.running.contains(&at(1, 3)) { &a } else { &b };
    assert_eq!(owner.records(at(1, 3)).len(), 10);
}

#[test]
fn an_unknown_input_is_refused_by_name() {
    let cluster = Cluster::get();
    let topic = unique("nowhere");
    let mut consumer = Consumer::new(&cluster.config(), spec(&unique("group"), &[&topic])).unwrap();
    let error = crate::harness::eventually("a refusal", || {
        consumer.take(Duration::from_millis(50), &mut Vec::new()).err()
    });
    assert!(matches!(&error, SourceError::Refused(reason) if reason.contains(&topic)), "{error}");
}

#[test]
fn a_member_that_did_not_poll_is_told_that_its_partitions_are_lost_and_joins_again() {
    let cluster = Cluster::get();
    let topic = cluster.topic("lost", 2);
    let mut config = cluster.config();
    config.limits.poll_interval = config.limits.session_timeout;
    let group = unique("group");
    let mut consumer = Consumer::new(&config, spec(&group, &[&topic])).unwrap();
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(at(0, 0), Offset(0)), (at(0, 1), Offset(0))]).unwrap();
    consumer.start(at(0, 0), Offset(0)).unwrap();
    let before = consumer.membership();

    // The group gives up on a member that does nothing; the client's own threads notice.
    let admin = cluster.admin();
    crate::harness::eventually("the group to be empty", || {
        admin.describe_group(&group).ok().filter(|group| group.members.is_empty())
    });
    out.clear();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Lost(_))));
    let Some(Taken::Lost(lost)) = out.pop() else { unreachable!() };
    assert_eq!(lost.len(), 2);
    assert!(!consumer.membership().is_valid(), "{:?}", consumer.membership());
    consumer.unassign(&lost).unwrap();

    out.clear();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    assert!(consumer.membership().is_valid());
    assert_ne!(consumer.membership().member_id, before.member_id);
    consumer.assign(&[(at(0, 0), Offset(0)), (at(0, 1), Offset(0))]).unwrap();
    consumer.start(at(0, 1), Offset(0)).unwrap();
    cluster.produce_numbers(&topic, 1, 0..3);
    wait_for(&mut consumer, &mut out, |out| offsets(out) == [0, 1, 2]);
}

#[test]
fn a_consumer_that_goes_away_owing_an_answer_does_not_hang() {
    let cluster = Cluster::get();
    let topic = cluster.topic("owing", 2);
    for instance_id in [None, Some("owing-0".to_owned())] {
        for leave in [false, true] {
            let spec = ConsumerSpec { instance_id: instance_id.clone(), ..spec(&unique("group"), &[&topic]) };
            let mut consumer = Consumer::new(&cluster.config(), spec).unwrap();
            let mut out = Vec::new();
            wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
            let begun = Instant::now();
            match leave {
                true => consumer.leave(),
                false => drop(consumer),
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{leave}: {:?}", begun.elapsed());
        }
    }
}
