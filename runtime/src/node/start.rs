//! Starting a node, in the order in which things can fail, and stopping it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clients;
use super::control_log::{self, ControlReader};
use super::former::FormerWorkers;
use super::gauges;
use super::handle::Handle;
use super::heartbeat::Heart;
use super::identity::{Identity, IdentityError};
use super::lag_gauges::{self, LagGauges};
use super::modules::{ModuleDir, ModuleError};
use super::retreat;
use super::routine::Routine;
use super::runtime::{Foundations, NodeRuntime, ensure_topic};
use super::supervisor::Supervisor;
use super::tidy;
use super::uploads;
use crate::config::NodeConfig;
use crate::kafka::admin::{Admin, AdminError, NewTopic};
use crate::kafka::config::KafkaConfig;
use crate::kafka::peek::Peek;
use crate::kafka::topic_log::TopicLog;
use crate::ports::SourceError;
use crate::store::{StateDir, StoreBudget, StoreError, StoreReader, flush_due, sweep_due};
use crate::telemetry::Telemetry;
use crate::wasm::Compiler;

/// Why a node does not start. Each says what, where and how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    State(#[from] StoreError),
    #[error(transparent)]
    Modules(#[from] ModuleError),
    #[error("{0}")]
    Kafka(#[from] SourceError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("the directory of compiled modules, {path}: {reason}")]
    Compiled { path: PathBuf, reason: std::io::Error },
    #[error("{path}: {reason}; check the directory's owner and permissions, or set state_dir")]
    Record { path: PathBuf, reason: std::io::Error },
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Time between two looks at the stores.
const LOOK: Duration = Duration::from_secs(1);

/// A running node. Stopping it commits, closes and leaves.
pub struct Node {
    runtime: Arc<NodeRuntime>,
    supervisor: Supervisor,
    heart: Heart,
    stores: Routine,
    _lag: Routine,
    tidy: Routine,
    _retreat: Routine,
    _sweep: Routine,
    _uploads: Routine,
    _control: ControlReader,
    _identity: Identity,
}

impl Node {
    /// `address` is where other nodes reach this one's control plane; `program` is tidemill itself,
    /// which compiles modules when it is called for that.
    pub fn start(
        config: NodeConfig,
        address: String,
        program: PathBuf,
        telemetry: Arc<Telemetry>,
    ) -> Result<Node, NodeError> {
        let state_dir = StateDir::open(&config.state_dir.join("stores"))?;
        let identity = Identity::open(&config.state_dir, config.node_id.as_deref())?;
        let kafka = KafkaConfig::from_node(&config.kafka, &format!("tidemill-{}", identity.node_id));
        let admin = Admin::new(&kafka)?;
        let cluster_id = admin.cluster_id()?;
        for topic in fleet_topics(&config) {
            ensure_topic(&admin, &identity.node_id, &topic)?;
        }
        let topic = |name: &str| format!("_{}.{name}", config.fleet);
        let log = TopicLog::open(&kafka, &topic("control"))?;
        let (control_log, control) =
            control_log::open(&identity.node_id, log, config.defaults.clone(), Arc::clone(&telemetry))?;
        let nodes = TopicLog::open(&kafka, &topic("nodes"))?;
        let runtime = Arc::new(NodeRuntime::new(Foundations {
            id: identity.node_id.clone(),
            former_workers: FormerWorkers::open(&config.state_dir)
                .map_err(|reason| NodeError::Record { path: config.state_dir.clone(), reason })?,
            modules: ModuleDir::open(&config.state_dir.join("modules"))?,
            module_log: TopicLog::open(&kafka, &topic("modules"))?,
            compiler: compiler(&config.state_dir.join("compiled"), program, &telemetry)?,
            peek: Peek::new(&kafka)?,
            telemetry,
            store_budget: StoreBudget::new(clients::store_budget(&config))?,
            config,
            kafka,
            cluster_id,
            admin,
            control_log,
            state_dir,
        }));
        tracing::info!(
            node = runtime.id,
            fleet = runtime.config.fleet,
            deployments = runtime.control_log.view().deployments.len(),
            "node started"
        );
        // The registry has been read to its end, and nothing is open yet.
        tidy::look(&runtime);
        Ok(Node {
            heart: Heart::start(Arc::clone(&runtime), address, nodes)?,
            stores: stores(Arc::clone(&runtime))?,
            _lag: lag(Arc::clone(&runtime))?,
            tidy: tidy(Arc::clone(&runtime))?,
            _retreat: retreat::start(Arc::clone(&runtime))?,
            _sweep: sweep(Arc::clone(&runtime))?,
            _uploads: uploads::start(Arc::clone(&runtime))?,
            supervisor: Supervisor::start(Arc::clone(&runtime))?,
            runtime,
            _control: control,
            _identity: identity,
        })
    }

    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.runtime))
    }

    /// Commits what is in flight, closes every store, leaves every group.
    pub fn stop(self) {
        let start = Instant::now();
        self.tidy.stop();
        self.supervisor.stop();
        self.stores.stop();
        self.heart.stop();
        tracing::info!(took_ms = start.elapsed().as_millis() as u64, "node stopped");
    }
}

fn compiler(path: &Path, program: PathBuf, telemetry: &Arc<Telemetry>) -> Result<Compiler, NodeError> {
    Compiler::apart(program, path, Arc::clone(telemetry))
        .map_err(|reason| NodeError::Compiled { path: path.to_owned(), reason })
}

/// The topics that nodes share. `control` is never compacted and kept for ever.
fn fleet_topics(config: &NodeConfig) -> Vec<NewTopic> {
    let topic = |name: &str| {
        let mut topic = NewTopic::new(format!("_{}.{name}", config.fleet), 1);
        topic.replication = Some(config.replication_factor);
        topic
    };
    vec![
        topic("control")
            .with("cleanup.policy", "delete")
            .with("retention.ms", -1)
            .with("retention.bytes", -1)
            .with("message.timestamp.type", "LogAppendTime"),
        topic("modules").with("cleanup.policy", "compact"),
        topic("nodes").with("cleanup.policy", "compact").with("message.timestamp.type", "LogAppendTime"),
    ]
}

/// Writes memtables to disk by age and size, so that a crash costs a bounded tail; looks up gauges.
fn stores(node: Arc<NodeRuntime>) -> std::io::Result<Routine> {
    let start = Instant::now();
    let rule = clients::flush_rule(&node.config);
    Routine::start("stores", LOOK, move || {
        if let Err(error) = flush_due(&readers(&node), start.elapsed(), &rule) {
            tracing::warn!(%error, "cannot flush a store");
        }
        gauges::local(&node);
    })
}

fn tidy(node: Arc<NodeRuntime>) -> std::io::Result<Routine> {
    Routine::start("tidy", tidy::EVERY, move || tidy::look(&node))
}

fn readers(node: &NodeRuntime) -> Vec<StoreReader> {
    let boards = node.boards();
    boards.iter().flat_map(|(_, board)| board.tasks().into_values().filter_map(|task| task.reader)).collect()
}

/// Clears expired ids out of the stores; apart, because a large inbox takes its time.
fn sweep(node: Arc<NodeRuntime>) -> std::io::Result<Routine> {
    Routine::start("sweep", LOOK, move || {
        if let Err(error) = sweep_due(&readers(&node)) {
            tracing::warn!(%error, "cannot clear expired ids out of a store");
        }
    })
}

fn lag(node: Arc<NodeRuntime>) -> std::io::Result<Routine> {
    let mut gauges = LagGauges::default();
    Routine::start("lag", lag_gauges::EVERY, move || gauges.look(&node))
}
