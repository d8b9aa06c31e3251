//! Bounds: what is beyond them is refused, and nothing else suffers.

use std::io::Write;
use std::time::Duration;

use kafka_protocol::messages::MetadataRequest;
use tidemill_broker::{Broker, Config};

use crate::raw::{NOBODY, Raw, batch, produce_raw};
use crate::steps::{create, wait_until};

#[test]
fn connections_beyond_the_limit_are_closed_and_a_freed_place_is_given_away() {
    let broker = Broker::start(Config { connections_max: 2, ..Config::default() }).expect("starts");
    let address = broker.address().to_string();
    let request = MetadataRequest::default();
    let mut first = Raw::connect(&address);
    let mut second = Raw::connect(&address);
    first.call(&request, 9);
    second.call(&request, 9);
    assert!(Raw::connect(&address).try_call(&request, 9).is_none());
    drop(first);
    wait_until("there is room", || Raw::connect(&address).try_call(&request, 9).is_some());
}

#[test]
fn a_request_beyond_the_limit_closes_its_connection_alone() {
    let broker = Broker::start(Config { request_bytes_max: 10_000, ..Config::default() }).expect("starts");
    let address = broker.address().to_string();
    let mut raw = Raw::connect(&address);
    create(&mut raw, "t", 1, &[]);
    let mut greedy = Raw::connect(&address);
    greedy.stream.write_all(&10_001i32.to_be_bytes()).expect("is sent");
    assert!(greedy.receive_frame().is_none());
    assert_eq!(produce_raw(&mut raw, "t", None, batch(NOBODY, &["v"])).error_code, 0);
}

#[test]
fn a_large_request_that_does_not_come_leaves_its_room_to_others() {
    let broker = Broker::start(Config {
        requests_bytes_max: 100_000,
        request_read_max: Duration::from_secs(2),
        ..Config::default()
    })
    .expect("starts");
    let address = broker.address().to_string();
    let mut raw = Raw::connect(&address);
    create(&mut raw, "t", 1, &[]);
    let mut silent = Raw::connect(&address);
    silent.stream.write_all(&100_000i32.to_be_bytes()).expect("is sent");
    let value = "x".repeat(80_000);
    assert_eq!(produce_raw(&mut raw, "t", None, batch(NOBODY, &[&value])).error_code, 0);
    assert!(silent.receive_frame().is_none());
}

#[test]
fn memory_for_records_is_bounded_and_freed_by_retention() {
    let broker = Broker::start(Config {
        memory_bytes_max: 100_000,
        maintenance_interval: Duration::from_millis(50),
        ..Config::default()
    })
    .expect("starts");
    let mut raw = Raw::connect(&broker.address().to_string());
    create(&mut raw, "t", 1, &[("retention.ms", "500")]);
    let value = "x".repeat(10_000);
    let mut produce = || produce_raw(&mut raw, "t", None, batch(NOBODY, &[&value])).error_code;
    wait_until("the memory is full", || produce() == 56);
    wait_until("there is room", || produce() == 0);
}

#[test]
fn partitions_are_bounded() {
    let broker = Broker::start(Config { partitions_max: 10, ..Config::default() }).expect("starts");
    let mut raw = Raw::connect(&broker.address().to_string());
    create(&mut raw, "t", 10, &[]);
    use kafka_protocol::messages::CreateTopicsRequest;
    use kafka_protocol::messages::create_topics_request::CreatableTopic;
    let topic = CreatableTopic::default()
        .with_name(crate::raw::topic_name("u"))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let response = raw.call(&CreateTopicsRequest::default().with_topics(vec![topic]), 7);
    assert_eq!(response.topics[0].error_code, 44);
}
