//! A start that is under way, on a thread of its own: a revision is made ready while what ran before goes on,
//! and runs in its place then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ending::Ending;
use super::{HANGS_AFTER, Place, RETRY_MIN, Retry, lock};
use crate::node::deployment::words;
use crate::node::registered::Registered;
use crate::node::revision::PrepareError;
use crate::node::site::{Running, Site};

/// What a start does that has been made ready.
const READY: &str = "its start, which stops what ran before or starts workers";
/// And before that.
const NOT_READY: &str = "its start, which compiles the module or asks Kafka";

pub(in crate::node) struct Start<S: Site> {
    course: Arc<Course<S>>,
    thread: JoinHandle<Place<S>>,
    since: Instant,
    /// The log says that it hangs.
    is_told: bool,
}

/// What a start shares with who looks at it.
struct Course<S: Site> {
    registered: Registered,
    /// What to wait should it fail.
    backoff: Duration,
    /// Where the deployment stands without this, which is no start. Whoever takes it first has it: this one
    /// once it is ready, or who gives it up.
    former: Mutex<Option<Place<S>>>,
    /// Since then it is made ready, or cannot be.
    ready: OnceLock<Instant>,
    given_up: AtomicBool,
    /// The node stops.
    stopping: Arc<AtomicBool>,
}

impl<S: Site> Course<S> {
    fn new(former: Option<Place<S>>, registered: &Registered, stopping: &Arc<AtomicBool>) -> Course<S> {
        Course {
            registered: registered.clone(),
            backoff: former.as_ref().map_or(RETRY_MIN, |former| former.backoff(registered.revision)),
            former: Mutex::new(former),
            ready: OnceLock::new(),
            given_up: AtomicBool::new(false),
            stopping: Arc::clone(stopping),
        }
    }

    fn is_over(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) || self.stopping.load(Ordering::Relaxed)
    }
}

impl<S: Site> Start<S> {
    /// Brings a deployment from where it stands to what the registry says, unless `stopping`.
    pub(in crate::node) fn begin(
        site: &S,
        former: Option<Place<S>>,
        registered: &Registered,
        stopping: &Arc<AtomicBool>,
    ) -> Place<S> {
        let course = Arc::new(Course::new(former, registered, stopping));
        let thread = {
            let (site, course) = (site.clone(), Arc::clone(&course));
            let thread = std::thread::Builder::new().name(format!("start-{}", registered.name));
            thread.spawn(move || step(&site, &course))
        };
        match thread {
            Ok(thread) => Place::Starting(Start { course, thread, since: Instant::now(), is_told: false }),
            Err(error) => {
                let error = PrepareError::Unavailable(format!("no thread to start it on: {error}"));
                let former = lock(&course.former).take();
                failed(site, former, &course, &error)
            }
        }
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// It is made ready, or cannot be.
    pub(super) fn is_ready(&self) -> bool {
        self.course.ready.get().is_some()
    }

    /// Its end need not be waited for.
    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// What it does just now.
    pub(super) fn does(&self) -> &'static str {
        if self.is_ready() { READY } else { NOT_READY }
    }

    /// Asks what runs until it is ready.
    pub(super) fn of_running<T>(&self, ask: impl FnOnce(&S::Running) -> T) -> Option<T> {
        lock(&self.course.former).as_ref().and_then(|former| former.of_running(ask))
    }

    /// As [`Place::without_broken`], of what runs until it is ready.
    pub(super) fn stop_broken(&self, site: &S, name: &str, wanted: u64) {
        // In one step, trouble and all: a start that is ready finds what ends, and mends the trouble.
        let mut former = lock(&self.course.former);
        *former = former.take().map(|former| former.without_broken(site, name, wanted));
    }

    /// It takes over nothing any more, and what it brings all the same is to end as well.
    pub(super) fn given_up(self, name: &str) -> Ending<S> {
        // Before the hands change: the start that finds nothing to take over must see it.
        self.course.given_up.store(true, Ordering::Relaxed);
        let former = lock(&self.course.former).take();
        let former = former.and_then(|former| former.given_up(name));
        Ending::of_start(self, former)
    }

    /// Waits for its end. One that panics, which is a fault of this program, has failed like any other: what
    /// it has not taken over yet goes on.
    pub(super) fn arrive(self, site: &S) -> Place<S> {
        match outcome(self.thread) {
            Ok(place) => {
                if self.is_told && matches!(place, Place::Up(..)) {
                    // That it hangs may have been told just when it was up.
                    site.set_trouble(&self.course.registered.name, None);
                }
                place
            }
            Err(error) => {
                let former = lock(&self.course.former).take();
                failed(site, former, &self.course, &error)
            }
        }
    }

    /// Of one that is ready: what makes it so has time-outs of its own.
    pub(super) fn hangs(&mut self, name: &str) -> Option<String> {
        let waited = self.course.ready.get()?.elapsed();
        if waited < HANGS_AFTER {
            return None;
        }
        let (revision, waited_s) = (self.course.registered.revision, waited.as_secs());
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::error!(deployment = name, revision, waited_s, waits_for = READY, "it does not start");
        }
        Some(format!("revision {revision} was made ready {waited_s} s ago and waits for {READY}"))
    }
}

fn outcome<S: Site>(thread: JoinHandle<Place<S>>) -> Result<Place<S>, PrepareError> {
    thread.join().map_err(|panic| {
        PrepareError::Unavailable(format!("its start panicked, see the node's log: {}", words(&*panic)))
    })
}

/// The next place of a deployment that is due. What runs goes on while its successor is made ready, and
/// stays if that fails.
fn step<S: Site>(site: &S, course: &Course<S>) -> Place<S> {
    let registered = &course.registered;
    let prepared = site.prepare(registered);
    course.ready.get_or_init(Instant::now);
    let former = lock(&course.former).take();
    let former = former.and_then(|former| former.arrived(site, &registered.name));
    // Not asked later: members that stop to come back keep their places in the group, and can leave it only
    // once they are back.
    if course.is_over() {
        return former.unwrap_or_else(|| Place::Failed(Retry::at_once(registered.revision)));
    }
    let ready = match prepared {
        Ok(ready) => ready,
        Err(error) => {
            site.condemn(registered, &error);
            return failed(site, former, course, &error);
        }
    };
    let (running, waited) = match former {
        Some(Place::Up(running, _)) => (Some(running), None),
        Some(Place::Failed(retry)) => (None, Some(retry)),
        Some(Place::Starting(_) | Place::Ending(_)) | None => (None, None),
    };
    match site.start(ready, running) {
        Ok(running) => {
            site.set_trouble(&registered.name, None);
            Place::Up(running, waited)
        }
        Err(error) => failed(site, None, course, &error),
    }
}

/// The start is to be tried again. What ran before goes on.
fn failed<S: Site>(site: &S, place: Option<Place<S>>, course: &Course<S>, error: &PrepareError) -> Place<S> {
    let (deployment, revision) = (&course.registered.name, course.registered.revision);
    tracing::error!(deployment, revision, %error, "cannot start");
    let meanwhile = place.as_ref().and_then(|place| place.of_running(Running::revision));
    let reason = match meanwhile {
        Some(meanwhile) => format!("{error}; revision {meanwhile} goes on meanwhile"),
        None => error.to_string(),
    };
    site.set_trouble(deployment, Some((revision, reason)));
    let retry = Retry::new(revision, course.backoff);
    match place {
        Some(Place::Up(running, _)) => Place::Up(running, Some(retry)),
        Some(Place::Ending(ending)) => Place::Ending(ending.then_try(retry)),
        Some(Place::Failed(_) | Place::Starting(_)) | None => Place::Failed(retry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::deployment::Leave;
    use crate::node::fake_site::{FakeSite, registered};

    fn at_once(revision: u64) -> Place<FakeSite> {
        Place::Failed(Retry::at_once(revision))
    }

    fn starting(
        registered: &Registered,
        former: Place<FakeSite>,
        work: fn() -> Place<FakeSite>,
    ) -> Start<FakeSite> {
        let course = Course::new(Some(former), registered, &Arc::default());
        let (course, thread) = (Arc::new(course), std::thread::spawn(work));
        Start { course, thread, since: Instant::now(), is_told: false }
    }

    #[test]
    fn a_start_is_not_begun_twice_and_takes_nothing_over_once_it_is_given_up() {
        let registered = registered();
        let former = at_once(registered.revision);
        assert!(former.is_due(&registered));
        let start = starting(&registered, former, || at_once(7));
        let course = Arc::clone(&start.course);
        let place = Place::Starting(start);
        assert!(!place.is_due(&registered) && place.takes_a_turn());
        let ending = place.given_up("a").expect("it is waited for");
        assert!(course.is_over() && lock(&course.former).is_none());
        let mut place = Place::Ending(ending);
        assert!(!place.is_due(&registered) && place.is_given_up());
        let site = FakeSite::default();
        while !place.is_over(&site, "a") {
            std::thread::yield_now();
        }
        assert!(place.arrived(&site, "a").is_none(), "what it has come to is not wanted");
    }

    #[test]
    fn a_start_that_panics_has_failed_with_its_words_and_waits_longer_each_time() {
        let registered = registered();
        let before = Place::Failed(Retry::new(registered.revision, RETRY_MIN));
        let start = starting(&registered, before, || panic!("no luck"));
        assert_eq!(start.course.backoff, 2 * RETRY_MIN);
        let Err(error) = outcome(start.thread) else { panic!("it has panicked") };
        assert!(error.to_string().ends_with("no luck"), "{error}");
        assert!(lock(&start.course.former).is_some(), "what it has not taken over goes on");
    }

    #[test]
    fn a_start_that_panics_ends_nothing_that_ends_by_itself() {
        let (registered, site) = (registered(), FakeSite::default());
        site.hold("stop a");
        let running = site.start(registered.clone(), None).expect("it starts");
        let retry = Retry::at_once(registered.revision);
        let before = Place::<FakeSite>::tried_again("a", running, Leave::Nobody, retry);
        let mut place = Place::Starting(starting(&registered, before, || panic!("no luck")));
        place = place.arrived(&site, "a").expect("it is tried again");
        assert!(!place.is_over(&site, "a") && !place.is_due(&registered));
        assert!(site.trouble("a").is_some_and(|trouble| trouble.ends_with("no luck")));
        site.release("stop a");
        assert!(place.arrived(&site, "a").is_some_and(|place| place.due_at(registered.revision).is_some()));
    }

    #[test]
    fn a_start_that_waits_for_what_ran_before_says_so_until_it_is_up() {
        let Some(long_ago) = Instant::now().checked_sub(HANGS_AFTER) else { return };
        let (wanted, site) = (registered(), FakeSite::default());
        let comes_up = || {
            let running = FakeSite::default().start(registered(), None).expect("it starts");
            Place::<FakeSite>::Up(running, None)
        };
        let start = starting(&wanted, at_once(wanted.revision), comes_up);
        let course = Arc::clone(&start.course);
        let mut place = Place::Starting(start);
        assert!(place.hangs("a").is_none() && place.takes_a_turn(), "it is made ready");
        course.ready.set(long_ago).expect("it was not ready");
        let said = place.hangs("a").expect("it waits");
        assert!(said.contains("what ran before") && !place.takes_a_turn(), "{said}");
        site.set_trouble("a", Some((wanted.revision, said)));
        place = place.arrived(&site, "a").expect("it is up");
        assert!(matches!(place, Place::Up(..)) && site.trouble("a").is_none());
    }
}
