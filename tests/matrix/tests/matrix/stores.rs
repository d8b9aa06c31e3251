//! Faults of what is on a node's disk: damaged, missing, old or half-made stores. One that cannot be
//! trusted is rebuilt, and one that cannot be rebuilt halts its task and says why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tidemill_kafka_harness::run_tool;
use tidemill_tests::evidence::Ends;
use tidemill_tests::programs::{alone, free_address, run, tidemill};
use tidemill_tests::rig::case::{Case, Special};
use tidemill_tests::rig::dump::Dump;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{SOON, cluster_of, drain, open, play, until_commits, until_said};
use tidemill_tests::wait::until;

use crate::case;

/// F34: files of the stores are damaged in every way while the node is down, after a drain, so that
/// everything is in them. Each such store is rebuilt.
#[test]
fn f34_damaged_stores_are_rebuilt() {
    let _alone = alone();
    let case = case(1, 10_000);
    play("F34", &case, cluster_of(&case), |stage| {
        drain(stage, 0);
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 4] = [
            ("sst", |file| flip(file, 0.1)),
            ("MANIFEST", |file| flip(file, 0.5)),
            ("CURRENT", |file| fs::remove_file(file).expect("deleted")),
            ("sst", |file| fs::remove_file(file).expect("deleted")),
        ];
        for (partition, (kind, damage)) in damages.iter().enumerate() {
            let files = files(&store(stage, "chain", partition), kind);
            assert!(!files.is_empty(), "the store of partition {partition} has no {kind}");
            files.iter().for_each(|file| damage(file));
        }
        stage.fleet.restart(0, None);
        until("every damaged store is rebuilt", SOON, || {
            let log = stage.fleet.node(0).log();
            let rebuilt = log.lines().filter(|line| line.contains("rebuil")).count();
            if rebuilt >= damages.len() { Ok(()) } else { Err(rebuilt) }
        });
        until_commits(stage);
    });
}

/// F35: an old copy of the stores is put back, as a restored backup would be. It is brought up to
/// date from the changelog.
#[test]
fn f35_a_stale_copy_of_the_stores_is_brought_up_to_date() {
    let _alone = alone();
    let case = case(1, 10_000);
    play("F35", &case, cluster_of(&case), |stage| {
        let stores = stage.fleet.node(0).stores();
        let copy = stores.with_file_name("copy");
        drain(stage, 0);
        copy_directory(&stores, &copy);
        stage.fleet.restart(0, None);
        until_commits(stage);
        stage.catch_up();
        assert!(stage.fleet.kill(0), "the node ended by itself");
        fs::remove_dir_all(&stores).expect("the stores are deleted");
        fs::rename(&copy, &stores).expect("the copy is put back");
        stage.fleet.restart(0, None);
        until_commits(stage);
        let log = stage.fleet.node(0).log();
        assert!(!log.contains("rebuil"), "what the copy lacks is in the changelog: {log}");
    });
}

/// F37: all stores are lost, and the node is killed in the middle of every restore that it begins, ten
/// times, each a little later than the one before.
#[test]
fn f37_a_restore_may_be_killed_again_and_again() {
    let _alone = alone();
    let case = Case { special: Special { crashes: true, ..Special::default() }, ..case(1, 10_000) };
    play("F37", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        drain(stage, 0);
        assert!(stage.fleet.wipe(0) > 0, "there were no stores");
        let dump = Dump::of(stage.cluster.bootstrap());
        let ends = dump.ends("tidemill.chain.changelog").expect("the changelog has ends");
        // Compaction may have taken a part.
        let records = ends.iter().map(|end| end.high as u64).sum::<u64>() / 2;
        for death in 0..10 {
            let nth = (records * death / 10).max(1);
            stage.fleet.restart_to_die(0, &format!("during-restore:{nth}@restore-chain"));
            assert!(stage.fleet.died_as_told(0), "not at record {nth}: {}", stage.fleet.log(0));
        }
        stage.fleet.restart(0, None);
        until_commits(stage);
        stage.watch.healed();
    });
}

/// F38: a second node on the same directory is refused with a clear message; the first goes on.
#[test]
fn f38_a_directory_has_one_node() {
    let _alone = alone();
    let case = case(1, 5_000);
    play("F38", &case, cluster_of(&case), |stage| {
        let directory = stage.fleet.node(0).directory().to_owned();
        let file = fs::read_to_string(directory.join("node.yaml")).expect("the node's file");
        let (grpc, http) = (stage.fleet.node(0).grpc.clone(), stage.fleet.node(0).http.clone());
        let second = file.replace(&grpc, &free_address()).replace(&http, &free_address());
        let path = directory.join("second.yaml");
        fs::write(&path, second).expect("a file");
        let refused = run(tidemill(["node", "--config"]).arg(&path));
        println!("{}", refused.stderr);
        assert!(!refused.status.success() && refused.took < SOON, "{refused:#?}");
        assert!(refused.stderr.contains("state"), "{refused:#?}");
        until_commits(stage);
    });
}

/// Deletes the first half of every partition of a compacted topic. Kafka refuses that unless the
/// topic's policy allows it, so this takes somebody who means it.
fn delete_beginning(stage: &Stage, topic: &str) {
    set_policy(stage, topic, "[compact,delete]");
    delete_records(stage, topic, |end| end.high / 2);
    set_policy(stage, topic, "compact");
}

/// Deletes the records of every partition below an offset.
pub fn delete_records(stage: &Stage, topic: &str, below: impl Fn(&Ends) -> i64) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", stage.cluster.bootstrap()).create().expect("a client");
    let mut offsets = TopicPartitionList::new();
    for end in Dump::of(stage.cluster.bootstrap()).ends(topic).expect("the topic has ends") {
        let below = Offset::Offset(below(&end));
        offsets.add_partition_offset(topic, end.partition, below).expect("an offset");
    }
    let deleted = admin.delete_records(&offsets, &AdminOptions::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let deleted = runtime.block_on(deleted).expect("records are deleted");
    assert!(deleted.elements().iter().all(|element| element.error().is_ok()), "{deleted:?}");
}

fn set_policy(stage: &Stage, topic: &str, policy: &str) {
    let policy = format!("cleanup.policy={policy}");
    let bootstrap = ["--bootstrap-server", stage.cluster.bootstrap()];
    let change = ["--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", &policy];
    let done = run_tool("kafka.admin.ConfigCommand", &[&bootstrap[..], &change].concat());
    let done = done.expect("the tool runs");
    assert!(done.status.success(), "{done:?}");
}

/// The directory of a deployment's store of one partition.
fn store(stage: &mut Stage, deployment: &str, partition: usize) -> PathBuf {
    let incarnations = fs::read_dir(stage.fleet.node(0).stores().join(deployment)).expect("stores");
    let incarnation = incarnations.flatten().next().expect("one incarnation");
    incarnation.path().join(partition.to_string())
}

/// Files whose name begins or ends with this.
fn files(directory: &Path, kind: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the store's directory").flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(kind) || name.ends_with(kind)
        })
        .collect()
}

/// Inverts 64 bytes of a file, from this part of it on.
fn flip(file: &Path, place: f64) {
    let mut bytes = fs::read(file).expect("the file is readable");
    let at = (bytes.len() as f64 * place) as usize;
    bytes.iter_mut().skip(at).take(64).for_each(|byte| *byte = !*byte);
    fs::write(file, bytes).expect("the file is written");
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = run(Command::new("cp").arg("-a").arg(from).arg(to));
    assert!(copied.status.success(), "{copied:#?}");
}

/// F36: the changelog's beginning is deleted, so that a store that is lost cannot be rebuilt from it.
/// The task halts and says what to do; with a copy of the store that is new enough it goes on. The
/// checker cannot judge it, for it folds the changelog as well.
#[test]
fn f36_a_changelog_without_its_beginning_rebuilds_nothing() {
    let _alone = alone();
    let case = Case::plain(1, 10_000);
    let (mut stage, directory) = open("F36", &case, cluster_of(&case));
    drain(&mut stage, 0);
    let stores = stage.fleet.node(0).stores();
    let copy = stores.with_file_name("copy");
    copy_directory(&stores, &copy);
    delete_beginning(&stage, "tidemill.chain.changelog");
    assert!(stage.fleet.wipe(0) > 0, "there were no stores");
    stage.fleet.restart(0, None);
    until_said(&mut stage, 0, "deploy it again to begin anew");
    let answer = stage.fleet.node(0).tidemill(&["state", "scan", "chain", "heads"]);
    assert!(!answer.status.success() && answer.stderr.contains("halted"), "{answer:#?}");

    assert!(stage.fleet.kill(0), "the node ended by itself");
    fs::remove_dir_all(&stores).expect("what was begun is deleted");
    fs::rename(&copy, &stores).expect("the copy is put back");
    stage.fleet.restart(0, None);
    until_commits(&stage);
    drop(stage);
    fs::remove_dir_all(directory).expect("a directory can be deleted");
}
