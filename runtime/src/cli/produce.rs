//! `tidemill produce`: puts records into a topic, from the command line, a file or standard input.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tidemill_proto::v1::InputPosition;

use super::failure::Failure;
use super::kafka::{Kafka, connect};
use super::output::View;
use super::rows::{Common, LineFormat, Rows};
use super::settings::SettingArgs;
use super::table::grouped;
use super::{Global, Outcome, positions};
use crate::kafka::tools::{Produced, Row, produce};

const EXAMPLES: &str = "\
Examples:
  tidemill produce events.test '{\"test\": \"message\"}'
  tidemill produce words hello --key greeting --header source=cli
  tidemill produce flights --file flights.csv --format csv --key-field carrier --rate 5000
  zcat orders.jsonl.gz | tidemill produce orders --file - --format jsonl --key-field /customer/id
  tidemill produce users --key 42 --tombstone";

/// What is of records that are lines, and of no other.
const OF_LINES: [&str; 5] = ["file", "format", "key_field", "header_line", "rate"];

/// Put records into a topic
///
/// VALUE makes one record; otherwise every line of the file (or of standard input) is one. The position
/// that is printed lies behind the last record: `tidemill state get --at-least` waits for it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Produce {
    topic: String,
    /// The record's value
    #[arg(conflicts_with_all = OF_LINES, conflicts_with = "tombstone")]
    value: Option<String>,
    /// Key of every record that gets none from its line
    #[arg(long, short)]
    key: Option<String>,
    /// A record with the key and no value, which deletes in a compacted topic
    #[arg(long, requires = "key", conflicts_with_all = OF_LINES)]
    tombstone: bool,
    /// File of lines; - is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What a line is [default: by the file's name, .csv or .jsonl; otherwise lines]
    #[arg(long, value_enum)]
    format: Option<LineFormat>,
    /// Where a line has its key: a column's name or number, a field's name or /pointer
    #[arg(long, value_name = "NAME|INDEX|POINTER")]
    key_field: Option<String>,
    /// The first line names the columns and is no record
    #[arg(long)]
    header_line: bool,
    /// A header of every record
    #[arg(long, short = 'H', value_parser = header, value_name = "KEY=VALUE")]
    header: Vec<(String, Option<Vec<u8>>)>,
    /// At most this many records a second
    #[arg(long, value_parser = rate, value_name = "N")]
    rate: Option<f64>,
    /// Partition of every record [default: by the key]
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    #[command(flatten)]
    settings: SettingArgs,
}

fn header(text: &str) -> Result<(String, Option<Vec<u8>>), String> {
    let (name, value) = text.split_once('=').ok_or("write KEY=VALUE, for example source=cli")?;
    Ok((name.to_owned(), Some(value.as_bytes().to_vec())))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("write a number of records a second above 0".to_owned()),
    }
}

impl Produce {
    pub fn run(self, global: &Global) -> Outcome {
        let common = Common {
            key: self.key.clone().map(String::into_bytes),
            headers: self.header.clone(),
            partition: self.partition,
        };
        let one = self.value.is_some() || self.tombstone;
        // The file is opened before Kafka is asked: the cheaper mistake is heard first.
        let input = if one { None } else { Some(Input::open(self.file.as_deref())?) };
        let kafka = connect(&self.settings)?;
        self.check_partition(&kafka)?;
        let started = Instant::now();
        let produced = match input {
            Some(input) => self.lines(&kafka, input, common)?,
            None => {
                let row = Row {
                    key: common.key,
                    value: self.value.clone().map(String::into_bytes),
                    headers: common.headers,
                    partition: common.partition,
                    timestamp_ms: None,
                };
                produce(&kafka.config, &self.topic, [row], None, &mut |_| {})?
            }
        };
        let took = started.elapsed();
        let Produced { count, next } = produced;
        let next: Vec<InputPosition> = next
            .into_iter()
            .map(|(partition, offset)| InputPosition { topic: self.topic.clone(), partition, offset })
            .collect();
        let line = format!(
            "produced {} {} to {} in {:.1}s, up to {}",
            grouped(count),
            if count == 1 { "record" } else { "records" },
            self.topic,
            took.as_secs_f64(),
            match next.is_empty() {
                true => "nothing".to_owned(),
                false => next.iter().map(positions::show).collect::<Vec<_>>().join(","),
            }
        );
        let json = json!({
            "topic": self.topic, "records": count, "seconds": took.as_secs_f64(),
            "positions": positions::to_json(&next),
        });
        View::line(line, json).print(global.output)
    }

    fn check_partition(&self, kafka: &Kafka) -> Result<(), Failure> {
        let count = kafka.partitions(&self.topic)?;
        match self.partition {
            Some(partition) if partition >= count => Err(Failure::not_found(format!(
                "topic `{}` has partitions 0 to {}, not {partition}",
                self.topic,
                count - 1
            ))),
            _ => Ok(()),
        }
    }

    fn format(&self) -> LineFormat {
        let extension = self.file.as_ref().and_then(|file| file.extension()?.to_str());
        self.format.unwrap_or(match extension {
            Some("csv") => LineFormat::Csv,
            Some("jsonl" | "ndjson") => LineFormat::Jsonl,
            _ => LineFormat::Lines,
        })
    }

    fn lines(&self, kafka: &Kafka, input: Input, common: Common) -> Result<Produced, Failure> {
        let bar = input.progress();
        let mut rows =
            Rows::new(input.reader, self.format(), self.key_field.as_deref(), self.header_line, common)
                .map_err(Failure::usage)?;
        let mut trouble = None;
        let bytes = Arc::new(AtomicU64::new(0));
        let read = Arc::clone(&bytes);
        let source = std::iter::from_fn(|| match rows.read() {
            Ok(row) => {
                read.store(rows.bytes(), Ordering::Relaxed);
                row
            }
            Err(message) => {
                trouble = Some(message);
                None
            }
        });
        let started = Instant::now();
        let mut progress = |count: u64| {
            bar.set_position(bytes.load(Ordering::Relaxed));
            let rate = count as f64 / started.elapsed().as_secs_f64().max(0.001);
            bar.set_message(format!("{} records, {}/s", grouped(count), grouped(rate as u64)));
        };
        let outcome = produce(&kafka.config, &self.topic, source, self.rate, &mut progress);
        bar.finish_and_clear();
        let produced = outcome?;
        match trouble {
            None => Ok(produced),
            Some(message) => Err(Failure::refused(format!(
                "{}: {message}; the {} records before it are in {}",
                input.name,
                grouped(produced.count),
                self.topic
            ))),
        }
    }
}

struct Input {
    name: String,
    reader: Box<dyn BufRead>,
    /// Unknown for a pipe.
    bytes: Option<u64>,
}

impl Input {
    fn open(file: Option<&Path>) -> Result<Input, Failure> {
        let Some(path) = file.filter(|path| *path != Path::new("-")) else {
            if file.is_none() && std::io::stdin().is_terminal() {
                eprintln!("every line is a record; Ctrl-D ends");
            }
            let reader = Box::new(BufReader::new(std::io::stdin()));
            return Ok(Input { name: "standard input".to_owned(), reader, bytes: None });
        };
        let name = path.display().to_string();
        let cannot = |error| Failure::usage(format!("{name} cannot be read: {error}"));
        let opened = File::open(path).map_err(cannot)?;
        let data = opened.metadata().map_err(cannot)?;
        if data.is_dir() {
            return Err(Failure::usage(format!("{name} is a directory")));
        }
        let bytes = data.is_file().then_some(data.len());
        Ok(Input { reader: Box::new(BufReader::with_capacity(1 << 18, opened)), name, bytes })
    }

    /// Invisible unless standard error is a terminal.
    fn progress(&self) -> ProgressBar {
        let (bar, template) = match self.bytes {
            Some(bytes) => (ProgressBar::new(bytes), "{bar:30} {percent}% {msg} {eta} left"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}
