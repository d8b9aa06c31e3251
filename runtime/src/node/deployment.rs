//! One revision of a deployment, running on this node: its workers.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};

use super::clients;
use super::commit::{CommitHalf, Committer};
use super::former::Evictions;
use super::redrive::KafkaLetters;
use super::restorer::KafkaRestorer;
use super::revision::{PrepareError, Revision};
use super::runtime::NodeRuntime;
use super::site::Running;
use super::worker::{Command, Parts, Swap, Worker};
use crate::kafka::consumer::Consumer;
use crate::ports::{Clock, Handler};

/// Whether the workers of a stopping deployment leave their group for good. If not, their partitions
/// wait for their return, or for the end of their session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    Nobody,
    All,
}

/// How long calls of the former revision may take once the next one waits for them. Far longer than a call of
/// several records takes, and the drop of one costs a fetch.
const SWAP_PATIENCE: Duration = Duration::from_millis(100);

pub struct RunningDeployment {
    node: Arc<NodeRuntime>,
    revision: Arc<Revision>,
    workers: Vec<RunningWorker>,
    /// Of former workers, for as long as these ones want their partitions.
    _evictions: Evictions,
}

struct RunningWorker {
    commands: Sender<Command<Consumer>>,
    thread: JoinHandle<()>,
}

impl RunningDeployment {
    pub fn start(
        node: &Arc<NodeRuntime>,
        revision: Arc<Revision>,
        evictions: Evictions,
    ) -> Result<RunningDeployment, PrepareError> {
        node.board_for(&revision.registered.name).begin();
        let (node, workers) = (Arc::clone(node), Vec::new());
        let mut running = RunningDeployment { node, revision, workers, _evictions: evictions };
        for index in 0..running.revision.spec.workers {
            match start_worker(&running.node, &running.revision, index) {
                Ok(worker) => running.workers.push(worker),
                Err(error) => {
                    running.stop(Leave::Nobody);
                    return Err(PrepareError::Unavailable(format!("no thread for worker {index}: {error}")));
                }
            }
        }
        tracing::info!(
            deployment = running.revision.registered.name,
            revision = running.revision.registered.revision,
            workers = running.workers.len(),
            "started"
        );
        Ok(running)
    }

    pub fn shared(&self) -> Arc<Revision> {
        Arc::clone(&self.revision)
    }

    /// Goes on in another revision, which this one can become: each worker changes at its next batch
    /// boundary, without leaving the group.
    pub fn swap(&mut self, node: &Arc<NodeRuntime>, next: Arc<Revision>) {
        node.board_for(&next.registered.name).begin();
        for (index, worker) in (0..).zip(&self.workers) {
            // One that has panicked is started anew with everything else: the supervisor looks for it.
            let _ = worker.commands.send(Command::Swap(Box::new(swap(node, &self.revision, &next, index))));
        }
        // Calls that end by themselves lose nothing; what does not is handled by the next revision.
        self.revision.linked.interrupt_in(SWAP_PATIENCE);
        self.revision = next;
    }
}

impl Running for RunningDeployment {
    fn revision(&self) -> u64 {
        self.revision.registered.revision
    }

    fn is_broken(&self) -> bool {
        is_broken(&self.workers)
    }

    /// One member that comes and goes is enough.
    fn rejoin(&self) {
        if let Some(worker) = self.workers.first() {
            // One that has ended is no member.
            let _ = worker.commands.send(Command::Rejoin);
        }
    }

    /// What a worker that panicked held counts as closed, as after a crash.
    fn stop(self, leave: Leave) {
        for worker in &self.workers {
            let leave = leave == Leave::All;
            // A worker that has ended already needs no command.
            let _ = worker.commands.send(Command::Stop { leave });
        }
        // Only now, so that a worker whose call has ended finds the command.
        self.revision.linked.interrupt_in(Duration::ZERO);
        let panicked = join(self.workers);
        if panicked.is_empty() {
            return;
        }
        let registered = &self.revision.registered;
        for (worker, reason) in panicked {
            tracing::error!(deployment = registered.name, worker, reason, "a worker panicked");
            if let Some(board) = self.node.board(&registered.name) {
                board.worker_lost(worker);
            }
        }
        // Of the others, which have given theirs back, nothing is held.
        for partition in 0..self.revision.partitions {
            self.node.leases.reclaim(&self.node.store_dir(registered, partition));
        }
    }
}

/// True if a worker has ended. Before it is told to it does so only by a panic, which is a fault of this
/// program: its partitions would stand still, and be shown as running.
fn is_broken(workers: &[RunningWorker]) -> bool {
    workers.iter().any(|worker| worker.thread.is_finished())
}

/// Waits for the end of every worker. Answers which ones panicked, and what they said.
fn join(workers: Vec<RunningWorker>) -> Vec<(u32, String)> {
    let ended = (0..).zip(workers).map(|(index, worker)| (index, worker.thread.join()));
    ended.filter_map(|(index, end)| Some((index, words(&*end.err()?)))).collect()
}

/// What a panic said.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason").to_owned()
}

/// What a worker of `former` needs to go on in `next`.
fn swap(node: &Arc<NodeRuntime>, former: &Revision, next: &Arc<Revision>, index: u32) -> Swap<Consumer> {
    let writes_elsewhere = clients::sink_spec(former) != clients::sink_spec(next);
    let restorer = KafkaRestorer::new(Arc::clone(node), Arc::clone(next));
    let instances = Arc::clone(next);
    let mut ready = instances_for(node, next, index);
    Swap {
        revision: next.registered.revision,
        commit: next.spec.commit.clone(),
        trial: Arc::clone(&next.trial),
        retries: next.registered.retries.clone(),
        config: restorer.task_config(),
        handlers: Box::new(move |partition| match ready.remove(&partition) {
            Some(handler) => Ok(handler),
            None => instances.handler(partition).map_err(|error| error.to_string()),
        }),
        consumers: clients::consumers(node, next, index),
        restorer: Box::new(restorer),
        relay: Box::new(node.relays.courier(&next.stations)),
        letters: Box::new(KafkaLetters::new(node, next)),
        sinks: writes_elsewhere.then(|| clients::sinks(node, next, index)),
    }
}

/// For the tasks that the worker has now, made while the former revision goes on: the worker only puts them in
/// their places. What cannot be made is tried again there, and the failure told.
fn instances_for(node: &NodeRuntime, next: &Revision, index: u32) -> BTreeMap<i32, Box<dyn Handler>> {
    let tasks = node.board_for(&next.registered.name).tasks();
    let of_worker = tasks.into_iter().filter(|(_, task)| task.worker == index);
    of_worker.filter_map(|(partition, _)| Some((partition, next.handler(partition).ok()?))).collect()
}

fn start_worker(
    node: &Arc<NodeRuntime>,
    revision: &Arc<Revision>,
    index: u32,
) -> std::io::Result<RunningWorker> {
    let (commands, inbox) = unbounded();
    let name = &revision.registered.name;
    let half = CommitHalf::new(clients::sinks(node, revision, index), Box::new(SystemClock));
    let committer = Committer::on_thread(&format!("{name}-{index}"), half)?;
    let parts = Parts {
        deployment: name.as_str().into(),
        index,
        revision: revision.registered.revision,
        inputs: revision.inputs.len() as u16,
        guarantee: revision.spec.guarantee,
        commit: revision.spec.commit.clone(),
        trial: Arc::clone(&revision.trial),
        consumers: clients::consumers(node, revision, index),
        committer,
        restorer: Box::new(KafkaRestorer::new(Arc::clone(node), Arc::clone(revision))),
        relay: Box::new(node.relays.courier(&revision.stations)),
        letters: Box::new(KafkaLetters::new(node, revision)),
        commands: inbox,
        board: node.board_for(name),
        budget: Arc::clone(&node.commits),
        clock: Box::new(SystemClock),
    };
    let worker = Worker::new(parts);
    let thread = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || worker.run())?;
    Ok(RunningWorker { commands, thread })
}

/// The machine's clocks. All of a process agree, so that workers can share what they have in a second.
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_ms(&self) -> i64 {
        wall_ms()
    }

    fn monotonic(&self) -> std::time::Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    fn pause(&self, wait: std::time::Duration) {
        std::thread::park_timeout(wait);
    }
}

/// Milliseconds since the epoch; 0 before it.
pub fn wall_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::super::fake_site::wait_until;
    use super::*;

    /// One that does `work` once it is told anything.
    fn worker(work: impl FnOnce() + Send + 'static) -> RunningWorker {
        let (commands, inbox) = unbounded::<Command<Consumer>>();
        let thread = std::thread::spawn(move || {
            inbox.recv().expect("a command");
            work();
        });
        RunningWorker { commands, thread }
    }

    #[test]
    fn a_worker_that_panics_shows_and_is_named_with_its_words() {
        let number = 7;
        let workers = vec![
            worker(|| {}),
            worker(|| panic!("one")),
            worker(move || panic!("number {number}")),
            worker(move || std::panic::panic_any(number)),
        ];
        assert!(!is_broken(&workers));
        workers[1].commands.send(Command::Rejoin).expect("it waits");
        wait_until("a worker has panicked", || is_broken(&workers));
        for index in [0, 2, 3] {
            workers[index].commands.send(Command::Rejoin).expect("it waits");
        }
        let said = |worker, words: &str| (worker, words.to_owned());
        assert_eq!(join(workers), [said(1, "one"), said(2, "number 7"), said(3, "no reason")]);
    }
}
