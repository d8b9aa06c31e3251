//! Poison: `make poison`. Ends in `poison: R records, L letters, p99 X ms beside Y ms, V violations`.

use std::process::ExitCode;

use clap::Parser;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::play::play;
use tidemill_tests::poison::parked;
use tidemill_tests::poison::scenes::{self, Length};
use tidemill_tests::rig::fleet::build_module;

#[derive(Parser)]
struct Arguments {
    /// Fewer records, a tenth of the letters, and latency is told but not judged
    #[arg(long)]
    short: bool,
    /// Only scenes whose name has this in it
    #[arg(long)]
    only: Option<String>,
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, value_parser = ["embedded", "apache"], default_value = "embedded")]
    broker: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let length = if arguments.short { Length::SHORT } else { Length::FULL };
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_module("poison", "tests/guests/poison", modules.path());
    println!("seed {seed}");
    let cluster = || Cluster::named(&arguments.broker);
    play(
        "poison",
        vec![
            ("failures", Box::new(|| scenes::failures(cluster(), &length, &module, seed))),
            ("parked", Box::new(|| parked::parked(cluster(), &module))),
        ],
        arguments.only.as_deref(),
    )
}
