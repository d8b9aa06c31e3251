//! W7 with F43: `make outbox`. Ends in `outbox: R rows, D deliveries, V violations`.

use std::process::ExitCode;

use clap::Parser;
use tidemill_tests::outbox::Summary;
use tidemill_tests::outbox::receiver::Kind;
use tidemill_tests::outbox::scenes::{self, Act, Length, Play};
use tidemill_tests::play::{Scene, play};
use tidemill_tests::rig::fleet::build_module;

#[derive(Parser)]
struct Arguments {
    /// Short phases and one kill at each step; of what is no webhook, RabbitMQ in trouble
    #[arg(long)]
    short: bool,
    /// Only scenes whose name has this in it
    #[arg(long)]
    only: Option<String>,
    #[arg(long)]
    seed: Option<u64>,
    /// What the nodes run on, and what the other cluster of a mirror is
    #[arg(long, value_parser = ["embedded", "apache"], default_value = "embedded")]
    broker: String,
    /// Fail instead of leaving out a scene whose receiver is not installed
    #[arg(long)]
    complete: bool,
}

/// Name, receiver, what is played with it, and whether the short form has it.
const PROGRAMME: [(&str, Kind, Act, bool); 11] = [
    ("webhook-planted", Kind::Webhook, scenes::planted, true),
    ("webhook-troubles", Kind::Webhook, scenes::troubles, true),
    ("webhook-kills", Kind::Webhook, scenes::kills, true),
    ("webhook-moves", Kind::Webhook, scenes::moves, true),
    ("rabbit-troubles", Kind::Rabbit, scenes::troubles, true),
    ("rabbit-kills", Kind::Rabbit, scenes::kills, false),
    ("rabbit-moves", Kind::Rabbit, scenes::moves, false),
    ("mirror-planted", Kind::Mirror, scenes::planted, false),
    ("mirror-troubles", Kind::Mirror, scenes::troubles, false),
    ("mirror-kills", Kind::Mirror, scenes::kills, false),
    ("mirror-moves", Kind::Mirror, scenes::moves, false),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let length = if arguments.short { Length::SHORT } else { Length::FULL };
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_module("courier", "tests/guests/courier", modules.path());
    println!("seed {seed}");
    let (broker, only) = (arguments.broker.as_str(), arguments.only.as_deref());
    // Who asks for a scene by its name wants it.
    let may_leave_out = !arguments.complete && only.is_none();
    let perform = |scene: &str, kind: Kind, act: Act| match kind.start(broker) {
        Ok(mut receiver) => act(&Play { scene, broker, length, module: &module, seed }, receiver.as_mut()),
        Err(missing) => Summary::left_out(scene, &missing, may_leave_out),
    };
    let perform = &perform;
    let mut scenes: Vec<Scene<'_, Summary>> = Vec::new();
    for (scene, kind, act, is_short) in PROGRAMME {
        if is_short || !arguments.short || only.is_some() {
            scenes.push((scene, Box::new(move || perform(scene, kind, act))));
        }
    }
    play("outbox", scenes, only)
}
