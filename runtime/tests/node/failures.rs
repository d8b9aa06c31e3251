//! Records that fail, on a whole node: retries, dead letters, and a park that is full.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill::kafka::tools::{self, Consumed, Row};
use tidemill::node::Node;
use tidemill::store::unpack;
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually};

const BURIES: &str = "\
name: buries
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: out } }
failures: { transient: { attempts: 2, backoff: 20ms..40ms }, then: dead_letter, events: {} }
";

const FULL: &str = "\
name: full
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: other } }
failures: { transient: { attempts: 1, backoff: 20ms..40ms }, then: park, parked: { records: 2 } }
";

fn row(partition: i32, key: &str, value: &[u8]) -> Row {
    Row {
        key: Some(key.as_bytes().to_vec()),
        value: Some(value.to_vec()),
        partition: Some(partition),
        headers: vec![("correlation-id".into(), Some(b"c-1".to_vec()))],
        ..Row::default()
    }
}

/// Everything committed in a topic.
pub fn read(world: &World, topic: &str) -> Vec<Consumed> {
    world.committed(topic).expect("read")
}

fn lag(node: &Node, deployment: &str) -> BTreeMap<i32, (u64, String)> {
    let lags = node.handle().lag(Some(deployment)).unwrap_or_default();
    lags.into_iter().map(|lag| (lag.partition, (lag.records, lag.reason))).collect()
}

#[test]
fn failed_records_are_tried_again_buried_or_parked_and_a_full_park_pauses_its_partition_only() {
    let world = World::new(&[("in", 2), ("out", 1), ("other", 1)]);
    let hostile = build_guest("tests/guests/hostile");
    let node = world.node();
    deploy(&node, BURIES, &hostile);
    deploy(&node, FULL, &hostile);
    let rows = [
        row(0, "a", b"ok"),
        row(0, "b", b"transient"),
        row(0, "b", b"ok"),
        row(0, "c", b"\xff"),
        row(0, "d", b"panic"),
        row(0, "e", b"ok"),
        row(1, "f", b"ok"),
    ];
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");

    // One deployment buries them all and goes on.
    eventually("every record is passed", || {
        lag(&node, "buries").values().map(|(records, _)| *records).collect::<Vec<_>>() == [0, 0]
    });
    eventually("b's record behind the buried one is handled", || read(&world, "out").len() == 4);
    let letters = read(&world, "test.buries.dead-letters");
    let text = |letter: &Consumed, name: &str| {
        let value =
            letter.headers.iter().find(|(found, _)| found == name).and_then(|(_, value)| value.clone());
        String::from_utf8(value.expect(name)).expect("text")
    };
    let mut shown: Vec<_> = letters
        .iter()
        .map(|letter| {
            (text(letter, "original_offset"), text(letter, "error_class"), text(letter, "attempts"))
        })
        .collect();
    shown.sort();
    let expected = [("1", "transient", "3"), ("3", "decode", "1"), ("4", "trap", "1")];
    assert_eq!(shown, expected.map(|(offset, class, tries)| (offset.into(), class.into(), tries.into())));
    let garbled = letters.iter().find(|letter| letter.key.as_deref() == Some(b"c")).expect("buried");
    assert_eq!((garbled.value.as_deref(), garbled.partition), (Some(&b"\xff"[..]), 0));
    assert_eq!(garbled.headers[0], ("correlation-id".to_owned(), Some(b"c-1".to_vec())));
    assert_eq!(
        (text(garbled, "correlation_id"), text(garbled, "original_topic")),
        ("c-1".into(), "in".into())
    );

    // Everything that has become of them is told, in the order of each record.
    let mut told: Vec<_> = read(&world, "test.buries.failures")
        .iter()
        .map(|event| {
            let event: serde_json::Value =
                serde_json::from_slice(event.value.as_deref().expect("a value")).expect("JSON");
            assert_eq!(
                (&event["specversion"], &event["source"]),
                (&"1.0".into(), &"/tidemill/test/buries".into())
            );
            assert_eq!(event["correlationid"], "c-1");
            let text = |name: &str| event["data"][name].as_str().unwrap_or_default().to_owned();
            (text("original_offset"), text("verdict"))
        })
        .collect();
    told.sort_by_key(|(offset, _)| offset.clone());
    let expected = [
        ("1", "retry_scheduled"),
        ("1", "retry_scheduled"),
        ("1", "dead_lettered"),
        ("3", "dead_lettered"),
        ("4", "dead_lettered"),
    ];
    assert_eq!(told, expected.map(|(offset, verdict)| (offset.into(), verdict.into())));

    // The other has room for two, and pauses the partition of the third.
    eventually("the full park says so", || lag(&node, "full")[&0].1.starts_with("paused: 2 records"));
    eventually("the other partition goes on", || lag(&node, "full")[&1].0 == 0);
    assert!(lag(&node, "full")[&0].0 > 0, "{:?}", lag(&node, "full"));
    node.stop();

    // What is parked is there again after a restart; a new version with more room tries it anew.
    let node = world.node();
    eventually("still paused", || lag(&node, "full")[&0].1.starts_with("paused: 2 records"));
    deploy(&node, &FULL.replace("then: park, parked: { records: 2 }", "then: dead_letter"), &hostile);
    eventually("nothing is left", || lag(&node, "full").values().all(|(records, _)| *records == 0));
    eventually("all is buried", || read(&world, "test.full.dead-letters").len() == 3);
    node.stop();
    let mut keys: Vec<_> = read(&world, "other").into_iter().filter_map(|record| record.key).collect();
    keys.sort();
    assert_eq!(keys, [b"a", b"b", b"e", b"f"]);
}

const WAITS: &str = "\
name: waits
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: out } }
failures: { transient: { attempts: 1, backoff: 1h..1h }, then: dead_letter, parked: { records: 4 } }
";

#[test]
fn a_redrive_without_room_for_its_letters_says_so_and_goes_on_when_there_is_some() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let node = world.node();
    deploy(&node, WAITS, &build_guest("tests/guests/hostile"));
    let rows = [row(0, "a", b"transient"), row(0, "b", b"transient"), row(0, "c", b"permanent")];
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");
    let letters = || world.committed("test.waits.dead-letters").unwrap_or_default();
    eventually("two are parked for an hour, and one is buried", || letters().len() == 1);
    let redrive = proto::RedriveRequest { deployment: "waits".into(), ..proto::RedriveRequest::default() };
    let id = node.handle().redrive(redrive, Vec::new()).expect("accepted").id;
    let asked =
        proto::RedrivesRequest { deployment: "waits".into(), id: Some(id), partition: Some(0), local: true };
    let stands =
        || node.handle().redrives_here(&asked).expect("told").redrives.remove(0).partitions.remove(0);
    eventually("half of the park is full", || stands().reason.starts_with("letters wait: 2 records ("));
    let filter = proto::ParkedFilter { keys: vec![b"a".to_vec()], ..proto::ParkedFilter::default() };
    let request = proto::DropParkedRequest {
        deployment: "waits".into(),
        filter: Some(filter),
        partition: Some(0),
        waiting: false,
        discard: true,
        author: "pat".into(),
        local: true,
    };
    let soon = Instant::now() + Duration::from_secs(20);
    node.handle().parked_drop(&request, soon).expect("dropped");
    eventually("the letter comes back, and fails again", || {
        let stands = stands();
        stands.reason.is_empty() && stands.progress.is_some_and(|progress| progress.again == 1)
    });
    node.stop();
}

const SHARES: &str = "\
name: shares
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: out } }
failures: { then: dead_letter, dead_letters: { topic: dead } }
";

#[test]
fn a_dead_letter_topic_that_was_made_before_may_have_more_partitions_than_the_inputs() {
    let world = World::new(&[("in", 2), ("out", 1), ("dead", 3)]);
    let node = world.node();
    deploy(&node, SHARES, &build_guest("tests/guests/hostile"));
    tools::produce(&world.kafka(), "in", vec![row(1, "a", b"permanent")], None, &mut |_| {})
        .expect("produced");
    eventually("it is buried", || read(&world, "dead").len() == 1);
    assert_eq!(read(&world, "dead")[0].partition, 1, "its record's");
    node.stop();
}

const INBOX: &str = "\
name: once
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: out } }
failures: { then: dead_letter }
inbox: { id: \"header:id\", ttl: 24h }
";

/// A record with an id.
fn sent(partition: i32, key: &str, value: &[u8], id: &str) -> Row {
    Row { headers: vec![("id".into(), Some(id.as_bytes().to_vec()))], ..row(partition, key, value) }
}

#[test]
fn a_repetition_has_no_effect_also_after_a_restart_and_with_an_empty_disk() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let node = world.node();
    deploy(&node, INBOX, &build_guest("tests/guests/hostile"));
    let produce =
        |rows: Vec<Row>| tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");
    let none_behind =
        |node: &Node| eventually("no lag", || lag(node, "once").values().all(|(records, _)| *records == 0));
    let nameless = Row { headers: Vec::new(), ..row(0, "n", b"ok") };
    produce(vec![
        sent(0, "a", b"ok", "1"),
        sent(0, "a", b"ok", "1"),
        sent(0, "b", b"permanent", "2"),
        nameless,
    ]);
    eventually("the first is handled, two are buried", || {
        read(&world, "out").len() == 1 && read(&world, "test.once.dead-letters").len() == 2
    });
    none_behind(&node);
    node.stop();

    produce(vec![sent(0, "a", b"ok", "1"), sent(0, "b", b"ok", "2")]);
    let node = world.node();
    eventually("the one that had failed is handled now", || read(&world, "out").len() == 2);
    none_behind(&node);
    node.stop();

    std::fs::remove_dir_all(world.dir.path().join("node-n").join("stores")).expect("the disk is lost");
    produce(vec![sent(0, "a", b"ok", "1"), sent(0, "b", b"ok", "2"), sent(0, "c", b"ok", "3")]);
    let node = world.node();
    none_behind(&node);
    eventually("the new one is handled", || read(&world, "out").len() == 3);
    node.stop();
    let mut ids = Vec::new();
    for record in read(&world, "test.once.inbox") {
        let rows = unpack(record.key.as_deref().expect("a key"), record.value.as_deref());
        ids.extend(rows.expect("rows").map(|(key, _)| key.to_vec()));
    }
    assert_eq!(ids, [b"\x021", b"\x022", b"\x023"]);
}

#[test]
fn a_restart_of_one_partition_leaves_what_else_is_halted_as_it_is() {
    let world = World::new(&[("in", 3), ("out", 3)]);
    let node = world.node();
    let document = "name: stops\nmodule: hostile.wasm\ninputs: { in: { topic: in } }\noutputs: { out: { topic: out } }\n";
    deploy(&node, document, &build_guest("tests/guests/hostile"));
    let row = |partition, value: &str| Row {
        key: Some(b"k".to_vec()),
        value: Some(value.into()),
        partition: Some(partition),
        ..Row::default()
    };
    let rows = [row(0, "panic"), row(1, "panic"), row(2, "ok")];
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");
    let seen = || -> Vec<(u64, proto::TaskState)> {
        let tasks = node.handle().rollout("stops").map(|rollout| rollout.tasks).unwrap_or_default();
        tasks.iter().map(|task| (task.revision, task.state())).collect()
    };
    let (halted, running) = (proto::TaskState::Halted, proto::TaskState::Running);
    let first = node.handle().deployment("stops").expect("deployed").revision;
    eventually("two of three are halted", || seen() == [(first, halted), (first, halted), (first, running)]);

    let restart = |partition| {
        let request = proto::RestartRequest { name: "stops".into(), partition, ..Default::default() };
        node.handle().restart(request).map(|answer| answer.deployment.expect("a deployment").revision)
    };
    let second = restart(Some(0)).expect("a restart");
    eventually("one was tried again, and halts again", || {
        seen() == [(second, halted), (first, halted), (second, running)]
    });
    let refused = restart(Some(3)).expect_err("there are three").to_string();
    assert!(refused.contains("stops has no partition 3: its inputs have 0 to 2"), "{refused}");
    let third = restart(None).expect("a restart");
    eventually("all are tried again", || seen() == [(third, halted), (third, halted), (third, running)]);
    node.stop();
}
