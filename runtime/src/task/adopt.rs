//! Adopting a revision: a commit of its own, before the first record of the revision is handled.
//!
//! ```text
//!   new, at a position of another revision --+
//!                                            +--> adopting -- seal, commit --> adopted: records flow
//!   adopt(config, handler), all committed ---+       |
//!                                                    +-- dropped, closed, killed: begins again there
//! ```
//!
//! So that each record is handled by exactly one revision, and everybody can tell by which: the commit
//! says at which offset the revision begins, and it is known before any effect of a later record is.
//!
//! Under `at_least_once` every start *opens* so, of a new revision or not. A start that finds nothing of the one before it
//! in the changelog takes its writer's number again, and what that one has sent may come later. It can be nothing but this
//! commit: the position that this start found as well, and values that are committed (`rewrite.rs`).

use std::sync::Arc;

use super::{Task, TaskConfig, TaskError, TaskStats};
use crate::faults::{Bug, planted};
use crate::ports::Handler;
use crate::record::Offset;

impl Task {
    /// True until a commit says where this revision begins, and has opened this start. Records that are handed over
    /// meanwhile are ignored, so the caller keeps them back.
    pub fn is_adopting(&self) -> bool {
        self.adopting || self.opening
    }

    /// By input: where this revision began, once a commit says so.
    pub fn first_offsets(&self) -> Option<&[Offset]> {
        (!self.adopting).then_some(self.first_offsets.as_slice())
    }

    /// Nothing waits to be committed, so that another revision may begin here.
    pub fn is_clean(&self) -> bool {
        self.in_flight.is_none()
            && self.pending_records == 0
            && self.edits == 0
            && self.outbox.unsealed() == 0
            && (self.adopting || self.next == self.committed)
    }

    /// True if the task may go on in another revision as it is, without recovering.
    pub fn can_adopt(&self, config: &TaskConfig) -> bool {
        self.is_clean()
            && self.is_running()
            && self.careful.is_none()
            && self.next == self.committed
            && self.config.inputs == config.inputs
            && self.config.stores == config.stores
            && self.config.keeps_rows == config.keeps_rows
            && self.config.guarantee == config.guarantee
            // What has not been counted is, and that reads all of it.
            && (config.store_bytes_max.is_none() || self.config.store_bytes_max.is_some())
            && self.config.incarnation == config.incarnation
    }

    /// Goes on in another revision from the position that is committed. The handler must be fresh.
    pub fn adopt(&mut self, config: Arc<TaskConfig>, handler: Box<dyn Handler>) -> Result<(), TaskError> {
        if !self.can_adopt(&config) {
            return Err(TaskError::Misuse("a revision is adopted where everything is committed"));
        }
        // What the former revision gave up is tried again, within the new one's bounds.
        self.parked = config.load_parked(self.reader.as_ref(), &self.numbers)?;
        self.outbox.bind(config.outbox_rules());
        self.blocked = None;
        if config.view_limits() != self.config.view_limits() {
            let view = config.view(self.reader.clone());
            let mut former = std::mem::replace(&mut self.view, view);
            self.view.count_on(&mut former);
        }
        self.view.set_bytes_max(config.store_bytes_max);
        self.config = config;
        self.handler = handler;
        // Judged anew: they brought the former handler down.
        self.suspects.clear();
        self.stats = TaskStats::default();
        self.first_offsets.clone_from(&self.next);
        self.adopting = !planted(Bug::AdoptionSkipped);
        Ok(())
    }
}
