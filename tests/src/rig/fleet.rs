//! The nodes of a round: their files, what is deployed on them, and how they die.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::case::{Case, Fault, KILL, Special, Step};
use super::moves::held;
use crate::cluster::Cluster;
use crate::evidence::Row;
use crate::node::Node;
use crate::programs::{run, tidemill, workspace};
use crate::wait::{until, within};

/// The node, and the node with crash points in it.
const PROGRAMS: [&str; 2] = ["tidemill", "tidemill-faults"];

/// One deployment of the workloads.
pub struct Deployment {
    pub name: &'static str,
    module: &'static str,
    pub input: &'static str,
    pub output: &'static str,
    config: &'static str,
    /// The store that the checker looks at.
    pub store: Option<&'static str>,
    pub stateful: bool,
}

#[rustfmt::skip]
pub const DEPLOYMENTS: [Deployment; 4] = [
    Deployment { name: "chain", module: "chain", input: "chain-in", output: "chain-out", config: "{ remember: REMEMBER }", store: Some("heads"), stateful: true },
    Deployment { name: "copy", module: "rekey", input: "chain-in", output: "copy-out", config: "{ key: 1 }", store: None, stateful: false },
    Deployment { name: "split", module: "bank", input: "transfers", output: "entries", config: "{ role: split }", store: None, stateful: true },
    Deployment { name: "book", module: "bank", input: "entries", output: "ledger", config: "{ role: book }", store: Some("balances"), stateful: true },
];

pub const TOPICS: [&str; 6] = ["chain-in", "chain-out", "copy-out", "transfers", "entries", "ledger"];

const FIRST_ANSWER_MAX: Duration = Duration::from_secs(60);
/// A node that was told to die at a step of a commit must get there.
const CRASH_MAX: Duration = Duration::from_secs(45);
/// Until every store answers, restores included.
const STATE_MAX: Duration = Duration::from_secs(90);

/// Builds the workloads' handlers into `directory`, once for all rounds.
pub fn build_modules(directory: &Path) {
    let crates = [("chain", "tests/guests/chain"), ("bank", "tests/guests/bank"), ("rekey", "plugins/rekey")];
    for (name, path) in crates {
        build_module(name, path, directory);
    }
}

/// Builds one handler into `directory`; answers where it is.
pub fn build_module(name: &str, path: &str, directory: &Path) -> PathBuf {
    let out = directory.join(format!("{name}.wasm"));
    run(tidemill(["build"]).arg(workspace().join(path)).arg("--out").arg(&out)).ok();
    out
}

pub struct Fleet {
    program: &'static str,
    bug: Option<&'static str>,
    nodes: Vec<Node>,
    /// The step each node is told to die at, if any.
    armed: Vec<Option<String>>,
    /// Ends that nobody asked for.
    unexpected: Vec<String>,
    /// Words of halts that a scenario brings about.
    asked_for: Vec<&'static str>,
    /// The deployments' documents.
    file: PathBuf,
}

impl Fleet {
    /// Starts the nodes and deploys the workloads from `modules`.
    pub fn start(cluster: &Cluster, case: &Case, directory: &Path, modules: &Path) -> Fleet {
        let crashes = case.plan.iter().any(|step| matches!(step.fault, Fault::Crash { .. }));
        let special = &case.special;
        let faulty = crashes || special.crashes || special.bug.is_some() || special.dies_at.is_some();
        let program = PROGRAMS[usize::from(faulty)];
        let node = |number| {
            let settings = settings(cluster, case, number);
            Node::prepare(cluster, &directory.join(format!("n{number}")), &settings)
        };
        let nodes: Vec<Node> = (0..case.nodes).map(node).collect();
        let armed = vec![None; nodes.len()];
        let file = modules.join(format!("case-{}.yaml", case.seed));
        let (unexpected, asked_for) = (Vec::new(), Vec::new());
        let mut fleet = Fleet { program, bug: special.bug, nodes, armed, unexpected, asked_for, file };
        for node in 0..case.nodes {
            fleet.launch(node, special.dies_at.filter(|_| node == 0).map(str::to_owned));
        }
        let node = &fleet.nodes[0];
        until("the first node answers", FIRST_ANSWER_MAX, || {
            let answer = node.tidemill(&["deployments"]);
            if answer.status.success() { Ok(()) } else { Err(answer.stderr) }
        });
        let partitions = case.partitions.to_string();
        let create = ["--partitions", partitions.as_str()];
        node.tidemill(&[&["topics", "create"], &TOPICS[..], &create[..]].concat()).ok();
        if special.dies_at.is_none() {
            fleet.deploy(0, case, &["--wait"]);
            return fleet;
        }
        // Whoever asks a dying node to wait only hears that it died; its log says that every task has its start.
        fleet.deploy(0, case, &[]);
        let all = case.partitions as usize;
        until("the chain has begun", FIRST_ANSWER_MAX, || match held(&fleet.log(0)).len() {
            begun if begun == all => Ok(()),
            begun => Err(begun),
        });
        fleet
    }

    /// Applies the documents of a case through one node; other documents than before are new revisions.
    pub fn deploy(&self, node: usize, case: &Case, options: &[&str]) {
        fs::write(&self.file, documents(case)).expect("the deployments' file");
        let file = self.file.display().to_string();
        self.nodes[node].tidemill(&[&["apply", "-f", file.as_str()], options].concat()).ok();
    }

    /// Halts whose line has these words are what the scenario wants to see.
    pub fn ask_for(&mut self, words: &'static str) {
        self.asked_for.push(words);
    }

    /// Lines of panics and of halts that nobody asked for.
    pub fn complaints(&self) -> Vec<String> {
        let is_bad = |line: &str| {
            let halted =
                line.contains(" halted ") && !self.asked_for.iter().any(|words| line.contains(words));
            halted || line.contains("panicked at")
        };
        let of = |(number, node): (usize, &Node)| -> Vec<String> {
            let log = node.whole_log();
            log.lines().filter(|line| is_bad(line)).map(|line| format!("n{number}: {line}")).collect()
        };
        self.nodes.iter().enumerate().flat_map(of).collect()
    }

    /// Starts a node that is down; armed with a crash if `next` is one of this node.
    pub fn restart(&mut self, node: usize, next: Option<&Step>) {
        let crash = match next {
            Some(Step { node: theirs, fault: Fault::Crash { point, nth, deployment }, .. })
                if *theirs == node =>
            {
                Some(format!("{point}:{nth}@{deployment}"))
            }
            _ => None,
        };
        self.launch(node, crash);
    }

    /// Starts a node that is down, to die at the step that `crash` says (`TIDEMILL_CRASH`).
    pub fn restart_to_die(&mut self, node: usize, crash: &str) {
        self.launch(node, Some(crash.to_owned()));
    }

    fn launch(&mut self, node: usize, crash: Option<String>) {
        let crash_there = crash.as_deref().map(|crash| ("TIDEMILL_CRASH", crash));
        let bug = self.bug.map(|bug| ("TIDEMILL_BUG", bug));
        let variables: Vec<_> = crash_there.into_iter().chain(bug).collect();
        self.nodes[node].restart_as(self.program, &variables);
        self.armed[node] = crash;
    }

    /// Waits until a node has died at the step it was told to; true if it did.
    pub fn died_as_told(&mut self, node: usize) -> bool {
        let ended = within(CRASH_MAX, || self.nodes[node].ended());
        let said = self.nodes[node].log().contains("crash point");
        said && ended.and_then(|status| status.signal()) == Some(Signal::ABORT.as_raw())
    }

    /// Carries a node's step out as far as its death; true if that is proven.
    pub fn inflict(&mut self, step: &Step) -> bool {
        match &step.fault {
            Fault::BrokerKill { .. } => unreachable!("no fault of a node"),
            Fault::Kill { after } => {
                // The schedule of the case, not a wait for anything.
                std::thread::sleep(*after);
                self.kill(step.node)
            }
            Fault::Crash { point, .. } => {
                if self.armed[step.node].is_none() {
                    self.kill(step.node);
                    self.restart(step.node, Some(step));
                }
                let node = &mut self.nodes[step.node];
                let ended = within(CRASH_MAX, || node.ended());
                let Some(status) = ended else {
                    self.kill(step.node);
                    return false;
                };
                let said = self.nodes[step.node].log().contains(&format!("crash point {point}"));
                if !said {
                    self.unexpected.push(format!("n{} ended by itself: {status}", step.node));
                }
                said && status.signal() == Some(Signal::ABORT.as_raw())
            }
        }
    }

    /// Nodes, dead ones included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn is_running(&self, node: usize) -> bool {
        self.nodes[node].is_running()
    }

    /// Starts of a node so far.
    pub fn lives(&self, node: usize) -> u32 {
        self.nodes[node].lives()
    }

    /// What a node has logged since its last start.
    pub fn log(&self, node: usize) -> String {
        self.nodes[node].log()
    }

    pub fn node(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node]
    }

    /// kill -9. False if the node was dead already.
    pub fn kill(&mut self, node: usize) -> bool {
        match self.nodes[node].ended() {
            Some(status) => {
                self.unexpected.push(format!("n{node} ended by itself before the {KILL}: {status}"));
                false
            }
            None => {
                self.nodes[node].kill();
                true
            }
        }
    }

    /// What follows the death of a node: perhaps the loss of its stores, then its return.
    pub fn revive(&mut self, step: &Step, next: Option<&Step>) {
        if step.wipe {
            self.wipe(step.node);
        }
        // The schedule of the case, not a wait for anything.
        std::thread::sleep(step.down);
        self.restart(step.node, next);
    }

    /// Deletes a dead node's stores; answers of how many deployments.
    pub fn wipe(&self, node: usize) -> usize {
        let directories =
            DEPLOYMENTS.iter().map(|deployment| self.nodes[node].stores().join(deployment.name));
        let directories: Vec<_> = directories.filter(|directory| directory.exists()).collect();
        for directory in &directories {
            fs::remove_dir_all(directory).expect("a dead node's stores can be deleted");
        }
        directories.len()
    }

    /// kill -9 of every node, with the loss of all stores, and their return.
    pub fn restart_cold(&mut self) {
        let mut wiped = 0;
        for node in 0..self.nodes.len() {
            self.kill(node);
            wiped += self.wipe(node);
            self.restart(node, None);
        }
        let stateful = DEPLOYMENTS.iter().filter(|deployment| deployment.stateful).count();
        assert!(wiped >= stateful, "the stores of {wiped} deployments were found, and {stateful} have some");
    }

    /// Moves every task to the last node: the others drain.
    pub fn gather(&mut self) {
        let last = self.nodes.len() - 1;
        for node in 0..last {
            let status = self.nodes[node].stop();
            if !status.success() {
                self.unexpected.push(format!("n{node} did not drain: {status}"));
            }
        }
    }

    /// Starts the nodes that do not run.
    pub fn complete(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.is_running(node) {
                self.restart(node, None);
            }
        }
    }

    /// Every entry of a deployment's store, once every partition answers.
    pub fn state(&self, deployment: &str, store: &str) -> Result<Vec<Row>> {
        let asked = self.nodes.iter().find(|node| node.is_running()).context("no node is left to ask")?;
        let mut last = String::new();
        let answer = within(STATE_MAX, || {
            let scan = ["state", "scan", deployment, store, "--all", "--output", "json"];
            let answer = asked.tidemill(&scan);
            last = answer.stderr;
            answer.status.success().then_some(answer.stdout)
        });
        let answer = answer.with_context(|| format!("{deployment} does not answer: {last}"))?;
        let answer: Value = serde_json::from_str(&answer)?;
        let entries = answer["entries"].as_array().context("a scan has entries")?;
        entries.iter().map(entry).collect()
    }

    /// Stores taken up or rebuilt so far, over all nodes.
    pub fn restores(&self) -> u64 {
        let logs = self.nodes.iter().map(Node::whole_log);
        let starts = logs.map(|log| {
            let stateless =
                |line: &str| line.contains("deployment=\"copy\"") || line.contains("deployment=copy");
            log.lines().filter(|line| line.contains("task starts") && !stateless(line)).count() as u64
        });
        starts.sum()
    }

    /// Ends of nodes, panics and halts that nobody asked for.
    pub fn unexpected(&mut self) -> Vec<String> {
        for number in 0..self.nodes.len() {
            if let Some(status) = self.nodes[number].ended() {
                self.unexpected.push(format!("n{number} ended by itself: {status}"));
            }
        }
        self.unexpected.extend(self.complaints());
        std::mem::take(&mut self.unexpected)
    }
}

/// A node's file, but for what [`Node::prepare`] adds.
fn settings(cluster: &Cluster, case: &Case, number: usize) -> String {
    let Special { properties, detour, .. } = &case.special;
    let bootstrap = detour.as_deref().filter(|_| number == 0).unwrap_or(cluster.bootstrap());
    let (cache, buffers) = (case.block_cache_mib, case.write_buffers_mib);
    let copies = cluster.replication_factor();
    format!(
        "kafka:\n  bootstrap_servers: '{bootstrap}'\n  properties: {{ {properties} }}\nnode_id: n{number}\n\
         replication_factor: {copies}\nmemory: {{ block_cache: {cache}MiB, write_buffers: {buffers}MiB }}\n"
    )
}

/// One entry of a scan as the store's bytes: text as it is, a number as eight little-endian bytes.
fn entry(entry: &Value) -> Result<Row> {
    let partition = i32::try_from(entry["partition"].as_i64().context("an entry has a partition")?)?;
    let key = entry["key"].as_str().context("keys are text")?.as_bytes().to_vec();
    let value = match &entry["value"] {
        Value::String(text) => text.clone().into_bytes(),
        number => number.as_i64().context("values are text or whole numbers")?.to_le_bytes().to_vec(),
    };
    ensure!(!key.is_empty(), "a key is empty");
    Ok(Row { partition, offset: 0, key: Some(key), value: Some(value) })
}

fn documents(case: &Case) -> String {
    let one = |deployment: &Deployment| {
        format!(
            "name: {}\nmodule: {}.wasm\ninputs: {{ in: {{ topic: {}, start: {} }} }}\n\
             outputs: {{ out: {{ topic: {} }} }}\nworkers: {}\nconfig: {}\n\
             commit: {{ interval: {}ms, overlay_bytes: {}KiB }}\n\
             limits: {{ batch_records: {}, emit_bytes: 64KiB }}\n",
            deployment.name,
            deployment.module,
            deployment.input,
            case.special.start.unwrap_or("earliest"),
            deployment.output,
            case.workers,
            deployment.config.replace("REMEMBER", &case.remember.to_string()),
            case.commit_ms,
            case.overlay_kib,
            case.batch_records
        )
    };
    // The chain comes last: a scenario may have a node die at its first commit, and the others are to be there by then.
    let documents: Vec<String> = DEPLOYMENTS.iter().rev().map(one).collect();
    documents.join("---\n")
}
