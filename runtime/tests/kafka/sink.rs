//! Commits, with transactions and without: what becomes visible when, and what each refusal is called.

use std::time::{Duration, Instant};

use tidemill::config::node::KafkaClient;
use tidemill::effects::{Emissions, Emitted};
use tidemill::kafka::admin::NewTopic;
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::consumer::ConsumerSpec;
use tidemill::kafka::epochs::Epochs;
use tidemill::kafka::recovery::{LogReader, Logs};
use tidemill::kafka::sink::{SinkSpec, plain, transactional};
use tidemill::kafka::tools::{self, ConsumeSpec, From};
use tidemill::ports::{
    ChangelogRows, CommitError, End, Group, Log, Membership, Produce, Recovery, Sink, SourceError, TaskOffset,
};
use tidemill::record::Offset;

use crate::harness::{Cluster, Member, at, now_ms, unique};

by_either!(
    records_changelog_and_offsets_become_visible_together,
    emissions_keep_their_timestamps_and_headers,
    an_aborted_transaction_leaves_nothing,
    a_stale_generation_is_refused_as_such_and_the_sink_goes_on_after_the_abort,
    a_fenced_producer_cannot_tell_what_became_of_its_commit,
    a_record_that_the_topic_refuses_is_named_and_the_sink_goes_on_after_the_abort,
    f14_an_abort_right_after_the_first_record_neither_hangs_nor_leaves_anything,
    a_commit_without_offsets_is_refused_because_nothing_would_fence_it,
    commits_take_milliseconds,
    a_plain_sink_writes_the_position_record_last_and_stamps_every_row,
    a_plain_commit_is_there_when_it_ends_whatever_acknowledgement_it_waits_for,
    emissions_of_a_plain_sink_keep_their_timestamps_and_headers,
    a_refused_record_is_named_and_closes_no_plain_commit,
    a_refused_position_record_closes_nothing_unless_others_are_sent_with_it,
);

/// A transactional sink, the node's own or librdkafka's.
pub fn sink(
    config: &KafkaConfig,
    by: KafkaClient,
    transactional_id: &str,
    spec: SinkSpec,
) -> Result<Box<dyn Sink>, SourceError> {
    let config = KafkaConfig { client: Some(by), ..config.clone() };
    transactional(&config, transactional_id, spec, Epochs::default())
}

/// A sink without transactions, the node's own or librdkafka's.
fn plain_sink(config: &KafkaConfig, by: KafkaClient, spec: SinkSpec) -> Box<dyn Sink> {
    plain(&KafkaConfig { client: Some(by), ..config.clone() }, spec).unwrap()
}

pub fn sink_spec(outputs: &[&str], changelog: Option<&str>, inputs: &[&str]) -> SinkSpec {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    SinkSpec {
        outputs: owned(outputs).into_iter().map(Some).collect(),
        changelog: changelog.map(str::to_owned),
        inbox: None,
        inputs: owned(inputs),
        batch_bytes: 1_000_000,
    }
}

pub fn emissions(values: &[&str], partition: i32) -> Emitted {
    columns(values, partition).into()
}

/// The same while they can be changed.
pub fn columns(values: &[&str], partition: i32) -> Emissions {
    let now = now_ms();
    let mut rows = Emissions::default();
    for (index, value) in values.iter().enumerate() {
        rows.sources.push(index as u32);
        rows.outputs.push(0);
        rows.partitions.push(partition);
        rows.timestamps.push(now + index as i64);
        rows.keys.push(Some(value.as_bytes()));
        rows.values.push(Some(value.as_bytes()));
        rows.headers.push(None);
    }
    rows
}

pub fn changelog(partition: i32, rows: &[(&str, Option<&str>)]) -> ChangelogRows {
    let mut log = ChangelogRows { partition, ..ChangelogRows::default() };
    for (key, value) in rows {
        log.keys.push(Some(key.as_bytes()));
        log.values.push(value.map(str::as_bytes));
    }
    log
}

/// Values that a reader sees, in offset order of partition 0.
pub fn visible(cluster: &Cluster, topic: &str, committed: bool) -> Vec<String> {
    let spec = ConsumeSpec {
        topic: topic.to_owned(),
        partitions: Vec::new(),
        from: From::Beginning,
        max: None,
        committed,
        follow: false,
    };
    let mut values = Vec::new();
    tools::consume(&cluster.config(), &spec, &mut |record| {
        values.extend(record.map(|record| String::from_utf8(record.value.unwrap_or_default()).unwrap()));
        true
    })
    .unwrap();
    values
}

/// One transaction of its own producer, without offsets: only a sink that fences may commit those,
/// so this goes through a group of one member.
pub fn transact(cluster: &Cluster, topic: &str, values: &[&str], commit: bool) {
    let (input, group) = (cluster.topic("feed", 1), unique("feeder"));
    let mut member = Member::join(cluster, ConsumerSpec::new(&group, vec![input.clone()]));
    member.step_until("the partition", |member| member.running.len() == 1);
    let mut sink =
        sink(&cluster.config(), KafkaClient::Own, &unique("tx"), sink_spec(&[topic], None, &[&input]))
            .unwrap();
    sink.begin().unwrap();
    sink.produce(Produce::Emissions(&emissions(values, 0))).unwrap();
    sink.send_offsets(&[task_offset(1)], &member.consumer.membership()).unwrap();
    sink.end(if commit { End::Commit } else { End::Abort }).unwrap();
}

fn task_offset(offset: u64) -> TaskOffset {
    TaskOffset { partition: at(0, 0), offset: Offset(offset), metadata: String::new() }
}

/// A deployment of one task: input, output, changelog, a member of the group and a sink.
struct Deployment {
    input: String,
    output: String,
    changelog: String,
    group: String,
    member: Member,
    sink: Box<dyn Sink>,
}

fn deployment(cluster: &Cluster, by: KafkaClient) -> Deployment {
    let (input, output) = (cluster.topic("in", 1), cluster.topic("out", 1));
    let log = NewTopic::new(unique("changelog"), 1)
        .with("cleanup.policy", "compact")
        .with("message.timestamp.type", "LogAppendTime");
    let log = cluster.topic_with(log);
    let group = unique("group");
    let mut member = Member::join(cluster, ConsumerSpec::new(&group, vec![input.clone()]));
    member.step_until("the partition", |member| member.running.len() == 1);
    let spec = sink_spec(&[&output], Some(&log), &[&input]);
    let sink = sink(&cluster.config(), by, &unique("tx"), spec).unwrap();
    Deployment { input, output, changelog: log, group, member, sink }
}

fn committed(cluster: &Cluster, d: &Deployment) -> Option<(u64, String)> {
    let mut reader =
        LogReader::new(&cluster.config(), &d.group, vec![d.input.clone()], Logs::changelog(None)).unwrap();
    let found = reader.committed(&[at(0, 0)]).unwrap().remove(0);
    found.map(|committed| (committed.offset.0, committed.metadata))
}

fn records_changelog_and_offsets_become_visible_together(by: KafkaClient) {
    let cluster = Cluster::get();
    let mut d = deployment(&cluster, by);
    d.sink.begin().unwrap();
    d.sink.produce(Produce::Emissions(&emissions(&["a", "b"], -1))).unwrap();
    d.sink.produce(Produce::Changelog(&changelog(0, &[("k", Some("1")), ("gone", None)]))).unwrap();
    let offset = TaskOffset { metadata: "revision=3".to_owned(), ..task_offset(7) };
    d.sink.send_offsets(&[offset], &d.member.consumer.membership()).unwrap();

    assert_eq!(visible(&cluster, &d.output, true), [""; 0]);
    assert_eq!(visible(&cluster, &d.output, false), ["a", "b"]);
    let (admin, input) = (cluster.admin(), [(d.input.clone(), 0)]);
    assert!(admin.stable_group_offsets(&d.group, &input).is_err(), "none is known, and none is not");
    d.sink.end(End::Commit).unwrap();

    [&d.output, &d.changelog].into_iter().for_each(|topic| cluster.settle(topic));
    assert_eq!(visible(&cluster, &d.output, true), ["a", "b"]);
    assert_eq!(visible(&cluster, &d.changelog, true), ["1", ""]);
    assert_eq!(committed(&cluster, &d), Some((7, "revision=3".to_owned())));
    let stable = admin.stable_group_offsets(&d.group, &input).unwrap();
    assert_eq!(stable.iter().map(|row| row.offset).collect::<Vec<_>>(), [Some(Offset(7))]);
}

fn emissions_keep_their_timestamps_and_headers(by: KafkaClient) {
    let cluster = Cluster::get();
    let mut d = deployment(&cluster, by);
    let rows = with_headers();
    d.sink.begin().unwrap();
    d.sink.produce(Produce::Emissions(&rows)).unwrap();
    d.sink.send_offsets(&[task_offset(1)], &d.member.consumer.membership()).unwrap();
    d.sink.end(End::Commit).unwrap();
    assert_kept(&cluster, &d.output, &rows);
}

/// Two emissions, the first with headers.
fn with_headers() -> Emitted {
    let mut rows = columns(&["a", "b"], -1);
    let list = tidemill::record::headers::encode([("ce-id", Some(&b"7"[..])), ("none", None)].into_iter());
    rows.headers = Default::default();
    rows.headers.push(Some(&list));
    rows.headers.push(None);
    rows.into()
}

/// They are what a topic has, with all that belongs to them.
fn assert_kept(cluster: &Cluster, topic: &str, rows: &Emitted) {
    let spec = ConsumeSpec {
        topic: topic.to_owned(),
        partitions: vec![0],
        from: From::Last(3),
        max: Some(2),
        committed: true,
        follow: true,
    };
    let mut seen = Vec::new();
    tools::consume(&cluster.config(), &spec, &mut |record| {
        seen.extend(record.map(|record| (record.timestamp_ms, record.headers)));
        true
    })
    .unwrap();
    let timestamps: Vec<i64> = rows.rows().map(|row| row.timestamp).collect();
    assert_eq!(
        seen[0],
        (timestamps[0], vec![("ce-id".to_owned(), Some(b"7".to_vec())), ("none".to_owned(), None)])
    );
    assert_eq!(seen[1], (timestamps[1], vec![]));
}

fn an_aborted_transaction_leaves_nothing(by: KafkaClient) {
    let cluster = Cluster::get();
    let mut d = deployment(&cluster, by);
    d.sink.begin().unwrap();
    d.sink.produce(Produce::Emissions(&emissions(&["a"], -1))).unwrap();
    d.sink.send_offsets(&[task_offset(7)], &d.member.consumer.membership()).unwrap();
    d.sink.end(End::Abort).unwrap();
    assert_eq!(visible(&cluster, &d.output, true), [""; 0]);
    assert_eq!(committed(&cluster, &d), None);
}

fn a_stale_generation_is_refused_as_such_and_the_sink_goes_on_after_the_abort(by: KafkaClient) {
    let cluster = Cluster::get();
    let mut d = deployment(&cluster, by);
    let stale = d.member.consumer.membership();
    // A second member starts a new generation.
    let mut other = Member::join(&cluster, ConsumerSpec::new(&d.group, vec![d.input.clone()]));
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while d.member.consumer.membership().generation == stale.generation
        || d.member.running.len() + other.running.len() != 1
    {
        assert!(Instant::now() < deadline, "{:?} {:?}", d.member.events, other.events);
        d.member.step();
        other.step();
    }
    let nobody = Membership { member_id: "nobody".to_owned(), ..d.member.consumer.membership() };
    let outsider = Membership { generation: -1, ..stale.clone() };
    for refused in [stale, nobody, outsider] {
        d.sink.begin().unwrap();
        d.sink.produce(Produce::Emissions(&emissions(&["lost"], -1))).unwrap();
        let answer = d.sink.send_offsets(&[task_offset(7)], &refused);
        assert!(matches!(answer, Err(CommitError::Generation(_))), "{refused:?}: {answer:?}");
        d.sink.end(End::Abort).unwrap();
    }
    let owner = if d.member.running.is_empty() { &other } else { &d.member };
    d.sink.begin().unwrap();
    d.sink.produce(Produce::Emissions(&emissions(&["kept"], -1))).unwrap();
    d.sink.send_offsets(&[task_offset(8)], &owner.consumer.membership()).unwrap();
    d.sink.end(End::Commit).unwrap();
    cluster.settle(&d.output);
    assert_eq!(visible(&cluster, &d.output, true), ["kept"]);
    assert_eq!(committed(&cluster, &d).unwrap().0, 8);
}

fn a_fenced_producer_cannot_tell_what_became_of_its_commit(by: KafkaClient) {
    let cluster = Cluster::get();
    let d = deployment(&cluster, by);
    let id = unique("tx");
    let spec = sink_spec(&[&d.output], None, &[&d.input]);
    let mut old = sink(&cluster.config(), by, &id, spec.clone()).unwrap();
    old.begin().unwrap();
    old.produce(Produce::Emissions(&emissions(&["zombie"], -1))).unwrap();
    old.send_offsets(&[task_offset(7)], &d.member.consumer.membership()).unwrap();
    let mut new = sink(&cluster.config(), by, &id, spec).unwrap();
    let answer = old.end(End::Commit);
    assert!(matches!(answer, Err(CommitError::Indefinite(_))), "{answer:?}");

    new.begin().unwrap();
    new.produce(Produce::Emissions(&emissions(&["heir"], -1))).unwrap();
    new.send_offsets(&[task_offset(8)], &d.member.consumer.membership()).unwrap();
    new.end(End::Commit).unwrap();
    drop(old);
    cluster.settle(&d.output);
    assert_eq!(visible(&cluster, &d.output, true), ["heir"]);
    assert_eq!(committed(&cluster, &d).unwrap().0, 8);
}

fn a_record_that_the_topic_refuses_is_named_and_the_sink_goes_on_after_the_abort(by: KafkaClient) {
    let cluster = Cluster::get();
    let mut d = deployment(&cluster, by);
    let small = cluster.topic_with(NewTopic::new(unique("small"), 1).with("max.message.bytes", 2_000));
    let compacted =
        cluster.topic_with(NewTopic::new(unique("compacted"), 1).with("cleanup.policy", "compact"));
    let large = "x".repeat(5_000);
    let mut keyless = columns(&["v"], -1);
    keyless.keys = Default::default();
    keyless.keys.push(None);
    let cases = [
        (&small, emissions(&["fits", &large], -1)),
        (&compacted, keyless.into()),
        (&small, emissions(&["p"], 9)),
    ];
    for (topic, rows) in cases {
        let spec = sink_spec(&[topic], None, &[&d.input]);
        d.sink = sink(&cluster.config(), by, &unique("tx"), spec).unwrap();
        d.sink.begin().unwrap();
        let answer = d
            .sink
            .produce(Produce::Emissions(&rows))
            .and_then(|()| d.sink.send_offsets(&[task_offset(7)], &d.member.consumer.membership()));
        assert!(
            matches!(&answer, Err(CommitError::Record { topic: named, .. }) if named == topic),
            "{topic}: {answer:?}"
        );
        d.sink.end(End::Abort).unwrap();

        d.sink.begin().unwrap();
        d.sink.produce(Produce::Emissions(&emissions(&["after"], -1))).unwrap();
        d.sink.send_offsets(&[task_offset(8)], &d.member.consumer.membership()).unwrap();
        d.sink.end(End::Commit).unwrap();
    }
    [&small, &compacted].into_iter().for_each(|topic| cluster.settle(topic));
    assert_eq!(visible(&cluster, &small, true), ["after", "after"]);
    assert_eq!(visible(&cluster, &compacted, true), ["after"]);
}

/// F14: librdkafka may refuse an abort that overtakes the first record of its transaction, for ever
/// (librdkafka#4849). Whatever it does, the answer comes in time, and a sink can be used again or made
/// anew.
fn f14_an_abort_right_after_the_first_record_neither_hangs_nor_leaves_anything(by: KafkaClient) {
    let cluster = Cluster::get();
    let d = deployment(&cluster, by);
    let mut config = cluster.config();
    config.limits.record_bytes = 1_000;
    let (id, spec) = (unique("tx"), sink_spec(&[&d.output], None, &[&d.input]));
    let make = || sink(&config, by, &id, spec.clone()).unwrap();
    let too_large = "x".repeat(2_000);
    let mut current = make();
    for _ in 0..5 {
        let started = Instant::now();
        current.begin().unwrap();
        let answer = current.produce(Produce::Emissions(&emissions(&["ghost", &too_large], -1)));
        assert!(matches!(answer, Err(CommitError::Record { .. })), "{answer:?}");
        match current.end(End::Abort) {
            Ok(()) => {}
            // Rule P1.
            Err(CommitError::Indefinite(_)) => current = make(),
            Err(other) => panic!("{other}"),
        }
        assert!(started.elapsed() < config.limits.transaction_timeout, "{:?}", started.elapsed());
    }
    current.begin().unwrap();
    current.produce(Produce::Emissions(&emissions(&["kept"], -1))).unwrap();
    current.send_offsets(&[task_offset(8)], &d.member.consumer.membership()).unwrap();
    current.end(End::Commit).unwrap();
    cluster.settle(&d.output);
    assert_eq!(visible(&cluster, &d.output, true), ["kept"]);
}

fn a_commit_without_offsets_is_refused_because_nothing_would_fence_it(by: KafkaClient) {
    let cluster = Cluster::get();
    let mut d = deployment(&cluster, by);
    d.sink.begin().unwrap();
    let answer = d.sink.send_offsets(&[], &d.member.consumer.membership());
    assert!(matches!(answer, Err(CommitError::Indefinite(_))), "{answer:?}");
}

fn a_plain_sink_writes_the_position_record_last_and_stamps_every_row(by: KafkaClient) {
    let cluster = Cluster::get();
    let (output, log) = (cluster.topic("out", 1), cluster.topic("log", 1));
    let mut sink = plain_sink(&cluster.config(), by, sink_spec(&[&output], Some(&log), &[]));
    for commit in 1..=2 {
        sink.begin().unwrap();
        sink.produce(Produce::Changelog(&stamped(&["k", "position"], (5, commit)))).unwrap();
        sink.produce(Produce::Emissions(&emissions(&["e"], -1))).unwrap();
        sink.send_offsets(&[], &Membership::default()).unwrap();
        sink.end(End::Commit).unwrap();
    }
    assert_eq!(visible(&cluster, &output, true), ["e", "e"]);
    let row = |key: &str, commit| (key.to_owned(), Some((5, commit)));
    let expected = [row("k", 1), row("position", 1), row("k", 2), row("position", 2)];
    assert_eq!(logged(&cluster, &log), expected);
}

/// Rows of partition 0 with these keys.
fn stamped(keys: &[&str], stamp: (u64, u64)) -> ChangelogRows {
    let rows: Vec<_> = keys.iter().map(|&key| (key, Some("v"))).collect();
    ChangelogRows { stamp: Some(stamp), ..changelog(0, &rows) }
}

/// Keys and stamps of partition 0 of a changelog.
fn logged(cluster: &Cluster, log: &str) -> Vec<(String, Option<(u64, u64)>)> {
    let logs = Logs::changelog(Some(log.to_owned()));
    let mut reader = LogReader::new(&cluster.config(), &unique("group"), vec![], logs).unwrap();
    let (from, to) = reader.log_bounds(Log::Changelog, 0).unwrap();
    let mut seen = Vec::new();
    reader
        .read_log(Log::Changelog, 0, (from, to), &mut |record| {
            seen.push((String::from_utf8(record.key.to_vec()).unwrap(), record.stamp));
            true
        })
        .unwrap();
    seen
}

fn a_plain_commit_is_there_when_it_ends_whatever_acknowledgement_it_waits_for(by: KafkaClient) {
    let cluster = Cluster::get();
    for (acks, enable_idempotence) in [("all", true), ("-1", false), ("1", false)] {
        let output = cluster.topic("out", 3);
        let config = KafkaConfig { acks: acks.to_owned(), enable_idempotence, ..cluster.config() };
        let mut sink = plain_sink(&config, by, sink_spec(&[&output], None, &[]));
        for commit in 1..=3 {
            sink.begin().unwrap();
            sink.produce(Produce::Emissions(&emissions(&["a", "b", "c"], -1))).unwrap();
            sink.send_offsets(&[], &Membership::default()).unwrap();
            sink.end(End::Commit).unwrap();
            assert_eq!(visible(&cluster, &output, true).len(), 3 * commit, "acks {acks}");
        }
    }
}

fn emissions_of_a_plain_sink_keep_their_timestamps_and_headers(by: KafkaClient) {
    let cluster = Cluster::get();
    let output = cluster.topic("out", 1);
    let mut sink = plain_sink(&cluster.config(), by, sink_spec(&[&output], None, &[]));
    let rows = with_headers();
    sink.begin().unwrap();
    sink.produce(Produce::Emissions(&rows)).unwrap();
    sink.send_offsets(&[], &Membership::default()).unwrap();
    sink.end(End::Commit).unwrap();
    assert_kept(&cluster, &output, &rows);
}

/// What was written of such a commit stays, without the position record that would make it count.
fn a_refused_record_is_named_and_closes_no_plain_commit(by: KafkaClient) {
    let cluster = Cluster::get();
    let small = cluster.topic_with(NewTopic::new(unique("small"), 1).with("max.message.bytes", 2_000));
    let log = cluster.topic("log", 1);
    let mut sink = plain_sink(&cluster.config(), by, sink_spec(&[&small], Some(&log), &[]));
    let large = "x".repeat(5_000);
    for (commit, value) in [(1, large.as_str()), (2, "after")] {
        sink.begin().unwrap();
        sink.produce(Produce::Changelog(&stamped(&["k", "position"], (5, commit)))).unwrap();
        sink.produce(Produce::Emissions(&emissions(&[value], -1))).unwrap();
        let answer = sink.send_offsets(&[], &Membership::default());
        if commit == 1 {
            let is_named = matches!(&answer, Err(CommitError::Record { topic, .. }) if *topic == small);
            assert!(is_named, "{answer:?}");
            sink.end(End::Abort).unwrap();
        } else {
            answer.unwrap();
            sink.end(End::Commit).unwrap();
        }
    }
    assert_eq!(visible(&cluster, &small, true), ["after"]);
    let row = |key: &str, commit| (key.to_owned(), Some((5, commit)));
    assert_eq!(logged(&cluster, &log), [row("k", 1), row("k", 2), row("position", 2)]);
}

/// A task whose position record alone is refused has to be told so: it is what it halts for.
fn a_refused_position_record_closes_nothing_unless_others_are_sent_with_it(by: KafkaClient) {
    let cluster = Cluster::get();
    let log = cluster.topic_with(NewTopic::new(unique("small"), 2).with("max.message.bytes", 2_000));
    let large = "x".repeat(5_000);
    let rows = |partition, position: &str| ChangelogRows {
        stamp: Some((5, 1)),
        ..changelog(partition, &[("k", Some("v")), ("position", Some(position))])
    };
    let mut sink = plain_sink(&cluster.config(), by, sink_spec(&[], Some(&log), &[]));
    let mut commit = |tasks: &[ChangelogRows]| {
        sink.begin().unwrap();
        tasks.iter().for_each(|rows| sink.produce(Produce::Changelog(rows)).unwrap());
        let answer = sink.send_offsets(&[], &Membership::default());
        match &answer {
            Ok(()) => sink.end(End::Commit).unwrap(),
            Err(CommitError::Indefinite(_)) => {}
            Err(_) => sink.end(End::Abort).unwrap(),
        }
        answer
    };
    let answer = commit(&[rows(1, &large)]);
    assert!(matches!(&answer, Err(CommitError::Record { topic, .. }) if *topic == log), "{answer:?}");
    commit(&[rows(1, "p")]).unwrap();
    let answer = commit(&[rows(0, "p"), rows(1, &large)]);
    assert!(matches!(answer, Err(CommitError::Indefinite(_))), "{answer:?}");
}

fn commits_take_milliseconds(by: KafkaClient) {
    let cluster = Cluster::get();
    let mut d = deployment(&cluster, by);
    let mut times = Vec::new();
    for n in 0..100 {
        let begun = Instant::now();
        d.sink.begin().unwrap();
        d.sink.produce(Produce::Emissions(&emissions(&["a", "b", "c"], -1))).unwrap();
        d.sink
            .produce(Produce::Changelog(&changelog(0, &[("k", Some("1")), ("position", Some("p"))])))
            .unwrap();
        d.sink.send_offsets(&[task_offset(n + 1)], &d.member.consumer.membership()).unwrap();
        d.sink.end(End::Commit).unwrap();
        times.push(begun.elapsed());
        d.member.step();
    }
    times.sort();
    println!("commit wall time: p50 {:?}, p90 {:?}, max {:?}", times[50], times[90], times[99]);
    // Far above what it takes, far below the 100 ms steps of rdkafka's wrappers on a quiet machine.
    assert!(times[10] < Duration::from_millis(90), "{:?}", times[10]);
}
