//! Lag, explained: what Kafka says of the offsets, and what the nodes say of the tasks behind them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tidemill_proto::v1 as proto;
use tonic::Status;

use super::details::invalid;
use super::grpc::ask;
use super::peers::Peers;
use super::streams::Stream;
use crate::config::problem::Problem;

/// Between two looks of a watcher who does not say.
const INTERVAL: Duration = Duration::from_secs(1);
/// What a watcher may say, in milliseconds.
const INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// Of a deployment, or of all if the name is empty.
pub async fn look(peers: &Peers, deployment: &str) -> Result<Vec<proto::PartitionLag>, Status> {
    let name = deployment.to_owned();
    let lag = ask(peers.node(), move |node| node.lag((!name.is_empty()).then_some(name.as_str())));
    let (lag, nodes) = tokio::join!(lag, peers.nodes(deployment));
    Ok(explained(lag?, nodes?))
}

/// Time between two looks, as the request says.
pub fn interval(request: &proto::WatchLagRequest) -> Result<Duration, Status> {
    match request.interval_ms {
        0 => Ok(INTERVAL),
        ms if INTERVAL_MS.contains(&ms) => Ok(Duration::from_millis(ms.into())),
        ms => {
            let (least, most) = (INTERVAL_MS.start(), INTERVAL_MS.end());
            let message = format!("is {ms}; {least} to {most} are possible");
            Err(invalid(Problem::at("interval_ms", message)))
        }
    }
}

/// Goes on looking until the stream ends, or a look fails.
pub async fn watch(
    peers: Peers,
    (deployment, interval): (String, Duration),
    mut stream: Stream<proto::WatchLagResponse>,
) {
    loop {
        let Some(looked) = stream.unless_ended(look(&peers, &deployment)).await else {
            return;
        };
        let failed = looked.is_err();
        let answer =
            looked.map(|partitions| proto::WatchLagResponse { partitions, at_ms: crate::node::wall_ms() });
        if !stream.send(answer).await || failed || !stream.pause(interval).await {
            return;
        }
    }
}

/// Adds what the nodes say of the tasks. Of two that name the same one, while it moves, the one whose task
/// runs is believed. A node that has answered before it had a task, while Kafka was asked, is not silent. What is about
/// a whole deployment, that it could not be asked about, is no partition's.
fn explained(mut lags: Vec<proto::PartitionLag>, nodes: Vec<proto::Node>) -> Vec<proto::PartitionLag> {
    let mut tasks: HashMap<(String, i32), (String, proto::NodeTask)> = HashMap::new();
    let mut answered = HashSet::new();
    for node in nodes.into_iter().filter(|node| node.answered) {
        answered.insert(node.id.clone());
        for task in node.tasks {
            let place = (task.deployment.clone(), task.partition);
            let known = tasks.get(&place);
            if known.is_none_or(|(_, known)| known.state() != proto::TaskState::Running) {
                tasks.insert(place, (node.id.clone(), task));
            }
        }
    }
    for lag in lags.iter_mut().filter(|lag| !lag.topic.is_empty()) {
        match tasks.get(&(lag.deployment.clone(), lag.partition)) {
            Some((node, task)) => {
                lag.node = node.clone();
                lag.set_state(task.state());
                lag.revision = task.revision;
                lag.spent = task.spent;
                lag.parked_records = task.parked_records;
                if !task.reason.is_empty() {
                    lag.reason = task.reason.clone();
                }
            }
            None if !lag.node.is_empty() && lag.reason.is_empty() && !answered.contains(&lag.node) => {
                lag.reason = format!("{} does not answer; its state is that of its last heartbeat", lag.node);
            }
            None => {}
        }
    }
    lags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_explained_by_the_node_that_runs_it_and_a_silent_node_is_named() {
        let lag = |partition, node: &str| proto::PartitionLag {
            deployment: "d".into(),
            topic: "in".into(),
            partition,
            node: node.into(),
            ..proto::PartitionLag::default()
        };
        let task = |partition, state: proto::TaskState, reason: &str| proto::NodeTask {
            deployment: "d".into(),
            partition,
            state: state.into(),
            reason: reason.into(),
            parked_records: 2,
            ..proto::NodeTask::default()
        };
        let node = |id: &str, answered, tasks| proto::Node {
            id: id.into(),
            answered,
            tasks,
            ..proto::Node::default()
        };
        let nodes = vec![
            node("a", true, vec![task(0, proto::TaskState::Running, "paused: full")]),
            node("b", true, vec![task(0, proto::TaskState::Restoring, "")]),
            node("c", false, vec![task(1, proto::TaskState::Running, "")]),
        ];
        let whole =
            proto::PartitionLag { topic: String::new(), reason: "in has no leader".into(), ..lag(0, "") };
        let lags = explained(vec![lag(0, "b"), lag(1, "c"), lag(2, ""), lag(3, "a"), whole.clone()], nodes);
        assert_eq!((lags[0].node.as_str(), lags[0].reason.as_str()), ("a", "paused: full"));
        assert_eq!((lags[0].state(), lags[0].parked_records), (proto::TaskState::Running, 2));
        assert!(lags[1].reason.starts_with("c does not answer"), "{:?}", lags[1]);
        assert_eq!(lags[2].reason, "");
        assert_eq!(lags[3].reason, "", "it has the task since it was asked");
        assert_eq!(lags[4], whole, "it is about no task");
    }
}
