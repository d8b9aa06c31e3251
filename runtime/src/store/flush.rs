//! When memtables are written to disk. RocksDB flushes a store that is written to; this also flushes
//! the ones that are not, so that idle stores do not hold the budget, and a crash costs a bounded
//! tail of the changelog.

use std::time::Duration;

use super::{StoreError, StoreReader};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlushRule {
    /// A store is flushed this long after its first unflushed write was noticed.
    pub age_max: Duration,
    /// What all stores may hold unflushed together.
    pub bytes_max: u64,
}

impl Default for FlushRule {
    fn default() -> FlushRule {
        FlushRule { age_max: Duration::from_secs(30), bytes_max: 96 << 20 }
    }
}

/// What is known of a store between two looks at it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// When unflushed data was first seen.
    dirty_since: Option<Duration>,
    /// RocksDB's sequence number at the last look; unchanged = idle.
    sequence: u64,
}

/// One store's answer to a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unflushed {
    pub bytes: u64,
    pub sequence: u64,
}

impl Watch {
    /// Answers for how long the store has been dirty, and whether it was idle since the last look.
    fn look(&mut self, now: Duration, seen: Unflushed) -> (Duration, bool) {
        let idle = self.sequence == seen.sequence;
        self.sequence = seen.sequence;
        if seen.bytes == 0 {
            self.dirty_since = None;
            return (Duration::ZERO, idle);
        }
        let since = *self.dirty_since.get_or_insert(now);
        (now.saturating_sub(since), idle)
    }

    pub fn flushed(&mut self) {
        self.dirty_since = None;
    }
}

/// Flushes the stores that are due: those dirty for too long, then, while all of them together hold
/// too much, idle ones before busy ones and the largest first. Blocks for the writing; belongs on a
/// thread of its own, called about once a second. Answers how many stores were flushed; a store that
/// fails does not keep the others from being flushed, and the first error is reported.
pub fn flush_due(stores: &[StoreReader], now: Duration, rule: &FlushRule) -> Result<usize, StoreError> {
    let mut dirty = Vec::new();
    let mut due = Vec::new();
    let mut total_bytes = 0;
    for store in stores {
        let Ok(seen) = store.unflushed() else {
            continue;
        }; // Closed meanwhile.
        let (age, idle) = store.watch().look(now, seen);
        if seen.bytes == 0 {
            continue;
        }
        if age >= rule.age_max {
            due.push(store);
        } else {
            total_bytes += seen.bytes;
            dirty.push((idle, seen.bytes, store));
        }
    }
    dirty.sort_by_key(|&(idle, bytes, _)| (idle, bytes));
    while total_bytes > rule.bytes_max {
        let Some((_, bytes, store)) = dirty.pop() else {
            break;
        };
        total_bytes -= bytes;
        due.push(store);
    }
    let mut failed = None;
    let mut flushed = 0;
    for store in due {
        match store.flush() {
            Ok(()) => flushed += 1,
            Err(StoreError::Closed) => {}
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(flushed), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_ages_from_its_first_unflushed_write() {
        let mut watch = Watch::default();
        let second = Duration::from_secs;
        assert_eq!(watch.look(second(1), Unflushed { bytes: 0, sequence: 5 }), (second(0), false));
        assert_eq!(watch.look(second(2), Unflushed { bytes: 10, sequence: 6 }), (second(0), false));
        assert_eq!(watch.look(second(9), Unflushed { bytes: 10, sequence: 6 }), (second(7), true));
        watch.flushed();
        assert_eq!(watch.look(second(10), Unflushed { bytes: 3, sequence: 7 }), (second(0), false));
    }
}
