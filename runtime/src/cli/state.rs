//! `tidemill state`: reads committed state, by key or by prefix.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::state_client::StateClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::deployments;
use super::failure::Failure;
use super::output::{Block, Format, View};
use super::table::{Table, grouped};
use super::values::{KeyFormat, show, show_pretty, show_text, text_json, to_json};
use super::{Global, Outcome, client};
use crate::config::problem::nearest;

/// Entries of one answer of the node.
const PAGE_ENTRIES: u32 = 1_000;

const GET_EXAMPLES: &str = "\
Examples:
  tidemill state get word-count counts hello
  tidemill state get delays by-carrier UA -o json
  tidemill state get orders seen 00ff --key-format hex --partition 3";

const SCAN_EXAMPLES: &str = "\
Examples:
  tidemill state scan word-count counts
  tidemill state scan delays by-day --prefix HA/2013/1/ --limit 5
  tidemill state scan delays by-day --all -o json";

/// Read the committed state of a deployment
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
}

/// Read one key
#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
struct Get {
    deployment: String,
    store: String,
    key: String,
    #[command(flatten)]
    options: Options,
}

/// Read keys in order, all or those with a prefix
#[derive(Debug, Args)]
#[command(after_help = SCAN_EXAMPLES)]
struct Scan {
    deployment: String,
    store: String,
    /// Only keys that start with this
    #[arg(long, default_value = "")]
    prefix: String,
    /// At most this many entries
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Every entry
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Args)]
struct Options {
    /// Ask this partition only
    #[arg(long)]
    partition: Option<i32>,
    /// How the key or prefix is written
    #[arg(long, default_value = "text", value_enum)]
    key_format: KeyFormat,
}

impl Options {
    fn key(&self, text: &str) -> Result<Vec<u8>, Failure> {
        self.key_format.read(text).map_err(Failure::usage)
    }
}

impl State {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            match self.command {
                Command::Get(get) => get.run(channel, global).await,
                Command::Scan(scan) => scan.run(channel, global).await,
            }
        })
    }
}

/// The declared type of a store's values; a store that is not there is an error with the nearest.
async fn store_type(channel: &Channel, deployment: &str, store: &str) -> Result<String, Failure> {
    let deployment = deployments::get(channel.clone(), deployment).await?;
    if let Some(found) = deployment.stores.iter().find(|found| found.name == store) {
        return Ok(found.r#type.clone());
    }
    let names: Vec<&str> = deployment.stores.iter().map(|store| store.name.as_str()).collect();
    let hint = match (nearest(store, names.iter().copied()), names.as_slice()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, []) => "it has none".to_owned(),
        (None, names) => format!("it has {}", names.join(", ")),
    };
    Err(Failure::not_found(format!("{} has no store `{store}`, {hint}", deployment.name)))
}

impl Get {
    async fn run(self, channel: Channel, global: &Global) -> Outcome {
        let kind = store_type(&channel, &self.deployment, &self.store).await?;
        let mut client = StateClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = proto::GetStateRequest {
            deployment: self.deployment.clone(),
            store: self.store.clone(),
            key: self.options.key(&self.key)?,
            partition: self.options.partition,
            local: false,
        };
        let answer = client.get(request).await?.into_inner();
        if answer.entries.is_empty() {
            let read = positions(&answer.read_at);
            return Err(Failure::not_found(format!(
                "{} holds no key `{}` (read {read})",
                self.store, self.key
            )));
        }
        let mut view = entries(&answer.entries, &answer.read_at, &kind);
        if let [entry] = answer.entries.as_slice() {
            view.blocks = vec![Block::Line(show_pretty(&entry.value, &kind))];
        }
        note_positions(global, &answer.read_at);
        view.print(global.output)
    }
}

impl Scan {
    async fn run(self, channel: Channel, global: &Global) -> Outcome {
        let kind = store_type(&channel, &self.deployment, &self.store).await?;
        let mut client = StateClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let prefix = self.options.key(&self.prefix)?;
        let limit = if self.all { u64::MAX } else { self.limit };
        let mut found: Vec<proto::StateEntry> = Vec::new();
        let mut read_at;
        let mut page_token = Vec::new();
        let more = loop {
            let wanted = limit - found.len() as u64;
            let request = proto::ScanStateRequest {
                deployment: self.deployment.clone(),
                store: self.store.clone(),
                prefix: prefix.clone(),
                limit: wanted.min(PAGE_ENTRIES.into()) as u32,
                page_token,
                partition: self.options.partition,
                local: false,
            };
            let page = client.scan(request).await?.into_inner();
            found.extend(page.entries);
            read_at = page.read_at;
            page_token = page.next_page_token;
            if page_token.is_empty() || found.len() as u64 >= limit {
                break !page_token.is_empty();
            }
        };
        note_positions(global, &read_at);
        let mut view = entries(&found, &read_at, &kind);
        if more {
            let shown = grouped(found.len() as u64);
            view.blocks.push(Block::Line(format!("the first {shown}; --limit N or --all gives more")));
        }
        view.print(global.output)
    }
}

fn entries(entries: &[proto::StateEntry], read_at: &[proto::StatePosition], kind: &str) -> View {
    let mut table = Table::new(&["KEY", "VALUE", ">PARTITION"], "no key");
    for entry in entries {
        table.row([
            show_text(&entry.key).into(),
            show(&entry.value, kind).into(),
            entry.partition.to_string().into(),
        ]);
    }
    let rows: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let (key, value) = (text_json(&entry.key), to_json(&entry.value, kind));
            json!({ "key": key, "value": value, "partition": entry.partition })
        })
        .collect();
    let read: Vec<Value> = read_at
        .iter()
        .map(|at| {
            let one = |at: &proto::InputPosition| json!({ "topic": at.topic, "partition": at.partition, "offset": at.offset });
            let positions: Vec<Value> = at.positions.iter().map(one).collect();
            json!({ "partition": at.partition, "node": at.node, "cluster": at.cluster, "positions": positions })
        })
        .collect();
    View::table(table, json!({ "entries": rows, "read_at": read }))
}

/// Says which position an answer is true at; beside the answer, so that a script gets the answer only.
fn note_positions(global: &Global, read_at: &[proto::StatePosition]) {
    if global.output == Format::Table {
        let cluster = read_at.first().map_or("", |at| at.cluster.as_str());
        eprintln!(
            "as of {}; of cluster {cluster} alone, a mirror may be ahead or behind",
            positions(read_at)
        );
    }
}

/// `words/0@12 on node-1`, for people who wonder how fresh an answer is.
fn positions(read_at: &[proto::StatePosition]) -> String {
    let one = |at: &proto::StatePosition| {
        let inputs: Vec<String> =
            at.positions.iter().map(|at| format!("{}/{}@{}", at.topic, at.partition, at.offset)).collect();
        format!("{} on {}", inputs.join(" "), at.node)
    };
    let mut all: Vec<String> = read_at.iter().take(4).map(one).collect();
    if read_at.len() > all.len() {
        all.push(format!("and {} more partitions", read_at.len() - all.len()));
    }
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}
