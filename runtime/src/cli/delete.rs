//! `tidemill delete`: ends a deployment and, unless told otherwise, its state.

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;

use super::output::{View, confirm};
use super::{Global, Outcome, client, deployments};

const EXAMPLES: &str = "\
Examples:
  tidemill delete word-count
  tidemill delete word-count --keep-state
  tidemill delete word-count --yes";

/// Stop a deployment on every node and forget it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Delete {
    name: String,
    /// Keep its state and its progress: the next deployment of the name goes on from there
    #[arg(long)]
    keep_state: bool,
    /// Delete only if the registry still holds this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl Delete {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let channel = client::connect(global).await?;
            if !self.yes {
                // One that is not there is nothing to ask about.
                deployments::get(channel.clone(), &self.name).await?;
                let what = if self.keep_state { "(its state is kept)" } else { "and its state" };
                confirm(&format!("Delete {} {what}?", self.name), self.yes)?;
            }
            let mut client = DeploymentsClient::new(channel);
            let request = proto::DeleteDeploymentRequest {
                name: self.name.clone(),
                keep_state: self.keep_state,
                expected_revision: self.if_revision,
                author: client::author(),
            };
            client.delete(request).await?;
            View::line(format!("deleted {}", self.name), json!({ "deleted": self.name })).print(global.output)
        })
    }
}
