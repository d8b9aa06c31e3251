//! `tidemill nodes`: who shares the work, and how far everybody is with it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::deployments::{task_state_cell, task_state_name};
use super::failure::Failure;
use super::output::{Block, View};
use super::table::{Cell, Table, Tone, grouped};
use super::watch::Watch;
use super::{Global, Outcome, client, positions};

/// A heartbeat older than this is shown as a silent node.
const SILENT_MS: u64 = 10_000;

const EXAMPLES: &str = "\
Examples:
  tidemill nodes
  tidemill nodes --deployment word-count
  tidemill nodes --watch
  tidemill nodes -o json";

/// Show the nodes of the fleet, their workers' tasks and the tasks' positions
///
/// More nodes than partitions leave some idle: they take over when another stops. A position is the next
/// record to read, as committed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Nodes {
    /// Only the tasks of this deployment
    #[arg(long, value_name = "NAME")]
    deployment: Option<String>,
    #[command(flatten)]
    watch: Watch,
}

impl Nodes {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let name = self.deployment.as_deref().unwrap_or_default();
            self.watch
                .show(global.output, || async { look(client::connect(global).await?, name).await })
                .await
        })
    }
}

async fn look(channel: Channel, deployment: &str) -> Result<View, Failure> {
    let mut client = FleetClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let request = proto::NodesRequest { deployment: deployment.to_owned(), local: false };
    Ok(view(&client.nodes(request).await?.into_inner().nodes))
}

fn view(nodes: &[proto::Node]) -> View {
    let mut table = Table::new(
        &["NODE", "STATE", "ADDRESS", "VERSION", ">HEARTBEAT", ">WORKERS", ">TASKS", "NOTE"],
        "no node",
    );
    let mut tasks = Table::new(
        &["NODE", "DEPLOYMENT", ">PART", ">WORKER", "STATE", "POSITION", "NOTE"],
        "no task runs anywhere",
    );
    for node in nodes {
        let is_silent = is_silent(node);
        let state = match (is_silent, node.drain(), node.tasks.is_empty()) {
            (true, ..) => Cell::toned("silent", Tone::Bad),
            (_, drain @ (proto::DrainState::Draining | proto::DrainState::Drained), _) => {
                Cell::toned(drain_name(drain), Tone::Warning)
            }
            (.., true) => Cell::toned("idle", Tone::Quiet),
            (.., false) => Cell::toned("active", Tone::Good),
        };
        let note = if node.answered || is_silent { "" } else { "does not answer" };
        table.row([
            node.id.clone().into(),
            state,
            node.address.clone().into(),
            node.version.clone().into(),
            format!("{:.1}s", node.heartbeat_age_ms as f64 / 1000.0).into(),
            workers(&node.tasks).to_string().into(),
            node.tasks.len().to_string().into(),
            note.into(),
        ]);
        for task in &node.tasks {
            tasks.row([
                node.id.clone().into(),
                task.deployment.clone().into(),
                task.partition.to_string().into(),
                task.worker.to_string().into(),
                task_state_cell(task.state()),
                positions::show_all(&task.positions).into(),
                note_on(task).into(),
            ]);
        }
    }
    let blocks = vec![Block::Table(table), Block::Line(String::new()), Block::Table(tasks)];
    let nodes: Vec<Value> = nodes.iter().map(to_json).collect();
    View { blocks, json: json!({ "nodes": nodes }) }
}

pub fn is_silent(node: &proto::Node) -> bool {
    node.heartbeat_age_ms > SILENT_MS
}

pub fn drain_name(drain: proto::DrainState) -> &'static str {
    match drain {
        proto::DrainState::Unspecified | proto::DrainState::Active => "active",
        proto::DrainState::Draining => "draining",
        proto::DrainState::Drained => "drained",
    }
}

/// Workers that have tasks.
fn workers(tasks: &[proto::NodeTask]) -> usize {
    let workers: BTreeSet<_> = tasks.iter().map(|task| (&task.deployment, task.worker)).collect();
    workers.len()
}

fn note_on(task: &proto::NodeTask) -> String {
    match (task.state(), task.parked_records) {
        (proto::TaskState::Restoring, _) => format!("{} records to go", grouped(task.restore_remaining)),
        _ if !task.reason.is_empty() => task.reason.clone(),
        (_, 0) => String::new(),
        (_, parked) => format!("{} records parked", grouped(parked)),
    }
}

fn to_json(node: &proto::Node) -> Value {
    let tasks: Vec<Value> = node
        .tasks
        .iter()
        .map(|task| {
            json!({
                "deployment": task.deployment, "partition": task.partition, "worker": task.worker,
                "state": task_state_name(task.state()), "reason": task.reason, "revision": task.revision,
                "positions": positions::to_json(&task.positions),
                "restore_remaining": task.restore_remaining, "parked_records": task.parked_records,
            })
        })
        .collect();
    json!({
        "id": node.id, "address": node.address, "version": node.version, "answered": node.answered,
        "heartbeat_age_ms": node.heartbeat_age_ms, "drain": drain_name(node.drain()), "idle": node.tasks.is_empty(), "tasks": tasks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_tasks_reports_idle_and_a_quiet_one_silent() {
        let node = |id: &str, age, tasks| proto::Node {
            id: id.into(),
            address: "127.0.0.1:7600".into(),
            version: "0.1.0".into(),
            heartbeat_age_ms: age,
            tasks,
            answered: age < 1_000,
            ..proto::Node::default()
        };
        let at = proto::InputPosition { topic: "words".into(), partition: 2, offset: 12 };
        let task = proto::NodeTask {
            deployment: "count".into(),
            partition: 2,
            positions: vec![at],
            parked_records: 3,
            ..proto::NodeTask::default()
        };
        let view = view(&[node("a", 500, vec![task]), node("b", 500, vec![]), node("c", 60_000, vec![])]);
        let text = view.render(Some(80), false);
        for (id, state) in [("a", "active"), ("b", "idle"), ("c", "silent")] {
            assert!(text.lines().any(|line| line.starts_with(id) && line.contains(state)), "{id}: {text}");
        }
        assert!(text.contains("words/2@12") && text.contains("3 records parked"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(view.json["nodes"][1]["idle"], true);
    }
}
