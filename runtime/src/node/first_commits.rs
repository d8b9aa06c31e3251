//! Which first commits of a worker's tasks the registry has been told of. Until it knows of one, a missing offset of that task
//! passes for that of a task which never committed; so one that it could not be told of is told with a later commit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two attempts for a task, which commits far more often.
const AGAIN: Duration = Duration::from_secs(10);

/// By partition: when to tell again; none = it is told, or being told. Shared with the threads that tell.
#[derive(Debug, Clone, Default)]
pub(super) struct FirstCommits(Arc<Mutex<HashMap<i32, Option<Instant>>>>);

impl FirstCommits {
    /// A commit is known. True if the registry is to be told of it now.
    pub fn begin(&self, partition: i32, now: Instant) -> bool {
        let mut told = self.lock();
        let is_due = told.get(&partition).is_none_or(|again| again.is_some_and(|again| again <= now));
        if is_due {
            told.insert(partition, None);
        }
        is_due
    }

    /// The registry may not have heard of it.
    pub fn failed(&self, partition: i32, now: Instant) {
        self.lock().insert(partition, Some(now + AGAIN));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Option<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_commit_that_the_registry_did_not_hear_of_is_told_with_a_later_one_and_others_once() {
        let (commits, now) = (FirstCommits::default(), Instant::now());
        assert!(commits.begin(0, now) && commits.begin(1, now));
        assert!(!commits.begin(0, now), "it is being told");
        commits.failed(0, now);
        assert!(!commits.begin(0, now), "not at once");
        assert!(commits.begin(0, now + AGAIN) && !commits.begin(1, now + AGAIN));
    }
}
