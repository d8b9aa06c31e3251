//! The topics of a document as they are found, and those that the deployment has for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::PrepareError;
use crate::config::deployment::DeploymentSpec;
use crate::config::failures::LetterFormat;
use crate::config::manifest::Manifest;
use crate::config::topic::TopicDocument;
use crate::kafka::admin::{NewTopic, Topic};
use crate::kafka::permissions::{Looked, Operation};
use crate::node::runtime::NodeRuntime;
use crate::task::{OutputRule, TimestampRule};

/// A topic with its settings.
pub(super) struct FoundTopic {
    pub topic: Topic,
    pub configs: BTreeMap<String, String>,
}

impl FoundTopic {
    /// As good as not there: a document says what it will be.
    fn nothing_yet(name: &str) -> FoundTopic {
        let topic = Topic { name: name.to_owned(), id: Uuid::nil(), partitions: 0, replication: 0 };
        FoundTopic { topic, configs: BTreeMap::new() }
    }

    /// As it is once its document has been applied. What the brokers have for topics that do not say, only a topic that
    /// is there shows.
    fn after(mut self, document: &TopicDocument) -> FoundTopic {
        self.topic.partitions = self.topic.partitions.max(document.partitions);
        for (name, value) in &document.config {
            match value {
                Some(value) => drop(self.configs.insert(name.clone(), value.clone())),
                None => drop(self.configs.remove(name)),
            }
        }
        self
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.configs.get(name)?.parse().ok()
    }

    /// How long its records are there; none where the broker does not say, or size alone decides.
    pub fn kept_for(&self) -> Option<Duration> {
        match self.number::<i64>("retention.ms")? {
            -1 => Some(Duration::MAX),
            ms => u64::try_from(ms).ok().map(Duration::from_millis),
        }
    }

    /// Kafka's default where the broker does not say.
    fn message_bytes_max(&self) -> usize {
        self.number("max.message.bytes").unwrap_or(1_048_588)
    }

    pub fn as_output(&self) -> OutputRule {
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
pub(super) fn look(
    node: &NodeRuntime,
    spec: &DeploymentSpec,
) -> Result<BTreeMap<String, Looked>, PrepareError> {
    let inputs = spec.inputs.values().map(|input| input.topic.clone());
    let names: BTreeSet<String> =
        inputs.chain(spec.outputs.values().filter_map(|output| output.topic().map(str::to_owned))).collect();
    Ok(node.admin.look(&names.into_iter().collect::<Vec<_>>())?)
}

/// Those that exist, with their settings where they may be read, as they are once these documents have been applied;
/// and those that the documents are about to make.
pub(super) fn find_topics(
    node: &NodeRuntime,
    looked: &BTreeMap<String, Looked>,
    documents: &[TopicDocument],
) -> Result<BTreeMap<String, FoundTopic>, PrepareError> {
    let is_readable = |looked: &Looked| match looked {
        Looked::There(_, permitted) => permitted.allows(Operation::DescribeConfigs),
        Looked::Missing | Looked::Denied => false,
    };
    let readable = looked.iter().filter(|(_, looked)| is_readable(looked));
    let readable: Vec<&str> = readable.map(|(name, _)| name.as_str()).collect();
    let mut configs = node.admin.configs_by_topic(&readable)?;
    let mut found = BTreeMap::new();
    for (name, looked) in looked {
        let document = documents.iter().find(|document| document.name == *name);
        let now = match looked {
            Looked::There(topic, _) => {
                FoundTopic { topic: topic.clone(), configs: configs.remove(name).unwrap_or_default() }
            }
            Looked::Missing if document.is_some() => FoundTopic::nothing_yet(name),
            Looked::Missing | Looked::Denied => continue,
        };
        let then = match document {
            Some(document) => now.after(document),
            None => now,
        };
        found.insert(name.clone(), then);
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
    pub(super) changelog: Option<NewTopic>,
    pub(super) inbox: Option<NewTopic>,
    pub(super) dead_letters: Option<NewTopic>,
    pub(super) events: Option<NewTopic>,
    pub(super) record_bytes_max: usize,
}

impl InternalTopics {
    pub(super) fn of(
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
        // Nobody but their readers has a use for events: they go when the brokers let records go.
        let events = |name| topic(name).with("cleanup.policy", "delete");
        Ok(InternalTopics {
            partitions,
            input: inputs.first().map(|input| input.topic.name.clone()).unwrap_or_default(),
            changelog: keeps_anything(node, spec, manifest)?.then(changelog),
            inbox: spec.inbox.as_ref().map(|_| inbox()),
            dead_letters: spec.writes_letters().then(dead_letters),
            events: node.events_of(spec).map(events),
            record_bytes_max,
        })
    }

    pub fn all(&self) -> impl Iterator<Item = &NewTopic> {
        [&self.changelog, &self.inbox, &self.dead_letters, &self.events].into_iter().flatten()
    }

    pub fn is_changelog(&self, topic: &NewTopic) -> bool {
        self.changelog.as_ref() == Some(topic)
    }

    /// What the node does with one of them once it is there.
    pub fn operations(&self, topic: &NewTopic) -> Vec<Operation> {
        let mut needed = vec![Operation::Write, Operation::DescribeConfigs];
        needed.extend((self.events.as_ref() != Some(topic)).then_some(Operation::Read));
        // Expired ids are deleted from its beginning.
        needed.extend((self.inbox.as_ref() == Some(topic)).then_some(Operation::Delete));
        needed
    }

    /// What is demanded of one that is there already. A dead-letter topic that somebody made for the
    /// purpose may keep letters as long as they like, and have partitions beyond those of the inputs, where no letter of
    /// this deployment lies; one for events may be that of many deployments.
    pub fn as_it_may_be(&self, topic: &NewTopic, found: &Topic) -> NewTopic {
        let mut wanted = topic.clone();
        if self.dead_letters.as_ref() == Some(topic) {
            wanted.configs.retain(|(name, _)| name == "cleanup.policy" || name == "message.timestamp.type");
            wanted.partitions = wanted.partitions.max(found.partitions);
        }
        if self.events.as_ref() == Some(topic) {
            wanted.partitions = found.partitions;
        }
        wanted
    }
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
