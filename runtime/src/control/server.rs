//! The gRPC listener: services, health, reflection, limits.
//!
//! | bound | where |
//! |---|---|
//! | connections, and the time of their first words | `connections` |
//! | streams, headers and unread bytes of a connection, keepalive, the size of a message | here |
//! | who somebody is, and what they may | `incoming`, `guard` |
//! | calls of the node and of an address, the time of one, its request included, and the end of all | `admission` |
//! | modules on their way in | `upload` |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use tidemill_proto::v1 as proto;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::admission::{Admission, admit};
use super::grpc::Services;
use super::guard::{Guard, guard};
use super::incoming::Established;

/// One message of a client; a module comes in chunks well below it.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Streams of one connection; hyper's own default would otherwise be removed by tonic.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Sent by a client and not yet read by a call: of one stream, and of all of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
/// A silent connection is asked this often whether somebody is there, and closed without an answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

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

/// Serves until told to stop: calls in progress then come to their end, and new ones are refused.
pub async fn serve(
    incoming: Established,
    services: Services,
    access: Guard,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    set_health(&health, ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };

    macro_rules! bounded {
        ($server:path) => {
            <$server>::new(services.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(16 * MESSAGE_BYTES_MAX)
        };
    }
    let routes = Routes::new(health_service)
        .add_service(reflection().build_v1()?)
        // Of the same words: many clients ask for reflection by the name that it had first.
        .add_service(reflection().build_v1alpha()?)
        .add_service(bounded!(proto::deployments_server::DeploymentsServer<Services>))
        .add_service(bounded!(proto::lag_server::LagServer<Services>))
        .add_service(bounded!(proto::state_server::StateServer<Services>))
        .add_service(bounded!(proto::inbox_server::InboxServer<Services>))
        .add_service(bounded!(proto::fleet_server::FleetServer<Services>))
        .add_service(bounded!(proto::dead_letters_server::DeadLettersServer<Services>))
        .add_service(bounded!(proto::outbox_server::OutboxServer<Services>))
        .add_service(bounded!(proto::parked_server::ParkedServer<Services>))
        .add_service(bounded!(proto::logs_server::LogsServer<Services>))
        .add_service(bounded!(proto::topics_server::TopicsServer<Services>));
    let admission = Admission::new(stopping.clone());
    let routes = guarded(routes, access).layer(from_fn_with_state(admission.clone(), admit));
    let shutdown = async move {
        // An error says that the sender is gone, which means stop as well.
        let _ = stopping.wait_for(|&stop| stop).await;
        set_health(&health, ServingStatus::NotServing).await;
        // Connections stay until then, so that a new call is refused in words.
        admission.drained().await;
    };
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .add_routes(Routes::from(routes))
        .serve_with_incoming_shutdown(incoming.into_stream(), shutdown)
        .await?;
    Ok(())
}

/// The guard in front of everything there is, what does not exist included.
pub(super) fn guarded(routes: Routes, access: Guard) -> Router {
    routes.into_axum_router().layer(from_fn_with_state(Arc::new(access), guard))
}

/// Of every service, and of the node as a whole.
async fn set_health(health: &HealthReporter, status: ServingStatus) {
    let names = [
        "",
        proto::deployments_server::SERVICE_NAME,
        proto::lag_server::SERVICE_NAME,
        proto::state_server::SERVICE_NAME,
        proto::inbox_server::SERVICE_NAME,
        proto::fleet_server::SERVICE_NAME,
        proto::outbox_server::SERVICE_NAME,
        proto::parked_server::SERVICE_NAME,
        proto::dead_letters_server::SERVICE_NAME,
        proto::logs_server::SERVICE_NAME,
        proto::topics_server::SERVICE_NAME,
    ];
    for name in names {
        health.set_service_status(name, status).await;
    }
}
