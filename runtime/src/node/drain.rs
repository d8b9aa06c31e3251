//! Draining: this node gives its tasks away and stays up, until it is told otherwise or started again.
//!
//! ```text
//!   active --drain--> draining --every deployment has committed and left its group--> drained
//!      ^                 |                                                               |
//!      +---- undo, or a restart of the node ---------------------------------------------+
//! ```
//!
//! The wish is kept in memory only: whoever restarts a node wants it to work.
//!
//! A drained node has no task and no member in any group. Only of a deployment that was just being started again (a
//! panic, other inputs) the members have ended without leaving: others have their partitions when the session ends.
//!
//! One value says it all, and only the supervisor writes `drained`, between two of its looks, when nothing may have
//! started since it saw that nothing is left. Two values, of the wish and of what has come of it, would show a node
//! as drained that was told to take tasks and then to drain once more, while the supervisor starts the first of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemill_proto::v1 as proto;

use super::fleet::ALIVE;
use super::handle::{ControlError, Handle};
use super::owners::Owner;
use super::runtime::NodeRuntime;

#[derive(Debug)]
pub struct Drain(Mutex<proto::DrainState>);

impl Default for Drain {
    fn default() -> Drain {
        Drain(Mutex::new(proto::DrainState::Active))
    }
}

impl Drain {
    /// Whoever tells of the node's tasks as well asks this first: of a drained node there are none after that, unless
    /// somebody undoes the drain in between.
    pub fn state(&self) -> proto::DrainState {
        *self.lock()
    }

    pub fn is_wanted(&self) -> bool {
        self.state() != proto::DrainState::Active
    }

    /// Somebody wants a drain, or wants none any more. Answers whether that is news.
    fn ask(&self, undo: bool) -> bool {
        let mut state = self.lock();
        let is_wanted = *state != proto::DrainState::Active;
        if is_wanted != undo {
            return false;
        }
        *state = if undo { proto::DrainState::Active } else { proto::DrainState::Draining };
        true
    }

    /// By the supervisor, whose last look has found nothing left to give away. Of a drain that nobody wants any
    /// more that says nothing.
    pub fn gave_away(&self) {
        let mut state = self.lock();
        if *state == proto::DrainState::Draining {
            *state = proto::DrainState::Drained;
        }
    }

    fn lock(&self) -> MutexGuard<'_, proto::DrainState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Drains this node, or ends that; answers how far it is. To be asked again and again.
    pub fn drain(&self, undo: bool, author: &str) -> Result<proto::DrainResponse, ControlError> {
        super::change::bounded("author", author, super::change::AUTHOR_BYTES_MAX)?;
        let drain = &self.node.drain;
        if drain.ask(undo) {
            tracing::info!(undo, author, "a drain was asked for");
        }
        let state = drain.state().into();
        Ok(proto::DrainResponse { node: self.node.id.clone(), state, tasks: tasks(&self.node) })
    }

    /// Where a node of the fleet answers.
    pub fn member(&self, id: &str) -> Result<Owner, ControlError> {
        if id == self.node.id {
            return Ok(Owner::Here);
        }
        let peers = self.node.fleet.peers();
        let Some(peer) = peers.get(id) else {
            let mut known: Vec<_> = peers.keys().map(String::as_str).collect();
            known.sort_unstable();
            let known = known.join(", ");
            return Err(ControlError::NotFound(format!("there is no node {id}; there are {known}")));
        };
        if peer.age() > ALIVE {
            let silent = peer.age().as_secs();
            return Err(ControlError::Unavailable(format!(
                "node {id} has not been heard of for {silent} s: its tasks go to others by themselves"
            )));
        }
        Ok(Owner::At { node: id.to_owned(), address: peer.heartbeat.address.clone() })
    }
}

fn tasks(node: &NodeRuntime) -> u32 {
    node.boards().iter().map(|(_, board)| board.tasks().len() as u32).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_that_is_taken_back_is_none_whatever_had_come_of_it() {
        let drain = Drain::default();
        assert_eq!(drain.state(), proto::DrainState::Active);
        assert!(drain.ask(false) && !drain.ask(false));
        assert_eq!(drain.state(), proto::DrainState::Draining);
        drain.gave_away();
        assert_eq!(drain.state(), proto::DrainState::Drained);
        assert!(!drain.ask(false));
        assert_eq!(drain.state(), proto::DrainState::Drained, "asked again, it is done still");
        assert!(drain.ask(true) && !drain.ask(true));
        assert_eq!(drain.state(), proto::DrainState::Active);
        drain.gave_away();
        assert_eq!(drain.state(), proto::DrainState::Active, "the supervisor has not heard of it yet");
    }

    #[test]
    fn a_drain_that_is_asked_for_once_more_is_not_done_by_what_was_given_away_before() {
        let drain = Drain::default();
        drain.ask(false);
        drain.gave_away();
        drain.ask(true);
        assert!(!drain.is_wanted(), "here the supervisor begins to start what the node is to run");
        drain.ask(false);
        assert_eq!(drain.state(), proto::DrainState::Draining);
        drain.gave_away();
        assert_eq!(drain.state(), proto::DrainState::Drained);
    }
}
