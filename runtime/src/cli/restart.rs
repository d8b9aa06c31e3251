//! `tidemill restart`: halted tasks are tried again, because somebody has mended what halted them.

use std::time::Duration;

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;

use super::client::ANSWER_BYTES_MAX;
use super::output::View;
use super::{Global, Outcome, client, rollout};
use crate::config::units;

const EXAMPLES: &str = "\
Examples:
  tidemill restart word-count
  tidemill restart word-count --partition 3
  tidemill restart word-count --wait";

/// Try a deployment's halted tasks again, on every node
///
/// For what a person has mended: an offset set back, a topic restored, rights granted. What is not mended
/// halts again with its reason. Tasks that run go on where they are. A record that failed is tried again,
/// too; one that fails every time needs another version or another policy.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Restart {
    name: String,
    /// Try that partition's task again and leave other halted ones as they are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Restart only if the registry still holds this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// Wait until every task runs, or that of --partition, at most this long
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, num_args = 0..=1, default_missing_value = "30s")]
    wait: Option<Duration>,
}

impl Restart {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            let mut client =
                DeploymentsClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
            let request = proto::RestartRequest {
                name: self.name.clone(),
                expected_revision: self.if_revision,
                author: client::author(),
                partition: self.partition,
            };
            let deployment = client.restart(request).await?.into_inner().deployment.unwrap_or_default();
            let waited = match self.wait {
                Some(limit) => {
                    rollout::wait_for(&channel, &deployment, self.partition, limit).await.map(|_| "runs")
                }
                None => Ok("is tried again"),
            };
            // Whatever becomes of it, it is tried again: that is said before the failure.
            let what = waited.as_ref().copied().unwrap_or("is tried again");
            let task = self.partition.map(|partition| format!("task {partition} of ")).unwrap_or_default();
            let json = json!({
                "name": self.name, "revision": deployment.revision, "partition": self.partition,
            });
            View::line(format!("{task}{} {what}", self.name), json).print(global.output)?;
            waited.map(|_| ())
        })
    }
}
