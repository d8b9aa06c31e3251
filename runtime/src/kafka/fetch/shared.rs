//! The worker's and the threads' common ground: the state behind its lock, who is told of changes, and the threads themselves.
//! Locked a few times for each fetch, never for a record.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::cluster::Leader;
use super::state::{Answer, Plan, Run, Silence, State, Step, Wanted};
use super::{Arrival, Fetching, Wake, broker, leaders};
use crate::kafka::wire::{Access, Address, ConnectionError};
use crate::record::InputPartition;

pub(super) struct Shared {
    pub access: Access,
    pub fetching: Fetching,
    pub topics: Vec<String>,
    wake: Wake,
    state: Mutex<State>,
    /// Something has changed that a thread may wait for.
    changed: Condvar,
    /// A thread looks for leaders. Changed under the lock of the state.
    is_finding: AtomicBool,
    has_panicked: AtomicBool,
}

impl Shared {
    /// `ids` as [`State::of`] has them.
    pub fn new(
        access: Access,
        fetching: Fetching,
        topics: Vec<String>,
        ids: &[Uuid],
        wake: Wake,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            access,
            fetching,
            topics,
            wake,
            state: Mutex::new(State::of(ids)),
            changed: Condvar::new(),
            is_finding: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
        })
    }

    /// No panic leaves the state half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, begins the threads that are needed then, and tells those that wait.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        self.serve(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    // By the worker.

    pub fn start(&self, partition: InputPartition, next: i64, epoch: i32) -> Run {
        self.state().start(partition, next, epoch)
    }

    pub fn stop(&self, partition: InputPartition) {
        self.state().stop(partition);
        self.changed.notify_all();
    }

    /// Has these fetched at once: what waits at a broker without them is called back, because it may wait for long.
    pub fn begin(self: &Arc<Self>, started: &[InputPartition]) {
        self.change(|state| state.call_back(started));
    }

    /// Has the threads that are needed by now: time alone makes some so, and one that could not be made is missing.
    pub fn tend(self: &Arc<Self>) {
        self.change(|_| {});
    }

    pub fn has_arrived(&self) -> bool {
        self.state().has_arrived() || self.has_panicked()
    }

    /// True when a thread that fetches panicked: what it should have brought is missing.
    pub fn has_panicked(&self) -> bool {
        self.has_panicked.load(Ordering::SeqCst)
    }

    pub fn arrived(&self) -> VecDeque<Arrival> {
        self.state().take_arrived()
    }

    /// So many bytes of a partition were taken, or dropped.
    pub fn taken(&self, partition: InputPartition, bytes: usize) {
        if bytes > 0 {
            self.state().taken(partition, bytes);
            self.changed.notify_all();
        }
    }

    pub fn obstacle(&self) -> Option<String> {
        self.state().obstacle()
    }

    pub fn silence(&self, partition: InputPartition) -> Silence {
        self.state().silence(&partition, Instant::now())
    }

    pub fn end(&self) {
        self.state().end();
        self.changed.notify_all();
    }

    // By a broker's thread.

    /// Waits until there is something to fetch from a broker; `None` = it leads nothing that runs, and its thread ends.
    pub fn plan(&self, broker: i32) -> Option<Plan> {
        let mut state = self.state();
        loop {
            match state.step(broker, &self.fetching, Instant::now()) {
                Step::Fetch(plan) => return Some(plan),
                Step::Wait(until) => state = self.wait(state, until),
                Step::End => return None,
            }
        }
    }

    /// Where a broker's thread connects; `None` = it is not needed any more.
    pub fn address(&self, broker: i32) -> Option<Address> {
        self.state().address(broker)
    }

    pub fn connected(&self, broker: i32, address: &Address, socket: TcpStream) {
        self.state().connected(broker, address, socket);
    }

    pub fn was_interrupted(&self, broker: i32) -> bool {
        self.state().was_interrupted(broker)
    }

    /// That a broker refuses what it should not, each second perhaps, is told now and then.
    pub fn is_refusal_told(&self) -> bool {
        self.state().refusals.is_due()
    }

    /// Keeps what came back, and says so.
    pub fn answered(self: &Arc<Self>, broker: i32, answers: Vec<(Wanted, Answer)>) {
        let mut state = self.state();
        state.answered(broker, answers, Instant::now());
        let has_arrived = state.has_arrived();
        self.serve(&mut state);
        drop(state);
        if has_arrived {
            (self.wake)();
        }
    }

    /// A broker's thread ends without having been told to.
    pub fn lost(self: &Arc<Self>, broker: i32, error: &ConnectionError) {
        let obstacle = error.lasts().then(|| error.to_string());
        self.change(|state| {
            if matches!(error, ConnectionError::Late { .. }) {
                state.out_of_time(broker);
            }
            if state.lost(broker, obstacle, Instant::now()) {
                tracing::warn!(broker, %error, "records cannot be fetched; trying again");
            }
        });
    }

    // By the thread that looks for leaders.

    /// Topics of which the cluster is to be asked now who leads what, and where, one after the other; `None` = there are none,
    /// and the thread ends.
    pub fn look(&self) -> Option<(BTreeSet<u16>, Vec<Address>)> {
        let now = Instant::now();
        let mut state = self.state();
        let topics = state.sought(now);
        if topics.is_empty() {
            self.is_finding.store(false, Ordering::SeqCst);
            return None;
        }
        let mut addresses = state.look(now);
        for address in &self.access.bootstrap {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        Some((topics, addresses))
    }

    pub fn has_ended(&self) -> bool {
        self.state().has_ended()
    }

    pub fn found(self: &Arc<Self>, addresses: HashMap<i32, Address>, leaders: Vec<(InputPartition, Leader)>) {
        self.change(|state| state.found(addresses, leaders, Instant::now()));
    }

    /// No broker has said who leads what, for a while. What of that may pass is no news.
    pub fn unanswered(&self, errors: &[ConnectionError]) {
        if let Some(error) = errors.iter().find(|error| error.lasts()) {
            self.state().unanswered(&error.to_string());
        }
    }

    /// Waits for that long, or until there is no more need.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state();
        while Instant::now() < until && !state.sought(Instant::now()).is_empty() {
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

    /// Begins the threads that are needed and do not run.
    fn serve(self: &Arc<Self>, state: &mut State) {
        for (id, address) in state.unserved() {
            let shared = Arc::clone(self);
            if self.spawn(state, format!("fetch-{id}"), move || broker::run(&shared, id)) {
                state.serves(id, address);
            }
        }
        if !self.is_finding.load(Ordering::SeqCst) && !state.sought(Instant::now()).is_empty() {
            let shared = Arc::clone(self);
            let is_finding = self.spawn(state, "fetch-leaders".to_owned(), move || leaders::run(&shared));
            self.is_finding.store(is_finding, Ordering::SeqCst);
        }
    }

    /// A thread that cannot be made is tried again with the next change, and by [`Shared::tend`].
    fn spawn(
        self: &Arc<Self>,
        state: &mut State,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> bool {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                shared.has_panicked.store(true, Ordering::SeqCst);
                (shared.wake)();
            }
        });
        if let Err(error) = &thread
            && state.shortage.is_due()
        {
            tracing::warn!(%error, "a thread that fetches records cannot be made; trying again");
        }
        thread.is_ok()
    }
}
