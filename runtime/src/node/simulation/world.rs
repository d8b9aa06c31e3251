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

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;

use super::case::Case;
use super::client::ModelConsumer;
use super::driver::{Half, LoopDriver};
use super::handler::ModelHandler;
use super::letters::ModelLetters;
use super::process::Process;
use super::random::Random;
use super::relay::ModelRelay;
use super::restore::{ModelRestorer, Restore};
use super::sink;
use super::state::State;
use crate::config::deployment::{CommitSpec, Guarantee};
use crate::node::commit::{CommitHalf, Committer};
use crate::node::retries::Retries;
use crate::node::worker::{Command, ConsumerFactory, Parts, Swap, Worker};
use crate::ports::{Clock, Stop};
use crate::store::{Store, StoreBudget};
use crate::task::TaskConfig;

pub const DEPLOYMENT: &str = "sim";
pub const INCARNATION: &str = "life";
/// How deep waits may lie within waits; beyond it only the broker and commits move.
const DEPTH_MAX: usize = 5;

/// A worker, or its place while it is on the stack.
struct Seat {
    process: Arc<Process>,
    worker: Option<Worker<ModelConsumer>>,
    half: Arc<Half>,
    index: u32,
    /// A revision that its worker has not been told of, because it was on the stack.
    swap: Option<Box<Swap<ModelConsumer>>>,
    /// Keeps the worker's channel of commands open.
    _commands: Sender<Command<ModelConsumer>>,
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
        let mut state = State::new(&case, random);
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

    pub fn add_restore(&self, restore: Restore) {
        self.cast().restores.push(restore);
    }

    /// Of the restores that wait for their turn.
    pub fn stops(&self) -> Vec<Stop> {
        self.cast().restores.iter().map(|restore| restore.stop.clone()).collect()
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

    pub fn step_a_half(self: &Arc<World>) {
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
            let Some(mut worker) = seat.worker.take() else { return };
            if let Some(swap) = seat.swap.take() {
                worker.swap_to(swap);
            }
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
        let seats = (0..self.case.workers).map(|index| self.seat(&process, index));
        let seats: Vec<Seat> = seats.collect();
        let mut cast = self.cast();
        cast.seats.extend(seats);
        cast.processes[node] = Some(process);
    }

    /// One that runs what the registry says now.
    pub fn new_process(&self, node: usize, dir: &str) -> Arc<Process> {
        Process::new(node, &self.root(dir), self.config_now())
    }

    /// What the registry says now.
    fn config_now(&self) -> TaskConfig {
        let revision = self.lock().registry.revision(DEPLOYMENT);
        TaskConfig { revision, ..self.case.task_config() }
    }

    /// A node's workers are told of the newest revision, and go on in it where they are. Every other time it
    /// writes elsewhere, as far as its producers know.
    pub fn swap(self: &Arc<World>, node: usize) {
        let Some(process) = self.process(node) else { return };
        process.swap(self.config_now());
        let other_sinks = self.lock().random.one_in(2);
        let swap = |index| -> Box<Swap<ModelConsumer>> {
            let config = process.config();
            let (what, revision) = ((self.case.kind, self.case.outbox), config.revision);
            let name = member(&process, index);
            let world = Arc::clone(self);
            Box::new(Swap {
                revision,
                commit: self.commit_spec(),
                trial: Arc::default(),
                retries: Retries::default(),
                config: Arc::clone(&config),
                handlers: Box::new(move |_| {
                    let luck = Random::new(world.lock().random.below(1 << 30) as u64);
                    Ok(Box::new(ModelHandler::new(what, revision, luck)))
                }),
                consumers: self.consumers(&process, index),
                letters: Box::new(ModelLetters { world: Arc::clone(self), config: Arc::clone(&config) }),
                restorer: Box::new(ModelRestorer {
                    world: Arc::clone(self),
                    process: Arc::clone(&process),
                    config,
                }),
                relay: self.relay(&process),
                sinks: other_sinks.then(|| sink::factory(self, &process, name)),
            })
        };
        let mut cast = self.cast();
        for seat in cast.seats.iter_mut().filter(|seat| Arc::ptr_eq(&seat.process, &process)) {
            seat.swap = Some(swap(seat.index));
        }
    }

    fn commit_spec(&self) -> CommitSpec {
        CommitSpec {
            interval: Duration::from_millis(self.case.interval_ms),
            min_interval: Duration::from_millis(2),
            max_records: self.case.overlay_records,
            ..CommitSpec::default()
        }
    }

    fn consumers(self: &Arc<World>, process: &Arc<Process>, index: u32) -> ConsumerFactory<ModelConsumer> {
        let instance = self.case.static_members.then_some(member(process, index));
        let (world, owner) = (Arc::clone(self), Arc::clone(process));
        Box::new(move || Ok(ModelConsumer::new(&world, &owner, instance.clone())))
    }

    fn seat(self: &Arc<World>, process: &Arc<Process>, index: u32) -> Seat {
        let name = member(process, index);
        let half = CommitHalf::new(sink::factory(self, process, name.clone()), self.clock());
        let half = Half::new(process, half);
        let (commands, inbox) = crossbeam_channel::unbounded();
        let config = process.config();
        let worker = Worker::new(Parts {
            deployment: DEPLOYMENT.into(),
            index,
            revision: config.revision,
            inputs: 1,
            guarantee: Guarantee::ExactlyOnce,
            commit: self.commit_spec(),
            trial: Arc::default(),
            consumers: self.consumers(process, index),
            committer: Committer::new(Box::new(LoopDriver {
                world: Arc::clone(self),
                half: Arc::clone(&half),
            })),
            letters: Box::new(ModelLetters { world: Arc::clone(self), config: Arc::clone(&config) }),
            restorer: Box::new(ModelRestorer {
                world: Arc::clone(self),
                process: Arc::clone(process),
                config,
            }),
            relay: self.relay(process),
            commands: inbox,
            board: Arc::clone(&process.board),
            budget: Arc::clone(&process.commits),
            clock: self.clock(),
        });
        Seat {
            process: Arc::clone(process),
            worker: Some(worker),
            half,
            index,
            swap: None,
            _commands: commands,
        }
    }

    fn relay(self: &Arc<World>, process: &Arc<Process>) -> Box<ModelRelay> {
        let (world, process) = (Arc::clone(self), Arc::clone(process));
        Box::new(ModelRelay { world, process, under_way: Vec::new() })
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

/// A worker, as the group and its producer know it over restarts.
fn member(process: &Process, index: u32) -> String {
    format!("n{}-{index}", process.node)
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
