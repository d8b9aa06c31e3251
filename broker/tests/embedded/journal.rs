//! What a data directory keeps over a stop and over a kill.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::{
    CreatePartitionsRequest, DeleteTopicsRequest, GroupId, HeartbeatRequest, InitProducerIdRequest,
    JoinGroupRequest, SyncGroupRequest,
};
use tidemill_broker::{Broker, Config, Error, Fsync};

use crate::child::{Process, config};
use crate::raw::{NOBODY, Raw, Stamp, batch, produce_raw, text, topic_id, topic_name};
use crate::steps::{Producer, committed, create, end_offset, offset, stable_offset, wait_until};

fn start(directory: &Path) -> (Broker, Raw) {
    let broker = Broker::start(config(directory)).expect("starts");
    let raw = Raw::connect(&broker.address().to_string());
    (broker, raw)
}

/// All files with this extension below a directory.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("is readable") {
        let path = entry.expect("is readable").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn topics_records_and_settings_survive_a_restart() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (broker, mut raw) = start(directory.path());
    create(&mut raw, "kept", 1, &[("cleanup.policy", "compact")]);
    create(&mut raw, "gone", 1, &[]);
    let id = topic_id(&mut raw, "kept");
    for value in ["a", "b"] {
        assert_eq!(produce_raw(&mut raw, "kept", None, batch(NOBODY, &[value])).error_code, 0);
    }
    let gone = DeleteTopicsRequest::default().with_topic_names(vec![topic_name("gone")]);
    assert_eq!(raw.call(&gone, 5).responses[0].error_code, 0);
    let grow =
        CreatePartitionsTopic::default().with_name(topic_name("kept")).with_count(2).with_assignments(None);
    assert_eq!(
        raw.call(&CreatePartitionsRequest::default().with_topics(vec![grow]), 3).results[0].error_code,
        0
    );
    broker.shutdown().expect("stops");

    let (broker, mut raw) = start(directory.path());
    assert_eq!(topic_id(&mut raw, "kept"), id);
    assert!(topic_id(&mut raw, "gone").is_nil());
    assert_eq!(committed(&mut raw, "kept", 0), ["a", "b"]);
    assert_eq!(end_offset(&mut raw, "kept", 1, 0), 0);
    broker.compact_now().expect("compacts");
    assert_eq!(committed(&mut raw, "kept", 0), ["b"], "it is still a compacted topic");
    broker.shutdown().expect("stops");

    let (_broker, mut raw) = start(directory.path());
    assert_eq!(committed(&mut raw, "kept", 0), ["b"]);
    let placed = produce_raw(&mut raw, "kept", None, batch(NOBODY, &["c"]));
    assert_eq!((placed.error_code, placed.base_offset), (0, 2));
}

#[test]
fn a_producers_sequence_survives_a_kill() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let broker = Process::start(directory.path());
    let mut raw = Raw::connect(&broker.address);
    create(&mut raw, "t", 1, &[]);
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(1000)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let id = raw.call(&request, 4).producer_id.0;
    let stamp = |sequence| Stamp { id, epoch: 0, sequence, transactional: false };
    for sequence in 0..3 {
        assert_eq!(produce_raw(&mut raw, "t", None, batch(stamp(sequence), &["v"])).error_code, 0);
    }
    broker.kill();

    let broker = Process::start(directory.path());
    let mut raw = Raw::connect(&broker.address);
    let again = produce_raw(&mut raw, "t", None, batch(stamp(2), &["v"]));
    assert_eq!((again.error_code, again.base_offset), (0, 2), "it is recognised");
    assert_eq!(produce_raw(&mut raw, "t", None, batch(stamp(4), &["v"])).error_code, 45);
    assert_eq!(produce_raw(&mut raw, "t", None, batch(stamp(3), &["v"])).error_code, 0);
    assert_ne!(raw.call(&request, 4).producer_id.0, id, "the id is not given again");
    broker.kill();
}

/// Leaves an open transaction with a record and an offset behind, and kills the broker.
fn killed_in_a_transaction(directory: &Path, timeout_ms: i32) -> (Process, Raw, Producer) {
    let broker = Process::start(directory);
    let mut raw = Raw::connect(&broker.address);
    create(&mut raw, "t", 1, &[]);
    let producer = Producer::init(&mut raw, "open", timeout_ms).expect("is there");
    assert_eq!(producer.add(&mut raw, "t", &[0]), Some(0));
    assert_eq!(producer.produce(&mut raw, "t", 0, 0, "v"), Some(0));
    assert_eq!(producer.commit_offset(&mut raw, "g", "t", 5), Some(0));
    broker.kill();
    let broker = Process::start(directory);
    let raw = Raw::connect(&broker.address);
    (broker, raw, producer)
}

#[test]
fn an_open_transaction_stays_open_over_a_kill_and_can_be_committed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (broker, mut raw, producer) = killed_in_a_transaction(directory.path(), 60_000);
    assert_eq!((end_offset(&mut raw, "t", 0, 1), end_offset(&mut raw, "t", 0, 0)), (0, 1));
    assert_eq!(offset(&mut raw, "g", "t", true), (88, -1));
    assert_eq!(producer.produce(&mut raw, "t", 0, 1, "w"), Some(0));
    assert_eq!(producer.end(&mut raw, true), Some(0));
    assert_eq!(committed(&mut raw, "t", 0), ["v", "w"]);
    assert_eq!(stable_offset(&mut raw, "g", "t"), 5);
    broker.kill();

    let broker = Process::start(directory.path());
    let mut raw = Raw::connect(&broker.address);
    assert_eq!(committed(&mut raw, "t", 0), ["v", "w"]);
    assert_eq!(stable_offset(&mut raw, "g", "t"), 5);
    broker.kill();
}

#[test]
fn an_open_transaction_is_aborted_after_a_kill_when_its_producer_starts_anew() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (broker, mut raw, former) = killed_in_a_transaction(directory.path(), 60_000);
    let next = Producer::init(&mut raw, "open", 60_000).expect("is there");
    assert_eq!((next.id, next.epoch), (former.id, former.epoch + 2));
    assert!(committed(&mut raw, "t", 0).is_empty());
    assert_eq!(stable_offset(&mut raw, "g", "t"), -1);
    assert_eq!(former.end(&mut raw, true), Some(90));
    broker.kill();
}

#[test]
fn an_open_transaction_times_out_after_a_kill() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (broker, mut raw, _) = killed_in_a_transaction(directory.path(), 1500);
    wait_until("it is aborted", || end_offset(&mut raw, "t", 0, 1) == 2);
    assert!(committed(&mut raw, "t", 0).is_empty());
    assert_eq!(stable_offset(&mut raw, "g", "t"), -1);
    broker.kill();
}

#[test]
fn a_decided_transaction_is_completed_after_a_stop_between_its_markers() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let delay = Duration::from_secs(600);
    let slow = Config { marker_delay: delay, ..config(directory.path()) };
    let broker = Broker::start(slow).expect("starts");
    let mut raw = Raw::connect(&broker.address().to_string());
    create(&mut raw, "t", 2, &[]);
    let producer = Producer::init(&mut raw, "decided", 60_000).expect("is there");
    assert_eq!(producer.add(&mut raw, "t", &[0, 1]), Some(0));
    for partition in [0, 1] {
        assert_eq!(producer.produce(&mut raw, "t", partition, 0, "v"), Some(0));
    }
    assert_eq!(producer.commit_offset(&mut raw, "g", "t", 5), Some(0));
    assert_eq!(producer.end(&mut raw, true), Some(0));
    assert_eq!(end_offset(&mut raw, "t", 1, 1), 0, "the second marker is missing");
    broker.shutdown().expect("stops");

    let (_broker, mut raw) = start(directory.path());
    assert_eq!(
        (committed(&mut raw, "t", 0), committed(&mut raw, "t", 1)),
        (vec!["v".into()], vec!["v".into()])
    );
    assert_eq!(stable_offset(&mut raw, "g", "t"), 5);
}

#[test]
fn members_and_assignments_survive_a_kill() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let broker = Process::start(directory.path());
    let mut raw = Raw::connect(&broker.address);
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::new());
    let join = JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_session_timeout_ms(20_000)
        .with_rebalance_timeout_ms(20_000)
        .with_group_instance_id(Some(text("one")))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    let joined = raw.call(&join, 5);
    let sync = SyncGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone());
    assert_eq!(raw.call(&sync, 3).error_code, 0);
    broker.kill();

    let broker = Process::start(directory.path());
    let mut raw = Raw::connect(&broker.address);
    let heartbeat = HeartbeatRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone());
    assert_eq!(raw.call(&heartbeat, 3).error_code, 0);
    broker.kill();
}

#[test]
fn a_torn_batch_is_cut_off_wherever_it_was_torn() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (broker, mut raw) = start(directory.path());
    create(&mut raw, "t", 1, &[]);
    for value in ["a", "b"] {
        produce_raw(&mut raw, "t", None, batch(NOBODY, &[value]));
    }
    broker.shutdown().expect("stops");
    let segment = files(directory.path(), "log").remove(0);
    let whole = std::fs::read(&segment).expect("is readable");
    let half = whole.len() / 2;
    for length in (half..whole.len()).step_by(7) {
        std::fs::write(&segment, &whole[..length]).expect("is written");
        let (broker, mut raw) = start(directory.path());
        assert_eq!(committed(&mut raw, "t", 0), ["a"], "cut at {length}");
        let placed = produce_raw(&mut raw, "t", None, batch(NOBODY, &["c"]));
        assert_eq!((placed.error_code, placed.base_offset), (0, 1));
        assert_eq!(committed(&mut raw, "t", 0), ["a", "c"]);
        broker.shutdown().expect("stops");
    }
}

#[test]
fn damage_that_no_kill_can_cause_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (broker, mut raw) = start(directory.path());
    create(&mut raw, "t", 1, &[]);
    broker.shutdown().expect("stops");
    let journal = files(directory.path(), "journal").remove(0);
    let mut bytes = std::fs::read(&journal).expect("is readable");
    bytes[20] ^= 1;
    std::fs::write(&journal, bytes).expect("is written");
    let error = Broker::start(config(directory.path())).expect_err("is refused");
    assert!(matches!(error, Error::Journal(_)), "{error}");
}

#[test]
fn every_write_can_be_forced_to_the_disk() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let forced = Config { fsync: Fsync::EveryWrite, ..config(directory.path()) };
    let broker = Broker::start(forced).expect("starts");
    let mut raw = Raw::connect(&broker.address().to_string());
    create(&mut raw, "t", 1, &[]);
    assert_eq!(produce_raw(&mut raw, "t", None, batch(NOBODY, &["v"])).error_code, 0);
    assert_eq!(committed(&mut raw, "t", 0), ["v"]);
}
