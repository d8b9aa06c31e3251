//! `tidemill inbox`: asks whether a deployment has seen an id.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::inbox_client::InboxClient;
use tonic::transport::Channel;

use super::output::{Block, View};
use super::state::{Fresh, Options, note_positions, read_json};
use super::table::Table;
use super::values::{show_text, text_json};
use super::{Global, Outcome, client};
use crate::config::deployment::join_id;
use crate::config::units;

const GET_EXAMPLES: &str = "\
Examples:
  tidemill inbox get orders 7b0ef2c4
  tidemill inbox get orders 7b0ef2c4 -o json
  tidemill inbox get orders 7b0ef2c4 --at-least orders/0@12
  tidemill inbox get orders order-17 3
  tidemill inbox get orders 00ff --key-format hex --partition 3";

/// Ask which records a deployment with an inbox has handled
///
/// Any node answers; it asks the nodes that own the partitions. A partition that cannot be read is an
/// error, never an empty answer.
#[derive(Debug, Args)]
pub struct Inbox {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(Get),
}

/// Say whether an id has been seen: when, at which record, by which version
///
/// `-o json` answers `"seen": true` while a record with this id would be refused as a repetition.
#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
struct Get {
    deployment: String,
    /// The id, as it is in the records; each part of one that is joined of several, in their order
    #[arg(required = true)]
    id: Vec<String>,
    #[command(flatten)]
    fresh: Fresh,
    #[command(flatten)]
    options: Options,
}

impl Inbox {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            match self.command {
                Command::Get(get) => get.run(channel, global).await,
            }
        })
    }
}

impl Get {
    async fn run(self, channel: Channel, global: &Global) -> Outcome {
        let parts = self.id.iter().map(|part| self.options.key(part)).collect::<Result<Vec<_>, _>>()?;
        let request = proto::GetInboxRequest {
            deployment: self.deployment.clone(),
            id: if let [id] = &parts[..] { id.clone() } else { join_id(&parts) },
            partition: self.options.partition,
            at_least: self.fresh.at_least.clone(),
            local: false,
        };
        let id = request.id.clone();
        let answer = InboxClient::new(channel).get(self.options.timed(request)).await?.into_inner();
        note_positions(global, &answer.read_at);
        view(&id, &answer).print(global.output)
    }
}

fn view(id: &[u8], answer: &proto::GetInboxResponse) -> View {
    let columns = ["RECORD", ">VERSION", "SEEN AT", "FORGOTTEN AT", ""];
    let mut table = Table::new(&columns, "");
    for entry in &answer.entries {
        table.row([
            record(entry).into(),
            entry.version.to_string().into(),
            units::show_time_ms(entry.seen_at_ms).into(),
            units::show_time_ms(entry.expires_at_ms).into(),
            (if entry.expired { "forgotten" } else { "" }).into(),
        ]);
    }
    let entries: Vec<Value> = answer
        .entries
        .iter()
        .map(|entry| {
            json!({
                "partition": entry.partition, "topic": entry.topic, "offset": entry.offset,
                "seen_at": units::show_time_ms(entry.seen_at_ms),
                "expires_at": units::show_time_ms(entry.expires_at_ms), "expired": entry.expired,
                "revision": entry.revision, "version": entry.version,
            })
        })
        .collect();
    let seen = answer.entries.iter().any(|entry| !entry.expired);
    let json = json!({
        "id": text_json(id), "seen": seen, "entries": entries, "read_at": read_json(&answer.read_at),
    });
    match answer.entries.is_empty() {
        true => View::line(format!("{} has not been seen", show_text(id)), json),
        false => View { blocks: vec![Block::Table(table)], json },
    }
}

/// Where it lies; the topic is not always known.
fn record(entry: &proto::SeenId) -> String {
    let topic = if entry.topic.is_empty() { "?" } else { entry.topic.as_str() };
    format!("{topic}/{}@{}", entry.partition, entry.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_and_when_fits_eighty_columns_uncut() {
        let entry = proto::SeenId {
            partition: 12,
            topic: "orders".into(),
            offset: 1_234_567,
            version: 3,
            seen_at_ms: 1_736_937_000_000,
            expires_at_ms: 1_737_541_800_000,
            ..proto::SeenId::default()
        };
        let answer = proto::GetInboxResponse { entries: vec![entry], ..proto::GetInboxResponse::default() };
        let text = view(b"7b0ef2c4", &answer).render(Some(80), false);
        for part in ["orders/12@1234567", "2025-01-15T10:30:00.000Z", "2025-01-22T10:30:00.000Z"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
