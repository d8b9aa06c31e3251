//! Draining: this node gives its tasks away and stays up, until it is told otherwise or started again.
//!
//! ```text
//!   active --drain--> draining --every deployment has committed and left its group--> drained
//!      ^                 |                                                               |
//!      +---- undo, or a restart of the node ---------------------------------------------+
//! ```
//!
//! The wish is kept in memory only: whoever restarts a node wants it to work.

use std::sync::atomic::{AtomicBool, Ordering};

use tidemill_proto::v1 as proto;

use super::fleet::ALIVE;
use super::handle::{ControlError, Handle};
use super::owners::Owner;
use super::runtime::NodeRuntime;

#[derive(Debug, Default)]
pub struct Drain {
    wanted: AtomicBool,
    /// By the supervisor: nothing of any deployment runs here.
    done: AtomicBool,
}

impl Drain {
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The supervisor has found nothing left to give away.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// What the supervisor has come to, seeing that a drain is wanted or not.
    pub fn set_done(&self, done: bool) {
        self.done.store(done, Ordering::Relaxed);
    }

    pub fn state(&self) -> proto::DrainState {
        match (self.is_wanted(), self.is_done()) {
            (false, _) => proto::DrainState::Active,
            (true, false) => proto::DrainState::Draining,
            (true, true) => proto::DrainState::Drained,
        }
    }
}

impl Handle {
    /// Drains this node, or ends that; answers how far it is. To be asked again and again.
    pub fn drain(&self, undo: bool, author: &str) -> Result<proto::DrainResponse, ControlError> {
        super::change::bounded("author", author, super::change::AUTHOR_BYTES_MAX)?;
        let drain = &self.node.drain;
        if drain.wanted.swap(!undo, Ordering::Relaxed) == undo {
            tracing::info!(undo, author, "a drain was asked for");
        }
        let tasks = tasks(&self.node);
        Ok(proto::DrainResponse { node: self.node.id.clone(), state: drain.state().into(), tasks })
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
    fn a_drain_that_is_taken_back_is_none() {
        let drain = Drain::default();
        assert_eq!(drain.state(), proto::DrainState::Active);
        drain.wanted.store(true, Ordering::Relaxed);
        assert_eq!(drain.state(), proto::DrainState::Draining);
        drain.set_done(true);
        assert_eq!(drain.state(), proto::DrainState::Drained);
        drain.wanted.store(false, Ordering::Relaxed);
        assert_eq!(drain.state(), proto::DrainState::Active);
    }
}
