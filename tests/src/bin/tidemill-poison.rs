//! Poison: `make poison`. Ends in `poison: R records, L letters, p99 X ms beside Y ms, V violations`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tidemill_tests::poison::scenes::{self, Length};
use tidemill_tests::poison::{Summary, parked};
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
}

type Scene<'a> = Box<dyn Fn() -> Summary + 'a>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let length = if arguments.short { Length::SHORT } else { Length::FULL };
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_module("poison", "tests/guests/poison", modules.path());
    println!("seed {seed}");
    let scenes: [(&str, Scene<'_>); 2] = [
        ("failures", Box::new(|| scenes::failures(&length, &module, seed))),
        ("parked", Box::new(|| parked::parked(&module))),
    ];
    let mut total = Summary::default();
    for (name, scene) in scenes {
        if arguments.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let started = Instant::now();
        // A panic has told what was waited for.
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&*scene)).unwrap_or_else(|_| {
            Summary { violations: vec![format!("{name}: it ended early")], ..Summary::default() }
        });
        for line in &found.notes {
            println!("  {line}");
        }
        for line in &found.violations {
            println!("  violation {line}");
        }
        println!("  {name}: {found}, took {:.0?}", started.elapsed());
        total.add(found);
    }
    println!("poison: {total}");
    if total.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
