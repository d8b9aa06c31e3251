//! What runs, who leads it, and what has arrived: shared by the worker and the threads that fetch for it. Locked a few times
//! for each fetch, never for a record.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::chunk::Damage;
use super::{Arrival, Chunk, Fetching, Wake, What, broker, leaders};
use crate::kafka::wire::{Access, Address, ConnectionError};
use crate::record::InputPartition;

/// Between two looks for the leader of one partition, and between two fetches of one that its broker did not serve: doubled
/// from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a fetch may wait at a broker while a partition of its is left out because it is full.
const FULL_WAIT: Duration = Duration::from_millis(10);

/// One run of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct Run(u64);

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::kafka) enum Refusal {
    /// The log does not hold the offset, or its end was lost and written again.
    #[error("{0}")]
    OutOfRange(String),
    /// A batch cannot be read.
    #[error("{0}")]
    Damaged(String),
    /// Anything else that does not pass by itself, such as a missing permission.
    #[error("{0}")]
    Other(String),
}

impl Refusal {
    pub fn damaged(damage: &Damage) -> Refusal {
        Refusal::Damaged(format!("{}, at offset {}", damage.error, damage.offset))
    }
}

/// What to fetch of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub partition: InputPartition,
    pub run: Run,
    pub next: i64,
    /// Of the record before `next`; -1 = not known.
    pub epoch: i32,
    /// Of the leader, as the cluster's metadata say.
    pub leader_epoch: i32,
}

/// What a broker is asked next.
pub(super) struct Plan {
    pub wanted: Vec<Wanted>,
    /// How long it may keep the request while there is nothing to say.
    pub wait: Duration,
}

/// What came back of one partition.
pub(super) enum Answer {
    /// Nothing new.
    Nothing,
    Records {
        chunk: Chunk,
        refusal: Option<Refusal>,
    },
    Refused(Refusal),
    /// Ask again in a while: this broker, or whoever leads it by then.
    Again {
        leads: bool,
    },
}

/// Who leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leader {
    pub broker: i32,
    pub epoch: i32,
}

struct Partition {
    run: Run,
    next: i64,
    epoch: i32,
    /// Arrived and not taken.
    queued: usize,
    /// Not fetched before that, and how long the next such pause is.
    not_before: Option<Instant>,
    pause: Duration,
}

/// A broker whose thread runs.
struct Broker {
    /// What ends the wait for an answer; none while it connects.
    socket: Option<TcpStream>,
    /// A fetch is out.
    waits: bool,
    /// The wait was ended, by [`Shared::begin`].
    is_interrupted: bool,
}

#[derive(Default)]
struct State {
    runs: u64,
    partitions: HashMap<InputPartition, Partition>,
    /// Outlives runs, until a broker says otherwise.
    leaders: HashMap<InputPartition, Leader>,
    addresses: HashMap<i32, Address>,
    brokers: HashMap<i32, Broker>,
    /// Brokers that could not be reached: not before when, and the pause after that.
    troubled: HashMap<i32, (Instant, Duration)>,
    arrived: VecDeque<Arrival>,
    /// Bytes that arrived and were not taken, of all partitions.
    queued: usize,
    is_finding: bool,
    has_ended: bool,
    has_panicked: bool,
}

pub(super) struct Shared {
    pub access: Access,
    pub fetching: Fetching,
    pub topics: Vec<String>,
    wake: Wake,
    state: Mutex<State>,
    /// Something has changed that a thread may wait for.
    changed: Condvar,
}

impl Shared {
    pub fn new(access: Access, fetching: Fetching, topics: Vec<String>, wake: Wake) -> Arc<Shared> {
        Arc::new(Shared { access, fetching, topics, wake, state: Mutex::default(), changed: Condvar::new() })
    }

    /// No panic leaves the state half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // By the worker.

    pub fn start(&self, partition: InputPartition, next: i64, epoch: i32) -> Run {
        let mut state = self.state();
        state.runs += 1;
        let run = Run(state.runs);
        let began = Partition { run, next, epoch, queued: 0, not_before: None, pause: PAUSE.0 };
        state.partitions.insert(partition, began);
        run
    }

    pub fn stop(&self, partition: InputPartition) {
        let mut state = self.state();
        state.partitions.remove(&partition);
        let State { arrived, queued, .. } = &mut *state;
        arrived.retain(|arrival| {
            let keeps = arrival.partition != partition;
            *queued -= if keeps { 0 } else { arrival.bytes };
            keeps
        });
        drop(state);
        self.changed.notify_all();
    }

    /// Has these fetched at once: what waits at a broker without them is called back, because it may wait for long.
    pub fn begin(self: &Arc<Self>, started: &[InputPartition]) {
        let mut state = self.state();
        let State { leaders, brokers, .. } = &mut *state;
        let leading: BTreeSet<i32> =
            started.iter().filter_map(|id| leaders.get(id)).map(|l| l.broker).collect();
        for id in leading {
            if let Some(broker) = brokers.get_mut(&id).filter(|broker| broker.waits)
                && let Some(socket) = &broker.socket
            {
                broker.is_interrupted = true;
                // Closed already: then the wait has ended as well.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        self.serve(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    pub fn has_arrived(&self) -> bool {
        let state = self.state();
        !state.arrived.is_empty() || state.has_panicked
    }

    /// True when a thread that fetches panicked: what it should have brought is missing.
    pub fn has_panicked(&self) -> bool {
        self.state().has_panicked
    }

    pub fn arrived(&self) -> VecDeque<Arrival> {
        std::mem::take(&mut self.state().arrived)
    }

    /// So many bytes of a partition were taken, or dropped.
    pub fn taken(&self, partition: InputPartition, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state();
        state.queued -= bytes;
        if let Some(partition) = state.partitions.get_mut(&partition) {
            // Of an earlier run, if it is more.
            partition.queued = partition.queued.saturating_sub(bytes);
        }
        drop(state);
        self.changed.notify_all();
    }

    pub fn end(&self) {
        let mut state = self.state();
        state.has_ended = true;
        state.partitions.clear();
        state.brokers.values().filter_map(|broker| broker.socket.as_ref()).for_each(|socket| {
            let _ = socket.shutdown(Shutdown::Both);
        });
        drop(state);
        self.changed.notify_all();
    }

    // By a broker's thread.

    /// Waits until there is something to fetch from a broker; `None` = it leads nothing that runs, and its thread ends.
    pub fn plan(&self, broker: i32) -> Option<Plan> {
        let partition_bytes = usize::try_from(self.fetching.partition_bytes).unwrap_or(0);
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let mut plan = Plan { wanted: Vec::new(), wait: self.fetching.wait_max };
            let (mut leads, mut until) = (false, None::<Instant>);
            for (&id, partition) in &state.partitions {
                let Some(leader) = state.leaders.get(&id).filter(|leader| leader.broker == broker) else {
                    continue;
                };
                leads = true;
                if let Some(at) = partition.not_before.filter(|at| *at > now) {
                    until = Some(until.map_or(at, |until| until.min(at)));
                } else if partition.queued >= partition_bytes || state.queued >= self.fetching.queue_bytes {
                    plan.wait = plan.wait.min(FULL_WAIT);
                } else {
                    plan.wanted.push(Wanted {
                        partition: id,
                        run: partition.run,
                        next: partition.next,
                        epoch: partition.epoch,
                        leader_epoch: leader.epoch,
                    });
                }
            }
            if state.has_ended || !leads {
                state.brokers.remove(&broker);
                return None;
            }
            if !plan.wanted.is_empty() {
                if let Some(until) = until {
                    plan.wait = plan.wait.min(until - now);
                }
                if let Some(broker) = state.brokers.get_mut(&broker) {
                    broker.waits = true;
                }
                return Some(plan);
            }
            state = self.wait(state, until);
        }
    }

    /// The broker is reached; `socket` ends a wait for its answer.
    pub fn connected(&self, broker: i32, socket: TcpStream) {
        let mut state = self.state();
        state.troubled.remove(&broker);
        if let Some(broker) = state.brokers.get_mut(&broker) {
            broker.socket = Some(socket);
        }
    }

    /// The wait of a broker's thread has ended; true if it was made to.
    pub fn was_interrupted(&self, broker: i32) -> bool {
        let mut state = self.state();
        let Some(broker) = state.brokers.get_mut(&broker) else { return false };
        broker.waits = false;
        std::mem::take(&mut broker.is_interrupted)
    }

    /// Keeps what came back, and says so.
    pub fn answered(self: &Arc<Self>, broker: i32, answers: Vec<(Wanted, Answer)>) {
        let mut state = self.state();
        if let Some(broker) = state.brokers.get_mut(&broker) {
            broker.waits = false;
        }
        let before = state.arrived.len();
        for (asked, answer) in answers {
            state.keep(&asked, answer);
        }
        let has_more = state.arrived.len() > before;
        self.serve(&mut state);
        drop(state);
        if has_more {
            (self.wake)();
        }
    }

    /// A broker's thread ends, because it cannot be reached or makes no sense: what it led is looked for again.
    pub fn lost(self: &Arc<Self>, broker: i32, error: &ConnectionError) {
        let mut state = self.state();
        state.brokers.remove(&broker);
        if state.has_ended {
            return;
        }
        tracing::warn!(broker, %error, "records cannot be fetched; trying again");
        let pause = state.troubled.get(&broker).map_or(PAUSE.0, |(_, pause)| (*pause * 2).min(PAUSE.1));
        state.troubled.insert(broker, (Instant::now() + pause, pause));
        state.leaders.retain(|_, leader| leader.broker != broker);
        self.serve(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    // By the thread that looks for leaders.

    /// Topics of partitions whose leader is not known; `None` = there are none, and the thread ends.
    pub fn leaderless(&self) -> Option<BTreeSet<u16>> {
        let mut state = self.state();
        let topics = state.leaderless();
        if state.has_ended || topics.is_empty() {
            state.is_finding = false;
            return None;
        }
        Some(topics)
    }

    /// Brokers' addresses that are known, those in trouble last.
    pub fn addresses(&self) -> Vec<Address> {
        let state = self.state();
        let mut known: Vec<_> = state.addresses.iter().collect();
        known.sort_by_key(|(id, _)| (state.troubled.contains_key(id), **id));
        known.into_iter().map(|(_, address)| address.clone()).collect()
    }

    /// The cluster has said who its brokers are and who leads what.
    pub fn found(self: &Arc<Self>, addresses: HashMap<i32, Address>, leaders: Vec<(InputPartition, Leader)>) {
        let mut state = self.state();
        let now = Instant::now();
        state.addresses = addresses;
        for (partition, leader) in leaders {
            let is_troubled = state.troubled.get(&leader.broker).is_some_and(|(until, _)| *until > now);
            if !is_troubled && state.addresses.contains_key(&leader.broker) {
                state.leaders.entry(partition).or_insert(leader);
            }
        }
        self.serve(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for that long, or until there is no more need.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state();
        while !state.has_ended && Instant::now() < until && !state.leaderless().is_empty() {
            state = self.wait(state, Some(until));
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        let Some(until) = until else {
            return self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let left = until.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }

    /// A thread that cannot be made is tried again with the next change.
    fn spawn(self: &Arc<Self>, name: String, work: impl FnOnce() + Send + 'static) -> bool {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                shared.state().has_panicked = true;
                (shared.wake)();
            }
        });
        if let Err(error) = &thread {
            tracing::warn!(%error, "a thread that fetches records cannot be made");
        }
        thread.is_ok()
    }

    /// Begins the threads that are needed and do not run.
    fn serve(self: &Arc<Self>, state: &mut State) {
        if state.has_ended {
            return;
        }
        let State { partitions, leaders, addresses, brokers, .. } = &mut *state;
        // Of a broker that is no more, as far as the cluster says, nobody would fetch.
        leaders.retain(|_, leader| {
            brokers.contains_key(&leader.broker) || addresses.contains_key(&leader.broker)
        });
        let leading: HashSet<i32> =
            partitions.keys().filter_map(|id| leaders.get(id)).map(|leader| leader.broker).collect();
        for id in leading {
            if let (false, Some(address)) = (brokers.contains_key(&id), addresses.get(&id).cloned()) {
                let shared = Arc::clone(self);
                if self.spawn(format!("fetch-{id}"), move || broker::run(&shared, id, &address)) {
                    brokers.insert(id, Broker { socket: None, waits: false, is_interrupted: false });
                }
            }
        }
        if !state.is_finding && !state.leaderless().is_empty() {
            let shared = Arc::clone(self);
            state.is_finding = self.spawn("fetch-leaders".to_owned(), move || leaders::run(&shared));
        }
    }
}

impl State {
    fn leaderless(&self) -> BTreeSet<u16> {
        self.partitions.keys().filter(|id| !self.leaders.contains_key(id)).map(|id| id.input).collect()
    }

    fn keep(&mut self, asked: &Wanted, answer: Answer) {
        let id = asked.partition;
        let Some(partition) = self.partitions.get_mut(&id).filter(|partition| partition.run == asked.run)
        else {
            return;
        };
        let refusal = match answer {
            Answer::Again { leads } => {
                partition.not_before = Some(Instant::now() + partition.pause);
                partition.pause = (partition.pause * 2).min(PAUSE.1);
                if !leads {
                    self.leaders.remove(&id);
                }
                return;
            }
            Answer::Nothing => None,
            Answer::Refused(refusal) => Some(refusal),
            Answer::Records { chunk, refusal } => {
                if chunk.next > partition.next {
                    let bytes = chunk.bytes();
                    partition.next = chunk.next;
                    partition.epoch = chunk.leader_epoch;
                    partition.queued += bytes;
                    self.queued += bytes;
                    self.arrived.push_back(Arrival {
                        partition: id,
                        run: asked.run,
                        bytes,
                        what: What::Chunk(chunk),
                    });
                }
                refusal
            }
        };
        partition.pause = PAUSE.0;
        partition.not_before = None;
        if let Some(refusal) = refusal {
            self.partitions.remove(&id);
            self.arrived.push_back(Arrival {
                partition: id,
                run: asked.run,
                bytes: 0,
                what: What::Failed(refusal),
            });
        }
    }
}
