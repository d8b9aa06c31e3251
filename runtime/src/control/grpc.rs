//! The gRPC services. Each call is a few lines: decode, ask the node on a blocking thread, encode.

use std::future::Future;
use std::sync::Arc;

use tidemill_proto::v1 as proto;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use super::deadline::Deadline;
use super::details::status;
use super::forward::Forwarder;
use super::logs::Wanted;
use super::peers::Peers;
use super::streams::{Answers, Streams};
use super::{lag, logs, upload};
use crate::node::{ControlError, Handle, wall_ms};
use crate::telemetry::Telemetry;

/// Implements every service of `tidemill.v1`.
#[derive(Clone)]
pub struct Services {
    pub(super) node: Handle,
    pub(super) forwarder: Arc<Forwarder>,
    uploads: Arc<Semaphore>,
    peers: Peers,
    streams: Streams,
    telemetry: Arc<Telemetry>,
}

impl Services {
    /// Streams end when `stopping` becomes true.
    pub fn new(node: Handle, telemetry: Arc<Telemetry>, stopping: watch::Receiver<bool>) -> Services {
        let forwarder = Arc::new(Forwarder::new(node.clone()));
        let uploads = Arc::new(Semaphore::new(upload::UPLOADS_MAX));
        let peers = Peers::new(node.clone(), Arc::clone(&forwarder));
        Services { node, forwarder, uploads, peers, streams: Streams::new(stopping), telemetry }
    }

    pub(super) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        self.counted(ask(&self.node, work)).await
    }

    /// A call, counted with its outcome.
    pub(super) async fn counted<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let metrics = &self.telemetry.node;
        metrics.control_calls.add(1);
        let answer = call.await;
        metrics.control_errors.add(u64::from(answer.is_err()));
        answer.map(Response::new)
    }
}

/// Runs `work` where it may block.
pub async fn ask<T: Send + 'static>(
    node: &Handle,
    work: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, Status> {
    let node = node.clone();
    match tokio::task::spawn_blocking(move || work(&node)).await {
        Ok(answer) => answer.map_err(status),
        Err(_) => Err(Status::internal("the call failed inside the node; its log says why")),
    }
}

#[tonic::async_trait]
impl proto::deployments_server::Deployments for Services {
    async fn deploy(
        &self,
        request: Request<Streaming<proto::DeployRequest>>,
    ) -> Result<Response<proto::DeployResponse>, Status> {
        self.counted(async {
            let upload = upload::receive(&self.uploads, request.into_inner()).await?;
            let (header, module) = (upload.header, upload.module);
            let answer = ask(&self.node, move |node| node.deploy(header, module)).await;
            drop(upload.place);
            answer
        })
        .await
    }

    async fn get(
        &self,
        request: Request<proto::GetDeploymentRequest>,
    ) -> Result<Response<proto::GetDeploymentResponse>, Status> {
        let name = request.into_inner().name;
        self.ask(move |node| Ok(proto::GetDeploymentResponse { deployment: Some(node.deployment(&name)?) }))
            .await
    }

    async fn list(
        &self,
        _request: Request<proto::ListDeploymentsRequest>,
    ) -> Result<Response<proto::ListDeploymentsResponse>, Status> {
        self.ask(|node| Ok(proto::ListDeploymentsResponse { deployments: node.deployments() })).await
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteDeploymentRequest>,
    ) -> Result<Response<proto::DeleteDeploymentResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |node| {
            node.delete(request)?;
            Ok(proto::DeleteDeploymentResponse {})
        })
        .await
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        let name = request.into_inner().name;
        self.ask(move |node| node.history(&name)).await
    }

    async fn diff(
        &self,
        request: Request<proto::DiffRequest>,
    ) -> Result<Response<proto::DiffResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |node| node.diff(&request)).await
    }

    async fn rollout(
        &self,
        request: Request<proto::RolloutRequest>,
    ) -> Result<Response<proto::RolloutResponse>, Status> {
        let name = request.into_inner().name;
        self.ask(move |node| node.rollout(&name)).await
    }

    async fn rollback(
        &self,
        request: Request<proto::RollbackRequest>,
    ) -> Result<Response<proto::RollbackResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |node| node.rollback(request)).await
    }

    async fn pause(
        &self,
        request: Request<proto::PauseRequest>,
    ) -> Result<Response<proto::PauseResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |node| node.pause(request)).await
    }

    async fn reset(
        &self,
        request: Request<proto::ResetRequest>,
    ) -> Result<Response<proto::ResetResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |node| node.reset(request)).await
    }

    async fn resume(
        &self,
        request: Request<proto::ResumeRequest>,
    ) -> Result<Response<proto::ResumeResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |node| node.resume(request)).await
    }

    async fn restart(
        &self,
        request: Request<proto::RestartRequest>,
    ) -> Result<Response<proto::RestartResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |node| node.restart(request)).await
    }
}

#[tonic::async_trait]
impl proto::lag_server::Lag for Services {
    async fn get(
        &self,
        request: Request<proto::GetLagRequest>,
    ) -> Result<Response<proto::GetLagResponse>, Status> {
        let name = request.into_inner().deployment;
        self.counted(async {
            Ok(proto::GetLagResponse { partitions: lag::look(&self.node, &self.peers, &name).await? })
        })
        .await
    }

    type WatchStream = Answers<proto::WatchLagResponse>;

    async fn watch(
        &self,
        request: Request<proto::WatchLagRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.counted(async {
            let (metadata, _, request) = request.into_parts();
            let interval = lag::interval(&request)?;
            let (stream, answers) = self.streams.open(&metadata)?;
            let wanted = (request.deployment, interval);
            tokio::spawn(lag::watch(self.node.clone(), self.peers.clone(), wanted, stream));
            Ok(answers)
        })
        .await
    }
}

#[tonic::async_trait]
impl proto::state_server::State for Services {
    async fn get(
        &self,
        request: Request<proto::GetStateRequest>,
    ) -> Result<Response<proto::GetStateResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.counted(self.forwarder.get(request.into_inner(), deadline)).await
    }

    async fn get_many(
        &self,
        request: Request<proto::GetManyStateRequest>,
    ) -> Result<Response<proto::GetManyStateResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.counted(self.forwarder.get_many(request.into_inner(), deadline)).await
    }

    async fn scan(
        &self,
        request: Request<proto::ScanStateRequest>,
    ) -> Result<Response<proto::ScanStateResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.counted(self.forwarder.scan(request.into_inner(), deadline)).await
    }

    async fn edit(
        &self,
        request: Request<proto::EditStateRequest>,
    ) -> Result<Response<proto::EditStateResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.counted(self.forwarder.edit(request.into_inner(), deadline)).await
    }
}

#[tonic::async_trait]
impl proto::inbox_server::Inbox for Services {
    async fn get(
        &self,
        request: Request<proto::GetInboxRequest>,
    ) -> Result<Response<proto::GetInboxResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.counted(self.forwarder.inbox_get(request.into_inner(), deadline)).await
    }
}

#[tonic::async_trait]
impl proto::fleet_server::Fleet for Services {
    async fn drain(
        &self,
        request: Request<proto::DrainRequest>,
    ) -> Result<Response<proto::DrainResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.counted(self.forwarder.drain(&self.node, request.into_inner(), deadline)).await
    }

    async fn nodes(
        &self,
        request: Request<proto::NodesRequest>,
    ) -> Result<Response<proto::NodesResponse>, Status> {
        let proto::NodesRequest { deployment, local } = request.into_inner();
        if local {
            let nodes = move |node: &Handle| node.this_node(&deployment).into_iter().collect();
            return self.ask(move |node| Ok(proto::NodesResponse { nodes: nodes(node) })).await;
        }
        self.counted(async { Ok(proto::NodesResponse { nodes: self.peers.nodes(&deployment).await? }) }).await
    }

    async fn stores(
        &self,
        request: Request<proto::StoresRequest>,
    ) -> Result<Response<proto::StoresResponse>, Status> {
        match request.into_inner().local {
            true => self.ask(Handle::stores).await,
            false => self.counted(self.peers.stores()).await,
        }
    }
}

#[tonic::async_trait]
impl proto::logs_server::Logs for Services {
    type TailStream = Answers<proto::TailLogsResponse>;

    async fn tail(
        &self,
        request: Request<proto::TailLogsRequest>,
    ) -> Result<Response<Self::TailStream>, Status> {
        self.counted(async {
            let (metadata, _, request) = request.into_parts();
            let name = request.deployment.clone();
            let ring = ask(&self.node, move |node| node.handler_log(&name)).await?;
            let (local, wanted) = (request.local, Wanted::of(request, wall_ms())?);
            let (stream, answers) = self.streams.open(&metadata)?;
            let node = self.node.clone();
            match local {
                true => tokio::spawn(async move { logs::here(node.id(), ring, wanted, stream).await }),
                false => {
                    let forwarder = Arc::clone(&self.forwarder);
                    tokio::spawn(logs::everywhere(node, forwarder, ring, wanted, stream))
                }
            };
            Ok(answers)
        })
        .await
    }
}
