//! An operator's requests about parked records: carried out between two takes, some rows at a time, and
//! answered when the commit of the last ones is known.

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Consumer, NOT_RUNNING, Slot, SlotState, TakenAt, Worker, running, still_holds, waiting};
use crate::node::unpark::{Answer, REQUESTS_MAX, UnparkRequest};
use crate::task::unpark::{Unparked, Unparking};
use crate::task::{EditedIn, Sealed, Task, TaskError};

/// Requests of one worker.
pub(super) struct Unparks {
    arrived: Receiver<UnparkRequest>,
    /// Not carried out to the end.
    under_way: Vec<UnderWay>,
    /// In the overlay, or in the commit under way.
    waiting: Vec<Waiting>,
}

struct UnderWay {
    partition: i32,
    /// Of the task that it was begun with.
    life: (u64, u64),
    unparking: Unparking,
    /// The last commit that holds anything of it.
    edited: Option<EditedIn>,
    reply: Sender<Answer>,
}

struct Waiting {
    partition: i32,
    edited: EditedIn,
    done: Unparked,
    reply: Sender<Answer>,
}

impl Unparks {
    pub fn new() -> (Sender<UnparkRequest>, Unparks) {
        let (sender, arrived) = bounded(REQUESTS_MAX);
        (sender, Unparks { arrived, under_way: Vec::new(), waiting: Vec::new() })
    }
}

/// The commit of a task is known: so is what was asked up to it.
pub(super) fn answer_unparks(unparks: &mut Unparks, sealed: &Sealed) {
    unparks.waiting.retain_mut(|waiting| {
        let is_in = sealed.includes(waiting.partition, waiting.edited);
        if is_in {
            answer(&waiting.reply, Answer::Done(std::mem::take(&mut waiting.done)));
        }
        !is_in
    });
}

/// Whoever asked may have gone; what was asked is done all the same.
fn answer(reply: &Sender<Answer>, answer: Answer) {
    let _ = reply.try_send(answer);
}

impl<C: Consumer> Worker<C> {
    pub(super) fn serve_unparks(&mut self) {
        self.give_up_unparks();
        while let Ok(UnparkRequest { partition, what, reply }) = self.unparks.arrived.try_recv() {
            let Some(Slot { state: SlotState::Running(task), .. }) = self.slots.get_mut(&partition) else {
                answer(&reply, Answer::NotRunning(NOT_RUNNING));
                continue;
            };
            match task.begin_unpark(what) {
                Ok(Ok(unparking)) => {
                    let life = task.life();
                    self.unparks.under_way.push(UnderWay { partition, life, unparking, edited: None, reply });
                }
                Ok(Err(reason)) => answer(&reply, Answer::NotRunning(reason)),
                Err(error) => {
                    answer(&reply, Answer::Unknown);
                    self.task_failed(partition, &error);
                }
            }
        }
        self.go_on_unparking();
    }

    /// Not while the overlay is full and cannot be committed.
    fn go_on_unparking(&mut self) {
        if self.unparks.under_way.is_empty()
            || self.stalled
            || self.pace.must_stop_taking(waiting(&self.slots))
        {
            return;
        }
        let taken = TakenAt { monotonic: self.clock.monotonic(), wall_ms: self.clock.wall_ms() };
        for mut under_way in std::mem::take(&mut self.unparks.under_way) {
            let partition = under_way.partition;
            let Some((_, task)) = running(&mut self.slots).find(|(number, _)| *number == partition) else {
                answer(&under_way.reply, Answer::Unknown);
                continue;
            };
            match under_way.step(task, taken) {
                Ok(false) => self.unparks.under_way.push(under_way),
                Ok(true) => {
                    let UnderWay { unparking, edited, reply, .. } = under_way;
                    let done = unparking.done;
                    match edited.filter(|edited| !task.has_committed(*edited)) {
                        None => answer(&reply, Answer::Done(done)),
                        Some(edited) => self.unparks.waiting.push(Waiting { partition, edited, done, reply }),
                    }
                }
                Err(error) => {
                    answer(&under_way.reply, Answer::Unknown);
                    self.task_failed(partition, &error);
                }
            }
        }
    }

    /// Requests whose overlay was dropped, or whose task has ended, with their commit's outcome unknown here.
    fn give_up_unparks(&mut self) {
        let (mut under_way, mut waiting) =
            (std::mem::take(&mut self.unparks.under_way), std::mem::take(&mut self.unparks.waiting));
        under_way.retain(|one| {
            let mut tasks = running(&mut self.slots);
            let goes_on =
                tasks.any(|(partition, task)| partition == one.partition && task.life() == one.life);
            if !goes_on {
                answer(&one.reply, Answer::Unknown);
            }
            goes_on
        });
        waiting.retain(|one| {
            let holds = still_holds(&mut self.slots, one.partition, one.edited);
            if !holds {
                answer(&one.reply, Answer::Unknown);
            }
            holds
        });
        (self.unparks.under_way, self.unparks.waiting) = (under_way, waiting);
    }
}

impl UnderWay {
    /// True once it is carried out to the end. Not into the commit that takes up a revision, which holds
    /// nothing else.
    fn step(&mut self, task: &mut Task, taken: TakenAt) -> Result<bool, TaskError> {
        if task.is_adopting() {
            return Ok(false);
        }
        let before = task.pending().edits;
        let is_over = task.unpark(&mut self.unparking, taken)?;
        if task.pending().edits > before {
            self.edited = Some(task.next_commit());
        }
        Ok(is_over)
    }
}
