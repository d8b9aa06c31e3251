//! A whole node in this process, on the embedded broker: from deploy to query.

mod adoption;
mod disk;
mod drains;
mod failures;
mod inputs;
mod lives;
mod metrics;
mod observe;
mod outbox;
mod queries;
mod reset;
mod restores;
mod rollbacks;
mod seen;
mod stores;
mod swaps;
mod tidy;
mod topics;
mod unpark;
mod versions;
mod workers;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use tidemill::node::Node;
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use world::{World, deploy, eventually};

fn lag(node: &Node) -> Option<u64> {
    let lags = node.handle().lag(Some("word-count")).ok()?;
    Some(lags.iter().map(|lag| lag.records).sum())
}

fn count(node: &Node, key: &str) -> Option<u64> {
    count_in(node, "word-count", 0, key)
}

fn count_in(node: &Node, deployment: &str, partition: i32, key: &str) -> Option<u64> {
    let request = proto::GetManyStateRequest {
        deployment: deployment.into(),
        store: "counts".into(),
        keys: vec![key.into()],
        partition: Some(partition),
        ..proto::GetManyStateRequest::default()
    };
    let answer = node.handle().state_get_many(&request, Instant::now()).ok()?;
    let value: [u8; 8] = answer.entries.first()?.value.clone().try_into().ok()?;
    Some(u64::from_le_bytes(value))
}

const WORD_COUNT: &str = "\
name: word-count
module: count.wasm
inputs: { in: { topic: words } }
outputs: { out: { topic: counts } }
";

#[test]
fn words_are_counted_from_deploy_to_query_and_over_a_restart() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    world.produce("words", &["a", "b", "a"]);

    let node = world.node();
    deploy(&node, WORD_COUNT, &module);
    eventually("a is counted twice", || count(&node, "a") == Some(2));
    eventually("no lag", || lag(&node) == Some(0));
    assert_eq!(count(&node, "b"), Some(1));
    node.stop();

    world.produce("words", &["a", "c"]);
    let node = world.node();
    eventually("a is counted three times", || count(&node, "a") == Some(3));
    eventually("no lag after the restart", || lag(&node) == Some(0));
    node.stop();
    let expected = [("a", "3"), ("b", "1"), ("c", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(world.latest("counts"), BTreeMap::from(expected));
}

#[test]
fn at_least_once_commits_its_offsets_after_its_effects() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    world.produce("words", &["a", "a"]);
    let node = world.node();
    deploy(&node, &format!("{WORD_COUNT}guarantee: at_least_once\n"), &build_guest("plugins/count"));
    eventually("a is counted twice", || count(&node, "a") == Some(2));
    eventually("no lag", || lag(&node) == Some(0));
    node.stop();
    let node = world.node();
    world.produce("words", &["a"]);
    eventually("a is counted three times, not five", || count(&node, "a") == Some(3));
    eventually("no lag after the restart", || lag(&node) == Some(0));
    node.stop();
}
