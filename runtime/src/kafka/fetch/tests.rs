//! The fetcher beside brokers that do what they are told, in this process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchResponse;
use kafka_protocol::messages::fetch_response::EpochEndOffset;
use tidemill_batches::testing::{NewBatch, NewRecord};
use uuid::Uuid;

use super::stage::{Cluster, Reply, Stage, TOPIC, answer, asked, batch, data, more};
use super::{Fetcher, Refusal, Room, What};
use crate::record::{Batch, InputPartition};

const SOON: Duration = Duration::from_secs(20);

fn at(partition: i32) -> InputPartition {
    InputPartition { input: 0, partition }
}

/// Takes until a partition has so many records, or a refusal has come.
fn take(fetcher: &mut Fetcher, wanted: usize) -> (BTreeMap<i32, Vec<i64>>, Option<Refusal>) {
    let mut taken: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    let began = Instant::now();
    while taken.values().all(|offsets| offsets.len() < wanted) {
        assert!(began.elapsed() < SOON, "only {taken:?}");
        assert!(!fetcher.has_panicked());
        let Some(arrival) = fetcher.front() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let partition = arrival.partition.partition;
        match &mut arrival.what {
            What::Failed(refusal) => return (taken, Some(refusal.clone())),
            What::Chunk(chunk) => {
                let mut batch = Batch::default();
                let mut room = Room { rows: usize::MAX, bytes: usize::MAX };
                chunk.take(0, &mut room, false, &mut batch, &mut |_, _| {}).expect("whole");
                taken.entry(partition).or_default().extend(batch.offsets);
            }
        }
        fetcher.pop();
    }
    (taken, None)
}

fn run_on(from: i64, to: i64) -> Vec<i64> {
    (from..to).collect()
}

#[test]
fn records_come_in_order_and_once_whatever_becomes_of_connections() {
    let mut fetches = 0;
    let cluster = Cluster::new(move |_, request| {
        fetches += 1;
        match fetches % 3 {
            0 => Reply::Half(more(request)),
            _ => Reply::Answer(more(request)),
        }
    });
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 7, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 1_000);
    assert_eq!(refusal, None);
    assert_eq!(taken[&0][..1_000], run_on(7, 1_007));
}

#[test]
fn a_partition_whose_leader_has_changed_is_read_on_from_the_new_one() {
    let stage = Arc::new(OnceLock::<Arc<Stage>>::new());
    let moves = Arc::clone(&stage);
    let cluster = Cluster::new(move |broker, request| {
        if broker == 0 && asked(request)[0].1 >= 300 {
            // The metadata say so a moment later.
            *moves.get().expect("set below").leader.lock().expect("no panic") = 1;
            let moved = data(0).with_error_code(ResponseError::NotLeaderOrFollower.code());
            return Reply::Answer(answer(vec![moved]));
        }
        Reply::Answer(more(request))
    });
    assert!(stage.set(Arc::clone(&cluster.stage)).is_ok());
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 600);
    assert_eq!(refusal, None);
    assert_eq!(taken[&0][..600], run_on(0, 600));
}

#[test]
fn a_log_that_was_cut_off_and_has_grown_again_ends_the_run() {
    let cluster = Cluster::new(move |_, request| {
        let (_, offset, epoch) = asked(request)[0];
        match offset {
            0 => Reply::Answer(more(request)),
            // The last batch was written under epoch 0.
            _ => {
                assert_eq!((offset, epoch), (100, 0));
                let parted = EpochEndOffset::default().with_epoch(0).with_end_offset(60);
                Reply::Answer(answer(vec![data(0).with_diverging_epoch(parted)]))
            }
        }
    });
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 101);
    assert_eq!(taken[&0], run_on(0, 100));
    assert!(matches!(&refusal, Some(Refusal::OutOfRange(why)) if why.contains("60")), "{refusal:?}");
}

#[test]
fn a_topic_that_was_made_again_between_two_fetches_is_not_read_on_with() {
    let stage = Arc::new(OnceLock::<Arc<Stage>>::new());
    let changes = Arc::clone(&stage);
    let cluster = Cluster::new(move |_, request| {
        if asked(request)[0].1 == 200 {
            // Same name, leader and epoch, and as many records.
            *changes.get().expect("set below").topic.lock().expect("no panic") = Uuid::from_u128(2);
        }
        Reply::Answer(more(request))
    });
    assert!(stage.set(Arc::clone(&cluster.stage)).is_ok());
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 300);
    assert_eq!((&taken[&0], refusal), (&run_on(0, 300), None));
    let looks = || cluster.stage.looks.load(Ordering::SeqCst);
    let (before, began) = (looks(), Instant::now());
    while looks() < before + 3 {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(fetcher.front().is_none());
}

#[test]
fn brokers_that_fetch_by_names_alone_are_asked_by_them() {
    let cluster = Cluster::new(|_, request| {
        assert_eq!(request.topics[0].topic.as_str(), TOPIC);
        Reply::Answer(more(request))
    });
    cluster.stage.is_old.store(true, Ordering::SeqCst);
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 200);
    assert_eq!((taken[&0][..200].to_vec(), refusal), (run_on(0, 200), None));
}

#[test]
fn what_was_fetched_for_a_run_that_has_ended_never_comes_out() {
    let cluster = Cluster::new(|_, request| Reply::Answer(more(request)));
    let mut fetcher = cluster.fetcher(|_| {});
    for from in [0, 5_000, 40, 9_000] {
        fetcher.start(at(0), from, -1);
        fetcher.begin_started();
        let (taken, refusal) = take(&mut fetcher, 200);
        assert_eq!(refusal, None);
        assert_eq!(taken[&0][..200], run_on(from, from + 200));
        fetcher.stop(at(0));
        assert!(fetcher.front().is_none());
    }
}

#[test]
fn a_partition_that_nobody_takes_from_is_left_out_and_the_other_goes_on() {
    let most = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&most);
    let cluster = Cluster::new(move |_, request| {
        for (partition, offset, _) in asked(request) {
            if partition == 1 {
                let mut most = seen.lock().expect("no panic");
                *most = offset.max(*most);
            }
        }
        Reply::Answer(more(request))
    });
    let mut fetcher = cluster.fetcher(|config| config.limits.partition_fetch_bytes = 4_000);
    fetcher.start(at(0), 0, -1);
    fetcher.start(at(1), 0, -1);
    fetcher.begin_started();
    let (mut others, began) = (0, Instant::now());
    // As often as that the full one would be asked for as well.
    while others < 50 {
        assert!(began.elapsed() < SOON, "only {others} arrivals of the other one");
        for arrival in fetcher.shared.arrived() {
            if arrival.partition == at(0) {
                fetcher.shared.taken(arrival.partition, arrival.bytes);
                others += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let reached = *most.lock().expect("no panic");
    assert!(
        (100..=500).contains(&reached),
        "{reached} records of a partition that holds four thousand bytes"
    );
}

#[test]
fn an_answer_unpacks_to_no_more_than_is_usual() {
    const BYTES: usize = 3_000_000;
    let cluster = Cluster::new(|_, request| {
        let zeros = vec![0u8; BYTES];
        let record = NewRecord { value: Some(&zeros), ..NewRecord::default() };
        let batch = |offset: i64| NewBatch::at(offset).push(&record).codec(4).build();
        let of = |(partition, offset, _): (i32, i64, i32)| {
            let batches: Vec<u8> = (offset..offset + 5).flat_map(|offset| batch(offset).to_vec()).collect();
            data(partition).with_records(Some(batches.into()))
        };
        Reply::Answer(answer(asked(request).into_iter().map(of).collect()))
    });
    let mut fetcher = cluster.fetcher(|config| config.limits.fetch_queue_kib = 1_024);
    fetcher.start(at(0), 0, -1);
    fetcher.start(at(1), 0, -1);
    fetcher.begin_started();
    let began = Instant::now();
    while !fetcher.has_arrived() {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    let arrived = fetcher.shared.arrived();
    // Of the ten that came; the queue holds 1 MiB.
    assert!(arrived.iter().map(|arrival| arrival.bytes).sum::<usize>() < 4 * BYTES);
    for arrival in arrived {
        fetcher.shared.taken(arrival.partition, arrival.bytes);
    }
    // Behind what came of them, neither leaves anything out.
    let (taken, refusal) = take(&mut fetcher, 4);
    assert_eq!(refusal, None);
    for offsets in taken.values() {
        assert!(offsets.windows(2).all(|pair| pair[1] == pair[0] + 1), "{taken:?}");
    }
}

#[test]
fn a_start_calls_a_fetch_back_that_waits_without_it() {
    let waits = Arc::new(AtomicBool::new(false));
    let begun = Arc::clone(&waits);
    let cluster = Cluster::new(move |_, request| match asked(request)[..] {
        [(0, ..)] => {
            begun.store(true, Ordering::SeqCst);
            Reply::Nothing
        }
        _ => Reply::Answer(answer(vec![data(1).with_records(Some(batch(asked(request)[1].1, 0)))])),
    });
    let mut fetcher = cluster.fetcher(|config| {
        config.properties.insert("fetch.wait.max.ms".to_owned(), "60000".to_owned());
    });
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let began = Instant::now();
    while !waits.load(Ordering::SeqCst) {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    fetcher.start(at(1), 0, -1);
    fetcher.begin_started();
    // Long before the first fetch would be answered.
    let (taken, refusal) = take(&mut fetcher, 100);
    assert_eq!((taken[&1][..100].to_vec(), refusal), (run_on(0, 100), None));
}

#[test]
fn garbage_from_a_broker_is_not_the_end() {
    let mut fetches = 0;
    let cluster = Cluster::new(move |_, request| {
        fetches += 1;
        let good = more(request);
        Reply::Answer(match fetches {
            // Of a partition, and of a topic, that nobody asked for.
            1 => answer(vec![data(17).with_records(Some(batch(0, 0)))]),
            2 => FetchResponse::default().with_error_code(ResponseError::UnknownServerError.code()),
            3 => answer(vec![data(0).with_error_code(12_345)]),
            _ => good,
        })
    });
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 200);
    assert_eq!((taken[&0][..200].to_vec(), refusal), (run_on(0, 200), None));
}

#[test]
fn a_password_that_is_wrong_by_now_is_said_until_it_is_right_again() {
    let mut fetches = 0;
    let cluster = Cluster::new(move |_, request| {
        fetches += 1;
        // One connection for each fetch, so that there is a sign-in for each.
        if fetches % 2 == 0 { Reply::Half(more(request)) } else { Reply::Answer(more(request)) }
    });
    let mut fetcher = cluster.fetcher(|config| {
        config.security_protocol = "sasl_plaintext".to_owned();
        config.sasl_mechanism = Some("PLAIN".to_owned());
        config.sasl_username = Some("me".to_owned());
        config.sasl_password = Some("canary".to_owned());
    });
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let from = take(&mut fetcher, 200).0[&0].len() as i64;
    assert_eq!(fetcher.obstacle(), None);
    cluster.stage.is_closed.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let met = loop {
        assert!(began.elapsed() < SOON);
        // There has to be room for more.
        if fetcher.front().is_some() {
            fetcher.pop();
        }
        match fetcher.obstacle() {
            Some(met) => break met,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert!(met.contains("does not let `me` sign in with PLAIN") && !met.contains("canary"), "{met}");
    cluster.stage.is_closed.store(false, Ordering::SeqCst);
    let (taken, refusal) = take(&mut fetcher, 200);
    assert_eq!(refusal, None);
    assert!(taken[&0][0] >= from, "{taken:?}");
    while fetcher.obstacle().is_some() {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
}
