//! What a fault run leaves behind for the checker: a directory of text files.
//!
//! | file | a line |
//! |---|---|
//! | `run.json` | [`Run`]: what was done, and proof of it |
//! | `acks.tsv` | outcome, topic, partition, offset, key, value of every record a producer tried to send |
//! | `topics/TOPIC.committed.tsv` | partition, offset, key, value, as a read_committed consumer sees it |
//! | `topics/TOPIC.uncommitted.tsv` | the same, as a read_uncommitted consumer sees it |
//! | `ends.tsv` | topic, partition, last stable offset, high watermark |
//! | `offsets.tsv` | deployment, topic, partition, committed offset |
//! | `state/LABEL.DEPLOYMENT.STORE.tsv` | partition, key, value, as the node's stores hold it |
//!
//! Bytes are written as they are, but for `%`, control characters and what is not ASCII, which become
//! `%XX`; a null is `%-`. So a person can read a dump, and cut and grep work on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What was done, as the rig knows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Run {
    /// One seed re-runs one case.
    pub seed: u64,
    pub partitions: i32,
    /// The workloads W1 and W2 with W3, if they ran.
    pub bank: bool,
    pub chain: bool,
    /// TTL of the inbox of W6, if that ran; its evidence is described in `dedupe::lines`.
    #[serde(default)]
    pub inbox_ttl_ms: Option<i64>,
    /// Acknowledged records below this make the run invalid.
    pub records_min: u64,
    /// Every fault that was to happen.
    pub faults: Vec<Fault>,
    /// Everything was handled in time once the faults were over.
    pub settled: bool,
    /// Longest time without an output of a partition while nothing was wrong with the node, in ms.
    pub stall_ms: BTreeMap<i32, u64>,
    pub stall_ms_max: u64,
    /// Ends and panics of programs that nobody asked for.
    pub unexpected: Vec<String>,
}

/// One kind of fault: how often it was to happen, and how often it is proven to have happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub name: String,
    pub wanted: u64,
    pub proven: u64,
}

/// What a producer knows about a record that it tried to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Certainly not written.
    Failed,
    /// Perhaps written.
    Unknown,
}

/// One attempt of a producer. Partition and offset mean something only if it is ok.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub outcome: Outcome,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// One record of a dump. In a dump of a store the offset is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

impl Row {
    /// The key as text, for messages and for workloads whose keys are text.
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    pub fn value_text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }
}

/// Where a version began, as the node said: next offset by partition of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Began {
    pub version: u64,
    pub first: Vec<(i32, i64)>,
}

/// Ends of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    pub topic: String,
    pub partition: i32,
    pub stable: i64,
    pub high: i64,
}

/// A group's offset of one partition; -1 if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub deployment: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// The directory of one run.
#[derive(Debug, Clone)]
pub struct Evidence {
    directory: PathBuf,
}

impl Evidence {
    /// Makes the directory if needed.
    pub fn create(directory: &Path) -> Result<Evidence> {
        for below in ["topics", "state"] {
            fs::create_dir_all(directory.join(below)).context("the directory of the evidence")?;
        }
        Ok(Evidence { directory: directory.into() })
    }

    pub fn open(directory: &Path) -> Result<Evidence> {
        let evidence = Evidence { directory: directory.into() };
        evidence.run().context("there is no evidence here")?;
        Ok(evidence)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn write_run(&self, run: &Run) -> Result<()> {
        Ok(fs::write(self.directory.join("run.json"), serde_json::to_vec_pretty(run)?)?)
    }

    pub fn run(&self) -> Result<Run> {
        Ok(serde_json::from_slice(&fs::read(self.directory.join("run.json"))?)?)
    }

    pub fn write_acks(&self, acks: &[Ack]) -> Result<()> {
        self.write("acks.tsv", acks, |ack| {
            let outcome = match ack.outcome {
                Outcome::Ok => "ok",
                Outcome::Failed => "failed",
                Outcome::Unknown => "unknown",
            };
            let (key, value) = (text(Some(&ack.key)), text(Some(&ack.value)));
            format!("{outcome}\t{}\t{}\t{}\t{key}\t{value}", ack.topic, ack.partition, ack.offset)
        })
    }

    pub fn acks(&self) -> Result<Vec<Ack>> {
        self.read("acks.tsv", |[outcome, topic, partition, offset, key, value]| {
            let outcome = match outcome {
                "ok" => Outcome::Ok,
                "failed" => Outcome::Failed,
                "unknown" => Outcome::Unknown,
                other => bail!("`{other}` is no outcome"),
            };
            let (partition, offset) = (partition.parse()?, offset.parse()?);
            let (key, value) = (bytes(key)?.unwrap_or_default(), bytes(value)?.unwrap_or_default());
            Ok(Ack { outcome, topic: topic.to_owned(), partition, offset, key, value })
        })
    }

    pub fn write_topic(&self, topic: &str, committed: bool, rows: &[Row]) -> Result<()> {
        self.write(&topic_file(topic, committed), rows, |row| {
            let (key, value) = (text(row.key.as_deref()), text(row.value.as_deref()));
            format!("{}\t{}\t{key}\t{value}", row.partition, row.offset)
        })
    }

    /// Records of a topic, in order of partition and offset.
    pub fn topic(&self, topic: &str, committed: bool) -> Result<Vec<Row>> {
        let mut rows = self.read(&topic_file(topic, committed), |[partition, offset, key, value]| {
            let (partition, offset) = (partition.parse()?, offset.parse()?);
            Ok(Row { partition, offset, key: bytes(key)?, value: bytes(value)? })
        })?;
        rows.sort_by_key(|row| (row.partition, row.offset));
        Ok(rows)
    }

    pub fn write_ends(&self, ends: &[Ends]) -> Result<()> {
        let line = |end: &Ends| format!("{}\t{}\t{}\t{}", end.topic, end.partition, end.stable, end.high);
        self.write("ends.tsv", ends, line)
    }

    pub fn ends(&self) -> Result<Vec<Ends>> {
        self.read("ends.tsv", |[topic, partition, stable, high]| {
            let (partition, stable, high) = (partition.parse()?, stable.parse()?, high.parse()?);
            Ok(Ends { topic: topic.to_owned(), partition, stable, high })
        })
    }

    pub fn write_offsets(&self, offsets: &[Committed]) -> Result<()> {
        self.write("offsets.tsv", offsets, |at| {
            format!("{}\t{}\t{}\t{}", at.deployment, at.topic, at.partition, at.offset)
        })
    }

    pub fn offsets(&self) -> Result<Vec<Committed>> {
        self.read("offsets.tsv", |[deployment, topic, partition, offset]| {
            let (partition, offset) = (partition.parse()?, offset.parse()?);
            let (deployment, topic) = (deployment.to_owned(), topic.to_owned());
            Ok(Committed { deployment, topic, partition, offset })
        })
    }

    pub fn write_state(&self, label: &str, store: &str, rows: &[Row]) -> Result<()> {
        self.write(&format!("state/{label}.{store}.tsv"), rows, |row| {
            format!("{}\t{}\t{}", row.partition, text(row.key.as_deref()), text(row.value.as_deref()))
        })
    }

    /// Every dump of a store (`DEPLOYMENT.STORE`) by its label.
    pub fn states(&self, store: &str) -> Result<BTreeMap<String, Vec<Row>>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.directory.join("state"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(label) = name.strip_suffix(&format!(".{store}.tsv")) else { continue };
            let rows = self.read(&format!("state/{name}"), |[partition, key, value]| {
                Ok(Row { partition: partition.parse()?, offset: 0, key: bytes(key)?, value: bytes(value)? })
            })?;
            found.insert(label.to_owned(), rows);
        }
        Ok(found)
    }

    fn write<T>(&self, file: &str, items: &[T], line: impl Fn(&T) -> String) -> Result<()> {
        let path = self.directory.join(file);
        let mut out = BufWriter::new(File::create(&path).with_context(|| path.display().to_string())?);
        for item in items {
            writeln!(out, "{}", line(item))?;
        }
        Ok(out.flush()?)
    }

    fn read<T, const N: usize>(&self, file: &str, parse: impl Fn([&str; N]) -> Result<T>) -> Result<Vec<T>> {
        let path = self.directory.join(file);
        let content = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let one = |(number, line): (usize, &str)| {
            let columns: Vec<&str> = line.split('\t').collect();
            let columns = columns.try_into().map_err(|_| anyhow::anyhow!("not {N} columns"));
            columns.and_then(&parse).with_context(|| format!("{}:{}", path.display(), number + 1))
        };
        content.lines().enumerate().map(one).collect()
    }
}

fn topic_file(topic: &str, committed: bool) -> String {
    format!("topics/{topic}.{}.tsv", if committed { "committed" } else { "uncommitted" })
}

fn text(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "%-".to_owned() };
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => {
                // Writing to a string cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
            plain => text.push(char::from(plain)),
        }
    }
    text
}

fn bytes(text: &str) -> Result<Option<Vec<u8>>> {
    if text == "%-" {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).context("a cut-off %XX")?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits)?, 16)?);
        rest = after;
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_the_way_through_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let evidence = Evidence::create(directory.path()).expect("created");
        let all: Vec<u8> = (0..=255).collect();
        let rows = [None, Some(vec![]), Some(b"%-".to_vec()), Some(all)].map(|value| Row {
            partition: 1,
            offset: 2,
            key: value.clone(),
            value,
        });
        evidence.write_topic("t", true, &rows).expect("written");
        assert_eq!(evidence.topic("t", true).expect("read"), rows);
    }
}
