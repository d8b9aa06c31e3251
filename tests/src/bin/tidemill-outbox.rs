//! W7 with F43: `make outbox`. Ends in `outbox: R rows, D deliveries, V violations`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tidemill_tests::outbox::scenes::{self, Length};
use tidemill_tests::outbox::stage::build_module;
use tidemill_tests::outbox::{Summary, others};

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

type Scene<'a> = Box<dyn Fn() -> Summary + 'a>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let length = if arguments.short { Length::SHORT } else { Length::FULL };
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_module(modules.path());
    println!("seed {seed}");
    let mut scenes: Vec<(&str, Scene<'_>)> = vec![
        ("planted", Box::new(|| scenes::planted(&length, &module))),
        ("sinks", Box::new(|| scenes::sinks(&length, &module))),
        ("kills", Box::new(|| scenes::kills(&length, &module, seed))),
        ("moves", Box::new(|| scenes::moves(&length, &module))),
    ];
    if !arguments.short || arguments.only.is_some() {
        scenes.push(("rabbit", Box::new(|| others::rabbit(&length, &module))));
        scenes.push(("mirror", Box::new(|| others::mirror(&length, &module))));
    }
    let mut total = Summary::default();
    for (name, scene) in scenes {
        if arguments.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let started = Instant::now();
        // A panic has told what was waited for; the scene proves nothing then.
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&*scene)).unwrap_or_else(|_| {
            Summary { invalid: vec![format!("INVALID {name}: it ended early")], ..Summary::default() }
        });
        for line in found.notes.iter().chain(&found.invalid) {
            println!("  {line}");
        }
        for line in &found.violations {
            println!("  violation {line}");
        }
        println!("  {name}: {found}, took {:.0?}", started.elapsed());
        total.add(found);
    }
    println!("outbox: {total}");
    if total.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
