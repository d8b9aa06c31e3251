//! The commit half of a worker: first Kafka, then the stores, one commit at a time.
//!
//! ```text
//!   worker --request--> Committer --> Driver: a thread, or the loop of a simulation
//!     ^                                  | steps
//!     |                                  v
//!     +------------- Done --------- CommitHalf: begin -> produce.. -> send offsets -> end -> store..
//! ```
//!
//! The half owns the worker's sink. The worker fills the next overlay meanwhile; the two meet in a
//! request of which there is one at a time, so there is never a commit k+1 before the outcome of k
//! is known.
//!
//! Invariant: `store <= changelog`. A crash between the two leaves a store behind its changelog,
//! which is the ordinary state that a restore starts from; there is no second recovery path.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::faults::{Bug, CrashPoint, crash_point, planted};
use crate::ports::{Clock, CommitError, End, Membership, Produce, Sink, SourceError};
use crate::store::StoreError;
use crate::task::Sealed;

/// Makes a sink; making one fences the one before it.
pub type SinkFactory = Box<dyn FnMut() -> Result<Box<dyn Sink>, SourceError> + Send>;

/// One commit: the sealed overlays of a worker's tasks, moved or not, and who the worker is.
pub struct Job {
    pub sealed: Vec<Sealed>,
    /// Captured inside the last rebalance callback that the worker served, never re-read here.
    pub membership: Membership,
}

/// What became of a request.
pub enum Done {
    /// Kafka has it. A task whose store could not follow must be rebuilt; the others are committed.
    Committed {
        sealed: Vec<(Sealed, Result<(), StoreError>)>,
        took: Duration,
    },
    /// Definitely not committed; the transaction is aborted and the sink may be used again.
    Refused {
        sealed: Vec<Sealed>,
        /// The one it was sent with: the rebalance that made it stale may have been served since.
        membership: Membership,
        error: CommitError,
    },
    /// Unknown: rule P1. The sink is gone; [`Committer::renew`] makes another.
    Unknown {
        sealed: Vec<Sealed>,
        reason: String,
    },
    Renewed,
    NotRenewed(SourceError),
}

/// What a worker asks of its commit half.
pub enum Request {
    Commit(Job),
    /// Make a new sink, which fences the old one.
    Renew,
    /// From now on make sinks like this, beginning with one at once.
    Replace(SinkFactory),
}

/// Who carries out a worker's requests: a thread of its own, or the loop of a simulation.
pub trait Driver: Send {
    /// Starts on a request; false when nobody is there any more to carry it out.
    fn start(&mut self, request: Request) -> bool;

    /// The outcome, if it is there already.
    fn poll(&mut self) -> Option<Done>;

    /// Waits for the outcome; none when it will never come.
    fn wait(&mut self) -> Option<Done>;
}

/// The worker's handle on its commit half.
pub struct Committer {
    driver: Box<dyn Driver>,
    /// On the worker's clock.
    busy_since: Option<Duration>,
}

impl Committer {
    pub fn new(driver: Box<dyn Driver>) -> Committer {
        Committer { driver, busy_since: None }
    }

    /// One whose requests are carried out on a thread of that name.
    pub fn on_thread(name: &str, half: CommitHalf) -> std::io::Result<Committer> {
        Ok(Committer::new(Box::new(CommitThread::start(name, half)?)))
    }

    /// True while the outcome of a request is not known.
    pub fn is_busy(&self) -> bool {
        self.busy_since.is_some()
    }

    /// When the request was made whose outcome is not known.
    pub fn busy_since(&self) -> Option<Duration> {
        self.busy_since
    }

    /// Starts a commit. The caller has seen the outcome of the one before.
    pub fn commit(&mut self, job: Job, now: Duration) {
        self.request(Request::Commit(job), now);
    }

    /// Makes a new sink, which fences the old one.
    pub fn renew(&mut self, now: Duration) {
        self.request(Request::Renew, now);
    }

    /// Makes a sink of another kind, now and from now on. It fences the old one, of which nothing is
    /// under way.
    pub fn replace(&mut self, factory: SinkFactory, now: Duration) {
        self.request(Request::Replace(factory), now);
    }

    /// The outcome of the request in flight, if it is there already.
    pub fn poll(&mut self) -> Option<Done> {
        let done = self.driver.poll()?;
        self.busy_since = None;
        Some(done)
    }

    /// Waits for the outcome of the request in flight; `None` if there is none. Bounded by the
    /// time-outs of the sink's calls.
    pub fn wait(&mut self) -> Option<Done> {
        self.busy_since?;
        let done = self.driver.wait();
        self.busy_since = None;
        done
    }

    fn request(&mut self, request: Request, now: Duration) {
        assert!(!self.is_busy(), "one commit at a time");
        // Fails only after the driver has ended, and then `wait` answers none.
        self.busy_since = self.driver.start(request).then_some(now);
    }
}

/// Drives a commit half on a thread of its own.
struct CommitThread {
    requests: Option<Sender<Request>>,
    results: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl CommitThread {
    fn start(name: &str, mut half: CommitHalf) -> std::io::Result<CommitThread> {
        let (requests, inbox) = bounded::<Request>(1);
        let (outbox, results) = bounded(1);
        let thread = std::thread::Builder::new().name(format!("{name}-commit")).spawn(move || {
            for request in inbox {
                half.begin(request);
                let done = loop {
                    if let Some(done) = half.step() {
                        break done;
                    }
                };
                if outbox.send(done).is_err() {
                    return;
                }
            }
        })?;
        Ok(CommitThread { requests: Some(requests), results, thread: Some(thread) })
    }
}

impl Driver for CommitThread {
    fn start(&mut self, request: Request) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.send(request).is_ok())
    }

    fn poll(&mut self) -> Option<Done> {
        match self.results.try_recv() {
            Ok(done) => Some(done),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => abandoned(),
        }
    }

    fn wait(&mut self) -> Option<Done> {
        Some(self.results.recv().unwrap_or_else(|_| abandoned()))
    }
}

/// The thread ends before its worker only by a panic. The worker, which would wait for an outcome for
/// ever, goes the same way: that is seen, and it is started anew.
fn abandoned() -> ! {
    panic!("the commit thread has panicked")
}

impl Drop for CommitThread {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread panicked");
        }
    }
}

/// What carries a request out, one step at a time, so that whoever drives it can let anything
/// happen between two steps.
pub struct CommitHalf {
    /// None after an indefinite outcome, until renewed.
    sink: Option<Box<dyn Sink>>,
    factory: SinkFactory,
    clock: Box<dyn Clock>,
    work: Work,
}

enum Work {
    Idle,
    Renew,
    Commit(Commit),
}

struct Commit {
    job: Job,
    next: Step,
    began: Duration,
    /// Outcomes of the stores that have been written, in the order of the job's tasks.
    applied: Vec<Result<(), StoreError>>,
}

/// The steps of a commit, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    /// What the task of this index has.
    Produce(usize),
    SendOffsets,
    End,
    /// One RocksDB write batch per task. Kafka has the commit.
    Store(usize),
}

impl CommitHalf {
    pub fn new(factory: SinkFactory, clock: Box<dyn Clock>) -> CommitHalf {
        CommitHalf { sink: None, factory, clock, work: Work::Idle }
    }

    /// Takes a request; [`CommitHalf::step`] carries it out. The one before has had its outcome.
    pub fn begin(&mut self, request: Request) {
        self.work = match request {
            Request::Renew => Work::Renew,
            Request::Replace(factory) => {
                self.factory = factory;
                Work::Renew
            }
            Request::Commit(job) => {
                let began = self.clock.monotonic();
                Work::Commit(Commit { job, next: Step::Begin, began, applied: Vec::new() })
            }
        };
    }

    /// Does the next step. Answers the outcome after the last one; nothing while there is more to
    /// do, or nothing to do.
    pub fn step(&mut self) -> Option<Done> {
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Idle => None,
            Work::Renew => Some(self.renew()),
            Work::Commit(commit) => self.advance(commit),
        }
    }

    fn renew(&mut self) -> Done {
        if planted(Bug::ProducerReused) && self.sink.is_some() {
            return Done::Renewed;
        }
        // The old producer goes first: its epoch ends with the new one's init, whatever it has in flight.
        self.sink = None;
        match (self.factory)() {
            Ok(sink) => {
                self.sink = Some(sink);
                Done::Renewed
            }
            Err(error) => Done::NotRenewed(error),
        }
    }

    fn advance(&mut self, mut commit: Commit) -> Option<Done> {
        let Some(sink) = self.sink.as_mut() else {
            return Some(Done::Unknown { sealed: commit.job.sealed, reason: "there is no producer".into() });
        };
        match commit.step(sink.as_mut()) {
            Ok(()) => {}
            Err(error) => return Some(self.failed(commit.job, error)),
        }
        if commit.next != Step::Store(commit.job.sealed.len()) {
            self.work = Work::Commit(commit);
            return None;
        }
        crash_point(CrashPoint::AfterStores);
        let took = self.clock.monotonic().saturating_sub(commit.began);
        let sealed = commit.job.sealed.into_iter().zip(commit.applied).collect();
        Some(Done::Committed { sealed, took })
    }

    /// Sorts the failure of a transaction by what is known of it.
    fn failed(&mut self, job: Job, error: CommitError) -> Done {
        let Job { sealed, membership } = job;
        let reason = match (error, self.sink.as_mut()) {
            (CommitError::Indefinite(reason), _) => reason,
            // Definite only if the abort succeeds as well.
            (error, Some(sink)) => match sink.end(End::Abort) {
                Ok(()) => return Done::Refused { sealed, membership, error },
                Err(abort) => format!("{error}; then {abort}"),
            },
            (error, None) => error.to_string(),
        };
        if planted(Bug::ProducerReused) && self.sink.as_mut().is_some_and(|sink| sink.end(End::Abort).is_ok())
        {
            return Done::Unknown { sealed, reason };
        }
        self.sink = None;
        Done::Unknown { sealed, reason }
    }
}

impl Commit {
    /// One step: the Kafka half, then the stores.
    fn step(&mut self, sink: &mut dyn Sink) -> Result<(), CommitError> {
        let Job { sealed, membership } = &mut self.job;
        self.next = match self.next {
            Step::Begin => {
                if planted(Bug::StoreFirst) {
                    let _ = sealed.iter_mut().try_for_each(Sealed::apply_to_store);
                }
                sink.begin()?;
                Step::Produce(0)
            }
            Step::Produce(index) => match sealed.get(index) {
                Some(task) => {
                    produce(sink, task)?;
                    Step::Produce(index + 1)
                }
                None => Step::SendOffsets,
            },
            Step::SendOffsets => {
                // Every task written for, moved or not: the offsets are what fences a zombie.
                let forgotten = usize::from(planted(Bug::OffsetsForgotten) && sealed.len() > 1);
                let offsets: Vec<_> =
                    sealed.iter().skip(forgotten).flat_map(|task| &task.offsets).cloned().collect();
                if planted(Bug::MembershipMissing) {
                    *membership = Membership { generation: -1, ..Membership::default() };
                }
                if !planted(Bug::OffsetsOutside) {
                    sink.send_offsets(&offsets, membership)?;
                }
                crash_point(CrashPoint::AfterSendOffsets);
                Step::End
            }
            Step::End => {
                let ended = sink.end(End::Commit);
                if !planted(Bug::CommitEarly) {
                    ended?;
                }
                crash_point(CrashPoint::AfterEnd);
                Step::Store(0)
            }
            Step::Store(index) => {
                if index > 0 && sealed.get(index).is_some_and(|task| task.changelog.is_some()) {
                    crash_point(CrashPoint::BetweenStores);
                }
                let applied = sealed.get_mut(index).map(Sealed::apply_to_store);
                self.applied.extend(applied);
                Step::Store(index + 1)
            }
        };
        Ok(())
    }
}

/// Hands a task's rows to the sink.
fn produce(sink: &mut dyn Sink, task: &Sealed) -> Result<(), CommitError> {
    for emissions in &task.emissions {
        sink.produce(Produce::Emissions(emissions))?;
    }
    if let Some(inbox) = &task.inbox {
        sink.produce(Produce::Inbox(inbox))?;
    }
    match &task.changelog {
        // One row per distinct key, then the position record.
        Some(changelog) => sink.produce(Produce::Changelog(changelog)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::node::deployment::SystemClock;

    #[test]
    fn a_panic_of_the_commit_thread_is_its_workers() {
        let half = CommitHalf::new(Box::new(|| panic!("no sink")), Box::new(SystemClock));
        let mut committer = Committer::on_thread("test", half).expect("a thread");
        committer.renew(Duration::ZERO);
        assert!(catch_unwind(AssertUnwindSafe(|| committer.wait())).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| committer.poll())).is_err());
    }
}
