//! Where a worker's time goes, told to its tasks: a turn of the loop is split among them, so that what each
//! of them did, and waited for, adds up to the time that has passed.
//!
//! ```text
//!   turn:   | take: fetch, or commit while one is out | calls: handler and state of a task, `others` to the rest | what is left: commit |
//! ```
//!
//! A few readings of the clock for each batch and turn, none for a record.

use std::time::Duration;

use super::{Consumer, Slot, SlotState, Worker};
use crate::telemetry::{Activity, TaskMetrics};

/// The turn in progress.
#[derive(Debug)]
pub(super) struct Turn {
    began: Duration,
    /// Waited for records, and nothing else was going on.
    fetch: Duration,
    /// In calls of all tasks.
    calls: Duration,
}

impl Turn {
    pub fn at(now: Duration) -> Turn {
        Turn { began: now, fetch: Duration::ZERO, calls: Duration::ZERO }
    }

    /// A task of this worker was called. Of the time that this took, it waited for state so long.
    pub fn called(&mut self, own: &mut Duration, metrics: &TaskMetrics, took: Duration, reading: Duration) {
        // On another clock, so by a hair it may be longer.
        let reading = reading.min(took);
        metrics.spent.add(Activity::Handler, took - reading);
        metrics.spent.add(Activity::State, reading);
        metrics.spent.end();
        *own += took;
        self.calls += took;
    }
}

impl<C: Consumer> Worker<C> {
    /// A take has ended that began at `before`. While a commit is out, or nothing is taken for want of one, it is what is
    /// waited for.
    pub(super) fn took_records(&mut self, before: Duration) {
        if !self.committer.is_busy() && !self.stalled {
            self.turn.fetch += self.clock.monotonic().saturating_sub(before);
        }
    }

    /// A commit is waited for from here on, for as long as it takes; the end of the turn adds it.
    pub(super) fn waits_for_commit(&self) {
        for slot in self.slots.values().filter(|slot| matches!(slot.state, SlotState::Running(_))) {
            slot.metrics.spent.begin(Activity::Commit);
        }
    }

    /// Ends a turn, and begins the next.
    pub(super) fn account(&mut self) {
        let now = self.clock.monotonic();
        let Turn { began, fetch, calls } = std::mem::replace(&mut self.turn, Turn::at(now));
        let whole = now.saturating_sub(began);
        for Slot { state, own_calls, metrics, .. } in self.slots.values_mut() {
            let own = std::mem::take(own_calls);
            let spent = &metrics.spent;
            spent.end();
            match state {
                SlotState::Waiting { .. } | SlotState::Restoring { .. } => {
                    spent.add(Activity::Restore, whole.saturating_sub(own));
                }
                SlotState::Halted { .. } => spent.add(Activity::Halted, whole.saturating_sub(own)),
                SlotState::Running(task) if task.is_blocked() => {
                    spent.add(Activity::Paused, whole.saturating_sub(own));
                }
                SlotState::Running(_) => {
                    spent.add(Activity::Fetch, fetch);
                    spent.add(Activity::Others, calls.saturating_sub(own));
                    spent.add(Activity::Commit, whole.saturating_sub(fetch + calls));
                }
            }
        }
    }
}
