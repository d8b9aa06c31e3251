//! What a task is told about its deployment. One value, shared by the deployment's tasks.

use std::sync::Arc;

use crate::config::deployment::{Failures, Guarantee};
use crate::effects::Order;
use crate::store::{Stores, ViewLimits};
use crate::task::OutputRule;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInput {
    pub topic: String,
    /// Kafka's topic id, as in position records.
    pub topic_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangelogConfig {
    pub topic: String,
    pub topic_id: String,
    /// `max.message.bytes` of the topic.
    pub record_bytes_max: usize,
}

#[derive(Debug, Clone)]
pub struct TaskConfig {
    pub deployment: String,
    /// The consumer group, for messages to people.
    pub group: String,
    pub revision: u64,
    pub incarnation: String,
    pub guarantee: Guarantee,
    pub failures: Failures,
    /// In the manifest's order; a batch's `input` is an index into it.
    pub inputs: Vec<TaskInput>,
    /// In the manifest's order.
    pub outputs: Vec<OutputRule>,
    /// Empty = a stateless deployment: no store, no changelog.
    pub stores: Arc<Stores>,
    /// Ignored when there are no stores.
    pub changelog: ChangelogConfig,
    /// Records a call.
    pub call_records_max: usize,
    /// Bytes of records a call; a single record beyond it fails as `limit` without a call.
    pub call_bytes_max: usize,
    /// Uncommitted effects at which the task is full.
    pub overlay_bytes_max: usize,
    /// Committed values kept in memory.
    pub cache_bytes: usize,
    /// Values handed to a call beforehand.
    pub prefetch_bytes_max: usize,
}

impl TaskConfig {
    /// What a handler must hold back after a failure: with `halt` everything, because the task stops
    /// exactly there.
    pub(super) fn order(&self) -> Order {
        match self.failures {
            Failures::Halt => Order::All,
            Failures::Skip => Order::None,
        }
    }

    pub(super) fn view_limits(&self) -> ViewLimits {
        ViewLimits {
            cache_bytes: self.cache_bytes,
            scratch_bytes_max: self.overlay_bytes_max,
            prefetch_bytes_max: self.prefetch_bytes_max,
            overlay_keep_bytes: self.overlay_bytes_max / 2,
        }
    }
}
