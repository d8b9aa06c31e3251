//! Workloads, one after the other; in each the contenders take turns, round by round.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::rounds::{Figures, order};
use crate::run::Stage;
use crate::terms::{Contender, Jvm, Kind, Workload};

/// What a contender has shown in every round.
pub struct Shown {
    pub contender: Contender,
    /// The way in which Kafka Streams was run.
    pub jvm: Option<Jvm>,
    pub runs: Vec<Figures>,
}

/// A workload's rounds.
pub struct Outcome {
    pub workload: &'static Workload,
    pub shown: Vec<Shown>,
    /// Ways of running Kafka Streams that were tried before the rounds.
    pub tried: Vec<(Contender, Jvm, Figures)>,
}

/// Runs a workload, with those of its contenders whose name has one of `only` in it; with all, if it is empty.
pub fn run(stage: &Stage, workload: &'static Workload, rounds: usize, only: &[String]) -> Result<Outcome> {
    println!("\n{}", workload.title);
    let mut outcome = Outcome { workload, shown: Vec::new(), tried: Vec::new() };
    let mut progress = Progress::new(workload, rounds, only);
    for contender in taking_part(workload, only) {
        let jvm = choose(stage, contender, &mut outcome, &mut progress)?;
        outcome.shown.push(Shown { contender: *contender, jvm, runs: Vec::new() });
    }
    for round in 0..rounds {
        for number in order(outcome.shown.len(), round) {
            let shown = &mut outcome.shown[number];
            let name = run_name(workload, number, round);
            let figures = stage.run(workload, &shown.contender, shown.jvm, &name)?;
            progress.ran(&format!("round {}", round + 1), &shown.contender, shown.jvm, &figures);
            shown.runs.push(figures);
        }
    }
    Ok(outcome)
}

/// Of a contender's run in a round: its topics, groups and threads have it in their names.
pub fn run_name(workload: &Workload, contender: usize, round: usize) -> String {
    format!("{}-{contender}-{round}", workload.name)
}

fn taking_part<'a>(
    workload: &'static Workload,
    only: &'a [String],
) -> impl Iterator<Item = &'static Contender> + use<'a> {
    let is_named = |contender: &&Contender| only.iter().any(|part| contender.name.contains(part.as_str()));
    workload.contenders.iter().filter(move |contender| only.is_empty() || is_named(contender))
}

fn ways(contender: &Contender) -> &'static [Jvm] {
    if let Kind::Streams(ways) = contender.kind { ways } else { &[] }
}

/// Tries every way of running a contender, if there are several, and answers the one that needs least.
fn choose(
    stage: &Stage,
    contender: &Contender,
    outcome: &mut Outcome,
    progress: &mut Progress,
) -> Result<Option<Jvm>> {
    let ways = ways(contender);
    if ways.len() < 2 {
        return Ok(ways.first().copied());
    }
    let mut best: Option<(f64, Jvm)> = None;
    for (way, &jvm) in ways.iter().enumerate() {
        let name = format!("{}-try-{}-{way}", outcome.workload.name, outcome.shown.len());
        let figures = match stage.run(outcome.workload, contender, Some(jvm), &name) {
            Ok(figures) => figures,
            // Such as one whose cache does not fit its heap. It is no way, and the others are tried.
            Err(error) => {
                progress.failed(contender, jvm, &error);
                continue;
            }
        };
        progress.ran("trying", contender, Some(jvm), &figures);
        outcome.tried.push((*contender, jvm, figures));
        let figure = figures.get(outcome.workload.decisive()).context("nothing to choose by")?;
        if best.is_none_or(|(least, _)| figure < least) {
            best = Some((figure, jvm));
        }
    }
    let (_, jvm) = best.with_context(|| format!("{} got through in none of its ways", contender.name))?;
    Ok(Some(jvm))
}

/// Tells what ran, and how long the rest will take.
struct Progress {
    started: Instant,
    done: usize,
    all: usize,
}

impl Progress {
    fn new(workload: &'static Workload, rounds: usize, only: &[String]) -> Progress {
        let runs = |contender| {
            let ways = ways(contender).len();
            rounds + if ways < 2 { 0 } else { ways }
        };
        let all = taking_part(workload, only).map(runs).sum();
        Progress { started: Instant::now(), done: 0, all }
    }

    fn failed(&mut self, contender: &Contender, jvm: Jvm, error: &anyhow::Error) {
        self.done += 1;
        println!(
            "{:>3}/{}  trying   {} ({jvm}) did not get through: {error:#}",
            self.done, self.all, contender.name
        );
    }

    fn ran(&mut self, what: &str, contender: &Contender, jvm: Option<Jvm>, figures: &Figures) {
        self.done += 1;
        let each = self.started.elapsed() / u32::try_from(self.done).unwrap_or(u32::MAX);
        let left = each * u32::try_from(self.all - self.done).unwrap_or(u32::MAX);
        let way = jvm.map(|jvm| format!(" ({jvm})")).unwrap_or_default();
        println!(
            "{:>3}/{}  {what:<8} {:<48} {:6.2} CPU-s/M {:>6.0} k/s {:>5.0} MiB  broker {:.2}{}{}  {} min left",
            self.done,
            self.all,
            format!("{}{way}", contender.name),
            figures.cpu_seconds_per_million,
            figures.records_per_second / 1e3,
            figures.peak_rss_mib,
            figures.broker_cpu_seconds_per_million,
            figures.latency_ms.map(|latency| format!("  {latency}")).unwrap_or_default(),
            figures.deployed_ms.map(|ms| format!("  first output after {ms:.0} ms")).unwrap_or_default(),
            left.as_secs().div_ceil(60),
        );
    }
}
