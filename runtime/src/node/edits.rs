//! An operator's edits of state on their way to the worker that runs the task, and what became of them.

use crossbeam_channel::Sender;

use crate::record::Offset;
use crate::task::Edit;

/// Edits that wait for one worker.
pub const EDITS_MAX: usize = 64;

/// An edit of one task. Dropping `reply` without an answer says that the worker is no more.
#[derive(Debug)]
pub struct EditRequest {
    pub partition: i32,
    pub edit: Edit,
    pub reply: Sender<Edited>,
}

/// What became of an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edited {
    /// Committed, in a commit that leaves the inputs at these positions.
    Done(Vec<(u16, Offset)>),
    /// Nothing was changed, and nothing will be.
    Refused(String),
    /// Nothing was changed: the task does not run here now.
    NotRunning(&'static str),
    /// It may be committed or not: the task was recovered, or went elsewhere, with the commit under way.
    Unknown,
}
