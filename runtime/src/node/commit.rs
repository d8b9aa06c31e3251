//! The commit thread of a worker: first Kafka, then the stores, one commit at a time.
//!
//! It owns the worker's sink. The worker fills the next overlay meanwhile; the two meet in a channel
//! that holds one request, so there is never a commit k+1 before the outcome of k is known.
//!
//! Invariant: `store <= changelog`. A crash between the two leaves a store behind its changelog,
//! which is the ordinary state that a restore starts from; there is no second recovery path.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::ports::{CommitError, End, Membership, Produce, Sink, SourceError};
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

enum Request {
    Commit(Job),
    Renew,
}

/// The worker's handle on its commit thread.
pub struct Committer {
    requests: Option<Sender<Request>>,
    results: Receiver<Done>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    pub fn start(name: &str, factory: SinkFactory) -> std::io::Result<Committer> {
        let (requests, inbox) = bounded(1);
        let (outbox, results) = bounded(1);
        let thread = std::thread::Builder::new().name(format!("{name}-commit")).spawn(move || {
            CommitThread { sink: None, factory }.run(&inbox, &outbox);
        })?;
        Ok(Committer { requests: Some(requests), results, busy: false, thread: Some(thread) })
    }

    /// True while the outcome of a request is not known.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Starts a commit. The caller has seen the outcome of the one before.
    pub fn commit(&mut self, job: Job) {
        self.request(Request::Commit(job));
    }

    /// Makes a new sink, which fences the old one.
    pub fn renew(&mut self) {
        self.request(Request::Renew);
    }

    /// The outcome of the request in flight, if it is there already.
    pub fn poll(&mut self) -> Option<Done> {
        let done = self.results.try_recv().ok()?;
        self.busy = false;
        Some(done)
    }

    /// Waits for the outcome of the request in flight; `None` if there is none. Bounded by the
    /// time-outs of the sink's calls.
    pub fn wait(&mut self) -> Option<Done> {
        if !self.busy {
            return None;
        }
        let done = self.results.recv().ok();
        self.busy = false;
        done
    }

    fn request(&mut self, request: Request) {
        assert!(!self.busy, "one commit at a time");
        if let Some(requests) = &self.requests {
            // A send fails only after the thread has ended, and then `wait` answers none.
            self.busy = requests.send(request).is_ok();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread panicked");
        }
    }
}

struct CommitThread {
    /// None after an indefinite outcome, until renewed.
    sink: Option<Box<dyn Sink>>,
    factory: SinkFactory,
}

impl CommitThread {
    fn run(mut self, requests: &Receiver<Request>, results: &Sender<Done>) {
        for request in requests {
            let done = match request {
                Request::Commit(job) => self.commit(job),
                Request::Renew => self.renew(),
            };
            if results.send(done).is_err() {
                return;
            }
        }
    }

    fn renew(&mut self) -> Done {
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

    fn commit(&mut self, job: Job) -> Done {
        let Job { sealed, membership } = job;
        let Some(sink) = self.sink.as_mut() else {
            return Done::Unknown { sealed, reason: "there is no producer".into() };
        };
        let start = Instant::now();
        match transact(sink.as_mut(), &sealed, &membership) {
            Ok(()) => {}
            Err(CommitError::Indefinite(reason)) => {
                self.sink = None;
                return Done::Unknown { sealed, reason };
            }
            // Definite only if the abort succeeds as well.
            Err(error) => match sink.end(End::Abort) {
                Ok(()) => return Done::Refused { sealed, membership, error },
                Err(abort) => {
                    self.sink = None;
                    return Done::Unknown { sealed, reason: format!("{error}; then {abort}") };
                }
            },
        }
        let sealed = sealed
            .into_iter()
            .map(|mut task| {
                let applied = task.apply_to_store(); // One RocksDB write batch per task.
                (task, applied)
            })
            .collect();
        Done::Committed { sealed, took: start.elapsed() }
    }
}

/// The Kafka half of a commit.
fn transact(sink: &mut dyn Sink, sealed: &[Sealed], membership: &Membership) -> Result<(), CommitError> {
    sink.begin()?;
    for task in sealed {
        for emissions in &task.emissions {
            sink.produce(Produce::Emissions(emissions))?;
        }
        if let Some(changelog) = &task.changelog {
            sink.produce(Produce::Changelog(changelog))?; // One row per distinct key, then the position record.
        }
    }
    // Every task written for, moved or not: the offsets are what fences a zombie.
    let offsets: Vec<_> = sealed.iter().flat_map(|task| &task.offsets).cloned().collect();
    sink.send_offsets(&offsets, membership)?;
    sink.end(End::Commit)
}
