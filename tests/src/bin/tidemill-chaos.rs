//! Runs fault rounds: `make faults` and `make chaos`.
//!
//! The exit code is not zero if anything was violated, or if a run proves nothing. A round that is
//! not good leaves its directory behind and says where.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use tidemill_tests::rig::case::{Broker, Case};
use tidemill_tests::rig::fleet::build_modules;
use tidemill_tests::rig::round::{Summary, play};

#[derive(Parser)]
struct Arguments {
    /// Keep the directory of a good round too
    #[arg(long, global = true)]
    keep: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// kill -9 at every step of a commit and at random, on Apache Kafka
    Faults {
        /// Ten of each step, 60 at random, 300,000 records
        #[arg(long)]
        full: bool,
        /// So many of each step, and 300,000 records
        #[arg(long, conflicts_with = "full")]
        each: Option<usize>,
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Random configurations, random kills
    Chaos {
        #[arg(long, conflicts_with = "rounds", required_unless_present = "rounds")]
        minutes: Option<u64>,
        #[arg(long)]
        rounds: Option<u64>,
        /// Of the first round; every round prints its own
        #[arg(long)]
        seed: Option<u64>,
        /// Run on this broker only, not on both in turn
        #[arg(long, value_parser = ["embedded", "apache"])]
        broker: Option<String>,
        /// Run on as many brokers of Apache Kafka, every topic on all of them, and kill those too
        #[arg(long, value_parser = ["1", "3"], conflicts_with = "broker")]
        brokers: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command.run(arguments.keep) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Command {
    /// True if everything held.
    fn run(self, keep: bool) -> Result<bool> {
        let modules = tempfile::tempdir()?;
        build_modules(modules.path());
        match self {
            Command::Faults { full, each, seed } => {
                let seed = seed.unwrap_or_else(|| fastrand::u64(..));
                let case = match each {
                    Some(each) => Case::gate(seed, each, 10, 300_000),
                    None if full => Case::gate(seed, 10, 60, 300_000),
                    None => Case::gate(seed, 1, 10, 50_000),
                };
                println!("seed {seed}");
                let summary = round(&case, modules.path(), keep)?;
                println!("faults: {summary}");
                Ok(summary.is_good())
            }
            Command::Chaos { minutes, rounds, seed, broker, brokers } => {
                let end = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
                let first = seed.unwrap_or_else(|| fastrand::u64(..));
                let mut total = Summary::default();
                let mut played = 0;
                while rounds.is_none_or(|rounds| played < rounds)
                    && end.is_none_or(|end| Instant::now() < end)
                {
                    let seed = first.wrapping_add(played);
                    let broker = match broker.as_deref().or(brokers.as_deref()) {
                        Some("embedded") => Broker::Embedded,
                        Some("3") => Broker::ThreeOfApache,
                        Some(_) => Broker::Apache,
                        // By the seed, so that it alone re-runs the round.
                        None if seed.is_multiple_of(2) => Broker::Embedded,
                        None => Broker::Apache,
                    };
                    total.add(round(&Case::random(seed, broker), modules.path(), keep)?);
                    played += 1;
                }
                println!("chaos: {played} rounds, {total}, longest stall {:.1?}", total.longest);
                Ok(total.is_good())
            }
        }
    }
}

/// Plays a round, tells what was found, and keeps its directory if that is not good.
fn round(case: &Case, modules: &Path, keep: bool) -> Result<Summary> {
    let started = Instant::now();
    println!(
        "round {}: {:?}, {} partitions, {} nodes of {} workers, commit {} ms, overlay {} KiB, {} faults",
        case.seed,
        case.broker,
        case.partitions,
        case.nodes,
        case.workers,
        case.commit_ms,
        case.overlay_kib,
        case.plan.len()
    );
    let directory = tempfile::Builder::new().prefix("tidemill-round-").tempdir()?;
    let played = std::panic::catch_unwind(|| play(case, directory.path(), modules));
    let summary = match played {
        Ok(summary) => summary?,
        // The panic has told what was waited for; the round proves nothing.
        Err(_) => Summary { invalid: vec!["the round ended early".to_owned()], ..Summary::default() },
    };
    for note in &summary.notes {
        println!("  {note}");
    }
    for line in
        summary.violations.iter().map(|line| format!("violation {line}")).chain(summary.invalid.clone())
    {
        println!("  {line}");
    }
    println!("  {summary}, longest stall {:.1?}, took {:.0?}", summary.longest, started.elapsed());
    if keep || !summary.is_good() {
        let kept: PathBuf = directory.keep();
        println!("  re-run with --seed {}; everything is in {}", case.seed, kept.display());
    }
    Ok(summary)
}
