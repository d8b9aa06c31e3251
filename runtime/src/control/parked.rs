//! Parked records over gRPC: each partition is asked of the node that runs its task.

use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::parked_client::ParkedClient;
use tonic::{Request, Response, Status};

use super::deadline::Deadline;
use super::details::partly;
use super::forward::{ANSWER_BYTES_MAX, Forwarder, Peer, Read, timed, unknown};
use super::grpc::{Services, ask};
use super::page::{self, PageToken};
use crate::config::problem::Problem;
use crate::node::{ControlError, Handle};

/// Keys that one page may hold at most, and holds when the caller does not say.
const LIMIT_MAX: u32 = 1_000;
const LIMIT_DEFAULT: u32 = 100;

fn client(channel: Peer) -> ParkedClient<Peer> {
    ParkedClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// Where the way to the owner broke after a change was asked of it.
const LOOK: &str =
    "what was asked may be done or not; look at the parked records again (`tidemill parked list`)";

impl Read for proto::ListParkedRequest {
    type Answer = proto::ListParkedResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        false
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.parked_list(self, until)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).list(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

/// It waits for a commit, so it takes a thread as long.
impl Read for proto::ReleaseParkedRequest {
    type Answer = proto::ReleaseParkedResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        true
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.parked_release(self, until)
    }

    fn lost(what: &str, reason: &dyn std::error::Error) -> Status {
        unknown(what, reason, LOOK)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).release(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

/// As a release.
impl Read for proto::DropParkedRequest {
    type Answer = proto::DropParkedResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        true
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.parked_drop(self, until)
    }

    fn lost(what: &str, reason: &dyn std::error::Error) -> Status {
        unknown(what, reason, LOOK)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(client(channel).drop(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Forwarder {
    /// Partition after partition; the token is the partition and the last row of it.
    async fn list_parked(
        &self,
        request: proto::ListParkedRequest,
        deadline: Deadline,
    ) -> Result<proto::ListParkedResponse, Status> {
        let token = match request.local {
            // Of one partition, and its owner's to read.
            true => Ok(PageToken::default()),
            false => PageToken::read(&request.page_token)
                .ok_or_else(|| Problem::at("page_token", "it is not from a page of parked keys")),
        };
        let (limit, token) = page::both(page::limit(request.limit, LIMIT_DEFAULT, LIMIT_MAX), token)?;
        if request.local {
            return self.read(proto::ListParkedRequest { limit, ..request }, true, deadline).await;
        }
        let partitions = self.partitions(&request, false).await?;
        let token = token.among(&partitions)?;
        let mut answer = proto::ListParkedResponse::default();
        for partition in partitions {
            if partition < token.partition {
                continue;
            }
            let left = limit - answer.keys.len() as u32;
            if left == 0 {
                answer.next_page_token = PageToken { partition, after: Vec::new() }.write();
                break;
            }
            let part = proto::ListParkedRequest {
                partition: Some(partition),
                limit: left,
                page_token: token.within(partition),
                ..request.clone()
            };
            let part = self.read(part, false, deadline).await?;
            answer.keys.extend(part.keys);
            if !part.next_page_token.is_empty() {
                answer.next_page_token = PageToken { partition, after: part.next_page_token }.write();
                break;
            }
        }
        Ok(answer)
    }

    async fn release_parked(
        &self,
        request: proto::ReleaseParkedRequest,
        deadline: Deadline,
    ) -> Result<proto::ReleaseParkedResponse, Status> {
        let (mut answer, mut changed) = (proto::ReleaseParkedResponse::default(), Vec::new());
        for partition in self.partitions(&request, request.local).await? {
            let part = proto::ReleaseParkedRequest { partition: Some(partition), ..request.clone() };
            let part = self.read(part, request.local, deadline).await;
            let part = part.map_err(|failed| partly(failed, "records were released", &changed))?;
            changed.push((partition, part.records));
            answer.keys += part.keys;
            answer.records += part.records;
        }
        Ok(answer)
    }

    async fn drop_parked(
        &self,
        request: proto::DropParkedRequest,
        deadline: Deadline,
    ) -> Result<proto::DropParkedResponse, Status> {
        let (mut answer, mut changed) = (proto::DropParkedResponse::default(), Vec::new());
        for partition in self.partitions(&request, request.local).await? {
            let part = proto::DropParkedRequest { partition: Some(partition), ..request.clone() };
            let part = self.read(part, request.local, deadline).await;
            let part = part.map_err(|failed| partly(failed, "records were dropped", &changed))?;
            changed.push((partition, part.records));
            answer.keys += part.keys;
            answer.records += part.records;
            answer.left += part.left;
            if !part.reason.is_empty() {
                answer.reason = part.reason;
            }
        }
        Ok(answer)
    }
}

impl Forwarder {
    async fn count_drop(
        &self,
        request: proto::CountDropRequest,
        deadline: Deadline,
    ) -> Result<proto::CountDropResponse, Status> {
        let refusal = request.clone();
        ask(&self.node, move |node| node.parked_drop_refusal(&refusal)).await?;
        let mut list = proto::ListParkedRequest {
            deployment: request.deployment,
            filter: request.filter,
            partition: request.partition,
            limit: LIMIT_MAX,
            ..proto::ListParkedRequest::default()
        };
        let mut keys = 0;
        loop {
            let page = self.list_parked(list.clone(), deadline).await?;
            keys += page.keys.len() as u64;
            if page.next_page_token.is_empty() {
                return Ok(proto::CountDropResponse { keys });
            }
            list.page_token = page.next_page_token;
        }
    }
}

#[tonic::async_trait]
impl proto::parked_server::Parked for Services {
    async fn list(
        &self,
        request: Request<proto::ListParkedRequest>,
    ) -> Result<Response<proto::ListParkedResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.list_parked(request, deadline)).await
    }

    async fn release(
        &self,
        request: Request<proto::ReleaseParkedRequest>,
    ) -> Result<Response<proto::ReleaseParkedResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.release_parked(request, deadline)).await
    }

    async fn drop(
        &self,
        request: Request<proto::DropParkedRequest>,
    ) -> Result<Response<proto::DropParkedResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.drop_parked(request, deadline)).await
    }

    async fn count_drop(
        &self,
        request: Request<proto::CountDropRequest>,
    ) -> Result<Response<proto::CountDropResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.count_drop(request, deadline)).await
    }
}
