//! What runs, who leads it, and what has arrived: bookkeeping, without a lock, a thread or a clock of its own. What must not
//! happen twice, or in another order, is decided here.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::chunk::Damage;
use super::cluster::{Cluster, LOOK_EVERY, Leader};
use super::{Arrival, Chunk, Fetching, Telling, What};
use crate::kafka::wire::Address;
use crate::record::InputPartition;

/// Between two fetches of a partition that its broker did not serve: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a fetch may wait at a broker while a partition of its is left out because it is full, or after the one before
/// was called back.
const SHORT_WAIT: Duration = Duration::from_millis(10);
/// Whether a full partition has room is looked at each time that it has been full a sixteenth longer, and twice a second:
/// whoever takes is kept waiting for little of the time that a chunk takes, and whoever does not costs few fetches of the
/// others.
const ROOM_LOOKS: u32 = 16;
const ROOM_LOOK_MAX: Duration = Duration::from_millis(500);
/// A broker whose answer is overdue by as much may lead nothing any more, and so is asked after; again after the same time.
const LATE: Duration = Duration::from_secs(5);
/// What an answer is to have is halved so often, to a sixteenth, once one was not there when its time was up: the way is
/// slow, or shared by many, and what is asked for again would be late again, for ever. A restore has waited for most of its
/// patience by then. Doubled each time that one comes soon.
const HALVINGS: u32 = 4;
const HALVINGS_MAX: u32 = 2 * HALVINGS;
const ANSWER_BYTES_MIN: i32 = 64 << 10;

/// One run of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// Which topic of that name; nil = the cluster does not say.
    pub topic: Uuid,
    /// When it brought records last: a count of all such answers.
    brought: u64,
}

/// What a broker is asked next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// First what has waited longest for records: a broker fills its answer in the order of the request, and promises a
    /// whole batch only of the first partition that has one.
    pub wanted: Vec<Wanted>,
    /// How long it may keep the request while there is nothing to say.
    pub wait: Duration,
    /// The answer may have; a larger first batch comes whole.
    pub bytes: i32,
}

/// What the thread of a broker does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Fetch(Plan),
    /// Until something changes, or until then.
    Wait(Option<Instant>),
    /// The broker leads nothing that runs.
    End,
}

/// What came back of one partition.
pub(super) enum Answer {
    /// Nothing new. There the log ends, and there what is decided of it.
    Nothing {
        end: i64,
        stable: i64,
    },
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

/// Why nothing comes of a partition, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Silence {
    /// Nobody who leads it is known.
    Unled,
    /// Who leads it has said nothing since records came, or owes an answer.
    Unanswered,
    /// Who leads it refuses, with an error that means nothing here.
    Refused,
    /// Who leads it has nothing: there the log ends, and there what is decided of it.
    Empty { end: i64, stable: i64 },
}

struct Partition {
    run: Run,
    next: i64,
    epoch: i32,
    /// Arrived and not taken.
    queued: usize,
    /// Left out of fetches since then, for want of room.
    full_since: Option<Instant>,
    /// As of [`Wanted`].
    brought: u64,
    /// Not fetched before that, and how long the next such pause is.
    not_before: Option<Instant>,
    pause: Duration,
    /// What keeps its records from coming, if only a person can mend that.
    obstacle: Option<String>,
    /// By the last answer.
    silence: Silence,
}

/// A broker whose thread runs.
struct Broker {
    /// Where it is reached, by the cluster's last word.
    address: Address,
    /// What ends the wait for an answer; none while it connects.
    socket: Option<TcpStream>,
    fetch: Option<Fetch>,
    /// Its connection was closed from here, to end a wait or to have another one.
    is_interrupted: bool,
    /// Of the last fetch: it was called back.
    was_called_back: bool,
}

/// A fetch that is out.
struct Fetch {
    /// What it is for.
    asked: HashSet<Run>,
    late_at: Instant,
    /// It is answered before another one is called back: whoever starts partitions again and again would otherwise have
    /// none answered.
    must_be_answered: bool,
}

#[derive(Default)]
pub(super) struct State {
    runs: u64,
    partitions: HashMap<InputPartition, Partition>,
    cluster: Cluster,
    brokers: HashMap<i32, Broker>,
    arrived: VecDeque<Arrival>,
    /// Answers with records.
    brought: u64,
    /// Memory of what arrived and was not taken, of all partitions.
    queued: usize,
    /// So often what an answer is to have is halved.
    halvings: u32,
    has_ended: bool,
    /// That there is no thread to be had.
    pub shortage: Telling,
    /// That a broker refuses, and says nothing that is known here.
    pub refusals: Telling,
}

impl State {
    /// Of topics with these ids, in the order of [`InputPartition::input`]; nil = not known.
    pub fn of(topics: &[Uuid]) -> State {
        State { cluster: Cluster::of(topics), ..State::default() }
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    // By the worker.

    pub fn start(&mut self, partition: InputPartition, next: i64, epoch: i32) -> Run {
        self.runs += 1;
        let run = Run(self.runs);
        let began = Partition {
            run,
            next,
            epoch,
            queued: 0,
            full_since: None,
            brought: 0,
            not_before: None,
            pause: PAUSE.0,
            obstacle: None,
            silence: Silence::Unanswered,
        };
        self.partitions.insert(partition, began);
        run
    }

    pub fn stop(&mut self, partition: InputPartition) {
        self.partitions.remove(&partition);
        let State { arrived, queued, .. } = self;
        arrived.retain(|arrival| {
            let keeps = arrival.partition != partition;
            *queued -= if keeps { 0 } else { arrival.bytes };
            keeps
        });
    }

    /// Ends the waits of brokers that lead something of this, and were asked for other things.
    pub fn call_back(&mut self, wanted: &[InputPartition]) {
        let State { partitions, cluster, brokers, .. } = self;
        for id in wanted {
            let (Some(partition), Some(leader)) = (partitions.get(id), cluster.leader(id)) else { continue };
            let Some(broker) = brokers.get_mut(&leader.broker) else { continue };
            let waits_without =
                |fetch: &Fetch| !fetch.asked.contains(&partition.run) && !fetch.must_be_answered;
            if !broker.is_interrupted && broker.fetch.as_ref().is_some_and(waits_without) {
                broker.was_called_back = true;
                broker.interrupt();
            }
        }
    }

    pub fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    pub fn take_arrived(&mut self) -> VecDeque<Arrival> {
        std::mem::take(&mut self.arrived)
    }

    /// So many bytes of a partition were taken, or dropped.
    pub fn taken(&mut self, partition: InputPartition, bytes: usize) {
        self.queued -= bytes;
        if let Some(partition) = self.partitions.get_mut(&partition) {
            // Of an earlier run, if it is more.
            partition.queued = partition.queued.saturating_sub(bytes);
        }
    }

    /// What keeps records of some partition from coming, if only a person can mend that.
    pub fn obstacle(&self) -> Option<String> {
        let met =
            self.partitions.iter().filter_map(|(id, partition)| Some((id, partition.obstacle.as_ref()?)));
        met.min_by_key(|(id, _)| **id).map(|(_, obstacle)| obstacle.clone())
    }

    pub fn silence(&self, id: &InputPartition, now: Instant) -> Silence {
        let Some(leader) = self.cluster.leader(id) else { return Silence::Unled };
        match (self.partitions.get(id), self.brokers.get(&leader.broker)) {
            (Some(partition), Some(broker)) if !broker.is_late(now) => partition.silence,
            _ => Silence::Unanswered,
        }
    }

    /// Nothing runs any more, and nothing will.
    pub fn end(&mut self) {
        self.has_ended = true;
        self.partitions.clear();
        // A thread that still connects keeps the state, but not what it holds.
        self.arrived.clear();
        self.brokers.values_mut().for_each(Broker::interrupt);
    }

    // By the threads of brokers.

    /// Brokers that lead something which runs, and have no thread.
    pub fn unserved(&mut self) -> Vec<(i32, Address)> {
        self.cluster.keep_leaders(|broker| self.brokers.contains_key(&broker));
        let unserved = self.leading().into_iter().filter(|id| !self.brokers.contains_key(id));
        unserved.filter_map(|id| Some((id, self.cluster.address(id)?.clone()))).collect()
    }

    /// Brokers that lead something which runs.
    fn leading(&self) -> HashSet<i32> {
        let leaders = self.partitions.keys().filter_map(|id| self.cluster.leader(id));
        leaders.map(|leader| leader.broker).collect()
    }

    /// A thread of this broker runs from now on.
    pub fn serves(&mut self, id: i32, address: Address) {
        let broker =
            Broker { address, socket: None, fetch: None, is_interrupted: false, was_called_back: false };
        self.brokers.insert(id, broker);
    }

    /// Where its thread connects, without a fetch that was out; `None` = it leads nothing that runs, and is forgotten.
    pub fn address(&mut self, broker: i32) -> Option<Address> {
        let leads =
            |id: &InputPartition| self.cluster.leader(id).is_some_and(|leader| leader.broker == broker);
        if !self.partitions.keys().any(leads) {
            self.brokers.remove(&broker);
            return None;
        }
        let broker = self.brokers.get_mut(&broker)?;
        broker.fetch = None;
        Some(broker.address.clone())
    }

    /// What its thread does next. When it ends it is forgotten.
    pub fn step(&mut self, broker: i32, fetching: &Fetching, now: Instant) -> Step {
        let partition_bytes = usize::try_from(fetching.partition_bytes).unwrap_or(0);
        let room = i32::try_from(fetching.queue_bytes.saturating_sub(self.queued)).unwrap_or(i32::MAX);
        let most = room.min(fetching.max_bytes).max(fetching.partition_bytes);
        let bytes = (most >> self.halvings).max(most.min(ANSWER_BYTES_MIN));
        let mut plan = Plan { wanted: Vec::new(), wait: fetching.wait_max, bytes };
        let (mut leads, mut until) = (false, None::<Instant>);
        for (&id, partition) in &mut self.partitions {
            let Some(leader) = self.cluster.leader(&id).filter(|leader| leader.broker == broker) else {
                continue;
            };
            leads = true;
            if let Some(at) = partition.not_before.filter(|at| *at > now) {
                until = Some(until.map_or(at, |until| until.min(at)));
            } else if partition.queued >= partition_bytes || self.queued >= fetching.queue_bytes {
                let since = *partition.full_since.get_or_insert(now);
                let look = now.saturating_duration_since(since) / ROOM_LOOKS;
                plan.wait = plan.wait.min(look.clamp(SHORT_WAIT, ROOM_LOOK_MAX));
            } else {
                partition.full_since = None;
                plan.wanted.push(Wanted {
                    partition: id,
                    run: partition.run,
                    next: partition.next,
                    epoch: partition.epoch,
                    leader_epoch: leader.epoch,
                    topic: leader.topic,
                    brought: partition.brought,
                });
            }
        }
        if !leads {
            self.brokers.remove(&broker);
            return Step::End;
        }
        if plan.wanted.is_empty() {
            return Step::Wait(until);
        }
        plan.wanted.sort_unstable_by_key(|wanted| (wanted.brought, wanted.partition));
        if let Some(until) = until {
            plan.wait = plan.wait.min(until - now);
        }
        if let Some(broker) = self.brokers.get_mut(&broker) {
            let must_be_answered = broker.was_called_back;
            if must_be_answered {
                plan.wait = plan.wait.min(SHORT_WAIT);
            }
            let asked = plan.wanted.iter().map(|wanted| wanted.run).collect();
            let late_at = now + plan.wait + LATE;
            broker.fetch = Some(Fetch { asked, late_at, must_be_answered });
        }
        Step::Fetch(plan)
    }

    /// A broker is reached at an address; `socket` ends a wait for its answer. What has changed meanwhile ends the first one.
    pub fn connected(&mut self, broker: i32, address: &Address, socket: TcpStream) {
        if let Some(broker) = self.brokers.get_mut(&broker) {
            broker.socket = Some(socket);
            broker.is_interrupted = false;
            if self.has_ended || broker.address != *address {
                broker.interrupt();
            }
        }
    }

    /// The connection of a broker's thread is of no use any more: true if it was made so from here.
    pub fn was_interrupted(&self, broker: i32) -> bool {
        self.brokers.get(&broker).is_some_and(|broker| broker.is_interrupted)
    }

    /// Keeps what came back.
    pub fn answered(&mut self, broker: i32, answers: Vec<(Wanted, Answer)>, now: Instant) {
        self.cluster.answered(broker);
        if let Some(broker) = self.brokers.get_mut(&broker) {
            // One that was called back after it had been answered: its connection is of no use, and that is all.
            broker.was_called_back = false;
            let has_records = answers.iter().any(|(_, answer)| matches!(answer, Answer::Records { .. }));
            if broker.fetch.take().is_some_and(|fetch| has_records && now < fetch.late_at) {
                self.halvings = self.halvings.saturating_sub(1);
            }
        }
        for (asked, answer) in answers {
            self.keep(broker, &asked, answer, now);
        }
    }

    /// Keeps an answer to what is still asked of whoever still leads. Another broker may be asked the same by now.
    fn keep(&mut self, broker: i32, asked: &Wanted, answer: Answer, now: Instant) {
        let id = asked.partition;
        let (Some(partition), Some(&leader)) = (self.partitions.get_mut(&id), self.cluster.leader(&id))
        else {
            return;
        };
        if (partition.run, partition.next) != (asked.run, asked.next)
            || (leader.broker, leader.epoch, leader.topic) != (broker, asked.leader_epoch, asked.topic)
        {
            return;
        }
        partition.obstacle = None;
        let answer = match answer {
            // Who has not heard of the epoch that the record before is of may not have heard either that it leads no more.
            Answer::Refused(Refusal::OutOfRange(_))
                if (0..asked.epoch).contains(&leader.epoch) && partition.pause < PAUSE.1 =>
            {
                Answer::Again { leads: false }
            }
            // All of it lies below what was asked for: asked again at once, it would say so again.
            Answer::Records { ref chunk, refusal: None } if chunk.next <= partition.next => {
                Answer::Again { leads: true }
            }
            answer => answer,
        };
        let refusal = match answer {
            Answer::Again { leads } => {
                partition.silence = if leads { Silence::Refused } else { Silence::Unanswered };
                partition.not_before = Some(now + partition.pause);
                partition.pause = (partition.pause * 2).min(PAUSE.1);
                if !leads {
                    self.cluster.forget(&id);
                }
                return;
            }
            Answer::Nothing { end, stable } => {
                partition.silence = Silence::Empty { end, stable };
                None
            }
            Answer::Refused(refusal) => Some(refusal),
            Answer::Records { chunk, refusal } => {
                partition.silence = Silence::Unanswered;
                if chunk.next > partition.next {
                    // One without records takes room as well: nobody may come for it for long.
                    let bytes = size_of::<Arrival>() + chunk.bytes();
                    self.brought += 1;
                    partition.brought = self.brought;
                    partition.next = chunk.next;
                    partition.epoch = chunk.leader_epoch;
                    partition.queued += bytes;
                    self.queued += bytes;
                    let what = What::Chunk(chunk);
                    self.arrived.push_back(Arrival { partition: id, run: asked.run, bytes, what });
                }
                refusal
            }
        };
        partition.pause = PAUSE.0;
        partition.not_before = None;
        self.cluster.served(id, leader);
        if let Some(refusal) = refusal {
            self.partitions.remove(&id);
            let what = What::Failed(refusal);
            self.arrived.push_back(Arrival { partition: id, run: asked.run, bytes: 0, what });
        }
    }

    /// This broker's time is up; what it owes may be on its way.
    pub fn out_of_time(&mut self, broker: i32) {
        if self.brokers.get(&broker).is_some_and(|broker| broker.fetch.is_some()) {
            self.halvings = (self.halvings + HALVINGS).min(HALVINGS_MAX);
        }
    }

    /// The thread of a broker ends, because it cannot be reached or makes no sense: what it led is looked for again. An
    /// `obstacle` is what only a person can mend, and is believed after a while. True if a person should hear of it.
    pub fn lost(&mut self, broker: i32, obstacle: Option<String>, now: Instant) -> bool {
        self.brokers.remove(&broker);
        let State { partitions, cluster, has_ended, .. } = self;
        let is_led = |id: &InputPartition| cluster.leader(id).is_some_and(|leader| leader.broker == broker);
        let led: Vec<_> = partitions.keys().copied().filter(is_led).collect();
        let is_told = cluster.lost(broker, obstacle.is_some(), now);
        let obstacle = obstacle.filter(|_| cluster.is_barred(broker, now));
        for id in &led {
            if let Some(partition) = partitions.get_mut(id) {
                partition.obstacle.clone_from(&obstacle);
                partition.silence = Silence::Unanswered;
            }
        }
        is_told && !*has_ended
    }

    // By the thread that looks for leaders.

    /// Nobody says who leads what, for a reason that only a person can mend.
    pub fn unanswered(&mut self, obstacle: &str) {
        let State { partitions, cluster, .. } = self;
        for (_, partition) in partitions.iter_mut().filter(|(id, _)| cluster.leader(id).is_none()) {
            partition.obstacle = Some(obstacle.to_owned());
        }
    }

    /// Topics of which the cluster is to be asked who leads what.
    pub fn sought(&self, now: Instant) -> BTreeSet<u16> {
        let leaderless = self.partitions.keys().filter(|id| self.cluster.leader(id).is_none());
        let topics: BTreeSet<u16> = leaderless.map(|id| id.input).collect();
        let is_late = self.brokers.values().any(|broker| broker.is_late(now));
        if topics.is_empty() && self.cluster.is_look_due(if is_late { LATE } else { LOOK_EVERY }, now) {
            return self.partitions.keys().map(|id| id.input).collect();
        }
        topics
    }

    /// The cluster is asked now: at these addresses, one after the other.
    pub fn look(&mut self, now: Instant) -> Vec<Address> {
        let brokers = &self.brokers;
        self.cluster.look(now, |id| brokers.get(&id).is_some_and(|broker| broker.is_late(now)))
    }

    /// The cluster has said who its brokers are and who leads what.
    pub fn found(
        &mut self,
        addresses: HashMap<i32, Address>,
        leaders: Vec<(InputPartition, Leader)>,
        now: Instant,
    ) {
        let moved = self.cluster.found(addresses, leaders, now);
        self.call_back(&moved);
        let leading = self.leading();
        for (id, broker) in &mut self.brokers {
            if let Some(address) = self.cluster.address(*id).filter(|address| **address != broker.address) {
                // It is back elsewhere. What listens at the old place may be another one.
                broker.address = address.clone();
                broker.interrupt();
            } else if broker.is_late(now) && !leading.contains(id) {
                // Its thread need not wait for an answer that may never come.
                broker.interrupt();
            }
        }
    }
}

impl Broker {
    fn is_late(&self, now: Instant) -> bool {
        self.fetch.as_ref().is_some_and(|fetch| fetch.late_at <= now)
    }

    /// Ends the wait for its answer, and makes the next one end as it begins, on a new connection.
    fn interrupt(&mut self) {
        self.is_interrupted = true;
        if let Some(socket) = &self.socket {
            // Closed already: then the wait has ended as well.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
