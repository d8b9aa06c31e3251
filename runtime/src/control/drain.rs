//! A drain asked of any node: passed on to the one it is about.

use std::time::Instant;

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;
use tonic::Status;

use super::deadline::Deadline;
use super::forward::{Forwarder, timed, unknown};
use super::grpc::ask;
use crate::node::Owner;

/// Where the way to the node broke.
const LOOK: &str = "`tidemill nodes` says whether it has heard of this, and asking again does no harm";

impl Forwarder {
    /// Asks the node itself. May be repeated: it says what is wanted, not what is to change.
    pub async fn drain(
        &self,
        request: proto::DrainRequest,
        deadline: Deadline,
    ) -> Result<proto::DrainResponse, Status> {
        let proto::DrainRequest { node: id, undo, local, author } = request;
        let asked = id.clone();
        match ask(&self.node, move |node| node.member(&asked)).await? {
            Owner::Here => ask(&self.node, move |node| node.drain(undo, &author)).await,
            Owner::At { .. } if local => Err(Status::not_found(format!("this is not node {id}"))),
            Owner::At { node, address } => {
                let mut client = FleetClient::new(self.channel(&address).await?);
                let left = deadline.until().saturating_duration_since(Instant::now());
                let request = proto::DrainRequest { node: id, undo, local: true, author };
                let answer = client.drain(timed(request, left)).await;
                answer.map(|answer| answer.into_inner()).map_err(|status| {
                    match std::error::Error::source(&status) {
                        // What the other node says is passed on as it is.
                        None => status,
                        Some(reason) => unknown(&format!("node {node} is at {address}"), reason, LOOK),
                    }
                })
            }
        }
    }
}
