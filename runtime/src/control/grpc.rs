//! The gRPC services. Each call is a few lines: decode, ask the node on a blocking thread, encode.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use super::audit::Pending;
use super::caller::Caller;
use super::deadline::Deadline;
use super::details::status;
use super::forward::Forwarder;
use super::logs::Wanted;
use super::peers::Peers;
use super::streams::{Answers, Streams};
use super::{adoption, lag, logs, upload};
use crate::config::roles::Scope;
use crate::node::{ControlError, Handle, wall_ms};
use crate::telemetry::Telemetry;

/// Implements every service of `tidemill.v1`.
#[derive(Clone)]
pub struct Services {
    /// Sees everything: each call is answered by one that sees what its caller may.
    whole: Handle,
    forwarder: Forwarder,
    uploads: Arc<Semaphore>,
    streams: Streams,
    telemetry: Arc<Telemetry>,
    /// True = whoever waits is answered.
    stopping: watch::Receiver<bool>,
}

impl Services {
    /// Streams and waits end when `stopping` becomes true.
    pub fn new(
        node: Handle,
        forwarder: Forwarder,
        telemetry: Arc<Telemetry>,
        stopping: watch::Receiver<bool>,
    ) -> Services {
        let uploads = Arc::new(Semaphore::new(upload::UPLOADS_MAX));
        let streams = Streams::new(stopping.clone());
        Services { whole: node, forwarder, uploads, streams, telemetry, stopping }
    }

    /// The node as the caller of this request may see it, and what he says.
    pub(super) fn admitted<T>(&self, request: Request<T>) -> (Handle, T) {
        let scope = caller(&request).scope;
        (self.whole.within(scope), request.into_inner())
    }

    /// The same for what concerns other nodes, with the time that there is.
    pub(super) fn forwarded<T>(&self, request: Request<T>) -> (Forwarder, T, Deadline) {
        let deadline = deadline(&request);
        (self.forwarder.on_behalf_of(&caller(&request)), request.into_inner(), deadline)
    }

    pub(super) async fn ask<T: Send + 'static>(
        &self,
        node: Handle,
        work: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        self.counted(ask(&node, work)).await
    }

    /// As [`Services::ask`], for a change that makes no revision.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        node: Handle,
        pending: Option<Pending>,
        work: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        self.counted(change(&node, pending, |_, _| 0, work)).await
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

    /// How far the fleet is with what a caller has changed; none unless the caller waits for it.
    async fn adoption(
        &self,
        node: &Handle,
        changed: &mut Option<proto::Deployment>,
        wait_ms: u32,
        until: Instant,
    ) -> Option<proto::Adoption> {
        let deployment = changed.as_mut().filter(|_| wait_ms > 0)?;
        let until = until.min(Instant::now() + Duration::from_millis(wait_ms.into()));
        Some(adoption::follow(node, deployment, until, self.stopping.clone()).await)
    }
}

/// Without the guard nobody is a caller, and sees nothing.
fn caller<T>(request: &Request<T>) -> Caller {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.unwrap_or_else(|| Caller { identity: None, scope: Scope::none() })
}

/// Its line in the audit log. There is none of what is not a change.
pub(super) fn pending<T>(request: &Request<T>) -> Option<Pending> {
    request.extensions().get().cloned()
}

/// Counted from when the call was let in.
fn deadline<T>(request: &Request<T>) -> Deadline {
    let admitted = request.extensions().get::<Deadline>().copied();
    admitted.unwrap_or_else(|| Deadline::of(request.metadata()))
}

/// Runs `work` where it may block.
pub async fn ask<T: Send + 'static>(
    node: &Handle,
    work: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, Status> {
    let node = node.clone();
    blocking(move || work(&node).map_err(status)).await
}

/// As [`ask`], for a change. The audit log has what comes of it, with its `revision`, as soon as that is known: also when
/// whoever asked has gone away meanwhile, or waits for more.
pub(super) async fn change<T: Send + 'static>(
    node: &Handle,
    pending: Option<Pending>,
    revision: impl FnOnce(&Handle, &T) -> u64 + Send + 'static,
    work: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, Status> {
    let node = node.clone();
    blocking(move || {
        let answer = work(&node).map_err(status);
        if let Some(pending) = pending {
            pending.ended(answer.as_ref().map(|answer| revision(&node, answer)));
        }
        answer
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::internal("the call failed inside the node; its log says why")),
    }
}

/// What a deployment that has been changed is at.
fn revision(changed: &Option<proto::Deployment>) -> u64 {
    changed.as_ref().map_or(0, |deployment| deployment.revision)
}

#[tonic::async_trait]
impl proto::deployments_server::Deployments for Services {
    async fn deploy(
        &self,
        request: Request<Streaming<proto::DeployRequest>>,
    ) -> Result<Response<proto::DeployResponse>, Status> {
        let (until, pending) = (deadline(&request).until(), pending(&request));
        let (node, stream) = self.admitted(request);
        self.counted(async {
            let upload = upload::receive(&self.uploads, stream, until).await?;
            let (header, module) = (upload.header, upload.module);
            let wait_ms = if header.dry_run { 0 } else { header.wait_ms };
            let deploy = move |node: &Handle| node.deploy(header, module);
            let answer = change(&node, pending, |_, answer| revision(&answer.deployment), deploy).await;
            drop(upload.place);
            let mut answer = answer?;
            answer.adoption = self.adoption(&node, &mut answer.deployment, wait_ms, until).await;
            Ok(answer)
        })
        .await
    }

    async fn get(
        &self,
        request: Request<proto::GetDeploymentRequest>,
    ) -> Result<Response<proto::GetDeploymentResponse>, Status> {
        let (node, request) = self.admitted(request);
        let name = request.name;
        self.ask(node, move |node| {
            Ok(proto::GetDeploymentResponse { deployment: Some(node.deployment(&name)?) })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<proto::ListDeploymentsRequest>,
    ) -> Result<Response<proto::ListDeploymentsResponse>, Status> {
        let (node, _) = self.admitted(request);
        self.ask(node, |node| Ok(proto::ListDeploymentsResponse { deployments: node.deployments() })).await
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteDeploymentRequest>,
    ) -> Result<Response<proto::DeleteDeploymentResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        let delete = move |node: &Handle| node.delete(request).map(|()| proto::DeleteDeploymentResponse {});
        self.change(node, pending, delete).await
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        let (node, request) = self.admitted(request);
        let name = request.name;
        self.ask(node, move |node| node.history(&name)).await
    }

    async fn diff(
        &self,
        request: Request<proto::DiffRequest>,
    ) -> Result<Response<proto::DiffResponse>, Status> {
        let (node, request) = self.admitted(request);
        self.ask(node, move |node| node.diff(&request)).await
    }

    async fn rollout(
        &self,
        request: Request<proto::RolloutRequest>,
    ) -> Result<Response<proto::RolloutResponse>, Status> {
        let (node, request) = self.admitted(request);
        let name = request.name;
        self.ask(node, move |node| node.rollout(&name)).await
    }

    async fn rollback(
        &self,
        request: Request<proto::RollbackRequest>,
    ) -> Result<Response<proto::RollbackResponse>, Status> {
        let (until, pending) = (deadline(&request).until(), pending(&request));
        let (node, request) = self.admitted(request);
        self.counted(async {
            let wait_ms = if request.dry_run { 0 } else { request.wait_ms };
            let roll_back = move |node: &Handle| node.rollback(request);
            let mut answer =
                change(&node, pending, |_, answer| revision(&answer.deployment), roll_back).await?;
            answer.adoption = self.adoption(&node, &mut answer.deployment, wait_ms, until).await;
            Ok(answer)
        })
        .await
    }

    async fn pause(
        &self,
        request: Request<proto::PauseRequest>,
    ) -> Result<Response<proto::PauseResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        let pause = move |node: &Handle| node.pause(request);
        self.counted(change(&node, pending, |_, answer| revision(&answer.deployment), pause)).await
    }

    async fn reset(
        &self,
        request: Request<proto::ResetRequest>,
    ) -> Result<Response<proto::ResetResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        let (name, dry_run) = (request.name.clone(), request.dry_run);
        let reset = move |node: &Handle| node.reset(request);
        let at = move |node: &Handle, _: &proto::ResetResponse| match node.deployment(&name) {
            Ok(deployment) if !dry_run => deployment.revision,
            Ok(_) | Err(_) => 0,
        };
        self.counted(change(&node, pending, at, reset)).await
    }

    async fn resume(
        &self,
        request: Request<proto::ResumeRequest>,
    ) -> Result<Response<proto::ResumeResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        let resume = move |node: &Handle| node.resume(request);
        self.counted(change(&node, pending, |_, answer| revision(&answer.deployment), resume)).await
    }

    async fn restart(
        &self,
        request: Request<proto::RestartRequest>,
    ) -> Result<Response<proto::RestartResponse>, Status> {
        let pending = pending(&request);
        let (node, request) = self.admitted(request);
        let restart = move |node: &Handle| node.restart(request);
        self.counted(change(&node, pending, |_, answer| revision(&answer.deployment), restart)).await
    }
}

#[tonic::async_trait]
impl proto::lag_server::Lag for Services {
    async fn get(
        &self,
        request: Request<proto::GetLagRequest>,
    ) -> Result<Response<proto::GetLagResponse>, Status> {
        let (forwarder, request, _) = self.forwarded(request);
        let peers = Peers::new(forwarder);
        self.counted(async {
            Ok(proto::GetLagResponse { partitions: lag::look(&peers, &request.deployment).await? })
        })
        .await
    }

    type WatchStream = Answers<proto::WatchLagResponse>;

    async fn watch(
        &self,
        request: Request<proto::WatchLagRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let metadata = request.metadata().clone();
        let (forwarder, request, _) = self.forwarded(request);
        self.counted(async {
            let interval = lag::interval(&request)?;
            let (stream, answers) = self.streams.open(&metadata)?;
            let wanted = (request.deployment, interval);
            tokio::spawn(lag::watch(Peers::new(forwarder), wanted, stream));
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
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.get(request, deadline)).await
    }

    async fn get_many(
        &self,
        request: Request<proto::GetManyStateRequest>,
    ) -> Result<Response<proto::GetManyStateResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.get_many(request, deadline)).await
    }

    async fn scan(
        &self,
        request: Request<proto::ScanStateRequest>,
    ) -> Result<Response<proto::ScanStateResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.scan(request, deadline)).await
    }

    async fn edit(
        &self,
        request: Request<proto::EditStateRequest>,
    ) -> Result<Response<proto::EditStateResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.edit(request, deadline)).await
    }
}

#[tonic::async_trait]
impl proto::inbox_server::Inbox for Services {
    async fn get(
        &self,
        request: Request<proto::GetInboxRequest>,
    ) -> Result<Response<proto::GetInboxResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.inbox_get(request, deadline)).await
    }
}

#[tonic::async_trait]
impl proto::fleet_server::Fleet for Services {
    async fn drain(
        &self,
        request: Request<proto::DrainRequest>,
    ) -> Result<Response<proto::DrainResponse>, Status> {
        let (forwarder, request, deadline) = self.forwarded(request);
        self.counted(forwarder.drain(request, deadline)).await
    }

    async fn nodes(
        &self,
        request: Request<proto::NodesRequest>,
    ) -> Result<Response<proto::NodesResponse>, Status> {
        let (forwarder, request, _) = self.forwarded(request);
        let proto::NodesRequest { deployment, local } = request;
        if local {
            let nodes = move |node: &Handle| vec![node.this_node(&deployment)];
            return self
                .ask(forwarder.node, move |node| Ok(proto::NodesResponse { nodes: nodes(node) }))
                .await;
        }
        let peers = Peers::new(forwarder);
        self.counted(async {
            if !deployment.is_empty() {
                // What is not deployed runs nowhere, which is no answer to a name that was misspelt.
                let name = deployment.clone();
                ask(peers.node(), move |node| node.is_paused(&name)).await?;
            }
            Ok(proto::NodesResponse { nodes: peers.nodes(&deployment).await? })
        })
        .await
    }

    async fn stores(
        &self,
        request: Request<proto::StoresRequest>,
    ) -> Result<Response<proto::StoresResponse>, Status> {
        let (forwarder, request, _) = self.forwarded(request);
        match request.local {
            true => self.ask(forwarder.node, Handle::stores).await,
            false => self.counted(Peers::new(forwarder).stores()).await,
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
        let metadata = request.metadata().clone();
        let (forwarder, request, _) = self.forwarded(request);
        self.counted(async {
            let (name, local) = (request.deployment.clone(), request.local);
            // Another node has looked already at what it passes on.
            let partition = request.partition.filter(|_| !local);
            let ring = ask(&forwarder.node, move |node| {
                let ring = node.handler_log(&name)?;
                partition.map_or(Ok(()), |partition| node.may_have(&name, partition))?;
                Ok(ring)
            });
            let (ring, wanted) = (ring.await?, Wanted::of(request, wall_ms())?);
            let (stream, answers) = self.streams.open(&metadata)?;
            match local {
                true => {
                    let node = forwarder.node;
                    tokio::spawn(async move { logs::here(node.id(), ring, wanted, stream).await })
                }
                false => tokio::spawn(logs::everywhere(forwarder, ring, wanted, stream)),
            };
            Ok(answers)
        })
        .await
    }
}
