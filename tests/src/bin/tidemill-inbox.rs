//! Runs W6: `make inbox`. Ends in `inbox: I ids, E effects, V violations`.
//!
//! A round on each broker, side by side and with half of the ids each, or one with all of them on the broker
//! that is asked for; then a small one with a planted bug, which the checker must find, and an upstream that repeats
//! when it is killed, with an inbox behind it. The exit code is not zero if anything was violated, a run proves
//! nothing, or the bug was not found. A round that is not good leaves its directory behind and says where.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::dedupe::round::{Case, play};
use tidemill_tests::dedupe::upstream::{self, Found};
use tidemill_tests::rig::fleet::build_module;
use tidemill_tests::rig::round::Summary;

#[derive(Parser)]
struct Arguments {
    /// Ten million records over five million ids, and more faults
    #[arg(long)]
    full: bool,
    #[arg(long)]
    seed: Option<u64>,
    /// Run all of it on this broker
    #[arg(long, value_parser = ["embedded", "apache"])]
    broker: Option<String>,
    /// Keep the directories of good rounds too
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if everything held and the bug was found.
fn run(arguments: &Arguments) -> Result<bool> {
    let modules = tempfile::tempdir()?;
    let module = build_module("chain", "tests/guests/chain", modules.path());
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let is_wanted = |broker: &&str| arguments.broker.as_deref().is_none_or(|only| only == *broker);
    let brokers: Vec<_> = ["embedded", "apache"].into_iter().filter(is_wanted).collect();
    let share = |ids: u32| ids / brokers.len() as u32;
    // The feed outlasts the faults.
    let case = |&broker: &&'static str| match arguments.full {
        false => Case { seed, broker, ids: share(100_000), rate: 4_000, faults: 4, bug: None },
        true => Case { seed, broker, ids: share(5_000_000), rate: 25_000, faults: 24, bug: None },
    };
    let cases: Vec<Case> = brokers.iter().map(case).collect();
    let rounds: Vec<_> = std::thread::scope(|scope| {
        let (module, keep) = (module.as_path(), arguments.keep);
        let play = |case| scope.spawn(move || round(case, module, keep));
        let threads: Vec<_> = cases.iter().map(play).collect();
        threads.into_iter().map(|thread| thread.join().expect("a round that does not panic")).collect()
    });
    let ids: u32 = cases.iter().map(|case| case.ids).sum();
    let (mut effects, mut all) = (0, Summary::default());
    for played in rounds {
        let (summary, more) = played?;
        effects += more;
        all.add(summary);
    }
    let found = finds_a_planted_bug(seed, &module)?;
    let filter = build_module("filter", "plugins/filter", modules.path());
    let broker = arguments.broker.as_deref().unwrap_or("embedded");
    let behind = behind_an_upstream(broker, (&filter, &module), seed, arguments.keep)?;
    if behind.repeats == 0 {
        all.invalid.push("the upstream has repeated nothing".into());
    }
    all.violations.extend(behind.violations);
    println!("inbox: {ids} ids, {effects} effects, {} violations", all.violations.len());
    Ok(all.is_good() && found)
}

/// Plays a round, tells what was found, and keeps its directory if that is not good.
fn round(case: &Case, module: &Path, keep: bool) -> Result<(Summary, u64)> {
    let (started, broker) = (Instant::now(), case.broker);
    println!("{broker}: {} records over {} ids, {} faults", 2 * case.ids, case.ids, case.faults);
    let cluster = Cluster::named(broker);
    let directory = tempfile::Builder::new().prefix("tidemill-inbox-").tempdir()?;
    let (summary, effects) = play(case, &cluster, directory.path(), module)?;
    for note in &summary.notes {
        println!("{broker}: {note}");
    }
    for line in
        summary.violations.iter().map(|line| format!("violation {line}")).chain(summary.invalid.clone())
    {
        println!("{broker}: {line:.300}");
    }
    println!("{broker}: {summary}, {effects} effects, took {:.0?}", started.elapsed());
    if keep || !summary.is_good() && case.bug.is_none() {
        println!(
            "{broker}: re-run with --seed {}; everything is in {}",
            case.seed,
            directory.keep().display()
        );
    }
    Ok((summary, effects))
}

/// Ids on emissions and an inbox make the effects of an upstream that repeats exactly once.
fn behind_an_upstream(broker: &str, modules: (&Path, &Path), seed: u64, keep: bool) -> Result<Found> {
    let started = Instant::now();
    let cluster = Cluster::named(broker);
    let directory = tempfile::Builder::new().prefix("tidemill-inbox-").tempdir()?;
    let found = upstream::play(&cluster, directory.path(), modules, seed)?;
    for line in &found.violations {
        println!("upstream: violation {line:.300}");
    }
    println!("upstream: {found}, took {:.0?}", started.elapsed());
    if keep || !found.violations.is_empty() {
        println!("upstream: re-run with --seed {seed}; everything is in {}", directory.keep().display());
    }
    Ok(found)
}

/// A checker that finds nothing must be able to: ids that are remembered apart from their commit.
fn finds_a_planted_bug(seed: u64, module: &Path) -> Result<bool> {
    let bug = "inbox-outside";
    let case = Case { seed, broker: "embedded", ids: 10_000, rate: 2_000, faults: 3, bug: Some(bug) };
    let (summary, _) = round(&case, module, false)?;
    let found = summary.violations.iter().any(|violation| violation.starts_with("W6: output"));
    println!("planted {bug}: {}", if found { "found" } else { "NOT FOUND" });
    Ok(found)
}
