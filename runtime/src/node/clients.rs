//! The Kafka clients of a worker, and what configuration makes of them.

use std::thread::available_parallelism;

use super::commit::SinkFactory;
use super::revision::{self, Revision};
use super::runtime::{NodeRuntime, RESTORES_MAX};
use super::worker::{self, ConsumerFactory};
use crate::config::NodeConfig;
use crate::config::deployment::Guarantee;
use crate::config::node::GroupProtocol;
use crate::kafka::config::KafkaConfig;
use crate::kafka::consumer::{Consumer, ConsumerSpec};
use crate::kafka::sink::{SinkSpec, plain, transactional};
use crate::store::{BudgetConfig, FlushRule};

pub fn store_budget(config: &NodeConfig) -> BudgetConfig {
    let cores = available_parallelism().map_or(1, usize::from);
    BudgetConfig {
        compaction_threads: compaction_threads(cores),
        block_cache_bytes: config.memory.block_cache_bytes as usize,
        write_buffer_bytes: config.memory.write_buffers_bytes as usize,
        ..BudgetConfig::default()
    }
}

/// Of so many cores, one in two may compact: the others are left to workers. More than eight would hold up disks.
fn compaction_threads(cores: usize) -> u8 {
    (cores / 2).clamp(1, 8) as u8
}

/// The flusher's bound lies below the budget, so that idle stores are written before busy ones are
/// held up by RocksDB.
pub fn flush_rule(config: &NodeConfig) -> FlushRule {
    FlushRule { bytes_max: config.memory.write_buffers_bytes / 4 * 3, ..FlushRule::default() }
}

/// Workers that share the budget for queues at least, so that the first deployment does not take all
/// of it: a queue cannot be resized while its client lives.
const QUEUE_SHARES_MIN: u64 = 4;

/// How a worker reaches Kafka: as the node does, with its share of the node's queues.
fn worker_kafka(node: &NodeRuntime) -> KafkaConfig {
    let view = node.control_log.view();
    let workers = view.deployments.values().filter_map(|registered| Some(registered.spec()?.workers));
    let workers: u64 = workers.map(u64::from).sum();
    let mut kafka = node.kafka.clone();
    kafka.limits = kafka.limits.within(node.config.memory.queues_bytes / workers.max(QUEUE_SHARES_MIN));
    kafka
}

/// How a restore reaches Kafka: as the node does, with its share of as much memory as the node's queues may have.
pub fn restore_kafka(node: &NodeRuntime) -> KafkaConfig {
    let mut kafka = node.kafka.clone();
    kafka.limits = kafka.limits.restores_within(node.config.memory.queues_bytes, RESTORES_MAX as u64);
    kafka
}

/// The producer of a worker, as Kafka knows it over restarts.
pub fn transactional_id(node: &NodeRuntime, deployment: &str, index: u32) -> String {
    format!("{}.{deployment}.{}.{index}", node.config.fleet, node.id)
}

/// The group member of a worker.
pub fn consumer_spec(node: &NodeRuntime, revision: &Revision, index: u32) -> ConsumerSpec {
    let mut spec = ConsumerSpec::new(
        revision.group.clone(),
        revision.inputs.iter().map(|input| input.topic.clone()).collect(),
    );
    spec.protocol = node.config.kafka.group_protocol;
    spec.instance_id = match spec.protocol {
        GroupProtocol::Classic => Some(format!("{}-{index}", node.id)),
        GroupProtocol::Consumer => None,
    };
    spec.topic_ids = revision.inputs.iter().map(|input| input.topic_id.parse().unwrap_or_default()).collect();
    spec.wants_headers = revision.reads_headers();
    spec.batch_records = revision::call_records_max(&revision.spec);
    spec.batch_bytes = revision::call_bytes_max(&revision.spec);
    spec.epochs = node.epochs.of(&revision.group);
    spec
}

pub fn consumers(node: &NodeRuntime, revision: &Revision, index: u32) -> ConsumerFactory<Consumer> {
    let spec = consumer_spec(node, revision, index);
    let kafka = worker_kafka(node);
    Box::new(move || Consumer::new(&kafka, spec.clone()))
}

/// What the producers of a revision write to.
pub fn sink_spec(revision: &Revision) -> SinkSpec {
    SinkSpec {
        outputs: revision
            .outputs
            .iter()
            .map(|output| output.outbox.is_none().then(|| output.topic.clone()))
            .collect(),
        changelog: revision.changelog.as_ref().map(|changelog| changelog.topic.clone()),
        inbox: revision.inbox.clone(),
        inputs: revision.inputs.iter().map(|input| input.topic.clone()).collect(),
        batch_bytes: revision
            .outputs
            .iter()
            .filter(|output| output.outbox.is_none())
            .map(|output| output.record_bytes_max)
            .chain(revision.changelog.as_ref().map(|changelog| changelog.record_bytes_max))
            .min()
            .and_then(|bytes| u32::try_from(bytes).ok())
            .unwrap_or(1 << 20),
    }
}

pub fn sinks(node: &NodeRuntime, revision: &Revision, index: u32) -> SinkFactory {
    let spec = sink_spec(revision);
    let kafka = worker_kafka(node);
    let id = transactional_id(node, &revision.registered.name, index);
    let epochs = node.epochs.of(&revision.group);
    match revision.spec.guarantee {
        Guarantee::ExactlyOnce => Box::new(move || transactional(&kafka, &id, spec.clone(), epochs.clone())),
        Guarantee::AtLeastOnce => Box::new(move || plain(&kafka, spec.clone())),
    }
}

impl worker::Consumer for Consumer {
    fn leave(self) {
        Consumer::leave(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_in_two_may_compact_and_at_least_one_and_at_most_eight() {
        assert_eq!([1, 2, 3, 4, 16, 1_000].map(compaction_threads), [1, 1, 1, 2, 8, 8]);
    }
}
