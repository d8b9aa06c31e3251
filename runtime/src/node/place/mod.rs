//! Where a deployment stands on this node, and what brings it further.
//!
//! A start compiles a module and asks Kafka, and a stop commits: each has a thread of its own, and the
//! supervisor waits for none. What ran before goes on while its successor is made ready, and is in one pair
//! of hands at any time:
//!
//! ```text
//!   begin --> prepare --takes what runs--> swap, or stop and start --arrives--> Up, or Failed
//!                |                                    |
//!                +- given up: what runs is stopped    +- given up: stopped when it has arrived
//!                   at once, and nothing is started
//!
//!   stopped, given up --> Ending --nothing of it runs any more--> Failed, to be tried again; or in no place
//! ```
//!
//! Nothing of a deployment is started while something of it ends, which has its stores: what runs may lose a
//! worker and be stopped while its successor is made ready, which then waits for that.
//!
//! What is made ready has one of a few turns. It loses it when it is ready, when it is given up and, so that it
//! keeps no other deployment from starting, when it hangs; its thread goes on, and what it brings counts still. A
//! start that was given up or hangs is a lost one until it ends, and of those there may be so many.

mod ending;
mod start;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::ending::Ending;
pub(super) use self::start::Start;
use super::deployment::Leave;
use super::registered::Registered;
use super::site::{Running, Site};
use super::trouble::Trouble;

/// A deployment that could not start is tried again after this, doubled up to the maximum.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A deployment whose workers have run for so long had nothing to do with the panic before.
const CALM: Duration = Duration::from_secs(5 * 60);
/// What should have ended so long ago hangs, and so does a start that has been at the same for so long: a commit,
/// the compilation of one module and an answer of Kafka take less.
const HANGS_AFTER: Duration = Duration::from_secs(60);

pub(super) enum Place<S: Site> {
    /// With a newer revision that could not be made ready, or what this one had to wait for, if it had to.
    Up(S::Running, Option<Retry>),
    Failed(Retry),
    Starting(Start<S>),
    Ending(Ending<S>),
}

/// A revision that could not start, or not go on.
pub(super) struct Retry {
    revision: u64,
    again: Instant,
    backoff: Duration,
}

impl Retry {
    fn new(revision: u64, backoff: Duration) -> Retry {
        Retry { revision, again: Instant::now() + backoff, backoff }
    }

    /// At the next look.
    pub(super) fn at_once(revision: u64) -> Retry {
        Retry { revision, again: Instant::now(), backoff: RETRY_MIN }
    }

    /// Of a revision that ran and whose worker has panicked; `before` is what it had to wait for.
    fn after_panic(revision: u64, before: Option<&Retry>) -> Retry {
        let recent = before.filter(|before| before.revision == revision && before.again.elapsed() < CALM);
        Retry::new(revision, recent.map_or(RETRY_MIN, Retry::next_backoff))
    }

    fn next_backoff(&self) -> Duration {
        (self.backoff * 2).min(RETRY_MAX)
    }
}

impl<S: Site> Place<S> {
    /// True if the registry wants another revision than this, or the time to try again has come. Never while
    /// it starts or ends: what comes of that is due at once if it is not what is wanted by then.
    pub(super) fn is_due(&self, registered: &Registered) -> bool {
        match self {
            Place::Starting(_) | Place::Ending(_) => false,
            Place::Up(running, _) if running.revision() == registered.revision => false,
            Place::Up(..) | Place::Failed(_) => {
                self.due_at(registered.revision).is_none_or(|again| again <= Instant::now())
            }
        }
    }

    /// When this revision is to be tried again; none if it has not been tried.
    pub(super) fn due_at(&self, revision: u64) -> Option<Instant> {
        self.retry(revision).map(|retry| retry.again)
    }

    /// How long to wait should this revision fail, again or for the first time.
    fn backoff(&self, revision: u64) -> Duration {
        self.retry(revision).map_or(RETRY_MIN, Retry::next_backoff)
    }

    fn retry(&self, revision: u64) -> Option<&Retry> {
        match self {
            Place::Up(_, Some(retry)) | Place::Failed(retry) if retry.revision == revision => Some(retry),
            Place::Up(..) | Place::Failed(_) | Place::Starting(_) | Place::Ending(_) => None,
        }
    }

    /// It is being made ready, and does not hang. What is ready may have to wait for the end of what ran before.
    pub(super) fn takes_a_turn(&self) -> bool {
        matches!(self, Place::Starting(start) if start.takes_a_turn())
    }

    /// Something of it is about to be over: looking often for what hangs is of no use.
    pub(super) fn is_moving(&self) -> bool {
        match self {
            Place::Up(..) | Place::Failed(_) => false,
            Place::Starting(start) => !start.hangs(),
            Place::Ending(ending) => !ending.hangs(),
        }
    }

    /// A start of it was given up or hangs, and has not ended.
    pub(super) fn has_lost_a_start(&self) -> bool {
        match self {
            Place::Up(..) | Place::Failed(_) => false,
            Place::Starting(start) => start.hangs(),
            Place::Ending(ending) => ending.has_a_start(),
        }
    }

    /// That it hangs, if it does, and what it waits for. The log has it the first time.
    pub(super) fn tell_hanging(&mut self, name: &str) -> Option<String> {
        match self {
            Place::Up(..) | Place::Failed(_) => None,
            Place::Starting(start) => start.tell_hanging(name),
            Place::Ending(ending) => ending.tell_hanging(name),
        }
    }

    /// True once when it was said to hang and does not any more, though it is not over. The log has that as well.
    pub(super) fn goes_on(&mut self, name: &str) -> bool {
        match self {
            Place::Up(..) | Place::Failed(_) => false,
            Place::Starting(start) => start.goes_on(name),
            Place::Ending(ending) => ending.goes_on(name),
        }
    }

    /// Nothing of it is wanted any more.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self, Place::Ending(ending) if ending.is_given_up())
    }

    /// Asks what runs; of a deployment that starts, what goes on meanwhile.
    pub(super) fn of_running<T>(&self, ask: impl FnOnce(&S::Running) -> T) -> Option<T> {
        match self {
            Place::Up(running, _) => Some(ask(running)),
            Place::Failed(_) | Place::Ending(_) => None,
            Place::Starting(start) => start.of_running(ask),
        }
    }

    /// What has lost a worker to a panic is stopped, to be tried again later; its members come back. `wanted`
    /// is the revision that the registry has.
    pub(super) fn without_broken(self, site: &S, name: &str, wanted: u64) -> Place<S> {
        match self {
            Place::Up(running, before) if running.is_broken() => {
                let revision = running.revision();
                let retry = Retry::after_panic(revision, before.as_ref());
                let backoff_s = retry.backoff.as_secs();
                tracing::warn!(deployment = name, revision, backoff_s, "a worker panicked; stopping");
                let next = match wanted == revision {
                    true => format!("it starts again in {backoff_s} s"),
                    false => format!("revision {wanted} is next"),
                };
                let reason = format!("a worker of revision {revision} panicked: see the node's log; {next}");
                site.set_trouble(name, Some(Trouble::new(wanted, reason)));
                Place::tried_again(name, running, Leave::Nobody, retry)
            }
            Place::Starting(start) => {
                start.stop_broken(site, name, wanted);
                Place::Starting(start)
            }
            place => place,
        }
    }

    /// What runs is stopped, to be tried again then.
    pub(super) fn tried_again(name: &str, running: S::Running, leave: Leave, then: Retry) -> Place<S> {
        Place::Ending(Ending::of_running(name, running, leave, Some(then)))
    }

    /// Nothing of the deployment is wanted here any more: what of it is to end, if something is.
    pub(super) fn given_up(self, name: &str) -> Option<Ending<S>> {
        match self {
            Place::Up(running, _) => Some(Ending::of_running(name, running, Leave::All, None)),
            Place::Failed(_) => None,
            Place::Starting(start) => Some(start.given_up(name)),
            Place::Ending(ending) => Some(ending.given_up()),
        }
    }

    /// True once a start, or what ends, need not be waited for.
    pub(super) fn is_over(&mut self, site: &S, name: &str) -> bool {
        match self {
            Place::Up(..) | Place::Failed(_) => false,
            Place::Starting(start) => start.is_over(site),
            Place::Ending(ending) => ending.is_over(site, name),
        }
    }

    /// What comes of it. Waits until it is over.
    pub(super) fn arrived(self, site: &S, name: &str) -> Option<Place<S>> {
        match self {
            Place::Up(..) | Place::Failed(_) => Some(self),
            Place::Starting(start) => Some(start.arrive(site)),
            Place::Ending(ending) => ending.end(site, name).map(Place::Failed),
        }
    }

    /// As if what starts or ends had begun to long ago.
    #[cfg(test)]
    pub(super) fn grow_old(&mut self) {
        match self {
            Place::Up(..) | Place::Failed(_) => {}
            Place::Starting(start) => start.grow_old(),
            Place::Ending(ending) => ending.grow_old(),
        }
    }
}

/// When what hangs now began to.
#[cfg(test)]
fn long_ago() -> Instant {
    Instant::now().checked_sub(HANGS_AFTER).expect("the clock is older than that")
}

/// A panic elsewhere leaves what is locked whole: it is taken and put back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
