//! How much a task does at once: so much CPU time, then whoever owns its worker's thread has other
//! things to do: commits that are due, a stop, a rebalance. Only slow handlers ever notice. A full overlay ends a turn
//! as well: what is left waits for its commit.
//!
//! A call cannot be divided, so the number of records in one follows from what records have cost so
//! far.

use std::time::Duration;

/// CPU time after which no further call begins in this turn.
const TURN: Duration = Duration::from_millis(100);

/// One turn after the other.
#[derive(Debug, Default)]
pub(super) struct Turn {
    used: Duration,
    /// What a record costs: rises at once, falls slowly.
    record: Duration,
}

impl Turn {
    pub fn begin(&mut self) {
        self.used = Duration::ZERO;
    }

    pub fn is_over(&self) -> bool {
        self.used >= TURN
    }

    /// A call with so many records has taken this.
    pub fn used(&mut self, used: Duration, records: usize) {
        self.used += used;
        let record = used / u32::try_from(records).unwrap_or(u32::MAX).max(1);
        self.record = record.max((self.record * 7 + record) / 8);
    }

    /// No further call begins, whatever the others have taken.
    pub fn end(&mut self) {
        self.used = self.used.max(TURN);
    }

    /// A fresh instance has taken this, which says nothing of what records cost.
    pub fn started(&mut self, used: Duration) {
        self.used += used;
    }

    /// Records of one call that fit into a turn, at least one.
    pub fn company(&self) -> usize {
        let fit = TURN.as_nanos().checked_div(self.record.as_nanos());
        fit.map_or(usize::MAX, |fit| usize::try_from(fit).unwrap_or(usize::MAX).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_records_go_into_small_calls_and_quick_ones_into_any() {
        let mut turn = Turn::default();
        assert_eq!(turn.company(), usize::MAX);
        turn.used(Duration::from_millis(40), 10);
        assert_eq!((turn.company(), turn.is_over()), (25, false));
        turn.used(Duration::from_millis(200), 1);
        assert_eq!((turn.company(), turn.is_over()), (1, true));
        turn.begin();
        assert!(!turn.is_over());
        for _ in 0..200 {
            turn.used(Duration::ZERO, 1);
        }
        assert!(turn.company() > 500);
    }
}
