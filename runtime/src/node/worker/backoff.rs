//! How long a worker waits until it makes a producer or a consumer anew that has failed, or could not be made.
//!
//! Brokers that go fail every worker of a fleet at once. With pauses of the same length all of them would be back at
//! once, too, and again after each that is too short.

use std::time::Duration;

use super::{Consumer, Standing, Worker};
use crate::config::jitter::spread;

impl<C: Consumer> Worker<C> {
    /// Down from now on, for this pause or up to a half less.
    pub(super) fn down_for(&self, pause: Duration) -> Standing {
        let now = self.clock.monotonic();
        Standing::Down { until: now + pause_of(pause, now, self.index) }
    }
}

/// What is waited of a pause: by the nanosecond at which it begins, which differs from worker to worker and
/// from node to node, and where the clock is a coarse one by the worker. Nothing else, so that a simulated run repeats itself.
fn pause_of(pause: Duration, now: Duration, worker: u32) -> Duration {
    spread(pause, now.as_nanos() as u64 ^ u64::from(worker).rotate_left(48))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn workers_that_fail_together_do_not_come_back_together_and_none_waits_longer_than_its_pause() {
        let (pause, now) = (Duration::from_millis(100), Duration::from_secs(7));
        let of_one_moment = (0..8).map(|worker| pause_of(pause, now, worker));
        let of_other_nodes = (1..8).map(|nanos| pause_of(pause, now + Duration::from_nanos(nanos), 0));
        let pauses: BTreeSet<Duration> = of_one_moment.chain(of_other_nodes).collect();
        assert_eq!(pauses.len(), 15, "each another: {pauses:?}");
        assert!(pauses.iter().all(|spread| (pause / 2..=pause).contains(spread)), "{pauses:?}");
        assert_eq!(pause_of(pause, now, 3), pause_of(pause, now, 3), "a simulated run repeats itself");
        assert_eq!(pause_of(Duration::ZERO, now, 3), Duration::ZERO, "the first accident costs no time");
    }
}
