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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::deployment::{Leave, words};
use super::registered::Registered;
use super::revision::PrepareError;
use super::site::{Running, Site};

/// A deployment that could not start is tried again after this, doubled up to the maximum.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A deployment whose workers have run for so long had nothing to do with the panic before.
const CALM: Duration = Duration::from_secs(5 * 60);
/// What should have ended so long ago hangs: a commit and the compilation of a module take less.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// What a start does that has been made ready.
const READY: &str = "its start, which stops what ran before or starts workers";

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

    /// It is being made ready. What is ready may have to wait for the end of what ran before.
    pub(super) fn takes_a_turn(&self) -> bool {
        matches!(self, Place::Starting(start) if start.course.ready.get().is_none())
    }

    /// Something of it is about to be over: looking often for what hangs is of no use.
    pub(super) fn is_moving(&self) -> bool {
        let since = match self {
            Place::Up(..) | Place::Failed(_) => return false,
            Place::Starting(start) => start.since,
            Place::Ending(ending) => ending.since,
        };
        since.elapsed() < HANGS_AFTER
    }

    /// A start of it was given up, and has not ended.
    pub(super) fn has_lost_a_start(&self) -> bool {
        matches!(self, Place::Ending(ending) if ending.start.is_some())
    }

    /// That it hangs, if it does, and what it waits for. The log has it the first time.
    pub(super) fn hangs(&mut self, name: &str) -> Option<String> {
        match self {
            Place::Up(..) | Place::Failed(_) => None,
            Place::Starting(start) => start.hangs(name),
            Place::Ending(ending) => ending.hangs(name),
        }
    }

    /// Nothing of it is wanted any more.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self, Place::Ending(ending) if ending.then.is_none())
    }

    /// Asks what runs; of a deployment that starts, what goes on meanwhile.
    pub(super) fn of_running<T>(&self, ask: impl FnOnce(&S::Running) -> T) -> Option<T> {
        match self {
            Place::Up(running, _) => Some(ask(running)),
            Place::Failed(_) | Place::Ending(_) => None,
            Place::Starting(start) => {
                lock(&start.course.former).as_ref().and_then(|former| former.of_running(ask))
            }
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
                site.set_trouble(name, Some((wanted, reason)));
                Place::tried_again(name, running, Leave::Nobody, retry)
            }
            Place::Starting(start) => {
                // In one step, trouble and all: a start that is ready finds what ends, and mends the trouble.
                let mut former = lock(&start.course.former);
                *former = former.take().map(|former| former.without_broken(site, name, wanted));
                drop(former);
                Place::Starting(start)
            }
            place => place,
        }
    }

    /// What runs is stopped, to be tried again then.
    pub(super) fn tried_again(name: &str, running: S::Running, leave: Leave, then: Retry) -> Place<S> {
        Place::Ending(Ending::new(stop(name, running, leave), None, Some(then)))
    }

    /// Nothing of the deployment is wanted here any more: what of it is to end, if something is.
    pub(super) fn given_up(self, name: &str) -> Option<Ending<S>> {
        match self {
            Place::Up(running, _) => Some(Ending::new(stop(name, running, Leave::All), None, None)),
            Place::Failed(_) => None,
            Place::Starting(start) => {
                // Before the hands change: the start that finds nothing to take over must see it.
                start.course.given_up.store(true, Ordering::Relaxed);
                let former = lock(&start.course.former).take();
                let former = former.and_then(|former| former.given_up(name));
                Some(Ending::new(former.and_then(|former| former.workers), Some(start), None))
            }
            Place::Ending(ending) => Some(Ending { then: None, ..ending }),
        }
    }

    /// True once a start, or what ends, need not be waited for.
    pub(super) fn is_over(&mut self, site: &S, name: &str) -> bool {
        match self {
            Place::Up(..) | Place::Failed(_) => false,
            Place::Starting(start) => start.thread.is_finished(),
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
}

/// One that is under way.
pub(super) struct Start<S: Site> {
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
    pub(super) fn begin(
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

    /// Waits for its end. One that panics, which is a fault of this program, has failed like any other: what
    /// it has not taken over yet goes on.
    fn arrive(self, site: &S) -> Place<S> {
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
    fn hangs(&mut self, name: &str) -> Option<String> {
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
    let reason = match &place {
        Some(Place::Up(running, _)) => format!("{error}; revision {} goes on meanwhile", running.revision()),
        _ => error.to_string(),
    };
    site.set_trouble(deployment, Some((revision, reason)));
    let retry = Retry::new(revision, course.backoff);
    match place {
        Some(Place::Up(running, _)) => Place::Up(running, Some(retry)),
        Some(Place::Ending(ending)) => Place::Ending(Ending { then: Some(retry), ..ending }),
        Some(Place::Failed(_) | Place::Starting(_)) | None => Place::Failed(retry),
    }
}

/// What is to end here, and has not.
pub(super) struct Ending<S: Site> {
    /// That stops what ran; none if nothing did.
    workers: Option<JoinHandle<()>>,
    /// Given up.
    start: Option<Start<S>>,
    /// What is to be tried again then; none if nothing is wanted here any more.
    then: Option<Retry>,
    /// The deployment is to be forgotten then: it writes down what it does until it has ended.
    pub(super) is_of_the_deleted: bool,
    since: Instant,
    /// The log says that it hangs.
    is_told: bool,
}

impl<S: Site> Ending<S> {
    fn new(workers: Option<JoinHandle<()>>, start: Option<Start<S>>, then: Option<Retry>) -> Ending<S> {
        Ending { workers, start, then, is_of_the_deleted: false, since: Instant::now(), is_told: false }
    }

    fn hangs(&mut self, name: &str) -> Option<String> {
        let waited = self.since.elapsed();
        if waited < HANGS_AFTER {
            return None;
        }
        let waits_for = match &self.start {
            None => "its workers, which commit or are in a call of the handler",
            Some(start) if start.course.ready.get().is_some() => READY,
            Some(_) => "its start, which compiles the module or asks Kafka",
        };
        let waited_s = waited.as_secs();
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::error!(deployment = name, waited_s, waits_for, "it does not end");
        }
        Some(format!("what is here of it was to end {waited_s} s ago and waits for {waits_for}"))
    }

    /// True once nothing of it is left. What a start brings that was given up ends as well.
    fn is_over(&mut self, site: &S, name: &str) -> bool {
        if let Some(start) = self.start.take_if(|start| start.thread.is_finished())
            && let Place::Up(running, _) = start.arrive(site)
        {
            tracing::info!(deployment = name, "not wanted any more; stopping");
            self.workers = stop(name, running, Leave::All);
        }
        self.start.is_none() && self.workers.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What is to be tried again, now that it is over.
    fn end(self, site: &S, name: &str) -> Option<Retry> {
        if let Some(thread) = self.workers
            && let Err(panic) = thread.join()
        {
            tracing::error!(deployment = name, reason = words(&*panic), "its stop panicked");
        }
        if self.is_told {
            let waited_s = self.since.elapsed().as_secs();
            tracing::info!(deployment = name, waited_s, "it has ended after all");
        }
        if self.then.is_none() {
            site.set_trouble(name, None);
        }
        if self.is_of_the_deleted {
            site.forget(name);
        }
        self.then
    }
}

/// Stops what runs on a thread of its own; on this one, if there is none to be had.
fn stop<R: Running>(name: &str, running: R, leave: Leave) -> Option<JoinHandle<()>> {
    // Whoever comes to it takes it, for a thread that does not start drops what it was to do.
    let running = Arc::new(Mutex::new(Some(running)));
    let work = move || {
        let running = lock(&running).take();
        if let Some(running) = running {
            running.stop(leave);
        }
    };
    match std::thread::Builder::new().name(format!("stop-{name}")).spawn(work.clone()) {
        Ok(thread) => Some(thread),
        Err(error) => {
            tracing::warn!(deployment = name, %error, "no thread to stop it on; everything else waits");
            work();
            None
        }
    }
}

/// A panic elsewhere leaves what is locked whole: it is taken and put back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::DeployEntry;
    use tidemill_proto::v1::control_entry::Entry;

    use super::*;
    use crate::node::fake_site::FakeSite;
    use crate::node::proposal::proposal;
    use crate::node::registry::Registry;

    fn registered() -> Registered {
        let mut registry = Registry::default();
        let deploy = DeployEntry { name: "a".into(), incarnation: "a1".into(), ..DeployEntry::default() };
        registry.apply(registry.next, 1, &proposal(Entry::Deploy(deploy)));
        registry.deployments.remove("a").expect("it is deployed")
    }

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
        assert!(ending.workers.is_none() && course.is_over() && lock(&course.former).is_none());
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
    fn what_hangs_says_what_it_waits_for() {
        let Some(long_ago) = Instant::now().checked_sub(HANGS_AFTER) else { return };
        let registered = registered();
        for (held, waits_for) in [
            ("prepare a", "its start, which compiles"),
            ("start a", "its start, which stops what ran before"),
            ("leave a", "its workers"),
        ] {
            let site = FakeSite::default();
            site.hold(held);
            let mut place: Place<FakeSite> = match held {
                "leave a" => Place::Up(site.start(registered.clone(), None).expect("it starts"), None),
                _ => Start::begin(&site, None, &registered, &Arc::default()),
            };
            while held != "leave a" && site.begun(held) == 0 {
                std::thread::yield_now();
            }
            let mut ending = place.given_up("a").expect("it runs, or is about to");
            assert_eq!(ending.hangs("a"), None, "it has hardly begun");
            ending.since = long_ago;
            assert!(ending.hangs("a").is_some_and(|said| said.contains(waits_for)), "{held}");
            place = Place::Ending(ending);
            assert!(!place.is_moving() && place.has_lost_a_start() == (held != "leave a"));
            site.release(held);
            while !place.is_over(&site, "a") {
                std::thread::yield_now();
            }
        }
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
