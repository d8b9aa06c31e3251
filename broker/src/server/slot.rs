//! Two small things that threads wait on: an answer, and room for a large request.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::messages::ResponseKind;

/// Where the answer to a parked request is put.
#[derive(Debug, Default)]
pub struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    answer: Option<ResponseKind>,
    closed: bool,
}

/// What waiting on a slot led to.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack of its connection")]
pub enum Waited {
    /// The answer.
    Answer(ResponseKind),
    /// The broker stops; there will be no answer.
    Closed,
    /// Nothing yet.
    Nothing,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the answer in and wakes who waits for it.
    pub fn put(&self, answer: ResponseKind) {
        self.lock().answer = Some(answer);
        self.changed.notify_one();
    }

    /// No answer will come any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for an answer, but not longer than `patience`.
    pub fn wait(&self, patience: Duration) -> Waited {
        let idle = |state: &mut State| state.answer.is_none() && !state.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match (state.answer.take(), state.closed) {
            (Some(answer), _) => Waited::Answer(answer),
            (None, true) => Waited::Closed,
            (None, false) => Waited::Nothing,
        }
    }
}

/// Bytes that may be in use for large requests at once.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

/// Bytes taken from a budget; given back when dropped.
#[derive(Debug)]
pub struct Share<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(max: usize) -> Budget {
        Budget { max, used: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until `bytes` are free. A request larger than the budget waits until it is alone.
    pub fn take(&self, bytes: usize) -> Share<'_> {
        let bytes = bytes.min(self.max);
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut usize| *used + bytes > self.max;
        let waited = self.freed.wait_while(used, full);
        *waited.unwrap_or_else(PoisonError::into_inner) += bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.budget.freed.notify_all();
    }
}
