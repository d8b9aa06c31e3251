//! A load that grows step by step until the node does not keep up with it: `make bench-load`.
//!
//! Each step is a run of its own, measured as the workloads `latency-...` are. The first that the node does not keep up
//! with is the last, and in which way it gives way is part of the result: records come later and later, or do not come
//! out, or a process ends. Node, broker, producer and reader share the machine, so how many cores the first two keep
//! busy is told of every step, and whether the node stays within what docs/operations.md gives it for that load.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::latency::Pace;
use crate::machine::{Machine, Ticks};
use crate::report::{ContenderReport, RatioReport, Report, print_ratio};
use crate::rounds::Figures;
use crate::run::Stage;
use crate::table::LOADED;
use crate::terms::{Contender, Guarantee, Kind, Load, Workload};

/// Records a second.
const STEPS: [u64; 9] = [1_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 300_000, 500_000];
/// One thread writes them all.
const PER_SECOND_MAX: u64 = 1_000_000;
/// Of every step, after the warm-up.
const SECONDS: u64 = 10;
/// Who is behind a load falls further behind as long as it lasts, so that soon one record in a hundred waits for this.
pub(crate) const LATE_MS: f64 = 1_000.0;

/// What a node is given for a load, as Kubernetes writes it.
struct Size {
    per_second_max: u64,
    memory_mib: f64,
    millicores: f64,
    memory: &'static str,
    name: &'static str,
}

/// docs/operations.md says the same, by rising load.
const SIZES: [Size; 4] = [
    size(1_000, (256.0, "256Mi"), 250.0, "tidemill, up to 1,000 records/s"),
    size(10_000, (512.0, "512Mi"), 500.0, "tidemill, up to 10,000 records/s"),
    size(100_000, (1_024.0, "1Gi"), 1_000.0, "tidemill, up to 100,000 records/s"),
    size(u64::MAX, (2_048.0, "2Gi"), 2_000.0, "tidemill, above 100,000 records/s"),
];

const fn size(
    per_second_max: u64,
    (memory_mib, memory): (f64, &'static str),
    millicores: f64,
    name: &'static str,
) -> Size {
    Size { per_second_max, memory_mib, millicores, memory, name }
}

impl Size {
    fn holds(&self, per_second: u64) -> bool {
        per_second <= self.per_second_max
    }

    /// Memory and CPU, divided by what there is of it.
    fn shares(&self, per_second: u64, figures: &Figures) -> [f64; 2] {
        let cores = cores(per_second, figures.cpu_seconds_per_million);
        [figures.peak_rss_mib / self.memory_mib, cores * 1e3 / self.millicores]
    }

    /// How it stays within both, at this load.
    fn judge(&self, per_second: u64, figures: &Figures) -> [RatioReport; 2] {
        let [memory, cpu] = self.shares(per_second, figures);
        let Size { millicores, memory: given, .. } = self;
        let report = |share: f64, metric: String| RatioReport {
            name: self.name,
            metric,
            bar: Some("at most 1".to_owned()),
            met: share <= 1.0,
            ..once(share)
        };
        [report(memory, format!("peak RSS / {given}")), report(cpu, format!("CPU / {millicores}m"))]
    }
}

#[derive(Args)]
pub struct Arguments {
    /// Records a second, one step after the other; others than by default are no result
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = STEPS,
        value_parser = clap::value_parser!(u64).range(1..=PER_SECOND_MAX),
    )]
    steps: Vec<u64>,
    #[arg(long, value_enum, default_value_t = Guarantee::ExactlyOnce)]
    guarantee: Guarantee,
    /// Where the result goes, beside those of `make bench`
    #[arg(long, default_value = "bench/results/latest.json")]
    out: PathBuf,
    /// Where the charts of that file go, as SVG
    #[arg(long, default_value = "docs/charts")]
    charts: PathBuf,
}

/// Raises the load until something gives way. True if the node is within its sizes at all that it keeps up with.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let mut report = Report::new(Machine::look()?, "make bench-load".to_owned(), None);
    // For no workload of the table, so that nothing is built which takes no part.
    let stage = Stage::prepare(&[], 1.0)?;
    let contender = Contender { name: "tidemill", kind: Kind::Tidemill, guarantee: arguments.guarantee };
    let (mut runs, mut kept, mut end) = (Vec::new(), Vec::new(), None);
    let ticks = Ticks::now()?;
    for &per_second in &arguments.steps {
        let load = Load::Open(Pace { per_second, seconds: SECONDS });
        let name = format!("{}-{per_second}", LOADED.name);
        let step = stage.run(&Workload { load, ..LOADED }, &contender, None, &name);
        if let Ok(figures) = &step {
            print_step(per_second, figures);
            runs.push(*figures);
        }
        end = gave_way(&step).map(|how| format!("at {per_second} records/s {how}"));
        if end.is_some() {
            break;
        }
        kept.extend(step.ok().map(|figures| (per_second, figures)));
    }
    println!("{}", end.as_deref().unwrap_or("it kept up with every step"));
    report.ratios.extend(kept.last().map(|&(per_second, _)| kept_up_with(per_second)));
    report.ratios.extend(sized(&kept));
    report.ratios.iter().for_each(print_ratio);
    let (workload, name) = (LOADED.name, contender.name);
    report.stolen.insert(workload, ticks.stolen_since()?);
    report.contenders.push(ContenderReport { workload, name, jvm: None, tried_only: false, runs, end });
    match why_not_kept(arguments, &kept) {
        Some(why) => println!("not kept, because {why}"),
        None => {
            report.write(&arguments.out, &arguments.charts)?;
            println!("written to {} and {}", arguments.out.display(), arguments.charts.display());
        }
    }
    Ok(report.is_met())
}

/// `None` if it takes the place of the result, which is that of the usual steps.
fn why_not_kept(arguments: &Arguments, kept: &[(u64, Figures)]) -> Option<&'static str> {
    if arguments.steps != STEPS || arguments.guarantee != Guarantee::ExactlyOnce {
        Some("a result is of the steps by default, exactly once")
    } else if kept.is_empty() {
        Some("it kept up with no step")
    } else {
        None
    }
}

/// In which way a step was too much; `None` if it was not.
fn gave_way(step: &Result<Figures>) -> Option<String> {
    match step {
        Ok(figures) => {
            let late = figures.latency_ms.filter(|latency| latency.p99 > LATE_MS)?;
            Some(format!("records come late: {late}"))
        }
        Err(error) => Some(format!("it came to an end: {error:#}")),
    }
}

fn cores(per_second: u64, cpu_seconds_per_million: f64) -> f64 {
    cpu_seconds_per_million * per_second as f64 / 1e6
}

fn print_step(per_second: u64, figures: &Figures) {
    let size = SIZES.iter().find(|size| size.holds(per_second));
    let size = size.map(|size| {
        let [memory, cpu] = size.shares(per_second, figures).map(|share| share * 100.0);
        let Size { memory: given, millicores, .. } = size;
        format!(", {memory:.0} % of {given} and {cpu:.0} % of {millicores}m")
    });
    println!(
        "{per_second:>8}/s  {}  {:.2} cores, broker {:.2}, {:.0} MiB{}",
        figures.latency_ms.map(|latency| latency.to_string()).unwrap_or_default(),
        cores(per_second, figures.cpu_seconds_per_million),
        cores(per_second, figures.broker_cpu_seconds_per_million),
        figures.peak_rss_mib,
        size.unwrap_or_default(),
    );
}

/// Of each size, at the highest of its loads among those that the node kept up with, which rise.
fn sized(kept: &[(u64, Figures)]) -> Vec<RatioReport> {
    let mut judged = Vec::new();
    let mut above = 0;
    for size in &SIZES {
        let of_it = |(per_second, _): &&(u64, Figures)| *per_second > above && size.holds(*per_second);
        if let Some((per_second, figures)) = kept.iter().rfind(of_it) {
            judged.extend(size.judge(*per_second, figures));
        }
        above = size.per_second_max;
    }
    judged
}

/// Of the last step before the one that was too much.
fn kept_up_with(per_second: u64) -> RatioReport {
    RatioReport {
        name: "tidemill, the most that it keeps up with",
        metric: "records/s".to_owned(),
        ..once(per_second as f64)
    }
}

/// Measured once, of which nothing is asked.
fn once(figure: f64) -> RatioReport {
    RatioReport {
        workload: LOADED.name,
        name: "",
        metric: String::new(),
        median: figure,
        min: figure,
        max: figure,
        rounds: 1,
        bar: None,
        stretch: None,
        met: true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use anyhow::anyhow;

    use super::*;
    use crate::report::full_name;
    use crate::rounds::{Late, Latency};

    fn with_p99(p99: f64) -> Figures {
        Figures {
            cpu_seconds_per_million: 1.0,
            records_per_second: 1.0,
            peak_rss_mib: 1.0,
            broker_cpu_seconds_per_million: 1.0,
            latency_ms: Some(Latency {
                p50: 20.0,
                p95: 20.0,
                p99,
                p99_9: p99,
                max: p99,
                mean: 20.0,
                written_late: Late { p99: 0.1, max: 0.2 },
            }),
            segments: None,
            deployed_ms: None,
            threads_ns: None,
        }
    }

    #[test]
    fn every_size_is_judged_by_the_highest_of_its_loads() {
        let figures = |cpu_seconds_per_million, peak_rss_mib| Figures {
            cpu_seconds_per_million,
            peak_rss_mib,
            ..with_p99(20.0)
        };
        // 0.2, 0.2 and 0.6 cores.
        let kept =
            [(1_000, figures(200.0, 128.0)), (5_000, figures(40.0, 300.0)), (10_000, figures(60.0, 256.0))];
        let judged = sized(&kept).into_iter();
        let judged: Vec<_> = judged.map(|ratio| (ratio.metric, ratio.median, ratio.met)).collect();
        let wanted = [
            ("peak RSS / 256Mi", 0.5, true),
            ("CPU / 250m", 0.8, true),
            ("peak RSS / 512Mi", 0.5, true),
            ("CPU / 500m", 1.2, false),
        ];
        assert_eq!(judged, wanted.map(|(metric, share, met)| (metric.to_owned(), share, met)));
        let names = sized(&kept).into_iter().map(|of| full_name(of.workload, of.name, &of.metric));
        let names: BTreeSet<String> = names.collect();
        assert_eq!(names.len(), wanted.len(), "{names:?}");
    }

    #[test]
    fn other_steps_another_guarantee_or_nothing_kept_up_with_do_not_replace_a_result() {
        let guarantee = Guarantee::ExactlyOnce;
        let (steps, nowhere) = (STEPS.to_vec(), PathBuf::new());
        let usual =
            || Arguments { steps: steps.clone(), guarantee, out: nowhere.clone(), charts: nowhere.clone() };
        let kept = [(1_000, with_p99(20.0))];
        assert_eq!(why_not_kept(&usual(), &kept), None);
        assert!(why_not_kept(&usual(), &[]).is_some());
        assert!(why_not_kept(&Arguments { steps: vec![1_000], ..usual() }, &kept).is_some());
        let other = Arguments { guarantee: Guarantee::AtLeastOnce, ..usual() };
        assert!(why_not_kept(&other, &kept).is_some());
    }

    #[test]
    fn a_step_is_too_much_if_records_come_late_or_do_not_come() {
        assert_eq!(gave_way(&Ok(with_p99(900.0))), None);
        let late = gave_way(&Ok(with_p99(1_100.0))).expect("late");
        assert!(late.contains("p99 1100.0"), "{late}");
        let ended = gave_way(&Err(anyhow!("only 5 of 9 records came out"))).expect("ended");
        assert!(ended.contains("only 5 of 9"), "{ended}");
    }
}
