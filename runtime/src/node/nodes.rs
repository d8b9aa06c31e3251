//! Who is there and what runs: this node as it knows itself, the others as their heartbeats tell.
//!
//! Heartbeats are small, because every node reads all of them every other second: positions and times are
//! asked of the node itself.

use std::sync::Arc;

use tidemill_proto::v1 as proto;

use super::board::TaskEntry;
use super::fleet::ALIVE;
use super::handle::{ControlError, Handle, task_state};
use crate::telemetry::{Activity, LogRing, Parts};

impl Handle {
    pub fn id(&self) -> &str {
        &self.node.id
    }

    /// Every node, by its last heartbeat and by id, with what it runs of a deployment; of all if the name
    /// is empty.
    pub fn nodes(&self, deployment: &str) -> Vec<proto::Node> {
        let wanted =
            |task: &proto::NodeTask| self.sees(&task.deployment) && is_of(&task.deployment, deployment);
        let peers = self.node.fleet.peers().into_iter();
        let mut nodes: Vec<proto::Node> = peers
            .map(|(id, peer)| proto::Node {
                id,
                heartbeat_age_ms: peer.age().as_millis() as u64,
                address: peer.heartbeat.address,
                version: peer.heartbeat.version,
                tasks: peer.heartbeat.tasks.into_iter().map(of_heartbeat).filter(wanted).collect(),
                answered: false,
                drain: peer.heartbeat.drain,
            })
            .collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        nodes
    }

    /// This node, with everything that it knows of its tasks; before its first heartbeat without an address.
    pub fn this_node(&self, deployment: &str) -> proto::Node {
        let told = self.nodes(deployment).into_iter().find(|node| node.id == self.node.id);
        let node = told.unwrap_or_else(|| proto::Node {
            id: self.node.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..proto::Node::default()
        });
        let drain = self.node.drain.state().into();
        let boards = self.node.boards().into_iter();
        let boards = boards.filter(|(name, _)| self.sees(name) && is_of(name, deployment));
        let view = self.node.control_log.view();
        let mut tasks = Vec::new();
        for (name, board) in boards {
            let inputs = view.deployments.get(&name).map(|registered| registered.topics());
            let inputs = inputs.unwrap_or_default();
            let of_task = |(partition, task)| described(&name, partition, &task, &inputs);
            tasks.extend(board.tasks().into_iter().map(of_task));
        }
        proto::Node { tasks, answered: true, drain, ..node }
    }

    /// What the handlers of a deployment have logged on this node.
    pub fn handler_log(&self, deployment: &str) -> Result<Arc<LogRing>, ControlError> {
        self.registered(deployment)?;
        Ok(self.node.handler_logs.ring(deployment))
    }

    /// Ids and addresses of the other nodes whose heartbeat is fresh.
    pub fn peers(&self) -> Vec<(String, String)> {
        let peers = self.node.fleet.peers().into_iter();
        let alive = peers.filter(|(id, peer)| *id != self.node.id && peer.age() < ALIVE);
        let mut alive: Vec<_> = alive.map(|(id, peer)| (id, peer.heartbeat.address)).collect();
        alive.sort();
        alive
    }
}

/// Every name is of no deployment in particular.
fn is_of(name: &str, deployment: &str) -> bool {
    deployment.is_empty() || name == deployment
}

fn of_heartbeat(task: proto::HeartbeatTask) -> proto::NodeTask {
    proto::NodeTask {
        deployment: task.deployment,
        partition: task.partition,
        worker: task.worker,
        state: task.state,
        revision: task.revision,
        ..proto::NodeTask::default()
    }
}

fn described(deployment: &str, partition: i32, task: &TaskEntry, inputs: &[String]) -> proto::NodeTask {
    proto::NodeTask {
        deployment: deployment.to_owned(),
        partition,
        worker: task.worker,
        state: task_state(task.state).into(),
        revision: task.revision,
        reason: task.reason.clone(),
        positions: super::query::positions(&task.positions, inputs, partition),
        restore_remaining: task.metrics.restore_remaining.get(),
        parked_records: task.metrics.parked_records.get(),
        spent: task.metrics.spent.recent().as_ref().map(spent),
    }
}

fn spent(parts: &Parts) -> proto::TimeSpent {
    let seconds = |activity| parts.get(activity).as_secs_f64();
    proto::TimeSpent {
        window_seconds: parts.whole().as_secs_f64(),
        fetch_seconds: seconds(Activity::Fetch),
        handler_seconds: seconds(Activity::Handler),
        state_seconds: seconds(Activity::State),
        commit_seconds: seconds(Activity::Commit),
        others_seconds: seconds(Activity::Others),
        restore_seconds: seconds(Activity::Restore),
        halted_seconds: seconds(Activity::Halted),
        paused_seconds: seconds(Activity::Paused),
    }
}
