//! How far the fleet is with a deployment's revision: every partition, whoever runs it.

use std::collections::BTreeMap;

use tidemill_proto::v1 as proto;

use super::fleet::ALIVE;
use super::handle::{ControlError, Handle, task_state};
use super::query;
use crate::record::Offset;

impl Handle {
    /// By this node's own tasks, and by what the others told last.
    pub fn rollout(&self, name: &str) -> Result<proto::RolloutResponse, ControlError> {
        let registered = self.registered(name)?;
        let inputs = registered.topics();
        let partitions = self.node.partitions(&registered)?;
        let mut tasks: BTreeMap<i32, proto::TaskRollout> = (0..partitions)
            .map(|partition| (partition, proto::TaskRollout { partition, ..proto::TaskRollout::default() }))
            .collect();
        let first = |partition, offsets: &[u64]| {
            let offsets: Vec<_> = (0..).zip(offsets.iter().copied().map(Offset)).collect();
            query::positions(&offsets, &inputs, partition)
        };
        for (id, peer) in self.node.fleet.peers() {
            let told = peer.heartbeat.tasks.iter().filter(|task| task.deployment == name);
            for task in told.filter(|_| peer.age() < ALIVE && id != self.node.id) {
                let rollout = proto::TaskRollout {
                    partition: task.partition,
                    state: task.state,
                    reason: String::new(),
                    node: id.clone(),
                    revision: task.revision,
                    first: first(task.partition, &task.first),
                };
                tasks.insert(task.partition, rollout);
            }
        }
        for (partition, task) in self.node.board(name).map(|board| board.tasks()).unwrap_or_default() {
            let offsets: Vec<u64> = task.first.iter().flatten().map(|first| first.0).collect();
            let rollout = proto::TaskRollout {
                partition,
                state: task_state(task.state).into(),
                reason: task.reason,
                node: self.node.id.clone(),
                revision: task.revision,
                first: first(partition, &offsets),
            };
            tasks.insert(partition, rollout);
        }
        let (version, revision) = (registered.version(), registered.revision);
        let trial = self.node.trials.find(&registered).map(|trial| {
            let (tried, failed) = trial.counts();
            proto::Trial { open: trial.is_open(), tried, failed }
        });
        Ok(proto::RolloutResponse { version, revision, tasks: tasks.into_values().collect(), trial })
    }
}
