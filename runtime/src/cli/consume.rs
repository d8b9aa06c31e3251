//! `tidemill consume`: shows what is in a topic.

use std::io::{BufWriter, IsTerminal, StdoutLock, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::failure::Failure;
use super::kafka::connect;
use super::output::Format;
use super::settings::SettingArgs;
use super::table::printable;
use super::values::{show_text, text_json};
use super::{Global, Outcome};
use crate::config::units;
use crate::kafka::tools::{ConsumeSpec, Consumed, From, consume};

const EXAMPLES: &str = "\
Examples:
  tidemill consume words --from-beginning --max-messages 10 --headers --timestamps
  tidemill consume words --partition 0 --offset 1000
  tidemill consume words --last 5
  tidemill consume counts -o json | jq .value";

/// Show the records of a topic
///
/// Without a place to begin it waits for new records, like tail -f. With one it stops at the end
/// unless --follow says otherwise; with --max-messages it waits a little for those that are still
/// to come. Shown are partition@offset, key and value.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Consume {
    topic: String,
    /// Begin with the oldest record
    #[arg(long, conflicts_with_all = ["offset", "last"])]
    from_beginning: bool,
    /// Only this partition; may be given several times
    #[arg(long, short, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Vec<i32>,
    /// Begin at this offset
    #[arg(long, requires = "partition")]
    offset: Option<u64>,
    /// Begin this many records before the end of each partition
    #[arg(long, conflicts_with = "offset", value_name = "N")]
    last: Option<u64>,
    /// Stop after this many records
    #[arg(long, visible_alias = "max", short = 'n', value_name = "N")]
    max_messages: Option<u64>,
    /// Go on at the end
    #[arg(long, short)]
    follow: bool,
    /// Stop when nothing came for this long [default with --max-messages: 5s]
    #[arg(long, value_parser = units::parse_duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Hide records of open and aborted transactions; this is the default
    #[arg(long, conflicts_with = "read_uncommitted")]
    read_committed: bool,
    /// Show records of open and aborted transactions too
    #[arg(long)]
    read_uncommitted: bool,
    /// Show headers
    #[arg(long)]
    headers: bool,
    /// Show timestamps
    #[arg(long)]
    timestamps: bool,
    /// The same as kafka-console-consumer says it: print.headers=true, print.timestamp=true; print.key=true,
    /// print.offset=true and print.partition=true are always so
    #[arg(long, value_parser = property, value_name = "NAME=true")]
    property: Vec<Property>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// What a property asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Property {
    Headers,
    Timestamps,
    /// Nothing that is not shown anyway.
    Shown,
}

fn property(text: &str) -> Result<Property, String> {
    match text {
        "print.headers=true" => Ok(Property::Headers),
        "print.timestamp=true" => Ok(Property::Timestamps),
        "print.key=true" | "print.value=true" | "print.offset=true" | "print.partition=true" => {
            Ok(Property::Shown)
        }
        _ => Err("known are print.headers, print.timestamp, print.key, print.value, print.offset and \
                  print.partition, each with =true"
            .to_owned()),
    }
}

impl Consume {
    pub fn run(mut self, global: &Global) -> Outcome {
        self.headers |= self.property.contains(&Property::Headers);
        self.timestamps |= self.property.contains(&Property::Timestamps);
        let kafka = connect(&self.settings)?;
        kafka.partitions(&self.topic)?;
        let from = match (self.from_beginning, self.offset, self.last) {
            (true, ..) => From::Beginning,
            (_, Some(offset), _) => From::Offset(offset),
            (_, _, Some(last)) => From::Last(last),
            _ => From::End,
        };
        if from == From::End && std::io::stderr().is_terminal() {
            eprintln!("waiting for new records; --from-beginning shows those that are there (Ctrl-C ends)");
        }
        let spec = ConsumeSpec {
            topic: self.topic.clone(),
            partitions: self.partition.clone(),
            from,
            max: self.max_messages,
            committed: !self.read_uncommitted,
            follow: self.follow || from == From::End || self.max_messages.is_some() || self.timeout.is_some(),
        };
        let waits_for_ever = self.follow || from == From::End;
        let patience = self.timeout.or((!waits_for_ever).then_some(PATIENCE));
        let mut out = Printer {
            consume: &self,
            format: global.output,
            out: BufWriter::new(std::io::stdout().lock()),
            trouble: None,
            patience,
            last: Instant::now(),
        };
        consume(&kafka.config, &spec, &mut |record| out.take(record.as_ref()))?;
        out.finish()
    }
}

struct Printer<'a> {
    consume: &'a Consume,
    format: Format,
    out: BufWriter<StdoutLock<'static>>,
    trouble: Option<std::io::Error>,
    /// An end to waiting for records.
    patience: Option<Duration>,
    /// When the last record came.
    last: Instant,
}

/// How long `--max-messages` waits for records that are not there yet, such as those of a commit
/// that is on its way.
const PATIENCE: Duration = Duration::from_secs(5);

impl Printer<'_> {
    /// False ends the reading: the reader of our output has gone, or nothing comes any more.
    fn take(&mut self, record: Option<&Consumed>) -> bool {
        match record {
            Some(_) => self.last = Instant::now(),
            None if self.patience.is_some_and(|patience| self.last.elapsed() >= patience) => return false,
            None => {}
        }
        let outcome = match record {
            // Nothing more for now: what was read should be seen.
            None => self.out.flush(),
            Some(record) => match self.format {
                Format::Json => writeln!(self.out, "{}", to_json(record)),
                Format::Table => writeln!(self.out, "{}", self.consume.line(record)),
            },
        };
        match outcome {
            Ok(()) => true,
            Err(error) => {
                self.trouble = Some(error);
                false
            }
        }
    }

    fn finish(mut self) -> Result<(), Failure> {
        let outcome = match self.trouble.take() {
            Some(error) => Err(error),
            None => self.out.flush(),
        };
        match outcome {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Consume {
    fn line(&self, record: &Consumed) -> String {
        let text = |bytes: &Option<Vec<u8>>| match bytes {
            Some(bytes) => printable(&show_text(bytes)),
            None => "null".to_owned(),
        };
        let mut parts = vec![format!("{}@{}", record.partition, record.offset)];
        if self.timestamps {
            parts.push(units::show_time_ms(record.timestamp_ms));
        }
        if self.headers {
            let headers: Vec<String> =
                record.headers.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
            parts.push(if headers.is_empty() { "-".to_owned() } else { headers.join(",") });
        }
        parts.push(text(&record.key));
        parts.push(text(&record.value));
        parts.join("\t")
    }
}

fn to_json(record: &Consumed) -> Value {
    let bytes = |bytes: &Option<Vec<u8>>| bytes.as_deref().map_or(Value::Null, text_json);
    let headers: Vec<Value> =
        record.headers.iter().map(|(name, value)| json!({ "name": name, "value": bytes(value) })).collect();
    json!({
        "partition": record.partition, "offset": record.offset, "timestamp_ms": record.timestamp_ms,
        "timestamp": units::show_time_ms(record.timestamp_ms), "key": bytes(&record.key),
        "value": bytes(&record.value), "headers": headers,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        consume: Consume,
    }

    fn read(arguments: &str) -> Result<Consume, clap::Error> {
        Command::try_parse_from(arguments.split(' ')).map(|command| command.consume)
    }

    #[test]
    fn what_is_to_be_shown_may_be_said_as_kafkas_own_tool_has_it() {
        let theirs = "consume dead --from-beginning --max-messages 10 --property print.headers=true --property print.timestamp=true \
                      --property print.key=true";
        let consume = read(theirs).expect("understood");
        assert_eq!((consume.max_messages, consume.from_beginning), (Some(10), true));
        assert_eq!(consume.property, [Property::Headers, Property::Timestamps, Property::Shown]);
        let refused = read("consume dead --property print.header=true").expect_err("unknown");
        assert!(refused.to_string().contains("print.headers"), "{refused}");
    }
}
