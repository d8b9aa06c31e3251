//! The records of partitions, fetched by the node itself: whole record batches, which a worker takes apart into columns
//! when it needs them. librdkafka makes a message of every record, several times the cost of all else that a record needs
//! (docs/performance.md); it keeps the group, and never hears of these partitions but that they are paused. A restore reads
//! its logs in the same way (`recovery::fetched`); what is called a worker here is whoever takes.
//!
//! ```text
//!   worker --start, stop--> State <--leaders-- a thread that looks for leaders, while one is missing
//!      ^                      |
//!      |                      v
//!      +--chunks, failures-- one thread for each broker that leads something: fetch, check, unpack
//! ```
//!
//! Invariants:
//! - A partition runs from a start to its stop or failure. Everything that is fetched belongs to one run, and is dropped if
//!   that is not the present one.
//! - Of a run every offset is asked for once, in order: the next fetch begins where the last chunk ended. An answer counts
//!   only to what is still asked, and only from whoever still leads.
//! - Nothing is read of a topic that was made again, wherever brokers tell topics of one name apart.
//! - What was fetched and not taken is bounded: a partition is asked for again when less than one fetch of it waits, and
//!   while all that waits is less than the queue may hold. An answer has what there is room for, one part of a partition at
//!   least, and unpacks to a few times of that; less of it after one that did not come in time.
//! - Threads wait only for their broker, with a limit, or to be told; none is needed where nothing runs.
//! - A broker that is late, silent, or wrong about who leads what holds up no partition that another one leads.
//!
//! | file | what it does |
//! |---|---|
//! | `state` | what runs, what brokers are asked, what has arrived |
//! | `cluster` | who leads what, and where they are |
//! | `shared` | that behind a lock, and the threads |
//! | `broker` | the thread of one broker: its fetches and their answers |
//! | `leaders` | the thread that finds out who leads what |
//! | `chunk` | record batches: checked, unpacked, and read into columns |

mod broker;
mod chunk;
mod cluster;
mod leaders;
mod shared;
#[cfg(test)]
pub(super) mod stage;
mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use chunk::{Chunk, Room};
use shared::Shared;
pub(super) use state::{Refusal, Run, Silence};
use uuid::Uuid;

use super::config::{Fetching, KafkaConfig};
use super::wire::Access;
use crate::record::InputPartition;

/// How often it is looked whether a broker is late, or a thread missing.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// What goes on is said this often.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Wakes whoever takes: called on a fetching thread, must not wait.
pub(super) type Wake = Box<dyn Fn() + Send + Sync>;

/// What has come of one partition.
pub(super) struct Arrival {
    pub partition: InputPartition,
    pub run: Run,
    /// What it holds of the queue.
    bytes: usize,
    pub what: What,
}

pub(super) enum What {
    Chunk(Chunk),
    /// The run has ended here: the broker, or what it sent, cannot be read on.
    Failed(Refusal),
}

/// The fetching of one consumer. Ends with it; its threads follow as soon as their brokers answer.
pub(super) struct Fetcher {
    shared: Arc<Shared>,
    /// Arrived, and not taken yet.
    pending: VecDeque<Arrival>,
    /// Started since the last [`Fetcher::begin_started`].
    started: Vec<InputPartition>,
    tended: Instant,
}

/// Keeps what goes on for long from being said each time.
#[derive(Debug, Default)]
struct Telling(Option<Instant>);

impl Fetcher {
    /// `topics` in the order of [`InputPartition::input`], and their `ids`, as far as they are known: nil, or none at all, is
    /// any. Connects when something starts. `fetching` is [`KafkaConfig::fetching`] or [`KafkaConfig::restoring`].
    pub fn new(
        config: &KafkaConfig,
        fetching: Fetching,
        topics: Vec<String>,
        ids: &[Uuid],
        wake: Wake,
    ) -> Result<Fetcher, String> {
        let access = Access::new(config).map_err(|error| error.to_string())?;
        let shared = Shared::new(access, fetching, topics, ids, wake);
        Ok(Fetcher { shared, pending: VecDeque::new(), started: Vec::new(), tended: Instant::now() })
    }

    /// Begins a run at `next`, whose record before is of `epoch` (-1 = not known: a log that was cut off and has grown past
    /// `next` again is not noticed then). Fetching begins with [`Fetcher::begin_started`].
    pub fn start(&mut self, partition: InputPartition, next: i64, epoch: i32) -> Run {
        self.started.push(partition);
        self.shared.start(partition, next, epoch)
    }

    pub fn stop(&mut self, partition: InputPartition) {
        self.shared.stop(partition);
        let mut freed = 0;
        self.pending.retain(|arrival| {
            let keeps = arrival.partition != partition;
            freed += if keeps { 0 } else { arrival.bytes };
            keeps
        });
        self.shared.taken(partition, freed);
    }

    /// Has what was started fetched now, all of it in one request to each broker.
    pub fn begin_started(&mut self) {
        if !self.started.is_empty() {
            self.shared.begin(&std::mem::take(&mut self.started));
        }
    }

    /// To be called again and again while something runs: begins what was started, and looks after the threads.
    pub fn tend(&mut self) {
        self.begin_started();
        if self.tended.elapsed() >= TEND_EVERY {
            self.tended = Instant::now();
            self.shared.tend();
        }
    }

    pub fn has_arrived(&self) -> bool {
        !self.pending.is_empty() || self.shared.has_arrived()
    }

    /// True when a thread of it panicked: it is of no use any more.
    pub fn has_panicked(&self) -> bool {
        self.shared.has_panicked()
    }

    /// What keeps records of some partition from coming, if only a person can mend that: certificates, a sign-in, protocol
    /// versions. It is tried again all the same.
    pub fn obstacle(&self) -> Option<String> {
        self.shared.obstacle()
    }

    /// Why nothing comes of a partition.
    pub fn silence(&self, partition: InputPartition) -> Silence {
        self.shared.silence(partition)
    }

    /// The oldest arrival that was not popped.
    pub fn front(&mut self) -> Option<&mut Arrival> {
        if self.pending.is_empty() {
            self.pending = self.shared.arrived();
        }
        self.pending.front_mut()
    }

    /// Takes what [`Fetcher::front`] has shown. Its room is free at once: what comes next is fetched while this is used.
    pub fn pop(&mut self) -> Option<Arrival> {
        let arrival = self.pending.pop_front()?;
        self.shared.taken(arrival.partition, arrival.bytes);
        Some(arrival)
    }
}

impl Telling {
    /// True now and then.
    fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.shared.end();
    }
}
