//! Logs beside brokers that do what they are told, in this process.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, PartitionData};
use kafka_protocol::messages::{FetchRequest, ProducerId};
use tidemill_batches::testing::{NewBatch, NewRecord};
use tidemill_batches::{Header, assign_offset, marker};

use super::*;
use crate::kafka::fetch::stage::{Cluster, Reply, Stage, TOPIC, answer, asked, batch, data, more};
use crate::kafka::sink::stamp_bytes;
use crate::ports::{Interest, LogRecord};

const SOON: Duration = Duration::from_secs(20);

/// What a broker says of a partition.
type Saying = Box<dyn Fn(&FetchRequest) -> PartitionData + Send>;

fn logs(cluster: &Cluster, committed_only: bool) -> FetchedLogs {
    FetchedLogs::new(&cluster.config(), vec!["other".to_owned(), TOPIC.to_owned()], committed_only)
        .expect("it is complete")
}

fn not_lost() -> Option<SourceError> {
    None
}

static NEVER: LazyLock<Stop> = LazyLock::new(Stop::never);

fn part(from: u64, to: u64) -> Part<'static> {
    Part { topic: TOPIC, partition: 0, from: Offset(from), to: Offset(to), lost: &not_lost, stop: &NEVER }
}

/// Everything that comes of a part, and how it ends.
fn read_all(logs: &mut FetchedLogs, part: &Part<'_>) -> (Vec<LogRecord>, Result<(), SourceError>) {
    let mut records = Vec::new();
    let result = logs.read(part, &mut |record| {
        records.push(record.to_record());
        true
    });
    (records, result)
}

/// The offsets of a part that can be read.
fn offsets(logs: &mut FetchedLogs, part: &Part<'_>) -> Vec<u64> {
    let (records, result) = read_all(logs, part);
    assert_eq!(result, Ok(()));
    records.iter().map(|record| record.offset.0).collect()
}

/// A broker with these batches, of which it sends so many at a time, and nothing while there is no other. Producer 7
/// has aborted what it began at offset 4.
fn serving(batches: Vec<Bytes>, at_once: usize) -> impl FnMut(i32, &FetchRequest) -> Reply + Send + 'static {
    move |_, request| {
        let (_, from, _) = asked(request)[0];
        let next = |batch: &Bytes| Header::check(batch).expect("whole").next_offset();
        let wanted = batches.iter().filter(|batch| next(batch) > from).take(at_once);
        let records: Bytes = wanted.flatten().copied().collect();
        if records.is_empty() {
            return Reply::Nothing;
        }
        let aborted = AbortedTransaction::default().with_producer_id(ProducerId(7)).with_first_offset(4);
        let aborted = (request.isolation_level == 1).then(|| vec![aborted]);
        Reply::Answer(answer(vec![data(0).with_records(Some(records)).with_aborted_transactions(aborted)]))
    }
}

fn end_of_transaction(offset: i64, producer_id: i64, commit: bool) -> Bytes {
    let mut batch = marker(producer_id, 0, commit, 0);
    assign_offset(&mut batch, offset, 0);
    batch.freeze()
}

/// Records, compacted offsets, an aborted transaction, nothing at all from 6 to 8, a compressed one that is committed,
/// and markers; ends at 12.
fn mixed() -> Vec<Bytes> {
    vec![
        NewBatch::at(0).put("a", "0").put("b", "1").gap(2).build(),
        NewBatch::at(4).transaction(7).put("x", "4").build(),
        end_of_transaction(5, 7, false),
        NewBatch::at(9).codec(4).transaction(8).put("c", "9").put("d", "10").build(),
        end_of_transaction(11, 8, true),
    ]
}

#[test]
fn a_read_ends_where_its_range_does_whatever_lies_there() {
    for at_once in [1, 2, 9] {
        let cluster = Cluster::new(serving(mixed(), at_once));
        let mut logs = logs(&cluster, true);
        // (from, to, what is there)
        let ranges: [(u64, u64, &[u64]); 8] = [
            (0, 12, &[0, 1, 9, 10]),
            (1, 12, &[1, 9, 10]),
            (10, 11, &[10]),
            // In the middle of a batch.
            (0, 10, &[0, 1, 9]),
            // Among what was compacted away, at the end of a batch and between two.
            (0, 4, &[0, 1]),
            (2, 8, &[]),
            // Of what was aborted, and of a marker alone.
            (4, 6, &[]),
            (11, 12, &[]),
        ];
        for (from, to, expected) in ranges {
            assert_eq!(offsets(&mut logs, &part(from, to)), expected, "{from} to {to}, {at_once} at once");
        }
    }
}

#[test]
fn records_are_as_they_were_written_and_say_whose_commit_they_are_of() {
    let mut batch = NewBatch::at(3);
    batch.header.base_timestamp = 1_000;
    let stamp = stamp_bytes((3, 9));
    let stamped = [("other", None), (STAMP_HEADER, Some(&stamp[..]))];
    let other = [("other", Some(&b"1"[..]))];
    let batch = batch
        .push(&NewRecord { timestamp_delta: 5, key: Some(b"k"), value: Some(b"v"), headers: &stamped })
        .push(&NewRecord { key: Some(b"gone"), headers: &other, ..NewRecord::default() })
        .push(&NewRecord { value: Some(b""), headers: &[(STAMP_HEADER, None)], ..NewRecord::default() });
    let cluster = Cluster::new(serving(vec![batch.build()], 1));
    let (records, result) = read_all(&mut logs(&cluster, true), &part(3, 6));
    assert_eq!(result, Ok(()));
    let record = |offset, timestamp_ms, key: &[u8], value: Option<&[u8]>, stamp| LogRecord {
        offset: Offset(offset),
        timestamp_ms,
        key: key.to_vec(),
        value: value.map(<[u8]>::to_vec),
        stamp,
    };
    let expected = [
        record(3, 1_005, b"k", Some(b"v"), Some((3, 9))),
        record(4, 1_000, b"gone", None, None),
        record(5, 1_000, b"", Some(b""), None),
    ];
    assert_eq!(records, expected);
}

#[test]
fn what_is_to_hide_nothing_hides_nothing() {
    let cluster = Cluster::new(serving(mixed(), 9));
    assert_eq!(offsets(&mut logs(&cluster, false), &part(0, 12)), [0, 1, 4, 9, 10]);
}

#[test]
fn a_read_stops_when_it_is_told_and_the_next_one_begins_where_it_says() {
    let cluster = Cluster::new(|_, request| Reply::Answer(more(request)));
    let mut logs = logs(&cluster, true);
    for (from, to) in [(40, 1_000), (7_000, 7_250), (0, 120)] {
        let mut left = 10;
        let result = logs.read(&part(from, to), &mut |_| {
            left -= 1;
            left > 0
        });
        assert_eq!((result, left), (Ok(()), 0));
        assert_eq!(offsets(&mut logs, &part(from, to)), (from..to).collect::<Vec<_>>());
    }
}

#[test]
fn every_record_comes_once_and_in_order_whatever_becomes_of_brokers() {
    let stage = Arc::new(OnceLock::<Arc<Stage>>::new());
    let moves = Arc::clone(&stage);
    let mut fetches = 0;
    let cluster = Cluster::new(move |broker, request| {
        let refused =
            |error: ResponseError| Reply::Answer(answer(vec![data(0).with_error_code(error.code())]));
        if broker == 0 && asked(request)[0].1 >= 200 {
            *moves.get().expect("set below").leader.lock().expect("no panic") = 1;
            return refused(ResponseError::NotLeaderOrFollower);
        }
        fetches += 1;
        match fetches % 4 {
            0 => Reply::Half(more(request)),
            1 => refused(ResponseError::KafkaStorageError),
            2 => refused(ResponseError::UnknownServerError),
            _ => Reply::Answer(more(request)),
        }
    });
    assert!(stage.set(Arc::clone(&cluster.stage)).is_ok());
    assert_eq!(offsets(&mut logs(&cluster, true), &part(7, 405)), (7..405).collect::<Vec<_>>());
}

#[test]
fn what_is_larger_than_a_restore_may_hold_comes_through() {
    // By itself, and only once it is unpacked.
    for codec in [0, 4] {
        let large = vec![7u8; 3 << 20];
        let record = NewRecord { value: Some(&large), ..NewRecord::default() };
        let batches = (0..3).map(|offset| NewBatch::at(offset).push(&record).codec(codec).build());
        let cluster = Cluster::new(serving(batches.collect(), 3));
        let mut config = cluster.config();
        config.limits.restore_queue_kib = 2 * 1024;
        let mut logs = FetchedLogs::new(&config, vec![TOPIC.to_owned()], true).expect("it is complete");
        let (records, result) = read_all(&mut logs, &part(0, 3));
        assert_eq!(result, Ok(()));
        assert_eq!(records.iter().map(|record| record.offset.0).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(records.iter().all(|record| record.value.as_ref() == Some(&large)), "codec {codec}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_behind_everything_before_it() {
    let damaged = |request: &FetchRequest| {
        let mut broken = batch(asked(request)[0].1, 0).to_vec();
        broken[70] ^= 1;
        data(0).with_records(Some(broken.into()))
    };
    let refusing = |error: ResponseError| move |_: &FetchRequest| data(0).with_error_code(error.code());
    let cases: [(Saying, &[&str]); 3] = [
        (
            Box::new(damaged),
            &["cannot be read at offset 100", "the checksum does not match", "restart NAME --partition 0"],
        ),
        (
            Box::new(refusing(ResponseError::OffsetOutOfRange)),
            &["does not hold offset 100", "OffsetOutOfRange", "restart NAME --partition 0"],
        ),
        (
            Box::new(refusing(ResponseError::TopicAuthorizationFailed)),
            &["cannot be read", "TopicAuthorizationFailed"],
        ),
    ];
    for (second, said) in cases {
        let cluster = Cluster::new(move |_, request| match asked(request)[0].1 {
            0 => Reply::Answer(more(request)),
            _ => Reply::Answer(answer(vec![second(request)])),
        });
        let (records, result) = read_all(&mut logs(&cluster, true), &part(0, 300));
        assert_eq!(records.len(), 100);
        let Err(SourceError::Refused(reason)) = result else { panic!("{result:?}") };
        for part in [&["words [0]"][..], said].concat() {
            assert!(reason.contains(part), "{part}: {reason}");
        }
    }
}

#[test]
fn records_are_fetched_ahead_while_others_are_applied_and_no_more_than_may_be_held() {
    let most = Arc::new(AtomicI64::new(0));
    let seen = Arc::clone(&most);
    let cluster = Cluster::new(move |_, request| {
        seen.fetch_max(asked(request)[0].1, Ordering::SeqCst);
        Reply::Answer(more(request))
    });
    let mut config = cluster.config();
    // A fetch may have a KiB, which a batch of a hundred records is.
    config.limits.restore_queue_kib = 5;
    let mut logs = FetchedLogs::new(&config, vec![TOPIC.to_owned()], true).expect("it is complete");
    let began = Instant::now();
    let mut next = 0;
    let result = logs.read(&part(0, 1_000), &mut |record| {
        assert_eq!(record.offset, Offset(next));
        if next == 0 {
            while most.load(Ordering::SeqCst) < 100 {
                assert!(began.elapsed() < SOON);
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(100));
            let reached = most.load(Ordering::SeqCst);
            assert!(reached <= 500, "{reached} records, and nothing was applied");
        }
        next += 1;
        true
    });
    assert_eq!((result, next), (Ok(()), 1_000));
}

#[test]
fn who_waits_in_vain_is_told_what_for() {
    let empty = |stable, end| {
        move |_: &FetchRequest| {
            // As a broker without news keeps a fetch, for less long.
            std::thread::sleep(Duration::from_millis(20));
            data(0).with_last_stable_offset(stable).with_high_watermark(end)
        }
    };
    let refusing = |_: &FetchRequest| data(0).with_error_code(ResponseError::UnknownServerError.code());
    let cases: [(Option<Saying>, &str); 4] = [
        (None, "the broker that leads it does not answer"),
        (Some(Box::new(empty(3, 10))), "a transaction is still open at offset 3"),
        (Some(Box::new(empty(3, 3))), "it ends at offset 3 now"),
        (Some(Box::new(refusing)), "the broker that leads it refuses"),
    ];
    std::thread::scope(|scope| {
        for (saying, why) in cases {
            scope.spawn(move || {
                let cluster = Cluster::new(move |_, request| match &saying {
                    Some(saying) => Reply::Answer(answer(vec![saying(request)])),
                    None => Reply::Nothing,
                });
                let mut logs = logs(&cluster, true);
                // Long enough for any machine to hear what the broker says.
                logs.patience = Duration::from_secs(4);
                let (records, result) = read_all(&mut logs, &part(3, 10));
                assert_eq!(records, []);
                let Err(SourceError::Unavailable(reason)) = result else { panic!("{result:?}") };
                let said = format!("words [0]: no progress at offset 3 of 10 for 4 s: {why}");
                assert!(reason.starts_with(&said), "{reason}");
            });
        }
    });
}

#[test]
fn a_read_that_waits_ends_once_nobody_wants_it_any_more() {
    let (ask, asked) = bounded(1);
    let cluster = Cluster::new(move |_, _| {
        let _ = ask.try_send(());
        Reply::Nothing
    });
    let mut logs = logs(&cluster, true);
    let interest = Interest::default();
    let stop = interest.stop();
    let reading = std::thread::spawn(move || read_all(&mut logs, &Part { stop: &stop, ..part(3, 10) }));
    asked.recv_timeout(SOON).expect("it asks");
    drop(interest);
    assert_eq!(reading.join().expect("no panic"), (Vec::new(), Err(SourceError::Stopped)));
}

#[test]
fn a_read_that_applies_ends_behind_what_was_copied_and_the_next_one_goes_on_there() {
    let cluster = Cluster::new(|_, request| Reply::Answer(more(request)));
    let mut logs = logs(&cluster, true);
    let interest = Interest::default();
    let stop = interest.stop();
    let (mut interest, mut next) = (Some(interest), 0);
    let result = logs.read(&Part { stop: &stop, ..part(0, 1_000_000) }, &mut |record| {
        next = record.offset.0 + 1;
        if next == 150 {
            drop(interest.take());
        }
        true
    });
    assert_eq!((result, next), (Err(SourceError::Stopped), 200));
    assert_eq!(offsets(&mut logs, &part(200, 300)), (200..300).collect::<Vec<_>>());
}

#[test]
fn of_a_partition_that_nobody_leads_it_is_asked_what_has_become_of_it() {
    let cluster = Cluster::new(|_, request| Reply::Answer(more(request)));
    *cluster.stage.leader.lock().expect("no panic") = 7;
    let gone = SourceError::Refused("it is gone".to_owned());
    let part = Part { lost: &|| Some(gone.clone()), ..part(0, 10) };
    assert_eq!(read_all(&mut logs(&cluster, true), &part), (Vec::new(), Err(gone.clone())));
}

#[test]
fn who_is_not_let_in_is_told_so() {
    let cluster = Cluster::new(|_, request| Reply::Answer(more(request)));
    cluster.stage.is_closed.store(true, Ordering::SeqCst);
    let mut config = cluster.config();
    config.security_protocol = "sasl_plaintext".to_owned();
    config.sasl_mechanism = Some("PLAIN".to_owned());
    config.sasl_username = Some("me".to_owned());
    config.sasl_password = Some("canary".to_owned());
    let mut logs = FetchedLogs::new(&config, vec![TOPIC.to_owned()], true).expect("it is complete");
    let (_, result) = read_all(&mut logs, &part(0, 10));
    let Err(SourceError::Unavailable(reason)) = result else { panic!("{result:?}") };
    assert!(
        reason.contains("does not let `me` sign in with PLAIN") && !reason.contains("canary"),
        "{reason}"
    );
}
