//! Queries of state and inboxes that concern other nodes: asked of every owner, answered as one.
//!
//! A partition is either answered or an error; it is never left out in silence. A read that waits for
//! a position also waits for a partition that is on its way from one owner to the next; any other is
//! told so at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::inbox_client::InboxClient;
use tidemill_proto::v1::state_client::StateClient;
use tokio::sync::{Mutex, Semaphore};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::caller::{Caller, OnBehalf};
use super::deadline::Deadline;
use super::details::{invalid, is_unknown, status};
use super::grpc::ask;
use super::page::{self, PageToken};
use crate::config::problem::Problem;
use crate::node::{ControlError, Handle, Owner};
use crate::tls::client::{CHANNEL_TIMEOUT, CONNECT_TIMEOUT, Client};

/// Between two looks at who owns a partition that moves.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Reads that wait for a position, each on a thread of its own.
const WAITS_MAX: usize = 128;
/// Entries that one scan page may hold at most, and holds when the caller does not say.
const SCAN_LIMIT_MAX: u32 = 10_000;
const SCAN_LIMIT_DEFAULT: u32 = 100;
/// A page over several partitions ends before the partition that would begin beyond this.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// An answer of another node: a page of scans, or values of several keys, and what is around them.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Of one caller: it sees no more of this node than the caller may, and says on whose behalf it asks others.
#[derive(Clone)]
pub struct Forwarder {
    pub(super) node: Handle,
    behalf: OnBehalf,
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` = the fleet's nodes talk to each other without TLS.
    tls: Option<Client>,
    /// By address. Bounded by the fleet's size.
    channels: Mutex<HashMap<String, Channel>>,
    waits: Semaphore,
}

/// To another node, on behalf of a caller.
pub(super) type Peer = InterceptedService<Channel, OnBehalf>;

/// A read of one partition, as this node and as another one answers it.
pub(super) trait Read: Clone + Send + 'static {
    type Answer: Send + 'static;

    fn target(&self) -> (&str, Option<i32>);

    fn waits(&self) -> bool;

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError>;

    /// The way to the other node broke after it may have been asked: what its caller is told.
    fn lost(what: &str, reason: &dyn std::error::Error) -> Status {
        unasked(what, reason)
    }

    /// Asked of another node, as a local read.
    fn there(
        self,
        channel: Peer,
        timeout: Duration,
    ) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

impl Read for proto::GetManyStateRequest {
    type Answer = proto::GetManyStateResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        !self.at_least.is_empty()
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.state_get_many(self, until)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(state(channel).get_many(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::ScanStateRequest {
    type Answer = proto::ScanStateResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        !self.at_least.is_empty()
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.state_scan(self, until)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(state(channel).scan(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

/// No read, but asked of the owner in the same way. It waits for a commit, so it takes a thread as long.
impl Read for proto::EditStateRequest {
    type Answer = proto::EditStateResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, Some(self.partition))
    }

    fn waits(&self) -> bool {
        true
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.state_edit(self.clone(), until)
    }

    fn lost(what: &str, reason: &dyn std::error::Error) -> Status {
        unknown(what, reason, "the edit may be committed or not; read the key (`tidemill state get`)")
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        Ok(state(channel).edit(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Read for proto::GetInboxRequest {
    type Answer = proto::GetInboxResponse;

    fn target(&self) -> (&str, Option<i32>) {
        (&self.deployment, self.partition)
    }

    fn waits(&self) -> bool {
        !self.at_least.is_empty()
    }

    fn here(&self, node: &Handle, until: Instant) -> Result<Self::Answer, ControlError> {
        node.inbox_get(self, until)
    }

    async fn there(self, channel: Peer, timeout: Duration) -> Result<Self::Answer, Status> {
        let mut client = InboxClient::new(channel);
        Ok(client.get(timed(Self { local: true, ..self }, timeout)).await?.into_inner())
    }
}

impl Forwarder {
    pub fn new(node: Handle, tls: Option<Client>) -> Forwarder {
        let shared = Shared { tls, channels: Mutex::new(HashMap::new()), waits: Semaphore::new(WAITS_MAX) };
        Forwarder { node, behalf: OnBehalf(None), shared: Arc::new(shared) }
    }

    /// For one call.
    pub fn on_behalf_of(&self, caller: &Caller) -> Forwarder {
        Forwarder {
            node: self.node.within(caller.scope.clone()),
            behalf: OnBehalf(caller.identity.clone()),
            shared: Arc::clone(&self.shared),
        }
    }

    pub async fn get(
        &self,
        request: proto::GetStateRequest,
        deadline: Deadline,
    ) -> Result<proto::GetStateResponse, Status> {
        let request = proto::GetManyStateRequest {
            deployment: request.deployment,
            store: request.store,
            keys: vec![request.key],
            partition: request.partition,
            local: request.local,
            at_least: request.at_least,
            text: request.text,
        };
        let answer = self.get_many(request, deadline).await?;
        let proto::GetManyStateResponse { entries, read_at, r#type, parked, .. } = answer;
        Ok(proto::GetStateResponse { entries, read_at, r#type, parked })
    }

    pub async fn get_many(
        &self,
        request: proto::GetManyStateRequest,
        deadline: Deadline,
    ) -> Result<proto::GetManyStateResponse, Status> {
        let mut answer = proto::GetManyStateResponse::default();
        for partition in self.partitions(&request, request.local).await? {
            let part = proto::GetManyStateRequest { partition: Some(partition), ..request.clone() };
            let part = self.read(part, request.local, deadline).await?;
            let new: usize = part.entries.iter().map(|entry| entry.value.len()).sum();
            let held: usize = answer.entries.iter().map(|entry| entry.value.len()).sum();
            if held + new > ANSWER_BYTES_MAX / 2 {
                return Err(Status::resource_exhausted(
                    "the values of all partitions are more than 8 MiB together: ask for fewer keys",
                ));
            }
            answer.entries.extend(part.entries);
            answer.parked.extend(part.parked);
            answer.read_at.extend(part.read_at);
            answer.r#type = part.r#type;
        }
        let found: HashSet<&[u8]> = answer.entries.iter().map(|entry| entry.key.as_slice()).collect();
        answer.missing = request.keys.into_iter().filter(|key| !found.contains(key.as_slice())).collect();
        Ok(answer)
    }

    /// Partitions are scanned one after the other, each in key order.
    pub async fn scan(
        &self,
        request: proto::ScanStateRequest,
        deadline: Deadline,
    ) -> Result<proto::ScanStateResponse, Status> {
        let limit = page::limit(request.limit, SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX);
        let token = match request.local {
            // Of one partition, and its owner's to read.
            true => Ok(PageToken::default()),
            false => PageToken::decode(&request),
        };
        let (limit, token) = page::both(limit, token)?;
        if request.local {
            return self.read(proto::ScanStateRequest { limit, ..request }, true, deadline).await;
        }
        let partitions = self.partitions(&request, false).await?;
        let token = token.among(&partitions)?;
        let mut answer = proto::ScanStateResponse::default();
        let mut bytes = 0;
        for partition in partitions {
            if partition < token.partition {
                continue;
            }
            let held = (answer.entries.len() + answer.parked.len()) as u32;
            if held >= limit || bytes >= PAGE_BYTES_MAX {
                answer.next_page_token = PageToken { partition, after: Vec::new() }.encode(&request);
                break;
            }
            let part = proto::ScanStateRequest {
                partition: Some(partition),
                limit: limit - held,
                page_token: token.within(partition),
                ..request.clone()
            };
            let part = self.read(part, false, deadline).await?;
            bytes += part.entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum::<usize>();
            bytes += part.parked.iter().map(|parked| parked.key.len() + parked.reason.len()).sum::<usize>();
            answer.entries.extend(part.entries);
            answer.parked.extend(part.parked);
            answer.read_at.extend(part.read_at);
            answer.r#type = part.r#type;
            if !part.next_page_token.is_empty() {
                answer.next_page_token =
                    PageToken { partition, after: part.next_page_token }.encode(&request);
                break;
            }
        }
        Ok(answer)
    }

    /// Tried again only while its answer says that nothing was changed.
    pub async fn edit(
        &self,
        request: proto::EditStateRequest,
        deadline: Deadline,
    ) -> Result<proto::EditStateResponse, Status> {
        let local = request.local;
        self.read(request, local, deadline).await
    }

    pub async fn inbox_get(
        &self,
        request: proto::GetInboxRequest,
        deadline: Deadline,
    ) -> Result<proto::GetInboxResponse, Status> {
        let mut answer = proto::GetInboxResponse::default();
        for partition in self.partitions(&request, request.local).await? {
            let part = proto::GetInboxRequest { partition: Some(partition), ..request.clone() };
            let part = self.read(part, request.local, deadline).await?;
            answer.entries.extend(part.entries);
            answer.read_at.extend(part.read_at);
        }
        Ok(answer)
    }

    /// The partitions that a request is about.
    pub(super) async fn partitions(&self, request: &impl Read, local: bool) -> Result<Vec<i32>, Status> {
        match request.target() {
            (_, Some(partition)) => Ok(vec![partition]),
            (_, None) if local => Err(invalid(Problem::at("partition", "a local read names its own"))),
            (deployment, None) => {
                let deployment = deployment.to_owned();
                let count = ask(&self.node, move |node| node.partitions(&deployment)).await?;
                Ok((0..count).collect())
            }
        }
    }

    /// One partition, wherever it is. With `local` it must be here.
    pub(super) async fn read<R: Read>(
        &self,
        request: R,
        local: bool,
        deadline: Deadline,
    ) -> Result<R::Answer, Status> {
        let (until, waits) = (deadline.until(), request.waits());
        loop {
            let outcome = match local {
                true => self.here(request.clone(), until).await,
                false => self.at_owner(request.clone(), until).await,
            };
            match outcome {
                Err(status) if waits && !local && may_change(&status, until) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn at_owner<R: Read>(&self, request: R, until: Instant) -> Result<R::Answer, Status> {
        let owner = self.owner(&request).await?;
        self.at(owner, request, until).await
    }

    /// Who has the partition of a request, which names one.
    async fn owner(&self, request: &impl Read) -> Result<Owner, Status> {
        let (deployment, partition) = request.target();
        let deployment = deployment.to_owned();
        let owners = ask(&self.node, move |node| node.owners(&deployment, partition)).await?;
        let first = owners.into_values().next();
        first.ok_or_else(|| Status::internal("a partition without an owner is an error of its own"))
    }

    async fn at<R: Read>(&self, owner: Owner, request: R, until: Instant) -> Result<R::Answer, Status> {
        match owner {
            Owner::Here => self.here(request, until).await,
            Owner::At { node, address } => {
                let (deployment, partition) = request.target();
                let partition = partition.unwrap_or_default();
                let what = format!("partition {partition} of {deployment} is on {node} at {address}");
                let channel = self.channel(&address).await?;
                let left = until.saturating_duration_since(Instant::now());
                request.there(channel, left).await.map_err(|status| {
                    match std::error::Error::source(&status) {
                        // What another node says is passed on as it is.
                        None => status,
                        Some(reason) if is_unsent(reason) => unasked(&what, reason),
                        Some(reason) => R::lost(&what, reason),
                    }
                })
            }
        }
    }

    async fn here<R: Read>(&self, request: R, until: Instant) -> Result<R::Answer, Status> {
        let _permit = match request.waits() {
            false => None,
            true => Some(self.shared.waits.try_acquire().map_err(|_| {
                Status::resource_exhausted(format!(
                    "{WAITS_MAX} reads wait for a position on this node already; try again"
                ))
            })?),
        };
        ask(&self.node, move |node| request.here(node, until)).await
    }

    /// To another node, on behalf of this caller.
    pub(super) async fn channel(&self, address: &str) -> Result<Peer, Status> {
        let channel = self.connection(address).await?;
        Ok(InterceptedService::new(channel, self.behalf.clone()))
    }

    async fn connection(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.shared.channels.lock().await;
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::internal(format!("owner's address {address}: {error}")))?;
        let channel = match &self.shared.tls {
            None => endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy(),
            Some(tls) => {
                endpoint.connect_timeout(CHANNEL_TIMEOUT).connect_with_connector_lazy(tls.connector())
            }
        };
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn state(channel: Peer) -> StateClient<Peer> {
    StateClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// What is out of reach now may be within it in a moment, and there is a moment left.
fn may_change(status: &Status, until: Instant) -> bool {
    status.code() == Code::Unavailable && !is_unknown(status) && Instant::now() + LOOK_AGAIN < until
}

/// No connection came about, so the other node has heard of nothing.
fn is_unsent(reason: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(reason);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn unasked(what: &str, reason: &dyn std::error::Error) -> Status {
    Status::unavailable(format!("{what}, which does not answer ({reason}); try again"))
}

/// The other node may have done what it was asked for; `look` says how to find out.
pub(super) fn unknown(what: &str, reason: &dyn std::error::Error, look: &str) -> Status {
    status(ControlError::Unknown(format!("{what}, which does not answer ({reason}): {look}")))
}

/// Asks another node on behalf of a caller, who waits this long.
pub(super) fn timed<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_node_may_have_done_is_not_asked_for_again_and_what_never_reached_it_is() {
        let until = Instant::now() + Duration::from_secs(60);
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let refused =
            tonic::ConnectError(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
        assert!(is_unsent(&refused) && !is_unsent(&broken));
        assert!(may_change(&unasked("partition 0 of a is on b", &refused), until));
        for lost in [
            proto::EditStateRequest::lost,
            proto::RetryOutboxRequest::lost,
            proto::DiscardOutboxRequest::lost,
            proto::ReleaseParkedRequest::lost,
            proto::DropParkedRequest::lost,
        ] {
            let status = lost("partition 0 of a is on b", &broken);
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(!may_change(&status, until), "{status}");
            assert!(status.message().contains("`tidemill "), "it says where to look: {status}");
        }
    }
}
