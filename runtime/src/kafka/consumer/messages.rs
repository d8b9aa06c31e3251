//! From librdkafka's queue to batches, where it fetches (`kafka.client: librdkafka`), and how it starts a partition. What
//! comes in the place of a record is served for either way of fetching.

use std::time::Duration;

use super::Consumer;
use super::events::Event;
use super::slot::{Slot, flush};
use crate::kafka::ffi::{Code, KafkaError, Message};
use crate::kafka::source_error;
use crate::ports::{SourceError, Taken};
use crate::record::{InputPartition, Offset};

/// A seek only has to reach librdkafka's own threads.
const SEEK_WAIT: Duration = Duration::from_secs(10);

impl Consumer {
    /// Seeks and resumes.
    pub(super) fn start_messages(&mut self, partition: InputPartition, at: Offset) -> Result<(), KafkaError> {
        let list = self.list([(partition, at.0 as i64)]);
        match self.raw.seek(&list, SEEK_WAIT) {
            Ok(()) => {}
            Err(error)
                if error.is_any(&[
                    Code::RD_KAFKA_RESP_ERR__STATE,
                    Code::RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS,
                    Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
                ]) =>
            {
                self.assign_again(partition, at)?;
            }
            Err(error) => return Err(error),
        }
        self.started.insert(partition);
        self.raw.resume(&list)
    }

    /// Stops what librdkafka fetches until more is taken: it has one queue for records and for what the group wants, and the
    /// one would hide the other. What it fetches nevertheless is dropped, and sought with the rest.
    pub(super) fn hold(&mut self) {
        let running = || self.slots.iter().filter(|slot| slot.is_running());
        if running().next().is_some() {
            if let Err(error) = self.raw.pause(&self.list(running().map(|slot| (slot.id, 0)))) {
                tracing::debug!(group = %self.spec.group, %error, "cannot pause");
            }
            self.slots.iter_mut().for_each(Slot::hold);
        }
    }

    /// Has it fetch on what is held, from where that was taken to.
    pub(super) fn go_on(&mut self) -> Result<(), SourceError> {
        // Until a rebalance is answered nothing can be sought.
        if self.question.is_some() {
            return Ok(());
        }
        for index in 0..self.slots.len() {
            let Slot { id, next, .. } = self.slots[index];
            if self.slots[index].is_held() {
                let told = |error: KafkaError| source_error("cannot go on with a partition", &error);
                self.start_messages(id, Offset(next as u64)).map_err(told)?;
                self.slots[index].go_on();
            }
        }
        Ok(())
    }

    /// librdkafka's application position, which transaction markers move as well as records do:
    /// its fetcher queues a control op per marker, and taking that op sets the position behind it
    /// (`rd_kafka_q_serve_rkmessages`). Aborted records count through the marker that follows them.
    pub(super) fn message_position(&self, slot: &Slot) -> Option<i64> {
        let (topic, partition) = (self.topic(slot.id), slot.id.partition);
        // An error event stopped the slot; a pending message lies below librdkafka's position.
        if self.raw.has_pending_of(topic, partition) {
            return None;
        }
        let (position, epoch) = self.raw.position(topic, partition)?;
        if position >= slot.next && slot.epoch.replace(epoch) != epoch {
            self.spec.epochs.saw(topic, partition, position - 1, epoch);
        }
        Some(position)
    }

    /// Has the partitions that were started since the last take fetched now.
    ///
    /// librdkafka's thread of a broker that has nothing to fetch sleeps for up to a second (`rd_kafka_broker_serve` in
    /// rdkafka_broker.c) and is not told that a partition was resumed (`rd_kafka_toppar_pause_resume` in
    /// rdkafka_partition.c). A seek tells it, if at all (`rd_kafka_toppar_set_fetch_state`), while the partition is
    /// still paused; the other way round it would fetch from the old position first. Any request to the broker wakes
    /// it. One is made for all partitions, because a broker is sent one fetch at a time: a partition that is not part
    /// of it waits until it is answered, for up to `fetch.wait.max.ms` if the others have no news.
    pub(super) fn fetch_started(&mut self) {
        let started = std::mem::take(&mut self.started);
        if !started.is_empty() {
            self.raw.client().wake_leaders(started.iter().map(|&id| (self.topic(id), id.partition)));
        }
    }

    /// Copies pending messages into batches until the byte limit is reached.
    pub(super) fn copy_pending(&mut self, out: &mut Vec<Taken>) -> Result<(), SourceError> {
        let mut touched: Vec<usize> = Vec::new();
        let mut bytes = 0;
        let mut last = ((0, -1), None);
        let mut outcome = Ok(());
        while let Some(message) = self.raw.front() {
            if message.is_error() {
                let failed = self.error_event(message);
                self.raw.pop();
                match failed {
                    Event::Partition(id, reason) => {
                        // An event of a partition that is not running is of no interest: it was
                        // assigned at a provisional offset, and its start will seek. Nor is one of a
                        // partition that librdkafka does not read.
                        let is_read =
                            |index: &usize| self.fetcher.is_none() && self.slots[*index].is_running();
                        if let Some(index) = self.slot(id).filter(is_read) {
                            flush(&mut self.slots[index], out);
                            self.stop_slot(index);
                            let _ = self.raw.pause(&self.list([(id, 0)]));
                            out.push(Taken::Failed { partition: id, reason });
                        }
                    }
                    Event::Client(error) => outcome = outcome.and(Err(error)),
                    Event::Nothing => {}
                }
                continue;
            }
            // Records come in runs of one partition, so a slot is looked for once per run.
            let run = (message.topic_id(), message.partition());
            if last.0 != run {
                last = (run, self.find_slot(message));
            }
            if let Some(index) = last.1 {
                let size = message.key().map_or(0, <[u8]>::len) + message.value().map_or(0, <[u8]>::len);
                if bytes > 0 && bytes + size > self.spec.batch_bytes {
                    break;
                }
                let slot = &mut self.slots[index];
                if slot.is_running() && message.offset() >= slot.next {
                    if slot.batch.is_empty() {
                        slot.open();
                        touched.push(index);
                    }
                    bytes += size + slot.push(message, self.spec.wants_headers);
                    let epoch = message.leader_epoch();
                    if slot.epoch.replace(epoch) != epoch {
                        let (topic, id) = (&self.spec.inputs[usize::from(slot.id.input)], slot.id);
                        self.spec.epochs.saw(topic, id.partition, message.offset(), epoch);
                    }
                }
            }
            self.raw.pop();
        }
        touched.into_iter().for_each(|index| flush(&mut self.slots[index], out));
        outcome
    }

    /// None where librdkafka fetches nothing: a record of a partition that it had for a moment before it was paused would
    /// come twice, or hide those before it.
    fn find_slot(&self, message: &Message) -> Option<usize> {
        if self.fetcher.is_some() {
            return None;
        }
        let id = self.input_partition(&message.topic(), message.partition())?;
        self.slot(id)
    }

    /// Replaces a seek that the partition's fetcher could not take: because it had not started, or
    /// had stopped at an error.
    fn assign_again(&mut self, id: InputPartition, at: Offset) -> Result<(), KafkaError> {
        if self.is_cooperative() {
            let list = self.list([(id, at.0 as i64)]);
            self.raw.incremental_unassign(&list)?;
            return self.raw.incremental_assign(&list);
        }
        let next = |slot: &Slot| if slot.id == id { at.0 as i64 } else { slot.next };
        self.raw.assign(Some(&self.list(self.slots.iter().map(|slot| (slot.id, next(slot))))))?;
        self.raw.discard_all();
        let stopped = self.slots.iter().filter(|slot| !slot.is_running() && slot.id != id);
        let stopped = self.list(stopped.map(|slot| (slot.id, 0)));
        self.raw.pause(&stopped)
    }
}
