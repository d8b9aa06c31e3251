//! Makes this node run what the registry says: one thread that starts, replaces and stops
//! deployments. It waits for no start: `super::place`.
//!
//! ```text
//!   in the registry, not here --> Starting ---> Up (workers run)
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
use std::time::Duration;

use super::deployment::{Leave, RunningDeployment};
use super::inputs::{Finding, Reaction, Watch};
use super::place::{Place, Retry, Start};
use super::registered::Registered;
use super::registry::Registry;
use super::runtime::NodeRuntime;
use super::tidy;

/// The registry is looked at this often even if it does not change, for what is to be tried again.
const LOOK: Duration = Duration::from_millis(200);
/// While something starts, the time between two looks: its end is seen, and others take their turn.
const STARTING_LOOK: Duration = Duration::from_millis(10);

/// Deployments that are started side by side.
const STARTS_AT_ONCE: usize = 8;

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
            let mut places: BTreeMap<String, Place> = BTreeMap::new();
            let mut former: Arc<Registry> = Arc::default();
            let mut ended: Vec<(String, String)> = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                let look = if places.values().any(Place::is_starting) { STARTING_LOOK } else { LOOK };
                let view = node.control_log.wait_beyond(former.next, look);
                take_in(&node, &mut places);
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
                ended.extend(ended_lives(&former, &view));
                bury(&node, &places, &mut ended);
                former = view;
                watch.set(places.values().filter_map(Place::running).collect());
            }
            watch.stop();
            let_go(&node, &mut places);
            // What a start has made all the same goes the same way.
            let starts = places.into_values().filter_map(|place| place.given_up().1);
            let arrived = starts.filter_map(|start| start.arrive(&node).given_up().0).collect();
            stop_all(&node, arrived);
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

/// Takes in what the starts that are over have come to. Of one that was given up nothing stays.
fn take_in(node: &NodeRuntime, places: &mut BTreeMap<String, Place>) {
    let is_over = |place: &Place| matches!(place, Place::Starting(start) if start.is_finished());
    let over: Vec<String> =
        places.iter().filter(|(_, place)| is_over(place)).map(|(name, _)| name.clone()).collect();
    for name in over {
        let Some(Place::Starting(start)) = places.remove(&name) else { continue };
        if !start.is_given_up() {
            places.insert(name, start.arrive(node));
            continue;
        }
        let is_deleted = start.is_of_the_deleted;
        if let (Some(deployment), _) = start.arrive(node).given_up() {
            tracing::info!(deployment = name, "not wanted any more; stopping");
            deployment.stop(Leave::All);
        }
        node.set_trouble(&name, None);
        if is_deleted {
            node.forget(&name);
        }
    }
}

/// Stops what has been deleted since the last look, and forgets it.
fn end(node: &NodeRuntime, places: &mut BTreeMap<String, Place>, former: &Registry, view: &Registry) {
    for name in gone(former, view) {
        let (running, start) = places.remove(name).map(Place::given_up).unwrap_or_default();
        if let Some(deployment) = running {
            tracing::info!(deployment = name, "deleted; stopping");
            deployment.stop(Leave::All);
        }
        match start {
            Some(mut start) => {
                start.is_of_the_deleted = true;
                places.insert(name.to_owned(), Place::Starting(start));
            }
            None => node.forget(name),
        }
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

/// Begins what is due: so many at once, new revisions first, then what has waited longest.
fn reconcile(
    node: &Arc<NodeRuntime>,
    places: &mut BTreeMap<String, Place>,
    view: &Registry,
    stopping: &Arc<AtomicBool>,
) {
    rest(node, places, view);
    let starting = places.values().filter(|place| place.is_starting()).count();
    let mut due: Vec<&Registered> = view
        .deployments
        .values()
        .filter(|registered| !registered.paused)
        .filter(|registered| places.get(&registered.name).is_none_or(|place| place.is_due(registered)))
        .collect();
    due.sort_by_key(|registered| {
        places.get(&registered.name).and_then(|place| place.due_at(registered.revision))
    });
    for registered in due.into_iter().take(STARTS_AT_ONCE.saturating_sub(starting)) {
        let place = places.remove(&registered.name);
        places.insert(registered.name.clone(), Start::begin(node, place, registered, stopping));
    }
}

/// Lives that have ended since the last look: name and incarnation. Not one that is kept for the next
/// deployment of the name.
fn ended_lives(former: &Registry, view: &Registry) -> Vec<(String, String)> {
    if former.next == view.next {
        return Vec::new();
    }
    let lives = former.lives().into_iter();
    lives.filter(|(name, incarnation)| !view.is_alive(name, incarnation)).collect()
}

/// Deletes the state of lives that have ended, once nothing of them runs here any more or may be about to.
fn bury(node: &NodeRuntime, places: &BTreeMap<String, Place>, ended: &mut Vec<(String, String)>) {
    ended.retain(|(name, incarnation)| {
        let starts = places.get(name).is_some_and(
            |place| matches!(place, Place::Starting(start) if start.registered.incarnation == *incarnation),
        );
        if !starts {
            tidy::life_ended(node, name, incarnation);
        }
        starts
    });
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
        let (running, start) = place.given_up();
        if let Some(deployment) = running {
            tracing::info!(deployment = registered.name, "paused; stopping");
            deployment.stop(Leave::All);
        }
        places.extend(start.map(|start| (registered.name.clone(), Place::Starting(start))));
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

/// Of a node that drains, which is done when no start is left that might bring something. At that look stores
/// are closed once more: what the last start brought has left its own open.
fn give_away(node: &NodeRuntime, places: &mut BTreeMap<String, Place>) {
    if node.drain.is_done() {
        return;
    }
    let running = places.values().filter_map(Place::running).count();
    if running > 0 {
        tracing::info!(deployments = running, "draining; stopping");
    }
    for name in places.keys() {
        node.set_trouble(name, None);
    }
    let_go(node, places);
    node.drain.set_done(places.is_empty());
}

/// Stops everything: others take up at once what its members leave. Starts are given up, and stay in their
/// places until they arrive.
fn let_go(node: &NodeRuntime, places: &mut BTreeMap<String, Place>) {
    let mut leaving = Vec::new();
    for (name, place) in std::mem::take(places) {
        let (running, start) = place.given_up();
        leaving.extend(running);
        places.extend(start.map(|start| (name, Place::Starting(start))));
    }
    stop_all(node, leaving);
}

fn stop_all(node: &NodeRuntime, deployments: Vec<RunningDeployment>) {
    // All at once: a drain must not take longer for having many deployments.
    std::thread::scope(|scope| {
        for deployment in deployments {
            scope.spawn(|| deployment.stop(Leave::All));
        }
    });
    node.close_stores();
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::control_entry::Entry;
    use tidemill_proto::v1::{DeleteEntry, DeployEntry, PauseEntry, ResetEntry};

    use super::*;
    use crate::node::proposal::proposal;
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
            let outcome = self.now.apply(self.now.next, 1, &proposal(entry));
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
}
