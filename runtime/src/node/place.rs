//! Where a deployment stands on this node, and the starts that bring it further.
//!
//! A start compiles a module and asks Kafka, so each has a thread of its own, and the supervisor waits for
//! none. What ran before goes on meanwhile, and is in one pair of hands at any time:
//!
//! ```text
//!   begin --> prepare --takes what runs--> swap, or stop and start --arrives--> Up, or Failed
//!                |                                    |
//!                +- given up: what runs is stopped    +- given up: stopped when it has arrived
//!                   at once, and nothing is started
//! ```

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::deployment::{Leave, RunningDeployment, words};
use super::former;
use super::registered::Registered;
use super::revision::{self, PrepareError, Revision};
use super::runtime::NodeRuntime;

/// A deployment that could not start is tried again after this, doubled up to the maximum.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A deployment whose workers have run for so long had nothing to do with the panic before.
const CALM: Duration = Duration::from_secs(5 * 60);

pub(super) enum Place {
    /// With a newer revision that could not be made ready, or what this one had to wait for, if it had to.
    Up(RunningDeployment, Option<Retry>),
    Failed(Retry),
    Starting(Start),
}

/// A revision that could not start, or not go on.
pub(super) struct Retry {
    revision: u64,
    again: Instant,
    pub(super) backoff: Duration,
}

impl Retry {
    fn new(revision: u64, backoff: Duration) -> Retry {
        Retry { revision, again: Instant::now() + backoff, backoff }
    }

    /// Of a revision that ran and whose worker has panicked; `before` is what it had to wait for.
    pub(super) fn after_panic(revision: u64, before: Option<&Retry>) -> Retry {
        let recent = before.filter(|before| before.revision == revision && before.again.elapsed() < CALM);
        Retry::new(revision, recent.map_or(RETRY_MIN, Retry::next_backoff))
    }

    fn next_backoff(&self) -> Duration {
        (self.backoff * 2).min(RETRY_MAX)
    }
}

impl Place {
    /// True if the registry wants another revision than this, or the time to try again has come. Never while
    /// it starts: what comes of that is due at once if it is not what is wanted by then.
    pub(super) fn is_due(&self, registered: &Registered) -> bool {
        match self {
            Place::Starting(_) => false,
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
            Place::Up(..) | Place::Failed(_) | Place::Starting(_) => None,
        }
    }

    /// Stops a deployment, to be started again at once; the start says what is wrong if it cannot.
    pub(super) fn tried_again(deployment: RunningDeployment, leave: Leave) -> Place {
        let place = Place::due(deployment.revision());
        deployment.stop(leave);
        place
    }

    /// To be started at the next look.
    fn due(revision: u64) -> Place {
        Place::Failed(Retry { revision, again: Instant::now(), backoff: RETRY_MIN })
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self, Place::Starting(_))
    }

    /// Of a deployment that starts, what goes on meanwhile.
    pub(super) fn running(&self) -> Option<Arc<Revision>> {
        match self {
            Place::Up(deployment, _) => Some(deployment.shared()),
            Place::Failed(_) => None,
            Place::Starting(start) => lock(&start.former).as_ref().and_then(Place::running),
        }
    }

    /// Nothing of this deployment is wanted here any more: what is to be stopped now, and a start whose end
    /// is to be waited for.
    pub(super) fn given_up(self) -> (Option<RunningDeployment>, Option<Start>) {
        match self {
            Place::Up(deployment, _) => (Some(deployment), None),
            Place::Failed(_) => (None, None),
            Place::Starting(start) => {
                // Before the hands change: the start that finds nothing to take over must see it.
                start.given_up.store(true, Ordering::Relaxed);
                let former = lock(&start.former).take();
                (former.and_then(|former| former.given_up().0), Some(start))
            }
        }
    }
}

/// One that is under way.
pub(super) struct Start {
    pub(super) registered: Arc<Registered>,
    /// What to wait should it fail.
    backoff: Duration,
    /// Where the deployment stood; never a start. Whoever takes it first has it: this one once it is ready,
    /// or who gives it up.
    former: Arc<Mutex<Option<Place>>>,
    given_up: Arc<AtomicBool>,
    /// The deployment is to be forgotten, when this has ended: it writes down what it does until then.
    pub(super) is_of_the_deleted: bool,
    thread: JoinHandle<Place>,
}

impl Start {
    /// Brings a deployment from where it stands to what the registry says, unless `stopping`.
    pub(super) fn begin(
        node: &Arc<NodeRuntime>,
        place: Option<Place>,
        registered: &Registered,
        stopping: &Arc<AtomicBool>,
    ) -> Place {
        let backoff = place.as_ref().map_or(RETRY_MIN, |place| place.backoff(registered.revision));
        let registered = Arc::new(registered.clone());
        let former = Arc::new(Mutex::new(place));
        let given_up = Arc::new(AtomicBool::new(false));
        let thread = {
            let (node, registered, former) = (Arc::clone(node), Arc::clone(&registered), Arc::clone(&former));
            let (given_up, stopping) = (Arc::clone(&given_up), Arc::clone(stopping));
            let is_over = move || given_up.load(Ordering::Relaxed) || stopping.load(Ordering::Relaxed);
            let thread = std::thread::Builder::new().name(format!("start-{}", registered.name));
            thread.spawn(move || step(&node, &former, &registered, backoff, is_over))
        };
        match thread {
            Ok(thread) => {
                let is_of_the_deleted = false;
                Place::Starting(Start { registered, backoff, former, given_up, is_of_the_deleted, thread })
            }
            Err(error) => {
                let error = PrepareError::Unavailable(format!("no thread to start it on: {error}"));
                let former = lock(&former).take();
                failed(node, former, &registered, &error, backoff)
            }
        }
    }

    /// Its end need not be waited for.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Nothing of what it brings is to stay.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Waits for its end. One that panics, which is a fault of this program, has failed like any other: what
    /// it has not taken over yet goes on.
    pub(super) fn arrive(self, node: &NodeRuntime) -> Place {
        match outcome(self.thread) {
            Ok(place) => place,
            Err(error) => {
                let former = lock(&self.former).take();
                failed(node, former, &self.registered, &error, self.backoff)
            }
        }
    }
}

fn outcome(thread: JoinHandle<Place>) -> Result<Place, PrepareError> {
    thread.join().map_err(|panic| {
        PrepareError::Unavailable(format!("its start panicked, see the node's log: {}", words(&*panic)))
    })
}

/// The next place of a deployment that is due. What runs goes on while its successor is made ready, and
/// stays if that fails.
fn step(
    node: &Arc<NodeRuntime>,
    former: &Mutex<Option<Place>>,
    registered: &Registered,
    backoff: Duration,
    is_over: impl Fn() -> bool,
) -> Place {
    let prepared = revision::prepare(node, registered);
    let place = lock(former).take();
    // Not asked later: members that stop to come back keep their places in the group, and can leave it only
    // once they are back.
    if is_over() {
        return place.unwrap_or_else(|| Place::due(registered.revision));
    }
    let (revision, running, waited) = match (prepared, place) {
        (Ok(revision), Some(Place::Up(running, _))) => (revision, Some(running), None),
        (Ok(revision), Some(Place::Failed(retry))) => (revision, None, Some(retry)),
        (Ok(revision), Some(Place::Starting(_)) | None) => (revision, None, None),
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
        Some(Place::Failed(_) | Place::Starting(_)) | None => {
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

/// Held for a take or a look, none of which panics.
fn lock(former: &Mutex<Option<Place>>) -> MutexGuard<'_, Option<Place>> {
    former.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::DeployEntry;
    use tidemill_proto::v1::control_entry::Entry;

    use super::*;
    use crate::node::proposal::proposal;
    use crate::node::registry::Registry;

    fn registered() -> Registered {
        let mut registry = Registry::default();
        let deploy = DeployEntry { name: "a".into(), incarnation: "a1".into(), ..DeployEntry::default() };
        registry.apply(registry.next, 1, &proposal(Entry::Deploy(deploy)));
        registry.deployments.remove("a").expect("it is deployed")
    }

    fn starting(registered: &Registered, former: Place, work: fn() -> Place) -> Start {
        Start {
            registered: Arc::new(registered.clone()),
            backoff: former.backoff(registered.revision),
            former: Arc::new(Mutex::new(Some(former))),
            given_up: Arc::default(),
            is_of_the_deleted: false,
            thread: std::thread::spawn(work),
        }
    }

    #[test]
    fn a_start_is_not_begun_twice_and_takes_nothing_over_once_it_is_given_up() {
        let registered = registered();
        let former = Place::due(registered.revision);
        assert!(former.is_due(&registered));
        let start = starting(&registered, former, || Place::due(7));
        let former = Arc::clone(&start.former);
        let place = Place::Starting(start);
        assert!(!place.is_due(&registered) && place.is_starting());
        let (running, start) = place.given_up();
        let start = start.expect("it is waited for");
        assert!(running.is_none() && start.is_given_up() && lock(&former).is_none());
        // What it brings all the same is what its thread says.
        assert!(outcome(start.thread).is_ok_and(|place| place.due_at(7).is_some()));
    }

    #[test]
    fn a_start_that_panics_has_failed_with_its_words_and_waits_longer_each_time() {
        let registered = registered();
        let before = Place::Failed(Retry::new(registered.revision, RETRY_MIN));
        let start = starting(&registered, before, || panic!("no luck"));
        assert_eq!(start.backoff, 2 * RETRY_MIN);
        let Err(error) = outcome(start.thread) else { panic!("it has panicked") };
        assert!(error.to_string().ends_with("no luck"), "{error}");
        assert!(lock(&start.former).is_some(), "what it has not taken over goes on");
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
