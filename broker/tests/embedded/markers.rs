//! Markers that land in different partitions at different times, as they may in a cluster.

use std::time::{Duration, Instant};

use tidemill_broker::{Broker, Config};

use crate::raw::Raw;
use crate::steps::{Producer, committed, create, end_offset, offset, stable_offset, wait_until};

#[test]
fn a_delayed_marker_holds_back_its_partition_and_the_next_transaction() {
    // What is looked at within the delay may take longer on a busy machine.
    let delays = [300, 3_000, 10_000].map(Duration::from_millis);
    assert!(delays.into_iter().any(holds_back), "the checks came too late");
}

/// False if it was looked at too late.
fn holds_back(delay: Duration) -> bool {
    let broker = Broker::start(Config { marker_delay: delay, ..Config::default() }).expect("starts");
    let mut raw = Raw::connect(&broker.address().to_string());
    create(&mut raw, "t", 2, &[]);
    let producer = Producer::init(&mut raw, "slow-markers", 10_000).expect("is there");
    assert_eq!(producer.add(&mut raw, "t", &[0, 1]), Some(0));
    for partition in [0, 1] {
        assert_eq!(producer.produce(&mut raw, "t", partition, 0, "v"), Some(0));
    }
    assert_eq!(producer.commit_offset(&mut raw, "g", "t", 7), Some(0));
    let started = Instant::now();
    assert_eq!(producer.end(&mut raw, true), Some(0));
    let ends = [0, 1].map(|partition| end_offset(&mut raw, "t", partition, 1));
    let offset = offset(&mut raw, "g", "t", true);
    let next = [producer.add(&mut raw, "t", &[0]), producer.end(&mut raw, true)];
    if started.elapsed() >= delay {
        return false;
    }
    assert_eq!(ends, [2, 0], "the client is told, the first marker is there, the second is not");
    assert_eq!(offset, (88, -1), "nor are the offsets");
    assert_eq!(next, [Some(51); 2], "the next transaction has to wait");

    wait_until("the second marker is there", || end_offset(&mut raw, "t", 1, 1) == 2);
    assert!(started.elapsed() >= delay);
    assert_eq!(stable_offset(&mut raw, "g", "t"), 7);
    assert!(started.elapsed() >= 2 * delay);
    wait_until("the next transaction can begin", || producer.add(&mut raw, "t", &[0]) == Some(0));
    assert_eq!(committed(&mut raw, "t", 1), ["v"]);
    true
}
