//! Outboxes over gRPC: each partition is asked of the node that runs its task.

use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::outbox_client::OutboxClient;
use tonic::{Request, Response, Status};

use super::deadline::Deadline;
use super::details::{partly, status};
use super::forward::{ANSWER_BYTES_MAX, Forwarder, Peer, Read, timed, unknown};
use super::grpc::{Services, ask, pending};
use crate::node::outbox::{chosen, destination_of, holding};
use crate::node::{ControlError, Handle};

fn client(channel: Peer) -> OutboxClient<Peer> {
    OutboxClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Read for proto::ListOutboxRequest {
    type Answer = proto::ListOutboxResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, _: Instant) -> Result<Self::Answer, ControlError> {
        node.outbox_list(self)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).list(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::ShowOutboxRequest {
    type Answer = proto::ShowOutboxResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, Some(self.partition))
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.outbox_show(self, until)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).show(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::RetryOutboxRequest {
    type Answer = proto::RetryOutboxResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.outbox_retry(self, until)
    }

    fn lost(what: &str, reason: &dyn std::error::Error) -> Status {
        let look = "rows may have been tried or not (`tidemill outbox show`); they may be retried once more";
        unknown(what, reason, look)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).retry(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

/// It waits for a commit, so it takes a thread as long.
impl Read for proto::DiscardOutboxRequest {
    type Answer = proto::DiscardOutboxResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        true
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.outbox_discard(self, until)
    }

    fn lost(what: &str, reason: &dyn std::error::Error) -> Status {
        let look = "rows may be discarded or not; look at them again (`tidemill outbox show`)";
        unknown(what, reason, look)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).discard(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::CountDiscardRequest {
    type Answer = proto::CountDiscardResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.outbox_count(self, until)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        let asked = timed(Self { local: true, ..self }, timeout);
        Ok(client(channel).count_discard(asked).await?.into_inner())
    }
}

impl Forwarder {
    async fn list_outbox(
        &self,
        request: proto::ListOutboxRequest,
        deadline: Deadline,
    ) -> Result<proto::ListOutboxResponse, Status> {
        let mut outboxes = Vec::new();
        for partition in self.partitions(&request, request.local).await? {
            let part = proto::ListOutboxRequest { partition: Some(partition), ..request.clone() };
            outboxes.extend(self.read(part, request.local, deadline).await?.outboxes);
        }
        outboxes.sort_by(|a, b| (&a.destination, a.partition).cmp(&(&b.destination, b.partition)));
        Ok(proto::ListOutboxResponse { outboxes })
    }

    async fn show_outbox(
        &self,
        request: proto::ShowOutboxRequest,
        deadline: Deadline,
    ) -> Result<proto::ShowOutboxResponse, Status> {
        let local = request.local;
        if !local {
            // Whether anything is left in the partition its owner says.
            self.refusal(&request.deployment, &request.destination).await?;
        }
        self.read(request, local, deadline).await
    }

    async fn retry_outbox(
        &self,
        request: proto::RetryOutboxRequest,
        deadline: Deadline,
    ) -> Result<proto::RetryOutboxResponse, Status> {
        chosen(&request.author, &request.rows, request.partition).map_err(status)?;
        let mut changed = Vec::new();
        let destination = destination_of(&request.rows);
        for partition in self.with_rows(&request, destination, request.local, deadline).await? {
            let part = proto::RetryOutboxRequest { partition: Some(partition), ..request.clone() };
            let part = self.read(part, request.local, deadline).await;
            let part = part.map_err(|failed| partly(failed, "rows were tried", &changed))?;
            changed.push((partition, part.rows));
        }
        Ok(proto::RetryOutboxResponse { rows: changed.iter().map(|(_, rows)| rows).sum() })
    }

    async fn discard_outbox(
        &self,
        request: proto::DiscardOutboxRequest,
        deadline: Deadline,
    ) -> Result<proto::DiscardOutboxResponse, Status> {
        chosen(&request.author, &request.rows, request.partition).map_err(status)?;
        let mut changed = Vec::new();
        let destination = destination_of(&request.rows);
        for partition in self.with_rows(&request, destination, request.local, deadline).await? {
            let part = proto::DiscardOutboxRequest { partition: Some(partition), ..request.clone() };
            let part = self.read(part, request.local, deadline).await;
            let part = part.map_err(|failed| partly(failed, "rows were discarded", &changed))?;
            changed.push((partition, part.rows));
        }
        Ok(proto::DiscardOutboxResponse { rows: changed.iter().map(|(_, rows)| rows).sum() })
    }

    async fn count_discard(
        &self,
        request: proto::CountDiscardRequest,
        deadline: Deadline,
    ) -> Result<proto::CountDiscardResponse, Status> {
        chosen("", &request.rows, request.partition).map_err(status)?;
        let (mut rows, destination) = (0, destination_of(&request.rows));
        for partition in self.with_rows(&request, destination, request.local, deadline).await? {
            let part = proto::CountDiscardRequest { partition: Some(partition), ..request.clone() };
            rows += self.read(part, request.local, deadline).await?.rows;
        }
        Ok(proto::CountDiscardResponse { rows })
    }

    /// The partitions whose rows a request is about; of a destination that only an earlier version had, those in which it
    /// has left some. What is not there is refused before any owner is asked to change something.
    async fn with_rows(
        &self,
        request: &impl Read,
        destination: &str,
        local: bool,
        deadline: Deadline,
    ) -> Result<Vec<i32>, Status> {
        let (deployment, partition) = request.target();
        if local {
            return self.partitions(request, local).await;
        }
        let refusal = self.refusal(deployment, destination).await?;
        let Some(refusal) = refusal.filter(|_| partition.is_none()) else {
            return self.partitions(request, local).await;
        };
        let list = proto::ListOutboxRequest {
            deployment: deployment.to_owned(),
            ..proto::ListOutboxRequest::default()
        };
        let states = self.list_outbox(list, deadline).await?.outboxes;
        let left = holding(&states, destination);
        if left.is_empty() { Err(status(refusal)) } else { Ok(Vec::from_iter(left)) }
    }

    /// As [`Handle::outbox_refusal`].
    async fn refusal(&self, deployment: &str, destination: &str) -> Result<Option<ControlError>, Status> {
        let (deployment, destination) = (deployment.to_owned(), destination.to_owned());
        ask(&self.node, move |node| node.outbox_refusal(&deployment, &destination)).await
    }
}

#[tonic::async_trait]
impl proto::outbox_server::Outbox for Services {
    async fn list(
        &self,
        request: Request<proto::ListOutboxRequest>,
    ) -> Result<Response<proto::ListOutboxResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.list_outbox(request, deadline)).await
    }

    async fn show(
        &self,
        request: Request<proto::ShowOutboxRequest>,
    ) -> Result<Response<proto::ShowOutboxResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.show_outbox(request, deadline)).await
    }

    async fn retry(
        &self,
        request: Request<proto::RetryOutboxRequest>,
    ) -> Result<Response<proto::RetryOutboxResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.retry_outbox(request, deadline)).await
    }

    async fn discard(
        &self,
        request: Request<proto::DiscardOutboxRequest>,
    ) -> Result<Response<proto::DiscardOutboxResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.discard_outbox(request, deadline)).await
    }

    async fn count_discard(
        &self,
        request: Request<proto::CountDiscardRequest>,
    ) -> Result<Response<proto::CountDiscardResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.count_discard(request, deadline)).await
    }

    async fn pause(
        &self,
        request: Request<proto::PauseOutboxRequest>,
    ) -> Result<Response<proto::PauseOutboxResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        self.change(node, pending, move |node| node.outbox_pause(request)).await
    }

    async fn resume(
        &self,
        request: Request<proto::ResumeOutboxRequest>,
    ) -> Result<Response<proto::ResumeOutboxResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        self.change(node, pending, move |node| node.outbox_resume(request)).await
    }
}
