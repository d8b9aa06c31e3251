//! Files of documents: which kind each one is, and each one's own text.
//!
//! A document without `kind` is a deployment.

use std::collections::BTreeSet;

use super::deployment::DeploymentSpec;
use super::document::{self, SpecDefaults};
use super::problem::{Problems, Report};
use super::section::Section;
use super::topic::{self, TopicDocument};
use super::yaml::{self, Node};

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    Deployment(Box<DeploymentSpec>),
    Topic(TopicDocument),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deployment,
    Topic,
}

impl Document {
    /// Reads every document of a file, in order, with the built-in defaults. At least one.
    pub fn parse_all(text: &str) -> Result<Vec<Document>, Problems> {
        Document::parse_all_with(text, &SpecDefaults::default())
    }

    pub(super) fn parse_all_with(text: &str, defaults: &SpecDefaults) -> Result<Vec<Document>, Problems> {
        let report = Report::default();
        let nodes = yaml::documents(text, &report)?;
        if nodes.is_empty() {
            return Err(Problems::one(
                "document",
                "is empty: a deployment needs at least name, module and inputs",
            ));
        }
        let known: Vec<_> = nodes.iter().filter_map(|node| Some((kind(node, &report)?, node))).collect();
        refuse_equal_names(&known, &report);
        let documents = known.iter().filter_map(|&(kind, node)| read(kind, node, defaults, &report));
        let documents: Vec<_> = documents.collect();
        report.finish(Some(documents))
    }

    /// The parts of a file with several documents, each with what it parses to: the text is what the registry keeps,
    /// exactly as its author wrote it.
    pub fn split(text: &str) -> Result<Vec<(String, Document)>, Problems> {
        // Whole-file check first, so that line numbers are the file's.
        let documents = Document::parse_all(text)?;
        let mut parts: Vec<String> = vec![String::new()];
        for line in text.lines() {
            if line == "---" || line.starts_with("--- ") {
                parts.push(String::new());
            }
            if let Some(part) = parts.last_mut() {
                part.push_str(line);
                part.push('\n');
            }
        }
        parts.retain(|part| yaml::documents(part, &Report::default()).is_ok_and(|nodes| !nodes.is_empty()));
        if parts.len() != documents.len() {
            let message = "documents must be separated by lines of exactly `---`";
            return Err(Problems::one("document", message));
        }
        Ok(parts.into_iter().zip(documents).collect())
    }
}

fn read(kind: Kind, node: &Node, defaults: &SpecDefaults, report: &Report) -> Option<Document> {
    match kind {
        Kind::Deployment => {
            document::read(node, defaults, report).map(|spec| Document::Deployment(Box::new(spec)))
        }
        Kind::Topic => topic::read(node, report).map(Document::Topic),
    }
}

/// `None`, reported, for a kind that there is not: what else would be said of the document means nothing.
fn kind(node: &Node, report: &Report) -> Option<Kind> {
    let mut section = Section::open(node, "", node.line, report)?;
    if section.take("kind").is_none() {
        return Some(Kind::Deployment);
    }
    let kinds = [("deployment", Some(Kind::Deployment)), ("topic", Some(Kind::Topic))];
    section.choice("kind", None, &kinds)
}

/// Each kind has names of its own. Whatever else is wrong with a document, its name counts: its author mends
/// all of it at once.
fn refuse_equal_names(documents: &[(Kind, &Node)], report: &Report) {
    let mut names = BTreeSet::new();
    for &(kind, node) in documents {
        let Some((line, name)) = document::name_in(node) else { continue };
        if !names.insert((kind, name)) {
            let done = match kind {
                Kind::Deployment => "deployed",
                Kind::Topic => "described",
            };
            let message = format!("`{name}` is {done} by an earlier document of this file");
            report.add(Some(line), "name", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPLOYMENT: &str = "name: words\nmodule: a.wasm\ninputs: { i: { topic: words } }\n";
    const TOPIC: &str = "kind: topic\nname: words\npartitions: 1\n";

    #[test]
    fn topics_and_deployments_lie_in_one_file_and_may_have_the_same_names() {
        let text = format!(
            "# the topic\n{TOPIC}---\n{DEPLOYMENT}---\nkind: deployment\n{}",
            DEPLOYMENT.replace("name: words", "name: b")
        );
        let parts = Document::split(&text).expect("valid");
        let named = parts.iter().map(|(_, document)| match document {
            Document::Topic(topic) => (true, topic.name.as_str()),
            Document::Deployment(spec) => (false, spec.name.as_str()),
        });
        let all: Vec<_> = named.collect();
        assert_eq!(all, [(true, "words"), (false, "words"), (false, "b")]);
        assert!(parts[0].0.starts_with("# the topic\nkind: topic\n"), "{parts:?}");
        assert!(TopicDocument::parse(&parts[0].0).is_ok());
        assert!(DeploymentSpec::parse(&parts[2].0).is_ok());
        let deployed = DeploymentSpec::parse(&parts[0].0).expect_err("a topic").to_string();
        assert_eq!(deployed, "kind: `words` is a topic, which nobody deploys");
    }

    #[test]
    fn a_kind_that_there_is_not_is_all_that_is_said_of_a_document() {
        let said = |text: &str| Document::parse_all(text).expect_err(text).to_string();
        assert_eq!(
            said(&format!("{DEPLOYMENT}---\nkind: Topic\nname: a\n")),
            "line 5: kind: unknown value `Topic`, did you mean `topic`?"
        );
        assert_eq!(
            said(&format!("{TOPIC}---\n{TOPIC}")),
            "line 6: name: `words` is described by an earlier document of this file"
        );
        let problems = said(&format!("{TOPIC}---\nname: b\nmodul: a.wasm\n---\nkind: topic\nname: c\n"));
        assert!(
            problems.contains("line 6: modul") && problems.contains("partitions: is missing"),
            "{problems}"
        );
    }

    #[test]
    fn equal_names_are_told_with_whatever_else_is_wrong_with_either_document() {
        let said = |text: &str| Document::parse_all(text).expect_err(text).to_string();
        let broken = DEPLOYMENT.replace("module", "modul");
        let clash = "line 5: name: `words` is deployed by an earlier document of this file";
        let typo = |line: u32| format!("line {line}: modul: unknown key, did you mean `module`?");
        assert_eq!(said(&format!("{broken}---\n{DEPLOYMENT}")), format!("{}\n{clash}", typo(2)));
        assert_eq!(said(&format!("{DEPLOYMENT}---\n{broken}")), format!("{clash}\n{}", typo(6)));
        let unknown = format!("kind: Topic\n{DEPLOYMENT}---\n{DEPLOYMENT}");
        assert_eq!(said(&unknown), "line 1: kind: unknown value `Topic`, did you mean `topic`?");
    }
}
