//! The HTTP endpoints: metrics and health. Read-only, bounded, no business logic.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | OpenMetrics |
//! | `/health/event-bus` | the nine health fields; 200 or 503 |
//! | `/health/ready` | `{"status": "ready"}` or 503 `{"status": "not_ready"}` |
//! | `/health/live` | 200 as long as the process answers, whatever Kafka does |
//!
//! With TLS they are encrypted and ask nobody for a certificate: they show names and numbers, never what
//! records or state hold. Readiness steers traffic only; it never makes a node leave its group, and an idle node is ready.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;

use super::incoming::Established;
use crate::telemetry::{CONTENT_TYPE, Telemetry};

/// What the node says about itself. Cheap: it is asked at every probe.
pub trait HealthSource: Send + Sync + 'static {
    fn health(&self) -> HealthSnapshot;
}

/// Body of `/health/event-bus`: exactly these fields, which dashboards know by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthSnapshot {
    /// Kafka answers and no deployment is halted.
    pub healthy: bool,
    /// The registry has been read, and every deployment in it was started or could not be.
    pub started: bool,
    pub environment: String,
    pub group: String,
    /// As configured, separated by commas.
    pub bootstrap_servers: String,
    pub circuit_state: CircuitState,
    /// Deployments of this node.
    pub subscriber_count: usize,
    /// Distinct input topics of those.
    pub topic_count: usize,
    /// Input topics that have a running consumer; equals `topic_count` when all is well.
    pub consumer_count: usize,
}

/// State of the connection to Kafka in the words of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Kafka answers.
    Closed,
    /// It did not, and is being tried again.
    HalfOpen,
    /// It does not.
    Open,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "HTTP cannot listen on {address}: {reason}; choose another address with --listen-http or listen.http"
)]
pub struct ListenError {
    address: SocketAddr,
    reason: std::io::Error,
}

#[derive(Clone)]
struct Endpoints {
    telemetry: Arc<Telemetry>,
    health: Arc<dyn HealthSource>,
}

/// Binds before anything else starts, so that a taken port is the first thing a user hears of.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|reason| ListenError { address, reason })
}

/// Serves until `shutdown` resolves, then lets answers in flight end.
pub async fn serve(
    incoming: Established,
    telemetry: Arc<Telemetry>,
    health: Arc<dyn HealthSource>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health/event-bus", get(event_bus))
        .route("/health/ready", get(ready))
        .route("/health/live", get(live))
        .fallback(unknown)
        .with_state(Endpoints { telemetry, health });
    axum::serve(incoming, router).with_graceful_shutdown(shutdown).await
}

async fn metrics(State(endpoints): State<Endpoints>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], endpoints.telemetry.render()).into_response()
}

async fn event_bus(State(endpoints): State<Endpoints>) -> Response {
    let health = endpoints.health.health();
    let status = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(health)).into_response()
}

async fn ready(State(endpoints): State<Endpoints>) -> Response {
    let health = endpoints.health.health();
    if health.healthy && health.started {
        return (StatusCode::OK, axum::Json(Status { status: "ready" })).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(Status { status: "not_ready" })).into_response()
}

async fn live() -> Response {
    axum::Json(Status { status: "alive" }).into_response()
}

async fn unknown() -> Response {
    let text = "there are /metrics, /health/event-bus, /health/ready and /health/live\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::control::incoming::{Door, Side};

    struct Fake(Mutex<HealthSnapshot>);

    impl HealthSource for Fake {
        fn health(&self) -> HealthSnapshot {
            self.0.lock().expect("no test panics while holding it").clone()
        }
    }

    fn well() -> HealthSnapshot {
        HealthSnapshot {
            healthy: true,
            started: true,
            environment: "prod".into(),
            group: "my-service".into(),
            bootstrap_servers: "localhost:9092".into(),
            circuit_state: CircuitState::Closed,
            subscriber_count: 2,
            topic_count: 3,
            consumer_count: 3,
        }
    }

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    #[tokio::test]
    async fn probes_say_what_the_node_says() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let fake = Arc::new(Fake(Mutex::new(well())));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let health: Arc<dyn HealthSource> = Arc::clone(&fake) as _;
        let telemetry = Telemetry::new();
        let door = Door { side: Side::Http, tls: None, telemetry: Arc::clone(&telemetry) };
        let incoming = Established::new(listener, door);
        let server = tokio::spawn(serve(incoming, telemetry, health, async {
            let _ = stopped.await;
        }));

        let (status, body) = get(address, "/health/event-bus").await;
        let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status, 200);
        assert_eq!(
            json,
            serde_json::json!({
                "healthy": true, "started": true, "environment": "prod", "group": "my-service",
                "bootstrap_servers": "localhost:9092", "circuit_state": "closed",
                "subscriber_count": 2, "topic_count": 3, "consumer_count": 3
            })
        );
        assert_eq!(get(address, "/health/ready").await, (200, "{\"status\":\"ready\"}".into()));
        assert!(get(address, "/metrics").await.1.ends_with("# EOF\n"));
        assert_eq!(get(address, "/elsewhere").await.0, 404);

        fake.0.lock().expect("free").started = false;
        assert_eq!(get(address, "/health/ready").await, (503, "{\"status\":\"not_ready\"}".into()));
        assert_eq!(get(address, "/health/event-bus").await.0, 200);
        fake.0.lock().expect("free").healthy = false;
        assert_eq!(get(address, "/health/event-bus").await.0, 503);
        assert_eq!(get(address, "/health/live").await.0, 200);

        stop.send(()).expect("the server waits");
        server.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_flag() {
        let taken = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = taken.local_addr().expect("bound");
        let error = bind(address).await.expect_err("taken").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--listen-http"), "{error}");
    }
}
