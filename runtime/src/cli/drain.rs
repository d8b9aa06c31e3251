//! `tidemill drain`: one node gives its tasks away, for an upgrade or for good.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;
use tonic::transport::Channel;

use super::failure::Failure;
use super::nodes::{drain_name, is_silent};
use super::output::{View, confirm};
use super::{Global, Outcome, client};
use crate::config::units;

/// Between two looks at a node that drains.
const LOOK: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  tidemill drain n1
  tidemill drain n1 --wait 60s --yes
  tidemill drain n1 --undo";

/// Have a node commit, give its tasks to the others, and take no more
///
/// It stays up and goes on answering, until it is started again or --undo. Waits until every task it had
/// runs on another node.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Drain {
    /// Its id, as `tidemill nodes` shows it
    node: String,
    /// Let it take tasks again
    #[arg(long)]
    undo: bool,
    /// Wait at most this long; 0s does not wait
    #[arg(long, default_value = "300s", value_name = "DURATION", value_parser = units::parse_duration, conflicts_with = "undo")]
    wait: Duration,
    /// Do not ask, even if no other node is there to take its tasks
    #[arg(long, short)]
    yes: bool,
}

/// Tasks by deployment and partition.
type Tasks = BTreeSet<(String, i32)>;

impl Drain {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let before = nodes(&channel).await?;
            let others = before.iter().any(|node| node.id != self.node && takes_tasks(node));
            // Of one that is not there the node says so.
            let is_there = before.iter().any(|node| node.id == self.node);
            if !self.undo && !others && is_there {
                let node = &self.node;
                confirm(
                    &format!("No other node takes tasks, so those of {node} will wait. Drain it?"),
                    self.yes,
                )?;
            }
            let had: Tasks = before.iter().filter(|node| node.id == self.node).flat_map(tasks).collect();
            let deadline = Instant::now() + self.wait;
            let answer = self.gave_away(&channel, deadline).await?;
            let elsewhere = !self.undo && others && !self.wait.is_zero();
            if elsewhere {
                self.taken_up(&channel, &had, deadline).await?;
            }
            let state = drain_name(answer.state());
            let line = match (self.undo, answer.state()) {
                (true, _) => format!("{} takes tasks again", self.node),
                (false, proto::DrainState::Drained) if elsewhere && !had.is_empty() => {
                    format!("{} is drained; its {} tasks run elsewhere", self.node, had.len())
                }
                (false, proto::DrainState::Drained) => format!("{} is drained", self.node),
                (false, _) => format!("{} is draining; {} tasks are left", self.node, answer.tasks),
            };
            let json = json!({ "node": self.node, "state": state, "tasks": answer.tasks, "had": had.len() });
            View::line(line, json).print(global.output)
        })
    }

    /// Asks the node, again and again, until it has no task any more.
    async fn gave_away(&self, channel: &Channel, deadline: Instant) -> Result<proto::DrainResponse, Failure> {
        let mut client = FleetClient::new(channel.clone());
        let mut left = None;
        loop {
            let request = proto::DrainRequest {
                node: self.node.clone(),
                undo: self.undo,
                local: false,
                author: client::author(),
            };
            let answer = client.drain(request).await?.into_inner();
            if answer.state() != proto::DrainState::Draining || self.wait.is_zero() {
                return Ok(answer);
            }
            if left.replace(answer.tasks) != Some(answer.tasks) {
                eprintln!("{}: {} tasks are left", self.node, answer.tasks);
            }
            if Instant::now() >= deadline {
                let waited = units::show_duration(self.wait);
                let message = format!("{} still has {} tasks after {waited}", self.node, answer.tasks);
                return Err(Failure::failed(format!("{message}; it goes on by itself")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the others run what the node had; by their heartbeats, so two seconds late.
    async fn taken_up(&self, channel: &Channel, had: &Tasks, deadline: Instant) -> Result<(), Failure> {
        let mut shown = None;
        loop {
            let nodes = nodes(channel).await?;
            let wanted = still_deployed(channel, had).await?;
            let others = nodes.iter().filter(|node| node.id != self.node && !is_silent(node));
            let run: Tasks = others.flat_map(running).collect();
            let missing = wanted.difference(&run).count();
            if missing == 0 {
                return Ok(());
            }
            if shown.replace(missing) != Some(missing) {
                eprintln!("{missing} of its {} tasks are not taken up yet", wanted.len());
            }
            if Instant::now() >= deadline {
                let waited = units::show_duration(self.wait);
                return Err(Failure::failed(format!(
                    "{missing} tasks of {} do not run elsewhere after {waited}; see `tidemill lag`",
                    self.node
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn nodes(channel: &Channel) -> Result<Vec<proto::Node>, Failure> {
    Ok(FleetClient::new(channel.clone()).nodes(proto::NodesRequest::default()).await?.into_inner().nodes)
}

/// Of these tasks, the ones that anybody is to run: nobody runs what was deleted or paused meanwhile.
async fn still_deployed(channel: &Channel, had: &Tasks) -> Result<Tasks, Failure> {
    let deployments = super::deployments::all(channel.clone()).await?;
    let runs = |name: &str| {
        deployments.iter().any(|found| found.name == name && found.state() != proto::DeploymentState::Paused)
    };
    Ok(had.iter().filter(|(name, _)| runs(name)).cloned().collect())
}

/// It is there, and not told otherwise.
pub fn takes_tasks(node: &proto::Node) -> bool {
    // A node of an older program does not say.
    let drains = matches!(node.drain(), proto::DrainState::Draining | proto::DrainState::Drained);
    !is_silent(node) && !drains
}

fn tasks(node: &proto::Node) -> impl Iterator<Item = (String, i32)> {
    node.tasks.iter().map(|task| (task.deployment.clone(), task.partition))
}

/// Halted ones wait for a person, wherever they are.
fn running(node: &proto::Node) -> impl Iterator<Item = (String, i32)> {
    let taken_up = |task: &&proto::NodeTask| {
        matches!(task.state(), proto::TaskState::Running | proto::TaskState::Halted)
    };
    node.tasks.iter().filter(taken_up).map(|task| (task.deployment.clone(), task.partition))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_silent_or_drains_takes_no_tasks() {
        let node = |age, drain: proto::DrainState| proto::Node {
            heartbeat_age_ms: age,
            drain: drain.into(),
            ..proto::Node::default()
        };
        assert!(takes_tasks(&node(100, proto::DrainState::Active)));
        assert!(takes_tasks(&node(100, proto::DrainState::Unspecified)), "an older program");
        assert!(!takes_tasks(&node(60_000, proto::DrainState::Active)));
        assert!(!takes_tasks(&node(100, proto::DrainState::Drained)));
    }
}
