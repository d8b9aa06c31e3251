//! What is left of batches whose handler is slow. A task gives its thread back after a while
//! (`task::turn`); commits, commands and restores then have their time, and the rest goes on before
//! anything else of its input.
//!
//! Nothing is taken meanwhile, so the rest is bounded by what one take brought. But a group must not
//! wait for a handler: after a while the worker listens to it all the same, drops what it has, and
//! reads it again.

use std::time::Duration;

use super::{Consumer, Worker};
use crate::ports::Taken;

/// The group is listened to at least this often.
const LISTEN_EVERY: Duration = Duration::from_secs(1);

impl<C: Consumer> Worker<C> {
    /// One more turn for the batch that has waited longest.
    pub(super) fn run_rest(&mut self) {
        if let Some(batch) = self.rest.pop_front() {
            self.apply(batch);
        }
    }

    /// True while there is a rest and no need to listen to the group.
    pub(super) fn is_behind(&mut self) -> bool {
        if self.rest.is_empty() {
            return false;
        }
        self.dry = false;
        if self.clock.monotonic().saturating_sub(self.last_take) < LISTEN_EVERY {
            return true;
        }
        self.read_again();
        false
    }

    /// Drops what has been taken and not handled, and what comes until the inputs have been sought
    /// again: it lies behind that.
    pub(super) fn read_again(&mut self) {
        self.rest.clear();
        self.stalled = true;
    }

    /// The inputs of this task begin elsewhere, or nowhere: what was taken of them is not what comes next.
    pub(super) fn forget_rest(&mut self, partition: i32) {
        self.rest.retain(|batch| batch.partition != partition);
        self.arrived.retain(|item| match item {
            Taken::Batch(batch) => batch.partition != partition,
            Taken::Failed { partition: failed, .. } => failed.partition != partition,
            Taken::Assigned(_) | Taken::Revoked(_) | Taken::Lost(_) => true,
        });
    }
}
