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
//! records or state hold. A connection is for one question and has its time: silent ones cannot take all places
//! and keep probes out. Readiness steers traffic only; it never makes a node leave its group, and an idle node is ready.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::incoming::Established;
use crate::telemetry::{CONTENT_TYPE, Telemetry};
use crate::tls::connection::Io;

/// Of a connection, from its begin to the end of its answer. Whoever asks for metrics gives up before.
const CONNECTION_MAX: Duration = Duration::from_secs(15);

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

/// Serves until told to stop, then lets answers in flight end.
pub async fn serve(
    mut incoming: Established,
    telemetry: Arc<Telemetry>,
    health: Arc<dyn HealthSource>,
    mut stopping: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health/event-bus", get(event_bus))
        .route("/health/ready", get(ready))
        .route("/health/live", get(live))
        .fallback(unknown)
        .with_state(Endpoints { telemetry, health });
    let stopped = stopping.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            connection = incoming.next() => {
                connections.spawn(answer(connection, router.clone(), CONNECTION_MAX, stopped.clone()));
            }
            // What has ended is forgotten.
            Some(_) = connections.join_next() => {}
            () = until(&mut stopping) => break,
        }
    }
    drop(incoming);
    while connections.join_next().await.is_some() {}
}

/// One connection: a question, its answer, and its end, all within so long.
async fn answer(
    stream: impl Io + 'static,
    router: Router,
    within: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let whole = async {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = until(&mut stopping) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    };
    // Why it has ended concerns nobody but its other end.
    let _ = tokio::time::timeout(within, whole).await;
}

async fn until(stopping: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which means stop as well.
    let _ = stopping.wait_for(|&stop| stop).await;
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

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
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
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        // It says, and does, that it is for one question.
        assert!(answer.contains("connection: close"), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    #[tokio::test]
    async fn probes_say_what_the_node_says() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let fake = Arc::new(Fake(Mutex::new(well())));
        let (stop, stopped) = watch::channel(false);
        let health: Arc<dyn HealthSource> = Arc::clone(&fake) as _;
        let telemetry = Telemetry::new();
        let door = Door { side: Side::Http, tls: None, telemetry: Arc::clone(&telemetry) };
        let incoming = Established::new(listener, door);
        let server = tokio::spawn(serve(incoming, telemetry, health, stopped));

        // One that says nothing neither keeps others out nor holds up the end.
        let _silent = TcpStream::connect(address).await.expect("the server listens");
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

        stop.send(true).expect("the server waits");
        tokio::time::timeout(CONNECTION_MAX / 2, server).await.expect("a prompt end").expect("no panic");
    }

    /// Whether a connection ends whose other end does this.
    async fn ends<F: Future<Output = ()> + Send + 'static>(
        other_end: impl FnOnce(DuplexStream) -> F,
    ) -> bool {
        let router = Router::new().route("/", axum::routing::get(|| async { "a".repeat(1 << 16) }));
        let (_stop, stopping) = watch::channel(false);
        let (here, there) = tokio::io::duplex(64);
        let client = tokio::spawn(other_end(there));
        let answer = answer(here, router, Duration::from_millis(50), stopping);
        let ended = tokio::time::timeout(Duration::from_secs(30), answer).await.is_ok();
        client.abort();
        ended
    }

    #[tokio::test]
    async fn a_connection_ends_that_says_nothing_or_never_enough_or_does_not_listen() {
        let silent = |stream: DuplexStream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        };
        assert!(ends(silent).await, "it says nothing");
        let slow = |mut stream: DuplexStream| async move {
            let mut text: &[u8] = b"GET / HTTP/1.1\r\n";
            while stream.write_all(text).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
                text = b"more: 1\r\n";
            }
        };
        assert!(ends(slow).await, "its headers do not end");
        let deaf = |mut stream: DuplexStream| async move {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await.expect("sent");
            std::future::pending::<()>().await;
            drop(stream);
        };
        assert!(ends(deaf).await, "it does not read its answer");
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_flag() {
        let taken = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = taken.local_addr().expect("bound");
        let error = bind(address).await.expect_err("taken").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--listen-http"), "{error}");
    }
}
