//! `tidemill state`: reads committed state by key, prefix or range.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::state_client::StateClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::deployments::task_state_name;
use super::edit::Edit;
use super::failure::Failure;
use super::output::{Block, Format, View};
use super::table::{Cell, Table, Tone, grouped, printable};
use super::values::{KeyFormat, show, show_pretty, show_text, text_json, to_json};
use super::{Global, Outcome, client, positions};
use crate::config::units;

/// Entries of one answer of the node.
const PAGE_ENTRIES: u32 = 1_000;

const GET_EXAMPLES: &str = "\
Examples:
  tidemill state get word-count counts hello
  tidemill state get delays groups UA AA -o json
  tidemill state get word-count counts hello --at-least words/0@12
  tidemill state get orders seen 00ff --key-format hex --partition 3";

const SCAN_EXAMPLES: &str = "\
Examples:
  tidemill state scan word-count counts
  tidemill state scan delays groups --prefix HA/2013/1/ --limit 5
  tidemill state scan delays groups --from HA/2013/1/10 --to HA/2013/1/20
  tidemill state scan delays groups --all -o json";

/// Read the committed state of a deployment, or edit it by hand
///
/// Any node answers; it asks the nodes that own the partitions. An answer says the position it is
/// true at, and a partition that cannot be read is an error, never an empty answer.
#[derive(Debug, Args)]
pub struct State {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(Get),
    Scan(Scan),
    Edit(Edit),
}

/// Read one key, or several
#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
struct Get {
    deployment: String,
    store: String,
    /// One key or several
    #[arg(required = true)]
    key: Vec<String>,
    #[command(flatten)]
    fresh: Fresh,
    #[command(flatten)]
    options: Options,
}

/// Read keys in order: all, those with a prefix, or a range
#[derive(Debug, Args)]
#[command(after_help = SCAN_EXAMPLES)]
struct Scan {
    deployment: String,
    store: String,
    /// Only keys that start with this
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only keys at or above this
    #[arg(long, default_value = "", value_name = "KEY")]
    from: String,
    /// Only keys below this
    #[arg(long, default_value = "", value_name = "KEY")]
    to: String,
    /// Where an earlier scan stopped; it survives restarts and new versions
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<String>,
    /// At most this many entries
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Every entry
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    #[command(flatten)]
    fresh: Fresh,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// This partition only
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: Option<i32>,
    /// How the key or prefix is written
    #[arg(long, default_value = "text", value_enum)]
    key_format: KeyFormat,
    /// How long to wait for an answer
    #[arg(long, default_value = "10s", value_parser = units::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

/// For reads: an edit waits for no position.
#[derive(Debug, Clone, Args)]
pub struct Fresh {
    /// Wait until the answer is true at this position or beyond; `produce` and `lag` print them
    #[arg(long, value_parser = positions::parse, value_delimiter = ',', value_name = "TOPIC/PARTITION@OFFSET")]
    pub at_least: Vec<proto::InputPosition>,
}

impl Options {
    pub fn key(&self, text: &str) -> Result<Vec<u8>, Failure> {
        self.key_format.read(text).map_err(Failure::usage)
    }

    pub fn timed<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

impl State {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            match self.command {
                Command::Get(get) => get.run(channel, global).await,
                Command::Scan(scan) => scan.run(channel, global).await,
                Command::Edit(edit) => edit.run(channel, global).await,
            }
        })
    }
}

impl Get {
    async fn run(self, channel: Channel, global: &Global) -> Outcome {
        let keys = self.key.iter().map(|key| self.options.key(key)).collect::<Result<Vec<_>, _>>()?;
        let mut client = StateClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = proto::GetManyStateRequest {
            deployment: self.deployment.clone(),
            store: self.store.clone(),
            keys,
            partition: self.options.partition,
            at_least: self.fresh.at_least.clone(),
            ..proto::GetManyStateRequest::default()
        };
        let answer = client.get_many(self.options.timed(request)).await?.into_inner();
        let kind = answer.r#type.as_str();
        let missing: Vec<String> = answer.missing.iter().map(|key| show_text(key)).collect();
        if answer.entries.is_empty() {
            let read = positions::read_at(&answer.read_at);
            let keys = missing.join("`, `");
            let parked: Vec<_> = answer.parked.iter().map(|key| format!("; {}", parked_note(key))).collect();
            return Err(Failure::not_found(format!(
                "{} holds no key `{keys}` (read {read}){}",
                self.store,
                parked.concat()
            )));
        }
        let mut view = entries(&answer.entries, &answer.parked, &answer.read_at, kind);
        view.json["missing"] = answer.missing.iter().map(|key| text_json(key)).collect();
        if let ([entry], []) = (answer.entries.as_slice(), missing.as_slice()) {
            view.blocks = vec![Block::Line(show_pretty(&entry.value, kind))];
            if let Some(parked) = entry.parked.as_ref().filter(|_| global.output == Format::Table) {
                eprintln!("{}", parked_note(parked));
            }
        }
        if !missing.is_empty() {
            view.blocks.push(Block::Line(format!("no key {}", missing.join(", "))));
        }
        note_positions(global, &answer.read_at);
        view.print(global.output)
    }
}

impl Scan {
    async fn run(self, channel: Channel, global: &Global) -> Outcome {
        let mut client = StateClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let limit = if self.all { u64::MAX } else { self.limit };
        let mut request = proto::ScanStateRequest {
            deployment: self.deployment.clone(),
            store: self.store.clone(),
            prefix: self.options.key(&self.prefix)?,
            from: self.options.key(&self.from)?,
            to: self.options.key(&self.to)?,
            page_token: match &self.page_token {
                Some(token) => {
                    let wrong = |_| Failure::usage("--page-token: take it from the page before, as it is");
                    STANDARD.decode(token).map_err(wrong)?
                }
                None => Vec::new(),
            },
            partition: self.options.partition,
            at_least: self.fresh.at_least.clone(),
            ..proto::ScanStateRequest::default()
        };
        let mut found: Vec<proto::StateEntry> = Vec::new();
        let mut parked: Vec<proto::ParkedKey> = Vec::new();
        let mut read_at: Vec<proto::StatePosition> = Vec::new();
        let mut kind;
        loop {
            let shown = (found.len() + parked.len()) as u64;
            request.limit = (limit - shown).min(PAGE_ENTRIES.into()) as u32;
            let page = client.scan(self.options.timed(request.clone())).await?.into_inner();
            found.extend(page.entries);
            parked.extend(page.parked);
            // A partition that several pages read is shown as the last one found it.
            read_at.retain(|at| page.read_at.iter().all(|now| now.partition != at.partition));
            read_at.extend(page.read_at);
            kind = page.r#type;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || (found.len() + parked.len()) as u64 >= limit {
                break;
            }
        }
        note_positions(global, &read_at);
        let mut view = entries(&found, &parked, &read_at, &kind);
        view.note_more(found.len() + parked.len(), "--limit N or --all", &request.page_token);
        view.print(global.output)
    }
}

/// `bare` are parked keys without a value.
fn entries(
    entries: &[proto::StateEntry],
    bare: &[proto::ParkedKey],
    read_at: &[proto::StatePosition],
    kind: &str,
) -> View {
    let mut table = Table::new(&["KEY", "VALUE", ">PARTITION", "NOTE"], "no key");
    for entry in entries {
        table.row([
            show_text(&entry.key).into(),
            show(&entry.value, kind).into(),
            entry.partition.to_string().into(),
            entry.parked.as_ref().map(parked_note).unwrap_or_default().into(),
        ]);
    }
    for parked in bare {
        table.row([
            show_text(&parked.key).into(),
            Cell::toned("-", Tone::Quiet),
            parked.partition.to_string().into(),
            parked_note(parked).into(),
        ]);
    }
    let rows: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let (key, value) = (text_json(&entry.key), to_json(&entry.value, kind));
            let parked = entry.parked.as_ref().map(parked_json);
            json!({ "key": key, "value": value, "partition": entry.partition, "parked": parked })
        })
        .collect();
    let parked: Vec<Value> = bare.iter().map(parked_json).collect();
    View::table(table, json!({ "entries": rows, "parked": parked, "read_at": read_json(read_at) }))
}

fn parked_note(parked: &proto::ParkedKey) -> String {
    let records = grouped(parked.records);
    let first = format!("{}/{} at offset {}", parked.topic, parked.partition, parked.offset);
    let reason = printable(&parked.reason);
    format!("{records} records of it are parked, the first is {first} ({}): {reason}", parked.kind)
}

fn parked_json(parked: &proto::ParkedKey) -> Value {
    let next_attempt = (!parked.held).then(|| units::show_time_ms(parked.next_attempt_ms));
    json!({
        "key": text_json(&parked.key), "partition": parked.partition, "records": parked.records,
        "kind": parked.kind, "reason": parked.reason, "attempts": parked.attempts, "held": parked.held,
        "next_attempt": next_attempt, "topic": parked.topic, "offset": parked.offset,
    })
}

/// What was read, and the positions that it is true at.
pub fn read_json(read_at: &[proto::StatePosition]) -> Value {
    let one = |at: &proto::StatePosition| {
        json!({
            "partition": at.partition, "node": at.node, "cluster": at.cluster,
            "positions": positions::to_json(&at.positions),
            "state": task_state_name(at.state()), "reason": at.reason,
        })
    };
    read_at.iter().map(one).collect()
}

/// Says which position an answer is true at; beside the answer, so that a script gets the answer only.
pub fn note_positions(global: &Global, read_at: &[proto::StatePosition]) {
    if global.output == Format::Table {
        let cluster = read_at.first().map_or("", |at| at.cluster.as_str());
        eprintln!(
            "as of {}; of cluster {cluster} alone, a mirror may be ahead or behind",
            positions::read_at(read_at)
        );
        for at in read_at.iter().filter(|at| at.state() == proto::TaskState::Halted) {
            let reason = printable(&at.reason);
            eprintln!("partition {} is halted and stays as it is: {reason}", at.partition);
        }
    }
}
