//! A model of Kafka's transaction semantics: what a node relies on, and every freedom that Kafka
//! leaves itself.
//!
//! - A transaction that is decided reaches each of its partitions, and the group's offsets, by a
//!   marker of its own, at a time of its own.
//! - A request may arrive late: after its sender gave up, and after that sender began its next
//!   transaction. Only the producer's epoch tells it from one that is in time.
//! - A new producer of the same id raises the epoch and aborts what was open; so does a time-out.
//! - Offsets within an undecided transaction are pending, and a fetch of them says so.

mod group;
mod log;

use std::collections::{BTreeMap, BTreeSet};

pub use group::{Beat, Group};
pub use log::{Log, Met, Row};

use super::random::Random;
use crate::ports::{Membership, TaskOffset};

/// Emissions whose value begins so are refused by the broker, as a record that is too large would be.
pub const TOXIC: &[u8] = b"toxic";

/// Something that a transaction's marker is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Output(i32),
    Changelog(i32),
    Inbox(i32),
    Letters(i32),
    /// The group's offsets.
    Offsets,
}

/// A producer as the broker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    pub transactional_id: String,
    pub id: i64,
    pub epoch: i16,
}

#[derive(Debug, Clone)]
pub enum Call {
    /// Makes places part of the transaction, and begins it if none is open.
    Add(Vec<Place>),
    Produce(Place, Vec<Row>),
    Offsets(Vec<TaskOffset>, Membership),
    End {
        commit: bool,
    },
}

#[derive(Debug, Clone)]
pub struct Request {
    pub from: Producer,
    pub call: Call,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A newer producer of this id exists.
    Fenced,
    /// The transaction before is still being ended: ask again.
    Concurrent,
    /// Not possible in the transaction's state.
    State,
    Generation(&'static str),
    Record,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// None open. What the last one became, if there was one.
    Ended(Option<bool>),
    Ongoing,
    /// Decided; markers are on their way.
    Preparing {
        commit: bool,
    },
}

#[derive(Debug)]
struct Transaction {
    producer: i64,
    epoch: i16,
    state: State,
    places: BTreeSet<Place>,
    began_ms: u64,
}

#[derive(Debug)]
struct Marker {
    transactional_id: String,
    place: Place,
}

#[derive(Debug, Default)]
pub struct Broker {
    pub now_ms: u64,
    /// An open transaction is aborted after this long.
    timeout_ms: u64,
    pub inputs: Vec<Log>,
    pub outputs: Vec<Log>,
    pub changelogs: Vec<Log>,
    pub inboxes: Vec<Log>,
    pub letters: Vec<Log>,
    pub group: Group,
    transactions: BTreeMap<String, Transaction>,
    markers: Vec<Marker>,
    /// Requests that the network holds.
    late: Vec<Request>,
    producers: i64,
}

impl Broker {
    /// Inputs and changelogs of so many partitions, and outputs of so many.
    pub fn new(partitions: i32, outputs: i32, timeout_ms: u64) -> Broker {
        let logs = |count: i32| (0..count).map(|_| Log::default()).collect();
        let mut broker = Broker { timeout_ms, ..Broker::default() };
        broker.inputs = logs(partitions);
        broker.outputs = logs(outputs);
        broker.changelogs = logs(partitions);
        broker.inboxes = logs(partitions);
        broker.letters = logs(partitions);
        broker.group.partitions = partitions;
        broker
    }

    /// Gives a transactional id to a new producer. The transaction before it must have ended; one
    /// that is open is aborted, its producer fenced.
    pub fn init(&mut self, transactional_id: &str) -> Result<Producer, Refusal> {
        let now_ms = self.now_ms;
        let producers = &mut self.producers;
        let known = self.transactions.entry(transactional_id.to_owned()).or_insert_with(|| {
            *producers += 1;
            Transaction {
                producer: *producers,
                epoch: -1,
                state: State::Ended(None),
                places: BTreeSet::new(),
                began_ms: now_ms,
            }
        });
        match known.state {
            State::Preparing { .. } => Err(Refusal::Concurrent),
            State::Ongoing => {
                known.epoch += 1;
                self.decide(transactional_id, false);
                Err(Refusal::Concurrent)
            }
            State::Ended(_) => {
                known.epoch += 1;
                known.state = State::Ended(None);
                let (id, epoch) = (known.producer, known.epoch);
                Ok(Producer { transactional_id: transactional_id.to_owned(), id, epoch })
            }
        }
    }

    pub fn handle(&mut self, request: &Request) -> Result<(), Refusal> {
        let now_ms = self.now_ms;
        let Some(open) = self.transactions.get_mut(&request.from.transactional_id) else {
            return Err(Refusal::State);
        };
        if open.epoch != request.from.epoch {
            return Err(Refusal::Fenced);
        }
        match &request.call {
            Call::Add(places) => {
                match open.state {
                    State::Preparing { .. } => return Err(Refusal::Concurrent),
                    State::Ended(_) => {
                        open.state = State::Ongoing;
                        open.began_ms = now_ms;
                        open.places.clear();
                    }
                    State::Ongoing => {}
                }
                open.places.extend(places);
                Ok(())
            }
            // Brokers verify that the transaction is open and holds the place (KIP-890, part 1).
            Call::Produce(place, rows) => {
                if open.state != State::Ongoing || !open.places.contains(place) {
                    return Err(Refusal::State);
                }
                if rows.iter().any(|row| row.value.as_ref().is_some_and(|value| value.starts_with(TOXIC))) {
                    return Err(Refusal::Record);
                }
                let log = match *place {
                    Place::Output(partition) => &mut self.outputs[partition as usize],
                    Place::Changelog(partition) => &mut self.changelogs[partition as usize],
                    Place::Inbox(partition) => &mut self.inboxes[partition as usize],
                    Place::Letters(partition) => &mut self.letters[partition as usize],
                    Place::Offsets => return Err(Refusal::State),
                };
                for row in rows {
                    let row = Row { timestamp_ms: now_ms as i64, ..row.clone() };
                    log.append_open(request.from.id, row);
                }
                Ok(())
            }
            Call::Offsets(offsets, membership) => {
                if open.state != State::Ongoing || !open.places.contains(&Place::Offsets) {
                    return Err(Refusal::State);
                }
                self.group.check(membership).map_err(Refusal::Generation)?;
                self.group.commit_pending(request.from.id, offsets);
                Ok(())
            }
            Call::End { commit } => match open.state {
                State::Ongoing => {
                    self.decide(&request.from.transactional_id, *commit);
                    Ok(())
                }
                State::Preparing { commit: already } if already == *commit => Err(Refusal::Concurrent),
                State::Ended(Some(already)) if already == *commit => Ok(()),
                _ => Err(Refusal::State),
            },
        }
    }

    fn decide(&mut self, transactional_id: &str, commit: bool) {
        let Some(open) = self.transactions.get_mut(transactional_id) else { return };
        open.state =
            if open.places.is_empty() { State::Ended(Some(commit)) } else { State::Preparing { commit } };
        let transactional_id = transactional_id.to_owned();
        self.markers.extend(
            open.places.iter().map(|&place| Marker { transactional_id: transactional_id.clone(), place }),
        );
    }

    /// Values of a changelog's key whose transaction is decided to commit, whether or not its marker is there.
    pub fn decided_values(&self, partition: i32, key: &[u8]) -> impl Iterator<Item = &[u8]> {
        let is_decided = |producer: i64| {
            let of = self.transactions.values().find(|open| open.producer == producer);
            of.is_some_and(|open| matches!(open.state, State::Preparing { commit: true }))
        };
        let rows = self.changelogs[partition as usize].decided(is_decided);
        rows.filter(move |row| row.key == key).filter_map(|row| row.value.as_deref())
    }

    /// A request that the network holds for now.
    pub fn hold(&mut self, request: Request) {
        self.late.push(request);
    }

    /// Whether nothing is under way: no request, no marker, no open transaction.
    pub fn is_at_rest(&self) -> bool {
        self.late.is_empty()
            && self.markers.is_empty()
            && !self.group.has_pending()
            && self.transactions.values().all(|open| matches!(open.state, State::Ended(_)))
    }

    /// Time passes: something that is under way may arrive, and what is open too long is aborted.
    pub fn step(&mut self, random: &mut Random, hurry: bool) {
        self.now_ms += if random.one_in(25) { random.within(20..=300) } else { random.within(0..=4) } as u64;
        if !self.markers.is_empty() && (hurry || random.one_in(2)) {
            let marker = self.markers.swap_remove(random.below(self.markers.len()));
            self.write(&marker);
        }
        if !self.late.is_empty() && random.one_in(if hurry { 4 } else { 40 }) {
            let request = self.late.swap_remove(random.below(self.late.len()));
            // Nobody waits for the answer any more.
            let _ = self.handle(&request);
        }
        let expired: Vec<String> = self
            .transactions
            .iter()
            .filter(|(_, open)| open.state == State::Ongoing && self.now_ms - open.began_ms > self.timeout_ms)
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            if let Some(open) = self.transactions.get_mut(&id) {
                open.epoch += 1;
            }
            self.decide(&id, false);
        }
    }

    fn write(&mut self, marker: &Marker) {
        let Some(open) = self.transactions.get_mut(&marker.transactional_id) else { return };
        let State::Preparing { commit } = open.state else { return };
        open.places.remove(&marker.place);
        if open.places.is_empty() {
            open.state = State::Ended(Some(commit));
        }
        let producer = open.producer;
        match marker.place {
            Place::Output(partition) => self.outputs[partition as usize].mark(producer, commit),
            Place::Changelog(partition) => self.changelogs[partition as usize].mark(producer, commit),
            Place::Inbox(partition) => self.inboxes[partition as usize].mark(producer, commit),
            Place::Letters(partition) => self.letters[partition as usize].mark(producer, commit),
            Place::Offsets => self.group.mark(producer, commit),
        }
    }
}
