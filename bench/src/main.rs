//! The benchmark suite: `make bench`. See `table.rs` for what is measured, and `run.rs` for how.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use tidemill_bench::boundary::Boundary;
use tidemill_bench::bounds::KEPT_ROUNDS;
use tidemill_bench::machine::{Machine, Ticks};
use tidemill_bench::native::{self, Job};
use tidemill_bench::report::{RECOVERY, Report};
use tidemill_bench::run::Stage;
use tidemill_bench::table::{GUARDS, WORKLOADS};
use tidemill_bench::terms::Workload;
use tidemill_bench::{bounds, ingestion, markdown, pair, record, restart, saturation, steps, suite};

#[derive(Parser)]
#[command(about = "Measures tidemill beside a native loop and Kafka Streams, interleaved, on Apache Kafka")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs workloads and prints figures and ratios; fails if a ratio misses its bar
    Run(RunArguments),
    /// The same, short, with a ratio and the memory of a map and of a count: for every change
    Guard {
        #[arg(long, default_value_t = 5, value_parser = bounds::rounds())]
        rounds: usize,
    },
    /// Measures two or three contenders at the same time, on the same input, and prints ratios
    Pair(pair::Arguments),
    /// Raises the load of a node step by step until it does not keep up, and says in which way
    Load(saturation::Arguments),
    /// Measures kill -9 to first new output and how fast stores are restored, beside Kafka Streams
    Restart(restart::Arguments),
    /// Measures ways in which a restore can write what it reads, in keys a second, without Kafka
    Ingestion(ingestion::Arguments),
    /// Prints the ratios of a result file and its machines, as the README shows them, its figures by themselves, or the
    /// list of charts
    Table(markdown::Arguments),
    /// Judges figures of another program, and keeps them
    #[command(hide = true)]
    Record(record::Arguments),
    /// The native loop, until it is killed; a contender of `run`, useful by hand to profile it
    Loop(Job),
}

#[derive(Args)]
struct RunArguments {
    /// Only these; `b4` means all that begin with it, but for long ones, and `recovery` what `restart` does
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Fewer than five are no result
    #[arg(long, default_value_t = KEPT_ROUNDS, value_parser = bounds::rounds())]
    rounds: usize,
    /// Only contenders with one of these in their name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// So many times the records of every workload; small ones are for work on the suite itself
    #[arg(long, default_value_t = 1.0, value_parser = bounds::scale)]
    scale: f64,
    /// Where the results go, as JSON; what was run with --scale, --only or few --rounds is none
    #[arg(long, default_value = "bench/results/latest.json")]
    out: PathBuf,
    /// Where the charts of that file go, as SVG
    #[arg(long, default_value = "docs/charts")]
    charts: PathBuf,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::Guard { rounds } => guard(rounds),
        Command::Pair(arguments) => pair::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Load(arguments) => saturation::run(&arguments).map(exit_code),
        Command::Restart(arguments) => restart::run(&arguments).map(exit_code),
        Command::Ingestion(arguments) => ingestion::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Table(arguments) => markdown::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Record(arguments) => record::run(&arguments).map(exit_code),
        Command::Loop(job) => native::run(&job).map(|()| ExitCode::SUCCESS),
    }
}

fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let RunArguments { workload, rounds, only, scale, out, .. } = arguments;
    // B1 is b1.
    let named: Vec<String> = workload.iter().map(|name| name.to_lowercase()).collect();
    let workloads = chosen(&named)?;
    check(only, &workloads)?;
    suite::check_builds(&workloads, only)?;
    let mut failed = Vec::new();
    let mut held = workloads.is_empty() || measure(arguments, &workloads, &mut failed)?;
    let is_everything = named.is_empty() && only.is_empty();
    if is_everything || named.iter().any(|name| name == RECOVERY) {
        let (millions, out, charts) = (restart::MILLIONS.to_vec(), out.clone(), arguments.charts.clone());
        let kills = restart::Arguments { millions, rounds: *rounds, scale: *scale, out, charts };
        match restart::run(&kills) {
            Ok(met) => held &= met,
            Err(error) => note(&mut failed, RECOVERY.to_owned(), &error),
        }
    }
    if !failed.is_empty() {
        println!("did not get through: {}", failed.join(", "));
    }
    Ok(exit_code(held && failed.is_empty()))
}

/// A workload, or several that take turns, in which somebody failed: the others are measured all the same.
fn note(failed: &mut Vec<String>, workloads: String, error: &anyhow::Error) {
    println!("{workloads} did not get through: {error:#}");
    failed.push(workloads);
}

/// True if every ratio of what got through meets its bar.
fn measure(
    arguments: &RunArguments,
    workloads: &[&'static Workload],
    failed: &mut Vec<String>,
) -> Result<bool> {
    let names: Vec<&str> = workloads.iter().map(|workload| workload.name).collect();
    let flags = if arguments.scale == 1.0 {
        String::new()
    } else {
        format!(" BENCH_FLAGS='--scale {}'", arguments.scale)
    };
    let command = format!("make bench WORKLOAD={} ROUNDS={}{flags}", names.join(","), arguments.rounds);
    let has_budget = workloads.iter().any(|workload| workload.has_budget);
    let boundary = if has_budget { Some(Boundary::measure()?) } else { None };
    if let Some(boundary) = &boundary {
        println!("{boundary}");
    }
    let mut report = Report::new(Machine::look()?, command, boundary);
    for workload in workloads.iter().filter(|workload| workload.has_budget) {
        report.steps.insert(workload.name, steps::of(workload)?);
    }
    let why_not_kept = bounds::why_not_kept(arguments.rounds, arguments.scale, arguments.only.is_empty());
    let is_kept = why_not_kept.is_none();
    let stage = Stage::prepare(workloads, arguments.scale)?;
    for group in suite::groups(workloads) {
        let ticks = Ticks::now()?;
        let outcomes = match suite::run(&stage, group, arguments.rounds, &arguments.only) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let names: Vec<&str> = group.iter().map(|workload| workload.name).collect();
                note(failed, names.join(", "), &error);
                continue;
            }
        };
        let stolen = ticks.stolen_since()?;
        for outcome in &outcomes {
            report.stolen.insert(outcome.workload.name, stolen);
            report.add(outcome);
        }
        report.add_curve(&outcomes);
        println!("{:.1} % of the machine's CPU time went to others meanwhile", stolen * 100.0);
        // After each, so that what was measured is kept if a later one fails.
        if is_kept {
            report.write(&arguments.out, &arguments.charts)?;
        }
    }
    let held = report.summarize();
    match why_not_kept {
        Some(why) => println!("not kept, because {why}"),
        None => println!("written to {} and {}", arguments.out.display(), arguments.charts.display()),
    }
    Ok(held)
}

fn guard(rounds: usize) -> Result<ExitCode> {
    let mut report = Report::new(Machine::look()?, "make bench-guard".to_owned(), None);
    let guards: Vec<&'static Workload> = GUARDS.iter().collect();
    let stage = Stage::prepare(&guards, 1.0)?;
    for guard in &guards {
        suite::run(&stage, &[guard], rounds, &[])?.iter().for_each(|outcome| report.add(outcome));
    }
    Ok(exit_code(report.is_met()))
}

/// Of whether every ratio meets its bar.
fn exit_code(held: bool) -> ExitCode {
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What other commands measure, by the beginning of its name.
const BY_OTHERS: [(&str, &str); 4] = [
    ("swap", "make swap"),
    ("idle", IDLE),
    // As the requirements number it.
    ("b11", IDLE),
    ("load", "make bench-load"),
];
const IDLE: &str = "make soak COUNT=0 SMALL=100,500 HANDLER=pass BROKER=apache";

/// Fails if nobody has one of these in their name.
fn check(only: &[String], workloads: &[&Workload]) -> Result<()> {
    let has_one = |part: &str| {
        let mut contenders = workloads.iter().flat_map(|workload| workload.contenders);
        contenders.any(|contender| contender.name.contains(part))
    };
    for part in only {
        ensure!(has_one(part), "nobody who takes part has {part:?} in their name");
    }
    Ok(())
}

/// Of the table, by names in small letters; what recovers is none of them.
fn chosen(names: &[String]) -> Result<Vec<&'static Workload>> {
    for name in names.iter().filter(|name| *name != RECOVERY) {
        let known: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        let meant = WORKLOADS.iter().any(|workload| workload.is_meant_by(name));
        let is_it = |(other, _): &&(&str, &str)| name.split('-').next() == Some(*other);
        if let Some((_, command)) = BY_OTHERS.iter().find(is_it) {
            bail!("{name} is measured by `{command}`");
        }
        ensure!(meant, "no workload {name:?}; there are {}, {RECOVERY}", known.join(", "));
    }
    let is_meant =
        |workload: &&Workload| names.is_empty() || names.iter().any(|name| workload.is_meant_by(name));
    Ok(WORKLOADS.iter().filter(is_meant).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_command_measures_is_refused_with_that_command() {
        let asked = |name: &str| match chosen(&[name.to_owned()]) {
            Ok(found) => Ok(found.len()),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(asked("deploy"), Ok(1));
        assert_eq!(asked(RECOVERY), Ok(0));
        for (name, command) in [("load", "make bench-load"), ("idle-100", IDLE), ("b11", IDLE)] {
            assert!(asked(name).is_err_and(|error| error.contains(command)), "{name}");
        }
        assert!(asked("nothing").is_err_and(|error| error.contains("deploy, ")));
    }

    #[test]
    fn who_takes_no_part_is_refused() {
        let workloads = chosen(&["b1-100".to_owned()]).expect("a workload");
        let only = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
        check(&only(&["loop", "again"]), &workloads).expect("both take part");
        check(&only(&["loop", "nobody"]), &workloads).expect_err("nobody is called so");
    }
}
