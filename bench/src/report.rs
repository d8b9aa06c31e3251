//! What came out: a table and the ratios on the terminal, and all of it as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::boundary::Boundary;
use crate::budget;
use crate::charts;
use crate::machine::Machine;
use crate::rounds::{Comeback, Figures, Latency, Spread};
use crate::steps::Step;
use crate::suite::{Outcome, Shown};
use crate::table::CURVES;
use crate::terms::{Bar, Metric, Ratio};

/// The workload of `make recovery`.
pub const RECOVERY: &str = "recovery";

/// What one command has measured. Its file holds, of each workload, what the last command that ran it has.
pub struct Report {
    pub machine: Machine,
    /// The one that repeats it.
    pub command: String,
    /// Only with a workload that has a budget.
    pub boundary: Option<Boundary>,
    /// By workload: what is beneath its budget.
    pub steps: BTreeMap<&'static str, Vec<Step>>,
    /// By workload: the share of the machine's CPU time that its host gave to others while it ran.
    pub stolen: BTreeMap<&'static str, f64>,
    pub ratios: Vec<RatioReport>,
    pub contenders: Vec<ContenderReport>,
    pub survivors: Vec<SurvivorReport>,
    pub found: Vec<FoundReport>,
    /// By what grows.
    pub curves: BTreeMap<&'static str, Vec<Point>>,
}

/// A workload that is a point of a curve, and what a record costs there, in CPU-s per million.
pub type Point = (&'static str, Spread);

#[derive(Serialize)]
pub struct RatioReport {
    pub workload: &'static str,
    pub name: &'static str,
    pub metric: String,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stretch: Option<f64>,
    pub met: bool,
}

#[derive(Serialize)]
pub struct ContenderReport {
    pub workload: &'static str,
    pub name: &'static str,
    /// How Kafka Streams was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jvm: Option<String>,
    /// Tried before the rounds, to find the best way.
    pub tried_only: bool,
    pub runs: Vec<Figures>,
    /// In which way it gave way, where the load was raised until it did; the runs are the steps to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

/// A contender that was killed; in the file it stands beside the others.
#[derive(Serialize)]
pub struct SurvivorReport {
    pub workload: &'static str,
    pub name: &'static str,
    pub kill: String,
    pub runs: Vec<Comeback>,
}

/// Who was measured by another program; in the file it stands beside the others as well.
#[derive(Serialize)]
pub struct FoundReport {
    pub workload: &'static str,
    pub name: &'static str,
    /// The figure that is judged, as often as it was measured.
    pub runs: Vec<BTreeMap<&'static str, f64>>,
    /// What was measured with it, and is not judged.
    pub beside: BTreeMap<String, f64>,
}

impl Report {
    pub fn new(machine: Machine, command: String, boundary: Option<Boundary>) -> Report {
        let (ratios, contenders, survivors, found) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (steps, stolen, curves) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Report { machine, command, boundary, steps, stolen, ratios, contenders, survivors, found, curves }
    }

    /// Adds a workload, and prints it.
    pub fn add(&mut self, outcome: &Outcome) {
        print_contenders(outcome);
        let ratios = outcome.workload.ratios.iter().filter_map(|ratio| judge(outcome, ratio));
        for report in ratios {
            print_ratio(&report);
            self.ratios.push(report);
        }
        let steps = self.steps.get(outcome.workload.name);
        budget::print(outcome, steps.map(Vec::as_slice).unwrap_or_default());
        let workload = outcome.workload.name;
        if let Some(grows) = outcome.workload.curve {
            let cost = |shown: &Shown| Spread::of(shown.runs.iter().filter_map(|run| run.get(Metric::Cpu)));
            let points = outcome.shown.iter().filter_map(|shown| Some((workload, cost(shown)?)));
            self.curves.entry(grows).or_default().extend(points);
        }
        for shown in &outcome.shown {
            let jvm = shown.jvm.map(|jvm| jvm.to_string());
            let runs = shown.runs.clone();
            let name = shown.contender.name;
            self.contenders.push(ContenderReport { workload, name, jvm, tried_only: false, runs, end: None });
        }
        for (contender, jvm, figures) in &outcome.tried {
            let (jvm, runs) = (Some(jvm.to_string()), vec![*figures]);
            self.contenders.push(ContenderReport {
                workload,
                name: contender.name,
                jvm,
                tried_only: true,
                runs,
                end: None,
            });
        }
    }

    /// Adds what the points of a curve cost beside each other, of those that ran in turns.
    pub fn add_curve(&mut self, outcomes: &[Outcome]) {
        // A point has one contender.
        let find =
            |name: &'static str| outcomes.iter().find(|outcome| outcome.workload.name == name)?.shown.first();
        for ratio in CURVES {
            let report = figures(ratio, find).and_then(|figures| judged(ratio.over, ratio, figures));
            report.iter().for_each(print_ratio);
            self.ratios.extend(report);
        }
    }

    /// Prints curves, and all ratios once more; false if one misses its bar or there is none.
    pub fn summarize(&self) -> bool {
        for (grows, points) in &self.curves {
            print_curve(grows, points);
        }
        println!("\nratios");
        for ratio in &self.ratios {
            print_ratio(ratio);
        }
        self.is_met()
    }

    /// False if a ratio misses its bar. Where no ratio was measured, none has met it: that is said, and false as well.
    pub fn is_met(&self) -> bool {
        if self.ratios.is_empty() {
            println!("no ratio was measured");
        }
        !self.ratios.is_empty() && self.ratios.iter().all(|ratio| ratio.met)
    }

    /// Puts it into a file, in the place of what was there of the same workloads, and draws the charts of that file.
    pub fn write(&self, path: &Path, charts: &Path) -> Result<()> {
        let mut file =
            read(path)?.unwrap_or_else(|| json!({ "measured": {}, "ratios": [], "contenders": [] }));
        let of_ratios = self.ratios.iter().map(|ratio| ratio.workload);
        let of_contenders = self.contenders.iter().map(|contender| contender.workload);
        let of_survivors = self.survivors.iter().map(|survivor| survivor.workload);
        let workloads: BTreeSet<&str> = of_ratios.chain(of_contenders).chain(of_survivors).collect();
        for workload in &workloads {
            let Report { machine, command, boundary, steps, stolen, .. } = self;
            let (steps, stolen) = (steps.get(workload), stolen.get(workload));
            file["measured"][workload] = json!({
                "machine": machine, "command": command, "boundary": boundary, "steps": steps, "stolen": stolen,
            });
        }
        let ratios: Vec<Value> = self.ratios.iter().map(RatioReport::entry).collect::<Result<_>>()?;
        let took_part =
            [entries(&self.contenders)?, entries(&self.survivors)?, entries(&self.found)?].concat();
        for (list, mine) in [("ratios", ratios), ("contenders", took_part)] {
            let list =
                file[list].as_array_mut().with_context(|| format!("no {list} in {}", path.display()))?;
            list.retain(|entry| {
                entry["workload"].as_str().is_none_or(|workload| !workloads.contains(workload))
            });
            list.extend(mine);
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, serde_json::to_string_pretty(&file)? + "\n")
            .with_context(|| path.display().to_string())?;
        charts::draw(&file, charts)
    }
}

impl RatioReport {
    /// As the file has it.
    fn entry(&self) -> Result<Value> {
        let mut entry = serde_json::to_value(self)?;
        entry["name"] = full_name(self.workload, self.name, &self.metric).into();
        Ok(entry)
    }
}

/// What a ratio is called among those of all workloads, where no other is called like it. What is a full name already,
/// stays as it is.
pub fn full_name(workload: &str, name: &str, metric: &str) -> String {
    if name.starts_with(&format!("{workload}: ")) {
        return name.to_owned();
    }
    let metric = if name.ends_with(metric) { String::new() } else { format!(", {metric}") };
    format!("{workload}: {name}{metric}")
}

fn entries<T: Serialize>(of: &[T]) -> Result<Vec<Value>> {
    of.iter().map(|entry| Ok(serde_json::to_value(entry)?)).collect()
}

/// `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).with_context(|| path.display().to_string())?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Characters of a curve's cheapest point, and of one beyond which nobody counts.
const CURVE_UNIT: f64 = 20.0;
const CURVE_MAX: f64 = 100.0;

type Share = fn(&Latency) -> f64;

/// What is printed of it.
const LATENCIES: [(&str, Share); 7] = [
    ("p50", |latency| latency.p50),
    ("p95", |latency| latency.p95),
    ("p99", |latency| latency.p99),
    ("p99.9", |latency| latency.p99_9),
    ("max", |latency| latency.max),
    ("written late, p99", |latency| latency.written_late.p99),
    ("written late, max", |latency| latency.written_late.max),
];

fn print_contenders(outcome: &Outcome) {
    println!(
        "\n{:<28}{:<24}{:<20}{:<20}broker CPU-s/M",
        outcome.workload.name, "CPU-s per million", "k records/s", "peak RSS, MiB"
    );
    for shown in &outcome.shown {
        let column = |figure: fn(&Figures) -> f64| {
            Spread::of(shown.runs.iter().map(figure)).map(|spread| spread.to_string()).unwrap_or_default()
        };
        println!(
            "{:<28}{:<24}{:<20}{:<20}{}",
            shown.contender.name,
            column(|figures| figures.cpu_seconds_per_million),
            column(|figures| figures.records_per_second / 1e3),
            column(|figures| figures.peak_rss_mib),
            column(|figures| figures.broker_cpu_seconds_per_million),
        );
        let latencies = || shown.runs.iter().filter_map(|figures| figures.latency_ms);
        let spread = |&(name, share): &(&str, Share)| {
            Some(format!("{name} {}", Spread::of(latencies().map(|latency| share(&latency)))?))
        };
        let waits: Vec<String> = LATENCIES.iter().filter_map(spread).collect();
        if !waits.is_empty() {
            println!("{:<28}ms end to end: {}", "", waits.join("  "));
        }
        if let Some(spread) = Spread::of(shown.runs.iter().filter_map(|figures| figures.deployed_ms)) {
            println!("{:<28}ms from deploy to first output: {spread}", "");
        }
        if let Some(jvm) = shown.jvm {
            println!("{:<28}with {jvm}", "");
        }
    }
}

/// Lengths are multiples of the cheapest point.
fn print_curve(grows: &str, points: &[Point]) {
    println!("\nCPU-s per million records by {grows}");
    let least = points.iter().map(|(_, spread)| spread.median).fold(f64::MAX, f64::min);
    for (name, spread) in points {
        let length = (spread.median / least * CURVE_UNIT).min(CURVE_MAX) as usize;
        println!("{name:<24}{:<20}{}", spread.to_string(), "#".repeat(length));
    }
}

pub fn print_ratio(ratio: &RatioReport) {
    let RatioReport { median, min, max, .. } = *ratio;
    println!(
        "{:<21}{:<84}{:<20}{}{}",
        ratio.workload,
        format!("{} ({})", ratio.name, ratio.metric),
        Spread { median, min, max }.to_string(),
        ratio.bar.as_deref().unwrap_or_default(),
        if ratio.met { "" } else { "  MISSED" }
    );
}

/// `None` if one of the two did not take part.
fn judge(outcome: &Outcome, ratio: &Ratio) -> Option<RatioReport> {
    let find = |name: &'static str| outcome.shown.iter().find(|shown| shown.contender.name == name);
    judged(outcome.workload.name, ratio, figures(ratio, find)?)
}

/// What a ratio is in each round; `None` if one of the two whom it names is not found.
fn figures<'a>(ratio: &Ratio, find: impl Fn(&'static str) -> Option<&'a Shown>) -> Option<Vec<f64>> {
    let over = find(ratio.over)?.runs.iter().map(|figures| figures.get(ratio.metric));
    let Some(under) = ratio.under else { return Some(over.flatten().collect()) };
    let under = find(under)?.runs.iter().map(|figures| figures.get(ratio.metric));
    let compare = |(over, under): (Option<f64>, Option<f64>)| match ratio.is_difference {
        true => Some(over? - under?),
        false => Some(over? / under?),
    };
    Some(over.zip(under).filter_map(compare).collect())
}

/// Of the rounds' ratios; `None` without rounds.
pub fn judged(workload: &'static str, ratio: &Ratio, ratios: Vec<f64>) -> Option<RatioReport> {
    let rounds = ratios.len();
    let Spread { median, min, max } = Spread::of(ratios)?;
    // Whoever reads the output waits for the longest gap, not for one like most, and one round is enough to run out of
    // memory.
    let is_bound = ratio.metric == Metric::Gap || ratio.metric == Metric::PeakRss && ratio.under.is_none();
    let decisive = if is_bound { max } else { median };
    Some(RatioReport {
        workload,
        name: ratio.name,
        metric: ratio.metric.to_string(),
        median,
        min,
        max,
        rounds,
        bar: ratio.bar.map(|bar| match bar {
            Bar::Noise => format!("noise bar {:.0} %", (max - 1.0).max(1.0 - min) * 100.0),
            bar => bar.to_string(),
        }),
        stretch: ratio.stretch,
        met: ratio.bar.is_none_or(|bar| bar.is_met_by(decisive)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{ELSEWHERE, WORKLOADS};

    #[test]
    fn gaps_are_judged_by_the_longest_and_other_figures_by_their_median() {
        let met = |name: &str, figures: [f64; 3]| {
            let found = ELSEWHERE.iter().find(|(workload, ..)| *workload == name);
            let (workload, _, ratio) = found.expect("it is in the table");
            judged(workload, ratio, figures.to_vec()).expect("figures").met
        };
        assert!(met("swap", [12.0, 17.0, 50.0]));
        assert!(!met("swap", [12.0, 17.0, 51.0]));
        assert!(met("idle-100", [100.0, 200.0, 300.0]));
        assert!(!met("idle-100", [100.0, 257.0, 300.0]));
    }

    #[test]
    fn memory_is_judged_by_the_round_that_needed_most_and_compared_by_the_median() {
        let memory = WORKLOADS.iter().find(|workload| workload.name == "memory").expect("a workload");
        let [alone, compared] = memory.ratios else { panic!("{:?}", memory.ratios) };
        let met = |ratio: &Ratio, figures: [f64; 3]| {
            judged(memory.name, ratio, figures.to_vec()).expect("figures").met
        };
        assert!(met(alone, [90.0, 91.0, 512.0]));
        assert!(!met(alone, [90.0, 91.0, 513.0]));
        assert!(met(compared, [2.0, 3.0, 4.0]));
    }
}
