//! A worker's consumer: the client's own group protocol, which goes on by itself, and what its owner
//! sees of it.
//!
//! The client is freer than librdkafka: a membership that was lost is replaced at once, before the
//! owner has been told, as a client with a thread of its own may. So group metadata that is read at
//! any time but inside the event it belongs to is metadata of another life.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::broker::{Beat, Broker, Met};
use super::process::Process;
use super::random::Random;
use super::world::World;
use crate::faults::{Bug, planted};
use crate::node::worker;
use crate::ports::{Group, Membership, Source, SourceError, Taken, TaskOffset};
use crate::record::{Batch, InputPartition, Offset, headers};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Assigned,
    Revoked,
    Lost,
}

#[derive(Debug)]
struct Event {
    change: Change,
    partitions: BTreeSet<i32>,
    /// As of the moment it happened.
    membership: Membership,
}

/// The client's side of the group protocol.
#[derive(Debug)]
pub struct Client {
    process: Arc<Process>,
    instance: Option<String>,
    /// Empty = not a member.
    pub member_id: String,
    generation: i32,
    owned: BTreeSet<i32>,
    events: VecDeque<Event>,
    /// A revocation waits for its answer, and the next round for that.
    giving_up: bool,
    wants_round: bool,
}

impl Client {
    pub fn new(process: Arc<Process>, instance: Option<String>) -> Client {
        Client {
            process,
            instance,
            member_id: String::new(),
            generation: -1,
            owned: BTreeSet::new(),
            events: VecDeque::new(),
            giving_up: false,
            wants_round: false,
        }
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What the client would answer when it is asked now.
    fn membership(&self) -> Membership {
        Membership {
            group: "group".into(),
            generation: self.generation,
            member_id: self.member_id.clone(),
            instance_id: self.instance.clone(),
        }
    }

    /// One exchange with the coordinator, whatever the owner is doing.
    pub fn exchange(&mut self, broker: &mut Broker, random: &mut Random) {
        let instance = self.instance.as_deref();
        if self.member_id.is_empty() {
            self.member_id = broker.group.join("", instance, &self.owned, random);
            return;
        }
        match broker.group.beat(&self.member_id) {
            Beat::Unknown => self.lose(),
            Beat::Rejoin if !self.giving_up => {
                drop(broker.group.join(&self.member_id, instance, &self.owned, random));
                self.wants_round = false;
            }
            Beat::Stable if self.wants_round && !self.giving_up => {
                drop(broker.group.join(&self.member_id, instance, &self.owned, random));
                self.wants_round = false;
            }
            Beat::Sync => {
                let (generation, assignment) = broker.group.sync(&self.member_id);
                self.generation = generation;
                self.follow(&assignment);
            }
            Beat::Stable | Beat::Rejoin => {}
        }
    }

    fn follow(&mut self, assignment: &BTreeSet<i32>) {
        let gone: BTreeSet<i32> = &self.owned - assignment;
        let come: BTreeSet<i32> = assignment - &self.owned;
        let membership = self.membership();
        if !gone.is_empty() {
            self.giving_up = true;
            self.events.push_back(Event {
                change: Change::Revoked,
                partitions: gone,
                membership: membership.clone(),
            });
        }
        self.owned.extend(&come);
        self.events.push_back(Event { change: Change::Assigned, partitions: come, membership });
    }

    /// The coordinator knows this member no more.
    fn lose(&mut self) {
        self.member_id.clear();
        self.generation = -1;
        self.giving_up = false;
        self.wants_round = false;
        self.events.retain(|event| event.change != Change::Revoked);
        let partitions = std::mem::take(&mut self.owned);
        let membership = self.membership();
        self.events.push_back(Event { change: Change::Lost, partitions, membership });
    }

    fn gave_up(&mut self, partitions: &BTreeSet<i32>) {
        self.owned.retain(|partition| !partitions.contains(partition));
        self.giving_up = false;
        self.wants_round = true;
    }
}

/// Takes in a row that may find nothing and not wait for anything either: one finds out that the input has run dry, and
/// then a commit is due, or the loop has to wait.
const HURRIED_MAX: usize = 3;

/// A partition that its owner has accepted.
#[derive(Debug, Default)]
struct Place {
    running: bool,
    /// Something was asked for since the last start.
    polled: bool,
    next: Offset,
}

pub struct ModelConsumer {
    world: Arc<World>,
    process: Arc<Process>,
    client: u64,
    captured: Membership,
    question: Option<(Change, BTreeSet<i32>)>,
    places: BTreeMap<i32, Place>,
    /// The last takes found nothing and did not wait.
    hurried: usize,
}

impl ModelConsumer {
    pub fn new(world: &Arc<World>, process: &Arc<Process>, instance: Option<String>) -> ModelConsumer {
        ModelConsumer {
            client: world.lock().add_client(Client::new(Arc::clone(process), instance)),
            world: Arc::clone(world),
            process: Arc::clone(process),
            captured: Membership { generation: -1, ..Membership::default() },
            question: None,
            places: BTreeMap::new(),
            hurried: 0,
        }
    }

    /// A worker that can do nothing takes no CPU time.
    fn account(&mut self, wait: Duration, found: bool) {
        self.hurried = if wait.is_zero() && !found { self.hurried + 1 } else { 0 };
        assert!(self.hurried <= HURRIED_MAX, "the worker spins: it waits for nothing");
    }

    fn serve_event(&mut self, out: &mut Vec<Taken>) {
        let event = self.world.lock().client(self.client).events.pop_front();
        let Some(Event { change, partitions, membership }) = event else { return };
        self.captured = membership;
        if change != Change::Assigned {
            self.places.retain(|partition, _| !partitions.contains(partition));
        }
        let list = partitions.iter().map(|&partition| InputPartition { input: 0, partition }).collect();
        out.push(match change {
            Change::Assigned => Taken::Assigned(list),
            Change::Revoked => Taken::Revoked(list),
            Change::Lost => Taken::Lost(list),
        });
        self.question = Some((change, partitions));
    }

    fn fetch(&mut self, out: &mut Vec<Taken>) {
        let mut state = self.world.lock();
        for (&partition, place) in self.places.iter_mut().filter(|(_, place)| place.running) {
            place.polled = true;
            let most = state.random.within(0..=6);
            let mut batch = Batch { partition, ..Batch::default() };
            while batch.len() < most && state.unreadable != Some(place.next) {
                match state.broker.inputs[partition as usize].meet(place.next) {
                    Met::Wait => break,
                    Met::Nothing => {}
                    Met::Row(row) => {
                        batch.offsets.push(place.next.0 as i64);
                        batch.timestamps.push(row.timestamp_ms);
                        batch.keys.push(Some(&row.key));
                        batch.values.push(row.value.as_deref());
                        // A value is sent again as it is, so it is its own id.
                        let id = headers::encode([("id", row.value.as_deref())].into_iter());
                        batch.headers.push(Some(&id));
                    }
                }
                place.next.0 += 1;
            }
            state.handed += batch.len();
            if !batch.is_empty() {
                out.push(Taken::Batch(batch));
            }
            if state.unreadable == Some(place.next) {
                place.running = false;
                let partition = InputPartition { input: 0, partition };
                out.push(Taken::Failed { partition, reason: "it cannot be read".into() });
            }
        }
    }
}

impl Source for ModelConsumer {
    fn take(&mut self, wait: Duration, out: &mut Vec<Taken>) -> Result<(), SourceError> {
        self.listen(wait, out)?;
        if !self.process.is_dead() {
            self.fetch(out);
            self.account(wait, !out.is_empty());
        }
        Ok(())
    }

    fn listen(&mut self, _: Duration, out: &mut Vec<Taken>) -> Result<(), SourceError> {
        if self.process.is_dead() {
            return Ok(());
        }
        {
            let mut state = self.world.lock();
            state.exchange(self.client);
            if state.unlucky(|rates| rates.consumer_fails) {
                return Err(SourceError::Fatal("the client gave up".into()));
            }
        }
        self.serve_event(out);
        Ok(())
    }

    fn start(&mut self, partition: InputPartition, at: Offset) -> Result<(), SourceError> {
        if self.question.is_some() {
            return Err(SourceError::Unavailable("a rebalance waits for its answer".into()));
        }
        let Some(place) = self.places.get_mut(&partition.partition) else {
            return Err(SourceError::Unavailable(format!("{partition:?} is not assigned")));
        };
        *place = Place { running: true, polled: false, next: at };
        self.world.lock().starts += 1;
        Ok(())
    }

    fn stop(&mut self, partition: InputPartition) -> Result<(), SourceError> {
        if let Some(place) = self.places.get_mut(&partition.partition) {
            place.running = false;
        }
        Ok(())
    }

    fn position(&self, partition: InputPartition) -> Option<Offset> {
        let place = self.places.get(&partition.partition)?;
        (place.running && place.polled).then_some(place.next)
    }

    fn obstacle(&self) -> Option<String> {
        self.world.lock().obstacle.clone()
    }
}

impl Group for ModelConsumer {
    fn membership(&self) -> Membership {
        if planted(Bug::MembershipLate) {
            return self.world.lock().client(self.client).membership();
        }
        self.captured.clone()
    }

    fn assign(&mut self, partitions: &[(InputPartition, Offset)]) -> Result<(), SourceError> {
        let Some((Change::Assigned, _)) = self.question.take() else {
            return Err(SourceError::Unavailable("no assignment waits for an answer".into()));
        };
        for (id, next) in partitions {
            self.places.insert(id.partition, Place { next: *next, ..Place::default() });
        }
        Ok(())
    }

    fn unassign(&mut self, _: &[InputPartition]) -> Result<(), SourceError> {
        if let Some((Change::Revoked, partitions)) = self.question.take() {
            let mut state = self.world.lock();
            let client = state.client(self.client);
            // What a membership that was lost meanwhile had asked for concerns the next one no more.
            if client.member_id == self.captured.member_id {
                client.gave_up(&partitions);
            }
        }
        Ok(())
    }

    /// At once, or not at all: with an old generation the partitions are about to go.
    fn commit(&mut self, offsets: &[TaskOffset]) {
        let mut state = self.world.lock();
        if !self.process.is_dead() && state.broker.group.check(&self.captured).is_ok() {
            state.broker.group.commit(offsets);
        }
    }
}

impl worker::Consumer for ModelConsumer {
    fn leave(self) {
        self.world.lock().leave(self.client);
    }
}

impl Drop for ModelConsumer {
    /// A static member says nothing, and neither does a dead process.
    fn drop(&mut self) {
        let mut state = self.world.lock();
        let dynamic = state.client(self.client).instance.is_none();
        if dynamic && !self.process.is_dead() {
            state.leave(self.client);
        }
        state.clients.remove(&self.client);
    }
}
