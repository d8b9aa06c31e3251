//! A deploy or rollback whose caller waits until the version runs. What was accepted stays so: whatever ends the wait
//! is said in the answer, and no error.

use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tokio::sync::watch;
use tonic::Code;

use super::grpc::ask;
use super::streams::ended;
use crate::node::{Following, Handle, Progress};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Looks until every task runs the revision, or nothing more is to be waited for. Brings `deployment` up to date, unless
/// somebody has changed it meanwhile.
pub async fn follow(
    node: &Handle,
    deployment: &mut proto::Deployment,
    until: Instant,
    mut stopping: watch::Receiver<bool>,
) -> proto::Adoption {
    let asked = deployment.clone();
    let mut following = Following::new(&asked, None);
    let mut tasks = Vec::new();
    let outcome = loop {
        let name = asked.name.clone();
        let look = ask(node, move |node| node.rollout(&name));
        let looked = tokio::select! {
            looked = look => looked,
            () = ended(until, &mut stopping) => break Err(over(&stopping)),
        };
        match looked {
            Ok(rollout) => {
                let progress = following.look(&rollout);
                tasks = rollout.tasks;
                if let Some(now) = rollout.deployment.filter(|now| now.revision == asked.revision) {
                    *deployment = now;
                }
                match progress {
                    Progress::Complete => break Ok(()),
                    Progress::Paused => break Err(format!("{} is paused", asked.name)),
                    Progress::TakenBack(reason) | Progress::Halted(reason) => break Err(reason),
                    Progress::Coming => {}
                }
            }
            // A look asks Kafka, which may answer the next one.
            Err(status) if status.code() == Code::Unavailable => {}
            Err(status) => break Err(status.message().to_owned()),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = ended(until, &mut stopping) => break Err(over(&stopping)),
        }
    };
    proto::Adoption { complete: outcome.is_ok(), reason: outcome.err().unwrap_or_default(), tasks }
}

/// Why a wait is over that has not come to anything.
fn over(stopping: &watch::Receiver<bool>) -> String {
    let reason = match *stopping.borrow() {
        true => "this node is stopping, and does not wait any longer",
        false => "the time is over, and not every task runs it yet",
    };
    reason.to_owned()
}
