//! Reads its own writes ten thousand times: `make reads`.
//!
//! The exit code is not zero if a single write was not seen.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::reads;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..))]
    rounds: u64,
    /// Run on this broker
    #[arg(long, default_value = "apache", value_parser = ["embedded", "apache"])]
    broker: String,
}

fn main() -> ExitCode {
    let Arguments { rounds, broker } = Arguments::parse();
    let modules = tempfile::tempdir().expect("a directory");
    let module = reads::build_count(modules.path());
    let cluster = if broker == "embedded" { Cluster::embedded() } else { Cluster::apache() };
    let started = Instant::now();
    let seen = reads::run(&cluster, &module, rounds);
    for missed in &seen.missed {
        println!("missed: {missed}");
    }
    println!("longest {:.1?} from a write to its read, {:.0?} in all", seen.longest, started.elapsed());
    println!("reads: {} of {} seen", seen.seen, seen.rounds);
    match seen.seen == seen.rounds {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
