//! One round, from an empty cluster to the checker's verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::case::{Broker, Case};
use super::dump::Dump;
use super::feed::Feeder;
use super::fleet::{DEPLOYMENTS, Fleet, TOPICS};
use super::watch::Watch;
use crate::cluster::Cluster;
use crate::evidence::{Evidence, Fault, Run};
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

/// Runs a case in `directory` and has it judged.
pub fn play(case: &Case, directory: &Path, modules: &Path) -> Result<Summary> {
    let cluster = match case.broker {
        Broker::Embedded => Cluster::embedded(),
        Broker::Apache => Cluster::apache(),
    };
    let evidence = Evidence::create(&directory.join("evidence"))?;
    let dump = Dump::of(cluster.bootstrap());
    let mut fleet = Fleet::start(&cluster, case, directory, modules);

    let feeder = Feeder::start(cluster.bootstrap(), case);
    let watch = Watch::start(cluster.bootstrap(), "chain-out", case.partitions)?;
    let faults = carry_out(case, &mut fleet, &watch);
    // The standstills end with the flow: what was sent by now must come out first.
    let sent = feeder.sent() * 4 / 5;
    within(STALL_MAX, || (watch.records() >= sent).then_some(()));
    let standstill = watch.finish();
    let acks = feeder.finish()?;
    let settled = within(SETTLE_MAX, || is_settled(&dump).ok().filter(|settled| *settled)).is_some();

    let mut doubts = Vec::new();
    look_at_stores(&fleet, &evidence, "live", &mut doubts)?;
    fleet.restart_cold();
    look_at_stores(&fleet, &evidence, "cold", &mut doubts)?;
    write_dumps(&dump, &evidence)?;
    evidence.write_acks(&acks)?;
    let kills = faults.iter().map(|fault| fault.proven).sum();
    doubts.extend(fleet.unexpected());
    evidence.write_run(&Run {
        seed: case.seed,
        partitions: case.partitions,
        bank: true,
        chain: true,
        records_min: case.records,
        faults,
        settled,
        stall_ms: standstill
            .worst
            .iter()
            .map(|(partition, still)| (*partition, still.as_millis() as u64))
            .collect(),
        stall_ms_max: STALL_MAX.as_millis() as u64,
        unexpected: doubts,
    })?;
    let (records, restores) = (acks.len() as u64, fleet.restores());
    Ok(judge(
        &evidence,
        Summary { kills, records, restores, longest: standstill.longest, ..Summary::default() },
    ))
}

/// Every fault of the plan in turn; answers what was wanted and what is proven.
fn carry_out(case: &Case, fleet: &mut Fleet, watch: &Watch) -> Vec<Fault> {
    let mut faults: BTreeMap<&str, Fault> = BTreeMap::new();
    for (at, step) in case.plan.iter().enumerate() {
        let started = Instant::now();
        let proven = fleet.inflict(step);
        watch.fault();
        let name = step.fault.name();
        println!(
            "  {name} of n{} after {:?}{}",
            step.node,
            started.elapsed(),
            if proven { "" } else { ": no proof" }
        );
        let fault = faults.entry(name).or_insert_with(|| Fault { name: name.to_owned(), ..Fault::default() });
        fault.wanted += 1;
        fault.proven += u64::from(proven);
        fleet.revive(step, case.plan.get(at + 1));
        watch.healed();
    }
    faults.into_values().collect()
}

/// True if every group has committed the end of its input.
fn is_settled(dump: &Dump) -> Result<bool> {
    for deployment in &DEPLOYMENTS {
        let ends = dump.ends(deployment.input)?;
        let committed = dump.committed(deployment.name, deployment.input)?;
        let reached = |end: &crate::evidence::Ends| {
            committed.iter().any(|at| at.partition == end.partition && at.offset == end.high)
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
fn judge(evidence: &Evidence, mut summary: Summary) -> Summary {
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
