//! Makes this node run what the registry says: one thread that starts, replaces and stops
//! deployments.
//!
//! ```text
//!   in the registry, not here ----> prepare --> Up (workers run)
//!                                      |           |  another revision, made ready meanwhile: swapped in place, or
//!                                      |           |  stop, start; who comes back keeps his place
//!                                      v           v
//!                              Failed, try again   deleted, paused, node drained: stop and leave the group
//!                                      ^           |
//!                                      +-----------+  its inputs are not what they were: `super::inputs`
//!                                                     a worker has panicked: later each time
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::deployment::{Leave, RunningDeployment};
use super::former;
use super::inputs::{Finding, Reaction, Watch};
use super::registered::Registered;
use super::registry::Registry;
use super::revision::{self, PrepareError, Revision};
use super::runtime::NodeRuntime;
use super::tidy;

/// The registry is looked at this often even if it does not change, for what is to be tried again.
const LOOK: Duration = Duration::from_millis(200);
/// A deployment that could not start is tried again after this, doubled up to the maximum.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A deployment whose workers have run for so long had nothing to do with the panic before.
const CALM: Duration = Duration::from_secs(5 * 60);

/// Deployments that are started side by side.
const STARTS_AT_ONCE: usize = 8;

enum Place {
    /// With a newer revision that could not be made ready, or what this one had to wait for, if it had to.
    Up(RunningDeployment, Option<Retry>),
    Failed(Retry),
}

/// A revision that could not start, or not go on.
struct Retry {
    revision: u64,
    again: Instant,
    backoff: Duration,
}

impl Retry {
    fn new(revision: u64, backoff: Duration) -> Retry {
        Retry { revision, again: Instant::now() + backoff, backoff }
    }

    /// Of a revision that ran and whose worker has panicked; `before` is what it had to wait for.
    fn after_panic(revision: u64, before: Option<&Retry>) -> Retry {
        let recent = before.filter(|before| before.revision == revision && before.again.elapsed() < CALM);
        Retry::new(revision, recent.map_or(RETRY_MIN, Retry::next_backoff))
    }

    fn next_backoff(&self) -> Duration {
        (self.backoff * 2).min(RETRY_MAX)
    }

    fn is_due(&self, registered: &Registered) -> bool {
        self.revision != registered.revision || self.again <= Instant::now()
    }
}

/// Ends the thread, and every deployment with it, when stopped.
pub struct Supervisor {
    node: Arc<NodeRuntime>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    pub fn start(node: Arc<NodeRuntime>) -> std::io::Result<Supervisor> {
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopping);
        let watch = Watch::start(Arc::clone(&node))?;
        let supervised = Arc::clone(&node);
        let thread = std::thread::Builder::new().name("supervisor".into()).spawn(move || {
            let node = supervised;
            let mut places = BTreeMap::new();
            let mut former: Arc<Registry> = Arc::default();
            while !flag.load(Ordering::Relaxed) {
                let view = node.control_log.wait_beyond(former.next, LOOK);
                for finding in watch.findings() {
                    react(&node, &mut places, finding);
                }
                node.relays.set_paused(outbox_pauses(&view));
                end(&node, &mut places, &former, &view);
                if node.drain.is_wanted() {
                    give_away(&node, &mut places);
                } else {
                    node.drain.set_done(false);
                    give_up_broken(&node, &mut places);
                    reconcile(&node, &mut places, &view, &flag);
                }
                bury(&node, &former, &view);
                former = view;
                watch.set(places.values().filter_map(Place::running).collect());
            }
            watch.stop();
            stop_all(&node, places);
        })?;
        Ok(Supervisor { node, stopping, thread: Some(thread) })
    }

    /// Commits, closes and leaves every deployment; returns when all of it is done. What is being made ready
    /// is given up.
    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.node.compiler.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the supervisor panicked");
        }
    }
}

/// Stops what has been deleted since the last look, and forgets it.
fn end(node: &NodeRuntime, places: &mut BTreeMap<String, Place>, former: &Registry, view: &Registry) {
    for name in gone(former, view) {
        if let Some(Place::Up(deployment, _)) = places.remove(name) {
            tracing::info!(deployment = name, "deleted; stopping");
            deployment.stop(Leave::All);
        }
        node.forget(name);
    }
}

/// Deployments that are not there any more, or begin another life. By the registry and not by what runs: of
/// one that is paused, or that a drain has given away, the node remembers as much.
fn gone<'a>(former: &'a Registry, view: &Registry) -> Vec<&'a str> {
    let deployments = former.deployments.values();
    let gone = deployments.filter(|before| {
        view.deployments.get(&before.name).is_none_or(|now| now.incarnation != before.incarnation)
    });
    gone.map(|before| before.name.as_str()).collect()
}

/// Stops every deployment that has lost a worker to a panic, to be tried again later.
fn give_up_broken(node: &NodeRuntime, places: &mut BTreeMap<String, Place>) {
    let is_broken = |place: &Place| matches!(place, Place::Up(deployment, _) if deployment.is_broken());
    let broken: Vec<String> =
        places.iter().filter(|(_, place)| is_broken(place)).map(|(name, _)| name.clone()).collect();
    for name in broken {
        let Some(Place::Up(deployment, before)) = places.remove(&name) else { continue };
        let revision = deployment.revision();
        // Its members come back.
        deployment.stop(Leave::Nobody);
        let retry = Retry::after_panic(revision, before.as_ref());
        let backoff_s = retry.backoff.as_secs();
        tracing::warn!(deployment = name, revision, backoff_s, "stopped for a panic; starting again");
        let reason = format!("a worker panicked: see the node's log; it starts again in {backoff_s} s");
        node.set_trouble(&name, Some((revision, reason)));
        places.insert(name, Place::Failed(retry));
    }
}

fn reconcile(
    node: &Arc<NodeRuntime>,
    places: &mut BTreeMap<String, Place>,
    view: &Registry,
    stopping: &AtomicBool,
) {
    rest(node, places, view);
    let due: Vec<&Registered> = view
        .deployments
        .values()
        .filter(|registered| !registered.paused)
        .filter(|registered| places.get(&registered.name).is_none_or(|place| place.is_due(registered)))
        .collect();
    // Side by side: a start compiles a module and asks Kafka, and none should wait for another's.
    for some in due.chunks(STARTS_AT_ONCE) {
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        std::thread::scope(|scope| {
            let starting: Vec<_> = some
                .iter()
                .map(|&registered| {
                    let place = places.remove(&registered.name);
                    (registered, scope.spawn(move || step(node, place, registered, stopping)))
                })
                .collect();
            for (registered, start) in starting {
                match start.join() {
                    Ok(place) => {
                        places.insert(registered.name.clone(), place);
                    }
                    Err(_) => tracing::error!(deployment = registered.name, "its start panicked"),
                }
            }
        });
    }
}

/// Deletes the state of lives that have ended since the last look; nothing of them runs here any more. Not if
/// it is kept for the next deployment of the name.
fn bury(node: &NodeRuntime, former: &Registry, view: &Registry) {
    if former.next == view.next {
        return;
    }
    for (name, incarnation) in former.lives() {
        if !view.is_alive(&name, &incarnation) {
            tidy::life_ended(node, &name, &incarnation);
        }
    }
}

/// By deployment and destination.
fn outbox_pauses(view: &Registry) -> BTreeSet<(String, String)> {
    let of = |name: &String| -> Vec<(String, String)> {
        view.outbox_paused(name).into_iter().map(|destination| (name.clone(), destination)).collect()
    };
    view.deployments.keys().flat_map(of).collect()
}

/// Stops what is paused. Its members leave, so that nobody waits for them and its group is empty.
fn rest(node: &NodeRuntime, places: &mut BTreeMap<String, Place>, view: &Registry) {
    for registered in view.deployments.values().filter(|registered| registered.paused) {
        let Some(place) = places.remove(&registered.name) else { continue };
        if let Place::Up(deployment, _) = place {
            tracing::info!(deployment = registered.name, "paused; stopping");
            deployment.stop(Leave::All);
        }
        node.set_trouble(&registered.name, None);
    }
}

/// What a change of the inputs calls for, unless the deployment has changed itself meanwhile.
fn react(node: &NodeRuntime, places: &mut BTreeMap<String, Place>, finding: Finding) {
    let Finding { deployment: name, revision, reaction } = finding;
    let place = match (places.remove(&name), reaction) {
        (Some(Place::Up(deployment, retry)), reaction) if deployment.revision() == revision => match reaction
        {
            Reaction::Rejoin => {
                tracing::warn!(deployment = name, "partitions are nobody's; joining the group anew");
                deployment.rejoin();
                Some(Place::Up(deployment, retry))
            }
            Reaction::Restart => {
                tracing::info!(deployment = name, "the inputs have changed; starting again");
                Some(Place::tried_again(deployment, Leave::Nobody))
            }
            Reaction::Stop(reason) => {
                tracing::error!(deployment = name, reason, "stopped");
                node.set_trouble(&name, Some((revision, reason)));
                Some(Place::tried_again(deployment, Leave::All))
            }
        },
        (place, _) => place,
    };
    places.extend(place.map(|place| (name, place)));
}

/// The next place of a deployment that is due. What runs goes on while its successor is made ready, and
/// stays if that fails.
fn step(
    node: &Arc<NodeRuntime>,
    place: Option<Place>,
    registered: &Registered,
    stopping: &AtomicBool,
) -> Place {
    let backoff = place.as_ref().map_or(RETRY_MIN, |place| place.backoff(registered.revision));
    let prepared = revision::prepare(node, registered);
    if stopping.load(Ordering::Relaxed) {
        return place.unwrap_or_else(|| Place::due(registered.revision));
    }
    let (revision, running, waited) = match (prepared, place) {
        (Ok(revision), Some(Place::Up(running, _))) => (revision, Some(running), None),
        (Ok(revision), Some(Place::Failed(retry))) => (revision, None, Some(retry)),
        (Ok(revision), None) => (revision, None, None),
        (Err(error), place) => {
            condemn(node, registered, &error);
            return failed(node, place, registered, &error, backoff);
        }
    };
    let started = match running {
        Some(mut running) if running.shared().can_become(&revision) => {
            tracing::info!(deployment = registered.name, revision = registered.revision, "changed; swapping");
            running.swap(node, Arc::new(revision));
            Ok(running)
        }
        Some(running) => {
            tracing::info!(
                deployment = registered.name,
                revision = registered.revision,
                "changed; starting again"
            );
            let leave = leaving(&running.shared(), registered);
            running.stop(leave);
            start(node, revision)
        }
        None => start(node, revision),
    };
    match started {
        Ok(running) => {
            node.set_trouble(&registered.name, None);
            Place::Up(running, waited)
        }
        Err(error) => failed(node, None, registered, &error, backoff),
    }
}

/// A version that is wrong in itself counts as one that fails. Not one whose document this node cannot
/// read: a newer one wrote it.
fn condemn(node: &NodeRuntime, registered: &Registered, error: &PrepareError) {
    let is_read = registered.spec().is_some() && registered.manifest().is_some();
    if is_read && matches!(error, PrepareError::Invalid(_)) {
        node.trials.of(registered).unfit(format!("it cannot start: {error}"));
    }
}

fn failed(
    node: &NodeRuntime,
    place: Option<Place>,
    registered: &Registered,
    error: &PrepareError,
    backoff: Duration,
) -> Place {
    tracing::error!(deployment = registered.name, revision = registered.revision, %error, "cannot start");
    let retry = Retry::new(registered.revision, backoff);
    match place {
        Some(Place::Up(running, _)) => {
            let reason = format!("{error}; revision {} goes on meanwhile", running.revision());
            node.set_trouble(&registered.name, Some((registered.revision, reason)));
            Place::Up(running, Some(retry))
        }
        Some(Place::Failed(..)) | None => {
            node.set_trouble(&registered.name, Some((registered.revision, error.to_string())));
            Place::Failed(retry)
        }
    }
}

/// Who leaves the group when a deployment changes. Members that come back keep their places and take
/// their partitions up at once. One that does not must not keep them, and then all leave: it may be
/// joining just now, which only ends when the others answer. With other inputs nobody's place means the
/// same any more, so the group ends and begins anew: a change of inputs stops it as a whole.
fn leaving(old: &Revision, new: &Registered) -> Leave {
    let topics: BTreeSet<String> = new.topics().into_iter().collect();
    let has: BTreeSet<&str> = old.inputs.iter().map(|input| input.topic.as_str()).collect();
    match new.spec() {
        Some(_) if !topics.iter().map(String::as_str).eq(has) => Leave::All,
        Some(spec) if spec.workers < old.spec.workers => Leave::All,
        Some(_) | None => Leave::Nobody,
    }
}

fn start(node: &Arc<NodeRuntime>, revision: Revision) -> Result<RunningDeployment, PrepareError> {
    let evictions = former::settle(node, &revision)?;
    RunningDeployment::start(node, Arc::new(revision), evictions)
}

/// Of a node that drains: others take up at once what its members leave.
fn give_away(node: &NodeRuntime, places: &mut BTreeMap<String, Place>) {
    if !places.is_empty() {
        tracing::info!(deployments = places.len(), "draining; stopping");
        for name in places.keys() {
            node.set_trouble(name, None);
        }
        stop_all(node, std::mem::take(places));
    }
    node.drain.set_done(true);
}

fn stop_all(node: &NodeRuntime, places: BTreeMap<String, Place>) {
    // All at once: a drain must not take longer for having many deployments.
    std::thread::scope(|scope| {
        for (_, place) in places {
            if let Place::Up(deployment, _) = place {
                scope.spawn(|| deployment.stop(Leave::All));
            }
        }
    });
    node.close_stores();
}

impl Place {
    /// True if the registry wants another revision than this, or the time to try again has come.
    fn is_due(&self, registered: &Registered) -> bool {
        match self {
            Place::Up(running, _) if running.revision() == registered.revision => false,
            Place::Up(_, retry) => retry.as_ref().is_none_or(|retry| retry.is_due(registered)),
            Place::Failed(retry) => retry.is_due(registered),
        }
    }

    /// How long to wait should this revision fail, again or for the first time.
    fn backoff(&self, revision: u64) -> Duration {
        match self {
            Place::Up(_, Some(retry)) | Place::Failed(retry) if retry.revision == revision => {
                retry.next_backoff()
            }
            Place::Up(..) | Place::Failed(..) => RETRY_MIN,
        }
    }

    /// Stops a deployment, to be started again at once; the start says what is wrong if it cannot.
    fn tried_again(deployment: RunningDeployment, leave: Leave) -> Place {
        let place = Place::due(deployment.revision());
        deployment.stop(leave);
        place
    }

    /// To be started at the next look.
    fn due(revision: u64) -> Place {
        Place::Failed(Retry { revision, again: Instant::now(), backoff: RETRY_MIN })
    }

    fn running(&self) -> Option<Arc<Revision>> {
        match self {
            Place::Up(deployment, _) => Some(deployment.shared()),
            Place::Failed(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::control_entry::Entry;
    use tidemill_proto::v1::{ControlEntry, DeleteEntry, DeployEntry, PauseEntry, ResetEntry};

    use super::*;
    use crate::node::registry::Outcome;

    /// A registry that changes, and what it was at the last look.
    #[derive(Default)]
    struct Fleet {
        former: Registry,
        now: Registry,
    }

    impl Fleet {
        fn deploy(&mut self, name: &str, incarnation: &str) {
            let (name, incarnation) = (name.to_owned(), incarnation.to_owned());
            let expected_revision = self.now.revision(&name);
            let deploy = DeployEntry { name, expected_revision, incarnation, ..DeployEntry::default() };
            self.apply(Entry::Deploy(deploy));
        }

        fn pause(&mut self, name: &str) {
            let (name, expected_revision) = (name.to_owned(), self.now.revision(name));
            let pause = PauseEntry { name, expected_revision, paused: true, ..PauseEntry::default() };
            self.apply(Entry::Pause(pause));
        }

        fn reset(&mut self, name: &str, incarnation: &str) {
            let (name, incarnation) = (name.to_owned(), incarnation.to_owned());
            let expected_revision = self.now.revision(&name);
            let reset = ResetEntry { name, expected_revision, incarnation, ..ResetEntry::default() };
            self.apply(Entry::Reset(reset));
        }

        fn delete(&mut self, name: &str, keep_state: bool) {
            let (name, expected_revision) = (name.to_owned(), self.now.revision(name));
            let delete = DeleteEntry { name, expected_revision, keep_state, ..DeleteEntry::default() };
            self.apply(Entry::Delete(delete));
        }

        fn apply(&mut self, entry: Entry) {
            let entry = ControlEntry { entry: Some(entry), ..ControlEntry::default() };
            let outcome = self.now.apply(self.now.next, 1, &entry);
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        }

        fn look(&mut self) -> Vec<String> {
            let former = std::mem::replace(&mut self.former, self.now.clone());
            gone(&former, &self.now).into_iter().map(str::to_owned).collect()
        }
    }

    #[test]
    fn what_has_ended_is_known_from_the_registry_whether_it_ran_or_not() {
        let mut fleet = Fleet::default();
        for (name, incarnation) in [("a", "a1"), ("b", "b1"), ("c", "c1"), ("d", "d1")] {
            fleet.deploy(name, incarnation);
        }
        assert!(fleet.look().is_empty());
        fleet.deploy("a", "");
        fleet.pause("b");
        fleet.pause("c");
        assert!(fleet.look().is_empty(), "another version is the same life, and so is a pause");
        fleet.delete("b", false);
        fleet.reset("c", "c2");
        fleet.delete("d", true);
        assert_eq!(fleet.look(), ["b", "c", "d"]);
        assert!(fleet.look().is_empty(), "once");
        // Between two looks.
        fleet.delete("a", false);
        fleet.deploy("a", "a2");
        fleet.deploy("e", "e1");
        fleet.delete("e", false);
        assert_eq!(fleet.look(), ["a"]);
    }

    #[test]
    fn a_panic_soon_after_the_last_one_waits_longer() {
        let first = Retry::after_panic(3, None);
        assert_eq!(first.backoff, RETRY_MIN);
        let second = Retry::after_panic(3, Some(&first));
        assert_eq!(second.backoff, 2 * RETRY_MIN);
        let last = (0..9).fold(second, |before, _| Retry::after_panic(3, Some(&before)));
        assert_eq!(last.backoff, RETRY_MAX);
        assert_eq!(Retry::after_panic(4, Some(&last)).backoff, RETRY_MIN, "another revision");
        let Some(long_ago) = Instant::now().checked_sub(CALM) else { return };
        let calm = Retry { again: long_ago, ..last };
        assert_eq!(Retry::after_panic(3, Some(&calm)).backoff, RETRY_MIN, "it had run for long");
    }
}
