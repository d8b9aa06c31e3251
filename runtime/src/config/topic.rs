//! Topics as documents.
//!
//! ```yaml
//! kind: topic
//! name: words
//! partitions: 6
//! replication_factor: 3
//! config: { cleanup.policy: compact, max.message.bytes: 2097152, retention.ms: null }
//! ```
//!
//! Names and values of `config` are Kafka's own, and the brokers judge them: which there are, and what they take,
//! differs from one version to the next.

use std::collections::BTreeMap;

use super::document::topic_name;
use super::problem::{Problems, Report};
use super::section::{Field, Section};
use super::yaml::{self, Node, Yaml};

/// What one document may ask for; `tidemill topics create` takes as many.
const PARTITIONS_MAX: u64 = 100_000;
const REPLICATION_MAX: u64 = 100;

/// A topic as its author wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDocument {
    pub name: String,
    pub partitions: i32,
    /// `None` = whatever it has, and of a new one the brokers' default.
    pub replication_factor: Option<i16>,
    /// Settings that are to be as written here; others are left as they are. `None` = not the topic's own: whatever
    /// counts for topics that do not say.
    pub config: BTreeMap<String, Option<String>>,
}

impl TopicDocument {
    /// Reads exactly one document.
    pub fn parse(text: &str) -> Result<TopicDocument, Problems> {
        let report = Report::default();
        let nodes = yaml::documents(text, &report)?;
        let [node] = nodes.as_slice() else {
            return Err(Problems::one("document", format!("expected one topic, found {}", nodes.len())));
        };
        let topic = read(node, &report);
        report.finish(topic)
    }
}

pub(super) fn read(node: &Node, report: &Report) -> Option<TopicDocument> {
    let mut section = Section::open(node, "", node.line, report)?;
    if section.take("kind").is_none() {
        section.missing("kind", "write kind: topic");
    }
    section.choice("kind", (), &[("topic", ())]);
    let name = name(&mut section);
    if section.take("partitions").is_none() {
        section.missing("partitions", "write how many the topic has");
    }
    let partitions = section.integer("partitions", 1, 1..=PARTITIONS_MAX) as i32;
    let replication = section.integer("replication_factor", 0, 1..=REPLICATION_MAX) as i16;
    let config = section.section("config").map_or_else(BTreeMap::new, |mut config| settings(&mut config));
    section.finish();
    Some(TopicDocument {
        name: name?,
        partitions,
        replication_factor: (replication > 0).then_some(replication),
        config,
    })
}

fn name(section: &mut Section<'_>) -> Option<String> {
    let Some(field) = section.take("name") else {
        section.missing("name", "write the topic's name");
        return None;
    };
    topic_name(&field)
}

fn settings(config: &mut Section<'_>) -> BTreeMap<String, Option<String>> {
    let mut settings = BTreeMap::new();
    for (name, field) in config.all() {
        let value = match &field.node.value {
            Yaml::Null => Some(None),
            Yaml::List(_) => words(&field).map(Some),
            _ => field.scalar().map(Some),
        };
        if let Some(value) = value {
            settings.insert(name.to_owned(), value);
        }
    }
    settings
}

/// A list as Kafka takes it.
fn words(field: &Field<'_>) -> Option<String> {
    let words: Option<Vec<String>> = field.items()?.iter().map(Field::scalar).collect();
    Some(words?.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_says_what_a_topic_is_to_be() {
        let text = "kind: topic\nname: words\npartitions: 6\nreplication_factor: 3\n\
                    config: { cleanup.policy: [compact, delete], retention.ms: 1000, min.cleanable.dirty.ratio: 0.5, \
                    segment.ms: null, preallocate: true }\n";
        let topic = TopicDocument::parse(text).expect("valid");
        assert_eq!((topic.name.as_str(), topic.partitions, topic.replication_factor), ("words", 6, Some(3)));
        let config: Vec<_> =
            topic.config.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let expected = [
            ("cleanup.policy", Some("compact,delete")),
            ("min.cleanable.dirty.ratio", Some("0.5")),
            ("preallocate", Some("true")),
            ("retention.ms", Some("1000")),
            ("segment.ms", None),
        ];
        assert_eq!(config, expected);
        let least = TopicDocument::parse("kind: topic\nname: a\npartitions: 1\n").expect("valid");
        assert_eq!((least.replication_factor, least.config.len()), (None, 0));
    }

    #[test]
    fn every_problem_of_a_document_is_said_with_its_line_and_remedy() {
        let cases = [
            (
                "kind: topic\nname: what?\npartition: 3\nreplication_factor: 0\nconfig: { retention.ms: { a: 1 } }\n",
                "line 2: name: `what?` is no topic name: Kafka takes 1 to 249 characters of a-z, A-Z, 0-9, `.`, `_` and `-`\n\
                 line 3: partition: unknown key, did you mean `partitions`?\n\
                 line 4: replication_factor: 0 is outside 1 to 100\n\
                 line 5: config.retention.ms: expected a single value, found a mapping",
            ),
            (
                "kind: Topic\nname: a\npartitions: many\nconfig: [retention.ms]\n",
                "line 1: kind: unknown value `Topic`, did you mean `topic`?\n\
                 line 3: partitions: expected a whole number, found a text\n\
                 line 4: config: expected a mapping, found a list",
            ),
            (
                "config: { cleanup.policy: [[compact]] }\n",
                "line 1: config.cleanup.policy[0]: expected a single value, found a list\n\
                 line 1: kind: is missing: write kind: topic\n\
                 line 1: name: is missing: write the topic's name\n\
                 line 1: partitions: is missing: write how many the topic has",
            ),
            ("", "document: expected one topic, found 0"),
            ("- a\n", "line 1: expected a mapping, found a list"),
        ];
        for (text, expected) in cases {
            let problems = TopicDocument::parse(text).expect_err(text);
            assert_eq!(problems.to_string(), expected, "for\n{text}");
        }
    }
}
