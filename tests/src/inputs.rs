//! Cases in which the inputs of a running deployment change, on either broker.

use std::collections::BTreeMap;
use std::path::Path;

use rdkafka::message::Message;
use serde_json::Value;

use crate::cases::{block_on, until_shared};
use crate::cluster::Cluster;
use crate::node::Node;
use crate::pipeline::{self, PARTITIONS, Reader};
use crate::programs::workspace;

/// Keys of every round of [`feed`].
const KEYS: u64 = 20;

/// A static leader that was killed takes its assignment up again without computing it, so nobody
/// watches for new partitions; the node sees to it that they are handed out all the same.
pub fn partitions_that_are_added_after_a_crash_are_read(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let kafka = format!(
        "kafka:\n  bootstrap_servers: '{}'\n  properties: {{ topic.metadata.refresh.interval.ms: 1000 }}\n",
        cluster.bootstrap()
    );
    let mut node = Node::start_with(cluster, directory.path(), &kafka);
    block_on(async { node.client().await });
    node.tidemill(&["topics", "create", "words"]).ok();
    node.tidemill(&["topics", "create", "kept", "--partitions", "4"]).ok();
    let module = workspace().join("plugins/filter").display().to_string();
    let deployment = ["deploy", "keep", "--module", &module, "--in", "in=words", "--out", "out=kept"];
    let all = ["--start", "latest", "--config", r#"{"keep": [{"exists": true}]}"#, "--wait"];
    node.tidemill(&[&deployment[..], &all[..]].concat()).ok();
    node.tidemill(&["produce", "words", "x", "--key", "first"]).ok();
    Reader::from_beginning(cluster, "kept").exactly(1);
    node.kill();
    node.restart();
    block_on(async { node.client().await });
    pipeline::add_partitions(cluster, "words", 3);
    node.tidemill(&["produce", "words", "x", "--key", "second", "--partition", "2"]).ok();
    let kept = Reader::from_beginning(cluster, "kept").exactly(2);
    assert!(kept.iter().any(|record| record.key() == Some(b"second")));
    assert!(node.stop().success());
}

/// Two nodes share a deployment with two co-partitioned inputs. Its right input is exchanged for
/// another topic, and then taken back: the new one begins at its start, the old one resumes where it
/// was, and each record counts once although every task changes hands and revisions on the way.
pub fn an_exchanged_input_begins_and_resumes_where_it_should(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut first = Node::start(cluster, &directory.path().join("first"));
    let mut second = Node::start(cluster, &directory.path().join("second"));
    block_on(async {
        first.client().await;
        second.client().await;
    });
    let create = ["topics", "create", "a", "b", "c", "out", "--partitions", &PARTITIONS.to_string()];
    first.tidemill(&create).ok();
    let mut expected = Reader::from_beginning(cluster, "out");
    let mut seen = Vec::new();
    let mut expect = |count: u64| seen.extend(expected.exactly(count));

    deploy_pair(&first, "b");
    until_shared(&first, &[2, 2]);
    let feed = |topic: &str, rounds: u64| feed(&first, directory.path(), topic, rounds);
    feed("a", 3);
    feed("b", 3);
    expect(6 * KEYS);

    feed("c", 4);
    deploy_pair(&second, "c");
    feed("b", 2); // Read by nobody now.
    feed("a", 1);
    expect(5 * KEYS);

    deploy_pair(&first, "b");
    expect(2 * KEYS);
    feed("b", 1);
    expect(KEYS);

    let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for record in &seen {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let count = text(record.payload()).parse().expect("a count");
        counts.entry(text(record.key())).or_default().push(count);
    }
    assert_eq!(counts.len() as u64, 2 * KEYS);
    for (key, counts) in counts {
        let total = if key.starts_with("left/") { 4 } else { 3 + 4 + 2 + 1 };
        assert_eq!(counts, (1..=total).collect::<Vec<u64>>(), "{key}");
    }
    assert!(first.stop().success(), "{}", first.log());
    assert!(second.stop().success(), "{}", second.log());
}

/// Deploys the guest with its right input bound to `right`; when that returns, every task of the
/// fleet has adopted it.
fn deploy_pair(node: &Node, right: &str) {
    let module = workspace().join("tests/guests/pair").display().to_string();
    let right = format!("right={right}");
    let arguments =
        ["deploy", "pair", "--module", &module, "--in", "left=a", "--in", &right, "--out", "out=out"];
    let deployed = node.tidemill(&[&arguments[..], &["--wait", "60s", "--output", "json"]].concat()).ok();
    let revision = &json(&deployed)["deployments"][0]["revision"];
    let lag = json(&node.tidemill(&["lag", "pair", "--output", "json"]).ok());
    let rows = lag["partitions"].as_array().expect("rows");
    assert_eq!(rows.len(), 2 * PARTITIONS as usize);
    assert!(rows.iter().all(|row| row["revision"] == *revision), "{revision}: {lag}");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// So many records of each key.
fn feed(node: &Node, directory: &Path, topic: &str, rounds: u64) {
    let rows = (0..rounds).flat_map(|_| (0..KEYS).map(|key| format!("k{key}\n")));
    let file = directory.join("rows.csv");
    std::fs::write(&file, format!("key\n{}", rows.collect::<String>())).expect("a file");
    node.tidemill(&["produce", topic, "--file", &file.display().to_string(), "--key-field", "key"]).ok();
}
