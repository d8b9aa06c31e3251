//! How long a killed node stays silent: from kill -9, restarted at once, to its first new output, with
//! many keys in its stores, once with the stores kept and once with them deleted.
//!
//! The deployment is the `count` plugin, `exactly_once`, four partitions, on Apache Kafka. A trickle of
//! new records keeps coming, so that "first new output" is the first record handled after the kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::group::GroupProgress;
use crate::node::{Deployment, Modules, Node, Output, State};
use crate::rounds::Spread;
use crate::topics::{self, ANSWER_MAX, config};
use crate::{keys, load};

const PARTITIONS: i32 = 4;
const FILL_MAX: Duration = Duration::from_secs(600);
const FIRST_OUTPUT_MAX: Duration = Duration::from_secs(120);
/// Work between two kills, so that each meets a node in motion.
const BETWEEN: Duration = Duration::from_secs(3);

#[derive(Args)]
pub struct Arguments {
    /// Keys, in millions; one measurement for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    millions: Vec<u64>,
    /// Kills with the stores kept, and as many with them deleted
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Fills stores, and kills.
pub fn run(arguments: &Arguments) -> Result<()> {
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
        let deployment = Deployment {
            module: &modules.count,
            input: &input,
            output: Output::Topic(&output),
            guarantee: "exactly_once",
            more: "",
        };
        node.deploy(&name, &deployment)?;
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
    Ok(())
}

/// Writes a few hundred records a second, of keys that [`crate::load::fill`] wrote, until it is dropped.
struct Trickle {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Trickle {
    const PAUSE: Duration = Duration::from_millis(5);

    fn start(bootstrap: &str, topic: &str, keys: u64) -> Result<Trickle> {
        let producer: BaseProducer = config(bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("partitioner", "murmur2_random")
            .create()?;
        let (topic, value) = (topic.to_owned(), load::Values::Text(load::VALUE_BYTES).text());
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            // A step that shares no factor with the number of keys visits all of them.
            let numbers = (0..).map(|step: u64| step.wrapping_mul(7_919) % keys);
            for number in numbers.take_while(|_| !flag.load(Ordering::Relaxed)) {
                // A full queue only means that the next record follows later.
                let _ = producer.send(BaseRecord::to(&topic).key(&keys::padded(number)).payload(&value));
                producer.poll(Trickle::PAUSE);
            }
        });
        Ok(Trickle { stopping, thread: Some(thread) })
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a record that is committed to a topic after this was made.
struct FirstOutput {
    consumer: BaseConsumer,
}

impl FirstOutput {
    fn of(bootstrap: &str, topic: &str, partitions: i32) -> Result<FirstOutput> {
        let consumer: BaseConsumer = config(bootstrap)
            .set("group.id", "bench-first-output")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            let (_, end) = consumer.fetch_watermarks(topic, partition, ANSWER_MAX)?;
            list.add_partition_offset(topic, partition, Offset::Offset(end))?;
        }
        consumer.assign(&list)?;
        Ok(FirstOutput { consumer })
    }

    fn wait(&self, limit: Duration) -> Result<()> {
        match self.consumer.poll(limit) {
            Some(record) => record.map(drop).context("the output topic"),
            None => bail!("no output after {limit:?}"),
        }
    }
}
