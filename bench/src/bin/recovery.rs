//! How long a killed node stays silent: from kill -9, restarted at once, to its first new output, with
//! many keys in its stores, once with the stores kept and once with them deleted.
//!
//! The deployment is the `count` plugin, `exactly_once`, four partitions, on Apache Kafka. A trickle of
//! new records keeps coming, so that "first new output" is the first record handled after the kill.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use tidemill_bench::group::GroupProgress;
use tidemill_bench::node::{Modules, Node, State};
use tidemill_bench::restart::{FirstOutput, Trickle};
use tidemill_bench::rounds::Spread;
use tidemill_bench::{load, topics};
use tidemill_kafka_harness::{ApacheKafka, Options};

const PARTITIONS: i32 = 4;
const FILL_MAX: Duration = Duration::from_secs(600);
const FIRST_OUTPUT_MAX: Duration = Duration::from_secs(120);
/// Work between two kills, so that each meets a node in motion.
const BETWEEN: Duration = Duration::from_secs(3);

#[derive(Parser)]
#[command(about = "Measures kill -9 to first new output, with stores kept and with stores deleted")]
struct Arguments {
    /// Keys, in millions; one measurement for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    millions: Vec<u64>,
    /// Kills with the stores kept, and as many with them deleted
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let modules = Modules::build()?;
    println!("starting Apache Kafka {}", tidemill_kafka_harness::VERSION);
    let kafka = ApacheKafka::start_with(&Options::default())?;
    for &millions in &arguments.millions {
        let keys = millions * 1_000_000;
        let name = format!("count-{millions}m");
        let (input, output) = (format!("{name}-in"), format!("{name}-out"));
        topics::create(&kafka.bootstrap, &input, PARTITIONS)?;
        topics::create(&kafka.bootstrap, &output, PARTITIONS)?;
        println!("writing and counting {keys} keys");
        load::fill(&kafka.bootstrap, &input, keys)?;
        let mut node = Node::start(&kafka.bootstrap, &name)?;
        node.deploy(&name, &modules.count, [&input, &output], "exactly_once", "")?;
        let group = node.group(&name);
        let all = topics::ends(&kafka.bootstrap, &input, PARTITIONS)?;
        GroupProgress::new(&kafka.bootstrap, &group, &input, PARTITIONS)?
            .wait_for(&all, FILL_MAX, || Ok(()))?;

        let _trickle = Trickle::start(&kafka.bootstrap, &input, keys)?;
        for state in [State::Kept, State::Deleted] {
            let mut silences = Vec::new();
            for _ in 0..arguments.rounds {
                std::thread::sleep(BETWEEN);
                let before = FirstOutput::of(&kafka.bootstrap, &output, PARTITIONS)?;
                before.wait(FIRST_OUTPUT_MAX)?; // In motion before the kill.
                let started = Instant::now();
                node.kill_and_restart(state)?;
                // What was committed before the kill is not new.
                let after = FirstOutput::of(&kafka.bootstrap, &output, PARTITIONS)?;
                after.wait(FIRST_OUTPUT_MAX)?;
                silences.push(started.elapsed().as_secs_f64());
            }
            let Some(silence) = Spread::of(silences) else { continue };
            println!("{millions} million keys, stores {state:?}: first new output after {silence} s");
        }
    }
    Ok(ExitCode::SUCCESS)
}
