//! A whole node: listeners first, then Kafka, then the services, until it is told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;

use super::forward::Forwarder;
use super::grpc::Services;
use super::guard::{Access, Guard};
use super::http::{self, CircuitState, HealthSnapshot, HealthSource, ListenError};
use super::incoming::{Door, Established, Side};
use super::server::{self, ServeError};
use crate::config::NodeConfig;
use crate::config::roles::{Role, Scope};
use crate::config::roles_file::Roles;
use crate::node::{Handle, Node, NodeError};
use crate::telemetry::Telemetry;
use crate::telemetry::audit::Line;
use crate::tls::TlsError;
use crate::tls::client::Client;
use crate::tls::own::Own;

/// How long calls in progress may go on once the node is told to stop. Records are handled meanwhile.
const LAST_CALLS_MAX: Duration = Duration::from_secs(5);
/// As often as at certificates.
const LOOK_AT_ROLES: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Grpc(#[from] ServeError),
    #[error(transparent)]
    Http(#[from] ListenError),
    #[error("listen.tls: {0}")]
    Tls(#[from] TlsError),
    #[error("a thread of the node panicked; its log says where")]
    Panicked,
}

/// Where a running node answers.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

/// Runs a node until `shutdown` resolves, then drains it: takes no more calls, commits, closes the
/// stores, leaves the groups. `program` is tidemill itself. `ready` is called once, when it answers.
pub async fn run(
    config: NodeConfig,
    program: PathBuf,
    ready: impl FnOnce(Addresses),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    // Certificates that cannot be used are found before anything listens.
    let tls = config.listen.tls.as_ref().map(Own::load).transpose()?.map(Arc::new);
    let grpc = server::bind(config.listen.grpc).await?;
    let http = http::bind(config.listen.http).await?;
    let addresses = Addresses {
        grpc: grpc.local_addr().unwrap_or(config.listen.grpc),
        http: http.local_addr().unwrap_or(config.listen.http),
    };
    let advertised = config.listen.advertise.clone().unwrap_or_else(|| addresses.grpc.to_string());
    let (stop, stopped) = watch::channel(false);
    let telemetry = Telemetry::new();
    // Probes are answered from the first moment on: a node that starts is alive, and not ready.
    let health = Arc::new(Health::new(&config));
    let source: Arc<dyn HealthSource> = Arc::clone(&health) as _;
    let door = |side| Door { side, tls: tls.clone(), telemetry: Arc::clone(&telemetry) };
    let (grpc, http) = (Established::new(grpc, door(Side::Grpc)), Established::new(http, door(Side::Http)));
    let http = tokio::spawn(http::serve(http, Arc::clone(&telemetry), source, stopped.clone()));
    let roles = Arc::new(Roles::new(config.roles.clone(), config.roles_file.clone()));
    // If it fails, `stop` is dropped, which ends the server.
    let node = blocking({
        let telemetry = Arc::clone(&telemetry);
        move || Node::start(config, advertised, program, telemetry)
    })
    .await??;
    health.started(node.handle());
    let forwarder = Forwarder::new(node.handle(), tls.clone().map(|own| peers(own, Arc::clone(&roles))));
    let services = Services::new(node.handle(), forwarder, Arc::clone(&telemetry), stopped.clone());
    let access = if tls.is_some() { Access::Roles(Arc::clone(&roles)) } else { Access::Open };
    let id = node.handle().id().to_owned();
    let followed = tls.is_some().then(|| tokio::spawn(follow(roles, id)));
    let fresh = tls.map(|own| tokio::spawn(own.keep_fresh()));
    let grpc = tokio::spawn(server::serve(grpc, services, Guard::new(access, telemetry), stopped));
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
    fresh.into_iter().chain(followed).for_each(|task| task.abort());
    match served {
        Ok(served) => served.map_err(|_| RunError::Panicked)?.map_err(RunError::Grpc),
        Err(_still_connected) => Ok(()),
    }
}

/// How this node calls another one: with its own certificate, and only if the other one is a node, because
/// what it passes on is its callers'.
fn peers(own: Arc<Own>, roles: Arc<Roles>) -> Client {
    Client::of_node(own, move |certificate| {
        match Scope::of(&roles.grants(), &certificate.names, Role::Node) {
            scope if scope.is_none() => Err("its certificate has no name with the role node".to_owned()),
            _ => Ok(()),
        }
    })
}

/// Looks at the roles' file again and again, on node `id`; for a task of its own.
async fn follow(roles: Arc<Roles>, id: String) {
    let mut said = None;
    loop {
        tokio::time::sleep(LOOK_AT_ROLES).await;
        let looked = Arc::clone(&roles);
        let Ok(outcome) = tokio::task::spawn_blocking(move || looked.refresh()).await else { return };
        tell(&id, &roles, outcome, &mut said);
    }
}

/// Who may do what is other than it was, or was to be: the audit log has it as well. `said` is the last refusal.
fn tell(id: &str, roles: &Roles, outcome: Result<bool, String>, said: &mut Option<String>) {
    let file = roles.file().map(|file| file.display().to_string()).unwrap_or_default();
    let line = Line::by_itself(id, "Roles.Read", &file);
    match outcome {
        Ok(changed) => {
            *said = None;
            if changed {
                let entries = roles.grants().len();
                tracing::info!(entries, "roles were read again, and count for new calls");
                line.write(0, "Ok", &format!("entries that count for new calls: {entries}"));
            }
        }
        // A file that is just being written is said once, and mended by itself a moment later.
        Err(error) if said.as_ref() != Some(&error) => {
            tracing::warn!(error, "new roles cannot be used; the former ones stay");
            line.write(0, "FailedPrecondition", &format!("the former roles stay: {error}"));
            *said = Some(error);
        }
        Err(_) => {}
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RunError::Panicked)
}

/// What the endpoints say of the node, also before there is one.
struct Health {
    starting: HealthSnapshot,
    handle: OnceLock<Handle>,
    /// Stays true: a deployment that comes later does not make a node one that starts.
    started: AtomicBool,
}

impl Health {
    fn new(config: &NodeConfig) -> Health {
        let starting = HealthSnapshot {
            healthy: false,
            started: false,
            environment: config.environment.clone(),
            group: config.effective_group(),
            bootstrap_servers: config.kafka.bootstrap_servers.join(","),
            circuit_state: CircuitState::HalfOpen,
            subscriber_count: 0,
            topic_count: 0,
            consumer_count: 0,
        };
        Health { starting, handle: OnceLock::new(), started: AtomicBool::new(false) }
    }

    fn started(&self, handle: Handle) {
        // There is one node.
        let _ = self.handle.set(handle);
    }
}

impl HealthSource for Health {
    fn health(&self) -> HealthSnapshot {
        let Some(handle) = self.handle.get() else { return self.starting.clone() };
        let signs = handle.vital_signs();
        let started = self.started.fetch_or(signs.settled, Ordering::Relaxed) || signs.settled;
        HealthSnapshot {
            healthy: signs.kafka_answers && signs.running == signs.deployments,
            started,
            circuit_state: if signs.kafka_answers { CircuitState::Closed } else { CircuitState::Open },
            subscriber_count: signs.deployments,
            topic_count: signs.topics,
            consumer_count: signs.consumed_topics,
            ..self.starting.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_are_read_again_or_refused_are_in_the_audit_log_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let (log, file) = (directory.path().join("log"), directory.path().join("node.yaml"));
        let written = std::fs::File::create(&log).expect("the log");
        let logged = tracing_subscriber::fmt().with_ansi(false).with_writer(written).finish();
        let roles = Roles::new(Vec::new(), Some(file.clone()));
        let mut said = None;
        tracing::subscriber::with_default(logged, || {
            for role in ["admin", "admin", "root", "root", "viewer"] {
                let text = format!("roles: [{{ san: one.test, role: {role} }}]\n");
                std::fs::write(&file, text).expect("the node's file");
                tell("n1", &roles, roles.refresh(), &mut said);
            }
        });
        let text = std::fs::read_to_string(&log).expect("the log");
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("action=\"Roles.Read\"")).collect();
        assert_eq!(lines.len(), 3, "{text}");
        for (line, words) in lines.iter().zip([
            ["outcome=Ok", "entries that count for new calls: 1"],
            ["outcome=FailedPrecondition", "unknown value `root`"],
            ["outcome=Ok", "entries that count for new calls: 1"],
        ]) {
            let who = line.contains("who=\"n1\"") && line.contains("node.yaml");
            assert!(who && words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
        }
    }
}
