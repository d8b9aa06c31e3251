//! A site where nothing happens but that it is written down, for the tests of who starts and stops what when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidemill_proto::v1::DeployEntry;
use tidemill_proto::v1::control_entry::Entry;

use super::deployment::Leave;
use super::proposal::proposal;
use super::registered::Registered;
use super::registry::Registry;
use super::revision::PrepareError;
use super::site::{Running, Site};
use super::trouble::Trouble;

/// What comes about at all takes no longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what comes about on another thread.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

/// Does what it is told at once, unless that is held up. What it does has a name, such as `prepare a`.
#[derive(Clone, Default)]
pub struct FakeSite(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told of everything that is not held up any more.
    released: Condvar,
}

#[derive(Default)]
struct State {
    begun: Vec<String>,
    held: BTreeSet<String>,
    /// Whose stores are open: there they are opened once.
    open: BTreeSet<String>,
    broken: BTreeSet<String>,
    troubles: BTreeMap<String, String>,
    compiler_begun: Option<Instant>,
}

/// The deployment `a`, as it is registered.
pub fn registered() -> Registered {
    let mut registry = Registry::default();
    let deploy = DeployEntry { name: "a".into(), incarnation: "a1".into(), ..DeployEntry::default() };
    registry.apply(registry.next, 1, &proposal(Entry::Deploy(deploy)));
    registry.deployments.remove("a").expect("it is deployed")
}

pub struct FakeRunning {
    site: FakeSite,
    name: String,
    revision: u64,
}

impl FakeSite {
    /// Whoever begins this does not come to its end.
    pub fn hold(&self, what: &str) {
        self.lock().held.insert(what.to_owned());
    }

    pub fn release(&self, what: &str) {
        self.lock().held.remove(what);
        self.0.released.notify_all();
    }

    /// A module of somebody is compiled since then.
    pub fn compile_from(&self, begun: Instant) {
        self.lock().compiler_begun = Some(begun);
    }

    /// A worker of what runs panics.
    pub fn break_worker(&self, deployment: &str) {
        self.lock().broken.insert(deployment.to_owned());
    }

    /// How often this was begun.
    pub fn begun(&self, what: &str) -> usize {
        self.lock().begun.iter().filter(|begun| *begun == what).count()
    }

    /// Everything that was begun, in the order in which it was.
    pub fn all_begun(&self) -> Vec<String> {
        self.lock().begun.clone()
    }

    pub fn trouble(&self, deployment: &str) -> Option<String> {
        self.lock().troubles.get(deployment).cloned()
    }

    fn pass(&self, what: String) {
        let mut state = self.lock();
        state.begun.push(what.clone());
        let is_held = |state: &mut State| state.held.contains(&what);
        drop(self.0.released.wait_while(state, is_held).unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site for FakeSite {
    type Ready = Registered;
    type Running = FakeRunning;

    fn prepare(&self, registered: &Registered) -> Result<Registered, PrepareError> {
        self.pass(format!("prepare {}", registered.name));
        Ok(registered.clone())
    }

    fn compiler_begun(&self) -> Option<Instant> {
        self.lock().compiler_begun
    }

    fn start(&self, ready: Registered, before: Option<FakeRunning>) -> Result<FakeRunning, PrepareError> {
        if let Some(before) = before {
            before.stop(Leave::Nobody);
        }
        self.pass(format!("start {}", ready.name));
        assert!(self.lock().open.insert(ready.name.clone()), "the stores of {} are open", ready.name);
        Ok(FakeRunning { site: self.clone(), name: ready.name, revision: ready.revision })
    }

    fn condemn(&self, _registered: &Registered, _error: &PrepareError) {}

    fn set_trouble(&self, deployment: &str, trouble: Option<Trouble>) {
        let mut state = self.lock();
        match trouble {
            Some(trouble) => drop(state.troubles.insert(deployment.to_owned(), trouble.told(|_| true))),
            None => drop(state.troubles.remove(deployment)),
        }
    }

    fn forget(&self, deployment: &str) {
        self.pass(format!("forget {deployment}"));
    }

    fn close_stores(&self) {
        self.pass("close stores".to_owned());
    }
}

impl Running for FakeRunning {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn is_broken(&self) -> bool {
        self.site.lock().broken.contains(&self.name)
    }

    fn rejoin(&self) {
        self.site.pass(format!("rejoin {}", self.name));
    }

    fn stop(self, leave: Leave) {
        let what = if leave == Leave::All { "leave" } else { "stop" };
        self.site.pass(format!("{what} {}", self.name));
        let mut state = self.site.lock();
        state.open.remove(&self.name);
        state.broken.remove(&self.name);
    }
}
