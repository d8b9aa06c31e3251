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
use super::site::{Running, Site};
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
        let watch = Watch::start(Arc::clone(&node))?;
        let places = Places::new(Arc::clone(&node), Arc::clone(&stopping));
        let thread = std::thread::Builder::new().name("supervisor".into());
        let thread = thread.spawn({
            let node = Arc::clone(&node);
            move || supervise(&node, places, watch)
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

/// Until the node stops: looks at what should be, at what is, and makes the one of the other.
fn supervise(node: &Arc<NodeRuntime>, mut places: Places<Arc<NodeRuntime>>, watch: Watch) {
    while !places.stopping.load(Ordering::Relaxed) {
        let view = node.control_log.wait_beyond(places.former.next, places.patience());
        node.relays.set_paused(outbox_pauses(&view));
        for finding in watch.findings() {
            places.react(finding);
        }
        let is_wanted = !node.drain.is_wanted();
        for (name, incarnation) in places.look(view, is_wanted) {
            tidy::life_ended(node, &name, &incarnation);
        }
        node.drain.set_done(places.is_given_away);
        watch.set(places.running(RunningDeployment::shared));
    }
    watch.stop();
    places.stop();
}

/// By deployment and destination.
fn outbox_pauses(view: &Registry) -> BTreeSet<(String, String)> {
    let of = |name: &String| -> Vec<(String, String)> {
        view.outbox_paused(name).into_iter().map(|destination| (name.clone(), destination)).collect()
    };
    view.deployments.keys().flat_map(of).collect()
}

/// Name and incarnation.
type Life = (String, String);

/// Where every deployment stands on this node, and what the registry said at the last look.
struct Places<S: Site> {
    site: S,
    by_name: BTreeMap<String, Place<S>>,
    former: Arc<Registry>,
    /// Lives that are over, of which something may run here still.
    ended: Vec<Life>,
    /// Nothing is here, and every store is closed.
    is_given_away: bool,
    /// The node stops.
    stopping: Arc<AtomicBool>,
}

impl<S: Site> Places<S> {
    fn new(site: S, stopping: Arc<AtomicBool>) -> Places<S> {
        let (by_name, former, ended) = Default::default();
        Places { site, by_name, former, ended, is_given_away: false, stopping }
    }

    /// How long to wait for a change of the registry.
    fn patience(&self) -> Duration {
        if self.by_name.values().any(Place::is_starting) { STARTING_LOOK } else { LOOK }
    }

    /// Asks everything that runs.
    fn running<T>(&self, ask: impl Fn(&S::Running) -> T) -> Vec<T> {
        self.by_name.values().filter_map(|place| place.of_running(&ask)).collect()
    }

    /// Does what there is to do, now that the registry says this; nothing is wanted on a node that drains.
    /// Answers the lives that have ended, once nothing of them runs here any more.
    fn look(&mut self, view: Arc<Registry>, is_wanted: bool) -> Vec<Life> {
        self.take_in();
        self.end_deleted(&view);
        if is_wanted {
            self.is_given_away = false;
            self.give_up_broken();
            self.end_paused(&view);
            self.start_due(&view);
        } else {
            self.give_away();
        }
        let ended = self.ended_lives(&view);
        self.former = view;
        ended
    }

    /// Takes in what the starts that are over have come to. Of one that was given up nothing stays.
    fn take_in(&mut self) {
        let is_over = |place: &Place<S>| matches!(place, Place::Starting(start) if start.is_finished());
        for name in self.names(is_over) {
            let Some(Place::Starting(start)) = self.by_name.remove(&name) else { continue };
            if !start.is_given_up() {
                self.by_name.insert(name, start.arrive(&self.site));
                continue;
            }
            let is_deleted = start.is_of_the_deleted;
            if let (Some(running), _) = start.arrive(&self.site).given_up() {
                tracing::info!(deployment = name, "not wanted any more; stopping");
                running.stop(Leave::All);
            }
            self.site.set_trouble(&name, None);
            if is_deleted {
                self.site.forget(&name);
            }
        }
    }

    fn names(&self, which: impl Fn(&Place<S>) -> bool) -> Vec<String> {
        self.by_name.iter().filter(|(_, place)| which(place)).map(|(name, _)| name.clone()).collect()
    }

    /// Stops what has been deleted since the last look, and forgets it.
    fn end_deleted(&mut self, view: &Registry) {
        let former = Arc::clone(&self.former);
        for name in gone(&former, view) {
            self.give_up(name, "deleted");
            match self.by_name.get_mut(name) {
                Some(Place::Starting(start)) => start.is_of_the_deleted = true,
                _ => self.site.forget(name),
            }
        }
    }

    /// Stops what is paused. Its members leave, so that nobody waits for them and its group is empty.
    fn end_paused(&mut self, view: &Registry) {
        for registered in view.deployments.values().filter(|registered| registered.paused) {
            self.give_up(&registered.name, "paused");
        }
    }

    /// Nothing of this deployment is wanted here. A start stays in its place until it arrives.
    fn give_up(&mut self, name: &str, why: &str) {
        let Some(place) = self.by_name.remove(name) else { return };
        let (running, start) = place.given_up();
        if let Some(running) = running {
            tracing::info!(deployment = name, why, "stopping");
            running.stop(Leave::All);
        }
        self.by_name.extend(start.map(|start| (name.to_owned(), Place::Starting(start))));
        self.site.set_trouble(name, None);
    }

    /// Stops every deployment that has lost a worker to a panic, to be tried again later.
    fn give_up_broken(&mut self) {
        let is_broken = |place: &Place<S>| matches!(place, Place::Up(running, _) if running.is_broken());
        for name in self.names(is_broken) {
            let Some(Place::Up(running, before)) = self.by_name.remove(&name) else { continue };
            let revision = running.revision();
            // Its members come back.
            running.stop(Leave::Nobody);
            let retry = Retry::after_panic(revision, before.as_ref());
            let backoff_s = retry.backoff.as_secs();
            tracing::warn!(deployment = name, revision, backoff_s, "stopped for a panic; starting again");
            let reason = format!("a worker panicked: see the node's log; it starts again in {backoff_s} s");
            self.site.set_trouble(&name, Some((revision, reason)));
            self.by_name.insert(name, Place::Failed(retry));
        }
    }

    /// Does what a change of the inputs calls for, unless the deployment has changed itself meanwhile.
    fn react(&mut self, finding: Finding) {
        let Finding { deployment: name, revision, reaction } = finding;
        let Some(Place::Up(running, _)) = self.by_name.get(&name) else { return };
        if running.revision() != revision {
            return;
        }
        let leave = match reaction {
            Reaction::Rejoin => {
                tracing::warn!(deployment = name, "partitions are nobody's; joining the group anew");
                running.rejoin();
                return;
            }
            Reaction::Restart => {
                tracing::info!(deployment = name, "the inputs have changed; starting again");
                Leave::Nobody
            }
            Reaction::Stop(reason) => {
                tracing::error!(deployment = name, reason, "stopped");
                self.site.set_trouble(&name, Some((revision, reason)));
                Leave::All
            }
        };
        if let Some(Place::Up(running, _)) = self.by_name.remove(&name) {
            self.by_name.insert(name, Place::tried_again(running, leave));
        }
    }

    /// Begins what is due: so many at once, new revisions first, then what has waited longest.
    fn start_due(&mut self, view: &Registry) {
        let starting = self.by_name.values().filter(|place| place.is_starting()).count();
        let place = |registered: &Registered| self.by_name.get(&registered.name);
        let wanted = view.deployments.values().filter(|registered| !registered.paused);
        let mut due: Vec<&Registered> = wanted
            .filter(|registered| place(registered).is_none_or(|place| place.is_due(registered)))
            .collect();
        due.sort_by_key(|registered| place(registered).and_then(|place| place.due_at(registered.revision)));
        for registered in due.into_iter().take(STARTS_AT_ONCE.saturating_sub(starting)) {
            let place = self.by_name.remove(&registered.name);
            let place = Start::begin(&self.site, place, registered, &self.stopping);
            self.by_name.insert(registered.name.clone(), place);
        }
    }

    /// Stops everything: others take up at once what its members leave.
    fn give_away(&mut self) {
        if self.is_given_away {
            return;
        }
        let running = self.running(|_| ()).len();
        if running > 0 {
            tracing::info!(deployments = running, "draining; stopping");
        }
        for name in self.by_name.keys() {
            self.site.set_trouble(name, None);
        }
        self.let_go();
        // At the last look as well: what the last start brought has left its stores open.
        self.is_given_away = self.by_name.is_empty();
    }

    /// Starts are given up, and stay in their places until they arrive.
    fn let_go(&mut self) {
        let mut leaving = Vec::new();
        for (name, place) in std::mem::take(&mut self.by_name) {
            let (running, start) = place.given_up();
            leaving.extend(running);
            self.by_name.extend(start.map(|start| (name, Place::Starting(start))));
        }
        self.stop_all(leaving);
    }

    fn stop_all(&self, leaving: Vec<S::Running>) {
        // All at once: a drain must not take longer for having many deployments.
        std::thread::scope(|scope| {
            for running in leaving {
                scope.spawn(|| running.stop(Leave::All));
            }
        });
        self.site.close_stores();
    }

    /// Stops everything. What a start has made all the same goes the same way.
    fn stop(mut self) {
        self.let_go();
        let starts = std::mem::take(&mut self.by_name).into_values().filter_map(|place| place.given_up().1);
        let arrived = starts.filter_map(|start| start.arrive(&self.site).given_up().0).collect();
        self.stop_all(arrived);
    }

    /// Lives that have ended since the last look, once nothing of them runs here any more or may be about to.
    /// Not one that is kept for the next deployment of the name.
    fn ended_lives(&mut self, view: &Registry) -> Vec<Life> {
        if self.former.next != view.next {
            let lives = self.former.lives().into_iter();
            self.ended.extend(lives.filter(|(name, incarnation)| !view.is_alive(name, incarnation)));
        }
        let places = &self.by_name;
        let starts = |(name, incarnation): &Life| {
            let place = places.get(name);
            place.is_some_and(
                |place| matches!(place, Place::Starting(start) if start.incarnation() == incarnation),
            )
        };
        self.ended.extract_if(.., |life| !starts(life)).collect()
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
