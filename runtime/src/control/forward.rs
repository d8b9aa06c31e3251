//! State queries that concern other nodes: asked of every owner, answered as one.
//!
//! A partition is either answered or an error; it is never left out in silence.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::state_client::StateClient;
use tokio::sync::Mutex;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::grpc::ask;
use crate::node::{Handle, Owner};

const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries that one scan page may hold at most, and holds when the caller does not say.
const SCAN_LIMIT_MAX: u32 = 10_000;
const SCAN_LIMIT_DEFAULT: u32 = 100;

pub struct Forwarder {
    node: Handle,
    /// By address. Bounded by the fleet's size.
    channels: Mutex<HashMap<String, Channel>>,
}

impl Forwarder {
    pub fn new(node: Handle) -> Forwarder {
        Forwarder { node, channels: Mutex::new(HashMap::new()) }
    }

    pub async fn get(&self, request: proto::GetStateRequest) -> Result<proto::GetStateResponse, Status> {
        let mut answer = proto::GetStateResponse::default();
        for (partition, owner) in self.owners(&request.deployment, request.partition).await? {
            let request =
                proto::GetStateRequest { partition: Some(partition), local: true, ..request.clone() };
            let part = match owner {
                Owner::Here => ask(&self.node, move |node| node.state_get(&request)).await?,
                Owner::At { address, .. } => {
                    let mut client = StateClient::new(self.channel(&address).await?);
                    client.get(timed(request)).await?.into_inner()
                }
            };
            answer.entries.extend(part.entries);
            answer.read_at.extend(part.read_at);
        }
        Ok(answer)
    }

    /// Partitions are scanned one after the other, each in key order.
    pub async fn scan(&self, request: proto::ScanStateRequest) -> Result<proto::ScanStateResponse, Status> {
        let limit = match request.limit {
            0 => SCAN_LIMIT_DEFAULT,
            limit if limit <= SCAN_LIMIT_MAX => limit,
            limit => {
                return Err(Status::invalid_argument(format!(
                    "limit is {limit}; a page holds 1 to {SCAN_LIMIT_MAX} entries"
                )));
            }
        };
        let token = PageToken::decode(&request.page_token)?;
        let mut answer = proto::ScanStateResponse::default();
        for (partition, owner) in self.owners(&request.deployment, request.partition).await? {
            if partition < token.partition {
                continue;
            }
            let after = if partition == token.partition { token.after.clone() } else { Vec::new() };
            let request = proto::ScanStateRequest {
                partition: Some(partition),
                local: true,
                limit: limit - answer.entries.len() as u32,
                page_token: after,
                ..request.clone()
            };
            let part = match owner {
                Owner::Here => ask(&self.node, move |node| node.state_scan(&request)).await?,
                Owner::At { address, .. } => {
                    let mut client = StateClient::new(self.channel(&address).await?);
                    client.scan(timed(request)).await?.into_inner()
                }
            };
            answer.entries.extend(part.entries);
            answer.read_at.extend(part.read_at);
            if !part.next_page_token.is_empty() {
                answer.next_page_token = PageToken { partition, after: part.next_page_token }.encode();
                break;
            }
            if answer.entries.len() as u32 == limit {
                answer.next_page_token = PageToken { partition: partition + 1, after: Vec::new() }.encode();
                break;
            }
        }
        Ok(answer)
    }

    async fn owners(&self, deployment: &str, partition: Option<i32>) -> Result<BTreeMap<i32, Owner>, Status> {
        let deployment = deployment.to_owned();
        let mut owners = ask(&self.node, move |node| node.owners(&deployment)).await?;
        if let Some(partition) = partition {
            let owner = owners.remove(&partition).ok_or_else(|| {
                Status::not_found(format!("partition {partition} does not exist; there are {}", owners.len()))
            })?;
            owners = BTreeMap::from([(partition, owner)]);
        }
        Ok(owners)
    }

    async fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().await;
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::internal(format!("owner's address {address}: {error}")))?
            .connect_timeout(FORWARD_TIMEOUT)
            .timeout(FORWARD_TIMEOUT);
        let channel = endpoint.connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(FORWARD_TIMEOUT);
    request
}

/// Where the next page of a scan over all partitions begins: partition (4 bytes, big endian), then
/// the last key that was returned from it; no key = at its first.
#[derive(Debug, PartialEq, Eq, Default)]
struct PageToken {
    partition: i32,
    after: Vec<u8>,
}

impl PageToken {
    fn decode(token: &[u8]) -> Result<PageToken, Status> {
        if token.is_empty() {
            return Ok(PageToken::default());
        }
        let Some((partition, after)) = token.split_first_chunk::<4>() else {
            return Err(Status::invalid_argument("page_token is not one that a scan returned"));
        };
        Ok(PageToken { partition: i32::from_be_bytes(*partition), after: after.to_vec() })
    }

    fn encode(&self) -> Vec<u8> {
        [&self.partition.to_be_bytes()[..], &self.after].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_survives_its_way_to_the_caller_and_back() {
        let token = PageToken { partition: 3, after: b"key".to_vec() };
        assert_eq!(PageToken::decode(&token.encode()).expect("decodes"), token);
        assert_eq!(PageToken::decode(b"").expect("decodes"), PageToken::default());
        assert!(PageToken::decode(b"abc").is_err());
    }
}
