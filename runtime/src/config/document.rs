//! Reads deployment documents: YAML in, [`DeploymentSpec`] or every problem out.
//!
//! Never panics on any input (a property test says so), because documents arrive over the network.

use std::collections::BTreeMap;
use std::time::Duration;

use super::deployment::{
    ChangelogSpec, CommitSpec, DeploymentSpec, Emit, Gaps, Guarantee, IdSource, InboxSpec, InputSpec, Limits,
    OutputSpec, Ownership, Place, SequenceSpec, Start, TopicSpec,
};
use super::documents::Document;
use super::failures;
use super::outbox::{self, BreakerSpec};
use super::policy::Policy;
use super::problem::{Problem, Problems, Report};
use super::rollout;
use super::section::{Field, Section};
use super::units;
use super::yaml::{self, Node, Yaml};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY: Duration = Duration::from_secs(86_400);

/// Inputs or outputs of one deployment.
const BINDINGS_MAX: usize = 64;
/// Parts that an id is joined of.
const ID_PARTS_MAX: usize = 8;

/// What a document that does not say gets; a node's configuration may change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecDefaults {
    pub start: Start,
    pub workers: u32,
    pub commit_interval: Duration,
    pub batch_records: u32,
    /// Caps the limits that a document does not set; those that it sets are judged at the deploy.
    pub policy: Policy,
    /// How often a transient failure is tried again, and the first pause between attempts.
    pub attempts: u32,
    pub first_pause: Duration,
    pub breaker: BreakerSpec,
    /// Where dead letters go. None = a topic of the deployment's own.
    pub dead_letters: Option<String>,
}

impl Default for SpecDefaults {
    fn default() -> SpecDefaults {
        SpecDefaults {
            start: Start::Earliest,
            workers: 1,
            commit_interval: Duration::from_millis(100),
            batch_records: 500,
            policy: Policy::default(),
            attempts: failures::ATTEMPTS,
            first_pause: failures::BACKOFF.min,
            breaker: outbox::BREAKER,
            dead_letters: None,
        }
    }
}

impl DeploymentSpec {
    /// Reads exactly one document, with the built-in defaults.
    pub fn parse(text: &str) -> Result<DeploymentSpec, Problems> {
        DeploymentSpec::parse_with(text, &SpecDefaults::default())
    }

    /// Reads exactly one document.
    pub fn parse_with(text: &str, defaults: &SpecDefaults) -> Result<DeploymentSpec, Problems> {
        let mut documents = Document::parse_all_with(text, defaults)?;
        match (documents.len(), documents.pop()) {
            (1, Some(Document::Deployment(spec))) => Ok(*spec),
            (1, Some(Document::Topic(topic))) => {
                Err(Problems::one("kind", format!("`{}` is a topic, which nobody deploys", topic.name)))
            }
            (count, _) => Err(Problems::one("document", format!("expected one deployment, found {count}"))),
        }
    }
}

/// The name in a text that is exactly one document, whatever else may be wrong with it.
pub fn name_of(text: &str) -> Option<String> {
    match yaml::documents(text, &Report::default()).ok()?.as_slice() {
        [node] => name_in(node).map(|(_, name)| name.to_owned()),
        _ => None,
    }
}

/// The name that a document gives itself, and the line where it does.
pub(super) fn name_in(node: &Node) -> Option<(u32, &str)> {
    let Yaml::Map(entries) = &node.value else { return None };
    match entries.iter().find(|(key, _)| key.name == "name")? {
        (key, Node { value: Yaml::Text(name), .. }) => Some((key.line, name.as_str())),
        _ => None,
    }
}

pub(super) fn read(node: &Node, defaults: &SpecDefaults, report: &Report) -> Option<DeploymentSpec> {
    let mut section = Section::open(node, "", node.line, report)?;
    let name = name(&mut section);
    let module = section.text("module");
    if module.is_none() && !has(node, "module") {
        section.missing("module", "write the path of a .wasm file or of a handler's crate");
    }
    let inputs = inputs(&mut section, defaults, report);
    let guarantee = section.choice(
        "guarantee",
        Guarantee::default(),
        &[("exactly_once", Guarantee::ExactlyOnce), ("at_least_once", Guarantee::AtLeastOnce)],
    );
    let outputs = outputs(&mut section, guarantee, defaults);
    let workers = section.integer("workers", defaults.workers.into(), 1..=64) as u32;
    let config = section.take("config").map_or(serde_json::json!({}), |field| field.node.value.json());
    let has_outbox = outputs.values().any(|output| output.topic().is_none());
    let failures = failures::read(&mut section, has_outbox, defaults);
    let rollout = rollout::read(&mut section);
    let limits = limits(&mut section, defaults);
    let commit = commit(&mut section, defaults, report);
    let changelog = changelog(&mut section, guarantee);
    let inbox = inbox(&mut section, guarantee);
    let correlation = section.flag("correlation");
    let ownership = ownership(&mut section);
    let letters = failures.dead_letters.as_deref().filter(|_| failures.has_dead_letters() || has_outbox);
    let events = failures.events.as_ref().and_then(|events| events.topic.as_deref());
    refuse_own_topics((letters, events), (&inputs, &outputs), section.line_of("failures"), report);
    if limits.emit_bytes > commit.overlay_bytes {
        let message = format!(
            "{} is above commit.overlay_bytes ({}): what one record writes must fit the overlay",
            units::show_bytes(limits.emit_bytes),
            units::show_bytes(commit.overlay_bytes)
        );
        report.add(section.line_of("limits"), "limits.emit_bytes", message);
    }
    section.take("kind"); // Whoever reads it as a deployment knows.
    section.finish();
    Some(DeploymentSpec {
        name: name?,
        module: module?,
        inputs,
        outputs,
        guarantee,
        workers,
        config,
        failures,
        rollout,
        inbox,
        correlation,
        limits,
        commit,
        changelog,
        ownership,
    })
}

/// Longest of the texts that say who answers for a deployment.
const OWNERSHIP_CHARS_MAX: usize = 200;

fn ownership(section: &mut Section<'_>) -> Ownership {
    let mut text = |name| {
        let field = section.take(name)?;
        // `tier: 1` is a number to YAML and a name to everybody else.
        let text = field.scalar()?;
        let length = text.chars().count();
        if length > OWNERSHIP_CHARS_MAX || text.chars().any(char::is_control) {
            field.refuse(format!(
                "has {length} characters: one line of at most {OWNERSHIP_CHARS_MAX} is kept"
            ));
        }
        Some(text)
    };
    Ownership { owner: text("owner"), oncall: text("oncall"), tier: text("tier"), slo: text("slo") }
}

/// Dead letters and events that the deployment reads again, or that readers of an output would meet; events among
/// letters. Of topics that have a name here: those that the node names after the deployment are looked at by it.
fn refuse_own_topics(
    (letters, events): (Option<&str>, Option<&str>),
    (inputs, outputs): (&BTreeMap<String, InputSpec>, &BTreeMap<String, OutputSpec>),
    line: Option<u32>,
    report: &Report,
) {
    let inputs = inputs.values().map(|input| input.topic.as_str());
    let bound: Vec<&str> = inputs.chain(outputs.values().filter_map(OutputSpec::topic)).collect();
    for (key, what, topic) in
        [("dead_letters", "dead letters", letters), ("events", "failure events", events)]
    {
        if let Some(topic) = topic.filter(|topic| bound.contains(topic)) {
            let message = format!(
                "`{topic}` is an input or output of this deployment: {what} need a topic of their own"
            );
            report.add(line, &format!("failures.{key}.topic"), message);
        }
    }
    if let Some(topic) = events.filter(|_| events == letters) {
        let message = format!("`{topic}` takes dead letters: failure events need a topic of their own");
        report.add(line, "failures.events.topic", message);
    }
}

fn has(node: &Node, name: &str) -> bool {
    matches!(&node.value, Yaml::Map(entries)
        if entries.iter().any(|(key, node)| key.name == name && node.value != Yaml::Null))
}

fn name(section: &mut Section<'_>) -> Option<String> {
    let Some(field) = section.take("name") else {
        section.missing("name", "write 1 to 100 characters of a-z, 0-9 and -");
        return None;
    };
    let name = field.text()?;
    let valid = (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !valid {
        field.refuse(format!("`{name}` is no deployment name: use 1 to 100 characters of a-z, 0-9 and -"));
        return None;
    }
    Some(name)
}

fn inputs(
    section: &mut Section<'_>,
    defaults: &SpecDefaults,
    report: &Report,
) -> BTreeMap<String, InputSpec> {
    let mut inputs: BTreeMap<String, InputSpec> = BTreeMap::new();
    let Some(field) = section.take("inputs") else {
        section.missing("inputs", "write inputs: { NAME: { topic: TOPIC } }");
        return inputs;
    };
    let Some(mut bindings) = field.section() else {
        return inputs;
    };
    let all = bindings.all();
    if all.is_empty() || all.len() > BINDINGS_MAX {
        field.refuse(format!("has {} entries: 1 to {BINDINGS_MAX} are possible", all.len()));
    }
    for (logical, field) in all {
        let Some(mut input) = field.section() else {
            continue;
        };
        let topic = topic(&mut input);
        let start = input.take("start").and_then(start).unwrap_or(defaults.start);
        input.finish();
        let Some(topic) = topic else { continue };
        if let Some((other, _)) = inputs.iter().find(|(_, earlier)| earlier.topic == topic) {
            let message = format!("inputs.{other} reads `{topic}` already: bind each topic once");
            report.add(Some(field.line), &field.path, message);
        }
        inputs.insert(logical.to_owned(), InputSpec { topic, start });
    }
    inputs
}

fn outputs(
    section: &mut Section<'_>,
    guarantee: Guarantee,
    defaults: &SpecDefaults,
) -> BTreeMap<String, OutputSpec> {
    let mut outputs = BTreeMap::new();
    let Some(mut bindings) = section.section("outputs") else {
        return outputs;
    };
    for (logical, field) in bindings.all() {
        if outputs.len() == BINDINGS_MAX {
            field.refuse(format!("is one too many: at most {BINDINGS_MAX} outputs are possible"));
            break;
        }
        let Some(mut output) = field.section() else {
            continue;
        };
        let spec = match outbox::is_destination(&mut output) {
            true => destination(&mut output, &field, defaults),
            false => topic_spec(&mut output, guarantee).map(OutputSpec::Topic),
        };
        output.finish();
        if let Some(spec) = spec {
            outputs.insert(logical.to_owned(), spec);
        }
    }
    outputs
}

fn topic_spec(output: &mut Section<'_>, guarantee: Guarantee) -> Option<TopicSpec> {
    let topic = topic(output);
    let ids = output.flag("ids");
    let emit = output.choice("emit", Emit::default(), &Emit::ALL);
    let strands_readers = ids && emit == Emit::Commit && guarantee == Guarantee::AtLeastOnce;
    if let Some(field) = output.take("emit").filter(|_| strands_readers) {
        // What is repeated may end elsewhere: the 10th has been sent, then the 7th is, and the 10th again.
        field.refuse(
            "commit does not go with `ids` under `guarantee: at_least_once`: after a repetition, a reader that drops ids it has \
             seen would end with an older record; leave out one of the two, or set `guarantee: exactly_once`",
        );
    }
    Some(TopicSpec { topic: topic?, ids, emit })
}

/// Outside the transaction.
fn destination(output: &mut Section<'_>, field: &Field<'_>, defaults: &SpecDefaults) -> Option<OutputSpec> {
    if let Some(emit) = output.take("emit") {
        emit.refuse("is for topics, and an outbox delivers each of its records: leave it out");
    }
    if output.take("topic").is_some() {
        let ways = ["http", "amqp", "kafka"].into_iter().filter(|way| output.take(way).is_some());
        field.refuse(format!(
            "has topic and {}: an output has one destination",
            ways.collect::<Vec<_>>().join(" and ")
        ));
    }
    let destination = outbox::read(output, field, defaults)?;
    Some(OutputSpec::Destination(Box::new(destination)))
}

/// A topic that must be named.
pub(super) fn topic(section: &mut Section<'_>) -> Option<String> {
    let Some(field) = section.take("topic") else {
        section.missing("topic", "write topic: NAME");
        return None;
    };
    topic_name(&field)
}

/// The name of a topic; `None`, reported, if it is none.
pub(super) fn topic_name(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    check_topic(&name).map_err(|message| field.refuse(message)).ok()?;
    Some(name)
}

/// Kafka's own rule for topic names.
pub fn check_topic(topic: &str) -> Result<(), String> {
    let valid = (1..=249).contains(&topic.len())
        && topic != "."
        && topic != ".."
        && topic.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if valid {
        return Ok(());
    }
    Err(format!(
        "`{topic}` is no topic name: Kafka takes 1 to 249 characters of a-z, A-Z, 0-9, `.`, `_` and `-`"
    ))
}

fn start(field: Field<'_>) -> Option<Start> {
    if let Yaml::Int(ms) = field.node.value {
        if let Ok(ms @ 0..) = i64::try_from(ms) {
            return Some(Start::Timestamp(ms));
        }
        field.refuse("a timestamp is a number of milliseconds since 1970, 0 or above");
        return None;
    }
    let text = field.text()?;
    match text.as_str() {
        "earliest" => Some(Start::Earliest),
        "latest" => Some(Start::Latest),
        _ => match units::parse_time_ms(&text) {
            Ok(ms) => Some(Start::Timestamp(ms)),
            Err(_) => {
                field.refuse(format!(
                    "unknown value `{text}`: write earliest, latest or a time like 2013-01-31T12:00:00Z"
                ));
                None
            }
        },
    }
}

fn inbox(section: &mut Section<'_>, guarantee: Guarantee) -> Option<InboxSpec> {
    let field = section.take("inbox")?;
    if guarantee == Guarantee::AtLeastOnce {
        field.refuse(
            "needs `guarantee: exactly_once`: an id and the effects of its record change in one commit",
        );
    }
    let mut inbox = field.section()?;
    let (id, sequence) = (inbox.take("id"), inbox.take("sequence"));
    if id.is_none() && sequence.is_none() {
        inbox.missing(
            "id",
            "write id: \"header:NAME\", key, \"json:/POINTER\", hash or offset; or sequence: \"header:NAME\" or \"json:/POINTER\"",
        );
    }
    let has_ttl = inbox.take("ttl").is_some();
    if !has_ttl {
        inbox.missing("ttl", "write how long an id or a number is remembered, like ttl: 24h");
    }
    let ttl = inbox.duration("ttl", DAY, Duration::from_secs(1)..=DAY * 3650);
    if let (Some(field), None) = (inbox.take("gaps"), &sequence) {
        field.refuse("says what a gap in a sequence means, and there is none: give it a `sequence` as well");
    }
    let gaps = inbox.choice("gaps", Gaps::default(), &Gaps::ALL);
    inbox.finish();
    let id = id.and_then(|field| id_sources(&field));
    let sequence = sequence.and_then(|field| {
        let text = field.text()?;
        let number = place(&text);
        if number.is_none() {
            field.refuse(format!(
                "unknown value `{text}`: write header:NAME or json:/POINTER (from the value's root)"
            ));
        }
        Some(SequenceSpec { number: number?, gaps })
    });
    (has_ttl && (id.is_some() || sequence.is_some())).then_some(InboxSpec { id, sequence, ttl })
}

/// One source, or a list of several that are joined.
fn id_sources(field: &Field<'_>) -> Option<Vec<IdSource>> {
    let Some(items) = field.items() else { return Some(vec![id_source(field)?]) };
    if !(2..=ID_PARTS_MAX).contains(&items.len()) {
        field.refuse(format!("a list joins 2 to {ID_PARTS_MAX} parts, and this one has {}", items.len()));
    }
    let mut parts = Vec::with_capacity(items.len());
    for item in &items {
        match id_source(item) {
            Some(IdSource::Offset) => {
                item.refuse("no two records have the same, so nothing joined with it repeats: leave it out");
            }
            Some(source) if parts.contains(&source) => item.refuse(format!("{source} is a part already")),
            Some(source) => parts.push(source),
            None => {} // Refused already.
        }
    }
    Some(parts)
}

fn id_source(field: &Field<'_>) -> Option<IdSource> {
    let text = field.text()?;
    let source = match text.as_str() {
        "key" => Some(IdSource::Key),
        "hash" => Some(IdSource::Hash),
        "offset" => Some(IdSource::Offset),
        _ => place(&text).map(IdSource::In),
    };
    if source.is_none() {
        field.refuse(format!(
            "unknown value `{text}`: write header:NAME, key, json:/POINTER (from the value's root), hash or \
             offset"
        ));
    }
    source
}

fn place(text: &str) -> Option<Place> {
    match text.split_once(':')? {
        ("header", name) if !name.is_empty() => Some(Place::Header(name.to_owned())),
        ("json", pointer) if pointer.starts_with('/') => Some(Place::Json(pointer.to_owned())),
        _ => None,
    }
}

fn limits(section: &mut Section<'_>, defaults: &SpecDefaults) -> Limits {
    let standard = Limits { batch_records: defaults.batch_records, ..Limits::default() };
    let standard = defaults.policy.cap(standard);
    let Some(mut limits) = section.section("limits") else {
        return standard;
    };
    let read = Limits {
        memory_bytes: limits.bytes("memory", standard.memory_bytes, MIB..=4 * GIB),
        batch_time: limits.duration(
            "batch_time",
            standard.batch_time,
            Duration::from_millis(1)..=Duration::from_secs(600),
        ),
        emit_bytes: limits.bytes("emit_bytes", standard.emit_bytes, KIB..=GIB),
        emit_records: limits.integer("emit_records", standard.emit_records.into(), 1..=1_000_000) as u32,
        table_elements: limits.integer("table_elements", standard.table_elements.into(), 1..=10_000_000)
            as u32,
        batch_records: limits.integer("batch_records", standard.batch_records.into(), 1..=500) as u32,
        store_bytes: match limits.bytes("store_bytes", standard.store_bytes.unwrap_or(0), KIB..=1024 * GIB) {
            0 => None,
            bytes => Some(bytes),
        },
        log_lines: limits.integer("log_lines", standard.log_lines.into(), 0..=100_000) as u32,
    };
    limits.finish();
    read
}

fn commit(section: &mut Section<'_>, defaults: &SpecDefaults, report: &Report) -> CommitSpec {
    let standard = CommitSpec { interval: defaults.commit_interval, ..CommitSpec::default() };
    // A node whose default interval is short must not make every document without one invalid.
    let standard = CommitSpec { min_interval: standard.min_interval.min(standard.interval), ..standard };
    let Some(mut commit) = section.section("commit") else {
        return standard;
    };
    let ms = Duration::from_millis;
    let interval = commit.duration("interval", standard.interval, ms(1)..=ms(60_000));
    let min_default = standard.min_interval.min(interval);
    let read = CommitSpec {
        interval,
        min_interval: commit.duration("min_interval", min_default, ms(0)..=ms(60_000)),
        overlay_bytes: commit.bytes("overlay_bytes", standard.overlay_bytes, 64 * KIB..=16 * GIB),
        max_records: commit.integer("max_records", standard.max_records, 1..=100_000_000),
    };
    if read.min_interval > read.interval {
        let message = format!(
            "{} is above commit.interval ({})",
            units::show_duration(read.min_interval),
            units::show_duration(read.interval)
        );
        report.add(commit.line_of("min_interval"), "commit.min_interval", message);
    }
    commit.finish();
    read
}

fn changelog(section: &mut Section<'_>, guarantee: Guarantee) -> ChangelogSpec {
    let standard = ChangelogSpec::default_for(guarantee);
    let Some(mut changelog) = section.section("changelog") else {
        return standard;
    };
    let days = |days: u32| DAY * days;
    let factor = changelog.integer("replication_factor", 0, 1..=15);
    let read = ChangelogSpec {
        replication_factor: (factor > 0).then_some(factor as i16),
        min_compaction_lag: changelog.duration(
            "min_compaction_lag",
            standard.min_compaction_lag,
            Duration::ZERO..=days(365),
        ),
        delete_retention: changelog.duration(
            "delete_retention",
            standard.delete_retention,
            Duration::from_secs(60)..=days(365),
        ),
    };
    changelog.finish();
    read
}

/// Adds the file's name to problems, for people who applied several files.
pub fn in_file(problems: Problems, file: &str) -> Problems {
    let rename = |problem: Problem| {
        let key = if problem.key.is_empty() { file.to_owned() } else { format!("{file}: {}", problem.key) };
        Problem { key, ..problem }
    };
    Problems(problems.0.into_iter().map(rename).collect())
}
