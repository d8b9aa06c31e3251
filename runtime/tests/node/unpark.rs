//! An operator's hand in parked records, on a whole node: what is released is handled in order, what is dropped
//! is a letter or told of.

use std::time::{Duration, Instant};

use tidemill::kafka::tools::{self, Row};
use tidemill::node::{ControlError, Node};
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually};

/// Links the records of a key, and fails what it is told to.
const KEEPS: &str = "\
name: keeps
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: out } }
failures: { then: park, parked: { records: 5 } }
";

fn row(key: Option<&str>, value: &str) -> Row {
    Row { key: key.map(|key| key.as_bytes().to_vec()), value: Some(value.into()), ..Row::default() }
}

fn produce(world: &World, rows: &[(Option<&str>, &str)]) {
    let rows = rows.iter().map(|(key, value)| row(*key, value));
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn list(node: &Node, filter: proto::ParkedFilter) -> Vec<proto::ParkedKey> {
    let mut request = proto::ListParkedRequest {
        deployment: "keeps".into(),
        filter: Some(filter),
        partition: Some(0),
        limit: 1,
        ..proto::ListParkedRequest::default()
    };
    let mut keys = Vec::new();
    loop {
        let Ok(page) = node.handle().parked_list(&request, soon()) else { return Vec::new() };
        keys.extend(page.keys);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return keys;
        }
    }
}

/// Key, how many of it, and the offset of its first.
fn shown(node: &Node) -> Vec<(String, u64, u64)> {
    let keys = list(node, proto::ParkedFilter::default());
    keys.into_iter().map(|one| (String::from_utf8(one.key).expect("text"), one.records, one.offset)).collect()
}

fn of(key: &str) -> Option<proto::ParkedFilter> {
    Some(proto::ParkedFilter { keys: vec![key.into()], ..proto::ParkedFilter::default() })
}

fn release(node: &Node, filter: Option<proto::ParkedFilter>) -> proto::ReleaseParkedResponse {
    let request = proto::ReleaseParkedRequest {
        deployment: "keeps".into(),
        filter,
        partition: Some(0),
        author: "pat".into(),
        local: true,
    };
    node.handle().parked_release(&request, soon()).expect("released")
}

fn drop_request(filter: Option<proto::ParkedFilter>, discard: bool) -> proto::DropParkedRequest {
    proto::DropParkedRequest {
        deployment: "keeps".into(),
        filter,
        partition: Some(0),
        waiting: false,
        discard,
        author: "pat".into(),
        local: true,
    }
}

fn keys(world: &World, topic: &str) -> Vec<String> {
    let records = crate::failures::read(world, topic);
    records
        .into_iter()
        .map(|record| String::from_utf8(record.key.unwrap_or_default()).expect("text"))
        .collect()
}

fn lag(node: &Node) -> (u64, String) {
    let lags = node.handle().lag(Some("keeps")).unwrap_or_default();
    lags.into_iter().next().map(|lag| (lag.records, lag.reason)).unwrap_or((u64::MAX, String::new()))
}

#[test]
fn parked_keys_are_listed_released_in_order_and_dropped_and_a_full_park_goes_on() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let hostile = build_guest("tests/guests/hostile");
    let node = world.node();
    deploy(&node, KEEPS, &hostile);
    produce(
        &world,
        &[
            (Some("a"), "permanent"),
            (Some("a"), "ok"),
            (None, "transient"),
            (Some("b"), "permanent"),
            (Some("c"), "panic"),
            (Some("d"), "permanent"),
            (Some("e"), "ok"),
        ],
    );
    eventually("the park is full", || lag(&node).1.starts_with("paused: 5 records"));
    let expected = [("a", 2, 0), ("", 1, 2), ("b", 1, 3), ("c", 1, 4)];
    eventually("they are listed, the oldest first", || {
        shown(&node) == expected.map(|(key, records, offset)| (key.to_owned(), records, offset))
    });
    let first = &list(&node, of("a").unwrap_or_default())[0];
    assert!(first.held && !first.keyless && first.kind == "permanent" && first.topic == "in", "{first:?}");
    let traps = proto::ParkedFilter { kinds: vec!["trap".into()], ..proto::ParkedFilter::default() };
    assert_eq!(list(&node, traps).len(), 1);

    // Released, the first of a key fails again and what is behind it goes on waiting.
    assert_eq!(release(&node, of("a")), proto::ReleaseParkedResponse { keys: 1, records: 2 });
    eventually("it was tried", || list(&node, of("a").unwrap_or_default()).iter().any(|one| one.held));
    assert_eq!(keys(&world, "out"), [""; 0]);

    // There is no dead-letter topic, so a drop has to be meant.
    let refused = node.handle().parked_drop(&drop_request(of("a"), false), soon()).expect_err("no letters");
    assert!(matches!(&refused, ControlError::Precondition(why) if why.contains("--discard")), "{refused}");
    let dropped = node.handle().parked_drop(&drop_request(of("a"), true), soon()).expect("dropped");
    assert_eq!((dropped.keys, dropped.records, dropped.left), (1, 1, 0));
    eventually("a's next record and those behind the park go on", || keys(&world, "out") == ["a", "e"]);
    eventually("nothing is behind", || lag(&node).0 == 0);
    node.stop();

    // Held over a restart; with a topic for them, they are dropped as letters.
    let node = world.node();
    eventually("nothing is lost", || shown(&node).len() == 4);
    deploy(&node, &KEEPS.replace("then: park", "then: park, dead_letters: {}"), &hostile);
    let everything = drop_request(None, false);
    // Until the task has taken the version up there is no topic for them, and they stay.
    eventually("they are dropped", || {
        // It takes no request while it begins with the version.
        let Ok(dropped) = node.handle().parked_drop(&everything, soon()) else { return false };
        let counts = (dropped.keys, dropped.records, dropped.left);
        assert!(matches!(counts, (4, 4, 0) | (0, 0, 4)), "{dropped:?}");
        dropped.left == 0
    });
    eventually("all are letters", || keys(&world, "test.keeps.dead-letters") == ["", "b", "c", "d"]);
    assert_eq!(shown(&node), []);
    node.stop();
}
