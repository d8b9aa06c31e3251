//! The upgrade of a fleet by the commands of docs/operations.md: one node at a time, each waited for, and no partition
//! without output for long.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tidemill_test_support::build_guest;

use crate::cases::until_shared;
use crate::cluster::Cluster;
use crate::node::{Node, plain};
use crate::rig::feed::Feeder;
use crate::rig::scenario::SOON;
use crate::rig::versions::{began_at, case, document, flows, judge};
use crate::rig::watch::Watch;

const PARTITIONS: i32 = 6;
/// Records a second.
const RATE: u64 = 1_200;
/// A member's session, which the partitions of a node that had just gone would wait for: longer than any machine takes
/// for what is measured here, with the heartbeats of the usual one, by which members hear of rebalances.
const SESSION: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(2);

pub fn a_fleet_is_upgraded_one_node_at_a_time(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let ids = ["n1", "n2", "n3"];
    let kafka = format!(
        "{}  properties: {{ session.timeout.ms: {}, heartbeat.interval.ms: {} }}\n",
        plain(cluster),
        SESSION.as_millis(),
        HEARTBEAT.as_millis()
    );
    let mut nodes = ids.map(|id| Node::start_with(cluster, &path(id), &format!("{kafka}node_id: {id}\n")));
    nodes.iter().for_each(|node| node.until_it_answers(SOON));
    let partitions = PARTITIONS.to_string();
    nodes[0].tidemill(&["topics", "create", "chain-in", "chain-out", "--partitions", &partitions]).ok();
    fs::write(path("chain.wasm"), build_guest("tests/guests/chain")).expect("a module");
    let file = path("chain.yaml");
    fs::write(&file, document(1, "chain.wasm", "", "")).expect("a file");
    let file = file.display().to_string();
    let applied = nodes[0].tidemill(&["apply", "-f", &file, "--wait", "60s", "-o", "json"]).ok();
    let applied: Value = serde_json::from_str(&applied).expect("JSON");
    let began = began_at(1, &applied["deployments"][0]["first"], PARTITIONS).expect("it began");
    until_shared(&nodes[0], &[2, 2, 2]);
    let feeder = Feeder::start(cluster.bootstrap(), &case(1, RATE, PARTITIONS));
    let watch = Watch::start(cluster.bootstrap(), "chain-out", PARTITIONS).expect("a reader");
    flows(&watch, RATE);

    watch.mark();
    for (number, id) in ids.into_iter().enumerate() {
        // Whoever is upgraded is not asked.
        let ask = |nodes: &[Node; 3], arguments: &[&str]| {
            let told = [arguments, &["--wait", "60s"]].concat();
            nodes[(number + 1) % 3].tidemill(&told).ok()
        };
        ask(&nodes, &["check", "--poll", "200ms"]);
        let drained = ask(&nodes, &["drain", id]);
        assert!(drained.contains("tasks run elsewhere"), "{drained}");
        assert!(nodes[number].stop().success(), "{}", nodes[number].log());
        nodes[number].restart();
        let back = ask(&nodes, &["check", "--node", id, "--poll", "200ms"]);
        assert!(back.contains("answers and takes tasks"), "{back}");
    }
    until_shared(&nodes[0], &[2, 2, 2]);
    flows(&watch, RATE);
    let still = watch.gaps().into_iter().max().unwrap_or_default();
    println!("three nodes upgraded; no partition was without output for longer than {still:.1?}");
    // Two rebalances are 4 s with nothing wrong.
    assert!(still < SESSION / 2, "a partition had no output for {still:?}");
    watch.finish();
    let acks = feeder.finish().expect("every record has an outcome");
    let verdict = judge(cluster, directory.path(), &acks, &[began]).expect("the evidence can be taken");
    println!("{}", verdict.notes.join("; "));
    assert!(verdict.is_good(), "{verdict:#?}");
    for node in &mut nodes {
        assert_eq!(node.complaints(), Vec::<String>::new());
        assert!(node.stop().success(), "{}", node.log());
    }
}
