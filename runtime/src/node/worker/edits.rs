//! An operator's edits: into the overlay between two takes, answered when their commit is known.

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Consumer, NOT_RUNNING, Slot, SlotState, Worker, still_holds};
use crate::node::edits::{EDITS_MAX, EditRequest, Edited};
use crate::task::{EditError, EditedIn, Sealed};

/// Edits of one worker that have not been answered.
pub(super) struct Edits {
    inbox: Receiver<EditRequest>,
    /// In the overlay, or in the commit under way.
    waiting: Vec<Waiting>,
}

struct Waiting {
    partition: i32,
    edited: EditedIn,
    reply: Sender<Edited>,
}

impl Edits {
    pub fn new() -> (Sender<EditRequest>, Edits) {
        let (sender, inbox) = bounded(EDITS_MAX);
        (sender, Edits { inbox, waiting: Vec::new() })
    }
}

/// The commit of a task is known: so are the edits up to it.
pub(super) fn answer_edits(edits: &mut Edits, sealed: &Sealed) {
    edits.waiting.retain(|waiting| {
        let is_in = sealed.includes(waiting.partition, waiting.edited);
        if is_in {
            let at = sealed.offsets.iter().map(|offset| (offset.partition.input, offset.offset));
            answer(&waiting.reply, Edited::Done(at.collect()));
        }
        !is_in
    });
}

/// Whoever asked may have gone; the edit stands all the same.
fn answer(reply: &Sender<Edited>, edited: Edited) {
    let _ = reply.try_send(edited);
}

impl<C: Consumer> Worker<C> {
    pub(super) fn serve_edits(&mut self) {
        self.give_up_edits();
        while let Ok(EditRequest { partition, edit, reply }) = self.edits.inbox.try_recv() {
            let Some(Slot { state: SlotState::Running(task), .. }) = self.slots.get_mut(&partition) else {
                answer(&reply, Edited::NotRunning(NOT_RUNNING));
                continue;
            };
            match task.edit(&edit) {
                Ok(edited) => self.edits.waiting.push(Waiting { partition, edited, reply }),
                Err(EditError::Refused(reason)) => answer(&reply, Edited::Refused(reason)),
                Err(EditError::Busy(reason)) => answer(&reply, Edited::NotRunning(reason)),
                Err(EditError::Task(error)) => {
                    answer(&reply, Edited::Unknown);
                    self.task_failed(partition, &error);
                }
            }
        }
    }

    /// Edits whose overlay was dropped, or whose task has ended, with their commit's outcome unknown here.
    fn give_up_edits(&mut self) {
        if self.edits.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.edits.waiting);
        waiting.retain(|waiting| {
            let holds = still_holds(&mut self.slots, waiting.partition, waiting.edited);
            if !holds {
                answer(&waiting.reply, Edited::Unknown);
            }
            holds
        });
        self.edits.waiting = waiting;
    }
}
