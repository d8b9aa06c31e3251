//! Deleting what was dropped: rows of generations of stores that no version can see any more.
//!
//! ```text
//!   seal: the next keys of a dropped prefix --> deletions in the overlay --> the commit, like any change
//! ```
//!
//! The deletions go through the changelog, so that a store rebuilt from it does not have the rows either.
//! Nothing remembers how far a sweep is: one that was interrupted begins anew, and finds less.

use super::{Task, TaskError};

/// Rows that one commit deletes: a few milliseconds' work, a few times a second.
const ROWS_MAX: usize = 4_000;
/// About what a row adds to the commit that deletes it.
const ROW_BYTES: usize = 100;

/// How far a task is with the prefixes that were dropped.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Of the stores' list of dropped prefixes.
    prefix: usize,
    /// The first key that has not been looked at; empty = the prefix's first.
    from: Vec<u8>,
    rows: u64,
}

impl Task {
    /// True while the next commit deletes dropped rows. Not the one that takes up a revision, which holds
    /// nothing else, and none while a refused record is looked for.
    pub(super) fn is_sweeping(&self) -> bool {
        self.in_flight.is_none()
            && self.store.is_some()
            && !self.is_adopting()
            && self.careful.is_none()
            && self.sweep.prefix < self.config.stores.dropped().len()
    }

    /// What the next commit grows by, at most.
    pub(super) fn sweep_bytes(&self) -> usize {
        if self.is_sweeping() { ROWS_MAX * ROW_BYTES } else { 0 }
    }

    /// Puts the deletion of the next rows into the overlay.
    pub(super) fn sweep(&mut self) -> Result<(), TaskError> {
        let Some(reader) = self.reader.as_ref().filter(|_| self.is_sweeping()) else { return Ok(()) };
        while let Some(prefix) = self.config.stores.dropped().get(self.sweep.prefix) {
            let keys = reader.keys(prefix, &self.sweep.from, ROWS_MAX)?;
            let last = keys.iter().last().flatten().map(<[u8]>::to_vec);
            self.sweep.rows += keys.len() as u64;
            self.view.delete_dropped(&keys);
            match last {
                // The least key above the last one.
                Some(last) if keys.len() == ROWS_MAX => {
                    self.sweep.from = [last.as_slice(), &[0]].concat();
                    return Ok(());
                }
                _ => {
                    self.sweep.prefix += 1;
                    self.sweep.from.clear();
                }
            }
            if !keys.is_empty() {
                break;
            }
        }
        if self.sweep.prefix == self.config.stores.dropped().len() && self.sweep.rows > 0 {
            let (deployment, partition, rows) = (&self.config.deployment, self.partition, self.sweep.rows);
            tracing::info!(%deployment, partition, rows, "the data of dropped stores is deleted with this commit");
        }
        Ok(())
    }
}
