//! What a task is told about its deployment. One value, shared by the deployment's tasks.

use std::sync::Arc;

use super::numbers::Numbers;
use super::parked::Parked;
use crate::config::deployment::{Failures, Guarantee, InboxSpec};
use crate::config::failures::{FailureKind, Then};
use crate::config::units::show_bytes;
use crate::effects::Order;
use crate::store::{CacheBudget, StoreError, StoreReader, Stores, View, ViewLimits};
use crate::task::OutputRule;

/// A guest is handed so small a part of its memory at once, so that a batch and what comes of it fit.
const MEMORY_PARTS: u64 = 8;
/// The ABI's bound on one batch, whatever a deployment allows.
const BATCH_BYTES_MAX: u64 = 1 << 20;

/// Bytes of one call, for a guest with so much memory.
pub fn call_bytes_max(memory_bytes: u64) -> usize {
    (memory_bytes / MEMORY_PARTS).min(BATCH_BYTES_MAX) as usize
}

/// Why a record of so many bytes goes into no call, and what would be enough for it.
pub(super) fn too_large(bytes: usize, call_bytes_max: usize) -> String {
    let told = format!("a record of {bytes} bytes, a call takes {call_bytes_max}");
    let bytes = bytes as u64;
    if bytes > BATCH_BYTES_MAX {
        let most = show_bytes(BATCH_BYTES_MAX);
        return format!(
            "{told}, and at most {most} whatever limits.memory is: have its producer send less at once"
        );
    }
    let enough = (bytes * MEMORY_PARTS).next_multiple_of(1 << 20);
    format!("{told}, an eighth of limits.memory: raise that to {}", show_bytes(enough))
}

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

/// Where failures are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsRule {
    /// Which of the outputs; not one of the manifest's.
    pub output: u16,
    /// Of every event: `/tidemill/FLEET/DEPLOYMENT`.
    pub source: Arc<str>,
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
    pub stores: Arc<Stores>,
    /// The task has rows of its own to keep, such as parked records, whether or not it has stores.
    pub keeps_rows: bool,
    /// None = every record counts as new.
    pub inbox: Option<InboxSpec>,
    /// Emissions inherit headers from the records that cause them.
    pub correlation: bool,
    /// Which of the outputs takes dead letters; not one of the manifest's.
    pub dead_letters: Option<u16>,
    /// None = failures are not told.
    pub events: Option<EventsRule>,
    /// Ignored by a stateless task.
    pub changelog: ChangelogConfig,
    /// Records a call.
    pub call_records_max: usize,
    /// Bytes of records a call; a single record beyond it fails as `limit` without a call.
    pub call_bytes_max: usize,
    /// Keys and values that its stores may hold; none = nobody counts.
    pub store_bytes_max: Option<u64>,
    /// Uncommitted effects at which the task is full.
    pub overlay_bytes_max: usize,
    /// For committed values.
    pub cache: Arc<CacheBudget>,
    /// Values handed to a call beforehand.
    pub prefetch_bytes_max: usize,
}

impl TaskConfig {
    /// Nothing to keep: no store, no changelog.
    pub fn is_stateless(&self) -> bool {
        self.stores.is_empty() && !self.keeps_rows
    }

    /// What a handler must hold back after a failure: everything if every failure halts, because the
    /// task stops exactly there; the rest of its key if it may be parked.
    pub(super) fn order(&self) -> Order {
        let halts =
            |kind| self.failures.policy(kind).then == Then::Halt && self.failures.policy(kind).attempts == 0;
        if FailureKind::ALL.into_iter().all(halts) {
            Order::All
        } else if self.parks_keys() {
            Order::Key
        } else {
            Order::None
        }
    }

    pub(super) fn load_parked(
        &self,
        reader: Option<&StoreReader>,
        numbers: &Numbers,
    ) -> Result<Parked, StoreError> {
        let Failures { order, parked, .. } = self.failures;
        Parked::load(reader, order, parked, self.revision, numbers.bound())
    }

    /// What a handler of this configuration sees of the store.
    pub(super) fn view(&self, reader: Option<StoreReader>) -> View {
        View::new(Arc::clone(&self.stores), reader, &self.cache, self.view_limits())
    }

    pub(super) fn view_limits(&self) -> ViewLimits {
        ViewLimits {
            scratch_bytes_max: self.overlay_bytes_max,
            prefetch_bytes_max: self.prefetch_bytes_max,
            overlay_keep_bytes: self.overlay_bytes_max / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::parse_bytes;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_record_that_is_too_large_for_a_call_is_told_the_memory_that_would_be_enough() {
        assert_eq!(
            too_large(MIB - 200, call_bytes_max(4 << 20)),
            "a record of 1048376 bytes, a call takes 524288, an eighth of limits.memory: raise that to 8MiB"
        );
        for bytes in [2, MIB / 8, MIB / 8 + 1, MIB / 2 + 1, MIB] {
            let told = too_large(bytes, 1);
            let enough = told.rsplit(' ').next().map(parse_bytes).expect("a word").expect("a size");
            assert!(call_bytes_max(enough) >= bytes, "{told}");
            assert!(call_bytes_max(enough - MIB as u64) < bytes, "less is enough: {told}");
        }
        let told = too_large(MIB + 1, call_bytes_max(64 << 20));
        assert!(told.contains("at most 1MiB whatever limits.memory is"), "{told}");
    }
}
