//! Commits in a row whose outcome was not known. The first may be an accident, and costs no time. One that comes again at
//! once has a cause that stays, such as a topic that may not be written to any more: then making producers and restoring
//! tasks without a pause would only keep brokers busy, and a person has to hear of it.

use std::time::Duration;

use super::{BACKOFF_MAX, BACKOFF_MIN};

/// From this one on it is no accident.
const LASTING: u32 = 3;
/// Without another one for so long it is over, whether or not there was anything to commit.
const OVER: Duration = Duration::from_secs(60);

/// See the file. Times are of the worker's clock.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    in_a_row: u32,
    last: Duration,
}

impl Doubt {
    /// One more. Answers how long to wait before another producer is made.
    pub fn again(&mut self, now: Duration) -> Duration {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last = now;
        match self.in_a_row.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => (BACKOFF_MIN * 2_u32.pow(doublings.min(10))).min(BACKOFF_MAX),
        }
    }

    /// It does not pass by itself.
    pub fn is_lasting(&self) -> bool {
        self.in_a_row >= LASTING
    }

    pub fn is_outdated(&self, now: Duration) -> bool {
        self.in_a_row > 0 && now.saturating_sub(self.last) >= OVER
    }

    /// A commit was made. True if it had lasted.
    pub fn end(&mut self) -> bool {
        let has_lasted = self.is_lasting();
        self.in_a_row = 0;
        has_lasted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accident_costs_no_time_and_what_lasts_is_tried_ever_less_often() {
        let (mut doubt, now) = (Doubt::default(), Duration::from_secs(7));
        let waits: Vec<u64> = (0..9).map(|_| doubt.again(now).as_millis() as u64).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(doubt.end());
        assert_eq!(doubt.again(now), Duration::ZERO);
        assert!(!doubt.is_lasting() && !doubt.end());
    }

    #[test]
    fn what_does_not_come_again_is_over_without_a_commit() {
        let (mut doubt, now) = (Doubt::default(), Duration::from_secs(7));
        assert!(!doubt.is_outdated(now + OVER));
        doubt.again(now);
        assert!(!doubt.is_outdated(now + OVER / 2) && doubt.is_outdated(now + OVER));
    }
}
