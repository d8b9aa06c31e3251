//! An operator's requests about outboxes: answered between two takes; those that delete rows when their commit
//! is known.

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Consumer, NOT_RUNNING, Slot, SlotState, Worker, running};
use crate::node::outbox::{Answer, Ask, OutboxRequest, REQUESTS_MAX};
use crate::task::{EditedIn, Sealed, Task, TaskError};

/// Requests of one worker.
pub(super) struct Asks {
    arrived: Receiver<OutboxRequest>,
    /// Rows that are deleted in the overlay, or in the commit under way.
    waiting: Vec<Waiting>,
}

struct Waiting {
    partition: i32,
    edited: EditedIn,
    rows: u64,
    reply: Sender<Answer>,
}

impl Asks {
    pub fn new() -> (Sender<OutboxRequest>, Asks) {
        let (sender, arrived) = bounded(REQUESTS_MAX);
        (sender, Asks { arrived, waiting: Vec::new() })
    }
}

/// The commit of a task is known: so are the deletions up to it.
pub(super) fn answer_asks(asks: &mut Asks, sealed: &Sealed) {
    asks.waiting.retain(|waiting| {
        let is_in = sealed.includes(waiting.partition, waiting.edited);
        if is_in {
            answer(&waiting.reply, Answer::Done(waiting.rows));
        }
        !is_in
    });
}

/// Whoever asked may have gone.
fn answer(reply: &Sender<Answer>, answer: Answer) {
    let _ = reply.try_send(answer);
}

/// None if the answer comes with the commit.
fn serve(task: &mut Task, ask: &Ask, now: std::time::Duration) -> Result<Result<Answer, u64>, TaskError> {
    Ok(match ask {
        Ask::Show { destination, after, limit } => {
            Ok(Answer::Rows(task.outbox_rows(destination.as_deref(), *after, *limit)?, now))
        }
        Ask::Retry { destination, sequences } => {
            Ok(Answer::Done(task.retry_outbox(destination.as_deref(), sequences)))
        }
        Ask::Count { destination, sequences } => {
            Ok(Answer::Done(task.count_outbox(destination.as_deref(), sequences)))
        }
        Ask::Discard { destination, sequences } => {
            match task.discard_outbox(destination.as_deref(), sequences) {
                0 => Ok(Answer::Done(0)),
                rows => Err(rows),
            }
        }
    })
}

impl<C: Consumer> Worker<C> {
    pub(super) fn serve_asks(&mut self) {
        self.give_up_asks();
        while let Ok(OutboxRequest { partition, ask, reply }) = self.asks.arrived.try_recv() {
            let Some(Slot { state: SlotState::Running(task), .. }) = self.slots.get_mut(&partition) else {
                answer(&reply, Answer::NotRunning(NOT_RUNNING));
                continue;
            };
            if let Ask::Retry { destination, .. } = &ask {
                let status = task.outbox_status();
                let named = status.iter().map(|status| &status.destination);
                let named =
                    named.filter(|name| destination.as_deref().is_none_or(|wanted| wanted == &***name));
                named.for_each(|name| self.desk.knock(name));
            }
            match serve(task, &ask, self.clock.monotonic()) {
                Ok(Ok(done)) => answer(&reply, done),
                Ok(Err(rows)) => {
                    let edited = task.next_commit();
                    self.asks.waiting.push(Waiting { partition, edited, rows, reply });
                }
                Err(error) => {
                    answer(&reply, Answer::Failed(error.to_string()));
                    self.task_failed(partition, &error);
                }
            }
        }
    }

    /// Deletions whose task has ended, with their commit's outcome unknown here. A dropped overlay hands them to the
    /// next, so they still hold.
    fn give_up_asks(&mut self) {
        if self.asks.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.asks.waiting);
        waiting.retain_mut(|waiting| {
            let mut tasks = running(&mut self.slots);
            let task = tasks.find(|(partition, _)| *partition == waiting.partition).map(|(_, task)| task);
            let now = task.map(|task| task.next_commit()).filter(|now| now.writer == waiting.edited.writer);
            match now {
                None => answer(&waiting.reply, Answer::Unknown),
                // Dropped since: they are part of the next commit.
                Some(now) if now.drops != waiting.edited.drops => waiting.edited = now,
                Some(_) => {}
            }
            now.is_some()
        });
        self.asks.waiting = waiting;
    }
}
