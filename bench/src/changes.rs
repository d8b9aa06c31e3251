//! What of a node is not as by default, in one line:
//! `commit.max_records=10000,--set=kafka.client=librdkafka,bin=/elsewhere/tidemill`.
//! `guarantee=at-least-once` is of its deployment, too, and not as the others of a comparison have it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Error, Result};
use clap::ValueEnum;

use crate::terms::Guarantee;

/// Without any: the program beside this one, with its default settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Another build.
    pub program: Option<PathBuf>,
    /// Of the node's configuration: what follows `--set`.
    pub settings: Vec<String>,
    /// Of its deployment.
    pub guarantee: Option<Guarantee>,
    /// Of its deployment's document: `section.name` or `name`, and the value.
    pub document: Vec<(String, String)>,
}

impl Changes {
    /// Reads changes that are separated by commas, which no value may have therefore.
    pub fn parse(text: &str) -> Result<Changes> {
        let mut changes = Changes::default();
        for change in text.split(',') {
            let wrong = || format!("{change:?} is not NAME=VALUE");
            let (name, value) = change.split_once('=').with_context(wrong)?;
            match name {
                "bin" => changes.program = Some(value.into()),
                "--set" => changes.settings.push(value.to_owned()),
                "guarantee" => {
                    changes.guarantee = Some(Guarantee::from_str(value, false).map_err(Error::msg)?);
                }
                _ => changes.document.push((name.to_owned(), value.to_owned())),
            }
        }
        Ok(changes)
    }
}

/// Lines of a document that say all of these, each section in one line. Of what is said twice the last counts.
pub fn lines(document: &[(&str, &str)]) -> String {
    let mut sections: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for &(path, value) in document {
        // What is no section's has no name within one.
        let (section, name) = path.split_once('.').unwrap_or((path, ""));
        sections.entry(section).or_default().insert(name, value);
    }
    let line = |(section, values): (&str, BTreeMap<&str, &str>)| match values.get("") {
        Some(value) => format!("{section}: {value}\n"),
        None => {
            let values: Vec<String> = values.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            format!("{section}: {{ {} }}\n", values.join(", "))
        }
    };
    sections.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_of_the_document_unless_it_begins_otherwise() {
        let text = "commit.max_records=10000,--set=kafka.properties.linger.ms=5,workers=2,bin=/old/tidemill,\
                    guarantee=at-least-once";
        let changes = Changes {
            program: Some("/old/tidemill".into()),
            settings: vec!["kafka.properties.linger.ms=5".to_owned()],
            guarantee: Some(Guarantee::AtLeastOnce),
            document: [("commit.max_records", "10000"), ("workers", "2")]
                .map(|(path, value)| (path.to_owned(), value.to_owned()))
                .to_vec(),
        };
        assert_eq!(Changes::parse(text).expect("sound"), changes);
        for text in ["", "bin", "workers=2,", "commit.max_records", "guarantee=none"] {
            assert!(Changes::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_section_is_one_line_and_the_last_of_a_setting_counts() {
        let document = [
            ("limits.batch_records", "500"),
            ("workers", "2"),
            ("limits.log_lines", "0"),
            ("limits.batch_records", "100"),
        ];
        assert_eq!(lines(&document), "limits: { batch_records: 100, log_lines: 0 }\nworkers: 2\n");
    }
}
