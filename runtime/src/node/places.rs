//! Where every deployment stands on this node, beside what the registry says: one look at both brings the one
//! nearer to the other. A place by itself is [`super::place`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::deployment::Leave;
use super::inputs::{Finding, Reaction};
use super::place::{Place, Retry, Start};
use super::registered::Registered;
use super::registry::Registry;
use super::site::{Running, Site};
use super::trouble::Trouble;
use crate::record::Offset;

/// The registry is looked at this often even if it does not change, for what is to be tried again.
const LOOK: Duration = Duration::from_millis(200);
/// While something starts or ends, the time between two looks: its end is seen, and others take their turn.
const MOVING_LOOK: Duration = Duration::from_millis(10);

/// Deployments that are made ready side by side.
const STARTS_AT_ONCE: usize = 8;
/// Starts that were given up or hang, beside those. With so many of them nothing more is started.
const LOST_STARTS_MAX: usize = 64;

/// Name and incarnation.
type Life = (String, String);

/// Where every deployment stands on this node, and what the registry said at the last look.
pub(super) struct Places<S: Site> {
    site: S,
    by_name: BTreeMap<String, Place<S>>,
    former: Arc<Registry>,
    /// Lives that are over, of which something may run here still.
    ended: Vec<Life>,
    /// Nothing is here, and every store is closed.
    is_given_away: bool,
    /// Nothing is begun any more, and the log says so.
    is_full: bool,
    /// Those that are told to wait for that. Some of them are in no place.
    put_off: BTreeSet<String>,
    /// The node stops.
    stopping: Arc<AtomicBool>,
}

impl<S: Site> Places<S> {
    pub(super) fn new(site: S, stopping: Arc<AtomicBool>) -> Places<S> {
        let (by_name, former, ended, put_off) = Default::default();
        Places { site, by_name, former, ended, is_given_away: false, is_full: false, put_off, stopping }
    }

    /// How far the registry had been read at the last look.
    pub(super) fn seen(&self) -> Offset {
        self.former.next
    }

    /// Nothing is here, and every store is closed.
    pub(super) fn is_given_away(&self) -> bool {
        self.is_given_away
    }

    /// How long to wait for a change of the registry.
    pub(super) fn patience(&self) -> Duration {
        if self.by_name.values().any(Place::is_moving) { MOVING_LOOK } else { LOOK }
    }

    /// Asks everything that runs.
    pub(super) fn running<T>(&self, ask: impl Fn(&S::Running) -> T) -> Vec<T> {
        self.by_name.values().filter_map(|place| place.of_running(&ask)).collect()
    }

    /// Does what there is to do, now that the registry says this; of a node that drains or stops, nothing is
    /// wanted. Answers the lives that have ended, once nothing of them runs here any more.
    pub(super) fn look(&mut self, view: Arc<Registry>, is_wanted: bool) -> Vec<Life> {
        self.collect();
        self.end_deleted(&view);
        if is_wanted {
            self.is_given_away = false;
            self.give_up_broken(&view);
            self.end_paused(&view);
            self.start_due(&view);
        } else {
            self.give_away();
        }
        let ended = self.ended_lives(&view);
        self.former = view;
        ended
    }

    /// Takes in what has come of the starts and stops that are over.
    fn collect(&mut self) {
        let site = &self.site;
        let over = self.by_name.iter_mut();
        let over = over.filter_map(|(name, place)| place.is_over(site, name).then(|| name.clone()));
        for name in over.collect::<Vec<_>>() {
            let place = self.by_name.remove(&name).and_then(|place| place.arrived(&self.site, &name));
            self.by_name.extend(place.map(|place| (name, place)));
        }
    }

    /// Stops what has been deleted since the last look, and forgets it once that has ended.
    fn end_deleted(&mut self, view: &Registry) {
        let former = Arc::clone(&self.former);
        for name in gone(&former, view) {
            self.give_up(name, "deleted");
            match self.by_name.get_mut(name) {
                Some(Place::Ending(ending)) => ending.is_of_the_deleted = true,
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

    /// Nothing of this deployment is wanted here. It stays in its place until it has ended.
    fn give_up(&mut self, name: &str, why: &str) {
        if self.put_off.remove(name) {
            self.site.set_trouble(name, None);
        }
        if self.by_name.get(name).is_none_or(Place::is_given_up) {
            return;
        }
        let Some(place) = self.by_name.remove(name) else { return };
        if place.of_running(|_| ()).is_some() {
            tracing::info!(deployment = name, why, "stopping");
        }
        self.site.set_trouble(name, None);
        let ending = place.given_up(name).map(Place::Ending);
        self.by_name.extend(ending.map(|ending| (name.to_owned(), ending)));
    }

    /// Stops every deployment that has lost a worker to a panic, also one whose successor is made ready.
    fn give_up_broken(&mut self, view: &Registry) {
        let is_broken = |place: &Place<S>| place.of_running(Running::is_broken) == Some(true);
        let broken = self.by_name.iter().filter(|(_, place)| is_broken(place)).map(|(name, _)| name.clone());
        for name in broken.collect::<Vec<_>>() {
            let Some(registered) = view.deployments.get(&name) else { continue };
            let place = self.by_name.remove(&name);
            let place = place.map(|place| place.without_broken(&self.site, &name, registered.revision));
            self.by_name.extend(place.map(|place| (name, place)));
        }
    }

    /// Does what a change of the inputs calls for, unless the deployment has changed itself meanwhile.
    pub(super) fn react(&mut self, finding: Finding) {
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
                self.site.set_trouble(&name, Some(Trouble::new(revision, reason)));
                Leave::All
            }
        };
        if let Some(Place::Up(running, _)) = self.by_name.remove(&name) {
            // The start says what is wrong if it cannot.
            let place = Place::tried_again(&name, running, leave, Retry::at_once(revision));
            self.by_name.insert(name, place);
        }
    }

    /// Begins what is due: so many at once, new revisions first, then what has waited longest.
    fn start_due(&mut self, view: &Registry) {
        let place = |registered: &Registered| self.by_name.get(&registered.name);
        let wanted = view.deployments.values().filter(|registered| !registered.paused);
        let mut due: Vec<&Registered> = wanted
            .filter(|registered| place(registered).is_none_or(|place| place.is_due(registered)))
            .collect();
        due.sort_by_key(|registered| place(registered).and_then(|place| place.due_at(registered.revision)));
        let lost = self.by_name.iter().filter(|(_, place)| place.has_lost_a_start());
        let lost: Arc<[String]> = lost.map(|(name, _)| name.clone()).collect();
        if lost.len() >= LOST_STARTS_MAX {
            return self.put_off(&due, &lost);
        }
        self.is_full = false;
        for name in std::mem::take(&mut self.put_off) {
            self.site.set_trouble(&name, None);
        }
        let turns = self.by_name.values().filter(|place| place.takes_a_turn()).count();
        for registered in due.into_iter().take(STARTS_AT_ONCE.saturating_sub(turns)) {
            let place = self.by_name.remove(&registered.name);
            let place = Start::begin(&self.site, place, registered, &self.stopping);
            self.by_name.insert(registered.name.clone(), place);
        }
    }

    /// Says why nothing of this is begun.
    fn put_off(&mut self, due: &[&Registered], lost: &Arc<[String]>) {
        let starts = lost.len();
        if !std::mem::replace(&mut self.is_full, true) {
            tracing::error!(starts, of = lost.join(", "), "too many starts do not end; no other begins");
        }
        let reason = format!(
            "{starts} starts on this node do not end, so it begins no other: its log says what they wait \
             for; start the node again"
        );
        for registered in due {
            let place = self.by_name.get(&registered.name);
            let reason = match place.and_then(|place| place.of_running(Running::revision)) {
                Some(former) => format!("{reason}; revision {former} goes on meanwhile"),
                None => reason.clone(),
            };
            let trouble = Trouble::with_others(registered.revision, reason, Arc::clone(lost));
            self.site.set_trouble(&registered.name, Some(trouble));
            self.put_off.insert(registered.name.clone());
        }
    }

    /// Says of what hangs that it does, also to who asks why a deployment does not run that waits for it, and no longer
    /// than it does. Answers how many do.
    pub(super) fn tell_hanging(&mut self) -> usize {
        let mut hanging = 0;
        for (name, place) in &mut self.by_name {
            let reason = place.tell_hanging(name);
            if reason.is_some() {
                hanging += 1;
            } else if !place.goes_on(name) {
                continue;
            }
            let registered = self.former.deployments.get(name).filter(|registered| !registered.paused);
            if let Some(registered) = registered {
                let trouble = reason.map(|reason| Trouble::new(registered.revision, reason));
                self.site.set_trouble(name, trouble);
            }
        }
        hanging
    }

    /// Stops everything: others take up at once what its members leave.
    fn give_away(&mut self) {
        if self.is_given_away {
            return;
        }
        for name in self.by_name.keys().chain(&self.put_off).cloned().collect::<BTreeSet<_>>() {
            self.give_up(&name, "the node drains or stops");
        }
        // Of whatever has ended by now: who hangs must not keep the others from writing what they hold.
        self.site.close_stores();
        self.is_given_away = self.by_name.is_empty();
    }

    /// Lives that have ended, once nothing of them runs here any more or may be about to. Not one that is
    /// kept for the next deployment of the name.
    fn ended_lives(&mut self, view: &Registry) -> Vec<Life> {
        if self.former.next != view.next {
            let lives = self.former.lives().into_iter();
            self.ended.extend(lives.filter(|(name, incarnation)| !view.is_alive(name, incarnation)));
        }
        let places = &self.by_name;
        let ends = |name: &str| matches!(places.get(name), Some(Place::Ending(_)));
        self.ended.extract_if(.., |(name, _)| !ends(name)).collect()
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
mod tests;
