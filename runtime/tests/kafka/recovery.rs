//! What recovery reads: stable offsets, changelogs past open transactions, logs with a tail.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use tidemill::config::node::KafkaClient;
use tidemill::kafka::admin::{At, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::consumer::ConsumerSpec;
use tidemill::kafka::recovery::{LogReader, Logs};
use tidemill::kafka::tools::{self, Row};
use tidemill::kafka::topic_log::TopicLog;
use tidemill::ports::{End, Group, Interest, Log, Produce, Recovery, Sink, SourceError, TaskOffset};
use tidemill::record::Offset;

use crate::harness::{Cluster, Member, PATIENCE, at, eventually, row, unique};
use crate::sink::{changelog, sink, sink_spec};

by_either!(
    a_changelog_is_read_to_its_high_watermark_even_below_an_open_transaction,
    a_long_changelog_is_read_quickly_and_reading_stops_when_told,
    a_log_that_was_trimmed_since_its_bounds_were_asked_for_is_refused,
    one_reader_reads_both_logs_of_a_deployment_again_and_again,
    a_reader_that_nobody_wants_any_more_waits_for_no_transaction,
);

fn a_changelog_is_read_to_its_high_watermark_even_below_an_open_transaction(by: KafkaClient) {
    let cluster = Cluster::get();
    let (input, log) = (cluster.topic("in", 1), cluster.topic("log", 1));
    let group = unique("group");
    let mut member = Member::join(&cluster, ConsumerSpec::new(&group, vec![input.clone()]));
    member.step_until("the partition", |member| member.running.len() == 1);
    let membership = member.consumer.membership();
    let open = || {
        let spec = sink_spec(&[], Some(&log), &[&input]);
        // librdkafka sends what is produced without being asked for more.
        sink(&cluster.config(), KafkaClient::Librdkafka, &unique("tx"), spec).unwrap()
    };
    let offset =
        |offset| [TaskOffset { partition: at(0, 0), offset: Offset(offset), metadata: String::new() }];

    // An older transaction stays open, and pins the last stable offset below a later commit.
    let mut older = open();
    older.begin().unwrap();
    older.produce(Produce::Changelog(&changelog(0, &[("open", Some("1"))]))).unwrap();
    let mut reader = reader(&cluster, by, &group, vec![input.clone()], &log);
    eventually("the open record", || (reader.log_bounds(Log::Changelog, 0).unwrap().1.0 == 1).then_some(()));
    let mut newer = open();
    newer.begin().unwrap();
    newer.produce(Produce::Changelog(&changelog(0, &[("kept", Some("2")), ("kept", None)]))).unwrap();
    newer.send_offsets(&offset(5), &membership).unwrap();
    newer.end(End::Commit).unwrap();
    let (from, to) = eventually("the marker", || {
        Some(reader.log_bounds(Log::Changelog, 0).unwrap()).filter(|(_, to)| to.0 == 4)
    });

    let (ended, read) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            reader
                .read_log(Log::Changelog, 0, (from, to), &mut |record| {
                    assert!(ended.load(Ordering::SeqCst), "read past an open transaction");
                    seen.push((record.offset.0, record.key.to_vec(), record.value.map(<[u8]>::to_vec)));
                    true
                })
                .unwrap();
            read.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(500));
        assert!(!read.load(Ordering::SeqCst), "the reader did not wait");
        ended.store(true, Ordering::SeqCst);
        older.end(End::Abort).unwrap();
    });
    assert_eq!(seen, [(1, b"kept".to_vec(), Some(b"2".to_vec())), (2, b"kept".to_vec(), None)]);
    let committed = reader.committed(&[at(0, 0)]).unwrap();
    assert_eq!(committed[0].as_ref().map(|committed| committed.offset), Some(Offset(5)));
}

#[test]
fn a_group_that_never_committed_has_no_offsets_and_an_unknown_topic_is_an_error() {
    let cluster = Cluster::get();
    let input = cluster.topic("in", 2);
    let mut reader =
        LogReader::new(&cluster.config(), &unique("group"), vec![input], Logs::changelog(None)).unwrap();
    assert_eq!(reader.committed(&[at(0, 0), at(0, 1)]).unwrap(), [None, None]);
    let missing = Some(unique("missing"));
    let mut reader =
        LogReader::new(&cluster.config(), &unique("group"), vec![], Logs::changelog(missing)).unwrap();
    assert!(matches!(reader.log_bounds(Log::Changelog, 0), Err(SourceError::Refused(_))));
}

#[test]
fn offsets_of_at_least_once_are_committed_by_the_member() {
    let cluster = Cluster::get();
    let input = cluster.topic("in", 1);
    let group = unique("group");
    let mut member = Member::join(&cluster, ConsumerSpec::new(&group, vec![input.clone()]));
    member.step_until("the partition", |member| member.running.len() == 1);
    let offset = TaskOffset { partition: at(0, 0), offset: Offset(3), metadata: "{\"a\":1}".to_owned() };
    member.consumer.commit(&[offset]);
    let mut reader = LogReader::new(&cluster.config(), &group, vec![input], Logs::changelog(None)).unwrap();
    let found = eventually("the offset", || reader.committed(&[at(0, 0)]).unwrap().remove(0));
    assert_eq!((found.offset, found.metadata.as_str()), (Offset(3), "{\"a\":1}"));
}

fn a_long_changelog_is_read_quickly_and_reading_stops_when_told(by: KafkaClient) {
    let cluster = Cluster::get();
    let log = cluster.topic("long", 1);
    const COUNT: u64 = 200_000;
    cluster.produce(
        &log,
        (0..COUNT).map(|n| Row {
            key: Some(n.to_be_bytes().to_vec()),
            value: Some(vec![b'x'; 20]),
            partition: Some(0),
            ..Row::default()
        }),
    );
    let mut reader = reader(&cluster, by, &unique("group"), vec![], &log);
    let (from, to) = reader.log_bounds(Log::Changelog, 0).unwrap();
    assert_eq!((from, to), (Offset(0), Offset(COUNT)));
    let (begun, mut next) = (Instant::now(), 0);
    reader
        .read_log(Log::Changelog, 0, (from, to), &mut |record| {
            assert_eq!(record.offset.0, next);
            next += 1;
            true
        })
        .unwrap();
    let rate = COUNT as f64 / begun.elapsed().as_secs_f64();
    println!("restore reads {:.0} k records/s, by {by:?}", rate / 1000.0);
    assert_eq!(next, COUNT);

    let mut count = 0;
    reader
        .read_log(Log::Changelog, 0, (Offset(1_000), to), &mut |_| {
            count += 1;
            count < 10
        })
        .unwrap();
    assert_eq!(count, 10);
}

#[test]
fn a_topic_log_answers_offsets_and_its_tail_sees_every_record_once() {
    let cluster = Cluster::get();
    let topic = cluster.topic("control", 1);
    let log = TopicLog::open(&cluster.config(), &topic).unwrap();
    assert_eq!(log.append(Some(b"k"), Some(b"0")), Ok(Offset(0)));
    assert_eq!(log.append(None, Some(b"1")), Ok(Offset(1)));

    let mut tail = log.tail(Offset(0)).unwrap();
    let mut seen = Vec::new();
    let end = tail.read_to_end(&mut |record| seen.push((record.offset.0, record.value.unwrap()))).unwrap();
    assert_eq!((end, seen.len()), (Offset(2), 2));

    std::thread::scope(|scope| {
        for writer in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..25 {
                    log.append(None, Some(format!("{writer}/{n}").as_bytes())).unwrap();
                }
            });
        }
        eventually("the tail", || {
            tail.next(Duration::from_millis(50), &mut |record| {
                assert!(record.timestamp_ms > 0);
                seen.push((record.offset.0, record.value.unwrap()));
            })
            .unwrap();
            (seen.len() == 102).then_some(())
        });
    });
    assert!(seen.iter().enumerate().all(|(index, (offset, _))| *offset == index as u64));
    assert_eq!(tail.position(), Offset(102));
    // Late readers may begin anywhere.
    let mut late = log.tail(Offset(100)).unwrap();
    let mut count = 0;
    late.read_to_end(&mut |_| count += 1).unwrap();
    assert_eq!(count, 2);
}

fn a_log_that_was_trimmed_since_its_bounds_were_asked_for_is_refused(by: KafkaClient) {
    let cluster = Cluster::get();
    let log = cluster.topic("trimmed", 1);
    cluster.produce_numbers(&log, 0, 0..10);
    let mut reader = reader(&cluster, by, &unique("group"), vec![], &log);
    assert_eq!(reader.log_bounds(Log::Changelog, 0).unwrap(), (Offset(0), Offset(10)));
    cluster.admin().delete_records(&log, 0, Offset(5)).unwrap();
    let refused = reader.read_log(Log::Changelog, 0, (Offset(0), Offset(10)), &mut |_| true);
    assert!(matches!(&refused, Err(SourceError::Refused(why)) if why.contains(&log)), "{refused:?}");
    assert_eq!(read(&mut reader, 5, 10).iter().map(|seen| seen.0).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
}

fn one_reader_reads_both_logs_of_a_deployment_again_and_again(by: KafkaClient) {
    let cluster = Cluster::get();
    let (changelog, inbox) = (cluster.topic("log", 2), cluster.topic("ids", 2));
    cluster.produce_numbers(&changelog, 1, 0..100);
    cluster.produce_numbers(&inbox, 1, 1_000..1_050);
    let logs = Logs { changelog: Some(changelog), inbox: Some(inbox) };
    let config = KafkaConfig { client: Some(by), ..cluster.config() };
    let mut reader = LogReader::new(&config, &unique("group"), vec![], logs).unwrap();
    for (log, first, count) in
        [(Log::Changelog, 0, 100), (Log::Inbox, 1_000, 50), (Log::Changelog, 0, 100), (Log::Inbox, 1_000, 50)]
    {
        let range = reader.log_bounds(log, 1).unwrap();
        let mut values = Vec::new();
        reader
            .read_log(log, 1, range, &mut |record| {
                values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
                true
            })
            .unwrap();
        let expected: Vec<_> = (first..first + count).map(|n: u64| n.to_string()).collect();
        assert_eq!(values, expected, "{log:?}");
    }
}

fn a_reader_that_nobody_wants_any_more_waits_for_no_transaction(by: KafkaClient) {
    let cluster = Cluster::get();
    let (input, log) = (cluster.topic("in", 1), cluster.topic("log", 1));
    cluster.produce_numbers(&log, 0, 0..3);
    let mut config = cluster.config();
    // It is not the end of the transaction that ends the read.
    config.limits.transaction_timeout = 2 * PATIENCE;
    let spec = sink_spec(&[], Some(&log), &[&input]);
    // librdkafka sends what is produced without being asked for more.
    let mut open = sink(&config, KafkaClient::Librdkafka, &unique("tx"), spec).unwrap();
    open.begin().unwrap();
    open.produce(Produce::Changelog(&changelog(0, &[("open", Some("1"))]))).unwrap();

    let interest = Interest::default();
    let mut reader = reader(&cluster, by, &unique("group"), vec![input], &log).until(&interest.stop());
    let range = eventually("the open record", || {
        Some(reader.log_bounds(Log::Changelog, 0).unwrap()).filter(|(_, to)| to.0 == 4)
    });
    let (seen, see) = channel();
    let reading = std::thread::spawn(move || {
        reader.read_log(Log::Changelog, 0, range, &mut |record| seen.send(record.offset.0).is_ok())
    });
    while see.recv_timeout(PATIENCE).unwrap() < 2 {}
    drop(interest);
    assert_eq!(reading.join().unwrap(), Err(SourceError::Stopped));
    open.end(End::Abort).unwrap();
}

/// Batches of every codec, with gaps and without, stamps, tombstones, transactions and their markers.
#[test]
fn both_clients_read_the_same_of_whatever_a_changelog_may_hold() {
    let cluster = Cluster::get();
    let log = compacted(&cluster);
    let [mut own, mut other] = by_both(&cluster, &log);
    for codec in CODECS {
        produce_as(&cluster, &log, codec, |n| format!("{codec} {}", n % 10));
    }
    eventually("it is compacted", || {
        cluster.produce(&log, [row(0, "roll")]);
        let (from, to) = other.log_bounds(Log::Changelog, 0).unwrap();
        let seen = read(&mut other, from.0, to.0);
        CODECS
            .iter()
            .all(|codec| seen.iter().filter(|seen| seen.2.starts_with(codec.as_bytes())).count() == 10)
            .then_some(())
    });
    for codec in CODECS {
        produce_as(&cluster, &log, codec, |n| format!("late {codec} {n}"));
    }
    let mut writer = Writer::join(&cluster, &log, KafkaClient::Own);
    for (value, end) in [("committed", End::Commit), ("aborted", End::Abort), ("last", End::Commit)] {
        writer.begin(&[("k", Some(value)), (value, Some(value)), ("gone", None)]);
        writer.end(end);
    }
    let to = settled_end(&cluster, &log);

    let all = same(&mut own, &mut other, 0, to);
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(all.windows(2).any(|pair| pair[0].0 + 1 < pair[1].0), "nothing is missing");
    assert!(all.last().unwrap().0 + 1 < to, "the last is a marker");
    let has = |value: &str| all.iter().any(|seen| seen.3.as_deref() == Some(value.as_bytes()));
    assert_eq!(["last", "aborted"].map(has), [true, false]);
    assert!(all.iter().any(|seen| seen.3.is_none()));
    for codec in CODECS {
        let late: Vec<_> =
            all.iter().filter(|seen| seen.2.starts_with(format!("late {codec} ").as_bytes())).collect();
        assert_eq!(late.len(), 100, "{codec}");
        assert!(late.iter().all(|seen| seen.4 == Some((7, 9)) && seen.1 > 0), "{codec}");
    }
    // From and to the middle of batches, among what was compacted, and between markers.
    for cut in (1..to).step_by(to as usize / 8).chain(to - 9..to) {
        same(&mut own, &mut other, cut, to);
        same(&mut own, &mut other, 0, cut);
    }
}

#[test]
fn both_clients_wait_for_an_open_transaction_and_read_the_same_when_it_ends() {
    let cluster = Cluster::get();
    let log = compacted(&cluster);
    let mut readers = by_both(&cluster, &log);
    let mut newer = Writer::join(&cluster, &log, KafkaClient::Own);
    newer.begin(&[("a1", Some("1")), ("a2", Some("2"))]);
    newer.end(End::Commit);
    let stable = settled_end(&cluster, &log);
    let end = |reader: &mut LogReader| reader.log_bounds(Log::Changelog, 0).unwrap().1.0;
    // librdkafka sends what is produced without being asked for more.
    let mut older = Writer::join(&cluster, &log, KafkaClient::Librdkafka);
    older.begin(&[("older", Some("3"))]);
    eventually("the open record", || (end(&mut readers[0]) == stable + 1).then_some(()));
    newer.begin(&[("newer", Some("4"))]);
    newer.end(End::Commit);
    let to = eventually("the marker", || Some(end(&mut readers[0])).filter(|to| *to == stable + 3));

    let (ended, waiting) = (AtomicBool::new(false), AtomicUsize::new(0));
    let read_keys = |reader: &mut LogReader| {
        let mut keys = Vec::new();
        let range = (Offset(0), Offset(to));
        reader
            .read_log(Log::Changelog, 0, range, &mut |record| {
                let key = String::from_utf8(record.key.to_vec()).unwrap();
                assert!(ended.load(Ordering::SeqCst) || key.starts_with('a'), "{key} before the end");
                waiting.fetch_add(usize::from(key == "a2"), Ordering::SeqCst);
                keys.push(key);
                true
            })
            .unwrap();
        keys
    };
    std::thread::scope(|scope| {
        let read_keys = &read_keys;
        let reads = readers.each_mut().map(|reader| scope.spawn(move || read_keys(reader)));
        eventually("both wait", || (waiting.load(Ordering::SeqCst) == 2).then_some(()));
        std::thread::sleep(Duration::from_millis(200));
        assert!(reads.iter().all(|read| !read.is_finished()), "a reader did not wait");
        ended.store(true, Ordering::SeqCst);
        older.end(End::Commit);
        for read in reads {
            assert_eq!(read.join().unwrap(), ["a1", "a2", "older", "newer"]);
        }
    });
}

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// Everything that a restore sees of a record: offset, time, key, value, stamp.
type Seen = (u64, i64, Vec<u8>, Option<Vec<u8>>, Option<(u64, u64)>);

fn reader(cluster: &Cluster, by: KafkaClient, group: &str, inputs: Vec<String>, log: &str) -> LogReader {
    let config = KafkaConfig { client: Some(by), ..cluster.config() };
    LogReader::new(&config, group, inputs, Logs::changelog(Some(log.to_owned()))).unwrap()
}

/// The node's own, and librdkafka's.
fn by_both(cluster: &Cluster, log: &str) -> [LogReader; 2] {
    [KafkaClient::Own, KafkaClient::Librdkafka].map(|by| reader(cluster, by, &unique("group"), vec![], log))
}

/// A changelog whose segments are closed by the next batch, and compacted.
fn compacted(cluster: &Cluster) -> String {
    let log = NewTopic::new(unique("compacted"), 1)
        .with("cleanup.policy", "compact")
        .with("message.timestamp.type", "LogAppendTime")
        .with("segment.ms", 100)
        .with("min.cleanable.dirty.ratio", "0.01");
    cluster.topic_with(log)
}

/// Produces a hundred stamped rows.
fn produce_as(cluster: &Cluster, log: &str, codec: &str, key: impl Fn(u64) -> String) {
    let mut config = cluster.config();
    config.properties.insert("compression.type".to_owned(), codec.to_owned());
    let stamp = [7u64, 9].map(u64::to_be_bytes).concat();
    let rows = (0..100).map(|n| Row {
        key: Some(key(n).into_bytes()),
        value: Some(format!("{codec} {n} ").repeat(4).into_bytes()),
        headers: vec![("other".to_owned(), None), ("tidemill-commit".to_owned(), Some(stamp.clone()))],
        partition: Some(0),
        ..Row::default()
    });
    tools::produce(&config, log, rows, None, &mut |_| {}).unwrap();
}

/// What lies in a range. librdkafka's reader goes on to the end of what it has in its hands.
fn read(reader: &mut LogReader, from: u64, to: u64) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    reader
        .read_log(Log::Changelog, 0, (Offset(from), Offset(to)), &mut |record| {
            let (key, value) = (record.key.to_vec(), record.value.map(<[u8]>::to_vec));
            seen.push((record.offset.0, record.timestamp_ms, key, value, record.stamp));
            true
        })
        .unwrap();
    seen.retain(|seen| seen.0 < to);
    seen
}

/// What either reads of a range. If it is compacted meanwhile, both are asked again.
fn same(own: &mut LogReader, other: &mut LogReader, from: u64, to: u64) -> Vec<Seen> {
    eventually("a moment without compaction", || {
        let before = read(own, from, to);
        let between = read(other, from, to);
        let after = read(own, from, to);
        (before == after).then(|| assert_eq!(before, between, "{from} to {to}")).map(|()| after)
    })
}

/// Where a log ends once no transaction is open.
fn settled_end(cluster: &Cluster, log: &str) -> u64 {
    let (admin, partition) = (cluster.admin(), [(log.to_owned(), 0)]);
    eventually("the last marker", || {
        let [stable, end] =
            [At::StableEnd, At::End].map(|at| admin.offsets(&partition, at).unwrap().remove(0));
        (stable == end).then_some(end.0)
    })
}

/// Who commits to a changelog, in a group of its own.
struct Writer {
    member: Member,
    sink: Box<dyn Sink>,
}

impl Writer {
    fn join(cluster: &Cluster, log: &str, by: KafkaClient) -> Writer {
        let (input, group) = (cluster.topic("in", 1), unique("group"));
        let mut member = Member::join(cluster, ConsumerSpec::new(&group, vec![input.clone()]));
        member.step_until("the partition", |member| member.running.len() == 1);
        let spec = sink_spec(&[], Some(log), &[&input]);
        Writer { member, sink: sink(&cluster.config(), by, &unique("tx"), spec).unwrap() }
    }

    fn begin(&mut self, rows: &[(&str, Option<&str>)]) {
        self.sink.begin().unwrap();
        self.sink.produce(Produce::Changelog(&changelog(0, rows))).unwrap();
    }

    fn end(&mut self, end: End) {
        let offset = TaskOffset { partition: at(0, 0), offset: Offset(1), metadata: String::new() };
        self.sink.send_offsets(&[offset], &self.member.consumer.membership()).unwrap();
        self.sink.end(end).unwrap();
    }
}
