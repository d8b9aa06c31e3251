//! A change of state that no record caused: an operator's edit.
//!
//! It joins the overlay between two calls and goes the way of every write: into the next commit, which
//! sends the task's offsets, moved or not, and is fenced by them.

use super::{TakenAt, Task, TaskError};
use crate::effects::{Effects, Status, Writes};
use crate::record::Column;

/// One key of one store, to be put or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// By name: the number of a store may differ from version to version.
    pub store: String,
    pub key: Vec<u8>,
    /// None deletes.
    pub value: Option<Vec<u8>>,
}

/// The commit that an edit is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EditedIn {
    pub writer: u64,
    pub commit: u64,
    /// Overlays that the task had dropped by then: one more, and the edit is dropped as well.
    pub drops: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The edit itself cannot be.
    #[error("{0}")]
    Refused(String),
    /// Not now.
    #[error("{0}")]
    Busy(&'static str),
    /// Trouble of the task.
    #[error(transparent)]
    Task(#[from] TaskError),
}

impl Task {
    /// Takes an edit into the overlay. The handler is made anew: what it remembers may rest on the value
    /// that was there before.
    pub fn edit(&mut self, edit: &Edit) -> Result<EditedIn, EditError> {
        if !self.is_running() {
            return Err(EditError::Busy("the task is halted"));
        }
        if self.opening {
            return Err(EditError::Busy("the task has just been started"));
        }
        if self.is_careful() {
            return Err(EditError::Busy("the task looks for a record that the broker refused"));
        }
        let store = self.config.stores.iter().position(|def| def.name == edit.store);
        let Some(store) = store.and_then(|store| u16::try_from(store).ok()) else {
            return Err(EditError::Refused(format!("the running version has no store {}", edit.store)));
        };
        let column = |row: Option<&[u8]>| {
            let mut column = Column::default();
            column.push(row);
            column
        };
        let writes = Writes {
            sources: vec![0],
            stores: vec![store],
            keys: column(Some(&edit.key)),
            values: column(edit.value.as_deref()),
        };
        let effects = Effects { writes, statuses: vec![Status::Ok], ..Effects::default() };
        if let Some(refused) = self.first_refused(&effects, &[], TakenAt::default())? {
            return Err(EditError::Refused(refused.reason));
        }
        self.handler.renew().map_err(TaskError::Handler)?;
        self.view.absorb(&effects.writes, |_| true).map_err(TaskError::Store)?;
        self.edits += 1;
        self.stats.writes += 1;
        Ok(self.next_commit())
    }

    /// The commit that will hold what is in the overlay now.
    pub fn next_commit(&self) -> EditedIn {
        EditedIn { writer: self.writer, commit: self.commit + 1, drops: self.stats.drops }
    }

    /// The commit is known to have succeeded; of one of this life.
    pub fn has_committed(&self, edited: EditedIn) -> bool {
        self.commit >= edited.commit && self.in_flight != Some(edited.commit)
    }

    /// Which life of the task this is: with another one, what was not committed is gone.
    pub fn life(&self) -> (u64, u64) {
        (self.writer, self.stats.drops)
    }

    /// False once an edit that is not known to be committed never will be by this task.
    pub fn still_holds(&self, edited: EditedIn) -> bool {
        self.is_running() && (self.writer, self.stats.drops) == (edited.writer, edited.drops)
    }
}
