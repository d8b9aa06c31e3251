//! How far groups are behind, as the node's last look found it. Nobody adds to it: each look replaces the one before.

use std::sync::Arc;

use super::cells::{TaskMetrics, TaskState};

/// One partition number of a deployment, that is, what one task reads.
#[derive(Debug)]
pub struct PartitionLag {
    pub deployment: String,
    pub partition: i32,
    pub group: String,
    /// Of this node's task; none if no node has the partition.
    pub task: Option<Arc<TaskMetrics>>,
    pub inputs: Vec<InputLag>,
}

/// How far the group is behind in one input.
#[derive(Debug)]
pub struct InputLag {
    pub topic: String,
    pub records: u64,
    /// Age of the oldest record that is not committed; none while it is unknown.
    pub seconds: Option<f64>,
}

impl PartitionLag {
    /// False once the task has left this node: another one has it now, and it would count twice in a sum.
    pub fn is_shown(&self) -> bool {
        self.task.as_ref().is_none_or(|task| task.state() != TaskState::Absent)
    }

    /// Over all inputs.
    pub fn records(&self) -> u64 {
        self.inputs.iter().map(|input| input.records).sum()
    }

    /// Of the oldest record of any input; none while that of one is unknown.
    pub fn seconds(&self) -> Option<f64> {
        self.inputs.iter().try_fold(0.0, |oldest: f64, input| Some(oldest.max(input.seconds?)))
    }
}
