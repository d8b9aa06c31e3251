//! What a worker does for the outboxes of its tasks: hands what may be sent to its relay, and gives the landings
//! back to the tasks.
//!
//! ```text
//!   task --delivery--> relay ~~> destination
//!    ^                   |
//!    +---- landing <-----+      the row is deleted by the next commit, which the offsets fence
//! ```
//!
//! What is in the air is kept here and not in a task: a task that is recovered on this worker waits for the
//! landings of its former life, so that a key is not overtaken. Another owner cannot know of them; that is
//! what the sequence number of a delivery is for.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Consumer, Slot, SlotState, TakenAt, Worker, running};
use crate::ports::{Landing, Relay};
use crate::record::InputPartition;
use crate::task::Settled;

/// Deliveries of one task that begin in one turn, so that input is not kept waiting.
const SENDS_MAX: usize = 64;
/// How long a revocation, or a stop, waits for deliveries under way.
const SETTLE_WAIT: Duration = Duration::from_secs(2);
const SETTLE_LOOK: Duration = Duration::from_millis(10);
/// While something is in the air its landing is looked for this often; less often once none has come for a while.
const LOOK_SOON: Duration = Duration::from_millis(1);
const LOOK_LATER: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_millis(50);

/// Partition and sequence number of a row.
type Name = (i32, u64);

/// A relay and what it has under way.
struct Line {
    relay: Box<dyn Relay>,
    in_air: BTreeSet<Name>,
}

/// A worker's relays.
pub(super) struct Desk {
    current: Line,
    /// Of earlier revisions, until everything of them has landed.
    former: Vec<Line>,
    /// Of the last landing, on the worker's clock.
    landed_at: Duration,
}

impl Desk {
    pub fn new(relay: Box<dyn Relay>) -> Desk {
        let current = Line { relay, in_air: BTreeSet::new() };
        Desk { current, former: Vec::new(), landed_at: Duration::ZERO }
    }

    /// Another revision: what is under way lands where it was sent from.
    pub fn replace(&mut self, relay: Box<dyn Relay>) {
        let former = std::mem::replace(&mut self.current, Line { relay, in_air: BTreeSet::new() });
        if !former.in_air.is_empty() {
            self.former.push(former);
        }
    }

    /// A person asks for another attempt at a destination.
    pub fn knock(&self, destination: &str) {
        self.current.relay.knock(destination);
    }

    /// What speaks against the revision that sends now.
    pub fn opened(&mut self) -> Option<String> {
        self.current.relay.opened()
    }

    fn lines(&mut self) -> impl Iterator<Item = &mut Line> {
        std::iter::once(&mut self.current).chain(&mut self.former)
    }

    fn land(&mut self) -> Option<Landing> {
        let landing = self.lines().find_map(|line| {
            let landing = line.relay.land(Duration::ZERO)?;
            line.in_air.remove(&(landing.partition, landing.sequence));
            Some(landing)
        });
        self.former.retain(|line| !line.in_air.is_empty());
        landing
    }

    /// Waits a moment for a landing where rows of these partitions are in the air.
    fn wait(&mut self, partitions: &BTreeSet<i32>, wait: Duration) -> Option<Landing> {
        let is_of = |line: &Line| line.in_air.iter().any(|(partition, _)| partitions.contains(partition));
        let line = self.lines().find(|line| is_of(line))?;
        let landing = line.relay.land(wait)?;
        line.in_air.remove(&(landing.partition, landing.sequence));
        Some(landing)
    }

    /// Rows of these partitions that are in the air.
    fn of<'a>(&'a self, partitions: &'a BTreeSet<i32>) -> impl Iterator<Item = Name> + 'a {
        let lines = std::iter::once(&self.current).chain(&self.former);
        lines.flat_map(|line| &line.in_air).copied().filter(|(partition, _)| partitions.contains(partition))
    }

    /// The longest that a take may wait.
    pub fn patience(&self, now: Duration, most: Duration) -> Duration {
        if self.current.in_air.is_empty() && self.former.is_empty() {
            return most;
        }
        let soon = now.saturating_sub(self.landed_at) < SOON;
        most.min(if soon { LOOK_SOON } else { LOOK_LATER })
    }
}

impl<C: Consumer> Worker<C> {
    /// Landings first: each may make way for the next of its key.
    pub(super) fn relay(&mut self) {
        let mut changed = BTreeSet::new();
        while let Some(landing) = self.desk.land() {
            changed.insert(landing.partition);
            self.landed(&landing);
        }
        if let Some(reason) = self.desk.opened() {
            self.trial.breaker_opened(reason);
        }
        let now = self.clock.monotonic();
        let mut failed = Vec::new();
        for (partition, task) in running(&mut self.slots) {
            if !task.has_outbox_rows() {
                continue;
            }
            for _ in 0..SENDS_MAX {
                let line = &mut self.desk.current;
                let delivery = match task.delivery(now, |destination| line.relay.admits(destination)) {
                    Ok(Some(delivery)) => delivery,
                    Ok(None) => break,
                    Err(error) => {
                        failed.push((partition, error));
                        break;
                    }
                };
                let name = (delivery.partition, delivery.sequence);
                if let Err(delivery) = line.relay.send(delivery) {
                    task.not_sent(&delivery);
                    break;
                }
                line.in_air.insert(name);
                changed.insert(partition);
            }
        }
        for (partition, error) in failed {
            self.task_failed(partition, &error);
        }
        for partition in changed {
            self.note_outbox(partition);
        }
    }

    fn landed(&mut self, landing: &Landing) {
        let taken = TakenAt { monotonic: self.clock.monotonic(), wall_ms: self.clock.wall_ms() };
        self.desk.landed_at = taken.monotonic;
        let Some(Slot { state: SlotState::Running(task), .. }) = self.slots.get_mut(&landing.partition)
        else {
            return; // Not running here any more: whoever has the row delivers it again.
        };
        match task.landed(landing, taken) {
            Ok(Settled::Open | Settled::Delivered) => {}
            Ok(Settled::Buried { destination }) => {
                self.board.outbox(landing.partition, &destination).buried.add(1);
            }
            Err(error) => self.task_failed(landing.partition, &error),
        }
    }

    /// Waits for what these partitions have under way, so that it is acknowledged by their last commit here.
    /// What has not landed by then is delivered again by the next owner, with the same id.
    pub(super) fn settle_deliveries(&mut self, partitions: &[InputPartition]) {
        let numbers: BTreeSet<i32> = partitions.iter().map(|partition| partition.partition).collect();
        let until = self.clock.monotonic() + SETTLE_WAIT;
        while self.desk.of(&numbers).next().is_some() && self.clock.monotonic() < until {
            if let Some(landing) = self.desk.wait(&numbers, SETTLE_LOOK) {
                self.landed(&landing);
            }
        }
    }

    /// Rows of a task that are in the air since its former life here.
    pub(super) fn remember_deliveries(&mut self, partition: i32) {
        let Some(Slot { state: SlotState::Running(task), .. }) = self.slots.get_mut(&partition) else {
            return;
        };
        for (_, sequence) in self.desk.of(&BTreeSet::from([partition])) {
            task.is_in_air(sequence);
        }
    }

    /// What people see of a task's outbox.
    pub(super) fn note_outbox(&mut self, partition: i32) {
        let Some(Slot { state: SlotState::Running(task), .. }) = self.slots.get(&partition) else { return };
        for status in task.outbox_status() {
            let cells = self.board.outbox(partition, &status.destination);
            cells.rows.set(status.rows);
            cells.bytes.set(status.bytes);
            cells.in_flight.set(status.in_flight);
            cells.oldest_ms.set(status.oldest_ms.map_or(0, |ms| ms.max(1) as u64));
            cells.full.set(u64::from(status.full));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Delivery, Landed};

    /// Has these landings, and no others.
    struct Landings(Vec<Landing>);

    impl Relay for Landings {
        fn admits(&self, _: &str) -> bool {
            true
        }

        fn send(&mut self, _: Delivery) -> Result<(), Box<Delivery>> {
            Ok(())
        }

        fn land(&mut self, _: Duration) -> Option<Landing> {
            self.0.pop()
        }

        fn knock(&self, _: &str) {}

        fn opened(&mut self) -> Option<String> {
            None
        }
    }

    #[test]
    fn what_goes_with_a_partition_is_waited_for_where_it_was_sent_from_whoever_sends_now() {
        let landing = Landing { partition: 3, sequence: 7, landed: Landed::Delivered };
        let mut desk = Desk::new(Box::new(Landings(vec![landing.clone()])));
        desk.current.in_air.insert((3, 7));
        desk.replace(Box::new(Landings(Vec::new())));
        desk.current.in_air.insert((4, 1));
        let gone = BTreeSet::from([3]);
        assert_eq!(desk.wait(&gone, SETTLE_LOOK), Some(landing));
        assert_eq!(desk.of(&gone).next(), None);
    }
}
