//! One worker's consumer: its place in the group and the batches of its partitions.
//!
//! ```text
//!  librdkafka's queue --fill--> pending messages --copy--> a Batch per partition --> the task
//!        |
//!        +-- rebalance callback --> Taken::{Assigned, Revoked, Lost} --> worker --> assign/unassign
//! ```
//!
//! Invariants:
//! - A record comes out only of a partition that was started, with an offset at or above the start
//!   and above every record that came out since. librdkafka may hand a record out twice when a
//!   rebalance pauses a partition in the middle of a batch; the second is dropped here.
//! - A rebalance event is answered once, as a whole, by [`Group::assign`] or [`Group::unassign`].
//!   Until then librdkafka waits, with every partition paused.
//! - After an error event a partition is stopped, because librdkafka 2.12 moves its own position
//!   past the event: only a new start (a seek) makes it flow again.
//! - Offsets are ours. librdkafka stores and commits none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::config::{GroupSettings, KafkaConfig};
use super::epochs::Epochs;
use super::ffi::consumer::Consumer as Raw;
use super::ffi::partitions::Partitions;
use super::ffi::{Change, Code, KafkaError, Message};
use super::offsets::Offsets;
use super::slot::{Slot, flush};
use super::source_error;
use crate::config::node::GroupProtocol;
use crate::faults::{Bug, planted};
use crate::ports::{Group, Membership, Source, SourceError, Taken, TaskOffset};
use crate::record::{InputPartition, Offset};

/// A seek only has to reach librdkafka's own threads.
const SEEK_WAIT: Duration = Duration::from_secs(10);
/// How long a leaving member waits to be let in first.
const JOIN_WAIT: Duration = Duration::from_secs(5);
/// How long the coordinator may take to acknowledge offsets before their partitions go.
const OFFSETS_WAIT: Duration = Duration::from_secs(2);

/// What a worker's consumer is for.
#[derive(Debug, Clone)]
pub struct ConsumerSpec {
    pub group: String,
    /// Static membership: the node's id and the worker's number. `None` = a dynamic member.
    pub instance_id: Option<String>,
    pub protocol: GroupProtocol,
    /// Topics in the manifest's order; a record's `input` is an index into them. One input is
    /// assigned cooperatively, several co-partitioned ones eagerly by range.
    pub inputs: Vec<String>,
    pub wants_headers: bool,
    /// Records of one `take`, and so of one batch.
    pub batch_records: usize,
    /// Bytes copied by one `take`; a larger single record comes alone.
    pub batch_bytes: usize,
    pub epochs: Epochs,
}

impl ConsumerSpec {
    pub fn new(group: impl Into<String>, inputs: Vec<String>) -> ConsumerSpec {
        ConsumerSpec {
            group: group.into(),
            instance_id: None,
            protocol: GroupProtocol::Classic,
            inputs,
            wants_headers: false,
            batch_records: 500,
            batch_bytes: 1 << 20,
            epochs: Epochs::default(),
        }
    }
}

/// A rebalance event that was handed out and not yet answered.
enum Question {
    Assign(Vec<InputPartition>),
    Unassign(Vec<InputPartition>),
}

pub struct Consumer {
    raw: Raw,
    spec: ConsumerSpec,
    slots: Vec<Slot>,
    membership: Membership,
    question: Option<Question>,
    offsets: Offsets,
    /// Closed already.
    left: bool,
}

impl Consumer {
    /// Joins the group. Answers come through [`Source::take`].
    pub fn new(config: &KafkaConfig, spec: ConsumerSpec) -> Result<Consumer, SourceError> {
        let group = GroupSettings {
            id: &spec.group,
            instance_id: spec.instance_id.as_deref(),
            protocol: spec.protocol,
            inputs: spec.inputs.len(),
        };
        let label = spec.instance_id.as_deref().unwrap_or(&spec.group);
        let refused = |error: KafkaError| SourceError::Refused(error.to_string());
        let raw = Raw::new(&config.consumer(&group), label).map_err(refused)?;
        raw.subscribe(&spec.inputs).map_err(|error| source_error("cannot subscribe", &error))?;
        Ok(Consumer {
            raw,
            spec,
            slots: Vec::new(),
            membership: Membership { generation: -1, ..Membership::default() },
            question: None,
            offsets: Offsets::default(),
            left: false,
        })
    }

    /// Leaves the group, so that others get the partitions at once. Without it a static member's
    /// partitions wait for its return until the session expires. Commit or drop all work first.
    pub fn leave(mut self) {
        // A static member whose join is not answered yet has no member id to leave with, and would be
        // in the group, polled by nobody, once it is: the others would wait for it at every rebalance.
        if self.spec.instance_id.is_some() {
            let _ = self.await_membership(JOIN_WAIT);
        }
        self.settle_offsets();
        self.settle_question();
        // A dynamic member leaves by closing; only a static one must be made to say so.
        self.raw.close(self.spec.instance_id.is_some());
        self.left = true;
    }

    /// Waits until the group has let this member in; false if it has not in that time.
    fn await_membership(&mut self, wait: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + wait;
        while !self.membership.is_valid() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.take(left, &mut Vec::new())?;
        }
        Ok(true)
    }

    /// Answers what the group still asks, because librdkafka cannot close while it waits for that.
    fn settle_question(&mut self) {
        self.serve_rebalances(&mut Vec::new());
        let _ = match self.question {
            Some(Question::Assign(_)) => self.assign(&[]),
            Some(Question::Unassign(_)) => self.unassign(&[]),
            None => Ok(()),
        };
        self.slots.clear();
    }

    /// Partitions of the current assignment that were accepted, started or not.
    pub fn assigned(&self) -> Vec<InputPartition> {
        self.slots.iter().map(|slot| slot.id).collect()
    }

    /// Answers the cluster's id as this consumer's brokers tell it.
    pub fn cluster_id(&self, wait: Duration) -> Option<String> {
        self.raw.client().cluster_id(wait)
    }

    fn topic(&self, id: InputPartition) -> &str {
        &self.spec.inputs[usize::from(id.input)]
    }

    fn slot(&self, id: InputPartition) -> Option<usize> {
        self.slots.iter().position(|slot| slot.id == id)
    }

    fn input_partition(&self, topic: &str, partition: i32) -> Option<InputPartition> {
        let input = self.spec.inputs.iter().position(|input| input == topic)?;
        Some(InputPartition { input: input as u16, partition })
    }

    /// A list of partitions; offsets only where a call reads them.
    fn list(&self, partitions: impl IntoIterator<Item = (InputPartition, i64)>) -> Partitions {
        let mut list = Partitions::with_capacity(self.slots.len());
        for (id, offset) in partitions {
            list.add(self.topic(id), id.partition, offset, "");
            list.set_leader_epoch(self.spec.epochs.before(self.topic(id), id.partition, offset));
        }
        list
    }

    fn is_cooperative(&self) -> bool {
        self.spec.inputs.len() == 1 || self.spec.protocol == GroupProtocol::Consumer
    }

    /// Stops a partition: what was taken ahead of it goes.
    fn stop_slot(&mut self, index: usize) {
        self.slots[index].stop();
        let id = self.slots[index].id;
        self.raw.discard(&self.spec.inputs[usize::from(id.input)], id.partition);
    }

    /// Hands out what the rebalance callback left, and stops what is going away.
    fn serve_rebalances(&mut self, out: &mut Vec<Taken>) {
        for rebalance in self.raw.rebalances() {
            self.membership = rebalance.membership;
            let partitions: Vec<_> = rebalance
                .partitions
                .iter()
                .filter_map(|(topic, partition)| self.input_partition(topic, *partition))
                .collect();
            if rebalance.change == Change::Assign {
                self.question = Some(Question::Assign(partitions.clone()));
                out.push(Taken::Assigned(partitions));
                continue;
            }
            for &id in &partitions {
                if let Some(index) = self.slot(id) {
                    self.stop_slot(index);
                }
            }
            if rebalance.change == Change::Lost {
                self.offsets.forget(&partitions);
            }
            self.question = Some(Question::Unassign(partitions.clone()));
            out.push(match rebalance.change {
                Change::Lost => Taken::Lost(partitions),
                _ => Taken::Revoked(partitions),
            });
        }
        // KIP-848 moves the member epoch without a rebalance event. It may be read again only here:
        // on the consuming thread, after a poll that served no event, while nothing is lost.
        if self.spec.protocol == GroupProtocol::Consumer
            && self.question.is_none()
            && !self.raw.assignment_lost()
        {
            let now = self.raw.membership();
            if now.generation > 0 {
                self.membership = now;
            }
        }
    }

    /// Copies pending messages into batches until the byte limit is reached.
    fn copy_pending(&mut self, out: &mut Vec<Taken>) -> Result<(), SourceError> {
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
                        // assigned at a provisional offset, and its start will seek.
                        if let Some(index) = self.slot(id).filter(|&index| self.slots[index].is_running()) {
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
                    if epoch != slot.epoch {
                        slot.epoch = epoch;
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

    fn find_slot(&self, message: &Message) -> Option<usize> {
        let id = self.input_partition(&message.topic(), message.partition())?;
        self.slot(id)
    }

    /// Sorts an event that came in the place of a record.
    fn error_event(&self, message: &Message) -> Event {
        use Code as C;
        let Some(error) = message.error() else { return Event::Nothing };
        if let Some(fatal) = self.raw.client().fatal() {
            return Event::Client(SourceError::Fatal(fatal.to_string()));
        }
        let topic = message.topic();
        // What concerns a topic as a whole comes without an offset, and with partition 0.
        let whole_topic = message.offset() < 0
            && [
                C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
                C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
                C::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
            ]
            .iter()
            .any(|&code| error.is(code));
        if !topic.is_empty() && !whole_topic {
            return match self.input_partition(&topic, message.partition()) {
                Some(id) => Event::Partition(id, self.refusal(id, &error)),
                None => Event::Nothing,
            };
        }
        // Told again by what follows: a lost assignment, or the reconnection.
        let passing = [
            C::RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED,
            C::RD_KAFKA_RESP_ERR__PARTITION_EOF,
            C::RD_KAFKA_RESP_ERR__TRANSPORT,
            C::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
            C::RD_KAFKA_RESP_ERR__RESOLVE,
        ];
        if passing.iter().any(|&code| error.is(code)) {
            tracing::warn!(group = %self.spec.group, %error, "consumer");
            return Event::Nothing;
        }
        Event::Client(source_error(if topic.is_empty() { &self.spec.group } else { &topic }, &error))
    }

    /// Why a partition cannot be read on, and what to do where only a person can tell.
    fn refusal(&self, id: InputPartition, error: &KafkaError) -> String {
        let out_of_range =
            [Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE];
        let next = self.slot(id).map(|index| self.slots[index].next);
        let Some(next) = next.filter(|_| out_of_range.iter().any(|&code| error.is(code))) else {
            return error.to_string();
        };
        let (topic, partition, group) = (self.topic(id), id.partition, &self.spec.group);
        format!(
            "{topic}/{partition} does not hold offset {next}, which is next: records have been deleted before they were read, by \
             retention or by kafka-delete-records, or the brokers have lost the end of the log (an unclean election), whatever was \
             written in its place; delete the deployment and deploy it again to begin anew, or, if it keeps no state, go on without \
             them: stop its nodes and run kafka-consumer-groups --group {group} --topic {topic}:{partition} --reset-offsets \
             --to-earliest --execute. Kafka's client says: {error}"
        )
    }

    /// Hears the answer to the last request and sends what has come since.
    fn send_offsets(&mut self) {
        if self.offsets.is_idle() {
            return;
        }
        if let Some(answer) = self.raw.answer(Duration::ZERO) {
            self.heard(answer);
        }
        let Some(due) = self.offsets.take_due(Instant::now()) else { return };
        let mut list = Partitions::with_capacity(due.len());
        for row in due {
            let (topic, offset) = (self.topic(row.partition), row.offset.0 as i64);
            list.add(topic, row.partition.partition, offset, &row.metadata);
            list.set_leader_epoch(self.spec.epochs.before(topic, row.partition.partition, offset));
        }
        if let Err(error) = self.raw.commit(&list) {
            self.heard(Err(error));
        }
    }

    fn heard(&mut self, answer: Result<(), KafkaError>) {
        self.offsets.answered(answer.is_ok(), Instant::now());
        if let Err(error) = answer {
            // An old generation is no defect: the event that explains it is on its way.
            tracing::warn!(group = %self.spec.group, %error, "offsets are not committed yet");
        }
    }

    /// Before partitions go: waits a moment for the offsets that are on their way. What is not
    /// acknowledged is read again by the next owner, which `at_least_once` allows.
    fn settle_offsets(&mut self) {
        let deadline = Instant::now() + OFFSETS_WAIT;
        loop {
            self.send_offsets();
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.offsets.is_out() || left.is_zero() {
                return;
            }
            match self.raw.answer(left) {
                Some(answer) => self.heard(answer),
                None => return,
            }
        }
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

    fn is_unanswered(&self, what: &str) -> Result<(), SourceError> {
        match self.question {
            None => Ok(()),
            Some(_) => Err(SourceError::Unavailable(format!("{what}: a rebalance waits for its answer"))),
        }
    }
}

/// How long a member that is to be evicted may take to be let in.
const EVICT_WAIT: Duration = Duration::from_secs(60);
/// It is asked this often whether anybody still wants that.
const EVICT_LOOK: Duration = Duration::from_millis(200);

/// Takes a static member out of its group whose process is gone: joins in its name, and leaves. Its
/// partitions would otherwise wait for its session to end. Ends early once `given_up` is true.
pub fn evict(config: &KafkaConfig, spec: ConsumerSpec, given_up: &AtomicBool) -> Result<(), SourceError> {
    let mut consumer = Consumer::new(config, spec)?;
    let deadline = Instant::now() + EVICT_WAIT;
    while !consumer.await_membership(EVICT_LOOK)? {
        if given_up.load(Ordering::Relaxed) || Instant::now() >= deadline {
            return Err(SourceError::Unavailable("a member that is no more could not be evicted".to_owned()));
        }
    }
    consumer.leave();
    Ok(())
}

enum Event {
    /// This partition cannot be served.
    Partition(InputPartition, String),
    /// The consumer as a whole has a problem.
    Client(SourceError),
    Nothing,
}

impl Source for Consumer {
    /// As the port says; what was appended to `out` counts even when the call fails. A partition
    /// that comes out as [`Taken::Failed`] stays stopped until it is started again.
    fn take(&mut self, wait: Duration, out: &mut Vec<Taken>) -> Result<(), SourceError> {
        let deadline = Instant::now() + wait;
        loop {
            if !self.raw.has_pending() {
                self.raw.fill_wait(self.spec.batch_records, deadline);
            }
            if self.raw.client().shared().panicked() {
                return Err(SourceError::Fatal("a callback of the consumer panicked".to_owned()));
            }
            self.serve_rebalances(out);
            self.send_offsets();
            self.copy_pending(out)?;
            // Everything taken may have been outdated; only the deadline ends an empty wait.
            if !out.is_empty() || Instant::now() >= deadline {
                return Ok(());
            }
        }
    }

    fn start(&mut self, partition: InputPartition, at: Offset) -> Result<(), SourceError> {
        let Some(index) = self.slot(partition) else {
            return Err(SourceError::Unavailable(format!("{partition:?} is not assigned")));
        };
        self.is_unanswered("cannot start a partition")?;
        self.stop_slot(index);
        let list = self.list([(partition, at.0 as i64)]);
        let told = |error: KafkaError| source_error("cannot start a partition", &error);
        match self.raw.seek(&list, SEEK_WAIT) {
            Ok(()) => {}
            Err(error)
                if [
                    Code::RD_KAFKA_RESP_ERR__STATE,
                    Code::RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS,
                    Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION,
                ]
                .iter()
                .any(|&code| error.is(code)) =>
            {
                self.assign_again(partition, at).map_err(told)?;
            }
            Err(error) => return Err(told(error)),
        }
        self.slots[index].run(at.0 as i64);
        self.raw.resume(&list).map_err(told)
    }

    fn stop(&mut self, partition: InputPartition) -> Result<(), SourceError> {
        let Some(index) = self.slot(partition) else { return Ok(()) };
        self.stop_slot(index);
        let list = self.list([(partition, 0)]);
        self.raw.pause(&list).map_err(|error| source_error("cannot stop a partition", &error))
    }

    /// librdkafka's application position, which transaction markers move as well as records do:
    /// its fetcher queues a control op per marker, and taking that op sets the position behind it
    /// (`rd_kafka_q_serve_rkmessages`). Aborted records count through the marker that follows them.
    fn position(&self, partition: InputPartition) -> Option<Offset> {
        let slot = &self.slots[self.slot(partition)?];
        let topic = self.topic(partition);
        // An error event stopped the slot; a pending message lies below librdkafka's position.
        if !slot.is_running() || self.raw.has_pending_of(topic, partition.partition) {
            return None;
        }
        let (position, epoch) = self.raw.position(topic, partition.partition)?;
        if position < slot.next {
            return None;
        }
        if epoch != slot.epoch {
            self.spec.epochs.saw(topic, partition.partition, position - 1, epoch);
        }
        Some(Offset(position as u64))
    }
}

impl Group for Consumer {
    fn membership(&self) -> Membership {
        if planted(Bug::MembershipLate) {
            return self.raw.membership();
        }
        self.membership.clone()
    }

    /// Answers [`Taken::Assigned`], as a whole: a partition of the event that is not listed is
    /// accepted too, at the log's start, and stays stopped.
    fn assign(&mut self, partitions: &[(InputPartition, Offset)]) -> Result<(), SourceError> {
        let Some(Question::Assign(asked)) = &self.question else {
            return Err(SourceError::Unavailable("no assignment waits for an answer".to_owned()));
        };
        let at = |id: InputPartition| {
            partitions.iter().find(|(listed, _)| *listed == id).map_or(0, |(_, offset)| offset.0 as i64)
        };
        let added: Vec<_> = asked.iter().map(|&id| (id, at(id))).collect();
        let list = self.list(added.iter().copied());
        let told = |error: KafkaError| source_error("cannot accept an assignment", &error);
        if self.is_cooperative() {
            self.raw.incremental_assign(&list).map_err(told)?;
        } else {
            self.raw.assign(Some(&list)).map_err(told)?;
            self.slots.clear();
            self.raw.discard_all();
        }
        self.question = None;
        for (id, next) in added {
            self.slots.push(Slot::new(id, next));
        }
        self.raw.pause(&list).map_err(told)
    }

    /// Answers [`Taken::Revoked`] and [`Taken::Lost`], as a whole. Without such an event it only
    /// stops the partitions.
    fn unassign(&mut self, partitions: &[InputPartition]) -> Result<(), SourceError> {
        let told = |error: KafkaError| source_error("cannot give partitions back", &error);
        let Some(Question::Unassign(asked)) = &self.question else {
            return partitions.iter().try_for_each(|&id| self.stop(id));
        };
        let gone: Vec<_> = asked.clone();
        self.settle_offsets();
        self.offsets.forget(&gone);
        if self.is_cooperative() {
            self.raw.incremental_unassign(&self.list(gone.iter().map(|&id| (id, 0)))).map_err(told)?;
        } else {
            self.raw.assign(None).map_err(told)?;
        }
        self.question = None;
        let eager = !self.is_cooperative();
        self.slots.retain(|slot| !eager && !gone.contains(&slot.id));
        Ok(())
    }

    fn commit(&mut self, offsets: &[TaskOffset]) {
        self.offsets.add(offsets);
        self.send_offsets();
    }
}

impl Drop for Consumer {
    /// Closes. A static member does not tell the group, which keeps its partitions for it; a
    /// dynamic one leaves. Closing properly, rather than just destroying the handle, matters even
    /// to a static member: librdkafka 2.12 never ends a handle whose assignment was not answered.
    fn drop(&mut self) {
        if !self.left {
            self.settle_offsets();
            self.settle_question();
            self.raw.close(false);
        }
    }
}
