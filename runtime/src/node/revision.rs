//! A revision made ready to run: document, module and topics, checked against each other.
//!
//! The same checks serve a deploy (nothing may be wrong before anything runs) and a start (the
//! world may have changed since).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::registered::Registered;
use super::runtime::NodeRuntime;
use super::trial::Trial;
use crate::config::deployment::{DeploymentSpec, Guarantee, IdSource, OutputSpec, Start};
use crate::config::failures::LetterFormat;
use crate::config::manifest::Manifest;
use crate::config::problem::Problem;
use crate::kafka::admin::{AdminError, NewTopic, Topic};
use crate::ports::SourceError;
use crate::relay::Stations;
use crate::store::Stores;
use crate::task::{ChangelogConfig, OutboxRule, OutputRule, TaskConfig, TaskInput, TimestampRule, recovery};
use crate::wasm::{Linked, Module};

/// Why a revision cannot run, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The document or the module is wrong.
    #[error("{}", in_a_line(.0))]
    Invalid(Vec<Problem>),
    /// They are right, but the cluster does not have what they need.
    #[error("{}", in_a_line(.0))]
    Precondition(Vec<Problem>),
    #[error("{0}")]
    Unavailable(String),
}

fn in_a_line(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl From<SourceError> for PrepareError {
    fn from(error: SourceError) -> PrepareError {
        match error {
            SourceError::Refused(reason) => PrepareError::Precondition(vec![reason.into()]),
            SourceError::Fatal(reason) | SourceError::Unavailable(reason) => {
                PrepareError::Unavailable(reason)
            }
        }
    }
}

impl From<AdminError> for PrepareError {
    fn from(error: AdminError) -> PrepareError {
        match error {
            AdminError::Unavailable { .. } => PrepareError::Unavailable(error.to_string()),
            AdminError::Missing { .. } | AdminError::Exists { .. } | AdminError::Refused { .. } => {
                PrepareError::Precondition(vec![error.to_string().into()])
            }
        }
    }
}

/// An input of a running revision, in the manifest's order.
#[derive(Debug, Clone)]
pub struct InputTopic {
    pub topic: String,
    /// A topic deleted and made again has another one.
    pub topic_id: String,
    pub start: Start,
}

/// The changelog of a deployment that keeps something.
#[derive(Debug, Clone)]
pub struct ChangelogTopic {
    pub topic: String,
    pub topic_id: String,
    pub record_bytes_max: usize,
    pub delete_retention: Duration,
}

/// Everything that the workers of one revision share, read-only.
pub struct Revision {
    pub registered: Registered,
    pub spec: DeploymentSpec,
    pub manifest: Manifest,
    pub group: String,
    pub inputs: Vec<InputTopic>,
    /// The manifest's, then the dead-letter topic if there is one.
    pub outputs: Vec<OutputRule>,
    /// Which of the outputs takes dead letters.
    pub dead_letters: Option<u16>,
    /// None for a deployment that keeps nothing.
    pub changelog: Option<ChangelogTopic>,
    /// The topic of a deployment with an inbox.
    pub inbox: Option<String>,
    /// Of every input; the tasks.
    pub partitions: i32,
    pub linked: Linked,
    pub stores: Arc<Stores>,
    /// Where its outboxes deliver to.
    pub stations: Arc<Stations>,
    /// Of its version.
    pub trial: Arc<Trial>,
}

/// Committed values that a task keeps in memory in front of its store.
const CACHE_BYTES: usize = 16 << 20;
/// Values handed to one call beforehand.
const PREFETCH_BYTES_MAX: usize = 4 << 20;

impl Revision {
    /// True if workers of this revision can go on in `next` as they are: the same members, reading the same
    /// partitions in the same way.
    pub fn can_become(&self, next: &Revision) -> bool {
        let topics = |revision: &Revision| -> Vec<(String, String)> {
            revision.inputs.iter().map(|input| (input.topic.clone(), input.topic_id.clone())).collect()
        };
        let changelog = |revision: &Revision| {
            revision.changelog.as_ref().map(|changelog| (changelog.topic.clone(), changelog.topic_id.clone()))
        };
        topics(self) == topics(next)
            && changelog(self) == changelog(next)
            && self.partitions == next.partitions
            && self.spec.workers == next.spec.workers
            && self.spec.guarantee == next.spec.guarantee
            && self.reads_headers() == next.reads_headers()
            && self.spec.inbox == next.spec.inbox
            && self.registered.incarnation == next.registered.incarnation
    }

    /// Headers of records are read for the handler, or because the node itself has a use for them.
    pub fn reads_headers(&self) -> bool {
        let by_header = self.spec.inbox.as_ref().is_some_and(|inbox| matches!(inbox.id, IdSource::Header(_)));
        self.manifest.wants_headers
            || by_header
            || self.spec.failures.keeps_records()
            || self.spec.correlation
    }

    /// What its tasks are told.
    pub fn task_config(&self) -> TaskConfig {
        let inputs = self.inputs.iter();
        let changelog = self.changelog.as_ref();
        TaskConfig {
            deployment: self.registered.name.clone(),
            group: self.group.clone(),
            revision: self.registered.revision,
            incarnation: self.registered.incarnation.clone(),
            guarantee: self.spec.guarantee,
            failures: self.spec.failures.clone(),
            inputs: inputs
                .map(|input| TaskInput { topic: input.topic.clone(), topic_id: input.topic_id.clone() })
                .collect(),
            outputs: self.outputs.clone(),
            stores: Arc::clone(&self.stores),
            keeps_rows: changelog.is_some(),
            inbox: self.spec.inbox.clone(),
            correlation: self.spec.correlation,
            dead_letters: self.dead_letters,
            changelog: ChangelogConfig {
                topic: changelog.map(|changelog| changelog.topic.clone()).unwrap_or_default(),
                topic_id: changelog.map(|changelog| changelog.topic_id.clone()).unwrap_or_default(),
                record_bytes_max: changelog.map_or(0, |changelog| changelog.record_bytes_max),
            },
            call_records_max: call_records_max(&self.spec),
            call_bytes_max: call_bytes_max(&self.spec),
            overlay_bytes_max: self.spec.commit.overlay_bytes as usize,
            cache_bytes: CACHE_BYTES,
            prefetch_bytes_max: PREFETCH_BYTES_MAX,
        }
    }
}

/// The ABI's bounds on one batch, whatever a deployment allows.
const BATCH_RECORDS_MAX: u32 = 500;
const BATCH_BYTES_MAX: u64 = 1 << 20;

/// Records of one call.
pub fn call_records_max(spec: &DeploymentSpec) -> usize {
    spec.limits.batch_records.min(BATCH_RECORDS_MAX) as usize
}

/// Bytes of one call, so that a batch and what comes of it fit the guest's memory.
pub fn call_bytes_max(spec: &DeploymentSpec) -> usize {
    (spec.limits.memory_bytes / 8).min(BATCH_BYTES_MAX) as usize
}

/// Compiles a module under the node's limits; or what is wrong with it.
pub fn compile(node: &NodeRuntime, bytes: &[u8]) -> Result<Module, Vec<Problem>> {
    Module::load_with(&node.compiler, bytes).map_err(|error| vec![Problem::at("module", error.to_string())])
}

/// What a document and a module need of the cluster, found there.
pub struct Checked {
    pub inputs: Vec<InputTopic>,
    pub outputs: Vec<OutputRule>,
    pub partitions: i32,
    /// The largest record that an input takes; internal topics take twice that.
    input_bytes_max: usize,
}

/// Checks a document against a module and both against the cluster. Changes nothing. `incarnation` is
/// the life of the deployment that this revision belongs to; none for the first. A module that cannot
/// be used has no manifest; `problems` then says why, and the rest is checked all the same.
pub fn check(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    manifest: Option<&Manifest>,
    incarnation: Option<&str>,
    mut problems: Vec<Problem>,
) -> Result<Option<Checked>, PrepareError> {
    problems.extend(manifest.map(|manifest| bind(spec, manifest)).unwrap_or_default());
    problems.extend(node.relays.check(&node.origin(&spec.name), spec.destinations()));
    let found = find_topics(node, spec)?;
    let view = node.control_log.view();
    let began_with = |topic: &str| incarnation.and_then(|life| view.began_with(life, topic));
    let mut unmet = missing(spec, &found, began_with);
    unmet.extend(made_again(spec, &found, began_with));
    unmet.extend(unequal(spec, &found));
    if !problems.is_empty() {
        // The world's problems are shown along with the document's.
        problems.extend(unmet);
        return Err(PrepareError::Invalid(problems));
    }
    if !unmet.is_empty() {
        return Err(PrepareError::Precondition(unmet));
    }
    let Some(manifest) = manifest else { return Ok(None) };
    let inputs: Vec<&Found> =
        manifest.inputs.iter().filter_map(|name| found.get(&spec.inputs.get(name)?.topic)).collect();
    let input_bytes_max = inputs.iter().map(|input| input.message_bytes_max()).max().unwrap_or(0);
    let outputs = manifest.outputs.iter().filter_map(|name| Some((name, spec.outputs.get(name)?)));
    Ok(Some(Checked {
        inputs: manifest
            .inputs
            .iter()
            .zip(&inputs)
            .filter_map(|(name, input)| {
                Some(InputTopic {
                    topic: input.topic.name.clone(),
                    topic_id: input.topic.id.to_string(),
                    start: spec.inputs.get(name)?.start,
                })
            })
            .collect(),
        outputs: outputs
            .filter_map(|(name, output)| rule(name, output, &found, 2 * input_bytes_max))
            .collect(),
        partitions: inputs.first().map_or(0, |input| input.topic.partitions),
        input_bytes_max,
    }))
}

/// What a row of an outbox has beside the emission's own bytes: its id, names, numbers.
const OUTBOX_ROW_BYTES: usize = 512;

/// What tasks are told of an output.
fn rule(
    name: &str,
    output: &OutputSpec,
    found: &BTreeMap<String, Found>,
    changelog_bytes_max: usize,
) -> Option<OutputRule> {
    let destination = match output {
        OutputSpec::Topic(topic) => {
            let rule = found.get(&topic.topic)?.as_output();
            return Some(OutputRule { ids: topic.ids, ..rule });
        }
        OutputSpec::Destination(destination) => destination,
    };
    let outbox = OutboxRule {
        name: name.into(),
        rows: destination.rows,
        bytes: destination.bytes,
        in_flight: destination.in_flight as usize,
        retry: destination.retry,
        attempts: destination.attempts,
    };
    Some(OutputRule {
        topic: format!("the outbox of {name}"),
        // Rows are kept in the changelog.
        record_bytes_max: changelog_bytes_max.saturating_sub(OUTBOX_ROW_BYTES),
        outbox: Some(Arc::new(outbox)),
        ..OutputRule::default()
    })
}

/// Inputs are read together, partition by partition.
fn unequal(spec: &DeploymentSpec, found: &BTreeMap<String, Found>) -> Option<Problem> {
    let inputs: Vec<&Topic> =
        spec.inputs.values().filter_map(|input| Some(&found.get(&input.topic)?.topic)).collect();
    let first = inputs.first()?;
    if inputs.iter().all(|input| input.partitions == first.partitions) {
        return None;
    }
    let shown: Vec<_> =
        inputs.iter().map(|input| format!("{} has {}", input.name, input.partitions)).collect();
    let message = format!(
        "they have different numbers of partitions ({}), so equal keys would not meet; give them the same number",
        shown.join(", ")
    );
    Some(Problem::at("inputs", message))
}

/// A topic with its settings.
struct Found {
    topic: Topic,
    configs: BTreeMap<String, String>,
}

impl Found {
    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.configs.get(name)?.parse().ok()
    }

    /// Kafka's default where the broker does not say.
    fn message_bytes_max(&self) -> usize {
        self.number("max.message.bytes").unwrap_or(1_048_588)
    }

    fn as_output(&self) -> OutputRule {
        let sets_time =
            self.configs.get("message.timestamp.type").is_some_and(|kind| kind == "LogAppendTime");
        OutputRule {
            topic: self.topic.name.clone(),
            record_bytes_max: self.message_bytes_max(),
            compacted: self.configs.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
            timestamps: (!sets_time).then(|| TimestampRule {
                before_max_ms: self.number("message.timestamp.before.max.ms").unwrap_or(i64::MAX),
                after_max_ms: self.number("message.timestamp.after.max.ms").unwrap_or(i64::MAX),
            }),
            ..OutputRule::default()
        }
    }
}

/// The topics of a document that exist.
fn find_topics(node: &NodeRuntime, spec: &DeploymentSpec) -> Result<BTreeMap<String, Found>, PrepareError> {
    let inputs = spec.inputs.values().map(|input| input.topic.clone());
    let names: BTreeSet<String> =
        inputs.chain(spec.outputs.values().filter_map(|output| output.topic().map(str::to_owned))).collect();
    let names: Vec<String> = names.into_iter().collect();
    let mut found = BTreeMap::new();
    for topic in node.admin.describe_topics(&names)?.into_iter().flatten() {
        let configs = node.admin.topic_configs(&topic.name)?;
        found.insert(topic.name.clone(), Found { topic, configs });
    }
    Ok(found)
}

/// Makes a registered revision ready to run: fetches and compiles its module, checks it, makes the
/// internal topics.
pub fn prepare(node: &NodeRuntime, registered: &Registered) -> Result<Revision, PrepareError> {
    let spec = registered.parsed.spec.clone().map_err(PrepareError::Invalid)?;
    let bytes = node.module(&registered.module)?;
    let module = compile(node, &bytes).map_err(PrepareError::Invalid)?;
    let manifest = module.manifest().clone();
    let checked = check(node, &spec, Some(&manifest), Some(&registered.incarnation), Vec::new())?;
    let checked = checked.ok_or_else(|| PrepareError::Unavailable("a module has its manifest".into()))?;
    let changelog = match keeps_anything(node, &spec, &manifest)? {
        false => None,
        true => Some(changelog(node, &spec, &checked)?),
    };
    let inbox = spec.inbox.as_ref().map(|_| inbox(node, &spec, &checked)).transpose()?;
    let mut outputs = checked.outputs.clone();
    let dead_letters = dead_letters(node, &spec, &checked)?.map(|topic| {
        outputs.push(topic);
        (outputs.len() - 1) as u16
    });
    let stores = Stores::new(&manifest.stores)
        .map_err(|error| PrepareError::Invalid(vec![Problem::at("module", error.to_string())]))?;
    let stores = Arc::new(stores);
    let linked = Linked::new(&module, &registered.name, &spec.config, &spec.limits)
        .map_err(|error| PrepareError::Invalid(vec![Problem::at("config", error.to_string())]))?
        .logging_to(node.handler_logs.ring(&registered.name));
    let stations = node.relays.open(&node.origin(&registered.name), spec.destinations());
    let stations = stations.map_err(PrepareError::Precondition)?;
    Ok(Revision {
        group: node.group(&registered.name),
        registered: registered.clone(),
        spec,
        manifest,
        inputs: checked.inputs,
        outputs,
        dead_letters,
        changelog,
        inbox,
        partitions: checked.partitions,
        linked,
        stores,
        stations,
        trial: node.trials.of(registered),
    })
}

/// State, records that are parked, rows of an outbox, or marks of letters that were given back. A deployment that
/// has had a changelog keeps it: an earlier revision may have parked records there.
fn keeps_anything(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    manifest: &Manifest,
) -> Result<bool, PrepareError> {
    let keeps_rows = spec.failures.keeps_records() || spec.inbox.is_some() || spec.has_outbox();
    if !manifest.stores.is_empty() || keeps_rows {
        return Ok(true);
    }
    let found = node.admin.describe_topics(&[node.changelog_topic(&spec.name)])?;
    Ok(found.into_iter().flatten().next().is_some())
}

/// Finds the inbox's topic, or makes it. It is trimmed by the node alone, when ids have expired.
fn inbox(node: &NodeRuntime, spec: &DeploymentSpec, checked: &Checked) -> Result<String, PrepareError> {
    let mut wanted = NewTopic::new(node.inbox_topic(&spec.name), checked.partitions)
        .with("cleanup.policy", "delete")
        .with("retention.ms", -1)
        .with("retention.bytes", -1)
        .with("message.timestamp.type", "LogAppendTime");
    wanted.replication = Some(spec.changelog.replication_factor.unwrap_or(node.config.replication_factor));
    Ok(node.admin.ensure_topic(&wanted)?.name)
}

/// Finds the dead-letter topic, or makes it. Letters are kept until somebody discards them, and each
/// lies in the partition with its task's number.
fn dead_letters(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    checked: &Checked,
) -> Result<Option<OutputRule>, PrepareError> {
    if !spec.failures.has_dead_letters() && !spec.has_outbox() {
        return Ok(None);
    }
    let record_bytes_max = match spec.failures.letter_format {
        LetterFormat::Raw => 2 * checked.input_bytes_max,
        // A byte takes up to six in a JSON text.
        LetterFormat::Envelope => 7 * checked.input_bytes_max,
    };
    let mut wanted = NewTopic::new(node.letters_of(spec), checked.partitions)
        .with("cleanup.policy", "delete")
        .with("message.timestamp.type", "CreateTime")
        .with("max.message.bytes", record_bytes_max)
        .with("retention.ms", -1)
        .with("retention.bytes", -1);
    wanted.replication = Some(spec.changelog.replication_factor.unwrap_or(node.config.replication_factor));
    let found = node.admin.describe_topics(std::slice::from_ref(&wanted.name))?;
    let topic = match found.into_iter().flatten().next() {
        // One that somebody made for the purpose may be kept as long as they like.
        Some(_) => {
            wanted.configs.retain(|(name, _)| name == "cleanup.policy" || name == "message.timestamp.type");
            node.admin.ensure_topic(&wanted)?
        }
        None => node.admin.ensure_topic(&wanted)?,
    };
    let configs = node.admin.topic_configs(&topic.name)?;
    Ok(Some(Found { topic, configs }.as_output()))
}

/// Finds the changelog, or makes it. One that does not fit its deployment any more is refused.
fn changelog(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    checked: &Checked,
) -> Result<ChangelogTopic, PrepareError> {
    let settings = &spec.changelog;
    let record_bytes_max = 2 * checked.input_bytes_max;
    let mut wanted = NewTopic::new(node.changelog_topic(&spec.name), checked.partitions)
        .with("cleanup.policy", "compact")
        .with("min.compaction.lag.ms", settings.min_compaction_lag.as_millis())
        .with("delete.retention.ms", settings.delete_retention.as_millis())
        .with("message.timestamp.type", "LogAppendTime")
        .with("max.message.bytes", record_bytes_max);
    wanted.replication = Some(settings.replication_factor.unwrap_or(node.config.replication_factor));
    let found = node.admin.describe_topics(std::slice::from_ref(&wanted.name))?;
    if let Some(found) = found.into_iter().flatten().find(|found| found.partitions < checked.partitions) {
        let input = checked.inputs.first().map_or("", |input| &input.topic);
        let reason = outgrown(input, checked.partitions, &found.name, found.partitions);
        return Err(PrepareError::Precondition(vec![reason.into()]));
    }
    let topic = node.admin.ensure_topic(&wanted)?;
    Ok(ChangelogTopic {
        topic: topic.name,
        topic_id: topic.id.to_string(),
        record_bytes_max,
        delete_retention: settings.delete_retention,
    })
}

/// Every way in which a document does not fit a module.
fn bind(spec: &DeploymentSpec, manifest: &Manifest) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut compare = |what: &str, bound: Vec<&String>, declared: &[String]| {
        for name in declared.iter().filter(|name| !bound.contains(name)) {
            let message = format!(
                "the module has {what} {name}, which is bound to no topic; add `{name}: {{ topic: ... }}`"
            );
            problems.push(Problem::at(format!("{what}s"), message));
        }
        for name in bound.iter().filter(|name| !declared.contains(name)) {
            let known = if declared.is_empty() { "none".to_owned() } else { declared.join(", ") };
            let message = format!("the module has no such {what}; it has {known}");
            problems.push(Problem::at(format!("{what}s.{name}"), message));
        }
    };
    compare("input", spec.inputs.keys().collect(), &manifest.inputs);
    compare("output", spec.outputs.keys().collect(), &manifest.outputs);
    if spec.guarantee == Guarantee::AtLeastOnce && spec.commit.min_interval > spec.commit.interval {
        problems.push(Problem::at("commit.min_interval", "is above commit.interval"));
    }
    problems
}

/// Why a deployment with state stops when its inputs have been given more partitions.
pub fn outgrown(input: &str, partitions: i32, changelog: &str, has: i32) -> String {
    format!(
        "topic {input} has {partitions} partitions, changelog {changelog} has {has}: a key whose partition has changed would not \
         find its state; deploy under another name to begin anew, or, if the keys stayed where they were, add partitions to the \
         changelog as well: kafka-topics --alter --topic {changelog} --partitions {partitions}"
    )
}

/// Why a deployment stops whose input is no more.
pub fn deleted(topic: &str, deployment: &str) -> String {
    format!(
        "topic {topic} has been deleted, and the offsets that deployment {deployment} had in it with it; bind another topic, or make \
         the topic anew, delete the deployment and deploy it again"
    )
}

/// Inputs whose topic is not the one that this life of the deployment began to read.
fn made_again<'a>(
    spec: &DeploymentSpec,
    found: &BTreeMap<String, Found>,
    began_with: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Problem> {
    let other = |(name, topic): (&String, &String)| {
        let (began, id) = (began_with(topic)?, found.get(topic)?.topic.id.to_string());
        let message = || recovery::made_again(&spec.name, topic, began, &id);
        (began != id).then(|| Problem::at(format!("inputs.{name}"), message()))
    };
    spec.inputs.iter().filter_map(|(name, input)| other((name, &input.topic))).collect()
}

fn missing<'a>(
    spec: &DeploymentSpec,
    found: &BTreeMap<String, Found>,
    began_with: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Problem> {
    let inputs = spec.inputs.iter().map(|(name, input)| ("input", name, input.topic.as_str()));
    let outputs = spec.outputs.iter().filter_map(|(name, output)| Some(("output", name, output.topic()?)));
    inputs
        .chain(outputs)
        .filter(|(_, _, topic)| !found.contains_key(*topic))
        .map(|(what, name, topic)| {
            let message = match began_with(topic).filter(|_| what == "input") {
                Some(_) => deleted(topic, &spec.name),
                None => format!(
                    "topic {topic} does not exist; create it first: tidemill topics create {topic} --partitions N"
                ),
            };
            Problem::at(format!("{what}s.{name}"), message)
        })
        .collect()
}
