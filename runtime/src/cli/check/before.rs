//! The rows before a deploy: four of each deployment's document, one of each topic's, four of the fleet.

use std::path::Path;

use tidemill_proto::v1 as proto;
use tonic::transport::Channel;

use super::{cluster, metrics, nodes, row};
use crate::cli::doctor::{Check, Verdict};
use crate::cli::drain::takes_tasks;
use crate::cli::failure::{Failure, Kind};
use crate::cli::topic_documents::{Topics, planned};
use crate::cli::upload::{Meant, Upload, Work, send};
use crate::cli::{Global, apply, client, deployments, plan};
use crate::config::deployment::DeploymentSpec;
use crate::config::failures::{FailureKind, Policy, Then};
use crate::config::units;

/// The environment of a node that is not told another.
const LOCAL: &str = "local";

pub async fn look(global: &Global, file: &Path, http: Option<&str>) -> Result<Vec<Check>, Failure> {
    if let Some(http) = http.filter(|http| !http.contains(':') || http.contains("://")) {
        return Err(Failure::usage(format!(
            "--http {http}: write HOST:PORT, for example 127.0.0.1:7601; with --ca it is asked by https"
        )));
    }
    let channel = client::connect(global).await?;
    let nodes = nodes(&channel, false).await?;
    let mut checks = Vec::new();
    match apply::read(file) {
        Ok(Work { topics, uploads }) => {
            checks.extend(described(&channel, &topics).await);
            for upload in uploads {
                checks.extend(document(&channel, upload, &topics, nodes.len()).await);
            }
        }
        // What is wrong with a document or a module before a node has seen it. Which one it is, is in the problem.
        Err(failure) if failure.kind == Kind::Refused => {
            checks.extend(refused(&file.display().to_string(), &failure.message));
        }
        Err(failure) => return Err(failure),
    }
    checks.push(cluster(&nodes));
    checks.push(health(&deployments::all(channel.clone()).await?));
    checks.push(metrics::alerts(global, http).await);
    checks.push(shutdown(&nodes));
    Ok(checks)
}

/// What it takes for each topic to be as its document says. More partitions are for `apply` to allow.
async fn described(channel: &Channel, topics: &Topics) -> Vec<Check> {
    let answers = match topics.send(channel, true).await {
        Ok(answers) => answers,
        Err(failure) => return problems("topics", &failure.message),
    };
    let detail = |topic: &proto::AppliedTopic| {
        let changes: Vec<String> = topic.changes.iter().map(plan::line).collect();
        format!("{} {}", planned(topic.result()), changes.join(", ")).trim_end().to_owned()
    };
    answers.iter().map(|topic| row(format!("topic {}", topic.name), Verdict::Ok, detail(topic))).collect()
}

/// What a document needs: environment, topics, dead letters, limits.
async fn document(channel: &Channel, upload: Upload, topics: &Topics, nodes: usize) -> Vec<Check> {
    let name = upload.name.clone();
    let spec = DeploymentSpec::parse(&upload.document);
    let meant = Meant {
        dry_run: true,
        expected_revision: None,
        drop_stores: Vec::new(),
        topics: topics.documents.clone(),
    };
    let deployment = match send(channel, upload, meant).await {
        Ok(answer) => answer.deployment.unwrap_or_default(),
        Err(failure) => return refused(&name, &failure.message),
    };
    let topics = format!("{} -> {}", deployment.inputs.join(", "), deployment.outputs.join(", "));
    let mut checks = vec![
        environment(&name, &deployment.group, nodes),
        row(format!("topics {name}"), Verdict::Ok, topics),
    ];
    match &spec {
        Ok(spec) => checks.extend([dead_letters(spec), limits(spec)]),
        Err(_) => checks.extend(["dead letters", "limits"].map(|what| {
            let detail = "not known: only a newer program than this one reads the document";
            row(format!("{what} {name}"), Verdict::Warning, detail)
        })),
    }
    checks
}

/// The rows of a document that is refused: its problems, and what nobody can say because of them.
fn refused(name: &str, message: &str) -> Vec<Check> {
    let mut checks = problems(name, message);
    checks
        .extend(["environment", "topics", "dead letters", "limits"].map(|what| {
            row(format!("{what} {name}"), Verdict::Failed, "not known: the document is refused")
        }));
    checks
}

/// Every problem of document, module and topics, a row each; several come below a line that counts them.
fn problems(name: &str, message: &str) -> Vec<Check> {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let behind_the_count = if lines.len() > 1 { &lines[1..] } else { &lines[..] };
    let failed = |line: &&str| row(format!("document {name}"), Verdict::Failed, *line);
    behind_the_count.iter().map(failed).collect()
}

/// What the node is configured with, as its groups say it: {environment}.{group}.{deployment}.
fn environment(name: &str, group: &str, nodes: usize) -> Check {
    let of_node = group.strip_suffix(name).and_then(|rest| rest.strip_suffix('.')).unwrap_or(group);
    // Both may have points of their own; then it takes a person to tell one from the other.
    let shown = match of_node.split_once('.') {
        Some((environment, of_group)) if !of_group.contains('.') => {
            format!("environment {environment}, group {of_group}")
        }
        _ => format!("environment and group {of_node}"),
    };
    let detail = format!("{shown}: the consumer group is {group}");
    let is_default = of_node.split('.').next() == Some(LOCAL);
    match is_default && nodes > 1 {
        false => row(format!("environment {name}"), Verdict::Ok, detail),
        true => row(
            format!("environment {name}"),
            Verdict::Warning,
            format!("{detail}; that is the default, which fleets of others may have too: set `environment`"),
        ),
    }
}

fn limits(spec: &DeploymentSpec) -> Check {
    let limits = &spec.limits;
    let (memory, time) = (units::show_bytes(limits.memory_bytes), units::show_duration(limits.batch_time));
    let detail =
        format!("{memory} a task, {time} of CPU a record, {} emissions a record", limits.emit_records);
    row(format!("limits {}", spec.name), Verdict::Ok, detail)
}

fn dead_letters(spec: &DeploymentSpec) -> Check {
    let kinds = |is_meant: &dyn Fn(&Policy) -> bool| {
        let kinds = FailureKind::ALL.into_iter().filter(|kind| is_meant(spec.failures.policy(*kind)));
        kinds.map(FailureKind::as_str).collect::<Vec<_>>().join(", ")
    };
    let then = |wanted| kinds(&|policy| policy.then == wanted);
    let sampled = kinds(&Policy::is_sampled);
    let name = format!("dead letters {}", spec.name);
    match (then(Then::Skip).as_str(), then(Then::DeadLetter).as_str()) {
        ("", _) if !sampled.is_empty() => row(
            name,
            Verdict::Warning,
            format!("most records that fail as {sampled} are skipped for good (sample)"),
        ),
        ("", "") => {
            row(name, Verdict::Warning, "none: a record that keeps failing halts its task, or stays parked")
        }
        ("", kinds) => row(name, Verdict::Ok, format!("for {kinds}")),
        (kinds, _) => {
            row(name, Verdict::Warning, format!("records that fail as {kinds} are skipped for good"))
        }
    }
}

fn health(deployments: &[proto::Deployment]) -> Check {
    let halted: Vec<&str> = deployments
        .iter()
        .filter(|deployment| deployment.state() == proto::DeploymentState::Halted)
        .map(|deployment| deployment.name.as_str())
        .collect();
    match halted.as_slice() {
        [] => row("health", Verdict::Ok, format!("{} deployments, none is halted", deployments.len())),
        halted => {
            row("health", Verdict::Warning, format!("halted before this deploy: {}", halted.join(", ")))
        }
    }
}

fn shutdown(nodes: &[proto::Node]) -> Check {
    match nodes.iter().filter(|node| takes_tasks(node)).count() {
        0 | 1 => {
            row("shutdown", Verdict::Warning, "one node takes tasks: while it is stopped, nothing is handled")
        }
        able => row(
            "shutdown",
            Verdict::Ok,
            format!("{able} nodes take tasks: one that stops gives its own to the others"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_document_has_a_row_and_so_has_what_nobody_can_say_because_of_it() {
        let found =
            refused("wc", "wc: 2 problems\n  inputs.in: topic a does not exist\n  outputs.out: nor b");
        let details: Vec<&str> = found
            .iter()
            .filter(|check| check.name == "document wc")
            .map(|check| check.detail.as_str())
            .collect();
        assert_eq!(details, ["inputs.in: topic a does not exist", "outputs.out: nor b"]);
        let others: Vec<&str> = found[2..].iter().map(|check| check.name.as_str()).collect();
        assert_eq!(others, ["environment wc", "topics wc", "dead letters wc", "limits wc"]);
        assert!(found.iter().all(|check| check.verdict == Verdict::Failed));
        assert_eq!(problems("wc", "module: too large")[0].detail, "module: too large");
    }

    #[test]
    fn the_environment_is_told_from_the_group_and_the_default_is_noted_in_a_fleet() {
        let of = |group: &str, nodes| {
            let check = environment("wc", group, nodes);
            (check.verdict, check.detail)
        };
        let (verdict, detail) = of("prod.billing.wc", 3);
        assert_eq!(verdict, Verdict::Ok);
        assert_eq!(detail, "environment prod, group billing: the consumer group is prod.billing.wc");
        let (_, detail) = of("eu.prod.billing.wc", 3);
        assert!(detail.starts_with("environment and group eu.prod.billing:"), "{detail}");
        assert_eq!(of("local.default.wc", 1).0, Verdict::Ok, "somebody tries things out");
        assert_eq!(of("local.default.wc", 2).0, Verdict::Warning);
    }

    #[test]
    fn a_document_says_what_becomes_of_failed_records() {
        let of = |failures: &str| {
            let base = "name: a\nmodule: a.wasm\ninputs: { in: { topic: in } }\n";
            dead_letters(&DeploymentSpec::parse(&format!("{base}failures: {failures}\n")).expect("valid"))
        };
        assert_eq!(of("halt").verdict, Verdict::Warning);
        assert_eq!(of("{ then: dead_letter }").verdict, Verdict::Ok);
        let some = of("{ then: dead_letter, decode: { then: skip } }");
        assert_eq!(
            (some.verdict, some.detail.as_str()),
            (Verdict::Warning, "records that fail as decode, schema are skipped for good")
        );
    }
}
