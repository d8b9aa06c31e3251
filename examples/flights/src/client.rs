//! What the demo asks the node over gRPC.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tidemill_proto::v1::lag_client::LagClient;
use tidemill_proto::v1::state_client::StateClient;
use tidemill_proto::v1::{GetLagRequest, PartitionLag, ScanStateRequest};
use tonic::transport::{Channel, Endpoint};

use crate::statistics::Statistics;

/// From process start to the first answer; a busy machine compiles the handlers meanwhile.
const START_MAX: Duration = Duration::from_secs(60);
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Largest page of a scan.
const PAGE_ENTRIES: u32 = 10_000;

/// The deployment and the store that hold the statistics.
pub const DEPLOYMENT: &str = "delays";
pub const STORE: &str = "groups";

#[derive(Clone)]
pub struct Client {
    lag: LagClient<Channel>,
    state: StateClient<Channel>,
}

impl Client {
    /// Waits until the node answers; `alive` fails once there is nothing left to wait for.
    pub async fn connect(address: &str, mut alive: impl FnMut() -> Result<()>) -> Result<Client> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let started = Instant::now();
        loop {
            alive()?;
            if let Ok(channel) = endpoint.connect().await {
                let mut client =
                    Client { lag: LagClient::new(channel.clone()), state: StateClient::new(channel) };
                if client.lag().await.is_ok() {
                    return Ok(client);
                }
            }
            anyhow::ensure!(started.elapsed() < START_MAX, "the node does not answer at {address}");
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Lag of every partition of every deployment.
    pub async fn lag(&mut self) -> Result<Vec<PartitionLag>> {
        let request = GetLagRequest { deployment: String::new() };
        Ok(self.lag.get(request).await?.into_inner().partitions)
    }

    /// The statistics of all groups whose key starts with `prefix`, from every partition.
    pub async fn statistics(&mut self, prefix: &str) -> Result<BTreeMap<String, Statistics>> {
        let mut request = ScanStateRequest {
            deployment: DEPLOYMENT.into(),
            store: STORE.into(),
            prefix: prefix.into(),
            limit: PAGE_ENTRIES,
            ..ScanStateRequest::default()
        };
        let mut groups = BTreeMap::new();
        loop {
            let page = self.state.scan(request.clone()).await?.into_inner();
            for entry in page.entries {
                let key = String::from_utf8(entry.key).context("a group that is not text")?;
                groups.insert(key, Statistics::from_json(&entry.value)?);
            }
            if page.next_page_token.is_empty() {
                return Ok(groups);
            }
            request.page_token = page.next_page_token;
        }
    }
}
