//! One worker's consumer: its place in the group and the batches of its partitions.
//!
//! ```text
//!  the node's own fetcher ------------ chunks ------------+
//!                                                         +-copy--> a Batch per partition --> the task
//!  librdkafka's queue --fill--> pending messages, errors -+
//!        |
//!        +-- rebalance callback --> Taken::{Assigned, Revoked, Lost} --> worker --> assign/unassign
//! ```
//!
//! The group is always librdkafka's. Records are the node's own to fetch (`kafka::fetch`), and then librdkafka's partitions
//! stay paused; or, where the configuration has what only librdkafka can do (`kafka.client`), its messages.
//!
//! Invariants:
//! - A record comes out only of a partition that was started, with an offset at or above the start
//!   and above every record that came out since. librdkafka may hand a record out twice when a
//!   rebalance pauses a partition in the middle of a batch; the second is dropped here.
//! - A rebalance event is answered once, as a whole, by `Group::assign` or `Group::unassign`.
//!   Until then librdkafka waits, with every partition paused.
//! - After an error event a partition is stopped, because librdkafka 2.12 moves its own position
//!   past the event: only a new start (a seek) makes it flow again.
//! - Offsets are ours. librdkafka stores and commits none.
//!
//! | file | what it does |
//! |---|---|
//! | `group` | the rebalances, asked and answered, and the membership |
//! | `source` | batches, and where each partition starts and stops |
//! | `messages` | librdkafka's messages into batches, and its own way to start and stop a partition |
//! | `fetched` | what the node fetched into batches |
//! | `slot` | one assigned partition and the batch that is being filled |
//! | `events` | what comes in the place of a record |
//! | `offsets` | commits outside a transaction |

mod events;
mod fetched;
mod group;
mod messages;
mod offsets;
mod slot;
mod source;

use std::collections::BTreeSet;
use std::time::Duration;

pub use group::evict;
use offsets::Offsets;
use slot::Slot;
use uuid::Uuid;

use super::config::{GroupSettings, KafkaConfig};
use super::epochs::Epochs;
use super::fetch::Fetcher;
use super::ffi::KafkaError;
use super::ffi::consumer::Consumer as Raw;
use super::ffi::partitions::Partitions;
use super::source_error;
use crate::config::node::{GroupProtocol, KafkaClient};
use crate::ports::{Membership, SourceError};
use crate::record::InputPartition;

/// How long a leaving member waits to be let in first.
const JOIN_WAIT: Duration = Duration::from_secs(5);

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
    /// Ids of those topics, as far as they are known; nil, or none at all, is any. Of another topic of the name the node
    /// fetches nothing; librdkafka does not look.
    pub topic_ids: Vec<Uuid>,
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
            topic_ids: Vec::new(),
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
    /// `None` = librdkafka fetches.
    fetcher: Option<Fetcher>,
    spec: ConsumerSpec,
    slots: Vec<Slot>,
    /// Since the last take; the next one has them fetched.
    started: BTreeSet<InputPartition>,
    membership: Membership,
    question: Option<Question>,
    offsets: Offsets,
    /// Closed already.
    left: bool,
}

impl Consumer {
    /// Joins the group. Answers come through `Source::take`.
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
        let fetcher = match config.client() {
            KafkaClient::Own => {
                let shared = raw.client().shared_with_threads();
                let wake = Box::new(move || shared.set_ready());
                let (fetching, topics) = (config.fetching(), spec.inputs.clone());
                let fetcher = Fetcher::new(config, fetching, topics, &spec.topic_ids, wake);
                Some(fetcher.map_err(SourceError::Refused)?)
            }
            KafkaClient::Librdkafka => None,
        };
        raw.subscribe(&spec.inputs).map_err(|error| source_error("cannot subscribe", &error))?;
        Ok(Consumer {
            raw,
            fetcher,
            spec,
            slots: Vec::new(),
            started: BTreeSet::new(),
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
            // By its epoch librdkafka would have an offset checked that it never reads from.
            if self.fetcher.is_none() {
                list.set_leader_epoch(self.spec.epochs.before(self.topic(id), id.partition, offset));
            }
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
        if let Some(fetcher) = &mut self.fetcher {
            fetcher.stop(id);
        }
        self.raw.discard(&self.spec.inputs[usize::from(id.input)], id.partition);
    }

    /// Forgets partitions; nothing is fetched of them any more.
    fn drop_slots(&mut self, is_gone: impl Fn(InputPartition) -> bool) {
        let fetcher = &mut self.fetcher;
        self.slots.retain(|slot| {
            let is_gone = is_gone(slot.id);
            if let (true, Some(fetcher)) = (is_gone, fetcher.as_mut()) {
                fetcher.stop(slot.id);
            }
            !is_gone
        });
    }

    fn is_unanswered(&self, what: &str) -> Result<(), SourceError> {
        match self.question {
            None => Ok(()),
            Some(_) => Err(SourceError::Unavailable(format!("{what}: a rebalance waits for its answer"))),
        }
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
