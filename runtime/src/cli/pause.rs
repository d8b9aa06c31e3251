//! `tidemill pause` and `tidemill resume`: a deployment that is to run nowhere for a while.

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;

use super::output::View;
use super::{Global, Outcome, client};

const PAUSE_EXAMPLES: &str = "\
Examples:
  tidemill pause word-count";

const RESUME_EXAMPLES: &str = "\
Examples:
  tidemill resume word-count";

/// Stop a deployment on every node, and keep all it has
///
/// What was taken is committed first. State, offsets and versions stay; a new version may be deployed
/// meanwhile and waits as well.
#[derive(Debug, clap::Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub struct Pause {
    name: String,
}

/// Start a paused deployment again where it was
#[derive(Debug, clap::Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub struct Resume {
    name: String,
}

impl Pause {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let mut client = DeploymentsClient::new(client::connect(global).await?);
            let request = proto::PauseRequest {
                name: self.name.clone(),
                expected_revision: None,
                author: client::author(),
            };
            let answer = client.pause(request).await?.into_inner();
            let what = if answer.unchanged { "was paused already" } else { "is paused" };
            View::line(format!("{} {what}", self.name), json!({ "name": self.name, "paused": true }))
                .print(global.output)
        })
    }
}

impl Resume {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let mut client = DeploymentsClient::new(client::connect(global).await?);
            let request = proto::ResumeRequest {
                name: self.name.clone(),
                expected_revision: None,
                author: client::author(),
            };
            let answer = client.resume(request).await?.into_inner();
            let what = if answer.unchanged { "was not paused" } else { "goes on" };
            View::line(format!("{} {what}", self.name), json!({ "name": self.name, "paused": false }))
                .print(global.output)
        })
    }
}
