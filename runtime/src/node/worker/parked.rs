//! What a worker does for parked records: it tries them again when their time has come, and holds
//! back the input of a task that has no room, to park more or for what its outbox would have to keep.
//!
//! A retry is work without input. It is committed like any other, with the offsets of every task it
//! writes for, so a worker that has lost its partitions cannot commit it.

use super::{Consumer, Life, Slot, SlotState, TakenAt, Worker, positions, running, waiting};
use crate::task::Task;
use crate::telemetry::TaskState;

impl<C: Consumer> Worker<C> {
    /// Tries what is due. Not while the overlay is full and cannot be committed.
    pub(super) fn retry_parked(&mut self) {
        if self.stalled || self.pace.must_stop_taking(waiting(&self.slots)) {
            return;
        }
        let taken = TakenAt { monotonic: self.clock.monotonic(), wall_ms: self.clock.wall_ms() };
        let is_meant = |task: &Task| task.parked().0 > 0 || task.is_blocked() || task.is_careful();
        let parked = running(&mut self.slots).filter(|(_, task)| is_meant(task));
        let parked: Vec<i32> = parked.map(|(partition, _)| partition).collect();
        for partition in parked {
            let Some(Slot { state: SlotState::Running(task), own_calls, metrics, .. }) =
                self.slots.get_mut(&partition)
            else {
                continue;
            };
            let before = self.clock.monotonic();
            let result = task.retry(taken);
            let took = self.clock.monotonic().saturating_sub(before);
            self.turn.called(own_calls, metrics, took, task.take_reading_time());
            if let Err(error) = result {
                self.task_failed(partition, &error);
                continue;
            }
            if let Life::Halted(failure) = task.state() {
                let reason = failure.to_string();
                self.halt(partition, reason);
                continue;
            }
            if let Some(positions) = task.unblock() {
                tracing::info!(deployment = %self.deployment, partition, "there is room again; the input goes on");
                self.board.task_state(partition, self.index, TaskState::Running, "");
                self.start_inputs(partition, &positions);
            }
        }
    }

    /// A task has no room to go on, for parked records or for the rows of an outbox: its input waits, and only its own.
    pub(super) fn blocked(&mut self, partition: i32) {
        let Some((_, task)) = running(&mut self.slots).find(|(number, _)| *number == partition) else {
            return;
        };
        let reason = task.blocked_reason().unwrap_or_default();
        let inputs: Vec<u16> = positions(task).iter().map(|(input, _)| input.input).collect();
        tracing::warn!(deployment = %self.deployment, partition, reason, "the input is paused");
        self.board.task_state(partition, self.index, TaskState::Running, &reason);
        self.stop_inputs(partition, &inputs);
    }
}
