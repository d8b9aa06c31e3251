//! One fault, done by hand, on nodes under load: what the named tests of the fault matrix are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tidemill_kafka_harness::{ApacheKafka, Options};

use super::case::{Broker, Case};
use super::dump::Dump;
use super::fleet::build_modules;
use super::round::{Stage, Summary};
use crate::cluster::Cluster;
use crate::evidence::Fault;
use crate::kfault::Kfault;
use crate::wait::until;

/// Until something that must happen has happened.
pub const SOON: Duration = Duration::from_secs(60);
/// Records that pass before a scenario begins, so that there is state to lose.
const WARM: u64 = 500;

static MODULES: OnceLock<tempfile::TempDir> = OnceLock::new();

/// The broker of a case.
pub fn cluster_of(case: &Case) -> Cluster {
    match case.broker {
        Broker::Embedded => Cluster::embedded(),
        Broker::Apache => Cluster::apache(),
        Broker::ThreeOfApache => Cluster::three_brokers(),
    }
}

/// Apache Kafka behind a proxy that every client goes through, the broker itself included.
pub fn behind_kfault() -> (Kfault, Cluster) {
    behind_kfault_with(&[])
}

/// As [`behind_kfault`], with more properties of the broker.
pub fn behind_kfault_with(properties: &[(&str, &str)]) -> (Kfault, Cluster) {
    let kfault = Kfault::bind();
    let advertised = format!("PLAINTEXT://{}", kfault.address);
    let all = properties.iter().copied().chain([("advertised.listeners", advertised.as_str())]);
    let properties = all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let cluster = Cluster::apache_with(&Options { properties, ..Options::default() });
    kfault.forward_to(cluster.bootstrap());
    (kfault, cluster)
}

/// Apache Kafka, and a proxy for the first node alone: everybody else, the other nodes included, reaches
/// the broker directly. Sets the case's detour.
pub fn detoured(case: &mut Case) -> (Kfault, Cluster) {
    let kfault = Kfault::bind();
    let options = Options { detour: Some(kfault.address.clone()), ..Options::default() };
    let cluster = Cluster::apache_with(&options);
    let Cluster::Apache(ApacheKafka { detour: Some(upstream), .. }) = &cluster else {
        unreachable!("just made with a detour")
    };
    kfault.forward_to(upstream);
    case.special.detour = Some(kfault.address.clone());
    (kfault, cluster)
}

/// Nodes of a case with records flowing through them, and the directory that holds it all.
#[track_caller]
pub fn open(name: &str, case: &Case, cluster: Cluster) -> (Stage, PathBuf) {
    let (stage, directory) = raise(name, case, cluster);
    until("records flow", SOON, || match stage.watch.records() {
        WARM.. => Ok(()),
        few => Err(few),
    });
    (stage, directory)
}

/// As [`open`], but does not wait for anything to come out.
#[track_caller]
pub fn raise(name: &str, case: &Case, cluster: Cluster) -> (Stage, PathBuf) {
    let modules = MODULES.get_or_init(|| {
        let modules = tempfile::tempdir().expect("a directory");
        build_modules(modules.path());
        modules
    });
    // Kept unless all is well.
    let directory =
        tempfile::Builder::new().prefix("tidemill-scenario-").tempdir().expect("a directory").keep();
    println!("{name} in {}", directory.display());
    (Stage::open(case, cluster, &directory, modules.path()).expect("a stage"), directory)
}

/// Plays a scenario once records flow, and expects that the checker finds nothing. The scenario
/// panics if it cannot prove its fault.
#[track_caller]
pub fn play(name: &str, case: &Case, cluster: Cluster, scenario: impl FnOnce(&mut Stage)) {
    let (mut stage, directory) = open(name, case, cluster);
    scenario(&mut stage);
    let summary = judge(name, stage);
    assert!(summary.is_good(), "{:#?}\n{:#?}", summary.violations, summary.invalid);
    std::fs::remove_dir_all(&directory).expect("a directory can be deleted");
}

/// What the checker finds at the end of a scenario.
pub fn judge(name: &str, stage: Stage) -> Summary {
    let fault = Fault { name: name.to_owned(), wanted: 1, proven: 1 };
    let summary = stage.close(vec![fault]).expect("the evidence can be taken");
    println!("{name}: {summary}, longest stall {:.1?}", summary.longest);
    summary
}

/// Waits until a node has logged a line with this in it.
pub fn until_said(stage: &mut Stage, node: usize, words: &str) {
    until(&format!("node {node} says `{words}`"), SOON, || {
        let log = stage.fleet.node(node).log();
        if log.contains(words) { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
    });
}

/// Waits until the chain has committed input that it had not committed before.
pub fn until_commits(stage: &Stage) {
    let dump = Dump::of(stage.cluster.bootstrap());
    let sum = || -> Result<i64, String> {
        let committed = dump.committed("chain", "chain-in").map_err(|error| format!("{error:#}"))?;
        Ok(committed.iter().map(|at| at.offset).sum())
    };
    let before = until("Kafka answers", SOON, sum);
    until("later transactions are committed", SOON, || {
        let now = sum()?;
        if now > before { Ok(()) } else { Err(format!("still {now}")) }
    });
}

/// Waits until each of these partitions of the chain has committed input that it had not before.
pub fn until_each_commits(stage: &Stage, partitions: &BTreeSet<i32>) {
    let dump = Dump::of(stage.cluster.bootstrap());
    let offsets = || -> Result<BTreeMap<i32, i64>, String> {
        let committed = dump.committed("chain", "chain-in").map_err(|error| format!("{error:#}"))?;
        Ok(committed.iter().map(|at| (at.partition, at.offset)).collect())
    };
    let before = until("Kafka answers", SOON, offsets);
    until("every partition commits", SOON, || {
        let now = offsets()?;
        let still = partitions.iter().find(|partition| now.get(partition) <= before.get(partition));
        still.map_or(Ok(()), |partition| Err(format!("not partition {partition}")))
    });
}

/// The lines with these words that a node has logged since its last start.
pub fn said(stage: &Stage, node: usize, words: &str) -> usize {
    stage.fleet.log(node).lines().filter(|line| line.contains(words)).count()
}

/// SIGTERM: the node must commit, leave its groups and end well.
#[track_caller]
pub fn drain(stage: &mut Stage, node: usize) {
    let started = Instant::now();
    let status = stage.fleet.node(node).stop();
    println!("n{node} drained in {:.1?}", started.elapsed());
    assert!(status.success(), "{status}: {}", stage.fleet.node(node).log());
}
