//! The gRPC listener: services, health, reflection, limits.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidemill_proto::v1 as proto;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::grpc::Services;
use crate::node::Handle;
use crate::telemetry::Telemetry;

/// One message of a client; a module comes in chunks well below it.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Streams of one connection; hyper's own default would otherwise be removed by tonic.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const KEEPALIVE: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("gRPC cannot listen on {address}: {reason}; choose another with --listen-grpc or listen.grpc")]
    Listen { address: SocketAddr, reason: std::io::Error },
    #[error("gRPC failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Binds before anything else starts, so that a taken port is the first thing a user hears of.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|reason| ServeError::Listen { address, reason })
}

/// Serves until `shutdown` resolves, then lets calls in flight end.
pub async fn serve(
    listener: TcpListener,
    node: Handle,
    telemetry: Arc<Telemetry>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let services = Services::new(node, telemetry);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<proto::deployments_server::DeploymentsServer<Services>>().await;
    health.set_serving::<proto::state_server::StateServer<Services>>().await;
    health.set_serving::<proto::lag_server::LagServer<Services>>().await;
    health.set_serving::<proto::fleet_server::FleetServer<Services>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;

    macro_rules! bounded {
        ($server:path) => {
            <$server>::new(services.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(16 * MESSAGE_BYTES_MAX)
        };
    }
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .timeout(CALL_TIMEOUT)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(bounded!(proto::deployments_server::DeploymentsServer<Services>))
        .add_service(bounded!(proto::lag_server::LagServer<Services>))
        .add_service(bounded!(proto::state_server::StateServer<Services>))
        .add_service(bounded!(proto::fleet_server::FleetServer<Services>))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown)
        .await?;
    Ok(())
}
