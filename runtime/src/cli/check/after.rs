//! The rows after a deploy: of each deployment, of nodes that somebody waits for, and of the fleet.

use std::time::{SystemTime, UNIX_EPOCH};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tidemill_proto::v1::lag_client::LagClient;
use tidemill_proto::v1::logs_client::LogsClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{ANSWER_WAIT, cluster, nodes, row};
use crate::cli::client::ANSWER_BYTES_MAX;
use crate::cli::dlq::timed;
use crate::cli::doctor::{Check, Verdict};
use crate::cli::drain::takes_tasks;
use crate::cli::failure::{Failure, Kind};
use crate::cli::nodes::{drain_name, is_silent};
use crate::cli::table::grouped;
use crate::cli::{Global, client, deployments};
use crate::config::deployment::{DeploymentSpec, RolloutSpec};
use crate::config::units;
use crate::node::trial::too_many;

/// A lag older than this is worth a word.
const LAG_GUIDE_S: f64 = 30.0;
/// Error lines that are looked at; more say no more.
const ERROR_LINES_MAX: u32 = 1_000;
/// Nodes that are asked side by side.
const ASKED_AT_ONCE: usize = 16;

/// Of these deployments, or of all; `wanted` are nodes that have to be there.
pub async fn look(global: &Global, names: &[String], wanted: &[String]) -> Result<Vec<Check>, Failure> {
    let channel = &client::connect(global).await?;
    let is_named = !names.is_empty();
    let names = match names {
        [] => deployments::all(channel.clone()).await?.into_iter().map(|found| found.name).collect(),
        names => names.to_vec(),
    };
    let nodes = nodes(channel, false).await?;
    let mut others = Others::reach(global, channel, &nodes).await?;
    let mut checks = Vec::new();
    for name in names {
        let deployment = seen(channel, &name).await?;
        if deployment.state() == proto::DeploymentState::Paused {
            checks.push(row(format!("state {name}"), Verdict::Warning, "paused"));
            continue;
        }
        let rollout = unless_one_of_all(rollout(channel, &name).await, is_named)?;
        let lag = unless_one_of_all(lag(channel, &name).await, is_named)?;
        let told = others.ask(&name).await;
        checks.push(match &rollout {
            Ok(rollout) => tasks(&name, rollout),
            Err(failure) => not_told("tasks", &name, failure),
        });
        checks.push(state(&deployment, &halted(&told)));
        if let Ok(rollout) = &rollout {
            let counted = others.counted(rollout, &told);
            checks.push(on_trial(&deployment, &counted, is_named));
            checks.push(failures(&deployment, &counted, is_named));
        }
        checks.push(errors(&name, error_lines(channel, &deployment).await));
        checks.push(match &lag {
            Ok(lag) => behind(&name, lag),
            Err(failure) => not_told("lag", &name, failure),
        });
    }
    checks.extend(wanted.iter().map(|id| node(id, &nodes)));
    checks.push(cluster(&nodes));
    Ok(checks)
}

/// A deployment as one node sees it.
async fn seen(channel: &Channel, name: &str) -> Result<proto::Deployment, Failure> {
    let mut client = DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let request = proto::GetDeploymentRequest { name: name.to_owned() };
    Ok(client.get(timed(request, ANSWER_WAIT)).await?.into_inner().deployment.unwrap_or_default())
}

async fn rollout(channel: &Channel, name: &str) -> Result<proto::RolloutResponse, Failure> {
    let mut client = DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let request = proto::RolloutRequest { name: name.to_owned() };
    Ok(client.rollout(timed(request, ANSWER_WAIT)).await?.into_inner())
}

async fn lag(channel: &Channel, name: &str) -> Result<Vec<proto::PartitionLag>, Failure> {
    let request = proto::GetLagRequest { deployment: name.to_owned() };
    let answer = LagClient::new(channel.clone()).get(timed(request, ANSWER_WAIT)).await?;
    Ok(answer.into_inner().partitions)
}

/// Of a deployment that is named, what it cannot be asked about ends the check; of one among all it is a row, and the
/// others have theirs.
fn unless_one_of_all<T>(answer: Result<T, Failure>, is_named: bool) -> Result<Result<T, Failure>, Failure> {
    match answer {
        Err(failure) if is_named => Err(failure),
        answer => Ok(answer),
    }
}

fn not_told(what: &str, name: &str, failure: &Failure) -> Check {
    row(format!("{what} {name}"), Verdict::Failed, format!("cannot be told: {failure}"))
}

/// The other nodes, for what each of them counts for itself.
struct Others {
    reached: Vec<(String, Channel)>,
    /// Nodes that are there for their fleet, and not for us.
    out_of_reach: Vec<String>,
}

impl Others {
    async fn reach(global: &Global, channel: &Channel, known: &[proto::Node]) -> Result<Others, Failure> {
        // Who answers here is asked here, wherever the others find it.
        let here = nodes(channel, true).await?;
        let is_other = |node: &&proto::Node| here.iter().all(|here| here.id != node.id) && !is_silent(node);
        let mut asked = JoinSet::new();
        for node in known.iter().filter(is_other) {
            let (id, global) = (node.id.clone(), Global { address: node.address.clone(), ..global.clone() });
            asked.spawn(async move { (id, client::connect(&global).await) });
        }
        let mut others = Others { reached: Vec::new(), out_of_reach: Vec::new() };
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((id, Ok(channel))) => others.reached.push((id, channel)),
                Ok((id, Err(_))) => others.out_of_reach.push(id),
                Err(_) => {}
            }
        }
        Ok(others)
    }

    /// What each of them says of a deployment. One that does not answer is not asked again: it would be waited for
    /// with every deployment.
    async fn ask(&mut self, name: &str) -> Vec<Told> {
        let mut told = Vec::new();
        for nodes in std::mem::take(&mut self.reached).chunks(ASKED_AT_ONCE) {
            let mut asked = JoinSet::new();
            for (id, channel) in nodes {
                let (id, channel, name) = (id.clone(), channel.clone(), name.to_owned());
                asked.spawn(async move {
                    let (rollout, seen) = tokio::join!(rollout(&channel, &name), seen(&channel, &name));
                    (id, channel, rollout, seen)
                });
            }
            while let Some(answer) = asked.join_next().await {
                let Ok((id, channel, rollout, seen)) = answer else { continue };
                // This question needs nothing but the node.
                let is_silent = |failure: &Failure| matches!(failure.kind, Kind::Unreachable | Kind::Failed);
                if seen.as_ref().is_err_and(is_silent) {
                    self.out_of_reach.push(id);
                    continue;
                }
                told.push(Told { id: id.clone(), rollout: rollout.ok(), deployment: seen.ok() });
                self.reached.push((id, channel));
            }
        }
        told
    }

    /// What the version came to on every node.
    fn counted(&self, here: &proto::RolloutResponse, told: &[Told]) -> Counted {
        let mut counted = Counted::of(here);
        counted.not_asked.clone_from(&self.out_of_reach);
        for there in told {
            match &there.rollout {
                Some(rollout) => counted.add(rollout),
                None => counted.not_asked.push(there.id.clone()),
            }
        }
        counted.not_asked.sort();
        counted
    }
}

/// What another node says of a deployment; none of what it cannot say.
struct Told {
    id: String,
    rollout: Option<proto::RolloutResponse>,
    deployment: Option<proto::Deployment>,
}

/// Where it is halted, and why: a node that cannot run it is told of by itself alone, whoever has its tasks. Who does
/// not answer is named with the counts.
fn halted(told: &[Told]) -> Vec<String> {
    let seen = told.iter().filter_map(|there| Some((&there.id, there.deployment.as_ref()?)));
    let halted = seen.filter(|(_, deployment)| deployment.state() == proto::DeploymentState::Halted);
    let mut halted: Vec<String> =
        halted.map(|(id, deployment)| format!("on {id}: {}", deployment.reason)).collect();
    halted.sort();
    halted
}

/// What a version's records came to.
struct Counted {
    version: u64,
    /// A node would still roll it back by itself.
    open: bool,
    tried: u64,
    failed: u64,
    /// Nodes whose counts are missing.
    not_asked: Vec<String>,
}

impl Counted {
    fn of(rollout: &proto::RolloutResponse) -> Counted {
        let version = rollout.version;
        let mut counted = Counted { version, open: false, tried: 0, failed: 0, not_asked: Vec::new() };
        counted.add(rollout);
        counted
    }

    fn add(&mut self, rollout: &proto::RolloutResponse) {
        // A node that is behind, or ahead, counts another version.
        if let Some(trial) = rollout.trial.as_ref().filter(|_| rollout.version == self.version) {
            self.open |= trial.open;
            self.tried += trial.tried;
            self.failed += trial.failed;
        }
    }
}

fn tasks(name: &str, rollout: &proto::RolloutResponse) -> Check {
    let runs = |task: &&proto::TaskRollout| {
        task.revision >= rollout.revision && task.state() == proto::TaskState::Running
    };
    let (run, all) = (rollout.tasks.iter().filter(runs).count(), rollout.tasks.len());
    let verdict = if run == all { Verdict::Ok } else { Verdict::Failed };
    row(format!("tasks {name}"), verdict, format!("{run} of {all} run version {}", rollout.version))
}

/// As the node that was asked says, and those of the others that say something worse.
fn state(deployment: &proto::Deployment, elsewhere: &[String]) -> Check {
    let name = format!("state {}", deployment.name);
    let here = match deployment.state() {
        proto::DeploymentState::Halted => Some(&deployment.reason),
        _ => None,
    };
    let reasons: Vec<&str> = here.into_iter().chain(elsewhere).map(String::as_str).collect();
    match reasons.as_slice() {
        [] => row(name, Verdict::Ok, deployments::state_name(deployment.state())),
        reasons => row(name, Verdict::Failed, reasons.join("; ")),
    }
}

/// What is wrong with a version stays so until another is deployed: that fails whoever asks about it, and does
/// not keep the rest of the fleet waiting.
fn wrong(is_named: bool) -> Verdict {
    if is_named { Verdict::Failed } else { Verdict::Warning }
}

fn on_trial(deployment: &proto::Deployment, counted: &Counted, is_named: bool) -> Check {
    let name = format!("rollout {}", deployment.name);
    if !deployment.rolled_back.is_empty() {
        return row(name, wrong(is_named), &deployment.rolled_back);
    }
    let version = counted.version;
    if !counted.open {
        return row(name, Verdict::Ok, format!("version {version} stays"));
    }
    let (tried, failed) = (grouped(counted.tried), grouped(counted.failed));
    row(name, Verdict::Ok, format!("version {version} is on trial: {failed} of {tried} records failed"))
}

/// By the rule that takes versions back, over the whole fleet and for as long as the version runs.
fn failures(deployment: &proto::Deployment, counted: &Counted, is_named: bool) -> Check {
    // A newer program may have taken a document that this one cannot read.
    let spec = DeploymentSpec::parse(&deployment.document);
    let spec = spec.map_or_else(|_| RolloutSpec::default(), |spec| spec.rollout);
    let Counted { tried, failed, .. } = *counted;
    let share = format!("{} of {} records", grouped(failed), grouped(tried));
    let (mut verdict, mut detail) = match too_many(&spec, tried, failed) {
        Some(reason) => (wrong(is_named), format!("{reason}: {}", advice(deployment))),
        None if failed == 0 => (Verdict::Ok, format!("none of {} records", grouped(tried))),
        None if tried < spec.records => {
            let records = grouped(spec.records);
            (Verdict::Warning, format!("{share} failed; their share counts from {records} on"))
        }
        None => {
            let allowed = units::show_share(spec.failures_ppm);
            (Verdict::Ok, format!("{share} failed, allowed are {allowed}"))
        }
    };
    if !counted.not_asked.is_empty() {
        detail = format!("{detail}; {} cannot be asked", counted.not_asked.join(", "));
        if verdict == Verdict::Ok {
            verdict = Verdict::Warning;
        }
    }
    row(format!("failures {}", deployment.name), verdict, detail)
}

fn advice(deployment: &proto::Deployment) -> String {
    let proto::Deployment { name, version, rolled_back, .. } = deployment;
    let count = format!("`tidemill dlq count {name}`");
    // The version before one that a node took up again is the one that failed.
    match *version > 1 && rolled_back.is_empty() {
        true => {
            format!("if they came with version {version}, `tidemill rollback {name}` first, then {count}")
        }
        false => format!("see {count}"),
    }
}

/// What a handler has logged at level error since its version was deployed, and which nodes are silent.
struct ErrorLines {
    lines: Vec<proto::LogLine>,
    troubles: Vec<String>,
}

async fn error_lines(channel: &Channel, deployment: &proto::Deployment) -> Result<ErrorLines, Failure> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let request = proto::TailLogsRequest {
        deployment: deployment.name.clone(),
        level: proto::LogLevel::Error.into(),
        // 0 would be everything that is kept.
        age_ms: u64::try_from(now_ms - deployment.deployed_at_ms).unwrap_or(0).max(1),
        limit: ERROR_LINES_MAX,
        ..proto::TailLogsRequest::default()
    };
    let mut client = LogsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut answers = client.tail(timed(request, ANSWER_WAIT)).await?.into_inner();
    let mut found = ErrorLines { lines: Vec::new(), troubles: Vec::new() };
    while let Some(message) = answers.message().await? {
        found.lines.extend(message.lines);
        found.troubles.extend(Some(message.trouble).filter(|trouble| !trouble.is_empty()));
    }
    Ok(found)
}

/// A note at worst: what a line means, only who wrote the handler knows.
fn errors(name: &str, found: Result<ErrorLines, Failure>) -> Check {
    let name = format!("errors {name}");
    let ErrorLines { lines, troubles } = match found {
        Ok(found) => found,
        Err(failure) => return row(name, Verdict::Warning, format!("not seen: {failure}")),
    };
    let mut detail = match (lines.last(), lines.len()) {
        (None, _) => "no line at level error since the deploy".to_owned(),
        (Some(last), 1) => format!("1 line at level error, the last: {}", last.text),
        (Some(last), many) => {
            let more = if many >= ERROR_LINES_MAX as usize { "or more " } else { "" };
            format!("{} {more}lines at level error, the last: {}", grouped(many as u64), last.text)
        }
    };
    for trouble in &troubles {
        detail = format!("{detail}; {trouble}");
    }
    let is_clean = lines.is_empty() && troubles.is_empty();
    row(name, if is_clean { Verdict::Ok } else { Verdict::Warning }, detail)
}

/// How old what waits is may be unknown: the brokers did not show it in time, or its topic is gone.
fn behind(name: &str, lag: &[proto::PartitionLag]) -> Check {
    let records = grouped(lag.iter().map(|partition| partition.records).sum());
    let oldest = lag.iter().filter_map(|partition| partition.seconds).fold(0.0, f64::max);
    let unknown = lag.iter().filter(|partition| partition.seconds.is_none()).count();
    let mut detail = format!("{records} records, the oldest waits for {oldest:.1} s");
    if unknown > 0 {
        detail = format!("{detail}; in {unknown} of {} partitions it is not known for how long", lag.len());
    }
    let verdict = if oldest > LAG_GUIDE_S || unknown > 0 { Verdict::Warning } else { Verdict::Ok };
    row(format!("lag {name}"), verdict, detail)
}

/// A node that is to be there. One that has stopped is in no list any more, so only who names it misses it.
fn node(id: &str, nodes: &[proto::Node]) -> Check {
    let failed = |detail: String| row(format!("node {id}"), Verdict::Failed, detail);
    let Some(node) = nodes.iter().find(|node| node.id == id) else {
        return failed("is not there; `tidemill nodes` shows who is".to_owned());
    };
    let age_s = node.heartbeat_age_ms as f64 / 1e3;
    let tasks = node.tasks.len();
    if is_silent(node) || !node.answered {
        failed(format!("does not answer; its last heartbeat is {age_s:.1} s old"))
    } else if !takes_tasks(node) {
        let state = drain_name(node.drain());
        failed(format!("is {state}: it takes tasks again with `tidemill drain {id} --undo`, or a restart"))
    } else {
        let detail = format!("answers and takes tasks, has {tasks}; version {}", node.version);
        row(format!("node {id}"), Verdict::Ok, detail)
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    fn deployment(version: u64, rolled_back: &str) -> proto::Deployment {
        let document = "name: a\nmodule: a.wasm\ninputs: { in: { topic: in } }\n".to_owned();
        let rolled_back = rolled_back.to_owned();
        proto::Deployment { name: "a".into(), version, rolled_back, document, ..proto::Deployment::default() }
    }

    fn counted(tried: u64, failed: u64) -> Counted {
        Counted { version: 2, open: false, tried, failed, not_asked: Vec::new() }
    }

    #[test]
    fn a_task_that_does_not_run_the_version_fails_the_check() {
        let task = |revision, state: proto::TaskState| proto::TaskRollout {
            revision,
            state: state.into(),
            ..proto::TaskRollout::default()
        };
        let rollout = |tasks| proto::RolloutResponse {
            version: 2,
            revision: 7,
            tasks,
            ..proto::RolloutResponse::default()
        };
        let running = proto::TaskState::Running;
        assert_eq!(tasks("a", &rollout(vec![task(7, running), task(8, running)])).verdict, Verdict::Ok);
        let older = tasks("a", &rollout(vec![task(7, running), task(6, running)]));
        assert_eq!((older.verdict, older.detail.as_str()), (Verdict::Failed, "1 of 2 run version 2"));
        let halted = tasks("a", &rollout(vec![task(7, proto::TaskState::Halted)]));
        assert_eq!(halted.verdict, Verdict::Failed);
    }

    #[test]
    fn a_node_where_the_deployment_cannot_run_fails_the_check_whoever_is_asked() {
        let of = |state: proto::DeploymentState, reason: &str, elsewhere: &[&str]| {
            let deployment =
                proto::Deployment { state: state.into(), reason: reason.into(), ..deployment(1, "") };
            let elsewhere: Vec<String> = elsewhere.iter().map(|&said| said.to_owned()).collect();
            let check = super::state(&deployment, &elsewhere);
            (check.verdict, check.detail)
        };
        let (running, halted) = (proto::DeploymentState::Running, proto::DeploymentState::Halted);
        assert_eq!(of(running, "", &[]), (Verdict::Ok, "running".to_owned()));
        let there = "on n2: revision 3 does not start";
        assert_eq!(of(running, "", &[there]), (Verdict::Failed, there.to_owned()));
        assert_eq!(of(halted, "no topic", &[there]), (Verdict::Failed, format!("no topic; {there}")));
    }

    #[test]
    fn a_version_that_was_rolled_back_fails_the_check_of_its_deployment_alone() {
        let taken_back = deployment(3, "version 2 failed and was rolled back: as told");
        let named = on_trial(&taken_back, &counted(0, 0), true);
        assert_eq!((named.verdict, named.detail), (Verdict::Failed, taken_back.rolled_back.clone()));
        assert_eq!(on_trial(&taken_back, &counted(0, 0), false).verdict, Verdict::Warning);
        assert_eq!(on_trial(&deployment(3, ""), &counted(0, 0), true).verdict, Verdict::Ok);
    }

    #[test]
    fn what_failed_is_judged_as_a_share_of_what_was_tried() {
        let of = |tried, failed, is_named| {
            let check = failures(&deployment(2, ""), &counted(tried, failed), is_named);
            (check.verdict, check.detail)
        };
        assert_eq!(of(7_000, 0, true), (Verdict::Ok, "none of 7,000 records".to_owned()));
        let one = (Verdict::Ok, "1 of 1,000,000 records failed, allowed are 5%".to_owned());
        assert_eq!(of(1_000_000, 1, true), one);
        let few = (Verdict::Warning, "3 of 20 records failed; their share counts from 100 on".to_owned());
        assert_eq!(of(20, 3, true), few);
        let many = "60 of 1000 records failed (6.0%, allowed are 5%): if they came with version 2, \
                    `tidemill rollback a` first, then `tidemill dlq count a`";
        assert_eq!(of(1_000, 60, true), (Verdict::Failed, many.to_owned()));
        assert_eq!(of(1_000, 60, false), (Verdict::Warning, many.to_owned()));
        for not_to_go_back in [deployment(1, ""), deployment(3, "version 2 failed and was rolled back")] {
            let detail = failures(&not_to_go_back, &counted(1_000, 60), true).detail;
            assert!(detail.ends_with(": see `tidemill dlq count a`"), "{detail}");
        }
        let partly = Counted { not_asked: vec!["n2".into()], ..counted(7, 0) };
        let check = failures(&deployment(2, ""), &partly, true);
        assert_eq!(
            (check.verdict, check.detail.as_str()),
            (Verdict::Warning, "none of 7 records; n2 cannot be asked")
        );
    }

    #[test]
    fn the_counts_of_all_nodes_that_run_the_version_are_added() {
        let rollout = |version, open, tried, failed| proto::RolloutResponse {
            version,
            trial: Some(proto::Trial { open, tried, failed }),
            ..proto::RolloutResponse::default()
        };
        let mut counted = Counted::of(&rollout(2, false, 100, 1));
        counted.add(&rollout(2, true, 50, 9));
        counted.add(&rollout(1, true, 1_000, 1_000));
        counted.add(&proto::RolloutResponse { version: 2, ..proto::RolloutResponse::default() });
        assert_eq!((counted.tried, counted.failed, counted.open), (150, 10, true));
        let check = on_trial(&deployment(2, ""), &counted, true);
        assert_eq!(check.detail, "version 2 is on trial: 10 of 150 records failed");
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_asked_once_and_missed_with_every_deployment() {
        let nobody = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let mut others = Others { reached: vec![("n2".into(), nobody)], out_of_reach: vec!["n1".into()] };
        for name in ["a", "b"] {
            let told = others.ask(name).await;
            assert!(told.is_empty() && others.reached.is_empty());
            let counted = others.counted(&proto::RolloutResponse::default(), &told);
            assert_eq!(counted.not_asked, ["n1", "n2"]);
        }
    }

    #[test]
    fn a_node_that_says_that_it_cannot_run_a_deployment_is_named_with_its_reason() {
        let told = |id: &str, state: proto::DeploymentState| Told {
            id: id.into(),
            rollout: None,
            deployment: Some(proto::Deployment {
                state: state.into(),
                reason: "no topic".into(),
                ..deployment(1, "")
            }),
        };
        let (running, stopped) = (proto::DeploymentState::Running, proto::DeploymentState::Halted);
        let silent = Told { id: "n4".into(), rollout: None, deployment: None };
        let all = [told("n3", stopped), told("n2", stopped), told("n1", running), silent];
        assert_eq!(halted(&all), ["on n2: no topic", "on n3: no topic"]);
    }

    #[test]
    fn error_lines_are_counted_and_the_last_one_is_shown() {
        let line = |text: &str| proto::LogLine { text: text.into(), ..proto::LogLine::default() };
        let of = |lines: Vec<proto::LogLine>, troubles: Vec<String>| {
            let check = errors("a", Ok(ErrorLines { lines, troubles }));
            (check.verdict, check.detail)
        };
        assert_eq!(of(vec![], vec![]), (Verdict::Ok, "no line at level error since the deploy".to_owned()));
        assert_eq!(
            of(vec![line("first"), line("second")], vec![]),
            (Verdict::Warning, "2 lines at level error, the last: second".to_owned())
        );
        let (verdict, detail) = of(vec![], vec!["n2 does not answer".into()]);
        assert_eq!(verdict, Verdict::Warning);
        assert!(detail.ends_with("; n2 does not answer"), "{detail}");
        let (_, detail) = of(vec![line("x"); ERROR_LINES_MAX as usize], vec![]);
        assert!(detail.starts_with("1,000 or more lines at level error"), "{detail}");
        let not_allowed = errors("a", Err(Failure::refused("needs the role query")));
        assert_eq!(
            (not_allowed.verdict, not_allowed.detail.as_str()),
            (Verdict::Warning, "not seen: needs the role query")
        );
    }

    #[test]
    fn a_lag_whose_age_nobody_knows_is_a_note_and_not_taken_for_none() {
        let lag =
            |records, seconds| proto::PartitionLag { records, seconds, ..proto::PartitionLag::default() };
        let of = |lag: &[proto::PartitionLag]| {
            let check = behind("a", lag);
            (check.verdict, check.detail)
        };
        let known = "1,200 records, the oldest waits for 2.5 s";
        assert_eq!(of(&[lag(1_200, Some(2.5)), lag(0, Some(0.0))]), (Verdict::Ok, known.to_owned()));
        let unknown = format!("{known}; in 1 of 2 partitions it is not known for how long");
        assert_eq!(of(&[lag(1_000, None), lag(200, Some(2.5))]), (Verdict::Warning, unknown));
        assert_eq!(of(&[lag(1, Some(31.0))]).0, Verdict::Warning);
    }

    #[test]
    fn what_one_of_all_deployments_cannot_be_asked_about_fails_its_row_and_not_the_whole_check() {
        let lost = || Failure::unreachable("nobody leads `in` [0]");
        let named = unless_one_of_all::<()>(Err(lost()), true).expect_err("it was asked about by name");
        assert_eq!(named.kind, Kind::Unreachable);
        let one_of_all = unless_one_of_all::<()>(Err(lost()), false).expect("the others have their rows");
        let check = not_told("lag", "a", &one_of_all.expect_err("it was not told"));
        assert_eq!((check.verdict, check.name.as_str()), (Verdict::Failed, "lag a"));
        assert_eq!(check.detail, "cannot be told: nobody leads `in` [0]");
        assert!(unless_one_of_all(Ok(7), false).is_ok_and(|told| told.is_ok_and(|told| told == 7)));
    }

    #[test]
    fn a_node_that_is_waited_for_has_to_answer_and_to_take_tasks() {
        let there = |id: &str, age_ms, answered, drain: proto::DrainState| proto::Node {
            id: id.into(),
            version: "0.1.0".into(),
            heartbeat_age_ms: age_ms,
            answered,
            drain: drain.into(),
            ..proto::Node::default()
        };
        let active = proto::DrainState::Active;
        let nodes = [
            there("well", 100, true, active),
            there("gone", 60_000, false, active),
            there("dead", 3_000, false, active),
            there("drained", 100, true, proto::DrainState::Drained),
        ];
        let well = node("well", &nodes);
        assert_eq!(
            (well.verdict, well.detail.as_str()),
            (Verdict::Ok, "answers and takes tasks, has 0; version 0.1.0")
        );
        for (id, says) in [
            ("gone", "does not answer; its last heartbeat is 60.0 s old"),
            ("dead", "does not answer; its last heartbeat is 3.0 s old"),
            (
                "drained",
                "is drained: it takes tasks again with `tidemill drain drained --undo`, or a restart",
            ),
            ("other", "is not there; `tidemill nodes` shows who is"),
        ] {
            let check = node(id, &nodes);
            assert_eq!((check.verdict, check.detail.as_str()), (Verdict::Failed, says));
            assert_eq!(check.name, format!("node {id}"));
        }
    }
}
