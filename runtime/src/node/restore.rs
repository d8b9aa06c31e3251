//! The seam between a worker and the restore of its tasks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ports::Stop;
use crate::record::Offset;
use crate::store::Store;
use crate::task::Task;

/// Tells a restore from an earlier one of the same partition, whose verdict comes too late. No two of a board are
/// alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub u64);

pub struct RestoreRequest {
    pub partition: i32,
    pub ticket: Ticket,
    /// The task's store, if the worker has kept it open.
    pub store: Option<Store>,
    /// Raised once the worker does not want the task any more.
    pub stop: Stop,
}

/// How a restore ended.
pub struct Verdict {
    pub partition: i32,
    pub ticket: Ticket,
    pub outcome: Outcome,
}

pub enum Outcome {
    /// The task is at its position record and may run.
    Start(Box<Task>),
    /// Only a person can help.
    Halt { reason: String, store: Option<Store> },
    /// Kafka did not answer in time, or nobody wanted it to any more; begin again.
    Again { store: Option<Store> },
}

impl Outcome {
    /// Of a task that has one.
    pub fn holds_store(&self) -> bool {
        match self {
            Outcome::Start(_) => true,
            Outcome::Halt { store, .. } | Outcome::Again { store } => store.is_some(),
        }
    }

    pub fn into_store(self) -> Option<Store> {
        match self {
            Outcome::Start(task) => task.close(None).store,
            Outcome::Halt { store, .. } | Outcome::Again { store } => store,
        }
    }
}

/// Where the verdicts of a worker's restores arrive. A channel would do but for its end: one that
/// came between the last look and the end would be dropped with its store, whose directory would
/// count as held for ever.
#[derive(Clone)]
pub struct Verdicts(Arc<Mutex<Option<VecDeque<Verdict>>>>);

impl Default for Verdicts {
    fn default() -> Verdicts {
        Verdicts(Arc::new(Mutex::new(Some(VecDeque::new()))))
    }
}

impl Verdicts {
    /// Hands the verdict back if its worker has ended.
    pub fn deliver(&self, verdict: Verdict) -> Result<(), Box<Verdict>> {
        match &mut *self.lock() {
            Some(arrived) => {
                arrived.push_back(verdict);
                Ok(())
            }
            None => Err(Box::new(verdict)),
        }
    }

    pub fn take(&self) -> Option<Verdict> {
        self.lock().as_mut().and_then(VecDeque::pop_front)
    }

    /// What has arrived; from now on every verdict is handed back.
    pub fn close(&self) -> VecDeque<Verdict> {
        self.lock().take().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<Verdict>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings tasks to their committed position, on threads of its own, and keeps the stores that no
/// task holds.
pub trait Restorer: Send {
    /// Answers exactly one verdict, sooner or later; soon once the request's stop is raised.
    fn begin(&mut self, request: RestoreRequest, verdicts: Verdicts);

    /// Takes a store whose partition has left this worker.
    fn release(&mut self, partition: i32, store: Store);

    /// Deletes a store that cannot be trusted.
    fn destroy(&mut self, partition: i32, store: Store);

    /// A commit of this task is known.
    fn committed(&mut self, partition: i32);

    /// Deletes a task's ids below an offset of the inbox's topic: they have expired. In the background;
    /// what fails is part of the next time.
    fn trim_inbox(&mut self, partition: i32, before: Offset);
}
