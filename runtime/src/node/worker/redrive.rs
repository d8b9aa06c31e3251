//! What a worker does for redrives: it reads letters of its tasks' partitions and hands them over at the rate
//! that was asked for. What a task makes of them is part of its next commit.
//!
//! One order at a time in each partition, the oldest first. A task that has dropped what was not committed, or
//! was made anew, begins again where its row about the order says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Consumer, Slot, SlotState, Worker, running, waiting};
use crate::node::redrive::{Feed, Letters, Order, Orders, Reading};
use crate::record::Offset;
use crate::task::redrive::{LetterPage, Redrive};
use crate::task::{Task, TaskError};

/// Between two looks at the orders.
const LOOK: Duration = Duration::from_millis(100);
/// Letters that a task is given in one go, so that neither input nor retries are kept waiting.
const LETTERS_AT_ONCE: usize = 50;
/// A rate is not made up for beyond this.
const BURST: Duration = Duration::from_millis(250);
/// Letters have waited for room so long when that is told: a redrive that is faster than the handler waits
/// again and again, and goes on all the same.
const WAIT_TOLD: Duration = Duration::from_secs(1);
/// Records are waited for so long while letters come.
pub(super) const TAKE_WAIT: Duration = Duration::from_millis(5);

pub(super) struct Redrives {
    letters: Box<dyn Letters>,
    orders: Orders,
    looked: Option<Duration>,
    under_way: BTreeMap<i32, UnderWay>,
    /// Tasks that have nothing to do for the orders as they are: which life of a task that was.
    at_rest: BTreeMap<i32, (u64, u64)>,
    /// Partitions whose letters are said to wait.
    told: BTreeSet<i32>,
}

struct UnderWay {
    redrive: Redrive,
    /// Of the task that is given letters.
    life: (u64, u64),
    feed: Box<dyn Feed>,
    page: Option<LetterPage>,
    begun: bool,
    pace: LetterPace,
    /// Since when there has been no room for a letter.
    waits_since: Option<Duration>,
}

impl Redrives {
    pub fn new(letters: Box<dyn Letters>) -> Redrives {
        Redrives {
            letters,
            orders: Orders::default(),
            looked: None,
            under_way: BTreeMap::new(),
            at_rest: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// Another revision runs; what is read goes on.
    pub fn replace(&mut self, letters: Box<dyn Letters>) {
        self.letters = letters;
    }

    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Answers whether there may be anything to do.
    fn look(&mut self, now: Duration) -> bool {
        if self.looked.is_none_or(|looked| now.saturating_sub(looked) >= LOOK) {
            self.looked = Some(now);
            let orders = self.letters.orders();
            if !Arc::ptr_eq(&orders, &self.orders) {
                self.orders = orders;
                self.at_rest.clear();
            }
        }
        self.is_busy() || self.orders.iter().any(|order| order.is_open())
    }

    fn order(&self, id: u64) -> Option<&Arc<Order>> {
        self.orders.iter().find(|order| order.id == id && order.is_open())
    }

    fn serve(&mut self, task: &mut Task, now: Duration) -> Result<(), TaskError> {
        let (partition, life) = (task.partition(), task.life());
        if let Some(under_way) = self.under_way.get(&partition) {
            let goes_on = under_way.life == life && self.order(under_way.redrive.id).is_some();
            if !goes_on {
                self.under_way.remove(&partition);
            }
        }
        if !self.under_way.contains_key(&partition) && !self.begin(task, now)? {
            return Ok(());
        }
        let oldest = self.orders.first().map_or(0, |order| order.id);
        let Some(under_way) = self.under_way.get_mut(&partition) else { return Ok(()) };
        if under_way.step(task, oldest, now)? {
            self.under_way.remove(&partition);
        }
        Ok(())
    }

    /// Begins the oldest order that this task has not come to the end of. False when there is none.
    fn begin(&mut self, task: &Task, now: Duration) -> Result<bool, TaskError> {
        let (partition, life) = (task.partition(), task.life());
        if self.at_rest.get(&partition) == Some(&life) {
            return Ok(false);
        }
        let Some(marks) = task.reader().cloned() else { return Ok(false) };
        for order in self.orders.iter().filter(|order| order.is_open()) {
            let (Some(redrive), Some((from, _))) = (order.redrive(partition), order.range(partition)) else {
                continue;
            };
            let progress = task.progress(order.id)?;
            if progress.ended {
                continue;
            }
            let from = from.max(Offset(progress.next));
            let reading = Reading { order: Arc::clone(order), partition, from, marks };
            let feed = self.letters.open(reading);
            let pace = LetterPace::new(order.rate(partition), now);
            let under_way =
                UnderWay { redrive, life, feed, page: None, begun: false, pace, waits_since: None };
            self.under_way.insert(partition, under_way);
            return Ok(true);
        }
        self.at_rest.insert(partition, life);
        Ok(false)
    }

    /// What is to be told of letters that wait for room: why, or an empty reason when they do not any more.
    /// None = nothing new.
    fn news(&mut self, task: &Task, now: Duration) -> Option<String> {
        let partition = task.partition();
        let since = self.under_way.get(&partition).and_then(|under_way| under_way.waits_since);
        let wait = since.is_some_and(|since| now.saturating_sub(since) >= WAIT_TOLD);
        match (wait, self.told.contains(&partition)) {
            (true, false) => {
                self.told.insert(partition);
                task.letters_reason()
            }
            (false, true) => {
                self.told.remove(&partition);
                Some(String::new())
            }
            (true, true) | (false, false) => None,
        }
    }

    /// Forgets tasks that do not run. Every turn: a task that is made anew may have the number of a writer
    /// that never committed, and would pass for the one before.
    fn keep(&mut self, is_running: impl Fn(i32) -> bool) {
        self.under_way.retain(|&partition, _| is_running(partition));
        self.at_rest.retain(|&partition, _| is_running(partition));
        self.told.retain(|&partition| is_running(partition));
    }
}

impl UnderWay {
    /// True when the order has come to its end in this partition.
    fn step(&mut self, task: &mut Task, oldest: u64, now: Duration) -> Result<bool, TaskError> {
        if self.page.is_none() {
            match self.feed.next() {
                None => return Ok(false),
                Some(Ok(page)) => self.page = Some(page),
                Some(Err(reason)) => {
                    task.end_redrive(self.redrive.id, &reason)?;
                    return Ok(true);
                }
            }
        }
        let Some(page) = self.page.as_mut() else { return Ok(false) };
        if !self.begun {
            self.begun = true;
            task.begin_redrive(&self.redrive, page.log_start, oldest)?;
        }
        let most = self.pace.allowance(now).min(LETTERS_AT_ONCE);
        let given = task.give_back(&self.redrive, page, most)?;
        self.pace.took(given.letters);
        let stands = given.waits && given.letters == 0;
        self.waits_since = if stands { self.waits_since.or(Some(now)) } else { None };
        if !given.is_used_up {
            return Ok(false);
        }
        self.page = None;
        Ok(task.progress(self.redrive.id)?.ended)
    }
}

/// Holds letters to a rate.
struct LetterPace {
    /// Letters a second; none = no limit.
    rate: Option<f64>,
    /// When the next letter is due.
    due: Duration,
}

impl LetterPace {
    fn new(rate: Option<f64>, now: Duration) -> LetterPace {
        LetterPace { rate, due: now }
    }

    /// Letters that may be given back now.
    fn allowance(&mut self, now: Duration) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        self.due = self.due.max(now.saturating_sub(BURST));
        match now.checked_sub(self.due) {
            None => 0,
            Some(late) => (late.as_secs_f64() * rate) as usize + 1,
        }
    }

    fn took(&mut self, letters: usize) {
        if let Some(rate) = self.rate.filter(|rate| *rate > 0.0) {
            let pause = Duration::try_from_secs_f64(letters as f64 / rate);
            self.due = self.due.saturating_add(pause.unwrap_or(Duration::MAX));
        }
    }
}

impl<C: Consumer> Worker<C> {
    /// Hands letters over. Not while the overlay is full and cannot be committed.
    pub(super) fn serve_redrives(&mut self) {
        let slots = &self.slots;
        self.redrives.keep(|partition| {
            matches!(slots.get(&partition), Some(Slot { state: SlotState::Running(_), .. }))
        });
        if self.stalled || self.pace.must_stop_taking(waiting(&self.slots)) {
            return;
        }
        let now = self.clock.monotonic();
        if !self.redrives.look(now) {
            return;
        }
        let mut failed = Vec::new();
        for (partition, task) in running(&mut self.slots) {
            if task.is_adopting() {
                continue;
            }
            if let Err(error) = self.redrives.serve(task, now) {
                failed.push((partition, error));
            }
            if let Some(reason) = self.redrives.news(task, now) {
                if !reason.is_empty() {
                    tracing::info!(deployment = %self.deployment, partition, reason, "a redrive waits");
                }
                self.board.letters_wait(partition, self.index, &reason);
            }
        }
        for (partition, error) in failed {
            self.task_failed(partition, &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_come_at_the_rate_and_are_made_up_for_within_a_burst_only() {
        let ms = Duration::from_millis;
        let mut pace = LetterPace::new(Some(100.0), ms(1_000));
        assert_eq!(pace.allowance(ms(1_000)), 1);
        pace.took(1);
        assert_eq!(pace.allowance(ms(1_005)), 0);
        assert_eq!(pace.allowance(ms(1_010)), 1);
        assert_eq!(pace.allowance(ms(1_050)), 5, "a late turn makes up");
        pace.took(5);
        assert_eq!(pace.allowance(ms(1_055)), 0);
        assert_eq!(pace.allowance(ms(60_000)), 26, "a pause is not made up for");
        assert_eq!(LetterPace::new(None, ms(0)).allowance(ms(0)), usize::MAX);
        let mut none = LetterPace::new(Some(0.0), ms(0));
        none.took(1);
        assert!(none.allowance(ms(1)) <= 1);
    }
}
