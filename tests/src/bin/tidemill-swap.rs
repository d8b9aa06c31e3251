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
use tidemill_tests::rig::swap::play;

/// Longest gap in the output that a swap may cause.
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
    let (half, most) = (outcome.percentile(0.5), outcome.percentile(0.9));
    println!(
        "  gap of a swap: p50 {:.0} ms, p90 {:.0} ms; without a swap, in five seconds: {:.0} ms",
        ms(half),
        ms(most),
        ms(outcome.undisturbed)
    );
    let longest = outcome.longest();
    let is_judged = arguments.deployments >= GAP_JUDGED_FROM;
    if !is_judged {
        println!("  the longest gap is told and not judged; from {GAP_JUDGED_FROM} deployments on it is");
    }
    let good = verdict.is_good() && (!is_judged || longest <= GAP_MAX);
    if !good {
        println!("  everything is in {}", directory.keep().display());
    }
    println!(
        "swap: {} deployments, longest gap {:.0} ms, {} violations",
        outcome.swaps.len(),
        ms(longest),
        verdict.violations.len() + verdict.invalid.len()
    );
    Ok(good)
}
