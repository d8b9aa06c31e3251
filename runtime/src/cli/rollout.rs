//! Waiting for a revision: until every task of the fleet has adopted it, and where each began.

use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::deployments;
use super::failure::Failure;
use crate::config::units;

/// Between two looks at a deployment that is starting.
const LOOK: Duration = Duration::from_millis(100);

/// A revision that runs everywhere.
pub struct Adopted {
    pub deployment: proto::Deployment,
    /// Where it began, by partition and input.
    pub first: Vec<proto::InputPosition>,
}

/// Waits until every partition has a running task of this revision or a later one, on whichever node
/// of the fleet. A paused deployment has none, and is not waited for.
pub async fn wait(channel: &Channel, asked: &proto::Deployment, limit: Duration) -> Result<Adopted, Failure> {
    let deadline = Instant::now() + limit;
    let name = &asked.name;
    let mut client = DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    loop {
        let deployment = deployments::get(channel.clone(), name).await?;
        match deployment.state() {
            proto::DeploymentState::Halted => {
                return Err(Failure::failed(format!("{name} is halted: {}", deployment.reason)));
            }
            proto::DeploymentState::Paused => return Ok(Adopted { deployment, first: Vec::new() }),
            _ => {}
        }
        let rollout = client.rollout(proto::RolloutRequest { name: name.clone() }).await?.into_inner();
        let reached = |task: &&proto::TaskRollout| task.revision >= asked.revision;
        let halted =
            rollout.tasks.iter().filter(reached).find(|task| task.state() == proto::TaskState::Halted);
        if let Some(halted) = halted {
            let message = format!("task {} of {name} is halted: {}", halted.partition, halted.reason);
            return Err(Failure::failed(message));
        }
        let runs = |task: &proto::TaskRollout| {
            reached(&task) && task.state() == proto::TaskState::Running && !task.first.is_empty()
        };
        if !rollout.tasks.is_empty() && rollout.tasks.iter().all(runs) {
            let first = rollout.tasks.into_iter().flat_map(|task| task.first).collect();
            return Ok(Adopted { deployment, first });
        }
        if Instant::now() >= deadline {
            let waited = units::show_duration(limit);
            let hint = format!("it goes on by itself; see `tidemill deployments {name}`");
            return Err(Failure::failed(format!("{name} does not run everywhere after {waited}; {hint}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
