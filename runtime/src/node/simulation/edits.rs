//! An operator who edits state while everything breaks, and what must be left of his edits: of each
//! partition the last one that was acknowledged, or a later one whose outcome he was not told.
//!
//! His keys are not the handler's, so that the truth about records stays a fold of the input.

use std::collections::BTreeMap;

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::check::Violation;
use super::process::Process;
use crate::node::edits::{EditRequest, Edited};
use crate::task::Edit;

/// As long as the keys of records, and none of them.
pub fn key(partition: i32) -> Vec<u8> {
    format!("p{partition}e0").into_bytes()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Not answered yet.
    Nothing,
    Committed,
    /// Definitely not.
    Refused,
    /// It may be.
    Unknown,
}

struct Sent {
    partition: i32,
    known: Known,
    answer: Receiver<Edited>,
}

/// Every edit that was sent; its value is its number here.
#[derive(Default)]
pub struct Edits(Vec<Sent>);

impl Edits {
    /// Sends one more to a node, whether or not it runs the task.
    pub fn send(&mut self, process: &Process, partition: i32) {
        let (reply, answer) = bounded(1);
        let value = (self.0.len() as u64).to_be_bytes().to_vec();
        let edit = Edit { store: "links".into(), key: key(partition), value: Some(value) };
        let taken = process.board.edit(EditRequest { partition, edit, reply });
        let known = if taken { Known::Nothing } else { Known::Refused };
        self.0.push(Sent { partition, known, answer });
    }

    fn hear(&mut self) {
        for sent in self.0.iter_mut().filter(|sent| sent.known == Known::Nothing) {
            sent.known = match sent.answer.try_recv() {
                Ok(Edited::Done(_)) => Known::Committed,
                Ok(Edited::Refused(_) | Edited::NotRunning(_)) => Known::Refused,
                Ok(Edited::Unknown) | Err(TryRecvError::Disconnected) => Known::Unknown,
                Err(TryRecvError::Empty) => Known::Nothing,
            };
        }
    }

    /// Edits without an answer.
    pub fn open(&mut self) -> usize {
        self.hear();
        self.0.iter().filter(|sent| sent.known == Known::Nothing).count()
    }

    /// Takes the edited key out of a state and judges its value.
    pub fn judge(
        &self,
        what: &str,
        partition: i32,
        state: &mut BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<(), Violation> {
        let found = match state.remove(&key(partition)).map(<[u8; 8]>::try_from) {
            Some(Ok(value)) => Some(u64::from_be_bytes(value) as usize),
            Some(Err(_)) => {
                return Err(format!("W5 edits: the {what} of partition {partition} holds no edit's value"));
            }
            None => None,
        };
        let of_partition = |number: &usize| self.0[*number].partition == partition;
        let last =
            (0..self.0.len()).filter(of_partition).rfind(|&number| self.0[number].known == Known::Committed);
        let is_possible = found.is_none_or(|number| {
            self.0.get(number).is_some_and(|sent| sent.partition == partition && sent.known != Known::Refused)
        });
        if found >= last && is_possible {
            return Ok(());
        }
        Err(format!(
            "W5 edits: the {what} of partition {partition} has edit {found:?}; the last known is {last:?}"
        ))
    }
}
