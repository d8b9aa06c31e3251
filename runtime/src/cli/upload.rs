//! From a deployment document to a deployed module: find or build the module, stream it, wait.
//! Shared by `apply` and `deploy`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deploy_request::Part;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tonic::transport::Channel;

use super::client::{self, ANSWER_BYTES_MAX};
use super::deployments::{module_short, state_cell};
use super::failure::Failure;
use super::history::changes_json;
use super::output::{Block, Format, View};
use super::plan::Planned;
use super::positions;
use super::rollout;
use super::table::Table;
use super::topic_documents::{self, Topics};
use crate::config::units;
use crate::wasm::MODULE_BYTES_MAX;
use crate::wasm::build::{cargo_build, componentise};

/// Of the module in one message.
const CHUNK_BYTES: usize = 512 << 10;

/// How to deploy, shared by both commands.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Deploy only if the registry still holds this revision; 0 = only if the name is not deployed
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// Give up the data of a store, for good: it begins empty, or is gone if the module does not have it
    /// any more. With several documents, say whose: DEPLOYMENT/STORE
    #[arg(long, value_name = "STORE")]
    drop_store: Vec<String>,
    /// Wait until every task runs it, at most this long, and say where each began
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, num_args = 0..=1, default_missing_value = "30s")]
    #[arg(conflicts_with = "dry_run")]
    wait: Option<Duration>,
}

/// One deployment as it goes out.
#[derive(Clone)]
pub struct Upload {
    pub name: String,
    pub document: String,
    pub module: Vec<u8>,
}

/// All of what is asked for at once. The topics come first: what is deployed reads and writes them.
#[derive(Default)]
pub struct Work {
    pub topics: Topics,
    pub uploads: Vec<Upload>,
}

/// What a module's path leads to: a `.wasm` file, or a crate that is built first. Core modules are
/// made components.
pub fn load_module(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    if path.is_dir() {
        eprintln!("building {shown}");
        return cargo_build(path, None)
            .map(|built| built.component)
            .map_err(|error| Failure::refused(error.to_string()).at(shown));
    }
    let bytes = std::fs::read(path).map_err(|error| {
        let hint = "`tidemill build DIR --out FILE` makes one of a handler's crate";
        Failure::refused(format!("module {shown} cannot be read: {error}; {hint}"))
    })?;
    if bytes.len() > MODULE_BYTES_MAX {
        let message = format!(
            "module {shown} is {} bytes, at most {} are taken: build it with `tidemill build`, which strips it",
            bytes.len(),
            units::show_bytes(MODULE_BYTES_MAX as u64)
        );
        return Err(Failure::refused(message));
    }
    match bytes.get(..8) {
        Some(b"\0asm\x01\0\0\0") => componentise(&bytes).map_err(|error| {
            Failure::refused(format!(
                "module {shown} is no handler: {error}; does it call tidemill_sdk::export!?"
            ))
        }),
        Some(b"\0asm\x0d\0\x01\0") => Ok(bytes),
        _ => Err(Failure::refused(format!(
            "module {shown} is not WebAssembly: name a .wasm file that `tidemill build` made, or a handler's crate"
        ))),
    }
}

/// A module's path as written in a document: relative to the document.
pub fn relative_to(document: &Path, module: &str) -> PathBuf {
    document.parent().unwrap_or(Path::new("")).join(module)
}

/// How one upload is meant.
#[derive(Debug, Clone)]
pub struct Meant {
    /// Check everything, change nothing.
    pub dry_run: bool,
    /// As in `DeployHeader`.
    pub expected_revision: Option<u64>,
    /// As in `DeployHeader`.
    pub drop_stores: Vec<String>,
    /// As in `DeployHeader`.
    pub topics: Vec<String>,
}

/// Checks topics and deployments, all of them before any is changed, and then carries them out: each deployment
/// only if it is still what it was when it was checked. `plan` is shown in between. What fails after that does not
/// hide what is deployed already.
pub async fn carry_out(
    channel: &Channel,
    Work { topics, uploads }: Work,
    options: &Options,
    plan: impl FnOnce(&Planned) -> Result<(), Failure>,
) -> Result<Done, Failure> {
    let drops = options.drops(&uploads)?;
    let (mut planned, mut failures) = (Planned::default(), Vec::new());
    match topics.send(channel, true).await {
        Ok(answers) => planned.topics = answers,
        Err(failure) => failures.push(failure),
    }
    for (upload, drop_stores) in uploads.iter().zip(&drops) {
        let meant = Meant {
            dry_run: true,
            expected_revision: options.if_revision,
            drop_stores: drop_stores.clone(),
            topics: topics.documents.clone(),
        };
        match send(channel, upload.clone(), meant).await {
            Ok(answer) => planned.deployments.push(answer),
            Err(failure) => failures.push(failure),
        }
    }
    if let Some(failure) = Failure::all(failures) {
        return Err(failure);
    }
    plan(&planned)?;
    let Planned { topics: planned_topics, deployments: planned } = planned;
    if options.dry_run {
        let answers = planned.into_iter().map(|answer| Answer { answer, first: Vec::new() }).collect();
        return Ok(Done { topics: planned_topics, answers, failure: None, dry_run: true });
    }
    let topics = topics.send(channel, false).await.map_err(|failure| {
        let left = "what was done before stays: --dry-run shows what is left";
        Failure { message: format!("{}\n{left}", failure.message), ..failure }
    })?;
    let (sent, mut failure) =
        one_by_one(uploads.into_iter().zip(drops).zip(planned), async |upload, meant| {
            send(channel, upload, meant).await
        })
        .await;
    let mut answers = Vec::new();
    for mut answer in sent {
        let asked = answer.deployment.take().unwrap_or_default();
        let waited = match options.wait.filter(|_| failure.is_none()) {
            Some(limit) => rollout::wait(channel, &asked, limit).await.map(Some),
            None => Ok(None),
        };
        let adopted = waited.unwrap_or_else(|error| {
            failure = Some(error);
            None
        });
        let (deployment, first) =
            adopted.map_or((asked, Vec::new()), |adopted| (adopted.deployment, adopted.first));
        answer.deployment = Some(deployment);
        answers.push(Answer { answer, first });
    }
    Ok(Done { topics, answers, failure, dry_run: false })
}

/// Sends what has changed, up to the first one that fails: what follows may need it.
async fn one_by_one(
    planned: impl Iterator<Item = ((Upload, Vec<String>), proto::DeployResponse)>,
    send: impl AsyncFn(Upload, Meant) -> Result<proto::DeployResponse, Failure>,
) -> (Vec<proto::DeployResponse>, Option<Failure>) {
    let mut answers = Vec::new();
    for ((upload, drop_stores), planned) in planned {
        if planned.unchanged {
            answers.push(planned);
            continue;
        }
        let seen = planned.deployment.map_or(0, |deployment| deployment.revision);
        let meant = Meant { dry_run: false, expected_revision: Some(seen), drop_stores, topics: Vec::new() };
        match send(upload, meant).await {
            Ok(answer) => answers.push(answer),
            Err(failure) => return (answers, Some(failure)),
        }
    }
    (answers, None)
}

/// What became of all of them.
pub struct Done {
    topics: Vec<proto::AppliedTopic>,
    answers: Vec<Answer>,
    /// Why there are no more, or why they were not waited for.
    failure: Option<Failure>,
    dry_run: bool,
}

impl Done {
    /// What is deployed is said before what is not.
    pub fn print(self, format: Format) -> Result<(), Failure> {
        let (has_topics, has_answers) = (!self.topics.is_empty(), !self.answers.is_empty());
        if has_topics || has_answers || self.failure.is_none() {
            let (topics, topics_json) = topic_documents::rows(&self.topics, self.dry_run);
            let (answers, answers_json) = result_rows(&self.answers, self.dry_run);
            let mut blocks = Vec::new();
            if has_topics {
                blocks.push(Block::Table(topics));
            }
            if has_topics && has_answers {
                blocks.push(Block::Line(String::new()));
            }
            if has_answers || !has_topics {
                blocks.push(Block::Table(answers));
            }
            let json = json!({ "topics": topics_json, "deployments": answers_json });
            View { blocks, json }.print(format)?;
        }
        self.failure.map_or(Ok(()), Err)
    }
}

/// What became of one upload.
struct Answer {
    answer: proto::DeployResponse,
    /// Where its revision began, if that was waited for.
    first: Vec<proto::InputPosition>,
}

/// Sends one deployment.
pub async fn send(channel: &Channel, upload: Upload, meant: Meant) -> Result<proto::DeployResponse, Failure> {
    let mut client = DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let bar = progress(&upload.name, upload.module.len() as u64);
    let header = proto::DeployHeader {
        document: upload.document,
        expected_revision: meant.expected_revision,
        dry_run: meant.dry_run,
        author: client::author(),
        drop_stores: meant.drop_stores,
        topics: meant.topics,
        // All are sent before any is waited for.
        wait_ms: 0,
    };
    let chunks: Vec<Vec<u8>> = upload.module.chunks(CHUNK_BYTES).map(<[u8]>::to_vec).collect();
    let counting = bar.clone();
    let parts = std::iter::once(Part::Header(header)).chain(chunks.into_iter().map(move |chunk| {
        counting.inc(chunk.len() as u64);
        Part::Chunk(chunk)
    }));
    let requests = tokio_stream::iter(parts.map(|part| proto::DeployRequest { part: Some(part) }));
    let answer = client.deploy(requests).await;
    bar.finish_and_clear();
    Ok(answer.map_err(|status| Failure::from(status).at(&upload.name))?.into_inner())
}

/// Invisible unless standard error is a terminal.
fn progress(name: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    bar.with_prefix(name.to_owned())
}

/// What was deployed, for people and programs.
fn result_rows(answers: &[Answer], dry_run: bool) -> (Table, Value) {
    let mut table = Table::new(
        &["NAME", ">VERSION", ">REV", "RESULT", "STATE", "MODULE", "FIRST"],
        "nothing was deployed",
    );
    let mut rows = Vec::new();
    for Answer { answer, first } in answers {
        let deployment = answer.deployment.clone().unwrap_or_default();
        let result = match (dry_run, answer.unchanged) {
            (_, true) => "unchanged",
            (true, false) => "valid",
            (false, false) => "deployed",
        };
        table.row([
            deployment.name.clone().into(),
            deployment.version.to_string().into(),
            deployment.revision.to_string().into(),
            result.into(),
            state_cell(deployment.state(), &deployment),
            module_short(&deployment.module).into(),
            positions::show_all(first).into(),
        ]);
        rows.push(json!({
            "name": deployment.name, "revision": deployment.revision, "version": deployment.version, "result": result,
            "module": deployment.module, "changes": changes_json(&answer.changes), "warnings": answer.warnings,
            "first": positions::to_json(first),
        }));
    }
    (table, rows.into())
}

impl Options {
    /// Which stores each upload drops.
    fn drops(&self, uploads: &[Upload]) -> Result<Vec<Vec<String>>, Failure> {
        let mut drops = vec![Vec::new(); uploads.len()];
        for named in &self.drop_store {
            let (whose, store) = match (named.split_once('/'), uploads) {
                (Some((deployment, store)), _) => (deployment, store),
                (None, [only]) => (only.name.as_str(), named.as_str()),
                (None, _) => {
                    let message =
                        format!("--drop-store {named}: of which deployment? Write DEPLOYMENT/{named}");
                    return Err(Failure::usage(message));
                }
            };
            let Some(place) = uploads.iter().position(|upload| upload.name == whose) else {
                let names: Vec<&str> = uploads.iter().map(|upload| upload.name.as_str()).collect();
                let message = format!(
                    "--drop-store {named}: {whose} is not among what is deployed: {}",
                    names.join(", ")
                );
                return Err(Failure::usage(message));
            };
            drops[place].push(store.to_owned());
        }
        Ok(drops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_dropped_of_the_deployment_that_is_named_or_is_the_only_one() {
        let upload = |name: &str| Upload { name: name.into(), document: String::new(), module: Vec::new() };
        let options = |stores: &[&str]| Options {
            dry_run: false,
            if_revision: None,
            drop_store: stores.iter().map(ToString::to_string).collect(),
            wait: None,
        };
        let drops = options(&["s", "a/t"]).drops(&[upload("a")]).expect("clear");
        assert_eq!(drops, [["s", "t"]]);
        let drops = options(&["b/s"]).drops(&[upload("a"), upload("b")]).expect("clear");
        assert_eq!(drops, [vec![], vec!["s".to_owned()]]);
        assert!(options(&["s"]).drops(&[upload("a"), upload("b")]).is_err(), "whose?");
        assert!(options(&["c/s"]).drops(&[upload("a")]).is_err(), "nobody's");
    }

    #[test]
    fn what_is_deployed_before_a_conflict_is_told() {
        let answer = |name: &str, unchanged| {
            let deployment = proto::Deployment { name: name.into(), revision: 7, ..Default::default() };
            proto::DeployResponse { deployment: Some(deployment), unchanged, ..Default::default() }
        };
        let planned = |name: &str, unchanged| {
            let upload = Upload { name: name.into(), document: String::new(), module: Vec::new() };
            ((upload, Vec::new()), answer(name, unchanged))
        };
        let all = [planned("a", true), planned("b", false), planned("c", false), planned("d", false)];
        let (answers, failure) = client::block_on(async {
            let send = async |upload: Upload, meant: Meant| match upload.name.as_str() {
                "c" => Err(Failure::refused("somebody else changed it")),
                "d" => panic!("what follows is not sent"),
                name => {
                    assert_eq!(meant.expected_revision, Some(7));
                    Ok(answer(name, false))
                }
            };
            Ok(one_by_one(all.into_iter(), send).await)
        })
        .expect("it runs");
        let names: Vec<String> =
            answers.into_iter().filter_map(|answer| Some(answer.deployment?.name)).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(failure.is_some_and(|failure| failure.message.contains("somebody else")));
    }
}
