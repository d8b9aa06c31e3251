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
/// A version that has halted is rolled back within this, if it is.
const ROLLBACK_MAX: Duration = Duration::from_secs(5);

/// A revision that runs everywhere.
pub struct Adopted {
    pub deployment: proto::Deployment,
    /// Where it began, by partition and input.
    pub first: Vec<proto::InputPosition>,
}

/// Waits until every partition has a running task of this revision or a later one, on whichever node
/// of the fleet. A paused deployment has none, and is not waited for.
pub async fn wait(channel: &Channel, asked: &proto::Deployment, limit: Duration) -> Result<Adopted, Failure> {
    wait_for(channel, asked, None, limit).await
}

/// The same for the task of one partition, if one is given.
pub async fn wait_for(
    channel: &Channel,
    asked: &proto::Deployment,
    partition: Option<i32>,
    limit: Duration,
) -> Result<Adopted, Failure> {
    let deadline = Instant::now() + limit;
    let name = &asked.name;
    let mut client = DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut halted_since = None;
    loop {
        // In this order: a task that is tried again is not taken for one that has halted anew.
        let rollout = client.rollout(proto::RolloutRequest { name: name.clone() }).await?.into_inner();
        let deployment = deployments::get(channel.clone(), name).await?;
        if let Some(failure) = taken_back(asked, &deployment) {
            return Err(failure);
        }
        if deployment.state() == proto::DeploymentState::Paused {
            return Ok(Adopted { deployment, first: Vec::new() });
        }
        let is_asked = |task: &&proto::TaskRollout| partition.is_none_or(|asked| task.partition == asked);
        let reached = |task: &&proto::TaskRollout| task.revision >= asked.revision;
        if let Some(message) = halted(&deployment, &rollout, |task| is_asked(task) && reached(task)) {
            let since = *halted_since.get_or_insert_with(Instant::now);
            let on_trial = rollout.trial.is_some_and(|trial| trial.open);
            if !on_trial || since.elapsed() > ROLLBACK_MAX {
                return Err(Failure::failed(message));
            }
        }
        let runs = |task: &proto::TaskRollout| {
            reached(&task) && task.state() == proto::TaskState::Running && !task.first.is_empty()
        };
        if !rollout.tasks.is_empty() && rollout.tasks.iter().filter(is_asked).all(runs) {
            let first = rollout.tasks.into_iter().flat_map(|task| task.first).collect();
            return Ok(Adopted { deployment, first });
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

/// Why the version is not the one that runs, if a node took it back by itself.
fn taken_back(asked: &proto::Deployment, now: &proto::Deployment) -> Option<Failure> {
    let proto::Deployment { name, version, rolled_back, .. } = now;
    (*version > asked.version && !rolled_back.is_empty())
        .then(|| Failure::failed(format!("{name}: {rolled_back}; see `tidemill history {name}`")))
}

/// Why a deployment does not go on by itself: as a whole, or one of the tasks that count.
fn halted(
    deployment: &proto::Deployment,
    rollout: &proto::RolloutResponse,
    counts: impl Fn(&&proto::TaskRollout) -> bool,
) -> Option<String> {
    let name = &deployment.name;
    let mut halted = rollout.tasks.iter().filter(|task| task.state() == proto::TaskState::Halted);
    let is_of_a_task = halted.clone().any(|task| task.reason == deployment.reason);
    if deployment.state() == proto::DeploymentState::Halted && !is_of_a_task {
        return Some(format!("{name} is halted: {}", deployment.reason));
    }
    let task = halted.find(counts)?;
    Some(format!("task {} of {name} is halted: {}", task.partition, task.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_halted_before_does_not_count_against_what_was_asked_for() {
        let task = |partition, revision| proto::TaskRollout {
            partition,
            revision,
            state: proto::TaskState::Halted.into(),
            reason: format!("as told in {partition}"),
            ..proto::TaskRollout::default()
        };
        let rollout = proto::RolloutResponse {
            tasks: vec![task(0, 7), task(1, 9)],
            ..proto::RolloutResponse::default()
        };
        let deployment = |reason: &str| proto::Deployment {
            name: "count".into(),
            state: proto::DeploymentState::Halted.into(),
            reason: reason.into(),
            ..proto::Deployment::default()
        };
        let of_a_task = deployment("as told in 0");
        assert_eq!(halted(&of_a_task, &rollout, |task| task.partition == 0 && task.revision >= 9), None);
        assert_eq!(
            halted(&of_a_task, &rollout, |task| task.revision >= 9).as_deref(),
            Some("task 1 of count is halted: as told in 1")
        );
        assert_eq!(
            halted(&deployment("topic in does not exist"), &rollout, |_| false).as_deref(),
            Some("count is halted: topic in does not exist")
        );
    }

    #[test]
    fn a_version_that_was_rolled_back_is_a_failure_that_says_why() {
        let at = |version, rolled_back: &str| proto::Deployment {
            name: "count".into(),
            version,
            rolled_back: rolled_back.into(),
            ..proto::Deployment::default()
        };
        let asked = at(2, "");
        assert!(taken_back(&asked, &at(2, "version 2 failed and cannot be rolled back")).is_none());
        assert!(taken_back(&asked, &at(3, "")).is_none(), "somebody deployed another");
        let failure = taken_back(&asked, &at(3, "version 2 failed and was rolled back: as told"));
        assert_eq!(
            failure.map(|failure| failure.message).as_deref(),
            Some("count: version 2 failed and was rolled back: as told; see `tidemill history count`")
        );
    }
}
