//! A load that grows step by step until the node does not keep up with it: `make bench-load`.
//!
//! Each step is a run of its own, measured as the workloads `latency-...` are. The first that the node does not keep up
//! with is the last, and in which way it gives way is part of the result: records come later and later, or do not come
//! out, or a process ends. Node, broker, producer and reader share the machine, so how many cores the first two keep
//! busy is told of every step.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::latency::Pace;
use crate::report::{ContenderReport, Machine, RatioReport, Report};
use crate::rounds::Figures;
use crate::run::Stage;
use crate::table::LOADED;
use crate::terms::{Contender, Guarantee, Kind, Load, Workload};

/// Records a second.
const STEPS: [u64; 9] = [1_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 300_000, 500_000];
/// Of every step, after the warm-up.
const SECONDS: u64 = 10;
/// Who is behind a load falls further behind as long as it lasts, so that soon one record in a hundred waits for this.
const LATE_MS: f64 = 1_000.0;

#[derive(Args)]
pub struct Arguments {
    /// Records a second, one step after the other
    #[arg(long, value_delimiter = ',', default_values_t = STEPS)]
    steps: Vec<u64>,
    #[arg(long, value_enum, default_value_t = Guarantee::ExactlyOnce)]
    guarantee: Guarantee,
    /// Where the result goes, beside those of `make bench`
    #[arg(long, default_value = "bench/results/latest.json")]
    out: PathBuf,
}

/// Raises the load until something gives way.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::new(Machine::look()?, "make bench-load".to_owned(), None);
    // For no workload of the table, so that nothing is built which takes no part.
    let stage = Stage::prepare(&[], 1.0)?;
    let contender = Contender { name: "tidemill", kind: Kind::Tidemill, guarantee: arguments.guarantee };
    let (mut runs, mut most, mut end) = (Vec::new(), None, None);
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
        most = Some(per_second);
    }
    println!("{}", end.as_deref().unwrap_or("it kept up with every step"));
    report.ratios.extend(most.map(kept_up_with));
    let (workload, name) = (LOADED.name, contender.name);
    report.contenders.push(ContenderReport { workload, name, jvm: None, tried_only: false, runs, end });
    report.write(&arguments.out)?;
    println!("written to {}", arguments.out.display());
    Ok(())
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

fn print_step(per_second: u64, figures: &Figures) {
    let cores = |cpu_seconds_per_million: f64| cpu_seconds_per_million * per_second as f64 / 1e6;
    println!(
        "{per_second:>8}/s  {}  {:.2} cores, broker {:.2}, {:.0} MiB",
        figures.latency_ms.map(|latency| latency.to_string()).unwrap_or_default(),
        cores(figures.cpu_seconds_per_million),
        cores(figures.broker_cpu_seconds_per_million),
        figures.peak_rss_mib,
    );
}

/// Of the last step before the one that was too much.
fn kept_up_with(per_second: u64) -> RatioReport {
    let most = per_second as f64;
    RatioReport {
        workload: LOADED.name,
        name: "tidemill, the most that it keeps up with",
        metric: "records/s".to_owned(),
        median: most,
        min: most,
        max: most,
        rounds: 1,
        bar: None,
        stretch: None,
        met: true,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::rounds::Latency;

    fn with_p99(p99: f64) -> Figures {
        Figures {
            cpu_seconds_per_million: 1.0,
            records_per_second: 1.0,
            peak_rss_mib: 1.0,
            broker_cpu_seconds_per_million: 1.0,
            latency_ms: Some(Latency { p50: 20.0, p99, p99_9: p99, max: p99 }),
            deployed_ms: None,
            threads_ns: None,
        }
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
