//! The rival: consume, map, produce, commit, as a plain librdkafka program without a runtime around
//! it. It does what the node does and no more: whole batches from the consumer's queue, record
//! timestamps kept, keys placed by murmur2, offsets committed with the output.
//!
//! What would be unfair is left out on purpose: it assigns its partitions by hand (no group to
//! join), calls librdkafka's C functions directly (rdkafka's own `flush` and `commit_transaction`
//! poll in 100 ms steps), and leaves 2 ms after a commit before it produces again (a broker that
//! still writes markers answers CONCURRENT_TRANSACTIONS, and librdkafka then waits 20 ms).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::raw::{Consumer, Producer};

/// Records of one `consume_batch_queue`.
const BATCH_RECORDS: usize = 1_000;
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// From a commit to the next first produce.
const AFTER_COMMIT: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    ExactlyOnce,
    AtLeastOnce,
}

/// One run over topics that hold all their records already.
#[derive(Debug, Clone)]
pub struct Job {
    pub bootstrap: String,
    pub input: String,
    pub output: String,
    pub group: String,
    pub partitions: i32,
    /// Records to map before the run ends.
    pub records: u64,
    pub guarantee: Guarantee,
}

/// Maps `records` records and commits the last of them.
pub fn run(job: &Job) -> Result<()> {
    let mut consumer = consumer(job)?;
    let producer = producer(job)?;
    let exactly_once = job.guarantee == Guarantee::ExactlyOnce;
    if exactly_once {
        producer.init_transactions()?;
    }
    let mut next = vec![0; usize::try_from(job.partitions)?];
    let mut mapped = 0;
    while mapped < job.records {
        if exactly_once {
            producer.begin()?;
        }
        mapped += until_commit(&mut consumer, &producer, &mut next, job.records - mapped)?;
        if exactly_once {
            producer.commit(&consumer, &next)?;
        } else {
            producer.flush()?;
            consumer.commit(&next)?;
        }
        if exactly_once {
            std::thread::sleep(AFTER_COMMIT);
        }
    }
    Ok(())
}

/// Maps until the commit interval is over or nothing is left to do; answers the records mapped.
fn until_commit(consumer: &mut Consumer, producer: &Producer, next: &mut [i64], left: u64) -> Result<u64> {
    let started = Instant::now();
    let mut mapped = 0;
    while mapped < left && started.elapsed() < COMMIT_INTERVAL {
        let batch = consumer.take(10)?;
        for record in batch.records() {
            let record = record?;
            // The map itself: every record passes as it is, as in the guest it is compared with.
            producer.send(&record)?;
            let partition = usize::try_from(record.partition).context("partition")?;
            next[partition] = record.offset + 1;
        }
        mapped += batch.len() as u64;
        producer.poll(0);
    }
    Ok(mapped)
}

fn consumer(job: &Job) -> Result<Consumer> {
    let settings = [
        ("bootstrap.servers", job.bootstrap.as_str()),
        ("group.id", job.group.as_str()),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "error"),
        ("isolation.level", "read_committed"),
        ("check.crcs", "true"),
    ];
    Consumer::new(&settings, &job.input, job.partitions, BATCH_RECORDS)
}

fn producer(job: &Job) -> Result<Producer> {
    let mut settings = vec![
        ("bootstrap.servers", job.bootstrap.as_str()),
        ("partitioner", "murmur2_random"),
        ("enable.idempotence", "true"),
        ("acks", "all"),
        ("linger.ms", "20"),
        ("queue.buffering.max.messages", "1000000"),
        // Nobody reads the delivery reports of records that arrived; failed ones fail the flush
        // or the transaction.
        ("delivery.report.only.error", "true"),
    ];
    if job.guarantee == Guarantee::ExactlyOnce {
        settings.push(("transactional.id", job.group.as_str()));
        settings.push(("transaction.timeout.ms", "10000"));
    }
    Producer::new(&settings, &job.output)
}
