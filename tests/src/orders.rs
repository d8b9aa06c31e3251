//! The orders example on a node: repeated, poisonous and cancelled orders, and a kill in the middle.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rdkafka::message::Message;
use serde_json::Value;

use crate::cases::block_on;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::pipeline::Reader;
use crate::programs::workspace;
use crate::wait::until;

const SETTLED_MAX: Duration = Duration::from_secs(90);
const TOPICS: [&str; 7] = ["orders", "payments", "warehouse", "commands", "outcomes", "webhook", "queue"];
/// A zero quantity, an unknown kind, a known order under a new id, and two lines that are no JSON.
const LETTERS: u64 = 5;

/// Every order has the one outcome that its data calls for, and each command was given once.
pub fn every_order_has_one_outcome_and_repetitions_and_poison_change_nothing(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(cluster, directory.path());
    block_on(async { node.client().await });
    let partitions = crate::pipeline::PARTITIONS.to_string();
    node.tidemill(&[&["topics", "create"], &TOPICS[..], &["--partitions", &partitions]].concat()).ok();
    let example = workspace().join("examples/orders");
    let pipeline = example.join("pipeline.yaml").display().to_string();
    node.tidemill(&["apply", "--wait", "-f", &pipeline]).ok();
    let feed = |node: &Node, topic: &str, file: &str, key: &[&str]| {
        let file = example.join("data").join(file).display().to_string();
        node.tidemill(&[&["produce", topic, "--file", &file], key].concat()).ok();
    };
    feed(&node, "payments", "payments.jsonl", &["--key-field", "order"]);
    // Topics have no order between them: who pays by himself has paid before these orders come.
    until_all_is_handled(&node);
    feed(&node, "orders", "orders.jsonl", &["--key-field", "order"]);
    node.kill();
    node.restart();
    block_on(async { node.client().await });
    feed(&node, "orders", "poison.txt", &["--key", "o-1903"]);

    let (orders, paid) = (lines("orders.jsonl"), lines("payments.jsonl"));
    let mut expected: BTreeMap<String, &str> = BTreeMap::new();
    for order in orders.iter().filter(|order| order["quantity"].as_u64().is_some_and(|quantity| quantity > 0))
    {
        let is_paid = paid.iter().any(|payment| payment["order"] == order["order"]);
        let fails = order["sku"] == "moon-lamp"
            || order["country"] == "AQ"
            || !is_paid && order["cents"].as_u64() > Some(50_000);
        let outcome = if fails { "order.cancelled" } else { "order.confirmed" };
        expected.insert(text(&order["order"]), outcome);
    }
    assert_eq!(expected.len(), 40);
    let outcomes = read(cluster, "outcomes", expected.len());
    let found: BTreeMap<String, &str> = outcomes
        .iter()
        .map(|outcome| (text(&outcome["order"]), outcome["type"].as_str().expect("a type")))
        .collect();
    assert_eq!(found, expected);
    until_all_is_handled(&node);
    for output in ["webhook", "queue"] {
        read(cluster, output, expected.len());
    }

    // Nothing was asked twice, and what was cancelled was undone.
    let scan = node.tidemill(&["state", "scan", "orders", "orders", "--all", "--output", "json"]).ok();
    let scan: Value = serde_json::from_str(&scan).expect("JSON");
    let mut steps = 0;
    for entry in scan["entries"].as_array().expect("entries") {
        let order = &entry["value"];
        steps += order["steps"].as_u64().expect("a number");
        let is_confirmed = order["saga"]["step"] == "confirmed";
        let holds = (order["saga"]["reserved"] == true, order["saga"]["paid"] == true);
        assert_eq!(holds, (is_confirmed, is_confirmed), "{entry}");
    }
    let commands = read(cluster, "commands", steps as usize - expected.len());
    let ids: std::collections::BTreeSet<String> =
        commands.iter().map(|command| text(&command["id"])).collect();
    assert_eq!(ids.len(), commands.len(), "each command has an id of its own");
    Reader::from_beginning(cluster, "tidemill.orders.dead-letters").exactly(LETTERS);
    let seen = node.tidemill(&["inbox", "get", "orders", "order-evt-003", "--output", "json"]).ok();
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!((seen["seen"].as_bool(), seen["entries"][0]["topic"].as_str()), (Some(true), Some("orders")));
    assert!(node.stop().success(), "{}", node.log());
}

fn lines(file: &str) -> Vec<Value> {
    let path = workspace().join("examples/orders/data").join(file);
    let text = fs::read_to_string(path).expect("the data");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// So many records of a topic, and no more.
fn read(cluster: &Cluster, topic: &str, count: usize) -> Vec<Value> {
    let records = Reader::from_beginning(cluster, topic).exactly(count as u64);
    let parse = |bytes: Option<&[u8]>| serde_json::from_slice(bytes.unwrap_or_default()).expect("JSON");
    records.iter().map(|record| parse(record.payload())).collect()
}

fn until_all_is_handled(node: &Node) {
    until("nothing is behind", SETTLED_MAX, || {
        let lag = node.tidemill(&["lag", "--output", "json"]);
        let lag: Value = serde_json::from_str(&lag.stdout).map_err(|_| lag.stderr)?;
        let rows = lag["partitions"].as_array().expect("rows");
        let behind = |row: &&Value| row["committed"].is_null() || row["records"] != 0;
        match rows.iter().find(behind) {
            None if !rows.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}
