//! Restores: the real recovery over the model broker, run by the loop as one more thing that takes
//! its turns.

use std::sync::Arc;
use std::time::Duration;

use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::{FirstCommitEntry, StartedEntry};

use super::broker::{Log, Met};
use super::handler::ModelHandler;
use super::process::Process;
use super::random::Random;
use super::state::State;
use super::world::{DEPLOYMENT, INCARNATION, World};
use crate::config::deployment::Start as StartRule;
use crate::faults::{Bug, planted};
use crate::node::lease::Lease;
use crate::node::restore::{Outcome, RestoreRequest, Restorer, Ticket, Verdict, Verdicts};
use crate::ports::{self, CommittedOffset, LogRecord, LogView, Recovery, SourceError, Stop};
use crate::record::{InputPartition, Offset};
use crate::store::Store;
use crate::task::recovery::{self, Disk, Hooks, Job, Known, OldTail, Rules, Started};
use crate::task::{Task, TaskConfig};

/// A restore that waits for its turn, or is under way.
pub struct Restore {
    pub process: Arc<Process>,
    /// Of the revision that asked for it.
    config: Arc<TaskConfig>,
    pub partition: i32,
    ticket: Ticket,
    store: Option<Store>,
    pub stop: Stop,
    verdicts: Option<Verdicts>,
}

/// Of one revision.
pub struct ModelRestorer {
    pub world: Arc<World>,
    pub process: Arc<Process>,
    pub config: Arc<TaskConfig>,
}

impl Restorer for ModelRestorer {
    fn begin(&mut self, request: RestoreRequest, verdicts: Verdicts) {
        self.world.add_restore(Restore {
            process: Arc::clone(&self.process),
            config: Arc::clone(&self.config),
            partition: request.partition,
            ticket: request.ticket,
            store: request.store,
            stop: request.stop,
            verdicts: Some(verdicts),
        });
    }

    fn release(&mut self, partition: i32, store: Store) {
        put_back(&self.process, partition, store);
    }

    fn destroy(&mut self, partition: i32, store: Store) {
        let dir = self.process.dir(partition);
        drop(store);
        if !self.process.is_dead() {
            Store::destroy(&self.world.budget, &dir).expect("memory does not fail");
            self.process.leases.free(&dir);
        }
    }

    /// Nothing expires in a case's time.
    fn trim_inbox(&mut self, _: i32, _: Offset) {}

    fn committed(&mut self, partition: i32) {
        let mut state = self.world.lock();
        let topic = &self.config.inputs[0].topic;
        if !self.process.is_dead() && !state.registry.has_committed(INCARNATION, topic, partition) {
            state.propose(Entry::FirstCommit(FirstCommitEntry {
                deployment: DEPLOYMENT.into(),
                incarnation: INCARNATION.into(),
                partition,
                topics: vec![topic.clone()],
            }));
        }
    }
}

fn put_back(process: &Process, partition: i32, store: Store) {
    // What a dead process holds is lost, with all that it had not flushed.
    if !process.is_dead() {
        process.leases.put(&process.dir(partition), store);
    }
}

impl Restore {
    /// One that nobody waits for: to look at what can be restored.
    pub fn cold(process: &Arc<Process>, partition: i32) -> Restore {
        let process = Arc::clone(process);
        let config = process.config();
        let (ticket, stop) = (Ticket(0), Stop::never());
        Restore { process, config, partition, ticket, store: None, stop, verdicts: None }
    }

    /// Runs to the verdict and delivers it.
    pub fn run(mut self, world: &Arc<World>) {
        let outcome = self.outcome(world);
        if self.process.is_dead() {
            return;
        }
        let (partition, ticket) = (self.partition, self.ticket);
        let Some(verdicts) = self.verdicts.take() else { return };
        if let Err(late) = verdicts.deliver(Verdict { partition, ticket, outcome })
            && let Some(store) = late.outcome.into_store()
        {
            put_back(&self.process, partition, store);
        }
    }

    pub fn outcome(&mut self, world: &Arc<World>) -> Outcome {
        // The registry is read to its end first, so that versions never go back.
        let revision = world.lock().registry.revision(DEPLOYMENT);
        let is_old = revision != self.config.revision && !planted(Bug::RevisionOld);
        if is_old || self.stop.is_raised() {
            return Outcome::Again { store: self.store.take() };
        }
        let dir = self.process.dir(self.partition);
        let stateless = self.config.is_stateless();
        let mut open = self.store.take();
        if !stateless && open.is_none() {
            open = match self.process.leases.acquire(&dir, Duration::ZERO, &self.stop) {
                Lease::Open(store) => Some(store),
                Lease::Closed => None,
                Lease::Busy => return Outcome::Again { store: None },
            };
        }
        let outcome = self.recover(world, open);
        if !stateless && !outcome.holds_store() {
            self.process.leases.free(&dir);
        }
        outcome
    }

    fn recover(&self, world: &Arc<World>, mut open: Option<Store>) -> Outcome {
        let dir = self.process.dir(self.partition);
        let mut kafka =
            Reader { world: Arc::clone(world), process: Arc::clone(&self.process), stop: self.stop.clone() };
        let mut resolved = false;
        loop {
            let mut known = known(world, &self.config, self.partition);
            if planted(Bug::StartAgain) && !resolved {
                known.started.fill(None);
            }
            let job = Job {
                config: &self.config,
                partition: self.partition,
                known,
                cluster_id: "cluster",
                disk: Disk { budget: &world.budget, dir: &dir, open: open.take() },
                rules: Rules {
                    delete_retention: Duration::from_secs(86_400),
                    min_compaction_lag: Duration::ZERO,
                    old_tail: OldTail::default(),
                    wall_ms: world.lock().broker.now_ms as i64,
                },
            };
            let mut hooks = Hooks {
                progress: &mut |_| !self.stop.is_raised(),
                pause: &mut |wait| {
                    world.lock().broker.now_ms += wait.as_millis() as u64;
                    world.turn();
                    !self.process.is_dead() && !self.stop.is_raised()
                },
            };
            match recovery::recover(job, &mut kafka, &mut hooks) {
                Ok(recovery::Outcome::Start(start, _)) => {
                    let luck = Random::new(world.lock().random.below(1 << 30) as u64);
                    let what = (world.case.kind, world.case.outbox);
                    let handler = Box::new(ModelHandler::new(what, self.config.revision, luck));
                    return match Task::new(Arc::clone(&self.config), self.partition, handler, start) {
                        Ok(task) => Outcome::Start(Box::new(task)),
                        Err(error) => Outcome::Halt { reason: error.to_string(), store: None },
                    };
                }
                Ok(recovery::Outcome::Unresolved(_, store)) => {
                    open = store;
                    resolved = true;
                    resolve(world, &self.config, self.partition);
                }
                Ok(recovery::Outcome::Halt(reason)) => return Outcome::Halt { reason, store: None },
                Ok(recovery::Outcome::Stopped) | Err(_) => return Outcome::Again { store: None },
            }
        }
    }
}

fn known(world: &World, config: &TaskConfig, partition: i32) -> Known {
    let state = world.lock();
    let topic = &config.inputs[0].topic;
    let began = state.registry.started(INCARNATION, topic, partition);
    let started = began.map(|began| Started { topic_id: began.topic_id.clone(), offset: began.offset });
    let first_commit = state.registry.has_committed(INCARNATION, topic, partition);
    Known { started: vec![started], first_commit: vec![first_commit] }
}

fn resolve(world: &World, config: &TaskConfig, partition: i32) {
    let mut state = world.lock();
    let offset = match world.case.start {
        StartRule::Latest => state.broker.inputs[partition as usize].end(),
        _ => Offset(0),
    };
    state.began.entry(partition).or_insert(offset);
    state.propose(Entry::Started(StartedEntry {
        deployment: DEPLOYMENT.into(),
        incarnation: INCARNATION.into(),
        topic: config.inputs[0].topic.clone(),
        topic_id: config.inputs[0].topic_id.clone(),
        partition,
        offset: offset.0,
    }));
}

fn log_of(state: &State, log: ports::Log, partition: i32) -> &Log {
    match log {
        ports::Log::Changelog => &state.broker.changelogs[partition as usize],
        ports::Log::Inbox => &state.broker.inboxes[partition as usize],
    }
}

/// What recovery reads of the model broker. While it waits, the world turns.
struct Reader {
    world: Arc<World>,
    process: Arc<Process>,
    stop: Stop,
}

impl Reader {
    fn wait(&self) -> Result<(), SourceError> {
        self.world.turn();
        self.wanted()
    }

    /// A dead process closes nothing any more, whoever still wants something of it.
    fn wanted(&self) -> Result<(), SourceError> {
        match (self.process.is_dead(), self.stop.is_raised()) {
            (true, _) => Err(SourceError::Fatal("dead".into())),
            (false, true) => Err(SourceError::Stopped),
            (false, false) => Ok(()),
        }
    }
}

impl Recovery for Reader {
    fn committed(
        &mut self,
        partitions: &[InputPartition],
    ) -> Result<Vec<Option<CommittedOffset>>, SourceError> {
        loop {
            self.wanted()?;
            let mut state = self.world.lock();
            if state.unlucky(|rates| rates.request_fails) {
                return Err(SourceError::Unavailable("no coordinator".into()));
            }
            // A coordinator that resigns may answer that there is none. Before the registry knows of
            // a first commit nothing tells that from a task that has not committed yet, so it is
            // believed; whoever is unlucky twice, within that moment, counts again.
            let config = self.process.config();
            let topic = &config.inputs[0].topic;
            let knows = |id: &InputPartition| state.registry.has_committed(INCARNATION, topic, id.partition);
            if state.missing > 0 && partitions.iter().all(knows) {
                state.missing -= 1;
                return Ok(partitions.iter().map(|_| None).collect());
            }
            let group = &state.broker.group;
            if partitions.iter().all(|&partition| group.is_stable(partition)) {
                return Ok(partitions.iter().map(|&partition| group.committed(partition).cloned()).collect());
            }
            drop(state);
            self.wait()?;
        }
    }

    fn log_bounds(&mut self, log: ports::Log, partition: i32) -> Result<(Offset, Offset), SourceError> {
        self.wait()?;
        let state = self.world.lock();
        let log = log_of(&state, log, partition);
        let end = if planted(Bug::RestoreToStable) { log.stable() } else { log.end() };
        Ok((Offset(0), end))
    }

    fn read_log(
        &mut self,
        log: ports::Log,
        partition: i32,
        (from, to): (Offset, Offset),
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError> {
        let meet = if planted(Bug::RestoreUncommitted) { Log::meet_uncommitted } else { Log::meet };
        let mut at = from;
        while at < to {
            let state = self.world.lock();
            let record = match meet(log_of(&state, log, partition), at) {
                Met::Wait => {
                    drop(state);
                    self.wait()?;
                    continue;
                }
                Met::Nothing => None,
                Met::Row(row) => Some(LogRecord {
                    offset: at,
                    timestamp_ms: row.timestamp_ms,
                    key: row.key.clone(),
                    value: row.value.clone(),
                    stamp: None,
                }),
            };
            drop(state);
            at.0 += 1;
            if record.is_some_and(|record| !apply(record.view())) {
                return Ok(());
            }
        }
        Ok(())
    }
}
