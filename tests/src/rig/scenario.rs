//! One fault, done by hand, on nodes under load: what the named tests of the fault matrix are made of.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tidemill_kafka_harness::Options;

use super::case::{Broker, Case};
use super::dump::Dump;
use super::fleet::build_modules;
use super::round::Stage;
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
    }
}

/// Apache Kafka behind a proxy that every client goes through.
pub fn behind_kfault() -> (Kfault, Cluster) {
    let kfault = Kfault::bind();
    let advertised = ("advertised.listeners".to_owned(), format!("PLAINTEXT://{}", kfault.address));
    let cluster = Cluster::apache_with(&Options { properties: vec![advertised], ..Options::default() });
    kfault.forward_to(cluster.bootstrap());
    (kfault, cluster)
}

/// Nodes of a case with records flowing through them, and the directory that holds it all.
#[track_caller]
pub fn open(name: &str, case: &Case, cluster: Cluster) -> (Stage, PathBuf) {
    let modules = MODULES.get_or_init(|| {
        let modules = tempfile::tempdir().expect("a directory");
        build_modules(modules.path());
        modules
    });
    // Kept unless all is well.
    let directory =
        tempfile::Builder::new().prefix("tidemill-scenario-").tempdir().expect("a directory").keep();
    println!("{name} in {}", directory.display());
    let stage = Stage::open(case, cluster, &directory, modules.path()).expect("a stage");
    until("records flow", SOON, || match stage.watch.records() {
        WARM.. => Ok(()),
        few => Err(few),
    });
    (stage, directory)
}

/// Plays a scenario once records flow, and expects that the checker finds nothing. The scenario
/// panics if it cannot prove its fault.
#[track_caller]
pub fn play(name: &str, case: &Case, cluster: Cluster, scenario: impl FnOnce(&mut Stage)) {
    let (mut stage, directory) = open(name, case, cluster);
    scenario(&mut stage);
    let fault = Fault { name: name.to_owned(), wanted: 1, proven: 1 };
    let summary = stage.close(vec![fault]).expect("the evidence can be taken");
    println!("{name}: {summary}, longest stall {:.1?}", summary.longest);
    assert!(summary.is_good(), "{:#?}\n{:#?}", summary.violations, summary.invalid);
    std::fs::remove_dir_all(&directory).expect("a directory can be deleted");
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

/// SIGTERM: the node must commit, leave its groups and end well.
#[track_caller]
pub fn drain(stage: &mut Stage, node: usize) {
    let started = Instant::now();
    let status = stage.fleet.node(node).stop();
    println!("n{node} drained in {:.1?}", started.elapsed());
    assert!(status.success(), "{status}: {}", stage.fleet.node(node).log());
}
