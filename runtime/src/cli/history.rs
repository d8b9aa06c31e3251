//! `tidemill history` and `tidemill diff`: the versions of a deployment, and what they differ in.

use serde_json::{Value, json};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;

use super::client::ANSWER_BYTES_MAX;
use super::deployments::{module_short, ownership_json, stores_json};
use super::output::View;
use super::table::{Cell, Table, Tone};
use super::{Global, Outcome, client};
use crate::config::units;

const HISTORY_EXAMPLES: &str = "\
Examples:
  tidemill history word-count
  tidemill history word-count -o json";

const DIFF_EXAMPLES: &str = "\
Examples:
  tidemill diff word-count
  tidemill diff word-count --from 1 --to 3";

/// Show the versions of a deployment, the newest first
#[derive(Debug, clap::Args)]
#[command(after_help = HISTORY_EXAMPLES)]
pub struct History {
    name: String,
}

impl History {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let mut client = DeploymentsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let request = proto::HistoryRequest { name: self.name.clone() };
            let answer = client.history(request).await?.into_inner();
            View::table(table(&answer), history_json(&answer)).print(global.output)
        })
    }
}

fn table(answer: &proto::HistoryResponse) -> Table {
    let mut table = Table::new(
        &[">VERSION", ">REV", "WHEN", "AUTHOR", "MODULE", "STORES", "WHAT", "REASON"],
        "there is no version",
    );
    for version in &answer.versions {
        let number = match version.current {
            true => Cell::toned(version.version.to_string(), Tone::Good),
            false => version.version.to_string().into(),
        };
        table.row([
            number,
            version.revision.to_string().into(),
            units::show_time_ms(version.deployed_at_ms).into(),
            version.author.clone().into(),
            module_short(&version.module).into(),
            schemas(version).into(),
            what(version).into(),
            version.reason.clone().into(),
        ]);
    }
    table
}

/// `counts:2 heads:1`: the schema that the version writes in each store.
fn schemas(version: &proto::Version) -> String {
    let one = |store: &proto::StoreInfo| format!("{}:{}", store.name, store.schema);
    version.stores.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn what(version: &proto::Version) -> String {
    let done = match (version.rollback_to, version.automatic) {
        (0, _) => "deploy".to_owned(),
        (to, false) => format!("rollback to {to}"),
        (to, true) => format!("rollback to {to} by itself"),
    };
    let done = match version.dropped_stores.as_slice() {
        [] => done,
        dropped => format!("{done}, dropped {}", dropped.join(", ")),
    };
    if version.current { format!("{done} (current)") } else { done }
}

fn history_json(answer: &proto::HistoryResponse) -> Value {
    let versions: Vec<Value> = answer
        .versions
        .iter()
        .map(|version| {
            json!({
                "version": version.version, "revision": version.revision, "module": version.module,
                "document": version.document, "author": version.author,
                "deployed_at": units::show_time_ms(version.deployed_at_ms),
                "rollback_to": version.rollback_to, "automatic": version.automatic, "reason": version.reason, "current": version.current,
                "stores": stores_json(&version.stores), "dropped_stores": version.dropped_stores,
                "ownership": ownership_json(version.ownership.as_ref()),
            })
        })
        .collect();
    json!({ "versions": versions, "forgotten": answer.forgotten })
}

/// Show what two versions of a deployment differ in
///
/// Without numbers: the current version and the one before it.
#[derive(Debug, clap::Args)]
#[command(after_help = DIFF_EXAMPLES)]
pub struct Diff {
    name: String,
    /// The older version; the one before --to if not given
    #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// The newer version; the current one if not given
    #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
    to: u64,
}

impl Diff {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let mut client = DeploymentsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let request = proto::DiffRequest { name: self.name.clone(), from: self.from, to: self.to };
            let answer = client.diff(request).await?.into_inner();
            let json =
                json!({ "from": answer.from, "to": answer.to, "changes": changes_json(&answer.changes) });
            View::table(changes_table(&answer.changes), json).print(global.output)
        })
    }
}

pub fn changes_table(changes: &[proto::Change]) -> Table {
    let mut table = Table::new(&["FIELD", "BEFORE", "AFTER"], "nothing is different");
    for change in changes {
        table.row([change.field.clone().into(), change.before.clone().into(), change.after.clone().into()]);
    }
    table
}

pub fn changes_json(changes: &[proto::Change]) -> Value {
    let one = |change: &proto::Change| json!({ "field": change.field, "before": change.before, "after": change.after });
    changes.iter().map(one).collect()
}
