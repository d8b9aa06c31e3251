//! Writing committed values once more, where the changelog's last record of a key is one that does not count.
//!
//! ```text
//!   offset   10      11        12      13      14       15
//!   record   a 3,7   pos 3,7   a 3,8   a 4,1   pos 4,1
//!            '-- committed --' dropped '- committed again, as it was at 11
//! ```
//!
//! Without a transaction rows of a commit that came to nothing stay in the log (`at_least_once`). A replay passes them over,
//! but compaction knows nothing of commits: it keeps the last record of each key, and would take the committed value at 10
//! for the one at 12. In most cases the same input makes the same keys be written again. A record that is skipped at the
//! second try, an edit, or another version does not. So the first commit after such rows were met, by a restore or by the
//! task whose commit was refused, writes their keys with what is committed, unless it has something newer. If that is more
//! than an overlay may hold, which takes committed values larger than the new ones, the commits after it go on.

use std::collections::{BTreeMap, BTreeSet};

use super::{Task, TaskError};
use crate::ports::ChangelogRows;
use crate::record::Offset;
use crate::store::POSITION;

/// What a task has to write once more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrites {
    /// Keys of the changelog whose last record there may be one that does not count. At most those of the commits that
    /// came to nothing since the last one that was closed, each as large as an overlay; of a changelog from before rows
    /// were written once more, those of all such commits.
    pub keys: BTreeSet<Vec<u8>>,
    /// Where the changelog stands at least, by the restore and the commits since. The store's progress stays below the
    /// first of the rows until all keys are written, and is this then.
    pub read_to: Offset,
}

/// Keys of the changelog, and what is committed of them; none = nothing.
pub(super) type Again = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl Task {
    /// True while the next commit writes something once more. None does while a refused record is looked for.
    pub(super) fn is_rewriting(&self) -> bool {
        self.in_flight.is_none()
            && self.store.is_some()
            && self.careful.is_none()
            && !self.rewrites.keys.is_empty()
    }

    /// What the next commit writes once more, about as much as an overlay may hold, and whether nothing is left then. The
    /// position record is part of every commit.
    pub(super) fn rewritten(&self) -> Result<(Again, bool), TaskError> {
        let mut again = Again::new();
        let Some(reader) = self.reader.as_ref().filter(|_| self.is_rewriting()) else {
            return Ok((again, self.rewrites.keys.is_empty()));
        };
        let mut bytes = 0;
        for key in self.rewrites.keys.iter().filter(|key| key.as_slice() != POSITION) {
            if bytes > self.config.overlay_bytes_max {
                return Ok((again, false));
            }
            let value = reader.get_raw(key)?;
            bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            again.insert(key.clone(), value);
        }
        Ok((again, true))
    }

    /// A commit is dropped, of which rows may be in the log.
    pub(super) fn leave_behind(&mut self, rows: Option<&ChangelogRows>) {
        let rows = rows.into_iter().filter(|rows| rows.stamp.is_some());
        self.rewrites.keys.extend(rows.flat_map(|rows| rows.keys.iter()).flatten().map(<[u8]>::to_vec));
    }

    /// A commit is known to have succeeded, behind which the changelog stands at `next` at least.
    pub(super) fn wrote(&mut self, rows: Option<&ChangelogRows>, next: Offset) {
        self.rewrites.read_to = self.rewrites.read_to.max(next);
        if self.rewrites.keys.is_empty() {
            return;
        }
        for key in rows.into_iter().flat_map(|rows| rows.keys.iter()).flatten() {
            self.rewrites.keys.remove(key);
        }
    }
}

/// Adds what a commit does not write anyway.
pub(super) fn add_missing(rows: &mut ChangelogRows, mut again: Again) {
    if again.is_empty() {
        return;
    }
    for key in rows.keys.iter().flatten() {
        again.remove(key);
    }
    for (key, value) in &again {
        rows.keys.push(Some(key));
        rows.values.push(value.as_deref());
    }
}
