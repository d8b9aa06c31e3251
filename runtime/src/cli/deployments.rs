//! `tidemill deployments`: what is deployed and how it is.

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::failure::Failure;
use super::output::{Block, View};
use super::table::{Cell, Table, Tone, grouped, printable};
use super::watch::Watch;
use super::{Global, Outcome, client, positions};
use crate::config::deployment::{DeploymentSpec, Guarantee};
use crate::config::units;

const EXAMPLES: &str = "\
Examples:
  tidemill deployments
  tidemill deployments word-count
  tidemill deployments --watch
  tidemill deployments -o json";

/// Show what is deployed, or one deployment with its tasks
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Deployments {
    /// One deployment, with its tasks; its document is in what -o json prints
    name: Option<String>,
    #[command(flatten)]
    watch: Watch,
}

impl Deployments {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            self.watch
                .show(global.output, || async {
                    let channel = client::connect(global).await?;
                    match &self.name {
                        Some(name) => Ok(detail(&get(channel, name).await?)),
                        None => list(channel).await,
                    }
                })
                .await
        })
    }
}

pub async fn get(channel: Channel, name: &str) -> Result<proto::Deployment, Failure> {
    let mut client = DeploymentsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let request = proto::GetDeploymentRequest { name: name.to_owned() };
    Ok(client.get(request).await?.into_inner().deployment.unwrap_or_default())
}

/// Every deployment, as the asked node sees it.
pub async fn all(channel: Channel) -> Result<Vec<proto::Deployment>, Failure> {
    let mut client = DeploymentsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    Ok(client.list(proto::ListDeploymentsRequest {}).await?.into_inner().deployments)
}

async fn list(channel: Channel) -> Result<View, Failure> {
    let deployments = all(channel).await?;
    let mut table = Table::new(
        &["NAME", "STATE", ">REV", ">TASKS", "TIER", "OWNER", "INPUTS", "OUTPUTS", "MODULE", "REASON"],
        "nothing is deployed: `tidemill apply -f FILE` deploys something",
    );
    for deployment in &deployments {
        let ownership = deployment.ownership.clone().unwrap_or_default();
        let running =
            deployment.tasks.iter().filter(|task| task.state() == proto::TaskState::Running).count();
        table.row([
            deployment.name.clone().into(),
            state_cell(deployment.state(), deployment),
            deployment.revision.to_string().into(),
            format!("{running}/{}", deployment.tasks.len()).into(),
            ownership.tier.into(),
            ownership.owner.into(),
            deployment.inputs.join(",").into(),
            deployment.outputs.join(",").into(),
            module_short(&deployment.module).into(),
            reason(deployment).into(),
        ]);
    }
    let deployments: Vec<Value> = deployments.iter().map(to_json).collect();
    Ok(View::table(table, json!({ "deployments": deployments })))
}

fn detail(deployment: &proto::Deployment) -> View {
    let mut blocks: Vec<Block> = Vec::new();
    let mut say = |name: &str, value: String| {
        if !value.is_empty() {
            blocks.push(Block::Line(format!("{name:<10} {}", printable(&value))));
        }
    };
    say("name", deployment.name.clone());
    say("state", state_name(deployment.state()).to_owned());
    say("reason", deployment.reason.clone());
    say("rollback", deployment.rolled_back.clone());
    say("version", deployment.version.to_string());
    say("revision", deployment.revision.to_string());
    say("module", deployment.module.clone());
    say("deployed", units::show_time_ms(deployment.deployed_at_ms));
    say("author", deployment.author.clone());
    let ownership = deployment.ownership.clone().unwrap_or_default();
    say("owner", ownership.owner);
    say("oncall", ownership.oncall);
    say("tier", ownership.tier);
    say("slo", ownership.slo);
    say("group", deployment.group.clone());
    say("inputs", deployment.inputs.join(", "));
    say("outputs", deployment.outputs.join(", "));
    say("guarantee", guarantee(&deployment.document));
    say("stores", stores(&deployment.stores));
    blocks.push(Block::Line(String::new()));
    let mut tasks = Table::new(
        &[">TASK", "STATE", "NODE", ">WORKER", "POSITION", ">RESTORE", ">SKIPPED", "REASON"],
        "no task of it is on this node",
    );
    for task in &deployment.tasks {
        tasks.row([
            task.partition.to_string().into(),
            task_state_cell(task.state()),
            task.node.clone().into(),
            task.worker.to_string().into(),
            positions::show_all(&task.positions).into(),
            grouped(task.restore_remaining).into(),
            grouped(task.skipped).into(),
            task.reason.clone().into(),
        ]);
    }
    blocks.push(Block::Table(tasks));
    View { blocks, json: to_json(deployment) }
}

pub fn to_json(deployment: &proto::Deployment) -> Value {
    let tasks: Vec<Value> = deployment
        .tasks
        .iter()
        .map(|task| {
            json!({
                "partition": task.partition, "state": task_state_name(task.state()), "reason": task.reason,
                "node": task.node, "worker": task.worker, "restore_remaining": task.restore_remaining,
                "positions": positions::to_json(&task.positions), "skipped": task.skipped,
            })
        })
        .collect();
    json!({
        "name": deployment.name, "state": state_name(deployment.state()), "reason": deployment.reason,
        "rolled_back": deployment.rolled_back, "revision": deployment.revision, "version": deployment.version, "author": deployment.author, "module": deployment.module, "document": deployment.document,
        "deployed_at": units::show_time_ms(deployment.deployed_at_ms), "group": deployment.group,
        "inputs": deployment.inputs, "outputs": deployment.outputs, "stores": stores_json(&deployment.stores), "tasks": tasks,
        "guarantee": guarantee(&deployment.document),
        "ownership": ownership_json(deployment.ownership.as_ref()),
    })
}

/// How often effects are seen, outside of Kafka never exactly once. Empty of a document that only a newer
/// program can read.
fn guarantee(document: &str) -> String {
    let Ok(spec) = DeploymentSpec::parse(document) else { return String::new() };
    let topics = match spec.guarantee {
        Guarantee::ExactlyOnce => "exactly once",
        Guarantee::AtLeastOnce => "at least once",
    };
    let outside: Vec<&str> = spec.destinations().map(|(name, _)| name.as_str()).collect();
    match outside.as_slice() {
        [] => topics.to_owned(),
        some => format!("{topics}; {} at least once, idempotent by tidemill-id", some.join(", ")),
    }
}

/// Why it is halted, or else what became of a version that failed its trial.
fn reason(deployment: &proto::Deployment) -> String {
    match deployment.reason.as_str() {
        "" => deployment.rolled_back.clone(),
        reason => reason.to_owned(),
    }
}

/// `counts (json, schema 2, holds 1 2)`: the schema that is written and, if there are others, what may lie
/// there.
pub fn stores(stores: &[proto::StoreInfo]) -> String {
    let one = |store: &proto::StoreInfo| {
        let others = store.holds.iter().any(|&held| held != store.schema);
        let holds: Vec<String> = store.holds.iter().map(u32::to_string).collect();
        let holds = if others { format!(", holds {}", holds.join(" ")) } else { String::new() };
        format!("{} ({}, schema {}{holds})", store.name, store.r#type, store.schema)
    };
    stores.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Null where nobody says.
pub fn ownership_json(ownership: Option<&proto::Ownership>) -> Value {
    let text = |text: fn(&proto::Ownership) -> &String| {
        ownership.map(text).filter(|text| !text.is_empty()).map_or(Value::Null, |text| json!(text))
    };
    json!({
        "owner": text(|who| &who.owner), "oncall": text(|who| &who.oncall), "tier": text(|who| &who.tier),
        "slo": text(|who| &who.slo),
    })
}

pub fn stores_json(stores: &[proto::StoreInfo]) -> Vec<Value> {
    let one = |store: &proto::StoreInfo| {
        json!({
            "name": store.name, "type": store.r#type, "ordered": store.ordered, "schema": store.schema,
            "reads": store.reads, "holds": store.holds,
        })
    };
    stores.iter().map(one).collect()
}

pub fn state_name(state: proto::DeploymentState) -> &'static str {
    match state {
        proto::DeploymentState::Unspecified => "unknown",
        proto::DeploymentState::Starting => "starting",
        proto::DeploymentState::Running => "running",
        proto::DeploymentState::Halted => "halted",
        proto::DeploymentState::Idle => "idle",
        proto::DeploymentState::Paused => "paused",
    }
}

pub fn state_cell(state: proto::DeploymentState, deployment: &proto::Deployment) -> Cell {
    let restoring = deployment.tasks.iter().any(|task| task.state() == proto::TaskState::Restoring);
    match state {
        proto::DeploymentState::Running if restoring => Cell::toned("running", Tone::Warning),
        proto::DeploymentState::Running => Cell::toned("running", Tone::Good),
        proto::DeploymentState::Halted => Cell::toned("halted", Tone::Bad),
        proto::DeploymentState::Starting | proto::DeploymentState::Paused => {
            Cell::toned(state_name(state), Tone::Warning)
        }
        other => Cell::toned(state_name(other), Tone::Quiet),
    }
}

pub fn task_state_name(state: proto::TaskState) -> &'static str {
    match state {
        proto::TaskState::Unspecified => "unknown",
        proto::TaskState::Restoring => "restoring",
        proto::TaskState::Running => "running",
        proto::TaskState::Halted => "halted",
    }
}

pub fn task_state_cell(state: proto::TaskState) -> Cell {
    let tone = match state {
        proto::TaskState::Running => Tone::Good,
        proto::TaskState::Halted => Tone::Bad,
        proto::TaskState::Restoring => Tone::Warning,
        proto::TaskState::Unspecified => Tone::Quiet,
    };
    Cell::toned(task_state_name(state), tone)
}

/// Enough of a digest to tell two modules apart by eye.
pub fn module_short(module: &str) -> String {
    module.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_halt_is_one_line_whatever_the_handler_says() {
        let reason = "record in/0 at offset 3 failed: \x1b[2J\nstate      running".to_owned();
        let shown = detail(&proto::Deployment { reason, ..proto::Deployment::default() }).render(None, false);
        let line = "reason     record in/0 at offset 3 failed: \\u{1b}[2J\\nstate      running\n";
        assert!(shown.contains(line), "{shown}");
    }

    #[test]
    fn effects_outside_of_kafka_are_never_called_exactly_once() {
        let of = |more: &str| {
            let document = format!("name: a\nmodule: a.wasm\ninputs: {{ in: {{ topic: in }} }}\n{more}");
            detail(&proto::Deployment { document, ..proto::Deployment::default() }).render(None, false)
        };
        let hook = "outputs: { out: { topic: out }, hook: { http: { url: 'http://h/' } } }\n";
        for (document, expected) in [
            (String::new(), "guarantee  exactly once\n"),
            (hook.to_owned(), "guarantee  exactly once; hook at least once, idempotent by tidemill-id\n"),
            (format!("{hook}guarantee: at_least_once\n"), "guarantee  at least once; hook at least once, "),
        ] {
            let shown = of(&document);
            assert!(shown.contains(expected), "{expected} is not in\n{shown}");
        }
        assert!(!of("from: the future\n").contains("guarantee"));
    }
}
