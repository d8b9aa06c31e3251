//! Time as the core sees it, and what is to happen when.

use std::collections::BTreeMap;

use crate::group::{self, Millis, ReplyTo};

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Clock that only goes forward, for time-outs.
    pub mono: Millis,
    /// Milliseconds since 1970, for timestamps.
    pub wall: i64,
}

/// Something to be done at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A waiting fetch is to be answered with what there is.
    Fetch(ReplyTo),
    /// Something in a group is due.
    Group(String, group::Timer),
    /// The next markers of a transaction are due.
    Markers(String),
    /// Look for transactions that were open for too long.
    AbortScan,
    /// Retention, compaction, expiry.
    Maintenance,
}

/// Names a timer that is set: when it is due, and a number of its own.
pub type TimerId = (Millis, u64);

/// Timers in order of time. A stale one finds nothing to do, but those of fetches are cancelled: a
/// client sets as many as it asks, for as long as it likes.
#[derive(Debug, Default)]
pub struct Timers {
    queue: BTreeMap<TimerId, Timer>,
    sequence: u64,
}

impl Timers {
    /// Sets a timer.
    pub fn set(&mut self, at: Millis, timer: Timer) -> TimerId {
        self.sequence += 1;
        let id = (at, self.sequence);
        self.queue.insert(id, timer);
        id
    }

    /// Sets a timer for no sooner than `delay` from now: `now` is cut to whole milliseconds, so that
    /// without the one more it could fire a fraction of one too early.
    pub fn set_after(&mut self, now: Now, delay: Millis, timer: Timer) -> TimerId {
        self.set(now.mono.saturating_add(delay).saturating_add(1), timer)
    }

    /// Takes a timer back, if it is still set.
    pub fn cancel(&mut self, id: TimerId) {
        self.queue.remove(&id);
    }

    /// Takes the next timer that is due.
    pub fn take_due(&mut self, now: Millis) -> Option<Timer> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// When the next timer is due.
    pub fn next(&self) -> Option<Millis> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }
}
