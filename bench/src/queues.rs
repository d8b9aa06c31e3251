//! A worker's consumer and transactional producer, the node's own, beside the embedded broker in this process: what it
//! takes the node's threads to get records out of what was fetched ahead, and to write and send a commit's.
//!
//! ```text
//!  input ---fetched ahead---> batches in the queue ---take---> columns
//!  output, changelog <--------end--------- batches <--produce, changelog--- a commit
//! ```
//!
//! | step | what the calling thread does in it |
//! |---|---|
//! | `take` | reads records out of batches, which the thread that fetched them has checked and unpacked, into columns; at each call it also asks librdkafka what the group says |
//! | `produce`, `changelog` | finds the partition of each row and appends the row to the batch of that one |
//! | `end` | everything else of a commit: closes the batches (checksum, compression), sends them, and makes and ends the transaction |
//!
//! A batch that is full is closed and sent ahead at once, in the midst of `produce` or `changelog`. [`COMMIT_RECORDS`] of
//! a hundred bytes fill two or three for each partition, as in a node under load, so that a part of what `end` does is in
//! the others, and what a transaction costs by itself is that of so many records.
//!
//! Counted is the CPU time of the calling thread alone, system calls included: the thread that fetches and the broker's
//! are not in it, though they run at the same time, and so what it waits for them is not either.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tidemill::effects::Emitted;
use tidemill::kafka::admin::{Admin, NewTopic};
use tidemill::kafka::config::{KafkaConfig, KafkaLimits};
use tidemill::kafka::consumer::{Consumer, ConsumerSpec};
use tidemill::kafka::epochs::Epochs;
use tidemill::kafka::sink::{SinkSpec, transactional};
use tidemill::ports::{ChangelogRows, End, Group, Produce, Sink, Source, Taken, TaskOffset};
use tidemill::record::Offset;
use tidemill_broker::{Broker, Config};

use crate::load::{self, Shape};
use crate::meter::{Meter, Spent};
use crate::process::cpu_time;
use crate::steps::COMMIT_RECORDS;
use crate::threads::{COMMIT, WORKER};

/// In the order of a record's way, and the row of [`crate::threads::ROWS`] that each is part of.
pub const STEPS: [(&str, usize); 4] =
    [("take", WORKER), ("produce", COMMIT), ("changelog", COMMIT), ("end", COMMIT)];

const INPUT: &str = "in";
const OUTPUT: &str = "out";
const CHANGELOG: &str = "changelog";
/// As the workloads have them.
const PARTITIONS: i32 = 4;
/// A worker's share of `memory.queues` by default.
const QUEUES_BYTES: u64 = 64 << 20;
/// `max.message.bytes` of a topic by default.
const BATCH_BYTES: u32 = 1_048_588;
/// Of each partition, so that what was read goes; far more than is waiting.
const KEPT_BYTES: u32 = 32 << 20;
const SEGMENT_BYTES: u32 = 4 << 20;
/// Taken at once: far fewer than are fetched ahead, so that no call waits for more.
const TAKEN_RECORDS: usize = 20_000;
/// Written to the input at once, and how few may be left of them: more than are fetched ahead, which is up to two
/// fetches of each partition, of 1 MiB.
const FILLED: u64 = 10 * TAKEN_RECORDS as u64;
const LEFT_MIN: u64 = 4 * TAKEN_RECORDS as u64;
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Who uses less than a fifth of such a time has nothing to do.
const IDLE_WINDOW: Duration = Duration::from_millis(20);

/// A worker's consumer and producer. Field order is drop order.
pub struct Queues {
    consumer: Consumer,
    sink: Box<dyn Sink>,
    /// What every commit says of the input; where it is does not matter here.
    offsets: Vec<TaskOffset>,
    /// Of the input's records.
    shape: Shape,
    /// Of them, not taken yet.
    left: u64,
    bootstrap: String,
    meter: Meter,
    _broker: Broker,
}

impl Queues {
    /// Starts a broker and both clients, with a node's settings.
    pub fn open(shape: Shape) -> Result<Queues> {
        let broker = Broker::start(Config::default())?;
        let bootstrap = broker.address().to_string();
        let mut kafka = KafkaConfig::new(bootstrap.clone());
        kafka.limits = KafkaLimits::default().within(QUEUES_BYTES);
        let admin = Admin::new(&kafka)?;
        for name in [INPUT, OUTPUT, CHANGELOG] {
            let topic = NewTopic::new(name, PARTITIONS)
                .with("retention.bytes", KEPT_BYTES)
                .with("segment.bytes", SEGMENT_BYTES);
            admin.create_topic(&topic)?;
        }
        let mut consumer = Consumer::new(&kafka, ConsumerSpec::new("steps", vec![INPUT.to_owned()]))?;
        let offsets = join(&mut consumer)?;
        let spec = SinkSpec {
            outputs: vec![Some(OUTPUT.to_owned())],
            changelog: Some(CHANGELOG.to_owned()),
            inbox: None,
            inputs: vec![INPUT.to_owned()],
            batch_bytes: BATCH_BYTES,
        };
        let sink = transactional(&kafka, "steps", spec, Epochs::default())?;
        let meter = Meter::of_this_thread();
        Ok(Queues { consumer, sink, offsets, shape, left: 0, bootstrap, meter, _broker: broker })
    }

    /// Takes records, commits this, and answers what each of [`STEPS`] takes of a commit. Without a changelog its step
    /// takes nothing.
    pub fn round(
        &mut self,
        emissions: &[Emitted],
        changelogs: &[ChangelogRows],
    ) -> Result<[Spent; STEPS.len()]> {
        let take = self.take()?;
        let [produce, changelog, end] = self.commit(emissions, changelogs)?;
        Ok([take, produce, changelog, end])
    }

    /// Takes some records in batches, and answers what as many as [`COMMIT_RECORDS`] take. The queue has so many before
    /// that it is never empty, as a node's that has a backlog.
    pub fn take(&mut self) -> Result<Spent> {
        if self.left < LEFT_MIN {
            load::fill(&self.bootstrap, INPUT, self.shape, FILLED)?;
            self.left += FILLED;
        }
        // The first come with a fetch that brings the others.
        self.take_some()?;
        wait_until_idle()?;
        self.meter.start();
        let mut taken = 0;
        while taken < TAKEN_RECORDS {
            taken += self.take_some()?;
        }
        let Spent { time, instructions } = self.meter.lap();
        let share = COMMIT_RECORDS as f64 / taken as f64;
        Ok(Spent { time: time.mul_f64(share), instructions: (instructions as f64 * share) as u64 })
    }

    /// At least one.
    fn take_some(&mut self) -> Result<usize> {
        let mut out = Vec::new();
        self.consumer.take(ANSWER_MAX, &mut out)?;
        let mut records = 0;
        for taken in out {
            match taken {
                Taken::Batch(batch) => records += batch.len(),
                other => bail!("the consumer's queue had {other:?}"),
            }
        }
        ensure!(records > 0, "no record came within {ANSWER_MAX:?}");
        self.left = self.left.saturating_sub(records as u64);
        Ok(records)
    }

    /// Commits this, of each task that has one its changelog, and answers what producing, the changelogs, and all else
    /// took.
    pub fn commit(
        &mut self,
        emissions: &[Emitted],
        changelogs: &[ChangelogRows],
    ) -> Result<[Spent; STEPS.len() - 1]> {
        let membership = self.consumer.membership();
        self.meter.start();
        self.sink.begin()?;
        let mut end = self.meter.lap();
        for rows in emissions {
            self.sink.produce(Produce::Emissions(rows))?;
        }
        let produce = self.meter.lap();
        for rows in changelogs {
            self.sink.produce(Produce::Changelog(rows))?;
        }
        let changelog = if changelogs.is_empty() { Spent::default() } else { self.meter.lap() };
        self.sink.send_offsets(&self.offsets, &membership)?;
        self.sink.end(End::Commit)?;
        end += self.meter.lap();
        Ok([produce, changelog, end])
    }
}

/// Waits until the group has given a consumer all partitions, and starts them.
fn join(consumer: &mut Consumer) -> Result<Vec<TaskOffset>> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        let mut out = Vec::new();
        consumer.take(ANSWER_MAX, &mut out)?;
        for taken in out {
            let partitions = match taken {
                Taken::Assigned(partitions) => partitions,
                other => bail!("the group gave no partitions, but {other:?}"),
            };
            let starts: Vec<_> = partitions.into_iter().map(|partition| (partition, Offset(0))).collect();
            consumer.assign(&starts)?;
            for &(partition, offset) in &starts {
                consumer.start(partition, offset)?;
            }
            if starts.len() == PARTITIONS as usize {
                let row = |(partition, offset)| TaskOffset { partition, offset, metadata: String::new() };
                return Ok(starts.into_iter().map(row).collect());
            }
        }
        ensure!(Instant::now() < deadline, "the group has given no partitions within {ANSWER_MAX:?}");
    }
}

/// Waits until as much is fetched ahead as may be. A thread that fetches waits then, as all others do, so that nobody in
/// this process has anything to do.
fn wait_until_idle() -> Result<()> {
    let (process, started) = (std::process::id(), Instant::now());
    loop {
        let before = cpu_time(process)?;
        thread::sleep(IDLE_WINDOW);
        if cpu_time(process)? - before < IDLE_WINDOW / 5 {
            return Ok(());
        }
        ensure!(started.elapsed() < ANSWER_MAX, "this process does not come to rest");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use crate::load::Values;
    use crate::steps::passed_on;
    use crate::topics;

    #[test]
    fn every_step_at_the_queues_takes_time_and_its_records_arrive() {
        let shape = Shape { keys: Keys::New, values: Values::Text(100) };
        let mut queues = Queues::open(shape).expect("a broker and its clients");
        let emissions = passed_on(shape);
        let mut changelog = ChangelogRows::default();
        changelog.keys.push(Some(b"key"));
        changelog.values.push(Some(b"value"));
        let all = queues.round(&emissions, &[changelog]).expect("a round");
        for (spent, step) in all.iter().zip(STEPS) {
            assert!(spent.time > Duration::ZERO, "{step:?}");
        }
        let [.., without, _] = queues.round(&emissions, &[]).expect("another");
        assert_eq!(without, Spent::default());
        let ends = topics::ends(&queues.bootstrap, OUTPUT, PARTITIONS).expect("a topic");
        assert!(ends.iter().sum::<i64>() >= 2 * COMMIT_RECORDS as i64, "{ends:?}");
    }
}
