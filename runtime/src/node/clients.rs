//! The Kafka clients of a worker, and what configuration makes of them.

use std::sync::Arc;

use super::commit::SinkFactory;
use super::revision::{self, Revision};
use super::runtime::NodeRuntime;
use super::worker::{self, ConsumerFactory};
use crate::config::NodeConfig;
use crate::config::deployment::Guarantee;
use crate::config::node::GroupProtocol;
use crate::kafka::consumer::{Consumer, ConsumerSpec};
use crate::kafka::sink::{PlainSink, SinkSpec, TransactionalSink};
use crate::ports::Sink;
use crate::store::BudgetConfig;

pub fn store_budget(config: &NodeConfig) -> BudgetConfig {
    BudgetConfig {
        block_cache_bytes: config.memory.block_cache_bytes as usize,
        write_buffer_bytes: config.memory.write_buffers_bytes as usize,
        ..BudgetConfig::default()
    }
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
    spec.wants_headers = revision.manifest.wants_headers;
    spec.batch_records = revision::call_records_max(&revision.spec);
    spec.batch_bytes = revision::call_bytes_max(&revision.spec);
    spec
}

pub fn consumers(node: &NodeRuntime, revision: &Revision, index: u32) -> ConsumerFactory<Consumer> {
    let spec = consumer_spec(node, revision, index);
    let kafka = node.kafka.clone();
    Box::new(move || Consumer::new(&kafka, spec.clone()))
}

pub fn sinks(node: &NodeRuntime, revision: &Arc<Revision>, index: u32) -> SinkFactory {
    let spec = SinkSpec {
        outputs: revision.outputs.iter().map(|output| output.topic.clone()).collect(),
        changelog: revision.changelog.as_ref().map(|changelog| changelog.topic.clone()),
        inputs: revision.inputs.iter().map(|input| input.topic.clone()).collect(),
        batch_bytes: revision
            .outputs
            .iter()
            .map(|output| output.record_bytes_max)
            .chain(revision.changelog.as_ref().map(|changelog| changelog.record_bytes_max))
            .min()
            .and_then(|bytes| u32::try_from(bytes).ok())
            .unwrap_or(1 << 20),
    };
    let kafka = node.kafka.clone();
    let id = transactional_id(node, &revision.registered.name, index);
    match revision.spec.guarantee {
        Guarantee::ExactlyOnce => Box::new(move || {
            let sink = TransactionalSink::new(&kafka, &id, spec.clone())?;
            Ok(Box::new(sink) as Box<dyn Sink>)
        }),
        Guarantee::AtLeastOnce => Box::new(move || {
            let sink = PlainSink::new(&kafka, spec.clone())?;
            Ok(Box::new(sink) as Box<dyn Sink>)
        }),
    }
}

impl worker::Consumer for Consumer {
    fn leave(self) {
        Consumer::leave(self);
    }
}
