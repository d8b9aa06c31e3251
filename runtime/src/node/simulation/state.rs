//! What the loop and everything in it share, and the dice.

use std::collections::BTreeMap;

use tidemill_proto::v1::DeployEntry;
use tidemill_proto::v1::control_entry::Entry;

use super::broker::{Broker, Row};
use super::case::{Case, Rates};
use super::client::Client;
use super::edits::Edits;
use super::random::Random;
use super::relay::Receiver;
use super::sink::{Fate, OUTPUTS};
use super::world::{DEPLOYMENT, INCARNATION};
use crate::node::proposal::proposal;
use crate::node::registry::Registry;
use crate::record::Offset;

const TRANSACTION_TIMEOUT_MS: u64 = 2_000;

/// Key and value of a record.
type Sent = (Vec<u8>, Vec<u8>);

/// Everything that is not on somebody's stack.
pub struct State {
    pub random: Random,
    pub broker: Broker,
    pub registry: Registry,
    /// Where each partition began: the first answer counts, whatever the registry says.
    pub began: BTreeMap<i32, Offset>,
    pub clients: BTreeMap<u64, Client>,
    /// Fetches of committed offsets that will find none.
    pub missing: u32,
    /// That may still do so: fewer than recovery asks before it believes them.
    pub missing_left: u32,
    /// No new faults; what is under way arrives.
    pub calm: bool,
    pub turns: u64,
    pub edits: Edits,
    pub receiver: Receiver,
    /// What consumers say keeps records from coming.
    pub obstacle: Option<String>,
    /// Where no partition can be read on.
    pub unreadable: Option<Offset>,
    /// Inputs that were begun, and records that were handed over.
    pub starts: usize,
    pub handed: usize,
    rates: Rates,
    /// Records put into each partition.
    produced: Vec<usize>,
    /// What they were, to be sent again.
    sent: BTreeMap<i32, Vec<Sent>>,
    next_client: u64,
    trace: bool,
}

impl State {
    pub fn new(case: &Case, random: Random) -> State {
        let broker = Broker::new(case.partitions, OUTPUTS, TRANSACTION_TIMEOUT_MS);
        State {
            random,
            broker,
            registry: Registry::default(),
            began: BTreeMap::new(),
            clients: BTreeMap::new(),
            missing: 0,
            missing_left: 5,
            calm: false,
            turns: 0,
            edits: Edits::default(),
            receiver: Receiver::default(),
            obstacle: None,
            unreadable: None,
            starts: 0,
            handed: 0,
            rates: case.rates.clone(),
            produced: vec![0; case.partitions as usize],
            sent: BTreeMap::new(),
            next_client: 0,
            trace: std::env::var_os("TIDEMILL_SEED").is_some(),
        }
    }

    pub fn add_client(&mut self, client: Client) -> u64 {
        self.next_client += 1;
        self.clients.insert(self.next_client, client);
        self.next_client
    }

    pub fn client(&mut self, id: u64) -> &mut Client {
        self.clients.get_mut(&id).expect("a client lives as long as its consumer")
    }

    pub fn exchange(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.process().is_dead()
        {
            client.exchange(&mut self.broker, &mut self.random);
        }
    }

    /// Clients talk to their coordinator whatever their owners do.
    pub fn exchange_any(&mut self) {
        let (turns, calm) = (self.turns, self.calm);
        let awake = self.clients.iter().filter(|(_, client)| calm || !client.process().is_frozen(turns));
        let ids: Vec<u64> = awake.map(|(&id, _)| id).collect();
        let index = self.random.below(ids.len());
        if let Some(&id) = ids.get(index) {
            self.exchange(id);
        }
    }

    pub fn leave(&mut self, id: u64) {
        let member = std::mem::take(&mut self.client(id).member_id);
        self.broker.group.remove(&member, &mut self.random);
    }

    /// Members that no living client stands for.
    pub fn orphans(&self) -> Vec<String> {
        let living = |id: &str| {
            self.clients.values().any(|client| client.member_id == id && !client.process().is_dead())
        };
        self.broker.group.members().filter(|id| !living(id)).map(str::to_owned).collect()
    }

    pub fn unlucky(&mut self, rate: impl Fn(&Rates) -> usize) -> bool {
        !self.calm && self.random.one_in(rate(&self.rates))
    }

    pub fn fate(&mut self) -> Fate {
        if self.unlucky(|rates| rates.late) {
            Fate::Late
        } else if self.unlucky(|rates| rates.dropped) {
            Fate::Dropped
        } else if self.unlucky(|rates| rates.answer_lost) {
            Fate::AnswerLost
        } else {
            Fate::Arrives
        }
    }

    pub fn step_broker(&mut self) {
        self.broker.step(&mut self.random, self.calm);
        if self.random.one_in(if self.calm { 4 } else { 40 }) {
            let pick = self.random.below(1 << 16);
            self.receiver.step(&self.broker, pick);
        }
    }

    pub fn propose(&mut self, entry: Entry) {
        let next = self.registry.next;
        // A proposal that is refused finds the first one in the registry.
        let _ = self.registry.apply(next, 0, &proposal(entry));
    }

    /// Registers one more revision. A node runs it when it is started again.
    pub fn deploy(&mut self) {
        self.propose(Entry::Deploy(DeployEntry {
            name: DEPLOYMENT.into(),
            expected_revision: self.registry.revision(DEPLOYMENT),
            incarnation: INCARNATION.into(),
            ..DeployEntry::default()
        }));
    }

    /// Puts one more record, and now and then an upstream producer's marker, into a partition.
    pub fn produce(&mut self, case: &Case, partition: i32) {
        let sequence = self.produced[partition as usize];
        self.produced[partition as usize] += 1;
        let sent = self.sent.entry(partition).or_default();
        let again = case.inbox && !sent.is_empty() && self.random.one_in(3);
        let (key, value) = match again {
            true => sent[self.random.below(sent.len())].clone(),
            false => case.record(&mut self.random, partition, sequence),
        };
        sent.push((key.clone(), value.clone()));
        let mut timestamp_ms = self.broker.now_ms as i64;
        if case.expires() && self.random.one_in(3) {
            timestamp_ms = (timestamp_ms - self.random.below(case.ttl_ms as usize) as i64).max(0);
        }
        let log = &mut self.broker.inputs[partition as usize];
        log.append(Row { key, value: Some(value), timestamp_ms });
        if self.random.one_in(4) {
            log.append_nothing();
        }
    }

    /// True while the case has records left for this partition.
    pub fn has_more(&self, case: &Case, partition: i32) -> bool {
        self.produced[partition as usize] < case.records
    }

    pub fn note(&self, text: impl Fn() -> String) {
        if self.trace {
            eprintln!("{:>6} {:>6} ms  {}", self.turns, self.broker.now_ms, text());
        }
    }

    pub fn input_end(&self, partition: i32) -> Offset {
        self.broker.inputs[partition as usize].end()
    }
}
