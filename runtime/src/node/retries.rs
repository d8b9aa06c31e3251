//! Which halted tasks a new revision of a deployment tries again: all, unless it was made for one of them.
//!
//! A node may pass over revisions, so the wishes of several that follow each other are kept together: what
//! counts for a task is whether one was about it since the revision that its worker has.

use std::collections::BTreeMap;

/// Revisions that came one after the other and were each about one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retries {
    /// The revision before the first of them.
    since: u64,
    /// The last of them; if the deployment's is another one, something else has changed after it.
    last: u64,
    /// By partition, the last revision that is about it.
    partitions: BTreeMap<i32, u64>,
}

impl Retries {
    /// `revision`, which follows `current`, is about this partition.
    pub fn add(&mut self, current: u64, revision: u64, partition: i32) {
        if self.last != current {
            *self = Retries { since: current, ..Retries::default() };
        }
        self.last = revision;
        self.partitions.insert(partition, revision);
    }

    /// Whether a worker that goes from one revision to another tries this partition's task again.
    pub fn include(&self, partition: i32, from: u64, to: u64) -> bool {
        let are_all = self.last == to && self.since <= from;
        !are_all || self.partitions.get(&partition).is_some_and(|&about| about > from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_tried_again_if_a_revision_since_its_own_was_about_it_or_about_all() {
        let mut retries = Retries::default();
        assert!(retries.include(0, 3, 5), "a new version is about all");
        retries.add(5, 6, 0);
        assert!(retries.include(0, 5, 6) && !retries.include(1, 5, 6));
        assert!(retries.include(1, 3, 6), "this worker has not seen the version before");
        retries.add(6, 8, 1);
        assert!(retries.include(0, 5, 8) && retries.include(1, 5, 8), "both were wished for");
        assert!(!retries.include(0, 6, 8), "this worker has done that");
        assert!(retries.include(0, 6, 9), "something else has changed since");
        retries.add(9, 10, 2);
        assert!(!retries.include(0, 9, 10) && retries.include(0, 8, 10));
    }
}
