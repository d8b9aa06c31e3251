//! `tidemill pause` and `tidemill resume`: a deployment that is to run nowhere for a while.

use serde_json::json;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;

use super::output::View;
use super::{Global, Outcome, client};

const PAUSE_EXAMPLES: &str = "\
Examples:
  tidemill pause word-count
  tidemill pause word-count --if-revision 17";

const RESUME_EXAMPLES: &str = "\
Examples:
  tidemill resume word-count
  tidemill resume word-count --if-revision 18";

/// Stop a deployment on every node, and keep all it has
///
/// What was taken is committed first. State, offsets and versions stay; a new version may be deployed
/// meanwhile and waits as well.
#[derive(Debug, clap::Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub struct Pause {
    name: String,
    /// Pause only if the registry still holds this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
}

/// Start a paused deployment again where it was
#[derive(Debug, clap::Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub struct Resume {
    name: String,
    /// Resume only if the registry still holds this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
}

impl Pause {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let mut client = DeploymentsClient::new(client::connect(global).await?);
            let request = proto::PauseRequest {
                name: self.name.clone(),
                expected_revision: self.if_revision,
                author: client::author(),
            };
            let answer = client.pause(request).await?.into_inner();
            let what = if answer.unchanged { "was paused already" } else { "is paused" };
            let json = json!({ "name": self.name, "paused": true, "unchanged": answer.unchanged });
            View::line(format!("{} {what}", self.name), json).print(global.output)
        })
    }
}

impl Resume {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let mut client = DeploymentsClient::new(client::connect(global).await?);
            let request = proto::ResumeRequest {
                name: self.name.clone(),
                expected_revision: self.if_revision,
                author: client::author(),
            };
            let answer = client.resume(request).await?.into_inner();
            let what = if answer.unchanged { "was not paused" } else { "goes on" };
            let json = json!({ "name": self.name, "paused": false, "unchanged": answer.unchanged });
            View::line(format!("{} {what}", self.name), json).print(global.output)
        })
    }
}
