//! Exchanges versions of a deployment under load: `make swap`.
//!
//! The exit code is not zero if anything was violated, if the run proves nothing, or if the output stood
//! still for longer than it may. The short form only tells for how long it did: it runs beside other work, and
//! so few swaps cannot tell what that costs from what they cost.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::programs::record;
use tidemill_tests::rig::swap::play;

/// Longest gap in the output that a swap may cause. Where there are longer ones without any swap, because the
/// broker takes its time, it is what the swaps may add to them.
const GAP_MAX: Duration = Duration::from_millis(50);
/// Of so many swaps or more the gap is judged.
const GAP_JUDGED_FROM: u64 = 50;

#[derive(Parser)]
struct Arguments {
    /// Versions that follow each other
    #[arg(long, default_value_t = 50)]
    deployments: u64,
    #[arg(long, default_value = "apache", value_parser = ["embedded", "apache"])]
    broker: String,
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    match swap(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if everything held.
fn swap(arguments: &Arguments) -> Result<bool> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {} deployments, {}", arguments.deployments, arguments.broker);
    let cluster = match arguments.broker.as_str() {
        "embedded" => Cluster::embedded(),
        _ => Cluster::apache(),
    };
    let directory = tempfile::Builder::new().prefix("tidemill-swap-").tempdir()?;
    let outcome = play(&cluster, arguments.deployments, seed, directory.path())?;
    let verdict = &outcome.verdict;
    let lines = verdict.notes.iter().map(|note| format!("note: {note}"));
    let lines = lines.chain(verdict.violations.iter().map(|violation| format!("violation: {violation}")));
    for line in lines.chain(verdict.invalid.iter().map(|reason| format!("invalid: {reason}"))) {
        println!("  {line}");
    }
    let ms = |gap: Duration| gap.as_secs_f64() * 1e3;
    for (what, gaps) in [("a swap", &outcome.swaps), ("a second without a swap", &outcome.undisturbed)] {
        let [half, most] = [0.5, 0.9].map(|part| ms(gaps.percentile(part)));
        let longest = ms(gaps.longest());
        println!("  longest gap of {what}: p50 {half:.0} ms, p90 {most:.0} ms, of all {longest:.0} ms");
    }
    let longest = outcome.swaps.longest();
    let is_judged = arguments.deployments >= GAP_JUDGED_FROM;
    if !is_judged {
        println!("  the longest gap is told and not judged; from {GAP_JUDGED_FROM} deployments on it is");
    }
    let mut judged = longest;
    if outcome.undisturbed.longest() > GAP_MAX {
        judged = outcome.swaps.percentile(0.9).saturating_sub(outcome.undisturbed.percentile(0.9));
        println!(
            "  without a swap there are gaps beyond {:.0} ms here; the swaps add {:.0} ms to them (p90)",
            ms(GAP_MAX),
            ms(judged)
        );
    }
    let mut good = verdict.is_good() && (!is_judged || judged <= GAP_MAX);
    // Where the output stands still for longer without a swap, what is seen around swaps is not theirs.
    let is_kept = is_judged && arguments.broker == "apache" && outcome.undisturbed.longest() <= GAP_MAX;
    if is_kept && verdict.is_good() {
        let measured_by = format!("make swap N={}", arguments.deployments);
        good &= record("swap", &measured_by, &outcome.swaps.ms(), &[]);
    }
    if !good {
        println!("  everything is in {}", directory.keep().display());
    }
    println!(
        "swap: {} deployments, longest gap {:.0} ms, {} violations",
        arguments.deployments,
        ms(longest),
        verdict.violations.len() + verdict.invalid.len()
    );
    Ok(good)
}
