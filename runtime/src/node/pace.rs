//! When a worker commits.
//!
//! Soon when its input has run dry, because then a commit costs nobody anything; otherwise when an
//! interval, a number of bytes or a number of records is reached. Never so often that commits take
//! more than a fifth of the time, nor beyond the node's bound on commits per second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::deployment::CommitSpec;

/// Commits all workers of a node may start in one second.
pub const NODE_COMMITS_PER_SECOND_MAX: u64 = 200;
/// A commit that only moves offsets past transaction markers is in no hurry.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// Commits take at most one part in this many of a worker's time while records flow.
const COST_SHARE: u32 = 5;

/// Commits of the running second, shared by a node's workers.
#[derive(Debug, Default)]
pub struct NodeBudget {
    /// Second (upper 32 bits) and commits started in it (lower 32 bits).
    window: AtomicU64,
}

impl NodeBudget {
    /// Takes one commit out of this second's budget; false when it is spent.
    pub fn take(&self, now: Duration) -> bool {
        let second = now.as_secs() << 32;
        let step = |window: u64| {
            let spent = if window & !0xffff_ffff == second { window & 0xffff_ffff } else { 0 };
            (spent < NODE_COMMITS_PER_SECOND_MAX).then_some(second | (spent + 1))
        };
        self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

/// What waits to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    pub records: u64,
    pub bytes: u64,
    /// Offsets that moved without a record, past transaction markers.
    pub moved: bool,
}

impl Waiting {
    pub fn is_nothing(&self) -> bool {
        self.records == 0 && self.bytes == 0 && !self.moved
    }
}

/// One worker's pace. All times are on one monotonic clock.
#[derive(Debug)]
pub struct Pace {
    spec: CommitSpec,
    last_start: Duration,
    last_cost: Duration,
}

impl Pace {
    pub fn new(spec: CommitSpec, now: Duration) -> Pace {
        Pace { spec, last_start: now, last_cost: Duration::ZERO }
    }

    /// True when a commit should start now. `dry` = the last take found no records.
    pub fn is_due(&self, now: Duration, waiting: Waiting, dry: bool) -> bool {
        if waiting.is_nothing() {
            return false;
        }
        if self.must_stop_taking(waiting) {
            return true;
        }
        let since = now.saturating_sub(self.last_start);
        if waiting.records == 0 && waiting.bytes == 0 {
            return since >= IDLE_INTERVAL.max(self.spec.interval);
        }
        if since < self.spec.min_interval {
            return false;
        }
        let affordable = since >= self.last_cost * COST_SHARE;
        since >= self.spec.interval || (dry && affordable)
    }

    /// True when no more may be taken before a commit: the overlay is full.
    pub fn must_stop_taking(&self, waiting: Waiting) -> bool {
        waiting.bytes >= self.spec.overlay_bytes || waiting.records >= self.spec.max_records
    }

    /// How long a take may wait so that the next commit is not late.
    pub fn patience(&self, now: Duration, waiting: Waiting, most: Duration) -> Duration {
        if waiting.is_nothing() {
            return most;
        }
        let soonest = self.spec.min_interval.max(self.last_cost * COST_SHARE).min(self.spec.interval);
        let due = self.last_start + if waiting.records > 0 { soonest } else { IDLE_INTERVAL };
        due.saturating_sub(now).min(most)
    }

    pub fn started(&mut self, now: Duration) {
        self.last_start = now;
    }

    pub fn finished(&mut self, took: Duration) {
        self.last_cost = took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        let spec = CommitSpec {
            interval: Duration::from_millis(100),
            min_interval: Duration::from_millis(10),
            overlay_bytes: 1000,
            max_records: 500,
        };
        Pace::new(spec, Duration::ZERO)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_dry_input_commits_soon_and_a_flowing_one_at_the_interval() {
        let waiting = Waiting { records: 3, ..Waiting::default() };
        assert!(!pace().is_due(ms(9), waiting, true));
        assert!(pace().is_due(ms(10), waiting, true));
        assert!(!pace().is_due(ms(99), waiting, false));
        assert!(pace().is_due(ms(100), waiting, false));
    }

    #[test]
    fn a_full_overlay_commits_at_once() {
        let waiting = Waiting { records: 1, bytes: 1000, moved: false };
        assert!(pace().is_due(ms(0), waiting, false));
        assert!(pace().must_stop_taking(waiting));
    }

    #[test]
    fn dear_commits_are_made_less_often_but_never_later_than_the_interval() {
        let mut pace = pace();
        pace.finished(ms(12));
        let waiting = Waiting { records: 3, ..Waiting::default() };
        assert!(!pace.is_due(ms(59), waiting, true));
        assert!(pace.is_due(ms(60), waiting, true));
        pace.finished(ms(90));
        assert!(pace.is_due(ms(100), waiting, true));
    }

    #[test]
    fn offsets_that_only_moved_are_in_no_hurry() {
        let waiting = Waiting { moved: true, ..Waiting::default() };
        assert!(!pace().is_due(ms(499), waiting, true));
        assert!(pace().is_due(ms(500), waiting, true));
    }

    #[test]
    fn the_node_bounds_its_commits_per_second() {
        let budget = NodeBudget::default();
        let taken = (0..500).filter(|_| budget.take(ms(1500))).count() as u64;
        assert_eq!(taken, NODE_COMMITS_PER_SECOND_MAX);
        assert!(budget.take(ms(2000)));
    }
}
