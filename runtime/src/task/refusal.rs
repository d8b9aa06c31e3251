//! Which record did the broker refuse? A commit is refused as a whole (too large, invalid), though
//! one record's effects are at fault; the checks before the overlay make that rare. The task finds
//! the record by committing ever fewer of them:
//!
//! ```text
//!   refused with n records  ->  at most n/2 a commit, each commit of this task alone
//!   ... succeeded           ->  twice as many the next time, until past the range first refused
//!   ... refused with one    ->  that record fails as `limit`, by the deployment's policy
//!   ... and refused again   ->  the task halts: what the policy does is refused, a dead letter for one
//! ```
//!
//! A careful task takes what its next commit may hold and ignores the rest; after the commit the
//! worker seeks to where it continues ([`Task::rewind`]).

use super::{Failure, FailureKind, Sealed, Task, TaskError, TaskState};
use crate::record::{InputPartition, Offset};

/// A task that looks for a refused record.
#[derive(Debug)]
pub(super) struct Careful {
    /// Records that one commit may pass.
    records_max: u64,
    /// The range that was refused first, by input.
    until: Vec<Offset>,
    /// Records were ignored since the last seek, so the position must not move by itself.
    pub gated: bool,
}

impl Careful {
    /// Everything of the range is committed.
    fn is_past(&self, committed: &[Offset]) -> bool {
        committed.iter().zip(&self.until).all(|(committed, until)| committed >= until)
    }
}

/// A record that is not run in company any more.
#[derive(Debug)]
pub(super) struct Suspect {
    pub input: u16,
    pub offset: i64,
    /// Why the broker refuses its effects: it fails without being run.
    pub refused: Option<String>,
}

impl Task {
    /// Instead of [`Task::drop_uncommitted`], when the broker refused one of the commit's records for
    /// what it is and the abort succeeded. `alone`: the commit held this task only. Answers where every
    /// input continues.
    pub fn refuse(
        &mut self,
        sealed: Sealed,
        reason: &str,
        alone: bool,
    ) -> Result<Vec<(InputPartition, Offset)>, TaskError> {
        let (records, first, stamp) = (sealed.records, sealed.first, sealed.stamp());
        let until: Vec<Offset> = sealed.offsets.iter().map(|offset| offset.offset).collect();
        // With the overlay an operator's edits are gone, which may have been at fault.
        let edited = sealed.edits > 0;
        let positions = self.drop_uncommitted(Some(sealed))?;
        if edited && records == 0 {
            return Ok(positions);
        }
        match (records, first) {
            _ if edited => {}
            (1, Some((input, offset))) if alone && self.was_refused(input, offset) => {
                let reason = format!("what its failure leads to is refused as well: {reason}");
                let failure = self.failure(input, offset as u64, (FailureKind::Limit, reason));
                self.state = TaskState::Halted(failure);
            }
            (1, Some((input, offset))) if alone => {
                self.suspects.retain(|suspect| (suspect.input, suspect.offset) != (input, offset));
                self.suspects.push(Suspect { input, offset, refused: Some(reason.to_owned()) });
            }
            (0, _) if alone => {
                // No record to blame: the position record itself is refused.
                let topic = self.config.changelog.topic.clone();
                let reason = format!("commit {} of writer {}: {reason}", stamp.1, stamp.0);
                let offset = positions.first().map_or(Offset(0), |&(_, offset)| offset);
                let kind = FailureKind::Limit;
                self.state =
                    TaskState::Halted(Failure { kind, topic, partition: self.partition, offset, reason });
            }
            _ => {}
        }
        let until = match self.careful.take() {
            Some(careful) => careful.until,
            None => until,
        };
        self.careful = Some(Careful { records_max: (records / 2).max(1), until, gated: false });
        Ok(positions)
    }

    /// The broker refused this record's effects, so it is not run any more.
    fn was_refused(&self, input: u16, offset: i64) -> bool {
        self.suspected(input, offset).is_some_and(|suspect| suspect.refused.is_some())
    }

    /// The task looks for a refused record: its commits hold nothing of other tasks.
    pub fn is_careful(&self) -> bool {
        self.careful.is_some()
    }

    /// To be asked after every commit: where to seek to, if the task ignored records.
    pub fn rewind(&mut self) -> Option<Vec<(InputPartition, Offset)>> {
        let careful = self.careful.as_mut()?;
        let gated = std::mem::replace(&mut careful.gated, false);
        if careful.is_past(&self.committed) {
            self.careful = None;
        } else {
            careful.records_max = careful.records_max.saturating_mul(2);
        }
        gated.then(|| self.positions().collect())
    }

    /// Everything that was refused is committed or gone, and nothing is due that could be at fault: a commit that
    /// would tell so may never come.
    pub(super) fn end_search(&mut self) {
        let Some(careful) = &self.careful else { return };
        if careful.is_past(&self.committed)
            && !careful.gated
            && self.in_flight.is_none()
            && self.pending().is_empty()
        {
            self.careful = None;
        }
    }

    /// Records that may still join the next commit.
    pub(super) fn allowance(&self) -> u64 {
        match &self.careful {
            None => u64::MAX,
            Some(careful) if careful.gated => 0,
            Some(careful) => careful.records_max.saturating_sub(self.pending_records),
        }
    }

    /// From now on records are ignored, until the worker has sought.
    pub(super) fn gate(&mut self) {
        if let Some(careful) = &mut self.careful {
            careful.gated = true;
        }
    }
}
