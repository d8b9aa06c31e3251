//! Starting and stopping.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use kafka_protocol::messages::MetadataRequest;
use tidemill_broker::{Broker, Config, Error};

use crate::child::config;
use crate::raw::{NOBODY, Raw, batch, fetch_request, produce_raw};
use crate::steps::{create, wait_until};

#[test]
fn a_port_in_use_is_named_in_the_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let listen = taken.local_addr().expect("is known").to_string();
    let error =
        Broker::start(Config { listen: listen.clone(), ..Config::default() }).expect_err("is refused");
    assert!(matches!(error, Error::PortInUse { .. }));
    assert!(error.to_string().contains(&listen), "{error}");
}

#[test]
fn an_address_that_is_none_is_named_in_the_error() {
    let listen = "nine thousand".to_owned();
    let error = Broker::start(Config { listen, ..Config::default() }).expect_err("is refused");
    assert!(matches!(error, Error::Address { .. }) && error.to_string().contains("nine thousand"));
}

#[test]
fn a_directory_has_one_broker_at_a_time() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let first = Broker::start(config(directory.path())).expect("starts");
    let error = Broker::start(config(directory.path())).expect_err("is refused");
    assert!(matches!(error, Error::DirectoryInUse { .. }), "{error}");
    first.shutdown().expect("stops");
    Broker::start(config(directory.path())).expect("starts");
}

#[test]
fn stopping_ends_waiting_requests_and_frees_the_port() {
    let broker = Broker::start(Config::default()).expect("starts");
    let address = broker.address();
    let mut raw = Raw::connect(&address.to_string());
    create(&mut raw, "t", 1, &[]);
    raw.send(&fetch_request("t", 0, Duration::from_secs(30), 1), 12);
    let idle = Raw::connect(&address.to_string());
    let started = Instant::now();
    broker.shutdown().expect("stops");
    // That is how long it waits for what does not end.
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    assert!(raw.receive_frame().is_none());
    drop(idle);
    wait_until_free(address);
}

#[test]
fn dropping_a_broker_stops_it() {
    let broker = Broker::start(Config::default()).expect("starts");
    let address = broker.address();
    drop(broker);
    wait_until_free(address);
}

/// A child process that another test starts has a copy of the listener until it runs its own program.
fn wait_until_free(address: SocketAddr) {
    wait_until("the port is free", || TcpListener::bind(address).is_ok());
}

#[test]
fn topics_are_created_on_demand_if_so_configured() {
    let config = Config { auto_create_topics: true, partitions_default: 3, ..Config::default() };
    let broker = Broker::start(config).expect("starts");
    let mut raw = Raw::connect(&broker.address().to_string());
    use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
    let wanted = MetadataRequestTopic::default().with_name(Some(crate::raw::topic_name("new")));
    let request =
        MetadataRequest::default().with_topics(Some(vec![wanted])).with_allow_auto_topic_creation(true);
    let topic = raw.call(&request, 12).topics.remove(0);
    assert_eq!((topic.error_code, topic.partitions.len()), (0, 3));
    assert_eq!(produce_raw(&mut raw, "new", None, batch(NOBODY, &["v"])).error_code, 0);
}
