//! What recovery reads: stable offsets, changelogs past open transactions, logs with a tail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidemill::config::node::KafkaClient;
use tidemill::kafka::consumer::ConsumerSpec;
use tidemill::kafka::recovery::{LogReader, Logs};
use tidemill::kafka::tools::Row;
use tidemill::kafka::topic_log::TopicLog;
use tidemill::ports::{End, Group, Log, Produce, Recovery, SourceError, TaskOffset};
use tidemill::record::Offset;

use crate::harness::{Cluster, Member, at, eventually, unique};
use crate::sink::{changelog, sink, sink_spec};

#[test]
fn a_changelog_is_read_to_its_high_watermark_even_below_an_open_transaction() {
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
    let mut reader =
        LogReader::new(&cluster.config(), &group, vec![input.clone()], Logs::changelog(Some(log.clone())))
            .unwrap();
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
                    seen.push((record.offset.0, record.key, record.value));
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

#[test]
fn a_long_changelog_is_read_quickly_and_reading_stops_when_told() {
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
    let mut reader =
        LogReader::new(&cluster.config(), &unique("group"), vec![], Logs::changelog(Some(log))).unwrap();
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
    println!("restore reads {:.0} k records/s", rate / 1000.0);
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
