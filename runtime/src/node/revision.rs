//! A revision made ready to run: document, module and topics, checked against each other.
//!
//! The same checks serve a deploy (nothing may be wrong before anything runs) and a start (the
//! world may have changed since).

use std::collections::BTreeMap;
use std::time::Duration;

use super::modules::{self, ModuleError};
use super::registry::Registered;
use super::runtime::NodeRuntime;
use crate::config::deployment::{DeploymentSpec, Guarantee, Start};
use crate::config::manifest::Manifest;
use crate::kafka::admin::{NewTopic, TopicInfo};
use crate::ports::SourceError;
use crate::wasm::{Engine, Linked, Module};

/// Why a revision cannot run, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The document or the module is wrong.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// They are right, but the cluster does not have what they need.
    #[error("{}", .0.join("; "))]
    Precondition(Vec<String>),
    #[error("{0}")]
    Unavailable(String),
}

impl From<SourceError> for PrepareError {
    fn from(error: SourceError) -> PrepareError {
        match error {
            SourceError::Refused(reason) => PrepareError::Precondition(vec![reason]),
            SourceError::Fatal(reason) | SourceError::Unavailable(reason) => PrepareError::Unavailable(reason),
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

/// An output of a running revision, in the manifest's order.
#[derive(Debug, Clone)]
pub struct OutputTopic {
    pub topic: String,
    pub message_bytes_max: u64,
    /// Refuses records without a key.
    pub compacted: bool,
}

/// The changelog of a deployment with stores.
#[derive(Debug, Clone)]
pub struct ChangelogTopic {
    pub topic: String,
    pub topic_id: String,
    pub delete_retention: Duration,
}

/// Everything that the workers of one revision share, read-only.
pub struct Revision {
    pub registered: Registered,
    pub spec: DeploymentSpec,
    pub manifest: Manifest,
    pub group: String,
    pub inputs: Vec<InputTopic>,
    pub outputs: Vec<OutputTopic>,
    /// None for a deployment without stores.
    pub changelog: Option<ChangelogTopic>,
    /// Of every input; the tasks.
    pub partitions: i32,
    pub linked: Linked,
}

/// Compiles a module under the node's limits.
pub fn compile(engine: &Engine, bytes: &[u8]) -> Result<Module, PrepareError> {
    Module::load(engine, bytes).map_err(|error| PrepareError::Invalid(vec![error.to_string()]))
}

/// What a document and a module need of the cluster, found there.
pub struct Checked {
    pub inputs: Vec<InputTopic>,
    pub outputs: Vec<OutputTopic>,
    pub partitions: i32,
    /// The largest record that an input takes; internal topics take twice that.
    input_bytes_max: u64,
}

/// Checks a document against a module and both against the cluster. Changes nothing.
pub fn check(node: &NodeRuntime, spec: &DeploymentSpec, manifest: &Manifest) -> Result<Checked, PrepareError> {
    let problems = bind(spec, manifest);
    if !problems.is_empty() {
        return Err(PrepareError::Invalid(problems));
    }
    let names: Vec<&str> = spec
        .inputs
        .values()
        .map(|input| input.topic.as_str())
        .chain(spec.outputs.values().map(|output| output.topic.as_str()))
        .collect();
    let found: BTreeMap<String, TopicInfo> =
        node.admin.topics(&names)?.into_iter().map(|topic| (topic.name.clone(), topic)).collect();
    let problems = missing(spec, &found);
    if !problems.is_empty() {
        return Err(PrepareError::Precondition(problems));
    }
    let inputs: Vec<InputTopic> = manifest
        .inputs
        .iter()
        .filter_map(|name| {
            let input = spec.inputs.get(name)?;
            let topic = found.get(&input.topic)?;
            Some(InputTopic { topic: input.topic.clone(), topic_id: topic.id.clone(), start: input.start })
        })
        .collect();
    let outputs = manifest
        .outputs
        .iter()
        .filter_map(|name| {
            let topic = found.get(&spec.outputs.get(name)?.topic)?;
            Some(OutputTopic {
                topic: topic.name.clone(),
                message_bytes_max: topic.message_bytes_max(),
                compacted: topic.is_compacted(),
            })
        })
        .collect();
    let counts: Vec<i32> = inputs.iter().filter_map(|input| found.get(&input.topic)).map(|t| t.partitions).collect();
    let partitions = counts.first().copied().unwrap_or(0);
    if counts.iter().any(|&count| count != partitions) {
        let shown: Vec<_> =
            inputs.iter().zip(&counts).map(|(input, count)| format!("{} has {count}", input.topic)).collect();
        return Err(PrepareError::Precondition(vec![format!(
            "the inputs have different numbers of partitions ({}), so equal keys would not meet; give them the same number",
            shown.join(", ")
        )]));
    }
    let input_bytes_max =
        inputs.iter().filter_map(|input| found.get(&input.topic)).map(TopicInfo::message_bytes_max).max().unwrap_or(0);
    Ok(Checked { inputs, outputs, partitions, input_bytes_max })
}

/// Makes a registered revision ready to run: fetches and compiles its module, checks it, makes the
/// internal topics.
pub fn prepare(node: &NodeRuntime, registered: &Registered) -> Result<Revision, PrepareError> {
    let spec = DeploymentSpec::parse(&registered.document)
        .map_err(|problems| PrepareError::Invalid(problems.iter().map(ToString::to_string).collect()))?;
    let bytes = node.modules.load(&registered.module, || node.reader(&node.modules_topic())).map_err(module_error)?;
    let module = compile(&node.engine, &bytes)?;
    let manifest = module.manifest().clone();
    let checked = check(node, &spec, &manifest)?;
    let changelog = match manifest.stores.is_empty() {
        true => None,
        false => Some(changelog(node, &spec, &checked)?),
    };
    let linked = module
        .link(&registered.name, &spec.config, &spec.limits)
        .map_err(|error| PrepareError::Invalid(vec![error.to_string()]))?;
    Ok(Revision {
        group: node.group(&registered.name),
        registered: registered.clone(),
        spec,
        manifest,
        inputs: checked.inputs,
        outputs: checked.outputs,
        changelog,
        partitions: checked.partitions,
        linked,
    })
}

/// Finds the changelog, or makes it. One that does not fit its deployment any more is refused.
fn changelog(node: &NodeRuntime, spec: &DeploymentSpec, checked: &Checked) -> Result<ChangelogTopic, PrepareError> {
    let name = node.changelog_topic(&spec.name);
    let settings = &spec.changelog;
    let config = BTreeMap::from([
        ("cleanup.policy".to_owned(), "compact".to_owned()),
        ("min.compaction.lag.ms".to_owned(), settings.min_compaction_lag.as_millis().to_string()),
        ("delete.retention.ms".to_owned(), settings.delete_retention.as_millis().to_string()),
        ("message.timestamp.type".to_owned(), "LogAppendTime".to_owned()),
        ("max.message.bytes".to_owned(), (2 * checked.input_bytes_max).to_string()),
    ]);
    let replication = settings.replication_factor.unwrap_or(node.config.replication_factor);
    let wanted = NewTopic { name: name.clone(), partitions: checked.partitions, replication, config };
    let topic = node.admin.ensure_topic(&wanted)?;
    if topic.partitions != checked.partitions {
        return Err(PrepareError::Precondition(vec![format!(
            "{name} has {} partitions and the inputs have {}: equal keys would find another store. Give the inputs \
             {} partitions again, or deploy under a new name",
            topic.partitions, checked.partitions, topic.partitions
        )]));
    }
    Ok(ChangelogTopic { topic: name, topic_id: topic.id, delete_retention: settings.delete_retention })
}

/// Every way in which a document does not fit a module.
fn bind(spec: &DeploymentSpec, manifest: &Manifest) -> Vec<String> {
    let mut problems = Vec::new();
    let mut compare = |what: &str, bound: Vec<&String>, declared: &[String]| {
        for name in declared.iter().filter(|name| !bound.contains(name)) {
            problems.push(format!("{what}s: the module has {what} {name}, which is bound to no topic; add `{name}: {{ topic: ... }}`"));
        }
        for name in bound.iter().filter(|name| !declared.contains(name)) {
            let known = if declared.is_empty() { "none".to_owned() } else { declared.join(", ") };
            problems.push(format!("{what}s.{name}: the module has no such {what}; it has {known}"));
        }
    };
    compare("input", spec.inputs.keys().collect(), &manifest.inputs);
    compare("output", spec.outputs.keys().collect(), &manifest.outputs);
    if spec.guarantee == Guarantee::AtLeastOnce && spec.commit.min_interval > spec.commit.interval {
        problems.push("commit.min_interval is above commit.interval".into());
    }
    problems
}

fn missing(spec: &DeploymentSpec, found: &BTreeMap<String, TopicInfo>) -> Vec<String> {
    let inputs = spec.inputs.iter().map(|(name, input)| ("input", name, &input.topic));
    let outputs = spec.outputs.iter().map(|(name, output)| ("output", name, &output.topic));
    inputs
        .chain(outputs)
        .filter(|(_, _, topic)| !found.contains_key(*topic))
        .map(|(what, name, topic)| {
            format!("{what}s.{name}: topic {topic} does not exist; create it first: tidemill topics create {topic} --partitions N")
        })
        .collect()
}

fn module_error(error: ModuleError) -> PrepareError {
    match error {
        modules::ModuleError::Missing { .. } => PrepareError::Precondition(vec![error.to_string()]),
        _ => PrepareError::Unavailable(error.to_string()),
    }
}
