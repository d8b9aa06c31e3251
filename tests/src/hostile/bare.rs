//! librdkafka's consumers as a worker of a node has one, and nothing else: `tidemill-hostile clients`. What they need is
//! librdkafka's, and is taken off what a small deployment costs. What reads and writes an exactly-once deployment's
//! records is the node's own, and counts as the deployment's.
//!
//! Of the node's settings (`runtime/src/kafka/config.rs`) they have those that decide over membership, connections and
//! buffers. They do what the consumer of an idle deployment has certainly done: it is a member with its partition
//! assigned, which is paused. If a node's has done more, that is counted as the deployment's.

use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::process::Usage;
use crate::reading::reading;

const READY_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// After the last of them is ready, before they count as idle.
const STARTING: Duration = Duration::from_secs(3);

/// What the client of each worker needs.
#[derive(Debug, Clone, Copy)]
pub struct Clients {
    pub rss_kib: f64,
    pub threads: f64,
}

impl Clients {
    /// Runs so many clients on a topic, in a process of their own.
    pub fn measure(bootstrap: &str, topic: &str, count: usize) -> Result<Clients> {
        let cores = available_parallelism()?.get().max(2);
        let output = Command::new(std::env::current_exe()?)
            .args(["clients", "--bootstrap", bootstrap, "--topic", topic, "--count", &count.to_string()])
            // As a node bounds its own.
            .env("MALLOC_ARENA_MAX", cores.to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "the bare clients ended with {}: {said}", output.status);
        let (rss_kib, threads) = said.trim().split_once(' ').context("two numbers of the bare clients")?;
        Ok(Clients { rss_kib: rss_kib.parse()?, threads: threads.parse()? })
    }
}

/// What that process does: prints what each of so many clients adds to it, resident KiB and threads.
pub fn run(bootstrap: &str, topic: &str, count: usize) -> Result<()> {
    // What every process with such clients has once.
    let first = open(bootstrap, topic, 0..1)?;
    let before = Usage::of(std::process::id());
    let others = open(bootstrap, topic, 1..count + 1)?;
    let after = Usage::of(std::process::id());
    let each = |of: fn(&Usage) -> u64| (of(&after) as f64 - of(&before) as f64) / count as f64;
    println!("{} {}", each(|usage| usage.rss_kib), each(|usage| usage.threads));
    drop((first, others));
    Ok(())
}

/// Opens clients and waits until each is ready.
fn open(bootstrap: &str, topic: &str, numbers: std::ops::Range<usize>) -> Result<Vec<BaseConsumer>> {
    let consumers: Vec<BaseConsumer> =
        numbers.map(|number| member(bootstrap, topic, number)).collect::<Result<_>>()?;
    let until = Instant::now() + READY_MAX;
    let mut waiting: Vec<&BaseConsumer> = consumers.iter().collect();
    while !waiting.is_empty() {
        ensure!(Instant::now() < until, "{} consumers have no partition", waiting.len());
        for consumer in &waiting {
            // Serves the group. A coordinator that is not there yet is asked again.
            drop(consumer.poll(Duration::ZERO));
        }
        waiting.retain(|consumer| !consumer.assignment().is_ok_and(|assigned| assigned.count() > 0));
        std::thread::sleep(LOOK_EVERY);
    }
    for consumer in &consumers {
        // The node reads it by itself.
        consumer.pause(&consumer.assignment()?)?;
    }
    std::thread::sleep(STARTING);
    Ok(consumers)
}

fn member(bootstrap: &str, topic: &str, number: usize) -> Result<BaseConsumer> {
    let name = format!("bare-{number}");
    let consumer: BaseConsumer = reading(bootstrap, &name, true)
        .set("enable.auto.offset.store", "false")
        .set("check.crcs", "true")
        .set("group.instance.id", &name)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "2000")
        .set("max.poll.interval.ms", "300000")
        .set("queued.min.messages", "20000")
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.max.bytes", "8388608")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .create()?;
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}
