//! A guest that is flooded with its records until the time is up, and what an operator is told of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidemill_proto::v1 as proto;

use super::case::{Fate, Records};
use super::stage::{Stage, TOLD_MAX, Told, create_topics, document, limits, producer, reader};
use crate::reading::header;

/// Between two looks at how a guest is, beside its letters.
const LOOK: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(5);

impl Stage {
    /// Told by the first dead letter, by the halt, or by the count of what was skipped; a record that succeeds
    /// leads to none of them.
    pub(super) fn records(&mut self, name: &str, records: &Records, until: Instant) -> Result<Told> {
        let topics = [format!("{name}-in"), format!("{name}-out")];
        let partitions = records.workers as i32;
        create_topics(&self.node, &[&topics[0], &topics[1]], partitions);
        let module = self.module(records.guest);
        let limits = limits(records.memory_mib, records.store_mib, records.time_ms);
        let document = document(name, records.guest, records.then, &limits)
            + &format!("workers: {}\nconfig: {{ {} }}\n", records.workers, records.config);
        self.deploy(&document, &module, false)?;
        self.until_running(name)?;
        let letters = match records.has_letters() {
            true => Some(reader(&self.bootstrap, &format!("tidemill.{name}.dead-letters"), partitions)?),
            false => None,
        };
        let mut flood = Flood::new(&self.bootstrap, &topics[0], records)?;
        let (mut reason, mut looked) = (None, Instant::now());
        let mut after = Duration::ZERO;
        while Instant::now() < until || reason.is_none() {
            ensure!(flood.began.elapsed() < TOLD_MAX, "no reason after {TOLD_MAX:?}");
            flood.go_on()?;
            if reason.is_some() {
                continue;
            }
            if let Some(letters) = &letters {
                reason = letter(letters, TICK)?;
            }
            if reason.is_none() && looked.elapsed() >= LOOK {
                looked = Instant::now();
                reason = shown(&self.deployment(name)?, records);
            }
            after = flood.began.elapsed();
            if reason.is_none() && records.fate == Fate::Succeeds && Instant::now() >= until {
                (reason, after) = (Some(String::new()), Duration::ZERO);
            }
        }
        flood.producer.flush(TOLD_MAX)?;
        Ok(Told { reason: reason.context("nothing was told")?, after })
    }
}

/// Sends a guest's records at their rate, each after one with which nothing is wrong, if the guest knows such.
struct Flood<'a> {
    producer: BaseProducer,
    topic: &'a str,
    records: &'a Records,
    value: Option<Vec<u8>>,
    good_value: Option<Vec<u8>>,
    began: Instant,
    sent: u64,
}

impl<'a> Flood<'a> {
    fn new(bootstrap: &str, topic: &'a str, records: &'a Records) -> Result<Flood<'a>> {
        Ok(Flood {
            producer: producer(bootstrap)?,
            topic,
            records,
            value: records.record.1.bytes(),
            good_value: records.good.and_then(|(_, value)| value.bytes()),
            began: Instant::now(),
            sent: 0,
        })
    }

    /// Sends what is due.
    fn go_on(&mut self) -> Result<()> {
        let rate = self.records.rate * if self.records.good.is_some() { 2 } else { 1 };
        let workers = u64::from(self.records.workers);
        while self.sent < 1 + self.began.elapsed().as_millis() as u64 * rate / 1_000 {
            // Partition after partition, so that each has its good ones at the same numbers.
            let (number, partition) = (self.sent / workers, (self.sent % workers) as i32);
            let good = self.records.good.filter(|_| self.records.is_good(number));
            let ((key, _), value) = match good {
                Some(good) => (good, &self.good_value),
                None => (self.records.record, &self.value),
            };
            let mut record = BaseRecord::<[u8], [u8]>::to(self.topic).partition(partition);
            record.key = key;
            record.payload = value.as_deref();
            flights::feed::send(&self.producer, record)?;
            self.sent += 1;
        }
        self.producer.poll(TICK);
        Ok(())
    }
}

/// The reason in the next dead letter.
fn letter(letters: &BaseConsumer, wait: Duration) -> Result<Option<String>> {
    let Some(letter) = letters.poll(wait) else { return Ok(None) };
    let letter = letter?;
    let reason = header(&letter, "failure_reason").context("a letter has a reason")?;
    Ok(Some(String::from_utf8_lossy(reason).into_owned()))
}

/// What is shown of a guest that has failed, if it has no letters.
fn shown(found: &proto::Deployment, records: &Records) -> Option<String> {
    if found.state() == proto::DeploymentState::Halted {
        return Some(found.reason.clone());
    }
    let skipped: u64 = found.tasks.iter().map(|task| task.skipped).sum();
    (records.then == "skip" && skipped > 0).then(|| format!("{skipped} records skipped"))
}
