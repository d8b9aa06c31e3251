//! The one loop: whose turn it is, what breaks, and time.
//!
//! ```text
//!   turn -> a worker's step | a step of a commit | a restore | a client's exchange | the broker | a fault
//!              |                                      |
//!              +--- waits for its commit: turns ------+--- waits for Kafka: turns
//! ```
//!
//! Everything runs on the calling thread. What must wait lets the world turn meanwhile, without
//! itself, so a process can be killed, paused or fenced in the middle of anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::{ControlEntry, DeployEntry};

use super::broker::{Broker, Row};
use super::case::{Case, Rates};
use super::client::{Client, ModelConsumer};
use super::driver::{Half, LoopDriver};
use super::process::Process;
use super::random::Random;
use super::restore::{ModelRestorer, Restore};
use super::sink::{self, Fate, OUTPUTS};
use crate::config::deployment::{CommitSpec, Guarantee};
use crate::node::commit::{CommitHalf, Committer};
use crate::node::registry::Registry;
use crate::node::worker::{Command, Parts, Worker};
use crate::ports::Clock;
use crate::record::Offset;
use crate::store::{Store, StoreBudget};
use crate::task::TaskConfig;

pub const DEPLOYMENT: &str = "sim";
pub const INCARNATION: &str = "life";
/// How deep waits may lie within waits; beyond it only the broker and commits move.
const DEPTH_MAX: usize = 5;
const TRANSACTION_TIMEOUT_MS: u64 = 2_000;

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
    rates: Rates,
    /// Records put into each partition.
    produced: Vec<usize>,
    next_client: u64,
    trace: bool,
}

/// A worker, or its place while it is on the stack.
struct Seat {
    process: Arc<Process>,
    worker: Option<Worker<ModelConsumer>>,
    half: Arc<Half>,
    /// Keeps the worker's channel of commands open.
    _commands: Sender<Command>,
}

#[derive(Default)]
struct Cast {
    /// By node; none while it is down.
    processes: Vec<Option<Arc<Process>>>,
    seats: Vec<Seat>,
    restores: Vec<Restore>,
}

pub struct World {
    pub case: Case,
    pub budget: StoreBudget,
    root: PathBuf,
    state: Mutex<State>,
    cast: Mutex<Cast>,
    depth: AtomicUsize,
}

impl World {
    pub fn new((case, random): (Case, Random), budget: StoreBudget, root: PathBuf) -> Arc<World> {
        let broker = Broker::new(case.partitions, OUTPUTS, TRANSACTION_TIMEOUT_MS);
        let mut state = State {
            random,
            broker,
            registry: Registry::default(),
            began: BTreeMap::new(),
            clients: BTreeMap::new(),
            missing: 0,
            missing_left: 5,
            calm: false,
            turns: 0,
            rates: case.rates.clone(),
            produced: vec![0; case.partitions as usize],
            next_client: 0,
            trace: std::env::var_os("TIDEMILL_SEED").is_some(),
        };
        state.deploy();
        for partition in 0..case.partitions {
            (0..case.before).for_each(|_| state.produce(&case, partition));
        }
        let processes = (0..case.nodes).map(|_| None).collect();
        Arc::new(World {
            case,
            budget,
            root,
            state: Mutex::new(state),
            cast: Mutex::new(Cast { processes, ..Cast::default() }),
            depth: AtomicUsize::new(0),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cast(&self) -> MutexGuard<'_, Cast> {
        self.cast.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_client(&self, client: Client) -> u64 {
        let mut state = self.lock();
        state.next_client += 1;
        let id = state.next_client;
        state.clients.insert(id, client);
        id
    }

    pub fn add_restore(&self, restore: Restore) {
        self.cast().restores.push(restore);
    }

    pub fn is_paused(&self, process: &Process) -> bool {
        let state = self.lock();
        !state.calm && process.is_paused(state.turns)
    }

    pub fn is_committing(&self) -> bool {
        self.cast().seats.iter().any(|seat| seat.half.is_busy())
    }

    pub fn process(&self, node: usize) -> Option<Arc<Process>> {
        self.cast().processes.get(node).cloned().flatten()
    }

    pub fn root(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Something happens.
    pub fn turn(self: &Arc<World>) {
        let depth = self.depth.fetch_add(1, Ordering::Relaxed);
        let pick = {
            let mut state = self.lock();
            state.turns += 1;
            state.random.below(16)
        };
        match pick {
            0..3 => self.lock().step_broker(),
            3..5 => self.lock().exchange_any(),
            5..10 => self.step_a_half(),
            _ if depth >= DEPTH_MAX => self.lock().step_broker(),
            10..14 => self.step_a_worker(),
            14 => self.run_a_restore(),
            _ => self.disturb(),
        }
        self.depth.fetch_sub(1, Ordering::Relaxed);
    }

    fn step_a_half(self: &Arc<World>) {
        let busy: Vec<Arc<Half>> = {
            let cast = self.cast();
            let halves = cast.seats.iter().map(|seat| &seat.half);
            halves.filter(|half| half.is_busy() && !self.is_paused(&half.process)).cloned().collect()
        };
        if !busy.is_empty() {
            let index = self.lock().random.below(busy.len());
            busy[index].step();
        }
    }

    pub fn step_a_worker(self: &Arc<World>) {
        let Some(index) = self.pick_seat() else { return };
        self.step_worker(index);
    }

    /// A worker that may run: alive, not paused, not on the stack.
    fn pick_seat(&self) -> Option<usize> {
        let cast = self.cast();
        let ready = |seat: &&(usize, &Seat)| {
            seat.1.worker.is_some() && !seat.1.process.is_dead() && !self.is_paused(&seat.1.process)
        };
        let seats: Vec<_> = cast.seats.iter().enumerate().collect();
        let ready: Vec<usize> = seats.iter().filter(ready).map(|(index, _)| *index).collect();
        let index = self.lock().random.below(ready.len());
        ready.get(index).copied()
    }

    fn step_worker(self: &Arc<World>, index: usize) {
        let (mut worker, half) = {
            let mut cast = self.cast();
            let seat = &mut cast.seats[index];
            let Some(worker) = seat.worker.take() else { return };
            (worker, Arc::clone(&seat.half))
        };
        half.process.call(|| worker.step());
        if half.process.is_dead() {
            drop(worker);
            return;
        }
        // Seats may have been added meanwhile, so look for this one again.
        if let Some(seat) = self.cast().seats.iter_mut().find(|seat| Arc::ptr_eq(&seat.half, &half)) {
            seat.worker = Some(worker);
        }
    }

    fn run_a_restore(self: &Arc<World>) {
        let restore = {
            let mut cast = self.cast();
            let ready: Vec<usize> = (0..cast.restores.len())
                .filter(|&index| !self.is_paused(&cast.restores[index].process))
                .collect();
            let index = self.lock().random.below(ready.len());
            ready.get(index).map(|&index| cast.restores.swap_remove(index))
        };
        if let Some(restore) = restore {
            let process = Arc::clone(&restore.process);
            process.call(|| restore.run(self));
        }
    }

    /// Starts a node that is down.
    pub fn start(self: &Arc<World>, node: usize) {
        let process = self.new_process(node, &format!("node{node}"));
        let spec = CommitSpec {
            interval: Duration::from_millis(self.case.interval_ms),
            min_interval: Duration::from_millis(2),
            ..CommitSpec::default()
        };
        let seats = (0..self.case.workers).map(|index| self.seat(&process, index, spec.clone()));
        let seats: Vec<Seat> = seats.collect();
        let mut cast = self.cast();
        cast.seats.extend(seats);
        cast.processes[node] = Some(process);
    }

    /// One that runs what the registry says now.
    pub fn new_process(&self, node: usize, dir: &str) -> Arc<Process> {
        let revision = self.lock().registry.revision(DEPLOYMENT);
        Process::new(node, &self.root(dir), TaskConfig { revision, ..self.case.task_config() })
    }

    fn seat(self: &Arc<World>, process: &Arc<Process>, index: u32, commit: CommitSpec) -> Seat {
        let name = format!("n{}-{index}", process.node);
        let half = CommitHalf::new(sink::factory(self, process, name.clone()), self.clock());
        let half = Half::new(process, half);
        let (commands, inbox) = crossbeam_channel::unbounded();
        let instance = self.case.static_members.then_some(name);
        let (world, owner) = (Arc::clone(self), Arc::clone(process));
        let worker = Worker::new(Parts {
            deployment: DEPLOYMENT.into(),
            index,
            revision: process.config.revision,
            inputs: 1,
            guarantee: Guarantee::ExactlyOnce,
            commit,
            consumers: Box::new(move || Ok(ModelConsumer::new(&world, &owner, instance.clone()))),
            committer: Committer::new(Box::new(LoopDriver {
                world: Arc::clone(self),
                half: Arc::clone(&half),
            })),
            restorer: Box::new(ModelRestorer { world: Arc::clone(self), process: Arc::clone(process) }),
            commands: inbox,
            board: Arc::clone(&process.board),
            budget: Arc::clone(&process.commits),
            clock: self.clock(),
        });
        Seat { process: Arc::clone(process), worker: Some(worker), half, _commands: commands }
    }

    fn clock(self: &Arc<World>) -> Box<dyn Clock> {
        Box::new(ModelClock { world: Arc::clone(self) })
    }

    /// As `kill -9`: what is not on the stack is gone at once, the rest reaches nobody any more.
    pub fn kill(&self, node: usize) {
        let Some(process) = self.process(node) else { return };
        process.kill();
        let gone = {
            let mut cast = self.cast();
            let (gone, seats) = std::mem::take(&mut cast.seats)
                .into_iter()
                .partition::<Vec<_>, _>(|seat| Arc::ptr_eq(&seat.process, &process));
            cast.seats = seats;
            let (restores, others) = std::mem::take(&mut cast.restores)
                .into_iter()
                .partition::<Vec<_>, _>(|restore| Arc::ptr_eq(&restore.process, &process));
            cast.restores = others;
            (gone, restores)
        };
        drop(gone);
        process.leases.forget();
    }

    /// A node's orderly end: every worker commits and closes, then the stores are closed.
    pub fn stop(self: &Arc<World>, node: usize, leave: bool) {
        let Some(process) = self.process(node) else { return };
        loop {
            let next = {
                let mut cast = self.cast();
                let mut seats = cast.seats.iter_mut().filter(|seat| Arc::ptr_eq(&seat.process, &process));
                seats.find_map(|seat| seat.worker.take())
            };
            let Some(worker) = next else { break };
            process.call(|| worker.stop(leave));
        }
        if !process.is_dead() {
            process.leases.close_idle(&process.root);
        }
        self.kill(node);
    }

    /// Nothing of a killed node is on the stack any more: it can be started again.
    pub fn is_down(&self, node: usize) -> bool {
        self.process(node).is_none_or(|process| process.is_dead() && process.is_still())
    }

    /// True if every worker of the node can be stopped here and now.
    pub fn is_idle(&self, node: usize) -> bool {
        self.process(node).is_some_and(|process| !process.is_dead() && process.is_still())
    }

    /// Deletes what a node that is down has on disk.
    pub fn wipe(&self, node: usize) {
        for partition in 0..self.case.partitions {
            let dir = self.root(&format!("node{node}")).join(partition.to_string());
            Store::destroy(&self.budget, &dir).expect("memory does not fail");
        }
    }

    /// Ends everything, so that nothing holds the world any more.
    pub fn end(&self) {
        for node in 0..self.case.nodes {
            self.kill(node);
        }
    }
}

impl State {
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
    fn exchange_any(&mut self) {
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
    }

    pub fn propose(&mut self, entry: Entry) {
        let entry = ControlEntry { entry: Some(entry), ..ControlEntry::default() };
        let next = self.registry.next;
        // A proposal that is refused finds the first one in the registry.
        let _ = self.registry.apply(next, 0, &entry);
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
        let (key, value) = case.record(&mut self.random, partition, sequence);
        let timestamp_ms = self.broker.now_ms as i64;
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

struct ModelClock {
    world: Arc<World>,
}

impl Clock for ModelClock {
    fn wall_ms(&self) -> i64 {
        self.world.lock().broker.now_ms as i64
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.world.lock().broker.now_ms)
    }

    fn pause(&self, wait: Duration) {
        self.world.lock().broker.now_ms += wait.as_millis() as u64 / 4;
    }
}
