//! Questions to every node of the fleet at once, this one included. A node that does not answer is said,
//! not left out.

use std::collections::HashMap;
use std::time::Duration;

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;
use tokio::task::JoinSet;
use tonic::{Request, Status};

use super::forward::{Forwarder, Peer};
use super::grpc::ask;
use crate::node::Handle;

/// A node that takes longer is as good as silent: whoever asks wants to see the others.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// What one node says of thousands of tasks.
const ANSWER_BYTES_MAX: usize = 16 << 20;

#[derive(Clone)]
pub struct Peers {
    forwarder: Forwarder,
}

impl Peers {
    /// On behalf of the forwarder's caller, who is told what he may see.
    pub fn new(forwarder: Forwarder) -> Peers {
        Peers { forwarder }
    }

    /// This node, as the caller may see it.
    pub fn node(&self) -> &Handle {
        &self.forwarder.node
    }

    /// Every node, with what runs there of a deployment, or of all if the name is empty.
    pub async fn nodes(&self, deployment: &str) -> Result<Vec<proto::Node>, Status> {
        let name = deployment.to_owned();
        let known = ask(self.node(), move |node| Ok((node.nodes(&name), node.this_node(&name))));
        let (mut nodes, this) = known.await?;
        let request = proto::NodesRequest { deployment: deployment.to_owned(), local: true };
        let answers = self
            .each(move |channel| {
                let request = timed(request.clone());
                async move { Some(fleet(channel).nodes(request).await.ok()?.into_inner().nodes) }
            })
            .await;
        // An older node knows no other question than that for all nodes.
        let of_itself = |(id, answer): (String, Option<Vec<proto::Node>>)| {
            answer?.into_iter().find(|node| node.id == id && node.answered)
        };
        let told = answers.into_iter().filter_map(of_itself).chain([this]);
        let mut told: HashMap<String, proto::Node> = told.map(|node| (node.id.clone(), node)).collect();
        for node in &mut nodes {
            if let Some(told) = told.remove(&node.id) {
                *node = proto::Node { heartbeat_age_ms: node.heartbeat_age_ms, ..told };
            }
        }
        // This one, before its first heartbeat.
        nodes.extend(told.into_values());
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(nodes)
    }

    /// The directories of state of every node, and the nodes that do not answer.
    pub async fn stores(&self) -> Result<proto::StoresResponse, Status> {
        let mut answer = ask(self.node(), Handle::stores).await?;
        let told = self
            .each(|channel| async move {
                let asked = fleet(channel).stores(timed(proto::StoresRequest { local: true })).await;
                Some(asked.ok()?.into_inner().directories)
            })
            .await;
        for (id, directories) in told {
            match directories {
                Some(directories) => answer.directories.extend(directories),
                None => answer.silent.push(id),
            }
        }
        Ok(answer)
    }

    /// Asks every other node whose heartbeat is fresh. Answers by id; none from one that is silent.
    pub(super) async fn each<A, F>(&self, question: impl Fn(Peer) -> F) -> Vec<(String, Option<A>)>
    where
        A: Send + 'static,
        F: Future<Output = Option<A>> + Send + 'static,
    {
        let mut asked = JoinSet::new();
        let mut answers = Vec::new();
        for (id, address) in self.node().peers() {
            let Ok(channel) = self.forwarder.channel(&address).await else {
                answers.push((id, None));
                continue;
            };
            let answer = question(channel);
            asked.spawn(
                async move { (id, tokio::time::timeout(ANSWER_WAIT, answer).await.unwrap_or_default()) },
            );
        }
        while let Some(answer) = asked.join_next().await {
            answers.extend(answer.ok());
        }
        answers.sort_by(|(a, _), (b, _)| a.cmp(b));
        answers
    }
}

fn fleet(channel: Peer) -> FleetClient<Peer> {
    FleetClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// For a node that is asked with others.
pub(super) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_WAIT);
    request
}
