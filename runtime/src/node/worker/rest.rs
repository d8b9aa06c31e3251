//! What has been taken and not handled yet: the rest of batches whose handler is slow, and what there was no room for. A
//! task gives its thread back after a while (`task::turn`); commits, commands and restores then have their time, and the
//! rest goes on before anything else of its input.
//!
//! Nothing is taken meanwhile, so the rest is bounded by what one take brought. But a group must not wait for a handler,
//! nor for the end of a stall: the worker listens to it all the same. And what cannot be read halts its task only when
//! what was taken before it is handled, so that the position names it.

use std::time::Duration;

use super::{Consumer, Worker};
use crate::ports::Taken;

/// While there is a rest to be handled the group is listened to this often.
const LISTEN_EVERY: Duration = Duration::from_secs(1);

impl<C: Consumer> Worker<C> {
    /// One more turn for the batch that has waited longest.
    pub(super) fn run_rest(&mut self) {
        if !self.stalled
            && let Some(batch) = self.rest.pop_front()
        {
            self.apply(batch);
        }
        while let Some(at) = self.failed.iter().position(|(partition, _)| !self.has_rest(*partition)) {
            let (partition, reason) = self.failed.swap_remove(at);
            self.halt(partition, reason);
        }
    }

    /// An input of this task cannot be read on.
    pub(super) fn input_failed(&mut self, partition: i32, reason: String) {
        match self.has_rest(partition) {
            true => self.failed.push((partition, reason)),
            false => self.halt(partition, reason),
        }
    }

    fn has_rest(&self, partition: i32) -> bool {
        self.rest.iter().any(|batch| batch.partition == partition)
    }

    /// Everything that was taken is handled, and there is room for more.
    pub(super) fn may_take(&self) -> bool {
        self.rest.is_empty() && !self.stalled
    }

    /// Hears the group, and leaves records where they are.
    pub(super) fn listen(&mut self) {
        self.dry = false;
        let now = self.clock.monotonic();
        let wait = match self.stalled {
            // There is nothing else to do.
            true => self.take_wait(now),
            false if now.saturating_sub(self.heard) < LISTEN_EVERY => return,
            false => Duration::ZERO,
        };
        self.ask(C::listen, wait);
    }

    /// The inputs of this task begin elsewhere, or nowhere: what was taken of them is not what comes next.
    pub(super) fn forget_rest(&mut self, partition: i32) {
        self.rest.retain(|batch| batch.partition != partition);
        self.failed.retain(|(failed, _)| *failed != partition);
        self.arrived.retain(|item| match item {
            Taken::Batch(batch) => batch.partition != partition,
            Taken::Failed { partition: failed, .. } => failed.partition != partition,
            Taken::Assigned(_) | Taken::Revoked(_) | Taken::Lost(_) => true,
        });
    }
}
