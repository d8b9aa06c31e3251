//! How long a take may wait. Records and rebalances end a wait; whatever else a worker has to serve must not be
//! noticed late, and while there is nothing of it a wait must be long enough to cost nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Consumer, Slot, SlotState, Worker, redrive, running, waiting};

/// A take never waits longer, so that commands and restores are served.
pub(super) const TAKE_WAIT_MAX: Duration = Duration::from_millis(50);
/// A commit that records wait for is begun as soon, and nothing's end is looked for more often.
const TAKE_WAIT_MIN: Duration = Duration::from_millis(1);
/// While a commit or a restore is under way its end is looked for each time that it has taken a quarter longer: a short
/// one is not kept waiting, and a long one costs nothing. Hundreds of workers that each look every millisecond leave the
/// commits that they wait for no time, and so make them long.
const LOOKS: u32 = 4;

impl<C: Consumer> Worker<C> {
    /// Records and rebalances end a wait; for everything else it must not be too long.
    pub(super) fn take_wait(&mut self, now: Duration) -> Duration {
        let adopts = self.may_commit() && running(&mut self.slots).any(|(_, task)| task.is_adopting());
        let committing = self.committer.busy_since();
        let most = match committing {
            Some(since) => patience(now, since),
            None if adopts => TAKE_WAIT_MIN,
            None if self.redrives.is_busy() => redrive::TAKE_WAIT,
            None => TAKE_WAIT_MAX,
        };
        let most = most.min(restore_patience(&self.slots, now));
        let most = match self.stalled {
            // A commit is due, and cannot be made.
            true => most,
            false => match self.pace.patience(now, waiting(&self.slots), most) {
                // As the last take showed, which found nothing that would have gone before: another commit is under
                // way, the broker is gone, or the group.
                Duration::ZERO if self.dry && committing.is_some() => most,
                Duration::ZERO if self.dry => most.min(TAKE_WAIT_MIN),
                patience => patience,
            },
        };
        self.desk.patience(now, most)
    }
}

/// How long a take may wait without the end of a restore being noticed late.
fn restore_patience(slots: &BTreeMap<i32, Slot>, now: Duration) -> Duration {
    let since = slots.values().filter_map(|slot| match slot.state {
        SlotState::Restoring { since, .. } => Some(since),
        _ => None,
    });
    since.max().map_or(TAKE_WAIT_MAX, |youngest| patience(now, youngest))
}

/// Until the end is looked for again of what began then.
fn patience(now: Duration, since: Duration) -> Duration {
    (now.saturating_sub(since) / LOOKS).clamp(TAKE_WAIT_MIN, TAKE_WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::node::restore::Ticket;
    use crate::ports::Interest;
    use crate::telemetry::Telemetry;

    #[test]
    fn a_short_restore_is_not_kept_waiting_and_a_long_one_is_looked_at_seldom() {
        let ms = Duration::from_millis;
        let restoring = |since_ms| Slot {
            held: BTreeSet::new(),
            flowing: false,
            state: SlotState::Restoring { ticket: Ticket(1), since: ms(since_ms) },
            interest: Interest::default(),
            own_calls: Duration::ZERO,
            metrics: Telemetry::new().task("d", 0),
        };
        let mut slots = BTreeMap::from([(0, restoring(100))]);
        for (now_ms, patience_ms) in [(100, 1), (120, 5), (180, 20), (100_000, 50)] {
            assert_eq!(restore_patience(&slots, ms(now_ms)), ms(patience_ms), "at {now_ms}");
        }
        slots.insert(1, restoring(99_960));
        assert_eq!(restore_patience(&slots, ms(100_000)), ms(10), "the youngest counts");
    }
}
