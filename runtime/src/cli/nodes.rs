//! `tidemill nodes`: who shares the work.

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;
use tonic::transport::Channel;

use super::deployments::task_state_name;
use super::failure::Failure;
use super::output::View;
use super::table::{Cell, Table, Tone};
use super::watch::Watch;
use super::{Global, Outcome, client};

/// A heartbeat older than this is shown as a silent node.
const SILENT_MS: u64 = 10_000;

const EXAMPLES: &str = "\
Examples:
  tidemill nodes
  tidemill nodes --watch
  tidemill nodes -o json";

/// Show the nodes of the fleet and what they run
///
/// More nodes than partitions leave some idle: they take over when another stops.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Nodes {
    #[command(flatten)]
    watch: Watch,
}

impl Nodes {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            self.watch.show(global.output, || async { look(client::connect(global).await?).await }).await
        })
    }
}

async fn look(channel: Channel) -> Result<View, Failure> {
    let nodes = FleetClient::new(channel).nodes(proto::NodesRequest {}).await?.into_inner().nodes;
    Ok(view(&nodes))
}

fn view(nodes: &[proto::Node]) -> View {
    let mut table =
        Table::new(&["NODE", "STATE", "ADDRESS", "VERSION", ">HEARTBEAT", ">TASKS", "RUNS"], "no node");
    for node in nodes {
        let state = match (node.heartbeat_age_ms > SILENT_MS, node.tasks.is_empty()) {
            (true, _) => Cell::toned("silent", Tone::Bad),
            (false, true) => Cell::toned("idle", Tone::Quiet),
            (false, false) => Cell::toned("active", Tone::Good),
        };
        table.row([
            node.id.clone().into(),
            state,
            node.address.clone().into(),
            node.version.clone().into(),
            format!("{:.1}s", node.heartbeat_age_ms as f64 / 1000.0).into(),
            node.tasks.len().to_string().into(),
            runs(&node.tasks).into(),
        ]);
    }
    let nodes: Vec<Value> = nodes.iter().map(to_json).collect();
    View::table(table, json!({ "nodes": nodes }))
}

/// `count: 0 1 2  delays: 3`.
fn runs(tasks: &[proto::NodeTask]) -> String {
    let mut text: Vec<String> = Vec::new();
    let mut current = "";
    for task in tasks {
        if task.deployment != current {
            current = &task.deployment;
            text.push(format!("{current}:"));
        }
        text.push(task.partition.to_string());
    }
    text.join(" ")
}

fn to_json(node: &proto::Node) -> Value {
    let tasks: Vec<Value> = node
        .tasks
        .iter()
        .map(|task| {
            json!({
                "deployment": task.deployment, "partition": task.partition, "worker": task.worker,
                "state": task_state_name(task.state()),
            })
        })
        .collect();
    json!({
        "id": node.id, "address": node.address, "version": node.version,
        "heartbeat_age_ms": node.heartbeat_age_ms, "idle": node.tasks.is_empty(), "tasks": tasks,
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
        };
        let task = proto::NodeTask { deployment: "count".into(), partition: 2, ..proto::NodeTask::default() };
        let view = view(&[node("a", 500, vec![task]), node("b", 500, vec![]), node("c", 60_000, vec![])]);
        let text = view.render(Some(80), false);
        for (id, state) in [("a", "active"), ("b", "idle"), ("c", "silent")] {
            assert!(text.lines().any(|line| line.starts_with(id) && line.contains(state)), "{id}: {text}");
        }
        assert!(text.contains("count: 2"));
        assert_eq!(view.json["nodes"][1]["idle"], true);
    }
}
