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
use crate::node::trouble::Trouble;

/// What a start does while it is made ready, and from then on.
const NOT_READY: &str = "its start, which compiles the module or asks Kafka";
const READY: &str = "its start, which stops what ran before or starts workers";

pub(in crate::node) struct Start<S: Site> {
    course: Arc<Course<S>>,
    thread: JoinHandle<Outcome<S>>,
    /// It is made ready, or may have waited for the compiler: see [`Start::is_over`].
    since: Instant,
    /// What the log says that it waits for, if it hangs.
    told: Option<&'static str>,
}

/// What has come of a start. What that means is said and done when it arrives, by whoever looks at it: nothing
/// that is said of a start that hangs comes after what has come of it.
enum Outcome<S: Site> {
    /// With what this revision had to wait for, if it had to.
    Up(S::Running, Option<Retry>),
    /// With what ran before, if that goes on.
    Failed(Option<Place<S>>, PrepareError),
    /// Too late for anything, as for a failure. With what ran before, if nobody else has taken it.
    GivenUp(Option<Place<S>>),
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
            Ok(thread) => Place::Starting(Start { course, thread, since: Instant::now(), told: None }),
            Err(error) => {
                let error = PrepareError::Unavailable(format!("no thread to start it on: {error}"));
                let former = lock(&course.former).take();
                failed(site, former, &course, &error)
            }
        }
    }

    /// It is being made ready, and does not hang.
    pub(super) fn takes_a_turn(&self) -> bool {
        self.course.ready.get().is_none() && !self.hangs()
    }

    /// It has been at the same for longer than anything takes. What makes a revision ready has time-outs of its
    /// own, but not everything that it touches has: a disk of the network's, a fault of this program.
    pub(super) fn hangs(&self) -> bool {
        self.does().1 >= HANGS_AFTER
    }

    /// Its end need not be waited for. To be asked at every look, which also sees what the compiler does: that has one
    /// module at a time, so whoever waits for a turn is at the same only since it was given the last one. A start that
    /// hangs does so until it is ready, whatever is compiled meanwhile.
    pub(super) fn is_over(&mut self, site: &S) -> bool {
        if !self.hangs()
            && let Some(begun) = site.compiler_begun()
        {
            self.since = self.since.max(begun);
        }
        self.thread.is_finished()
    }

    /// What it does just now, and for how long it has.
    pub(super) fn does(&self) -> (&'static str, Duration) {
        match self.course.ready.get() {
            None => (NOT_READY, self.since.elapsed()),
            Some(ready) => (READY, ready.elapsed()),
        }
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
        let Start { course, thread, since, told } = self;
        let Registered { name, revision, .. } = &course.registered;
        if told.is_some() {
            let waited_s = since.elapsed().as_secs();
            tracing::info!(deployment = name, revision, waited_s, "its start has ended after all");
        }
        let outcome = thread.join().unwrap_or_else(|panic| {
            let reason = format!("its start panicked, see the node's log: {}", words(&*panic));
            Outcome::Failed(lock(&course.former).take(), PrepareError::Unavailable(reason))
        });
        match outcome {
            Outcome::Up(running, waited) => {
                site.set_trouble(name, None);
                Place::Up(running, waited)
            }
            Outcome::Failed(former, error) => failed(site, former, &course, &error),
            Outcome::GivenUp(former) => former.unwrap_or_else(|| Place::Failed(Retry::at_once(*revision))),
        }
    }

    /// That it hangs, if it does, and what it waits for. The log has each of that once.
    pub(super) fn tell_hanging(&mut self, name: &str) -> Option<String> {
        let (waits_for, waited) = self.does();
        if waited < HANGS_AFTER {
            return None;
        }
        let (revision, waited_s) = (self.course.registered.revision, waited.as_secs());
        if self.told.replace(waits_for) != Some(waits_for) {
            tracing::error!(deployment = name, revision, waited_s, waits_for, "it does not start");
        }
        let reason =
            format!("revision {revision} does not start: for {waited_s} s it has waited for {waits_for}");
        Some(match self.of_running(Running::revision) {
            Some(former) => format!("{reason}; revision {former} goes on meanwhile"),
            None => reason,
        })
    }

    /// As [`Place::goes_on`].
    pub(super) fn goes_on(&mut self, name: &str) -> bool {
        let goes_on = !self.hangs() && self.told.take().is_some();
        if goes_on {
            let revision = self.course.registered.revision;
            tracing::info!(deployment = name, revision, "its start goes on after all");
        }
        goes_on
    }

    /// As if it had begun long ago.
    #[cfg(test)]
    pub(super) fn grow_old(&mut self) {
        self.since = super::long_ago();
    }
}

/// What has come of a deployment that is due. What runs goes on while its successor is made ready, and
/// stays if that fails.
fn step<S: Site>(site: &S, course: &Course<S>) -> Outcome<S> {
    let registered = &course.registered;
    let prepared = site.prepare(registered);
    course.ready.get_or_init(Instant::now);
    let former = lock(&course.former).take();
    let former = former.and_then(|former| former.arrived(site, &registered.name));
    // Not asked later: members that stop to come back keep their places in the group, and can leave it only
    // once they are back.
    if course.is_over() {
        return Outcome::GivenUp(former);
    }
    let ready = match prepared {
        Ok(ready) => ready,
        Err(error) => {
            site.condemn(registered, &error);
            return Outcome::Failed(former, error);
        }
    };
    let (running, waited) = match former {
        Some(Place::Up(running, _)) => (Some(running), None),
        Some(Place::Failed(retry)) => (None, Some(retry)),
        Some(Place::Starting(_) | Place::Ending(_)) | None => (None, None),
    };
    match site.start(ready, running) {
        Ok(running) => Outcome::Up(running, waited),
        Err(error) => Outcome::Failed(None, error),
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
    site.set_trouble(deployment, Some(Trouble::new(revision, reason)));
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
    use crate::node::fake_site::{FakeSite, registered, wait_until};

    fn at_once(revision: u64) -> Place<FakeSite> {
        Place::Failed(Retry::at_once(revision))
    }

    fn starting(
        registered: &Registered,
        former: Place<FakeSite>,
        work: fn() -> Outcome<FakeSite>,
    ) -> Start<FakeSite> {
        let course = Course::new(Some(former), registered, &Arc::default());
        let (course, thread) = (Arc::new(course), std::thread::spawn(work));
        Start { course, thread, since: Instant::now(), told: None }
    }

    #[test]
    fn a_start_is_not_begun_twice_and_takes_nothing_over_once_it_is_given_up() {
        let registered = registered();
        let former = at_once(registered.revision);
        assert!(former.is_due(&registered));
        let start = starting(&registered, former, || Outcome::GivenUp(None));
        let course = Arc::clone(&start.course);
        let place = Place::Starting(start);
        assert!(!place.is_due(&registered) && place.takes_a_turn());
        let ending = place.given_up("a").expect("it is waited for");
        assert!(course.is_over() && lock(&course.former).is_none());
        let mut place = Place::Ending(ending);
        assert!(!place.is_due(&registered) && place.is_given_up());
        let site = FakeSite::default();
        wait_until("it is over", || place.is_over(&site, "a"));
        assert!(place.arrived(&site, "a").is_none(), "what it has come to is not wanted");
    }

    #[test]
    fn a_start_that_panics_has_failed_with_its_words_and_waits_longer_each_time() {
        let (registered, site) = (registered(), FakeSite::default());
        let running = site.start(registered.clone(), None).expect("it starts");
        let before = Place::Up(running, Some(Retry::new(registered.revision, RETRY_MIN)));
        let start = starting(&registered, before, || panic!("no luck"));
        assert_eq!(start.course.backoff, 2 * RETRY_MIN);
        let place = start.arrive(&site);
        assert!(matches!(place, Place::Up(..)), "what it has not taken over goes on");
        let meanwhile = format!("no luck; revision {} goes on meanwhile", registered.revision);
        assert!(site.trouble("a").is_some_and(|trouble| trouble.ends_with(&meanwhile)));
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
    fn a_start_that_hangs_says_what_it_waits_for_until_it_is_up() {
        let (wanted, site) = (registered(), FakeSite::default());
        let comes_up = || {
            let running = FakeSite::default().start(registered(), None).expect("it starts");
            Outcome::Up(running, None)
        };
        let former = site.start(wanted.clone(), None).expect("it starts");
        let start = starting(&wanted, Place::Up(former, None), comes_up);
        let course = Arc::clone(&start.course);
        let mut place = Place::Starting(start);
        assert!(place.tell_hanging("a").is_none() && place.takes_a_turn(), "it is made ready");
        place.grow_old();
        let said = place.tell_hanging("a").expect("it is not ready");
        assert!(said.contains("compiles the module") && said.ends_with("goes on meanwhile"), "{said}");
        assert!(!place.takes_a_turn() && place.has_lost_a_start(), "others have its turn");
        course.ready.set(Instant::now()).expect("it was not ready");
        assert!(place.tell_hanging("a").is_none() && !place.has_lost_a_start(), "it goes on");
        assert!(!place.takes_a_turn());
        site.set_trouble("a", Some(Trouble::new(wanted.revision, said)));
        place = place.arrived(&site, "a").expect("it is up");
        assert!(matches!(place, Place::Up(..)) && site.trouble("a").is_none());
    }

    #[test]
    fn a_start_does_not_hang_while_the_compiler_begins_one_module_after_the_other() {
        let (registered, site) = (registered(), FakeSite::default());
        let mut start = starting(&registered, at_once(registered.revision), || Outcome::GivenUp(None));
        let begun = Instant::now();
        site.compile_from(begun);
        start.is_over(&site);
        assert_eq!(start.since, begun, "it may have waited for that");
        start.grow_old();
        site.compile_from(Instant::now());
        start.is_over(&site);
        assert!(start.hangs(), "nothing was begun for so long: it waits for something else");
    }

    #[test]
    fn a_start_that_waits_for_what_ran_before_hangs_as_well() {
        let registered = registered();
        let start = starting(&registered, at_once(registered.revision), || Outcome::GivenUp(None));
        start.course.ready.set(super::super::long_ago()).expect("it was not ready");
        let mut place = Place::Starting(start);
        let said = place.tell_hanging("a").expect("it waits");
        assert!(said.contains("what ran before") && place.has_lost_a_start(), "{said}");
        assert!(matches!(place.arrived(&FakeSite::default(), "a"), Some(Place::Failed(_))));
    }
}
