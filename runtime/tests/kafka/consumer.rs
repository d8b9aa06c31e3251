//! Batches, rebalances, positions.

use std::time::{Duration, Instant};

use tidemill::kafka::consumer::{Consumer, ConsumerSpec};
use tidemill::kafka::tools::Row;
use tidemill::ports::{Group, Source, SourceError, Taken};
use tidemill::record::Offset;
use tidemill::record::headers;

use crate::harness::{Cluster, Member, at, now_ms, row, unique};
use crate::sink;

fn spec(group: &str, topics: &[&str]) -> ConsumerSpec {
    ConsumerSpec::new(group, topics.iter().map(|&topic| topic.to_owned()).collect())
}

#[test]
fn batches_keep_order_timestamps_headers_and_nulls() {
    let cluster = Cluster::get();
    let topic = cluster.topic("rows", 1);
    let t = now_ms();
    let text = |value: &str| Some(value.as_bytes().to_vec());
    let rows = [
        Row { key: text("k"), value: text("v"), timestamp_ms: Some(t), ..Row::default() },
        Row { key: None, value: text(""), timestamp_ms: Some(t + 2), ..Row::default() },
        Row { key: text(""), value: None, timestamp_ms: Some(t + 1), ..Row::default() },
        Row {
            key: text("h"),
            value: text("x"),
            headers: vec![("a".into(), text("1")), ("b".into(), None), ("a".into(), text(""))],
            timestamp_ms: Some(t + 9),
            ..Row::default()
        },
    ];
    cluster.produce(&topic, rows);

    let mut member =
        Member::join(&cluster, ConsumerSpec { wants_headers: true, ..spec(&unique("group"), &[&topic]) });
    member.step_until("four records", |member| member.count() == 4);
    let keys: Vec<_> = member.batches.iter().flat_map(|b| b.keys.iter()).collect();
    let values: Vec<_> = member.batches.iter().flat_map(|b| b.values.iter()).collect();
    let times: Vec<_> = member.batches.iter().flat_map(|b| b.timestamps.clone()).collect();
    let lists: Vec<_> = member.batches.iter().flat_map(|b| b.headers.iter()).collect();
    assert_eq!(keys, [Some(&b"k"[..]), None, Some(b""), Some(b"h")]);
    assert_eq!(values, [Some(&b"v"[..]), Some(b""), None, Some(b"x")]);
    assert_eq!(times, [t, t + 2, t + 1, t + 9]);
    assert_eq!(lists[..3], [None; 3]);
    assert_eq!(
        headers::decode(lists[3].unwrap()).unwrap(),
        [("a", Some(&b"1"[..])), ("b", None), ("a", Some(b""))],
    );
}

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
fn a_batch_respects_its_limits_and_loses_nothing() {
    let cluster = Cluster::get();
    let topic = cluster.topic("limits", 2);
    cluster.produce_numbers(&topic, 0, 0..3_000);
    cluster.produce_numbers(&topic, 1, 0..3_000);
    let spec = ConsumerSpec { batch_records: 100, batch_bytes: 400, ..spec(&unique("group"), &[&topic]) };
    let mut member = Member::join(&cluster, spec);
    member.step_until("6,000 records", |member| member.count() == 6_000);
    for partition in 0..2 {
        let expected: Vec<_> = (0..3_000).map(|n| (n, n.to_string())).collect();
        assert_eq!(member.records(at(0, partition)), expected);
    }
    assert!(member.batches.iter().all(|batch| batch.len() <= 100 && batch.bytes() <= 400));
}

#[test]
fn a_partition_flows_only_between_start_and_stop_and_never_from_below() {
    let cluster = Cluster::get();
    let topic = cluster.topic("flow", 1);
    cluster.produce_numbers(&topic, 0, 0..100);
    let mut consumer = Consumer::new(&cluster.config(), spec(&unique("group"), &[&topic])).unwrap();
    let id = at(0, 0);
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(id, Offset(10))]).unwrap();

    // Assigned but not started: whatever was fetched meanwhile stays inside.
    stays_quiet(&mut consumer, Duration::from_millis(300));
    assert_eq!(consumer.position(id), None);

    for start in [40, 0, 90] {
        consumer.start(id, Offset(start)).unwrap();
        assert_eq!(consumer.position(id), None, "nothing was taken since the start");
        out.clear();
        wait_for(&mut consumer, &mut out, |out| offsets(out).last() == Some(&99));
        assert_eq!(offsets(&out), (start as i64..100).collect::<Vec<_>>());
        assert_eq!(consumer.position(id), Some(Offset(100)));
    }

    consumer.stop(id).unwrap();
    cluster.produce_numbers(&topic, 0, 100..200);
    stays_quiet(&mut consumer, Duration::from_millis(300));
    out.clear();
    consumer.start(id, Offset(150)).unwrap();
    wait_for(&mut consumer, &mut out, |out| offsets(out).last() == Some(&199));
    assert_eq!(offsets(&out), (150..200).collect::<Vec<_>>());
}

/// librdkafka's thread of a broker that has nothing to fetch looks again after a second.
#[test]
fn a_partition_is_read_as_soon_as_it_starts_however_long_it_was_stopped() {
    let cluster = Cluster::get();
    let topic = cluster.topic("prompt", 1);
    cluster.produce_numbers(&topic, 0, 0..10);
    let mut consumer = Consumer::new(&cluster.config(), spec(&unique("group"), &[&topic])).unwrap();
    let id = at(0, 0);
    let mut out = Vec::new();
    wait_for(&mut consumer, &mut out, |out| matches!(out.last(), Some(Taken::Assigned(_))));
    consumer.assign(&[(id, Offset(0))]).unwrap();
    let mut waited = Vec::new();
    // To the log's start librdkafka seeks in another way.
    for start in [0, 5, 0, 5, 0] {
        // The last fetch is answered after half a second; then the thread has 0.8 s of its second left.
        stays_quiet(&mut consumer, Duration::from_millis(700));
        out.clear();
        let began = Instant::now();
        consumer.start(id, Offset(start)).unwrap();
        wait_for(&mut consumer, &mut out, |out| !offsets(out).is_empty());
        waited.push(began.elapsed());
        consumer.stop(id).unwrap();
    }
    assert!(waited.iter().sum::<Duration>() < Duration::from_millis(1_500), "{waited:?}");
}

/// Takes for that long, and nothing comes out.
fn stays_quiet(consumer: &mut Consumer, time: Duration) {
    let mut out = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        consumer.take(Duration::from_millis(20), &mut out).unwrap();
    }
    assert!(out.is_empty(), "{out:?}");
}

fn offsets(out: &[Taken]) -> Vec<i64> {
    let batches = out.iter().filter_map(|taken| match taken {
        Taken::Batch(batch) => Some(batch),
        _ => None,
    });
    batches.flat_map(|batch| batch.offsets.clone()).collect()
}

fn wait_for(consumer: &mut Consumer, out: &mut Vec<Taken>, done: impl Fn(&[Taken]) -> bool) {
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while !done(out) {
        assert!(Instant::now() < deadline, "not in time: {out:?}");
        consumer.take(Duration::from_millis(50), out).unwrap();
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
    let mut out = Vec::new();
    let deadline = Instant::now() + crate::harness::PATIENCE;
    let revoked = loop {
        assert!(Instant::now() < deadline, "no revocation");
        first.consumer.take(Duration::from_millis(20), &mut out).unwrap();
        second.step();
        match out.pop() {
            Some(Taken::Revoked(partitions)) => break partitions,
            Some(Taken::Assigned(partitions)) => {
                assert!(partitions.is_empty());
                first.consumer.assign(&[]).unwrap();
            }
            _ => {}
        }
    };
    assert_eq!(revoked.len(), 2);
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
    let named = |name: &str| ConsumerSpec { instance_id: Some(name.to_owned()), ..spec(&group, &[&topic]) };
    let mut a = Member::join(&cluster, named("a"));
    let mut b = Member::join(&cluster, named("b"));
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
    let mut a = Member::join(&cluster, named("a"));
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
    assert!(begun.elapsed() < cluster.config().limits.session_timeout);
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
fn the_position_passes_transaction_markers_and_aborted_records() {
    let cluster = Cluster::get();
    let topic = cluster.topic("markers", 1);
    let mut member = Member::join(&cluster, spec(&unique("group"), &[&topic]));
    member.step_until("the partition", |member| member.running.len() == 1);
    let id = at(0, 0);
    assert_eq!(member.consumer.position(id), None);

    // A record and its commit marker: the end is 2.
    sink::transact(&cluster, &topic, &["a"], true);
    member.step_until("the marker", |member| member.consumer.position(id) == Some(Offset(2)));
    assert_eq!(member.records(id), [(0, "a".to_owned())]);

    // Two aborted records and a marker: nothing comes out, the end is 5.
    sink::transact(&cluster, &topic, &["b", "c"], false);
    member.step_until("the abort marker", |member| member.consumer.position(id) == Some(Offset(5)));
    assert_eq!(member.records(id).len(), 1);

    let end = cluster.admin().offsets(&[(topic.clone(), 0)], tidemill::kafka::admin::At::End).unwrap();
    assert_eq!(end, [Offset(5)]);

    // Started among markers only, the position still reaches the end.
    member.consumer.start(id, Offset(1)).unwrap();
    member.step_until("the end again", |member| member.consumer.position(id) == Some(Offset(5)));
    assert_eq!(member.records(id).len(), 1);
}

#[test]
fn an_offset_out_of_range_stops_the_partition_until_it_is_started_anew() {
    let cluster = Cluster::get();
    let topic = cluster.topic("range", 2);
    cluster.produce_numbers(&topic, 0, 0..10);
    cluster.produce_numbers(&topic, 1, 0..10);
    cluster.admin().delete_records(&topic, 0, Offset(5)).unwrap();

    let mut member = Member::join(&cluster, spec(&unique("group"), &[&topic]));
    member.step_until("a failure and the other partition", |member| {
        let explained =
            |event: &String| event.starts_with("failed 0") && event.contains("offset 0, which is next");
        member.events.iter().any(explained) && member.count() == 10
    });
    assert_eq!(member.records(at(0, 0)), []);
    assert_eq!(member.consumer.position(at(0, 0)), None);

    member.consumer.start(at(0, 0), Offset(5)).unwrap();
    member.step_until("the rest", |member| member.count() == 15);
    assert_eq!(member.records(at(0, 0))[0].0, 5);
    cluster.produce(&topic, [row(1, "more")]);
    member.step_until("one more", |member| member.records(at(0, 1)).len() == 11);
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
