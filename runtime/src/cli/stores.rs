//! `tidemill stores`: the directories that the nodes keep state in, and which of them are of no use.

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;

use super::client::ANSWER_BYTES_MAX;
use super::output::{Block, View};
use super::table::{Cell, Table, Tone, grouped};
use super::{Global, Outcome, client};
use crate::config::units;

const EXAMPLES: &str = "\
Examples:
  tidemill stores
  tidemill stores --unused
  tidemill stores -o json | jq '[.stores[].bytes] | add'";

/// Show the directories of state on every node
///
/// One that no task will ever take up again is deleted by itself, `state_unused_keep` after it was found.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Stores {
    /// Only those that are of no use any more
    #[arg(long)]
    unused: bool,
}

impl Stores {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let mut client = FleetClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let mut answer = client.stores(proto::StoresRequest::default()).await?.into_inner();
            if self.unused {
                answer.directories.retain(|store| store.r#use() == proto::StoreUse::Unused);
            }
            view(&answer).print(global.output)
        })
    }
}

fn view(answer: &proto::StoresResponse) -> View {
    let mut table = Table::new(
        &["NODE", "DEPLOYMENT", ">PART", ">BYTES", "USE", "WRITTEN", "DELETED AT", "LIFE", "REASON"],
        "no such directory on any node",
    );
    for store in &answer.directories {
        table.row([
            store.node.clone().into(),
            store.deployment.clone().into(),
            store.partition.to_string().into(),
            grouped(store.bytes).into(),
            use_cell(store.r#use()),
            units::show_time_ms(store.written_at_ms).into(),
            deleted_at(store).unwrap_or_default().into(),
            store.incarnation.chars().take(8).collect::<String>().into(),
            store.reason.clone().into(),
        ]);
    }
    let mut blocks = vec![Block::Table(table)];
    for id in &answer.silent {
        blocks.push(Block::Line(format!("{id} does not answer; what it has is not shown")));
    }
    let stores: Vec<Value> = answer.directories.iter().map(to_json).collect();
    View { blocks, json: json!({ "stores": stores, "silent": answer.silent }) }
}

fn deleted_at(store: &proto::StoreDirectory) -> Option<String> {
    (store.collected_at_ms != 0).then(|| units::show_time_ms(store.collected_at_ms))
}

fn use_name(of_use: proto::StoreUse) -> &'static str {
    match of_use {
        proto::StoreUse::Unspecified => "unknown",
        proto::StoreUse::Open => "open",
        proto::StoreUse::Kept => "kept",
        proto::StoreUse::Unused => "unused",
    }
}

fn use_cell(of_use: proto::StoreUse) -> Cell {
    let tone = match of_use {
        proto::StoreUse::Open => Tone::Good,
        proto::StoreUse::Unused => Tone::Warning,
        proto::StoreUse::Kept | proto::StoreUse::Unspecified => Tone::Quiet,
    };
    Cell::toned(use_name(of_use), tone)
}

fn to_json(store: &proto::StoreDirectory) -> Value {
    json!({
        "node": store.node, "deployment": store.deployment, "incarnation": store.incarnation,
        "partition": store.partition, "bytes": store.bytes, "use": use_name(store.r#use()),
        "reason": store.reason, "deleted_at": deleted_at(store),
        "written_at": units::show_time_ms(store.written_at_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_no_use_says_why_and_until_when_and_a_silent_node_is_named() {
        let store = proto::StoreDirectory {
            node: "node-0a1b2c3d".into(),
            deployment: "word-count".into(),
            incarnation: "8f14e45f-ceea-467f-a8f0-0123456789ab".into(),
            bytes: 123_456_789,
            r#use: proto::StoreUse::Unused.into(),
            reason: "word-count is not deployed any more".into(),
            collected_at_ms: 1_700_000_000_000,
            ..proto::StoreDirectory::default()
        };
        let view = view(&proto::StoresResponse { directories: vec![store], silent: vec!["b".into()] });
        let text = view.render(Some(80), false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("unused") && text.contains("b does not answer"), "{text}");
        assert_eq!(view.json["stores"][0]["deleted_at"], "2023-11-14T22:13:20.000Z");
    }
}
