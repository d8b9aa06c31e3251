//! Waiting for a revision: until every task of the fleet has adopted it, and where each began.

use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::failure::Failure;
use crate::config::units;
use crate::node::{Following, Progress};

/// Between two looks at a deployment that is starting.
const LOOK: Duration = Duration::from_millis(100);

/// A revision that runs everywhere.
pub struct Adopted {
    pub deployment: proto::Deployment,
    /// Where it began, by partition and input.
    pub first: Vec<proto::InputPosition>,
}

/// Waits until every partition has a running task of this revision, or of the one that has taken its place
/// since, on whichever node of the fleet. A paused deployment has none, and is not waited for.
pub async fn wait(channel: &Channel, asked: &proto::Deployment, limit: Duration) -> Result<Adopted, Failure> {
    wait_for(channel, asked, None, limit).await
}

/// The same for the task of one partition, if one is given. A node is asked again and again, so that a wait may be
/// longer than a call.
pub async fn wait_for(
    channel: &Channel,
    asked: &proto::Deployment,
    partition: Option<i32>,
    limit: Duration,
) -> Result<Adopted, Failure> {
    let deadline = Instant::now() + limit;
    let name = &asked.name;
    let mut client = DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut following = Following::new(asked, partition);
    loop {
        let rollout = client.rollout(proto::RolloutRequest { name: name.clone() }).await?.into_inner();
        let progress = following.look(&rollout);
        let deployment = rollout.deployment.unwrap_or_default();
        match progress {
            Progress::Complete => {
                let first = rollout.tasks.into_iter().flat_map(|task| task.first).collect();
                return Ok(Adopted { deployment, first });
            }
            Progress::Paused => return Ok(Adopted { deployment, first: Vec::new() }),
            Progress::TakenBack(reason) => {
                return Err(Failure::failed(format!("{name}: {reason}; see `tidemill history {name}`")));
            }
            Progress::Halted(reason) => return Err(Failure::failed(reason)),
            Progress::Coming => {}
        }
        if Instant::now() >= deadline {
            let waited = units::show_duration(limit);
            let hint = format!("it goes on by itself; see `tidemill deployments {name}`");
            let what = match partition {
                None => format!("{name} does not run everywhere"),
                Some(partition) => format!("task {partition} of {name} does not run"),
            };
            return Err(Failure::failed(format!("{what} after {waited}; {hint}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
