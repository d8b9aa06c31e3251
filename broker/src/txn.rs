//! One transactional id: its producer, its epoch, and the state of its transaction.
//!
//! Pure transitions; writing markers and answering clients is up to `core::transactions`.
//!
//! ```text
//!            add partitions/offsets          end (commit | abort)          all markers written
//!   Empty -----------------------> Ongoing ----------------------> Prepare* ------------> Complete*
//!     ^                               ^                                                     |
//!     |                               +------------------ add partitions/offsets -----------+
//!     +--- a new id, and after InitProducerId, which also raises the epoch and so fences the former owner
//! ```
//! A transaction that times out is aborted with a raised epoch: its producer is fenced.

use std::collections::BTreeSet;

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The highest epoch a producer is given. One more is kept for fencing it.
const EPOCH_MAX: i16 = i16::MAX - 1;

/// See the drawing above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No transaction yet.
    Empty,
    /// A transaction is open.
    Ongoing,
    /// Decided; markers are being written.
    PrepareCommit,
    /// Decided; markers are being written.
    PrepareAbort,
    /// The last transaction was committed.
    CompleteCommit,
    /// The last transaction was aborted.
    CompleteAbort,
}

impl State {
    /// The name that clients know.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::Ongoing => "Ongoing",
            State::PrepareCommit => "PrepareCommit",
            State::PrepareAbort => "PrepareAbort",
            State::CompleteCommit => "CompleteCommit",
            State::CompleteAbort => "CompleteAbort",
        }
    }

    /// For a decided transaction whose markers are being written: whether it commits.
    pub fn preparing(self) -> Option<bool> {
        match self {
            State::PrepareCommit => Some(true),
            State::PrepareAbort => Some(false),
            _ => None,
        }
    }
}

/// Everything known of a transactional id. Persisted with every change of state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// Producer id it stands for now.
    pub producer_id: i64,
    /// Epoch of the current owner; -1 before the first.
    pub epoch: i16,
    /// Epoch before the last raise that the owner itself asked for, or -1.
    pub last_epoch: i16,
    /// How long a transaction may stay open, ms.
    pub timeout_ms: i64,
    /// Where it is.
    pub state: State,
    /// Partitions written to: topic id and partition.
    pub partitions: BTreeSet<(Uuid, i32)>,
    /// Groups whose offsets are committed within the transaction.
    pub groups: BTreeSet<String>,
    /// When the open transaction began, ms since 1970.
    pub started_ms: i64,
    /// When anything last changed, ms since 1970.
    pub touched_ms: i64,
}

/// What has to happen for a producer to get its id.
#[derive(Debug, Clone, PartialEq)]
pub enum Init {
    /// This is the new state.
    Ready(Transaction),
    /// A transaction of the former owner has to be aborted first; this is the fenced state.
    AbortFirst(Transaction),
}

impl Transaction {
    /// The state of a new transactional id.
    pub fn new(producer_id: i64, timeout_ms: i64, now_ms: i64) -> Transaction {
        Transaction {
            producer_id,
            epoch: -1,
            last_epoch: -1,
            timeout_ms,
            state: State::Empty,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            started_ms: -1,
            touched_ms: now_ms,
        }
    }

    /// What InitProducerId leads to. `expected` is the id and epoch of a producer that goes on
    /// after an error (KIP-360); `fresh_id` is used if the epochs of this id are used up.
    pub fn init(
        &self,
        timeout_ms: i64,
        expected: Option<(i64, i16)>,
        fresh_id: i64,
        now_ms: i64,
    ) -> Result<Init, ResponseError> {
        if self.state.preparing().is_some() {
            return Err(ResponseError::ConcurrentTransactions);
        }
        let foreign = |(id, _): (i64, i16)| self.epoch != -1 && id != self.producer_id;
        if expected.is_some_and(foreign) {
            return Err(ResponseError::ProducerFenced);
        }
        if self.state == State::Ongoing {
            if expected.is_some_and(|(_, epoch)| epoch != self.epoch) {
                return Err(ResponseError::ProducerFenced);
            }
            return Ok(Init::AbortFirst(self.fenced(now_ms)));
        }
        let mut next = Transaction::new(self.producer_id, timeout_ms, now_ms);
        (next.epoch, next.last_epoch) = match expected {
            None => (self.epoch.saturating_add(1), -1),
            Some((_, epoch)) if self.epoch == -1 || epoch == self.epoch => {
                (self.epoch.saturating_add(1), self.epoch)
            }
            // A repetition of a call whose answer got lost.
            Some((_, epoch)) if epoch == self.last_epoch => (self.epoch, self.last_epoch),
            Some(_) => return Err(ResponseError::ProducerFenced),
        };
        if next.epoch > EPOCH_MAX {
            next.producer_id = fresh_id;
            next.epoch = 0;
            next.last_epoch = -1;
        }
        Ok(Init::Ready(next))
    }

    /// The same with the epoch raised, so that the owner is fenced.
    pub fn fenced(&self, now_ms: i64) -> Transaction {
        let epoch = self.epoch.saturating_add(1);
        Transaction { epoch, last_epoch: -1, touched_ms: now_ms, ..self.clone() }
    }

    /// Checks that a request comes from the current owner.
    pub fn check_owner(&self, producer_id: i64, epoch: i16) -> Result<(), ResponseError> {
        if producer_id != self.producer_id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if epoch != self.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        Ok(())
    }

    /// The state with more partitions and groups; none if nothing changes.
    pub fn add(
        &self,
        partitions: &[(Uuid, i32)],
        group: Option<&str>,
        now_ms: i64,
    ) -> Result<Option<Transaction>, ResponseError> {
        if self.state.preparing().is_some() {
            return Err(ResponseError::ConcurrentTransactions);
        }
        let ongoing = self.state == State::Ongoing;
        let known = partitions.iter().all(|p| self.partitions.contains(p))
            && group.is_none_or(|group| self.groups.contains(group));
        if ongoing && known {
            return Ok(None);
        }
        let mut next = self.clone();
        if !ongoing {
            next.state = State::Ongoing;
            next.started_ms = now_ms;
            next.partitions.clear();
            next.groups.clear();
        }
        next.touched_ms = now_ms;
        next.partitions.extend(partitions);
        next.groups.extend(group.map(str::to_owned));
        Ok(Some(next))
    }

    /// The decided state; none if it has been reached before and the answer got lost.
    pub fn end(&self, commit: bool, now_ms: i64) -> Result<Option<Transaction>, ResponseError> {
        match (self.state, commit) {
            (State::Ongoing, _) => Ok(Some(self.prepared(commit, now_ms))),
            (State::CompleteCommit, true) | (State::CompleteAbort, false) => Ok(None),
            (State::PrepareCommit, true) | (State::PrepareAbort, false) => {
                Err(ResponseError::ConcurrentTransactions)
            }
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// The state in which markers are written.
    pub fn prepared(&self, commit: bool, now_ms: i64) -> Transaction {
        let state = if commit { State::PrepareCommit } else { State::PrepareAbort };
        Transaction { state, touched_ms: now_ms, ..self.clone() }
    }

    /// The state after the last marker.
    pub fn completed(&self, now_ms: i64) -> Transaction {
        let state = match self.state.preparing() {
            Some(true) => State::CompleteCommit,
            _ => State::CompleteAbort,
        };
        let (partitions, groups) = (BTreeSet::new(), BTreeSet::new());
        Transaction { state, partitions, groups, started_ms: -1, touched_ms: now_ms, ..self.clone() }
    }

    /// Whether the open transaction has been open for too long.
    pub fn timed_out(&self, now_ms: i64) -> bool {
        self.state == State::Ongoing && now_ms - self.started_ms > self.timeout_ms
    }

    /// Whether the id could be forgotten.
    pub fn idle(&self) -> bool {
        self.state != State::Ongoing && self.state.preparing().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(init: Result<Init, ResponseError>) -> Transaction {
        match init {
            Ok(Init::Ready(next)) => next,
            other => panic!("expected Ready, got {other:?}"),
        }
    }

    #[test]
    fn every_init_raises_the_epoch_and_a_repeated_one_does_not() {
        let first = ready(Transaction::new(7, 1000, 0).init(1000, None, 8, 0));
        assert_eq!((first.producer_id, first.epoch), (7, 0));
        let second = ready(first.init(1000, None, 8, 0));
        assert_eq!(second.epoch, 1);
        let resumed = ready(second.init(1000, Some((7, 1)), 8, 0));
        assert_eq!((resumed.epoch, resumed.last_epoch), (2, 1));
        assert_eq!(ready(resumed.init(1000, Some((7, 1)), 8, 0)).epoch, 2);
        assert_eq!(resumed.init(1000, Some((7, 0)), 8, 0), Err(ResponseError::ProducerFenced));
    }

    #[test]
    fn used_up_epochs_lead_to_a_new_producer_id() {
        let mut last = Transaction::new(7, 1000, 0);
        last.epoch = EPOCH_MAX;
        let next = ready(last.init(1000, None, 8, 0));
        assert_eq!((next.producer_id, next.epoch), (8, 0));
    }

    #[test]
    fn an_end_is_answered_twice_but_not_turned_around() {
        let owner = ready(Transaction::new(7, 1000, 0).init(1000, None, 8, 0));
        assert_eq!(owner.end(true, 0), Err(ResponseError::InvalidTxnState));
        let open = owner.add(&[(Uuid::nil(), 0)], None, 0).expect("adds").expect("changes");
        let prepared = open.end(true, 0).expect("ends").expect("changes");
        assert_eq!(prepared.end(true, 0), Err(ResponseError::ConcurrentTransactions));
        let done = prepared.completed(0);
        assert_eq!(done.end(true, 0), Ok(None));
        assert_eq!(done.end(false, 0), Err(ResponseError::InvalidTxnState));
    }
}
