//! The versions of a deployment: what each consisted of, who made it, when and why.
//!
//! A version never changes. Every accepted deploy and rollback makes one; pauses and resumes make none.
//! The control topic keeps all of them for ever, a node the last [`VERSIONS_MAX`] of each deployment.

use std::sync::Arc;

use crate::config::changes::{Change, Contents, changes};

/// Versions of one deployment that a node remembers. The topic of modules keeps what these name: a node of a program
/// with a smaller number would take from it what one with a larger could roll back to.
pub const VERSIONS_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Counted from 1 in each life of the deployment.
    pub number: u64,
    /// Registry revision that made it.
    pub revision: u64,
    /// SHA-256 of the module.
    pub module: String,
    pub document: String,
    /// JSON.
    pub manifest: String,
    /// As they said.
    pub author: String,
    /// By the registry topic's clock.
    pub deployed_at_ms: i64,
    /// Of a rollback: the version whose contents it took up.
    pub rollback_to: Option<u64>,
    /// A rollback that a node began by itself.
    pub automatic: bool,
    pub reason: String,
    /// Stores whose data was given up with it.
    pub dropped: Vec<String>,
}

impl Version {
    fn contents(&self) -> Contents<'_> {
        Contents { module: &self.module, document: &self.document, manifest: &self.manifest }
    }

    /// What is different in `after`.
    pub fn changes(&self, after: Contents<'_>) -> Vec<Change> {
        changes(self.contents(), after)
    }

    pub fn changes_to(&self, after: &Version) -> Vec<Change> {
        self.changes(after.contents())
    }
}

/// The versions of one life, the oldest first. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(Arc<Vec<Arc<Version>>>);

impl History {
    /// The number of the version that comes next.
    pub fn next_number(&self) -> u64 {
        self.current().map_or(1, |version| version.number + 1)
    }

    /// The last one, which is the one that runs.
    pub fn current(&self) -> Option<&Arc<Version>> {
        self.0.last()
    }

    /// The version whose contents run: of a rollback to a rollback, those that the earlier one took up.
    pub fn running(&self) -> Option<u64> {
        let mut version = self.current()?;
        while let Some(to) = version.rollback_to.filter(|&to| to < version.number) {
            let Some(taken_up) = self.get(to) else { return Some(to) };
            version = taken_up;
        }
        Some(version.number)
    }

    pub fn get(&self, number: u64) -> Option<&Arc<Version>> {
        self.0.iter().find(|version| version.number == number)
    }

    /// The one that was made at or last before a registry revision; none if it is no longer remembered.
    pub fn at(&self, revision: u64) -> Option<&Arc<Version>> {
        self.0.iter().rfind(|version| version.revision <= revision)
    }

    /// The oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Version>> {
        self.0.iter()
    }

    /// Versions that were forgotten.
    pub fn forgotten(&self) -> u64 {
        self.0.first().map_or(0, |first| first.number - 1)
    }

    pub(super) fn push(&mut self, version: Version) {
        let versions = Arc::make_mut(&mut self.0);
        if versions.len() == VERSIONS_MAX {
            versions.remove(0);
        }
        versions.push(Arc::new(version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next one, which took that one up, if it is a rollback.
    fn push(history: &mut History, rollback_to: Option<u64>) {
        history.push(Version {
            number: history.next_number(),
            revision: 0,
            module: String::new(),
            document: String::new(),
            manifest: String::new(),
            author: String::new(),
            deployed_at_ms: 0,
            rollback_to,
            automatic: false,
            reason: String::new(),
            dropped: Vec::new(),
        });
    }

    #[test]
    fn the_oldest_versions_are_forgotten_and_numbers_go_on() {
        let mut history = History::default();
        (0..VERSIONS_MAX + 2).for_each(|_| push(&mut history, None));
        assert_eq!((history.forgotten(), history.next_number()), (2, VERSIONS_MAX as u64 + 3));
        assert!(history.get(2).is_none() && history.get(3).is_some());
    }

    #[test]
    fn a_rollback_to_a_rollback_runs_what_that_one_took_up() {
        let mut history = History::default();
        assert_eq!(history.running(), None);
        let running = [None, None, Some(1), None, Some(3)].map(|rollback_to| {
            push(&mut history, rollback_to);
            history.running()
        });
        assert_eq!(running, [1, 2, 1, 4, 1].map(Some));
    }
}
