//! A worker's relay, a network between it and a receiver, and the receiver: what it was given, in order.
//!
//! A delivery arrives, or is lost on its way, or its answer is; and sometimes it arrives late, when it has been
//! sent again, perhaps by another owner. At the moment of each arrival its row must be committed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::broker::Broker;
use super::check::Violation;
use super::process::Process;
use super::sink::Fate;
use super::world::World;
use crate::ports::{Delivery, Landed, Landing, Relay};
use crate::store::OutboxRow;

pub struct ModelRelay {
    pub world: Arc<World>,
    pub process: Arc<Process>,
    pub under_way: Vec<Delivery>,
}

/// What is beyond the network.
#[derive(Debug, Default)]
pub struct Receiver {
    /// The first of each id, in the order of their arrival, by key.
    first: BTreeMap<Vec<u8>, Vec<Delivery>>,
    by_id: HashMap<String, Delivery>,
    /// Under way to it, though nobody waits any more.
    late: Vec<Delivery>,
    violation: Option<Violation>,
}

impl Relay for ModelRelay {
    fn admits(&self, _: &str) -> bool {
        true
    }

    fn send(&mut self, delivery: Delivery) -> Result<(), Box<Delivery>> {
        self.under_way.push(delivery);
        Ok(())
    }

    fn land(&mut self, wait: Duration) -> Option<Landing> {
        if !wait.is_zero() {
            self.world.turn();
        }
        let mut state = self.world.lock();
        if self.under_way.is_empty() || self.process.is_dead() || !state.random.one_in(2) {
            return None;
        }
        let index = state.random.below(self.under_way.len());
        let delivery = self.under_way.swap_remove(index);
        let fate = state.fate();
        state.note(|| format!("delivery {}/{}: {fate:?}", delivery.partition, delivery.sequence));
        let (partition, sequence) = (delivery.partition, delivery.sequence);
        let state = &mut *state;
        match fate {
            Fate::Arrives | Fate::AnswerLost => state.receiver.take(&state.broker, delivery),
            Fate::Late => state.receiver.late.push(delivery),
            Fate::Dropped => {}
        }
        let landed = match fate {
            Fate::Arrives => Landed::Delivered,
            _ => Landed::Transient { reason: format!("{fate:?}"), after: None },
        };
        Some(Landing { partition, sequence, landed })
    }

    fn knock(&self, _: &str) {}

    fn opened(&mut self) -> Option<String> {
        None
    }
}

impl Drop for ModelRelay {
    /// What was sent may still arrive.
    fn drop(&mut self) {
        let under_way = std::mem::take(&mut self.under_way);
        self.world.lock().receiver.late.extend(under_way);
    }
}

impl Receiver {
    fn take(&mut self, broker: &Broker, delivery: Delivery) {
        let (partition, sequence) = (delivery.partition, delivery.sequence);
        let key = [&[0x03][..], &sequence.to_be_bytes()].concat();
        let is_committed = broker
            .decided_values(partition, &key)
            .any(|value| OutboxRow::decode(value).is_ok_and(|row| row.id == delivery.id));
        if !is_committed {
            self.blame(format!("row {sequence} of partition {partition} is delivered and not committed"));
        }
        if let Some(before) = self.by_id.get(&delivery.id) {
            if *before != delivery {
                self.blame(format!("id {} is delivered as something else", delivery.id));
            }
            return;
        }
        let of_key = self.first.entry(delivery.key.clone().unwrap_or_default()).or_default();
        let last = of_key.last().map(|last| last.sequence);
        of_key.push(delivery.clone());
        self.by_id.insert(delivery.id.clone(), delivery);
        if last >= Some(sequence) {
            self.blame(format!(
                "row {sequence} of partition {partition} comes after row {last:?} of its key"
            ));
        }
    }

    fn blame(&mut self, what: String) {
        self.violation.get_or_insert(format!("W7 outbox: {what}"));
    }

    /// One that was held up arrives.
    pub fn step(&mut self, broker: &Broker, pick: usize) {
        if !self.late.is_empty() {
            let delivery = self.late.swap_remove(pick % self.late.len());
            self.take(broker, delivery);
        }
    }

    /// W7: everything once per id, in order per key, and nothing else.
    pub fn check(&self, expected: &BTreeMap<Vec<u8>, Vec<Vec<u8>>>) -> Result<(), Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        let value = |delivery: &Delivery| {
            let value = delivery.value.clone().unwrap_or_default();
            // Without the revision that made it.
            value[..value.len() - size_of::<u64>()].to_vec()
        };
        let found: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = self
            .first
            .iter()
            .map(|(key, of_key)| (key.clone(), of_key.iter().map(value).collect()))
            .collect();
        if found == *expected {
            return Ok(());
        }
        let differ = found.keys().chain(expected.keys()).find(|key| found.get(*key) != expected.get(*key));
        let key = differ.map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
        Err(format!("W7 outbox: what is delivered of key {key} is not what was committed"))
    }
}
