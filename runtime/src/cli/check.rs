//! `tidemill check`: the checklist before a deploy, and the one after it.
//!
//! Before: what a file of documents needs is there, and whoever is to run it is well. After: every task runs
//! the version, keeps up, and fails nothing. A row is `ok`, a `note` that somebody should read, or `failed`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tidemill_proto::v1::fleet_client::FleetClient;
use tidemill_proto::v1::lag_client::LagClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::doctor::{Check, Verdict, report};
use super::drain::takes_tasks;
use super::failure::Failure;
use super::nodes::is_silent;
use super::table::grouped;
use super::upload::{Meant, Upload, send};
use super::{Global, Outcome, apply, client, deployments};
use crate::config::deployment::DeploymentSpec;
use crate::config::failures::{FailureKind, Policy, Then};
use crate::config::units;

/// A lag older than this is worth a word.
const LAG_GUIDE_S: f64 = 30.0;

const EXAMPLES: &str = "\
Examples:
  tidemill check -f pipeline.yaml
  tidemill check word-count --for 15m
  tidemill check --wait 300s --poll 10s";

/// Go through the checklist before a deploy, or after one
///
/// With a file: environment, cluster, topics, dead letters, health, alerts, limits and shutdown, and nothing is
/// changed. With names, or for every deployment: tasks, state, rollout, failures, lag and nodes. A note is
/// for a person; exit code 1 if a row failed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Checklist {
    /// Deployments that run; all if none is named
    names: Vec<String>,
    /// File of documents that are about to be deployed
    #[arg(long, short, value_name = "FILE", conflicts_with = "names")]
    file: Option<PathBuf>,
    /// Look again until nothing fails, at most this long
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, conflicts_with_all = ["file", "stay"])]
    wait: Option<Duration>,
    /// Look again for this long, and end at the first row that fails
    #[arg(long = "for", id = "stay", value_name = "DURATION", value_parser = units::parse_duration, conflicts_with = "file")]
    stay: Option<Duration>,
    /// Time between two looks
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, default_value = "10s")]
    poll: Duration,
}

impl Checklist {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let checks = match &self.file {
                Some(file) => before(&client::connect(global).await?, file).await?,
                None => self.after(global).await?,
            };
            report(&checks).print(global.output)?;
            match failed(&checks) {
                None => Ok(()),
                Some(check) => Err(Failure::failed(format!("{}: {}", check.name, check.detail))),
            }
        })
    }

    /// Looks until the time is over, or until what is waited for has come.
    async fn after(&self, global: &Global) -> Result<Vec<Check>, Failure> {
        let began = Instant::now();
        loop {
            let looked = match client::connect(global).await {
                Ok(channel) => after(&channel, &self.names).await,
                Err(failure) => Err(failure),
            };
            let is_good = looked.as_ref().is_ok_and(|checks| failed(checks).is_none());
            let goes_on = match (self.wait, self.stay) {
                (Some(wait), _) => !is_good && began.elapsed() < wait,
                (None, Some(stay)) => is_good && began.elapsed() < stay,
                (None, None) => false,
            };
            if !goes_on {
                return looked;
            }
            match &looked {
                Ok(checks) => {
                    let note = failed(checks).map(|check| format!("{}: {}", check.name, check.detail));
                    eprintln!("{}", note.unwrap_or_else(|| "all is well".to_owned()));
                }
                Err(failure) => eprintln!("{failure}"),
            }
            tokio::time::sleep(self.poll).await;
        }
    }
}

fn failed(checks: &[Check]) -> Option<&Check> {
    checks.iter().find(|check| check.verdict == Verdict::Failed)
}

fn row(name: impl Into<String>, verdict: Verdict, detail: impl Into<String>) -> Check {
    Check::new(name, verdict, detail)
}

/// The eight rows before a deploy.
async fn before(channel: &Channel, file: &Path) -> Result<Vec<Check>, Failure> {
    let uploads = apply::read(file)?;
    let nodes = nodes(channel).await?;
    let mut checks = Vec::new();
    for upload in uploads {
        checks.extend(document(channel, upload).await);
    }
    checks.push(cluster(&nodes));
    checks.push(health(&deployments::all(channel.clone()).await?));
    checks.push(row(
        "alerts",
        Verdict::Warning,
        "not seen from here: alert on tidemill_task_state{state=\"halted\"}, tidemill_lag_seconds, tidemill_dead_letters_total \
         and tidemill_rollbacks_total",
    ));
    let able = nodes.iter().filter(|node| takes_tasks(node)).count();
    let shutdown = match able {
        0 | 1 => {
            (Verdict::Warning, "one node takes tasks: while it is stopped, nothing is handled".to_owned())
        }
        able => (Verdict::Ok, format!("{able} nodes take tasks: one that stops gives its own to the others")),
    };
    checks.push(row("shutdown", shutdown.0, shutdown.1));
    Ok(checks)
}

/// What a document needs: environment, topics, dead letters, limits.
async fn document(channel: &Channel, upload: Upload) -> Vec<Check> {
    let name = upload.name.clone();
    let spec = DeploymentSpec::parse(&upload.document);
    let meant = Meant { dry_run: true, expected_revision: None, drop_stores: Vec::new() };
    let deployment = match send(channel, upload, meant).await {
        Ok(answer) => answer.deployment.unwrap_or_default(),
        Err(failure) => return problems(&name, &failure.message),
    };
    let topics = format!("{} -> {}", deployment.inputs.join(", "), deployment.outputs.join(", "));
    let mut checks = vec![
        row(format!("environment {name}"), Verdict::Ok, format!("its group is {}", deployment.group)),
        row(format!("topics {name}"), Verdict::Ok, topics),
    ];
    if let Ok(spec) = spec {
        checks.push(dead_letters(&spec));
        let limits = &spec.limits;
        let (memory, time) =
            (units::show_bytes(limits.memory_bytes), units::show_duration(limits.batch_time));
        let detail =
            format!("{memory} a task, {time} of CPU a record, {} emissions a record", limits.emit_records);
        checks.push(row(format!("limits {name}"), Verdict::Ok, detail));
    }
    checks
}

/// Every problem of document, module and topics, a row each; several come below a line that counts them.
fn problems(name: &str, message: &str) -> Vec<Check> {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let behind_the_count = if lines.len() > 1 { &lines[1..] } else { &lines[..] };
    let failed = |line: &&str| row(format!("document {name}"), Verdict::Failed, *line);
    behind_the_count.iter().map(failed).collect()
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

fn cluster(nodes: &[proto::Node]) -> Check {
    let silent: Vec<&str> =
        nodes.iter().filter(|node| is_silent(node)).map(|node| node.id.as_str()).collect();
    let alive = nodes.len() - silent.len();
    match silent.as_slice() {
        [] => row("cluster", Verdict::Ok, format!("Kafka answers, and so do all nodes ({alive})")),
        silent => {
            row("cluster", Verdict::Warning, format!("{alive} nodes answer, {} do not", silent.join(", ")))
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

/// The six rows after a deploy, of each deployment.
async fn after(channel: &Channel, names: &[String]) -> Result<Vec<Check>, Failure> {
    let names = match names {
        [] => deployments::all(channel.clone()).await?.into_iter().map(|found| found.name).collect(),
        names => names.to_vec(),
    };
    let mut client = DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut checks = Vec::new();
    for name in names {
        let deployment = deployments::get(channel.clone(), &name).await?;
        if deployment.state() == proto::DeploymentState::Paused {
            checks.push(row(format!("state {name}"), Verdict::Warning, "paused"));
            continue;
        }
        let rollout = client.rollout(proto::RolloutRequest { name: name.clone() }).await?.into_inner();
        let request = proto::GetLagRequest { deployment: name.clone() };
        let lag = LagClient::new(channel.clone()).get(request).await?.into_inner().partitions;
        checks.push(tasks(&name, &rollout));
        checks.push(state(&deployment));
        checks.push(on_trial(&deployment, &rollout));
        checks.push(failures(&deployment));
        checks.push(behind(&name, &lag));
    }
    checks.push(cluster(&nodes(channel).await?));
    Ok(checks)
}

async fn nodes(channel: &Channel) -> Result<Vec<proto::Node>, Failure> {
    Ok(FleetClient::new(channel.clone()).nodes(proto::NodesRequest::default()).await?.into_inner().nodes)
}

fn tasks(name: &str, rollout: &proto::RolloutResponse) -> Check {
    let runs = |task: &&proto::TaskRollout| {
        task.revision >= rollout.revision && task.state() == proto::TaskState::Running
    };
    let (run, all) = (rollout.tasks.iter().filter(runs).count(), rollout.tasks.len());
    let verdict = if run == all { Verdict::Ok } else { Verdict::Failed };
    row(format!("tasks {name}"), verdict, format!("{run} of {all} run version {}", rollout.version))
}

fn state(deployment: &proto::Deployment) -> Check {
    let name = format!("state {}", deployment.name);
    match deployment.state() {
        proto::DeploymentState::Halted => row(name, Verdict::Failed, &deployment.reason),
        state => row(name, Verdict::Ok, deployments::state_name(state)),
    }
}

fn on_trial(deployment: &proto::Deployment, rollout: &proto::RolloutResponse) -> Check {
    let name = format!("rollout {}", deployment.name);
    if !deployment.rolled_back.is_empty() {
        return row(name, Verdict::Failed, &deployment.rolled_back);
    }
    let version = rollout.version;
    match rollout.trial.as_ref().filter(|trial| trial.open) {
        None => row(name, Verdict::Ok, format!("version {version} stays")),
        Some(proto::Trial { tried, failed, .. }) => {
            let verdict = if *failed > 0 { Verdict::Warning } else { Verdict::Ok };
            let (tried, failed) = (grouped(*tried), grouped(*failed));
            row(
                name,
                verdict,
                format!("version {version} is on trial: {failed} of {tried} records failed on this node"),
            )
        }
    }
}

fn failures(deployment: &proto::Deployment) -> Check {
    let name = format!("failures {}", deployment.name);
    match deployment.tasks.iter().map(|task| task.skipped).sum::<u64>() {
        0 => row(name, Verdict::Ok, "none since its tasks began on this node"),
        failed => {
            let (failed, deployment) = (grouped(failed), &deployment.name);
            let detail = format!(
                "{failed} since its tasks began on this node: if they came with the deploy, `tidemill rollback {deployment}` first, \
                 then `tidemill dlq count {deployment}`"
            );
            row(name, Verdict::Warning, detail)
        }
    }
}

fn behind(name: &str, lag: &[proto::PartitionLag]) -> Check {
    let records = grouped(lag.iter().map(|partition| partition.records).sum());
    let oldest = lag.iter().filter_map(|partition| partition.seconds).fold(0.0, f64::max);
    let verdict = if oldest > LAG_GUIDE_S { Verdict::Warning } else { Verdict::Ok };
    row(format!("lag {name}"), verdict, format!("{records} records, the oldest waits for {oldest:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_does_not_run_the_version_fails_the_check() {
        let task = |revision, state: proto::TaskState| proto::TaskRollout {
            revision,
            state: state.into(),
            ..proto::TaskRollout::default()
        };
        let rollout = |tasks| proto::RolloutResponse { version: 2, revision: 7, tasks, trial: None };
        let running = proto::TaskState::Running;
        assert_eq!(tasks("a", &rollout(vec![task(7, running), task(8, running)])).verdict, Verdict::Ok);
        let older = tasks("a", &rollout(vec![task(7, running), task(6, running)]));
        assert_eq!((older.verdict, older.detail.as_str()), (Verdict::Failed, "1 of 2 run version 2"));
        let halted = tasks("a", &rollout(vec![task(7, proto::TaskState::Halted)]));
        assert_eq!(halted.verdict, Verdict::Failed);
    }

    #[test]
    fn every_problem_of_a_document_has_a_row() {
        let found =
            problems("wc", "wc: 2 problems\n  inputs.in: topic a does not exist\n  outputs.out: nor b");
        let details: Vec<&str> = found.iter().map(|check| check.detail.as_str()).collect();
        assert_eq!(details, ["inputs.in: topic a does not exist", "outputs.out: nor b"]);
        assert!(found.iter().all(|check| check.verdict == Verdict::Failed && check.name == "document wc"));
        assert_eq!(problems("wc", "module: too large")[0].detail, "module: too large");
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
            (Verdict::Warning, "records that fail as decode are skipped for good")
        );
    }
}
