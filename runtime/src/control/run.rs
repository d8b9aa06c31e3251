//! A whole node: listeners first, then Kafka, then the services, until it is told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::http::{self, CircuitState, HealthSnapshot, HealthSource, ListenError};
use super::server::{self, ServeError};
use crate::config::NodeConfig;
use crate::node::{Handle, Node, NodeError};

/// How long calls in progress may go on once the node is told to stop.
const LAST_CALLS_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Grpc(#[from] ServeError),
    #[error(transparent)]
    Http(#[from] ListenError),
    #[error("a thread of the node panicked; its log says where")]
    Panicked,
}

/// Where a running node answers.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

/// This very program, even after an upgrade has replaced its file.
const SELF: &str = "/proc/self/exe";

/// Runs a node until `shutdown` resolves, then drains it: takes no more calls, commits, closes the
/// stores, leaves the groups. `ready` is called once, when it answers.
pub async fn run(
    config: NodeConfig,
    ready: impl FnOnce(Addresses),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let grpc = server::bind(config.listen.grpc).await?;
    let http = http::bind(config.listen.http).await?;
    let addresses = Addresses {
        grpc: grpc.local_addr().unwrap_or(config.listen.grpc),
        http: http.local_addr().unwrap_or(config.listen.http),
    };
    let advertised = config.listen.advertise.clone().unwrap_or_else(|| addresses.grpc.to_string());
    let node = blocking(move || Node::start(config, advertised, SELF.into())).await??;
    let handle = node.handle();
    let (stop, stopped) = watch::channel(false);
    let telemetry = handle.telemetry();
    let health: Arc<dyn HealthSource> = Arc::new(handle.clone());
    let grpc = tokio::spawn(server::serve(grpc, handle, until(stopped.clone())));
    let http = tokio::spawn(http::serve(http, telemetry, health, until(stopped)));
    ready(addresses);
    shutdown.await;
    let _ = stop.send(true); // The servers are the only ones that listen.
    // A connection that nobody reads from would otherwise hold up the drain for ever.
    let last_calls = async {
        let served = grpc.await;
        let _ = http.await;
        served
    };
    let served = tokio::time::timeout(LAST_CALLS_MAX, last_calls).await;
    blocking(move || node.stop()).await?;
    match served {
        Ok(served) => served.map_err(|_| RunError::Panicked)?.map_err(RunError::Grpc),
        Err(_still_connected) => Ok(()),
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error says that the sender is gone, which means stop as well.
    let _ = stopped.wait_for(|&stop| stop).await;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RunError::Panicked)
}

impl HealthSource for Handle {
    fn health(&self) -> HealthSnapshot {
        let signs = self.vital_signs();
        HealthSnapshot {
            healthy: signs.kafka_answers && signs.running == signs.deployments,
            started: true,
            environment: signs.environment,
            group: signs.group,
            bootstrap_servers: signs.bootstrap_servers,
            circuit_state: if signs.kafka_answers { CircuitState::Closed } else { CircuitState::Open },
            subscriber_count: signs.deployments,
            topic_count: signs.topics,
            consumer_count: signs.consumed_topics,
        }
    }
}
