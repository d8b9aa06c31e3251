//! W7 with F43: `make outbox`. Ends in `outbox: R rows, D deliveries, V violations`.

use std::process::ExitCode;

use clap::Parser;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::outbox::others;
use tidemill_tests::outbox::scenes::{self, Length};
use tidemill_tests::play::{Scene, play};
use tidemill_tests::rig::fleet::build_module;

#[derive(Parser)]
struct Arguments {
    /// Short phases, one kill at each step, webhooks only
    #[arg(long)]
    short: bool,
    /// Only scenes whose name has this in it
    #[arg(long)]
    only: Option<String>,
    #[arg(long)]
    seed: Option<u64>,
    /// What the nodes run on, and what the other cluster of the scene `mirror` is
    #[arg(long, value_parser = ["embedded", "apache"], default_value = "embedded")]
    broker: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let length = if arguments.short { Length::SHORT } else { Length::FULL };
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_module("courier", "tests/guests/courier", modules.path());
    println!("seed {seed}");
    let cluster = || Cluster::named(&arguments.broker);
    let mut scenes: Vec<Scene<'_, _>> = vec![
        ("planted", Box::new(|| scenes::planted(cluster(), &length, &module))),
        ("sinks", Box::new(|| scenes::sinks(cluster(), &length, &module))),
        ("kills", Box::new(|| scenes::kills(cluster(), &length, &module, seed))),
        ("moves", Box::new(|| scenes::moves(cluster(), &length, &module))),
    ];
    if !arguments.short || arguments.only.is_some() {
        scenes.push(("rabbit", Box::new(|| others::rabbit(cluster(), &length, &module))));
        scenes.push(("mirror", Box::new(|| others::mirror(cluster(), cluster(), &length, &module))));
    }
    play("outbox", scenes, arguments.only.as_deref())
}
