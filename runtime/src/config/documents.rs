//! Files of documents: which kind each one is, and each one's own text.
//!
//! A document without `kind` is a deployment.

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

#[derive(Debug, Clone, Copy)]
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
        let documents: Vec<_> = nodes.iter().filter_map(|node| read(node, defaults, &report)).collect();
        refuse_equal_names(&nodes, &documents, &report);
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

    fn name(&self) -> &str {
        match self {
            Document::Deployment(spec) => &spec.name,
            Document::Topic(topic) => &topic.name,
        }
    }

    fn is_named_like(&self, other: &Document) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.name() == other.name()
    }
}

fn read(node: &Node, defaults: &SpecDefaults, report: &Report) -> Option<Document> {
    match kind(node, report)? {
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

fn refuse_equal_names(nodes: &[Node], documents: &[Document], report: &Report) {
    // With a problem in some document the two lists do not line up; the names wait for the next try.
    if nodes.len() != documents.len() {
        return;
    }
    for (at, (node, document)) in nodes.iter().zip(documents).enumerate() {
        if documents[..at].iter().any(|earlier| earlier.is_named_like(document)) {
            let done = match document {
                Document::Deployment(_) => "deployed",
                Document::Topic(_) => "described",
            };
            let message = format!("`{}` is {done} by an earlier document of this file", document.name());
            report.add(Some(node.line), "name", message);
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
        let is_topic = |document: &Document| matches!(document, Document::Topic(_));
        let all: Vec<_> = parts.iter().map(|(_, document)| (is_topic(document), document.name())).collect();
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
            "line 5: name: `words` is described by an earlier document of this file"
        );
        let problems = said(&format!("{TOPIC}---\nname: b\nmodul: a.wasm\n---\nkind: topic\nname: c\n"));
        assert!(
            problems.contains("line 6: modul") && problems.contains("partitions: is missing"),
            "{problems}"
        );
    }
}
