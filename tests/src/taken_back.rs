//! Versions that are taken back while records flow, by a person and by the node itself: no record is lost or handled
//! twice, and each is handled by the version whose turn it was.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::Instant;

use anyhow::Result;
use serde_json::Value;
use tidemill_test_support::build_guest;

use crate::cluster::Cluster;
use crate::evidence::Began;
use crate::node::Node;
use crate::programs::Finished;
use crate::rig::dump::Dump;
use crate::rig::feed::Feeder;
use crate::rig::scenario::SOON;
use crate::rig::versions::{began_at, case, document, flows, judge, until_settled};
use crate::rig::watch::Watch;
use crate::wait::until;

const PARTITIONS: i32 = 4;
/// Records a second.
const RATE: u64 = 2_000;
/// Records that come out between two changes.
const EACH: u64 = 1_000;
/// The version that fails one record of a hundred.
const FAILING: u64 = 3;

/// 1, 2, 1 by hand, one that fails, and 1 by itself. Links of keys go on through all of them.
pub fn versions_are_taken_back_under_traffic(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let mut node = Node::start(cluster, &path("n1"));
    node.until_it_answers(SOON);
    let partitions = PARTITIONS.to_string();
    node.tidemill(&["topics", "create", "chain-in", "chain-out", "--partitions", &partitions]).ok();
    fs::write(path("chain.wasm"), build_guest("tests/guests/chain")).expect("a module");
    let apply = |version: u64, more: &[&str]| {
        let config = if version == FAILING { ", fails: 1" } else { "" };
        let file = path(&format!("chain-{version}.yaml"));
        fs::write(&file, document(version, "chain.wasm", config, "failures: halt\n")).expect("a file");
        let file = file.display().to_string();
        node.tidemill(&[&["apply", "-f", &file, "-o", "json"][..], more].concat())
    };
    let began = |version: u64, first: &Value| began_at(version, first, PARTITIONS).expect("it began");
    let swapped = |version: u64| began(version, &deployed(apply(version, &["--wait"]))["first"]);

    let first = swapped(1);
    let feeder = Feeder::start(cluster.bootstrap(), &case(1, RATE, PARTITIONS));
    let watch = Watch::start(cluster.bootstrap(), "chain-out", PARTITIONS).expect("a reader");
    flows(&watch, EACH);
    let second = swapped(2);
    flows(&watch, EACH);
    let back = json(node.tidemill(&["rollback", "chain", "--to", "1", "--wait", "-o", "json"]));
    let by_hand = began(1, &back["first"]);
    flows(&watch, EACH);

    apply(FAILING, &[]).ok();
    let failing_since = Instant::now();
    let newest = until("the node takes it back by itself", SOON, || {
        let history = json(node.tidemill(&["history", "chain", "-o", "json"]));
        let newest = history["versions"][0].clone();
        if newest["automatic"] == true { Ok(newest) } else { Err(history) }
    });
    println!("taken back {:.1?} after its deploy: {}", failing_since.elapsed(), newest["reason"]);
    assert_eq!((newest["version"].as_u64(), newest["rollback_to"].as_u64()), (Some(5), Some(3)), "{newest}");
    // Until the rollback is adopted, tasks of the version before it may still halt: that is not its failure.
    let now = deployed(apply(1, &["--wait"]));
    assert_eq!(now["result"], "unchanged", "it is what was rolled back to: {now}");
    let by_itself = began(1, &now["first"]);
    flows(&watch, EACH);
    watch.finish();
    let acks = feeder.finish().expect("every record has an outcome");

    let dump = Dump::of(cluster.bootstrap());
    until_settled(&dump);
    let failing = first_handled(&dump, FAILING).expect("both topics can be read");
    let began = [first, second, by_hand, failing, by_itself];
    let verdict = judge(cluster, directory.path(), &acks, &began).expect("the evidence can be taken");
    println!("{}", verdict.notes.join("; "));
    assert!(verdict.is_good(), "{verdict:#?}");
    let log = node.whole_log();
    assert!(!log.contains("panicked at"), "{log}");
    assert!(node.stop().success(), "{}", node.log());
}

/// Where a version began that was taken back before anybody could ask: at the first record of each partition that
/// it has handled.
fn first_handled(dump: &Dump, version: u64) -> Result<Began> {
    let input = dump.topic("chain-in", true)?;
    let places: HashMap<String, (i32, i64)> =
        input.iter().map(|row| (row.value_text(), (row.partition, row.offset))).collect();
    let mut first: BTreeMap<i32, i64> = BTreeMap::new();
    for row in dump.topic("chain-out", true)? {
        // The text, which has two commas, then count, link and version.
        let value = row.value_text();
        let text = value.splitn(4, ',').take(3).collect::<Vec<_>>().join(",");
        let is_its = value.rsplit_once(',').is_some_and(|(_, by)| by == version.to_string());
        if let Some(&(partition, offset)) = places.get(&text).filter(|_| is_its) {
            let first = first.entry(partition).or_insert(offset);
            *first = offset.min(*first);
        }
    }
    Ok(Began { version, first: first.into_iter().collect() })
}

/// What became of the only deployment of an `apply`.
#[track_caller]
fn deployed(applied: Finished) -> Value {
    json(applied)["deployments"][0].clone()
}

#[track_caller]
fn json(finished: Finished) -> Value {
    let text = finished.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
