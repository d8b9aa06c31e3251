//! One round of W6, from an empty cluster to the checker's verdict.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use rustix::process::Signal;

use super::feed::Feeder;
use super::plan::{begins_ms, events};
use super::sizes::Sizes;
use super::{DEPLOYMENT, IDS, INPUT, OUTPUT, PARTITIONS, TTL_MS, lines};
use crate::cluster::Cluster;
use crate::evidence::{self, Evidence, Run};
use crate::node::Node;
use crate::rig::case::CRASH_POINTS;
use crate::rig::dump::Dump;
use crate::rig::round::{Summary, judge};
use crate::wait::{until, within};
use std::os::unix::process::ExitStatusExt;

/// The node with crash points and planted bugs in it.
pub(super) const PROGRAM: &str = "tidemill-faults";
const NODES: usize = 2;
pub(super) const FIRST_ANSWER_MAX: Duration = Duration::from_secs(60);
/// A node that was told to die at a step of a commit must get there.
const CRASH_MAX: Duration = Duration::from_secs(45);
/// Everything is handled this long after the last record, and a while more for each million of them.
pub(super) const SETTLE_MAX: Duration = Duration::from_secs(120);

/// What a round is.
#[derive(Debug, Clone)]
pub struct Case {
    pub seed: u64,
    /// `embedded` or `apache`.
    pub broker: &'static str,
    pub ids: u32,
    /// Records a second.
    pub rate: u64,
    /// Faults, evenly over the run.
    pub faults: usize,
    /// Planted in every node, by its name in `tidemill::faults`.
    pub bug: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    /// At a step of a commit, the nth time a commit gets there.
    Crash(&'static str, u32),
    /// SIGTERM: its tasks move to the other node, and back.
    Drain,
    /// kill -9, and its stores are gone.
    Wipe,
}

impl Blow {
    fn name(self) -> &'static str {
        match self {
            Blow::Kill => "kill",
            Blow::Crash(..) => "crash",
            Blow::Drain => "drain",
            Blow::Wipe => "wipe",
        }
    }
}

/// Runs a case in `directory`, with the chain's module, and has it judged. Answers the effects as well.
pub fn play(case: &Case, cluster: &Cluster, directory: &Path, module: &Path) -> Result<(Summary, u64)> {
    let evidence = Evidence::create(&directory.join("evidence"))?;
    let mut fleet = Fleet::start(cluster, case, directory, module);
    let began_ms = begins_ms();
    let planned = events(case.seed, case.ids);
    let records = planned.len() as u64;
    let sizes = Sizes::start(cluster.bootstrap(), fleet.nodes.iter().map(Node::stores).collect())?;
    let feeder = Feeder::start(cluster.bootstrap(), planned, began_ms, case.rate);
    let faults = fleet.suffer(case, records, &feeder);
    let acknowledged = feeder.finish()?;

    let dump = Dump::of(cluster.bootstrap());
    let settle_max = SETTLE_MAX + Duration::from_secs(60 * records / 1_000_000);
    let settled = within(settle_max, || {
        (is_settled(&dump, DEPLOYMENT, INPUT).unwrap_or(false) || !fleet.complaints().is_empty())
            .then_some(())
    });
    let sizes = sizes.finish();
    let effects = lines::dump(cluster.bootstrap(), evidence.directory())?;
    lines::write_sent(evidence.directory(), &acknowledged)?;
    lines::write_sizes(evidence.directory(), &sizes)?;
    let topics = [INPUT, OUTPUT, IDS];
    let ends: Vec<_> = topics.iter().map(|topic| dump.ends(topic)).collect::<Result<_>>()?;
    evidence.write_ends(&ends.concat())?;
    evidence.write_offsets(&dump.committed(DEPLOYMENT, INPUT)?)?;
    evidence.write_acks(&[])?;
    let kills = faults.values().map(|fault| fault.proven).sum();
    evidence.write_run(&Run {
        seed: case.seed,
        partitions: PARTITIONS,
        inbox_ttl_ms: Some(TTL_MS),
        faults: faults.into_values().collect(),
        settled: settled.is_some(),
        unexpected: fleet.complaints(),
        ..Run::default()
    })?;
    let restores = fleet.starts();
    Ok((judge(&evidence, Summary { kills, records, restores, ..Summary::default() }), effects))
}

/// True if a deployment's group has committed the end of its input.
pub(super) fn is_settled(dump: &Dump, deployment: &str, input: &str) -> Result<bool> {
    let committed = dump.committed(deployment, input)?;
    let ends = dump.ends(input)?;
    let reached = |end: &evidence::Ends| {
        committed.iter().any(|at| at.partition == end.partition && at.offset.max(0) == end.high)
    };
    Ok(ends.iter().all(reached))
}

struct Fleet {
    nodes: Vec<Node>,
    bug: Option<&'static str>,
    /// Ends that nobody asked for.
    unexpected: Vec<String>,
}

impl Fleet {
    fn start(cluster: &Cluster, case: &Case, directory: &Path, module: &Path) -> Fleet {
        let settings = |number: usize| {
            format!(
                "kafka:\n  bootstrap_servers: '{}'\nnode_id: n{number}\nmemory: {{ write_buffers: 4MiB }}\n",
                cluster.bootstrap()
            )
        };
        let node =
            |number: usize| Node::prepare(cluster, &directory.join(format!("n{number}")), &settings(number));
        let nodes = (0..NODES).map(node).collect();
        let mut fleet = Fleet { nodes, bug: case.bug, unexpected: Vec::new() };
        (0..NODES).for_each(|node| fleet.launch(node, None));
        let first = &fleet.nodes[0];
        until("the first node answers", FIRST_ANSWER_MAX, || {
            let answer = first.tidemill(&["deployments"]);
            if answer.status.success() { Ok(()) } else { Err(answer.stderr) }
        });
        let partitions = PARTITIONS.to_string();
        first.tidemill(&["topics", "create", INPUT, OUTPUT, "--partitions", &partitions]).ok();
        let file = directory.join("once.yaml");
        let document = format!(
            "name: {DEPLOYMENT}\nmodule: {}\ninputs: {{ in: {{ topic: {INPUT}, start: earliest }} }}\n\
             outputs: {{ out: {{ topic: {OUTPUT} }} }}\nconfig: {{ remember: true }}\n\
             inbox: {{ id: \"header:id\", ttl: {}ms }}\ncommit: {{ interval: 50ms }}\n",
            module.display(),
            TTL_MS
        );
        fs::write(&file, document).expect("the deployment's file");
        first.tidemill(&["apply", "--wait", "-f", &file.display().to_string()]).ok();
        fleet
    }

    fn launch(&mut self, node: usize, crash: Option<&str>) {
        let crash = crash.map(|crash| ("TIDEMILL_CRASH", crash));
        let bug = self.bug.map(|bug| ("TIDEMILL_BUG", bug));
        let variables: Vec<_> = crash.into_iter().chain(bug).collect();
        self.nodes[node].restart_as(PROGRAM, &variables);
    }

    /// Every fault in its turn, spread over the feed; answers what was wanted and what is proven.
    fn suffer(
        &mut self,
        case: &Case,
        records: u64,
        feeder: &Feeder,
    ) -> BTreeMap<&'static str, evidence::Fault> {
        let mut faults: BTreeMap<&str, evidence::Fault> = BTreeMap::new();
        let mut rng = Rng::with_seed(case.seed);
        for number in 0..case.faults {
            let due = records * (number as u64 + 1) / (case.faults as u64 + 2);
            until("the feed goes on", Duration::from_secs(600), || {
                let sent = feeder.sent();
                if sent >= due { Ok(()) } else { Err(sent) }
            });
            let blow = match number % 4 {
                0 => Blow::Crash(CRASH_POINTS[rng.usize(..CRASH_POINTS.len())], rng.u32(1..=5)),
                1 => Blow::Drain,
                2 => Blow::Kill,
                _ => Blow::Wipe,
            };
            let node = rng.usize(..NODES);
            let started = Instant::now();
            let proven = self.strike(node, blow);
            let said = if proven { "" } else { ": no proof" };
            let (broker, name, took) = (case.broker, blow.name(), started.elapsed());
            println!("{broker}: {name} of n{node} at {due} records, took {took:.1?}{said}");
            let fault = faults.entry(blow.name()).or_insert_with(|| evidence::Fault {
                name: blow.name().to_owned(),
                ..evidence::Fault::default()
            });
            fault.wanted += 1;
            fault.proven += u64::from(proven);
            self.launch(node, None);
        }
        faults
    }

    /// Ends a node; true if it ended as it was meant to.
    fn strike(&mut self, node: usize, blow: Blow) -> bool {
        match blow {
            Blow::Kill => self.kill(node),
            Blow::Wipe => {
                let killed = self.kill(node);
                // It may have had no task, and then there is nothing to lose.
                let _ = fs::remove_dir_all(self.nodes[node].stores().join(DEPLOYMENT));
                killed
            }
            Blow::Drain => {
                // Before that it has nothing to drain, and ends at once.
                until("the node has started", FIRST_ANSWER_MAX, || {
                    let log = self.nodes[node].log();
                    if log.contains("node started") { Ok(()) } else { Err(log) }
                });
                self.nodes[node].stop().success()
            }
            Blow::Crash(point, nth) => {
                self.kill(node);
                self.launch(node, Some(&format!("{point}:{nth}@{DEPLOYMENT}")));
                let ended = within(CRASH_MAX, || self.nodes[node].ended());
                let Some(status) = ended else {
                    self.kill(node);
                    return false;
                };
                let said = self.nodes[node].log().contains(&format!("crash point {point}"));
                said && status.signal() == Some(Signal::ABORT.as_raw())
            }
        }
    }

    fn kill(&mut self, node: usize) -> bool {
        if let Some(status) = self.nodes[node].ended() {
            self.unexpected.push(format!("n{node} ended by itself: {status}"));
            return false;
        }
        self.nodes[node].kill();
        true
    }

    /// Ends, panics and halts that nobody asked for.
    fn complaints(&mut self) -> Vec<String> {
        for number in 0..NODES {
            if let Some(status) = self.nodes[number].ended() {
                self.unexpected.push(format!("n{number} ended by itself: {status}"));
            }
        }
        let bad = self.nodes.iter().flat_map(Node::complaints);
        self.unexpected.iter().cloned().chain(bad).collect()
    }

    /// Starts of tasks so far, restores and moves alike.
    fn starts(&self) -> u64 {
        let logs = self.nodes.iter().map(Node::whole_log);
        logs.map(|log| log.lines().filter(|line| line.contains("task starts")).count() as u64).sum()
    }
}
