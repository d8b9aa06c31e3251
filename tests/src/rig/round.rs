//! One round, from an empty cluster to the checker's verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::case::{Case, Fault, Step};
use super::dump::Dump;
use super::feed::{Feeder, chained};
use super::fleet::{DEPLOYMENTS, Fleet, TOPICS};
use super::scenario::cluster_of;
use super::watch::Watch;
use crate::cluster::Cluster;
use crate::evidence::{self, Evidence, Run};
use crate::programs::{program, run};
use crate::wait::within;

/// Everything is handled this long after the last fault and the last record.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// No partition stands still longer while nothing is wrong with the nodes.
const STALL_MAX: Duration = Duration::from_secs(30);

/// What a round came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub kills: u64,
    pub records: u64,
    pub restores: u64,
    pub longest: Duration,
    /// What the checker said, line by line.
    pub violations: Vec<String>,
    pub invalid: Vec<String>,
    pub notes: Vec<String>,
}

impl Summary {
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.invalid.is_empty()
    }

    pub fn add(&mut self, other: Summary) {
        self.kills += other.kills;
        self.records += other.records;
        self.restores += other.restores;
        self.longest = self.longest.max(other.longest);
        self.violations.extend(other.violations);
        self.invalid.extend(other.invalid);
        self.notes.extend(other.notes);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { kills, records, restores, violations, .. } = self;
        write!(f, "{kills} kills, {records} records, {restores} restores, {} violations", violations.len())
    }
}

/// A round in progress: nodes under load, and whoever watches them.
pub struct Stage {
    pub case: Case,
    pub cluster: Cluster,
    pub fleet: Fleet,
    pub watch: Watch,
    feeder: Feeder,
    evidence: Evidence,
}

/// Runs a case in `directory` and has it judged.
pub fn play(case: &Case, directory: &Path, modules: &Path) -> Result<Summary> {
    let mut stage = Stage::open(case, cluster_of(case), directory, modules)?;
    let faults = stage.carry_out();
    stage.close(faults)
}

impl Stage {
    /// Nodes, deployments and load.
    pub fn open(case: &Case, cluster: Cluster, directory: &Path, modules: &Path) -> Result<Stage> {
        let evidence = Evidence::create(&directory.join("evidence"))?;
        let fleet = Fleet::start(&cluster, case, directory, modules);
        let feeder = Feeder::start(cluster.bootstrap(), case);
        let watch = Watch::start(cluster.bootstrap(), "chain-out", case.partitions)?;
        Ok(Stage { case: case.clone(), cluster, fleet, watch, feeder, evidence })
    }

    /// Every fault of the plan in turn; answers what was wanted and what is proven.
    fn carry_out(&mut self) -> Vec<evidence::Fault> {
        let mut faults: BTreeMap<&str, evidence::Fault> = BTreeMap::new();
        let plan = self.case.plan.clone();
        for (at, step) in plan.iter().enumerate() {
            let started = Instant::now();
            let proven = self.inflict(step);
            self.watch.fault();
            let (name, said) = (step.fault.name(), if proven { "" } else { ": no proof" });
            println!("  {name} of number {} after {:.1?}{said}", step.node, started.elapsed());
            let fault = faults
                .entry(name)
                .or_insert_with(|| evidence::Fault { name: name.to_owned(), ..evidence::Fault::default() });
            fault.wanted += 1;
            fault.proven += u64::from(proven);
            match step.fault {
                // The schedule of the case, not a wait for anything.
                Fault::BrokerKill { .. } => {
                    std::thread::sleep(step.down);
                    self.cluster.restart_broker(step.node);
                }
                _ => self.fleet.revive(step, plan.get(at + 1)),
            }
            self.watch.healed();
        }
        faults.into_values().collect()
    }

    /// Carries a step out as far as a death; true if that is proven.
    fn inflict(&mut self, step: &Step) -> bool {
        match step.fault {
            Fault::BrokerKill { after } => {
                std::thread::sleep(after);
                self.cluster.kill_broker(step.node);
                true
            }
            _ => self.fleet.inflict(step),
        }
    }

    /// Waits until what was sent by now has come out, in time or not.
    pub fn catch_up(&self) {
        let sent = chained(self.feeder.sent());
        within(STALL_MAX, || (self.watch.records() >= sent).then_some(()));
    }

    /// Ends the load, waits until all of it is handled, and has the round judged.
    pub fn close(mut self, faults: Vec<evidence::Fault>) -> Result<Summary> {
        // The standstills end with the flow: what was sent by now must come out first.
        self.catch_up();
        let standstill = self.watch.finish();
        let acks = self.feeder.finish()?;
        let dump = Dump::of(self.cluster.bootstrap());
        let began = Instant::now();
        let settled = within(SETTLE_MAX, || match is_settled(&dump) {
            Ok(true) => Some(true),
            _ => (!self.fleet.complaints().is_empty()).then_some(false),
        });
        if settled == Some(false) {
            // Nobody need wait for what will not come; the checker has nothing to add.
            let violations = self.fleet.unexpected().into_iter().map(|line| format!("W9: {line}"));
            return Ok(Summary { violations: violations.collect(), ..Summary::default() });
        }
        let (settled, settling) = (settled.is_some(), began.elapsed());

        let mut doubts = Vec::new();
        look_at_stores(&self.fleet, &self.evidence, "live", &mut doubts)?;
        if self.fleet.len() > 1 {
            self.fleet.gather();
            look_at_stores(&self.fleet, &self.evidence, "moved", &mut doubts)?;
            self.fleet.complete();
        }
        let began = Instant::now();
        self.fleet.restart_cold();
        look_at_stores(&self.fleet, &self.evidence, "cold", &mut doubts)?;
        println!("  settled after {settling:.1?}; all stores lost and back after {:.1?}", began.elapsed());
        write_dumps(&dump, &self.evidence)?;
        self.evidence.write_acks(&acks)?;
        let kills = faults.iter().map(|fault| fault.proven).sum();
        doubts.extend(self.fleet.unexpected());
        let millis = |still: &Duration| still.as_millis() as u64;
        self.evidence.write_run(&Run {
            seed: self.case.seed,
            partitions: self.case.partitions,
            bank: true,
            chain: true,
            inbox_ttl_ms: None,
            records_min: self.case.records,
            faults,
            settled,
            stall_ms: standstill.worst.iter().map(|(partition, still)| (*partition, millis(still))).collect(),
            stall_ms_max: millis(&STALL_MAX),
            unexpected: doubts,
        })?;
        let (records, restores) = (acks.len() as u64, self.fleet.restores());
        let longest = standstill.longest;
        Ok(judge(&self.evidence, Summary { kills, records, restores, longest, ..Summary::default() }))
    }
}

/// True if every group has committed the end of its input.
fn is_settled(dump: &Dump) -> Result<bool> {
    for deployment in &DEPLOYMENTS {
        let ends = dump.ends(deployment.input)?;
        let committed = dump.committed(deployment.name, deployment.input)?;
        let reached = |end: &crate::evidence::Ends| {
            committed.iter().any(|at| at.partition == end.partition && at.offset.max(0) == end.high)
        };
        if !ends.iter().all(reached) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn look_at_stores(fleet: &Fleet, evidence: &Evidence, label: &str, doubts: &mut Vec<String>) -> Result<()> {
    for deployment in &DEPLOYMENTS {
        let Some(store) = deployment.store else { continue };
        match fleet.state(deployment.name, store) {
            Ok(rows) => evidence.write_state(label, &format!("{}.{store}", deployment.name), &rows)?,
            Err(error) => doubts.push(format!("{label}: {error:#}")),
        }
    }
    Ok(())
}

fn write_dumps(dump: &Dump, evidence: &Evidence) -> Result<()> {
    let mut ends = Vec::new();
    let mut offsets = Vec::new();
    for topic in TOPICS {
        evidence.write_topic(topic, true, &dump.topic(topic, true)?)?;
        evidence.write_topic(topic, false, &dump.topic(topic, false)?)?;
        ends.extend(dump.ends(topic)?);
    }
    for deployment in &DEPLOYMENTS {
        offsets.extend(dump.committed(deployment.name, deployment.input)?);
        if deployment.stateful {
            let changelog = format!("tidemill.{}.changelog", deployment.name);
            ends.extend(dump.ends(&changelog)?);
            let name = format!("{}.changelog", deployment.name);
            evidence.write_topic(&name, true, &dump.topic(&changelog, true)?)?;
        }
    }
    evidence.write_ends(&ends)?;
    evidence.write_offsets(&offsets)
}

/// The checker is another program: it sees the evidence and nothing else.
pub fn judge(evidence: &Evidence, mut summary: Summary) -> Summary {
    let judged = run(Command::new(program("tidemill-check")).arg(evidence.directory()));
    for line in judged.stdout.lines() {
        match line.split_once(": ") {
            Some(("violation", what)) => summary.violations.push(what.to_owned()),
            Some(("note", what)) => summary.notes.push(what.to_owned()),
            _ => summary.invalid.push(line.to_owned()),
        }
    }
    if !judged.status.success() && summary.is_good() {
        summary.invalid.push(format!("the checker failed: {} {}", judged.status, judged.stderr));
    }
    summary
}
