//! `tidemill logs`: what the handlers of a deployment log, from every node that runs it.

use std::time::Duration;

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::logs_client::LogsClient;

use super::client::ANSWER_BYTES_MAX;
use super::failure::Failure;
use super::output::{Format, colours, write_out};
use super::table::printable;
use super::{Global, Outcome, client};
use crate::config::units;

const EXAMPLES: &str = "\
Examples:
  tidemill logs word-count
  tidemill logs word-count --follow --level warn
  tidemill logs word-count --partition 3 --since 5m
  tidemill logs word-count -o json | jq .text";

/// Show what the handlers of a deployment log
///
/// Each node keeps the last lines of its tasks in memory (log.handler_lines, log.handler_bytes); a handler
/// that logs too much loses some, which is said. Lines are escaped: nothing in them moves the cursor.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Logs {
    #[arg(value_name = "DEPLOYMENT")]
    name: String,
    /// This partition only
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Go on with new lines until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Only lines that are no older than this
    #[arg(long, value_parser = units::parse_duration, value_name = "DURATION")]
    since: Option<Duration>,
    /// Only lines of this level and above
    #[arg(long, default_value = "debug", value_enum)]
    level: Level,
    /// At most this many of the lines that are kept, the last ones
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lines: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    fn wanted(self) -> proto::LogLevel {
        match self {
            Level::Debug => proto::LogLevel::Debug,
            Level::Info => proto::LogLevel::Info,
            Level::Warn => proto::LogLevel::Warn,
            Level::Error => proto::LogLevel::Error,
        }
    }
}

impl Logs {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let mut client = LogsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let request = proto::TailLogsRequest {
                deployment: self.name.clone(),
                partition: self.partition,
                level: self.level.wanted().into(),
                age_ms: self.since.map_or(0, |since| (since.as_millis() as u64).max(1)),
                limit: self.lines,
                follow: self.follow,
                ..proto::TailLogsRequest::default()
            };
            let mut answers = client.tail(request).await?.into_inner();
            let mut lines = 0;
            while let Some(message) = answers.message().await? {
                lines += message.lines.len();
                self.show(&message, global.output)?;
            }
            if !self.follow && lines == 0 {
                eprintln!(
                    "no line: the handlers of {} have logged nothing that is meant, or the nodes do not keep it any more \
                     (log.handler_lines, log.handler_bytes)",
                    self.name
                );
            }
            match self.follow {
                false => Ok(()),
                // It ends only with the node, or after an hour.
                true => Err(Failure::unreachable("the node has ended the stream; follow it again")),
            }
        })
    }

    fn show(&self, message: &proto::TailLogsResponse, format: Format) -> Result<(), Failure> {
        let mut out = String::new();
        for line in &message.lines {
            out.push_str(&match format {
                Format::Table => text(&self.name, line, colours()),
                Format::Json => json(&self.name, line),
            });
            out.push('\n');
        }
        write_out(out.as_bytes())?;
        if message.dropped > 0 {
            eprintln!("{}: {} lines were lost, by the bounds on them", message.node, message.dropped);
        }
        if !message.trouble.is_empty() {
            eprintln!("{}", printable(&message.trouble));
        }
        Ok(())
    }
}

fn text(deployment: &str, line: &proto::LogLine, colours: bool) -> String {
    let (name, code) = level(line.level());
    let name = match code.filter(|_| colours) {
        Some(code) => format!("\x1b[{code}m{name:<5}\x1b[0m"),
        None => format!("{name:<5}"),
    };
    let (time, partition) = (units::show_time_ms(line.time_ms), line.partition);
    format!("{time} {name} {deployment}/{partition} {}", printable(&line.text))
}

fn json(deployment: &str, line: &proto::LogLine) -> String {
    let line = json!({
        "time": units::show_time_ms(line.time_ms), "deployment": deployment, "partition": line.partition,
        "level": level(line.level()).0.to_ascii_lowercase(), "text": line.text, "node": line.node,
    });
    line.to_string()
}

/// Name, and SGR code of its colour.
fn level(level: proto::LogLevel) -> (&'static str, Option<u8>) {
    match level {
        proto::LogLevel::Error => ("ERROR", Some(31)),
        proto::LogLevel::Warn => ("WARN", Some(33)),
        proto::LogLevel::Info => ("INFO", Some(32)),
        proto::LogLevel::Debug | proto::LogLevel::Unspecified => ("DEBUG", Some(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_where_and_how_bad_and_nothing_in_it_reaches_the_terminal() {
        let line = proto::LogLine {
            time_ms: 1_700_000_000_123,
            partition: 3,
            level: proto::LogLevel::Warn.into(),
            // As from a node that does not escape.
            text: "late\u{1b}[2J".into(),
            node: "a".into(),
        };
        assert_eq!(
            text("word-count", &line, false),
            "2023-11-14T22:13:20.123Z WARN  word-count/3 late\\u{1b}[2J"
        );
        let json: serde_json::Value = serde_json::from_str(&json("word-count", &line)).expect("JSON");
        assert_eq!((json["level"].as_str(), json["partition"].as_i64()), (Some("warn"), Some(3)));
    }
}
