//! When a worker commits.
//!
//! Soon when its input has run dry, because then a commit costs nobody anything; otherwise when an
//! interval, a number of bytes or a number of records is reached. Never so often that commits take
//! more than half of the time, nor beyond the node's bound on commits per second.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::deployment::CommitSpec;

/// Commits all workers of a node may start in one second.
pub const NODE_COMMITS_PER_SECOND_MAX: u64 = 200;
/// A commit that only moves offsets past transaction markers is in no hurry.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// Commits take at most one part in this many of a worker's time while their input runs dry: most of a
/// commit is waiting for the broker, and one that is slow to answer has enough to do.
const COST_SHARE: u32 = 2;

/// Commits of a node's workers, second by second, and how far apart they must be so that all of them
/// together stay below the bound: whoever wants little gets it at once, and the others share the rest
/// evenly, however many deployments or workers some of them have.
#[derive(Debug, Default)]
pub struct NodeBudget {
    seats: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    second: u64,
    /// Commits in it, by seat.
    spent: HashMap<u64, u64>,
    /// What each worker may spend in it; none = whatever it wants.
    share: Option<u64>,
}

impl NodeBudget {
    /// A place for one worker.
    pub fn seat(&self) -> u64 {
        self.seats.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a commit that starts now. Answers how much later this worker's next one may start. The
    /// first second of a rush is not held back; the ones after it are.
    pub fn spend(&self, seat: u64, now: Duration) -> Duration {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.second != now.as_secs() {
            let follows = now.as_secs() == window.second + 1;
            let spent = std::mem::take(&mut window.spent);
            window.share = if follows { fair_share(spent.into_values(), window.share) } else { None };
            window.second = now.as_secs();
        }
        *window.spent.entry(seat).or_default() += 1;
        let share = window.share.unwrap_or(NODE_COMMITS_PER_SECOND_MAX);
        Duration::from_secs(1) / u32::try_from(share).unwrap_or(u32::MAX).max(1)
    }
}

/// Commits a second that each worker may make so that all stay within the bound: none if all did, else
/// the largest share with which those who want less leave enough to those who want more. Who has used
/// more than half of his share of the second before may have wanted any number.
fn fair_share(spent: impl Iterator<Item = u64>, before: Option<u64>) -> Option<u64> {
    let is_held_back = |spent: u64| before.is_some_and(|share| 2 * spent >= share);
    let wanted = spent.map(|spent| if is_held_back(spent) { u64::MAX } else { spent });
    let mut wanted: Vec<u64> = wanted.collect();
    wanted.sort_unstable();
    let mut left = NODE_COMMITS_PER_SECOND_MAX;
    for (index, &wants) in wanted.iter().enumerate() {
        let share = left / (wanted.len() - index) as u64;
        if wants > share {
            return Some(share.max(1));
        }
        left -= wants;
    }
    None
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
    /// What the node allows: the next commit comes so much later than the last.
    spacing: Duration,
    last_start: Duration,
    last_cost: Duration,
}

impl Pace {
    pub fn new(spec: CommitSpec, now: Duration) -> Pace {
        Pace { spec, spacing: Duration::ZERO, last_start: now, last_cost: Duration::ZERO }
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
            return since >= IDLE_INTERVAL.max(self.spec.interval).max(self.spacing);
        }
        if since < self.spec.min_interval.max(self.spacing) {
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
        let soonest = if waiting.records > 0 { soonest } else { IDLE_INTERVAL };
        let due = self.last_start + soonest.max(self.spacing);
        due.saturating_sub(now).min(most)
    }

    /// A commit has started, and the node wants the next one so much later.
    pub fn started(&mut self, now: Duration, spacing: Duration) {
        self.last_start = now;
        self.spacing = spacing;
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
        pace.finished(ms(30));
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

    /// Commits that workers make in a second, each of which would make so many.
    fn a_second(budget: &NodeBudget, second: u64, wants: &[u64]) -> Vec<u64> {
        let mut made = vec![0; wants.len()];
        let mut next = vec![Duration::ZERO; wants.len()];
        for tick in 0..1000 {
            let now = ms(tick);
            for (seat, &wants) in wants.iter().enumerate() {
                if tick % (1000 / wants) == 0 && next[seat] <= now {
                    next[seat] = now + budget.spend(seat as u64, Duration::from_secs(second) + now);
                    made[seat] += 1;
                }
            }
        }
        made
    }

    #[test]
    fn those_who_commit_most_share_what_the_others_leave() {
        let budget = NodeBudget::default();
        let seats: Vec<u64> = (0..4).map(|_| budget.seat()).collect();
        assert_eq!(seats, [0, 1, 2, 3]);
        for second in 1..5 {
            let made = a_second(&budget, second, &[10, 100, 100, 100]);
            let all: u64 = made.iter().sum();
            assert_eq!(made[0], 10, "in second {second}: {made:?}");
            if second > 1 {
                assert!(all <= NODE_COMMITS_PER_SECOND_MAX, "in second {second}: {made:?}");
                assert!(made[1..].iter().all(|&made| made >= 50), "in second {second}: {made:?}");
            }
        }
        // Who is alone again has what he wants.
        a_second(&budget, 5, &[10, 100]);
        assert_eq!(a_second(&budget, 6, &[10, 100]), [10, 100]);
    }

    #[test]
    fn a_worker_waits_as_long_as_the_node_wants() {
        let mut pace = pace();
        pace.started(ms(0), ms(40));
        let waiting = Waiting { records: 3, ..Waiting::default() };
        assert!(!pace.is_due(ms(39), waiting, true));
        assert_eq!(pace.patience(ms(10), waiting, ms(50)), ms(30));
        assert!(pace.is_due(ms(40), waiting, true));
    }
}
