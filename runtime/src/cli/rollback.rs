//! `tidemill rollback`: takes up an earlier version again, as a new one.

use std::time::Duration;

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;

use super::client::ANSWER_BYTES_MAX;
use super::history::{changes_json, changes_table};
use super::output::{Block, View};
use super::plan::warnings;
use super::{Global, Outcome, client, positions, rollout};
use crate::config::units;

const EXAMPLES: &str = "\
Examples:
  tidemill rollback word-count
  tidemill rollback word-count --to 3 --wait --reason 'wrong totals'
  tidemill rollback word-count --to 3 --dry-run
  tidemill rollback word-count --drop-store counts";

/// Take up an earlier version again
///
/// Makes a new version with the module and document of that one, and checks it like a deploy: state
/// stays what it is, so a version that cannot read what a later one wrote is refused. One rollback after
/// the other goes back step by step.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Rollback {
    name: String,
    /// Version to take up; the one before the current one if not given
    #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
    to: u64,
    /// Roll back only if the registry still holds this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// Why, for the history
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Give up the data of a store, for good
    #[arg(long, value_name = "STORE")]
    drop_store: Vec<String>,
    /// Wait until it runs, at most this long
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, num_args = 0..=1, default_missing_value = "30s")]
    #[arg(conflicts_with = "dry_run")]
    wait: Option<Duration>,
}

impl Rollback {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let mut client =
                DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
            let request = proto::RollbackRequest {
                name: self.name.clone(),
                to: self.to,
                expected_revision: self.if_revision,
                author: client::author(),
                reason: self.reason.clone(),
                dry_run: self.dry_run,
                drop_stores: self.drop_store.clone(),
                wait_ms: 0,
            };
            let answer = client.rollback(request).await?.into_inner();
            eprint!("{}", warnings(&self.name, &answer.warnings));
            let mut deployment = answer.deployment.unwrap_or_default();
            let (mut first, mut failure) = (Vec::new(), None);
            if let Some(limit) = self.wait.filter(|_| !self.dry_run) {
                match rollout::wait(&channel, &deployment, limit).await {
                    Ok(adopted) => (deployment, first) = (adopted.deployment, adopted.first),
                    // The version is there all the same: that is said first.
                    Err(error) => failure = Some(error),
                }
            }
            let would = if self.dry_run { "would be" } else { "is" };
            let mut line = format!("{} {would} at version {}", self.name, deployment.version);
            if !first.is_empty() {
                line.push_str(&format!(", from {}", positions::show_all(&first)));
            }
            let json = json!({
                "name": self.name, "version": deployment.version, "revision": deployment.revision,
                "dry_run": self.dry_run, "changes": changes_json(&answer.changes), "warnings": answer.warnings,
                "first": positions::to_json(&first),
            });
            let blocks = vec![Block::Line(line), Block::Table(changes_table(&answer.changes))];
            View { blocks, json }.print(global.output)?;
            failure.map_or(Ok(()), Err)
        })
    }
}
