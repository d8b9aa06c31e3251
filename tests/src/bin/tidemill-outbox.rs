//! W7 with F43: `make outbox`. Ends in `outbox: R rows, D deliveries, V violations`.

use std::process::ExitCode;

use clap::Parser;
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let length = if arguments.short { Length::SHORT } else { Length::FULL };
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_module("courier", "tests/guests/courier", modules.path());
    println!("seed {seed}");
    let mut scenes: Vec<Scene<'_, _>> = vec![
        ("planted", Box::new(|| scenes::planted(&length, &module))),
        ("sinks", Box::new(|| scenes::sinks(&length, &module))),
        ("kills", Box::new(|| scenes::kills(&length, &module, seed))),
        ("moves", Box::new(|| scenes::moves(&length, &module))),
    ];
    if !arguments.short || arguments.only.is_some() {
        scenes.push(("rabbit", Box::new(|| others::rabbit(&length, &module))));
        scenes.push(("mirror", Box::new(|| others::mirror(&length, &module))));
    }
    play("outbox", scenes, arguments.only.as_deref())
}
