//! A revision made ready to run: document, module and topics, checked against each other.
//!
//! The same checks serve a deploy (nothing may be wrong before anything runs) and a start (the
//! world may have changed since).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::permissions;
use super::registered::Registered;
use super::runtime::NodeRuntime;
use super::trial::Trial;
use crate::config::deployment::{DeploymentSpec, Guarantee, IdSource, OutputSpec, Start};
use crate::config::failures::LetterFormat;
use crate::config::manifest::Manifest;
use crate::config::problem::Problem;
use crate::config::units::show_duration;
use crate::kafka::admin::{AdminError, NewTopic, Topic};
use crate::kafka::permissions::{Looked, Operation};
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
            store_bytes_max: self.spec.limits.store_bytes,
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
    Module::load_with(&node.compiler, bytes).map_err(|error| {
        let problems = error.into_problems();
        problems.iter().map(|problem| Problem::at("module", problem.to_string())).collect()
    })
}

/// What a document and a module need of the cluster, found there.
pub struct Checked {
    pub inputs: Vec<InputTopic>,
    pub outputs: Vec<OutputRule>,
    pub partitions: i32,
    internal: InternalTopics,
}

/// What is known to be wrong, so far.
#[derive(Debug, Default)]
pub struct Found {
    /// With the document or the module.
    pub problems: Vec<Problem>,
    /// With what the cluster, or the life that the deployment is in, has.
    pub unmet: Vec<Problem>,
    /// Group, internal topics and transactions are asked about as well: a start finds out by using them.
    pub deploys: bool,
}

/// Checks a document against a module and both against the cluster. Changes nothing. `incarnation` is
/// the life of the deployment that this revision belongs to; none for the first. A module that cannot
/// be used has no manifest; `found` then says why, and the rest is checked all the same.
pub fn check(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    manifest: Option<&Manifest>,
    incarnation: Option<&str>,
    found: Found,
) -> Result<Option<Checked>, PrepareError> {
    let Found { mut problems, mut unmet, deploys } = found;
    problems.extend(manifest.map(|manifest| bind(spec, manifest)).unwrap_or_default());
    problems.extend(node.relays.check(&node.origin(&spec.name), spec.destinations()));
    let looked = look(node, spec)?;
    let found = find_topics(node, &looked)?;
    let view = node.control_log.view();
    let began_with = |topic: &str| incarnation.and_then(|life| view.began_with(life, topic));
    unmet.extend(missing(spec, &looked, began_with));
    unmet.extend(permissions::of_topics(node, spec, &looked));
    unmet.extend(made_again(spec, &found, began_with));
    unmet.extend(unequal(spec, &found));
    unmet.extend(node.config.defaults.policy.exceeded(&spec.limits));
    unmet.extend(too_slow(spec, node.kafka.limits.poll_interval));
    let internal = manifest.map(|manifest| InternalTopics::of(node, spec, manifest, &found)).transpose()?;
    if let Some(internal) = internal.as_ref().filter(|_| deploys) {
        let is_bounded = looked.values().any(Looked::is_bounded);
        unmet.extend(permissions::of_the_rest(node, spec, internal, is_bounded)?);
    }
    if !problems.is_empty() {
        // The world's problems are shown along with the document's.
        problems.extend(unmet);
        return Err(PrepareError::Invalid(problems));
    }
    if !unmet.is_empty() {
        return Err(PrepareError::Precondition(unmet));
    }
    let (Some(manifest), Some(internal)) = (manifest, internal) else { return Ok(None) };
    let inputs: Vec<&FoundTopic> =
        manifest.inputs.iter().filter_map(|name| found.get(&spec.inputs.get(name)?.topic)).collect();
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
            .filter_map(|(name, output)| rule(name, output, &found, internal.record_bytes_max))
            .collect(),
        partitions: internal.partitions,
        internal,
    }))
}

/// What a row of an outbox has beside the emission's own bytes: its id, names, numbers.
const OUTBOX_ROW_BYTES: usize = 512;

/// What tasks are told of an output.
fn rule(
    name: &str,
    output: &OutputSpec,
    found: &BTreeMap<String, FoundTopic>,
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

/// A worker that handles a record for as long as it may must not be thrown out of its group meanwhile.
fn too_slow(spec: &DeploymentSpec, poll_interval: Duration) -> Option<Problem> {
    let longest = spec.limits.batch_time;
    let message = || {
        format!(
            "a record may take {}, and a worker that does not poll for kafka.properties.max.poll.interval.ms ({}) is thrown out of \
             its group: lower limits.batch_time, or raise max.poll.interval.ms on every node",
            show_duration(longest),
            poll_interval.as_millis()
        )
    };
    (longest >= poll_interval).then(|| Problem::at("limits.batch_time", message()))
}

/// Inputs are read together, partition by partition.
fn unequal(spec: &DeploymentSpec, found: &BTreeMap<String, FoundTopic>) -> Option<Problem> {
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
struct FoundTopic {
    topic: Topic,
    configs: BTreeMap<String, String>,
}

impl FoundTopic {
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

/// The topics of a document, as the brokers show them.
fn look(node: &NodeRuntime, spec: &DeploymentSpec) -> Result<BTreeMap<String, Looked>, PrepareError> {
    let inputs = spec.inputs.values().map(|input| input.topic.clone());
    let names: BTreeSet<String> =
        inputs.chain(spec.outputs.values().filter_map(|output| output.topic().map(str::to_owned))).collect();
    Ok(node.admin.look(&names.into_iter().collect::<Vec<_>>())?)
}

/// Those that exist, with their settings where they may be read.
fn find_topics(
    node: &NodeRuntime,
    looked: &BTreeMap<String, Looked>,
) -> Result<BTreeMap<String, FoundTopic>, PrepareError> {
    let mut found = BTreeMap::new();
    for (name, looked) in looked {
        let Looked::There(topic, permitted) = looked else { continue };
        let configs = match permitted.allows(Operation::DescribeConfigs) {
            true => node.admin.topic_configs(name)?,
            false => BTreeMap::new(),
        };
        found.insert(name.clone(), FoundTopic { topic: topic.clone(), configs });
    }
    Ok(found)
}

/// The topics that a deployment has for itself, as they are wanted.
pub struct InternalTopics {
    /// Of each of them.
    pub partitions: i32,
    /// An input, to be named in messages.
    pub input: String,
    /// None for a deployment that keeps nothing.
    changelog: Option<NewTopic>,
    inbox: Option<NewTopic>,
    dead_letters: Option<NewTopic>,
    record_bytes_max: usize,
}

impl InternalTopics {
    fn of(
        node: &NodeRuntime,
        spec: &DeploymentSpec,
        manifest: &Manifest,
        found: &BTreeMap<String, FoundTopic>,
    ) -> Result<InternalTopics, PrepareError> {
        let inputs: Vec<&FoundTopic> =
            spec.inputs.values().filter_map(|input| found.get(&input.topic)).collect();
        let partitions = inputs.first().map_or(0, |input| input.topic.partitions);
        // The largest record that an input takes, twice.
        let record_bytes_max =
            2 * inputs.iter().map(|input| input.message_bytes_max()).max().unwrap_or_default();
        let settings = &spec.changelog;
        let replication = Some(settings.replication_factor.unwrap_or(node.config.replication_factor));
        let topic = |name: String| NewTopic { replication, ..NewTopic::new(name, partitions) };
        let changelog = || {
            topic(node.changelog_topic(&spec.name))
                .with("cleanup.policy", "compact")
                .with("min.compaction.lag.ms", settings.min_compaction_lag.as_millis())
                .with("delete.retention.ms", settings.delete_retention.as_millis())
                .with("message.timestamp.type", "LogAppendTime")
                .with("max.message.bytes", record_bytes_max)
        };
        // Trimmed by the node alone, when ids have expired.
        let inbox = || {
            topic(node.inbox_topic(&spec.name))
                .with("cleanup.policy", "delete")
                .with("retention.ms", -1)
                .with("retention.bytes", -1)
                .with("message.timestamp.type", "LogAppendTime")
        };
        // Letters are kept until somebody discards them, each in the partition with its task's number.
        let letter_bytes_max = match spec.failures.letter_format {
            LetterFormat::Raw => record_bytes_max,
            // A byte takes up to six in a JSON text.
            LetterFormat::Envelope => record_bytes_max / 2 * 7,
        };
        let dead_letters = || {
            topic(node.letters_of(spec))
                .with("cleanup.policy", "delete")
                .with("message.timestamp.type", "CreateTime")
                .with("max.message.bytes", letter_bytes_max)
                .with("retention.ms", -1)
                .with("retention.bytes", -1)
        };
        Ok(InternalTopics {
            partitions,
            input: inputs.first().map(|input| input.topic.name.clone()).unwrap_or_default(),
            changelog: keeps_anything(node, spec, manifest)?.then(changelog),
            inbox: spec.inbox.as_ref().map(|_| inbox()),
            dead_letters: (spec.failures.has_dead_letters() || spec.has_outbox()).then(dead_letters),
            record_bytes_max,
        })
    }

    pub fn all(&self) -> impl Iterator<Item = &NewTopic> {
        [&self.changelog, &self.inbox, &self.dead_letters].into_iter().flatten()
    }

    pub fn is_changelog(&self, topic: &NewTopic) -> bool {
        self.changelog.as_ref() == Some(topic)
    }

    /// What the node does with one of them once it is there.
    pub fn operations(&self, topic: &NewTopic) -> Vec<Operation> {
        let mut needed = vec![Operation::Read, Operation::Write, Operation::DescribeConfigs];
        // Expired ids are deleted from its beginning.
        needed.extend((self.inbox.as_ref() == Some(topic)).then_some(Operation::Delete));
        needed
    }

    /// What is demanded of one that is there already. A dead-letter topic that somebody made for the
    /// purpose may keep letters as long as they like.
    pub fn as_it_may_be(&self, topic: &NewTopic) -> NewTopic {
        let mut topic = topic.clone();
        if self.dead_letters.as_ref() == Some(&topic) {
            topic.configs.retain(|(name, _)| name == "cleanup.policy" || name == "message.timestamp.type");
        }
        topic
    }
}

/// Makes a registered revision ready to run: fetches and compiles its module, checks it, makes the
/// internal topics.
pub fn prepare(node: &NodeRuntime, registered: &Registered) -> Result<Revision, PrepareError> {
    let spec = registered.parsed.spec.clone().map_err(PrepareError::Invalid)?;
    let bytes = node.module(&registered.module)?;
    let module = compile(node, &bytes).map_err(PrepareError::Invalid)?;
    let manifest = module.manifest().clone();
    let checked = check(node, &spec, Some(&manifest), Some(&registered.incarnation), Found::default())?;
    let checked = checked.ok_or_else(|| PrepareError::Unavailable("a module has its manifest".into()))?;
    let changelog = changelog(node, &spec, &checked.internal)?;
    let inbox = checked.internal.inbox.as_ref().map(|topic| node.admin.ensure_topic(topic)).transpose()?;
    let mut outputs = checked.outputs.clone();
    let dead_letters = dead_letters(node, &checked.internal)?.map(|topic| {
        outputs.push(topic);
        (outputs.len() - 1) as u16
    });
    let ledger = &registered.ledger;
    let generation = |store: &str| ledger.generation(store);
    let stores = Stores::with_generations(&manifest.stores, generation, ledger.dropped())
        .map_err(|error| PrepareError::Invalid(vec![Problem::at("module", error.to_string())]))?;
    let stores = Arc::new(stores);
    let linked = Linked::new(&module, &registered.name, &spec.config, &spec.limits)
        .map_err(|error| PrepareError::Invalid(vec![Problem::at("config", error.to_string())]))?
        .counting(&node.telemetry)
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
        inbox: inbox.map(|topic| topic.name),
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

/// Finds the dead-letter topic, or makes it.
fn dead_letters(node: &NodeRuntime, internal: &InternalTopics) -> Result<Option<OutputRule>, PrepareError> {
    let Some(wanted) = &internal.dead_letters else { return Ok(None) };
    let found = node.admin.describe_topics(std::slice::from_ref(&wanted.name))?;
    let topic = match found.into_iter().flatten().next() {
        Some(_) => node.admin.ensure_topic(&internal.as_it_may_be(wanted))?,
        None => node.admin.ensure_topic(wanted)?,
    };
    let configs = node.admin.topic_configs(&topic.name)?;
    Ok(Some(FoundTopic { topic, configs }.as_output()))
}

/// Finds the changelog, or makes it. One that does not fit its deployment any more is refused.
fn changelog(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
    internal: &InternalTopics,
) -> Result<Option<ChangelogTopic>, PrepareError> {
    let Some(wanted) = &internal.changelog else { return Ok(None) };
    let found = node.admin.describe_topics(std::slice::from_ref(&wanted.name))?;
    if let Some(found) = found.into_iter().flatten().find(|found| found.partitions < internal.partitions) {
        let reason = outgrown(&internal.input, internal.partitions, &found.name, found.partitions);
        return Err(PrepareError::Precondition(vec![reason.into()]));
    }
    let topic = node.admin.ensure_topic(wanted)?;
    Ok(Some(ChangelogTopic {
        topic: topic.name,
        topic_id: topic.id.to_string(),
        record_bytes_max: internal.record_bytes_max,
        delete_retention: spec.changelog.delete_retention,
    }))
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
    found: &BTreeMap<String, FoundTopic>,
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
    looked: &BTreeMap<String, Looked>,
    began_with: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Problem> {
    let inputs = spec.inputs.iter().map(|(name, input)| ("input", name, input.topic.as_str()));
    let outputs = spec.outputs.iter().filter_map(|(name, output)| Some(("output", name, output.topic()?)));
    inputs
        .chain(outputs)
        .filter(|(_, _, topic)| looked.get(*topic).is_none_or(|looked| *looked == Looked::Missing))
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
