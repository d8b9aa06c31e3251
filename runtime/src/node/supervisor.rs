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
use crate::record::Offset;

/// The registry is looked at this often even if it does not change, for what is to be tried again.
const LOOK: Duration = Duration::from_millis(200);
/// A deployment that could not start is tried again after this, doubled up to the maximum.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Deployments that are started side by side.
const STARTS_AT_ONCE: usize = 8;

enum Place {
    /// With a newer revision that could not be made ready, if there is one.
    Up(RunningDeployment, Option<Retry>),
    /// Of this incarnation nothing runs.
    Failed(String, Retry),
}

/// A revision that could not start.
struct Retry {
    revision: u64,
    again: Instant,
    backoff: Duration,
}

impl Retry {
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
            let mut seen = Offset(0);
            let mut lives = BTreeMap::new();
            while !flag.load(Ordering::Relaxed) {
                let view = node.control_log.wait_beyond(seen, LOOK);
                let has_changed = view.next != seen;
                seen = view.next;
                for finding in watch.findings() {
                    react(&node, &mut places, finding);
                }
                node.relays.set_paused(outbox_pauses(&view));
                if node.drain.is_wanted() {
                    give_away(&node, &mut places);
                } else {
                    node.drain.set_done(false);
                    reconcile(&node, &mut places, &view, &flag);
                    if has_changed {
                        bury(&node, &mut lives, &view);
                    }
                }
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

fn reconcile(
    node: &Arc<NodeRuntime>,
    places: &mut BTreeMap<String, Place>,
    view: &Registry,
    stopping: &AtomicBool,
) {
    let gone: Vec<String> = places
        .iter()
        .filter(|(name, place)| {
            view.deployments.get(*name).is_none_or(|now| now.incarnation != place.incarnation())
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in gone {
        if let Some(Place::Up(deployment, _)) = places.remove(&name) {
            tracing::info!(deployment = name, "deleted; stopping");
            deployment.stop(Leave::All);
        }
        node.forget(&name);
    }
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
fn bury(node: &NodeRuntime, lives: &mut BTreeMap<String, String>, view: &Registry) {
    for (name, incarnation) in std::mem::replace(lives, view.lives()) {
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
        return place.unwrap_or_else(|| Place::due(&registered.incarnation, registered.revision));
    }
    let (revision, running) = match (prepared, place) {
        (Ok(revision), Some(Place::Up(running, _))) => (revision, Some(running)),
        (Ok(revision), _) => (revision, None),
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
            Place::Up(running, None)
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
    let retry = Retry { revision: registered.revision, again: Instant::now() + backoff, backoff };
    match place {
        Some(Place::Up(running, _)) => {
            let reason = format!("{error}; revision {} goes on meanwhile", running.revision());
            node.set_trouble(&registered.name, Some((registered.revision, reason)));
            Place::Up(running, Some(retry))
        }
        Some(Place::Failed(..)) | None => {
            node.set_trouble(&registered.name, Some((registered.revision, error.to_string())));
            Place::Failed(registered.incarnation.clone(), retry)
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
            Place::Failed(_, retry) => retry.is_due(registered),
        }
    }

    /// How long to wait should this revision fail, again or for the first time.
    fn backoff(&self, revision: u64) -> Duration {
        match self {
            Place::Up(_, Some(retry)) | Place::Failed(_, retry) if retry.revision == revision => {
                (retry.backoff * 2).min(RETRY_MAX)
            }
            Place::Up(..) | Place::Failed(..) => RETRY_MIN,
        }
    }

    /// Stops a deployment, to be started again at once; the start says what is wrong if it cannot.
    fn tried_again(deployment: RunningDeployment, leave: Leave) -> Place {
        let place = Place::due(deployment.incarnation(), deployment.revision());
        deployment.stop(leave);
        place
    }

    /// To be started at the next look.
    fn due(incarnation: &str, revision: u64) -> Place {
        Place::Failed(incarnation.to_owned(), Retry { revision, again: Instant::now(), backoff: RETRY_MIN })
    }

    fn running(&self) -> Option<Arc<Revision>> {
        match self {
            Place::Up(deployment, _) => Some(deployment.shared()),
            Place::Failed(..) => None,
        }
    }

    fn incarnation(&self) -> &str {
        match self {
            Place::Up(deployment, _) => deployment.incarnation(),
            Place::Failed(incarnation, _) => incarnation,
        }
    }
}
