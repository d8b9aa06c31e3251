//! A deployment document: the binding of a module to topics, stores, guarantee and limits.

use std::collections::BTreeMap;
use std::time::Duration;

pub use super::failures::Failures;
use super::outbox::Destination;
pub use super::rollout::RolloutSpec;

/// One deployment, after every check of its document.
#[derive(Debug, Clone, PartialEq)]
pub struct DeploymentSpec {
    /// 1 to 100 characters of `[a-z0-9-]`; part of topic and group names.
    pub name: String,
    /// Path of the module as the author wrote it; only the CLI reads it.
    pub module: String,
    /// By the manifest's logical name.
    pub inputs: BTreeMap<String, InputSpec>,
    pub outputs: BTreeMap<String, OutputSpec>,
    pub guarantee: Guarantee,
    /// Threads on each node, each with a consumer and a producer of its own.
    pub workers: u32,
    /// Handed to the handler's `init` as JSON.
    pub config: serde_json::Value,
    pub failures: Failures,
    pub rollout: RolloutSpec,
    pub inbox: Option<InboxSpec>,
    /// Emissions inherit correlation and trace of the records that cause them.
    pub correlation: bool,
    pub limits: Limits,
    pub commit: CommitSpec,
    pub changelog: ChangelogSpec,
    pub ownership: Ownership,
}

/// Who answers for a deployment, and for what. Shown with it and kept with every version; nothing is
/// decided by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// The team that it belongs to.
    pub owner: Option<String>,
    /// Whom to call when it fails.
    pub oncall: Option<String>,
    /// How much depends on it; `1` is the most.
    pub tier: Option<String>,
    /// What it promises, in words.
    pub slo: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct InputSpec {
    pub topic: String,
    pub start: Start,
}

/// Where an output goes.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputSpec {
    Topic(TopicSpec),
    /// Outside the transaction: through the outbox.
    Destination(Box<Destination>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    pub topic: String,
    /// Every record carries its `tidemill-id`.
    pub ids: bool,
    pub emit: Emit,
}

/// Which of the records of a key are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Emit {
    #[default]
    Each,
    /// The last one of each commit.
    Commit,
}

impl Emit {
    pub const ALL: [(&'static str, Emit); 2] = [("each", Emit::Each), ("commit", Emit::Commit)];
}

impl OutputSpec {
    pub fn topic(&self) -> Option<&str> {
        match self {
            OutputSpec::Topic(topic) => Some(&topic.topic),
            OutputSpec::Destination(_) => None,
        }
    }
}

impl DeploymentSpec {
    /// Every topic that the document names, and where it does.
    pub fn topics(&self) -> impl Iterator<Item = (String, &str)> {
        self.input_topics().chain(self.written_topics())
    }

    /// Those of inputs.
    pub fn input_topics(&self) -> impl Iterator<Item = (String, &str)> {
        self.inputs.iter().map(|(name, input)| (format!("inputs.{name}.topic"), input.topic.as_str()))
    }

    /// Those of outputs, dead letters and failure events. Where the node has a topic for dead letters it is none of a
    /// document that makes none.
    pub fn written_topics(&self) -> impl Iterator<Item = (String, &str)> {
        let outputs = self
            .outputs
            .iter()
            .filter_map(|(name, output)| Some((format!("outputs.{name}.topic"), output.topic()?)));
        let Failures { dead_letters, events, .. } = &self.failures;
        let dead_letters = dead_letters.as_ref().filter(|_| self.writes_letters());
        let events = events.as_ref().and_then(|events| events.topic.as_ref());
        let failures = [("failures.dead_letters.topic", dead_letters), ("failures.events.topic", events)];
        let failures =
            failures.into_iter().filter_map(|(key, topic)| Some((key.to_owned(), topic?.as_str())));
        outputs.chain(failures)
    }

    /// Every file and variable of a node that the document names, and where it does.
    pub fn secrets(&self) -> impl Iterator<Item = (String, String)> {
        self.destinations().flat_map(|(name, destination)| {
            let named = destination.secrets().into_iter();
            named.map(move |(key, secret)| (format!("outputs.{name}.{key}"), secret))
        })
    }

    /// Outputs that go through the outbox.
    pub fn destinations(&self) -> impl Iterator<Item = (&String, &Destination)> {
        self.outputs.iter().filter_map(|(name, output)| match output {
            OutputSpec::Topic(_) => None,
            OutputSpec::Destination(destination) => Some((name, &**destination)),
        })
    }

    pub fn has_outbox(&self) -> bool {
        self.destinations().next().is_some()
    }

    /// A record, or a row of an outbox, may become a dead letter.
    pub fn writes_letters(&self) -> bool {
        self.failures.has_dead_letters() || self.has_outbox()
    }
}

/// What is remembered of the records that have come in, and for how long. It has an id, a sequence, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxSpec {
    /// What makes a record a repetition of an earlier one of its partition: one thing, which is the id as it
    /// is, or several, which [`join_id`] joins. Never an empty list.
    pub id: Option<Vec<IdSource>>,
    /// What tells that records of a key are missing, late or repeated.
    pub sequence: Option<SequenceSpec>,
    /// How long an id, or the last number of a key, is remembered, in the time of the records.
    pub ttl: Duration,
}

impl InboxSpec {
    /// Something of it is in a header.
    pub fn reads_headers(&self) -> bool {
        let sequence = self.sequence.as_ref().map(|sequence| &sequence.number);
        let is_header = |place: &Place| matches!(place, Place::Header(_));
        self.id.iter().flatten().any(|source| matches!(source, IdSource::In(place) if is_header(place)))
            || sequence.is_some_and(is_header)
    }

    /// What it remembers is of an input, not of all of them.
    pub fn names_inputs(&self) -> bool {
        self.sequence.is_some() || self.id.iter().flatten().any(|source| *source == IdSource::Offset)
    }
}

/// An id of several parts: `LENGTH:PART,LENGTH:PART`, lengths in bytes and decimal digits. So different parts
/// never make the same id, whatever is in them. On disk and in Kafka: never change.
pub fn join_id<T: AsRef<[u8]>>(parts: &[T]) -> Vec<u8> {
    let mut id = Vec::new();
    for part in parts {
        let part: &[u8] = part.as_ref();
        if !id.is_empty() {
            id.push(b',');
        }
        id.extend_from_slice(part.len().to_string().as_bytes());
        id.push(b':');
        id.extend_from_slice(part);
    }
    id
}

/// Where a record's id is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdSource {
    In(Place),
    Key,
    /// The SHA-256 of the value, in hexadecimal digits. A tombstone has none.
    Hash,
    /// The record's own place in its topic: no two records have the same.
    Offset,
}

/// Where in a record something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The first header of that name.
    Header(String),
    /// A JSON pointer into the value.
    Json(String),
}

/// The numbers that a producer gives to the records of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSpec {
    pub number: Place,
    pub gaps: Gaps,
}

/// What a number means that is above the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gaps {
    /// Records are missing: numbers rise by one.
    #[default]
    Report,
    /// Nothing: numbers rise by as much as they like.
    Ignore,
}

impl Gaps {
    pub const ALL: [(&'static str, Gaps); 2] = [("report", Gaps::Report), ("ignore", Gaps::Ignore)];
}

impl std::fmt::Display for IdSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IdSource::In(place) => place.fmt(f),
            IdSource::Key => f.write_str("key"),
            IdSource::Hash => f.write_str("hash"),
            IdSource::Offset => f.write_str("offset"),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Header(name) => write!(f, "header:{name}"),
            Place::Json(pointer) => write!(f, "json:{pointer}"),
        }
    }
}

/// Where a partition that has never been read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    #[default]
    Earliest,
    Latest,
    /// The first record at or after this time, milliseconds since the epoch.
    Timestamp(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guarantee {
    #[default]
    ExactlyOnce,
    AtLeastOnce,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance.
    pub memory_bytes: u64,
    /// CPU time for one record. A call with several gets the sum, but no more than a second, or this if
    /// it is more.
    pub batch_time: Duration,
    /// Bytes that one record may emit and write.
    pub emit_bytes: u64,
    /// Emissions of one record.
    pub emit_records: u32,
    /// Elements of all tables of one instance.
    pub table_elements: u32,
    /// Records a call.
    pub batch_records: u32,
    /// Keys and values that one task keeps in its stores; none = as much as the disk holds.
    pub store_bytes: Option<u64>,
    /// Lines a second that the deployment's handlers may log on one node.
    pub log_lines: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitSpec {
    /// Longest time between two commits while records flow.
    pub interval: Duration,
    /// Shortest time between two commits; a commit comes this soon once the input has run dry.
    pub min_interval: Duration,
    /// Bytes of uncommitted effects that force a commit.
    pub overlay_bytes: u64,
    pub max_records: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangelogSpec {
    /// Of internal topics; `None` = the node's default.
    pub replication_factor: Option<i16>,
    pub min_compaction_lag: Duration,
    pub delete_retention: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes: 64 << 20,
            batch_time: Duration::from_secs(5),
            emit_bytes: 4 << 20,
            emit_records: 10_000,
            // A Rust guest has a few hundred functions behind pointers; this is ample and still small.
            table_elements: 100_000,
            batch_records: 500,
            store_bytes: None,
            log_lines: 100,
        }
    }
}

impl Default for CommitSpec {
    fn default() -> CommitSpec {
        CommitSpec {
            interval: Duration::from_millis(100),
            min_interval: Duration::from_millis(10),
            overlay_bytes: 8 << 20,
            max_records: 1_000_000,
        }
    }
}

impl ChangelogSpec {
    /// Under `at_least_once` a day passes before compaction, because a record may be ahead of the
    /// committed offset; under `exactly_once` it never is.
    pub fn default_for(guarantee: Guarantee) -> ChangelogSpec {
        let day = Duration::from_secs(86_400);
        ChangelogSpec {
            replication_factor: None,
            min_compaction_lag: match guarantee {
                Guarantee::ExactlyOnce => Duration::ZERO,
                Guarantee::AtLeastOnce => day,
            },
            delete_retention: day,
        }
    }
}
