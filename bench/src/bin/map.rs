//! First look at the cost of a stateless map: CPU-seconds per million records of a tidemill node with
//! a pass-through handler, beside a native librdkafka loop that does the same, on Apache Kafka.
//!
//! The topics are filled beforehand; in each round every contender maps all of it once, as a fresh
//! process. What counts is the CPU time of the contender's own process: of the loop from start to
//! end, of the node from the deployment (compiling the handler included) to the last commit.

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
/// The node may cost this many times what the loop costs.
const RATIO_MAX: f64 = 2.0;
const RUN_MAX: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(about = "Compares a tidemill node with a native rdkafka loop doing the same stateless map")]
struct Arguments {
    /// Records that every run maps, in millions
    #[arg(long, default_value_t = 2)]
    millions: u64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only the loop; for work on the benchmark itself
    #[arg(long)]
    loop_only: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Loop,
    Node,
}

#[derive(Clone, Copy)]
struct Contender {
    kind: Kind,
    guarantee: &'static str,
}

const CONTENDERS: [Contender; 4] = [
    Contender { kind: Kind::Loop, guarantee: "exactly_once" },
    Contender { kind: Kind::Node, guarantee: "exactly_once" },
    Contender { kind: Kind::Loop, guarantee: "at_least_once" },
    Contender { kind: Kind::Node, guarantee: "at_least_once" },
];

struct Bench {
    kafka: ApacheKafka,
    /// The pass-through handler, built.
    module: tempfile::NamedTempFile,
    records: u64,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let bench = Bench::prepare(arguments.millions * 1_000_000, arguments.loop_only)?;
    let contenders: Vec<Contender> = CONTENDERS
        .into_iter()
        .filter(|contender| contender.kind == Kind::Loop || !arguments.loop_only)
        .collect();

    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); contenders.len()];
    for round in 0..arguments.rounds {
        for number in order(contenders.len(), round) {
            let contender = contenders[number];
            let run = bench.run(contender, round)?;
            println!(
                "round {round}  {:<28} {:.3} CPU-s per million, {:>9.0} records/s",
                name(contender),
                run.cpu_per_million(),
                run.records_per_second()
            );
            runs[number].push(run);
        }
    }
    Ok(report(&contenders, &runs))
}

impl Bench {
    fn prepare(records: u64, loop_only: bool) -> Result<Bench> {
        let module = tempfile::Builder::new().suffix(".wasm").tempfile()?;
        if !loop_only {
            let build = ["build", "bench/pass", "--out"];
            process::run(Command::new(program("tidemill")?).args(build).arg(module.path()))?;
        }
        println!("starting Apache Kafka {}", tidemill_kafka_harness::VERSION);
        // Outputs are deleted after each run, and their files with them at once.
        let quick = ("log.segment.delete.delay.ms".to_owned(), "1000".to_owned());
        let kafka = ApacheKafka::start_with(&Options { properties: vec![quick], ..Options::default() })?;
        println!("writing {records} records of {} + {} bytes", load::KEY_BYTES, load::VALUE_BYTES);
        load::create_topic(&kafka.bootstrap, INPUT, PARTITIONS)?;
        load::fill(&kafka.bootstrap, INPUT, records)?;
        Ok(Bench { kafka, module, records })
    }

    fn run(&self, contender: Contender, round: usize) -> Result<Run> {
        let kind = if contender.kind == Kind::Loop { "loop" } else { "node" };
        let name = format!("{kind}-{}-{round}", contender.guarantee.replace('_', "-"));
        let output = format!("bench-{name}");
        load::create_topic(&self.kafka.bootstrap, &output, PARTITIONS)?;
        let run = match contender.kind {
            Kind::Loop => self.run_loop(&name, &output, contender.guarantee),
            Kind::Node => self.run_node(&name, &output, contender.guarantee),
        };
        load::delete_topic(&self.kafka.bootstrap, &output)?;
        run
    }

    fn run_loop(&self, name: &str, output: &str, guarantee: &str) -> Result<Run> {
        let mut command = Command::new(program("native-loop")?);
        command.args([&self.kafka.bootstrap, INPUT, output, name]);
        command.args([PARTITIONS.to_string(), self.records.to_string(), guarantee.to_owned()]);
        let started = Instant::now();
        let cpu = process::run(&mut command)?;
        Ok(Run { cpu, wall: started.elapsed(), records: self.records })
    }

    fn run_node(&self, name: &str, output: &str, guarantee: &str) -> Result<Run> {
        let node = Node::start(&self.kafka.bootstrap, name)?;
        let before = process::cpu_time(node.pid())?;
        let started = Instant::now();
        node.deploy(name, self.module.path(), [INPUT, output], guarantee)?;
        let group = format!("local.default.{name}");
        GroupProgress::new(&self.kafka.bootstrap, &group, INPUT, PARTITIONS)?
            .wait_for(self.records, RUN_MAX)?;
        let wall = started.elapsed();
        Ok(Run { cpu: process::cpu_time(node.pid())? - before, wall, records: self.records })
    }
}

fn name(contender: Contender) -> String {
    let kind = if contender.kind == Kind::Loop { "native loop" } else { "tidemill node" };
    format!("{kind}, {}", contender.guarantee)
}

/// Prints medians and ratios; fails if a median ratio is beyond its bar.
fn report(contenders: &[Contender], runs: &[Vec<Run>]) -> ExitCode {
    println!("\n{:<32}{:<28}records/s", "", "CPU-s per million records");
    for (contender, runs) in contenders.iter().zip(runs) {
        let cost = Spread::of(runs.iter().map(Run::cpu_per_million));
        let speed = Spread::of(runs.iter().map(|run| run.records_per_second() / 1e3));
        if let (Some(cost), Some(speed)) = (cost, speed) {
            println!("{:<32}{:<28}{speed} thousand", name(*contender), cost.to_string());
        }
    }
    let mut held = true;
    for (pair, runs) in contenders.chunks(2).zip(runs.chunks(2)) {
        let ([_, node], [loops, nodes]) = (pair, runs) else { continue };
        if node.kind != Kind::Node {
            continue;
        }
        let ratios =
            loops.iter().zip(nodes).map(|(native, node)| node.cpu_per_million() / native.cpu_per_million());
        let Some(ratio) = Spread::of(ratios) else { continue };
        held &= ratio.median <= RATIO_MAX;
        println!("ratio node : loop, {:<14} {ratio}   bar {RATIO_MAX:.1}", node.guarantee);
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
