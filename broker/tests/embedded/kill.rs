//! Random kills under load: what was acknowledged stays, what was not is all there or not at all.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::child::Process;
use crate::raw::Raw;
use crate::steps::{Producer, committed, create, stable_offset};

const ROUNDS: usize = 12;

/// One transaction: number `n` to both partitions, and `n + 1` as the committed offset.
fn transact(raw: &mut Raw, producer: &Producer, sequence: i32, n: i64) -> Option<()> {
    let value = n.to_string();
    let done = |error: i16| assert_eq!(error, 0, "transaction {n}");
    producer.add(raw, "t", &[0, 1]).map(done)?;
    producer.produce(raw, "t", 0, sequence, &value).map(done)?;
    producer.produce(raw, "t", 1, sequence, &value).map(done)?;
    producer.commit_offset(raw, "g", "t", n + 1).map(done)?;
    producer.end(raw, true).map(done)
}

/// A client that resumes from its stable committed offset repeats nothing and leaves nothing out,
/// whenever the broker is killed.
#[test]
fn killed_at_any_instant_under_transactions_the_broker_loses_and_repeats_nothing() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("SEED={seed}");
    let mut state = seed | 1;
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let broker = Process::start(directory.path());
        let mut raw = Raw::connect(&broker.address);
        if round == 0 {
            create(&mut raw, "t", 2, &[("segment.ms", "50")]);
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let life = Duration::from_micros(2000 + state % 150_000);
        let killer = std::thread::spawn(move || {
            std::thread::park_timeout(life);
            broker.kill();
        });
        if let Some(producer) = Producer::init(&mut raw, "writer", 60_000) {
            let mut n = resume(&mut raw);
            for sequence in 0.. {
                let Some(from) = n else { break };
                if transact(&mut raw, &producer, sequence, from).is_none() {
                    break;
                }
                acknowledged = from + 1;
                n = Some(from + 1);
            }
        }
        killer.join().expect("kills");
    }

    let broker = Process::start(directory.path());
    let mut raw = Raw::connect(&broker.address);
    Producer::init(&mut raw, "writer", 60_000).expect("is there");
    let offset = stable_offset(&mut raw, "g", "t").max(0);
    let expected: Vec<String> = (0..offset).map(|n| n.to_string()).collect();
    assert_eq!(committed(&mut raw, "t", 0), expected);
    assert_eq!(committed(&mut raw, "t", 1), expected);
    assert!(offset >= acknowledged, "{acknowledged} were acknowledged, {offset} are there");
    println!("{offset} transactions over {ROUNDS} kills");
    broker.kill();
}

/// Where to go on; none if the broker has just been killed.
fn resume(raw: &mut Raw) -> Option<i64> {
    use crate::raw::{text, topic_name};
    use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
    use kafka_protocol::messages::{GroupId, OffsetFetchRequest};
    let topics =
        OffsetFetchRequestTopics::default().with_name(topic_name("t")).with_partition_indexes(vec![0]);
    let wanted =
        OffsetFetchRequestGroup::default().with_group_id(GroupId(text("g"))).with_topics(Some(vec![topics]));
    let request = OffsetFetchRequest::default().with_groups(vec![wanted]).with_require_stable(true);
    loop {
        let response = raw.try_call(&request, 8)?;
        let partition = &response.groups[0].topics[0].partitions[0];
        match partition.error_code {
            0 => return Some(partition.committed_offset.max(0)),
            88 => std::thread::park_timeout(Duration::from_millis(2)),
            other => panic!("offset fetch: error {other}"),
        }
    }
}
