//! What an inbox costs: CPU microseconds a record above the same handler without one, when every id is
//! new, on Apache Kafka. Beside it the same for a handler that keeps a store.
//!
//! The topic is filled beforehand, with keys that count up; in each round every contender handles all of
//! it once, as a fresh node. What counts is the CPU time of the node, from the deployment to the last
//! commit. What RocksDB still has to do then (flush, compaction) is small beside it and not in it.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use tidemill_bench::load::{self, GroupProgress};
use tidemill_bench::node::{Node, program};
use tidemill_bench::process;
use tidemill_bench::rounds::{Run, Spread, order};
use tidemill_kafka_harness::{ApacheKafka, Options};

const INPUT: &str = "bench-input";
const PARTITIONS: i32 = 4;
/// A new id may cost so many microseconds.
const NEW_ID_MAX_US: f64 = 3.0;
const RUN_MAX: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(about = "Measures what a new id costs")]
struct Arguments {
    /// Records that every run handles, in millions
    #[arg(long, default_value_t = 1)]
    millions: u64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only contenders with this in their name
    #[arg(long, default_value = "")]
    only: String,
}

struct Contender {
    name: &'static str,
    module: &'static str,
    more: &'static str,
}

const CONTENDERS: [Contender; 3] = [
    Contender { name: "pass", module: "bench/pass", more: "" },
    Contender { name: "pass, inbox", module: "bench/pass", more: "inbox: { id: key, ttl: 24h }\n" },
    Contender { name: "count, a store", module: "plugins/count", more: "" },
];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let records = arguments.millions * 1_000_000;
    let modules = tempfile::tempdir()?;
    for module in ["bench/pass", "plugins/count"] {
        let out = modules.path().join(module.replace('/', "-"));
        process::run(Command::new(program("tidemill")?).args(["build", module, "--out"]).arg(out))?;
    }
    println!("starting Apache Kafka {}", tidemill_kafka_harness::VERSION);
    // Topics are deleted after each run, and their files with them at once.
    let quick = ("log.segment.delete.delay.ms".to_owned(), "1000".to_owned());
    let kafka = ApacheKafka::start_with(&Options { properties: vec![quick], ..Options::default() })?;
    println!("writing {records} records of {} + {} bytes", load::KEY_BYTES, load::VALUE_BYTES);
    load::create_topic(&kafka.bootstrap, INPUT, PARTITIONS)?;
    load::fill(&kafka.bootstrap, INPUT, records)?;

    let contenders: Vec<&Contender> =
        CONTENDERS.iter().filter(|contender| contender.name.contains(&arguments.only)).collect();
    let mut runs: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..arguments.rounds {
        for number in order(contenders.len(), round) {
            let name = format!("inbox-{number}-{round}");
            let run = run(&kafka.bootstrap, contenders[number], modules.path(), (&name, records))?;
            println!(
                "round {round}  {:<16} {:.2} CPU-us a record, {:>9.0} records/s",
                contenders[number].name,
                run.cpu_per_million(),
                run.records_per_second()
            );
            runs[number].push(run);
        }
    }
    Ok(report(&contenders, &runs))
}

fn run(bootstrap: &str, contender: &Contender, modules: &Path, (name, records): (&str, u64)) -> Result<Run> {
    let output = format!("bench-{name}");
    load::create_topic(bootstrap, &output, PARTITIONS)?;
    let node = Node::start(bootstrap, name)?;
    let before = process::cpu_time(node.pid())?;
    let started = Instant::now();
    node.apply(&format!(
        "name: {name}\nmodule: {}\ninputs: {{ in: {{ topic: {INPUT}, start: earliest }} }}\n\
         outputs: {{ out: {{ topic: {output} }} }}\n{}",
        modules.join(contender.module.replace('/', "-")).display(),
        contender.more
    ))?;
    GroupProgress::new(bootstrap, &format!("local.default.{name}"), INPUT, PARTITIONS)?
        .wait_for(records, RUN_MAX)?;
    let run = Run { cpu: process::cpu_time(node.pid())? - before, wall: started.elapsed(), records };
    drop(node);
    load::delete_topic(bootstrap, &output)?;
    Ok(run)
}

/// Prints what each contender costs above the first, in the same round; fails if a new id is above its bar.
fn report(contenders: &[&Contender], runs: &[Vec<Run>]) -> ExitCode {
    println!("\n{:<16} {:<24} above the first", "", "CPU-us a record");
    let mut held = true;
    for (contender, own) in contenders.iter().zip(runs) {
        let cost = Spread::of(own.iter().map(Run::cpu_per_million));
        let above = Spread::of(
            own.iter().zip(&runs[0]).map(|(own, first)| own.cpu_per_million() - first.cpu_per_million()),
        );
        let (Some(cost), Some(above)) = (cost, above) else { continue };
        let is_inbox = contender.more.contains("inbox");
        let bar = if is_inbox { format!("   bar {NEW_ID_MAX_US:.1}") } else { String::new() };
        held &= !is_inbox || above.median <= NEW_ID_MAX_US;
        println!("{:<16} {:<24} {above}{bar}", contender.name, cost.to_string());
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
