//! Evidence of W6: topics of millions of records, one file a partition and one line a record, so that
//! neither the rig nor the checker need hold a topic.
//!
//! | file | a line |
//! |---|---|
//! | `inputs/P.tsv` | offset, time stamp, id, key, value of a record of the input |
//! | `outputs/P.tsv` | offset, key, value of a record of the output, as a read_committed consumer sees it |
//! | `sent.tsv` | number of an id, bits of its acknowledged records |
//! | `sizes.tsv` | ms since the first look, ids written so far, rows of the inbox's topic, bytes of the stores on disk |

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::Offset;

use super::sizes::Size;
use super::{INPUT, OUTPUT, PARTITIONS};
use crate::reading::{assign, header, reading};

const INPUTS: &str = "inputs";
const OUTPUTS: &str = "outputs";
const SENT: &str = "sent.tsv";
const SIZES: &str = "sizes.tsv";
/// A partition that says nothing for so long cannot be read to its end.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A record of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct In {
    pub offset: i64,
    pub timestamp_ms: i64,
    /// Empty = it has none.
    pub id: String,
    pub key: String,
    pub value: String,
}

/// A record of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    pub offset: i64,
    pub key: String,
    pub value: String,
}

/// Reads both topics to their ends; answers the records of the output.
pub fn dump(bootstrap: &str, directory: &Path) -> Result<u64> {
    fs::create_dir_all(directory.join(INPUTS))?;
    fs::create_dir_all(directory.join(OUTPUTS))?;
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let mut effects = 0;
    for partition in 0..PARTITIONS {
        copy(bootstrap, INPUT, partition, &directory.join(INPUTS), |record, out| {
            let id = text(header(record, "id"));
            let (stamp, key, value) = (record.timestamp(), text(record.key()), text(record.payload()));
            let stamp = stamp.to_millis().unwrap_or(-1);
            writeln!(out, "{}\t{stamp}\t{id}\t{key}\t{value}", record.offset())
        })?;
        effects += copy(bootstrap, OUTPUT, partition, &directory.join(OUTPUTS), |record, out| {
            writeln!(out, "{}\t{}\t{}", record.offset(), text(record.key()), text(record.payload()))
        })?;
    }
    Ok(effects)
}

fn copy(
    bootstrap: &str,
    topic: &str,
    partition: i32,
    directory: &Path,
    line: impl Fn(&BorrowedMessage<'_>, &mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<u64> {
    let mut out = BufWriter::new(File::create(file(directory, partition))?);
    let records = each_committed(bootstrap, topic, partition, |record| Ok(line(record, &mut out)?))?;
    out.flush()?;
    Ok(records)
}

/// Hands over the committed records of a partition in their order; answers how many there are.
pub fn each_committed(
    bootstrap: &str,
    topic: &str,
    partition: i32,
    mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
) -> Result<u64> {
    let consumer: BaseConsumer =
        reading(bootstrap, "dump", true).set("enable.partition.eof", "true").create()?;
    assign(&consumer, topic, [partition], Offset::Beginning)?;
    let (mut heard, mut records) = (Instant::now(), 0);
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            // Lost connections and the like; librdkafka goes on by itself.
            None | Some(Err(_)) if heard.elapsed() > SILENCE_MAX => {
                bail!("{topic}/{partition} could not be read to its end")
            }
            None | Some(Err(_)) => {}
            Some(Ok(record)) => {
                take(&record)?;
                (heard, records) = (Instant::now(), records + 1);
            }
        }
    }
    Ok(records)
}

fn file(directory: &Path, partition: i32) -> PathBuf {
    directory.join(format!("{partition}.tsv"))
}

pub fn write_sent(directory: &Path, acknowledged: &[u8]) -> Result<()> {
    let mut out = BufWriter::new(File::create(directory.join(SENT))?);
    for (id, bits) in acknowledged.iter().enumerate() {
        writeln!(out, "{id}\t{bits}")?;
    }
    Ok(out.flush()?)
}

/// By id, a bit for each of its records that is acknowledged.
pub fn sent(directory: &Path) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    each(&directory.join(SENT), |[_, bits]: [&str; 2]| {
        all.push(bits.parse()?);
        Ok(())
    })?;
    Ok(all)
}

pub fn write_sizes(directory: &Path, sizes: &[Size]) -> Result<()> {
    let mut out = BufWriter::new(File::create(directory.join(SIZES))?);
    for size in sizes {
        writeln!(out, "{}\t{}\t{}\t{}", size.at_ms, size.ids, size.rows, size.bytes)?;
    }
    Ok(out.flush()?)
}

pub fn sizes(directory: &Path) -> Result<Vec<Size>> {
    let mut all = Vec::new();
    each(&directory.join(SIZES), |[at, ids, rows, bytes]: [&str; 4]| {
        let (at_ms, ids) = (at.parse()?, ids.parse()?);
        all.push(Size { at_ms, ids, rows: rows.parse()?, bytes: bytes.parse()? });
        Ok(())
    })?;
    Ok(all)
}

/// Hands over the input's records of a partition in their order.
pub fn each_input(directory: &Path, partition: i32, mut take: impl FnMut(In) -> Result<()>) -> Result<()> {
    each(&file(&directory.join(INPUTS), partition), |[offset, stamp, id, key, value]: [&str; 5]| {
        let (offset, timestamp_ms) = (offset.parse()?, stamp.parse()?);
        take(In { offset, timestamp_ms, id: id.into(), key: key.into(), value: value.into() })
    })
}

/// Hands over the output's records of a partition in their order.
pub fn each_output(directory: &Path, partition: i32, mut take: impl FnMut(Out) -> Result<()>) -> Result<()> {
    each(&file(&directory.join(OUTPUTS), partition), |[offset, key, value]: [&str; 3]| {
        take(Out { offset: offset.parse()?, key: key.into(), value: value.into() })
    })
}

fn each<const N: usize>(path: &Path, mut take: impl FnMut([&str; N]) -> Result<()>) -> Result<()> {
    let content = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
    for (number, line) in content.lines().enumerate() {
        let line = line?;
        let columns: Vec<&str> = line.split('\t').collect();
        let columns = columns.try_into().map_err(|_| anyhow::anyhow!("not {N} columns"));
        columns.and_then(&mut take).with_context(|| format!("{}:{}", path.display(), number + 1))?;
    }
    Ok(())
}
