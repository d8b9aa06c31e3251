//! What all parts of a running node share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::board::{Board, TaskEntry};
use super::control_log::ControlLog;
use super::drain::Drain;
use super::fleet::Fleet;
use super::former::FormerWorkers;
use super::handle::ControlError;
use super::lease::Leases;
use super::modules::{self, ModuleDir, ModuleError};
use super::pace::NodeBudget;
use super::permits::Permits;
use super::registered::Registered;
use super::revision::PrepareError;
use super::trial::Trials;
use super::trouble::Trouble;
use crate::config::deployment::DeploymentSpec;
use crate::config::{NodeConfig, Problems};
use crate::kafka::admin::{Admin, AdminError, NewTopic, Topic};
use crate::kafka::config::KafkaConfig;
use crate::kafka::epochs::NodeEpochs;
use crate::kafka::peek::Peek;
use crate::kafka::topic_log::TopicLog;
use crate::ports::SourceError;
use crate::relay::{Hub, Origin};
use crate::store::{CacheBudget, StateDir, StoreBudget};
use crate::telemetry::audit::Line;
use crate::telemetry::{HandlerLogs, Telemetry};
use crate::wasm::Compiler;

/// Restores that run at once. A small one waits for Kafka most of its time, so that few at a time would
/// make many tasks start late; large ones share disk and network.
pub const RESTORES_MAX: usize = 16;

/// How long the members of a deleted deployment may take to leave: a killed node's until its session
/// expires.
const EMPTY_GROUP_WAIT: Duration = Duration::from_secs(20);
const EMPTY_GROUP_PAUSE: Duration = Duration::from_millis(50);

/// A deployment as this node runs it.
struct Running {
    board: Arc<Board>,
    /// Why a revision could not start; none when it runs.
    trouble: Option<Trouble>,
    /// It has been started at least once, so that no tasks means: they are elsewhere.
    settled: bool,
}

pub struct NodeRuntime {
    /// Persisted; the same over restarts.
    pub id: String,
    pub config: NodeConfig,
    pub kafka: KafkaConfig,
    /// Learned by the consumers of all workers, used by whoever commits and restores.
    pub epochs: NodeEpochs,
    pub cluster_id: String,
    pub admin: Admin,
    pub control_log: ControlLog,
    pub fleet: Fleet,
    pub modules: ModuleDir,
    /// Where the fleet's nodes find each other's modules.
    pub module_log: TopicLog,
    pub compiler: Compiler,
    pub former_workers: FormerWorkers,
    pub state_dir: StateDir,
    pub store_budget: StoreBudget,
    pub value_cache: Arc<CacheBudget>,
    pub telemetry: Arc<Telemetry>,
    /// What the handlers of this node have logged.
    pub handler_logs: HandlerLogs,
    /// Looks at single records, for the age of the oldest that waits.
    pub peek: Peek,
    pub leases: Leases,
    /// Delivers what outboxes hold.
    pub relays: Hub,
    pub commits: Arc<NodeBudget>,
    pub restores: Permits,
    pub trials: Trials,
    pub drain: Drain,
    /// The last heartbeat was written.
    pub kafka_answers: AtomicBool,
    running: RwLock<BTreeMap<String, Running>>,
}

/// What [`NodeRuntime::new`] is given; the rest it makes itself.
pub struct Foundations {
    pub id: String,
    pub config: NodeConfig,
    pub kafka: KafkaConfig,
    pub cluster_id: String,
    pub admin: Admin,
    pub control_log: ControlLog,
    pub modules: ModuleDir,
    pub module_log: TopicLog,
    pub compiler: Compiler,
    pub former_workers: FormerWorkers,
    pub state_dir: StateDir,
    pub store_budget: StoreBudget,
    pub telemetry: Arc<Telemetry>,
    pub peek: Peek,
}

impl NodeRuntime {
    pub fn new(from: Foundations) -> NodeRuntime {
        NodeRuntime {
            id: from.id,
            handler_logs: HandlerLogs::new(from.config.handler_logs),
            value_cache: CacheBudget::new(from.config.memory.value_cache_bytes as usize),
            config: from.config,
            kafka: from.kafka,
            epochs: NodeEpochs::default(),
            cluster_id: from.cluster_id,
            admin: from.admin,
            control_log: from.control_log,
            fleet: Fleet::default(),
            modules: from.modules,
            module_log: from.module_log,
            compiler: from.compiler,
            former_workers: from.former_workers,
            state_dir: from.state_dir,
            store_budget: from.store_budget,
            relays: Hub::new(Arc::clone(&from.telemetry)),
            telemetry: from.telemetry,
            peek: from.peek,
            leases: Leases::default(),
            commits: Arc::default(),
            restores: Permits::new(RESTORES_MAX),
            trials: Trials::default(),
            drain: Drain::default(),
            kafka_answers: AtomicBool::new(true),
            running: RwLock::default(),
        }
    }

    /// Reads a deployment document; what it does not say, this node's defaults say.
    pub fn spec(&self, document: &str) -> Result<DeploymentSpec, Problems> {
        DeploymentSpec::parse_with(document, &self.config.defaults)
    }

    /// The consumer group of a deployment, as Kafka's own tools name it.
    pub fn group(&self, deployment: &str) -> String {
        self.config.group_of(deployment)
    }

    pub fn changelog_topic(&self, deployment: &str) -> String {
        format!("{}.{deployment}.changelog", self.config.fleet)
    }

    pub fn dead_letter_topic(&self, deployment: &str) -> String {
        format!("{}.{deployment}.dead-letters", self.config.fleet)
    }

    /// Where the letters of a deployment lie, as its document says.
    pub fn letters_of(&self, spec: &DeploymentSpec) -> String {
        spec.failures.dead_letters.clone().unwrap_or_else(|| self.dead_letter_topic(&spec.name))
    }

    /// Where the failures of a deployment are told, if they are.
    pub fn events_of(&self, spec: &DeploymentSpec) -> Option<String> {
        let events = spec.failures.events.as_ref()?;
        Some(events.topic.clone().unwrap_or_else(|| format!("{}.{}.failures", self.config.fleet, spec.name)))
    }

    pub fn inbox_topic(&self, deployment: &str) -> String {
        format!("{}.{deployment}.inbox", self.config.fleet)
    }

    /// Who delivers what a deployment's outbox holds.
    pub fn origin(&self, deployment: &str) -> Origin {
        Origin { fleet: self.config.fleet.clone(), deployment: deployment.to_owned() }
    }

    /// Where a task's store lies.
    pub fn store_dir(&self, registered: &Registered, partition: i32) -> PathBuf {
        self.state_dir.store(&registered.name, &registered.incarnation, partition)
    }

    /// The board of a deployment, made if need be.
    pub fn board_for(&self, deployment: &str) -> Arc<Board> {
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let entry = self.entry(&mut running, deployment);
        entry.settled = true;
        Arc::clone(&entry.board)
    }

    pub fn board(&self, deployment: &str) -> Option<Arc<Board>> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        running.get(deployment).map(|running| Arc::clone(&running.board))
    }

    /// The tasks of a deployment on this node.
    pub fn tasks(&self, deployment: &str) -> BTreeMap<i32, TaskEntry> {
        self.board(deployment).map(|board| board.tasks()).unwrap_or_default()
    }

    pub fn boards(&self) -> Vec<(String, Arc<Board>)> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        running.iter().map(|(name, running)| (name.clone(), Arc::clone(&running.board))).collect()
    }

    /// True once the deployment has been started here.
    pub fn is_settled(&self, deployment: &str) -> bool {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        running.get(deployment).is_some_and(|running| running.settled)
    }

    /// Why this revision of a deployment does not run here as a whole.
    pub fn trouble(&self, registered: &Registered) -> Option<Trouble> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        let running = running.get(&registered.name)?;
        match &running.trouble {
            Some(trouble) if trouble.revision == registered.revision => Some(trouble.clone()),
            _ => running.board.trouble().map(|reason| Trouble::new(registered.revision, reason)),
        }
    }

    pub fn set_trouble(&self, deployment: &str, trouble: Option<Trouble>) {
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        self.entry(&mut running, deployment).trouble = trouble;
    }

    pub fn forget(&self, deployment: &str) {
        self.former_workers.forget(deployment);
        self.running.write().unwrap_or_else(PoisonError::into_inner).remove(deployment);
        self.relays.forget(deployment);
        self.telemetry.forget(deployment);
        self.handler_logs.forget(deployment);
        self.trials.forget(deployment);
    }

    fn entry<'a>(&self, running: &'a mut BTreeMap<String, Running>, deployment: &str) -> &'a mut Running {
        running.entry(deployment.to_owned()).or_insert_with(|| Running {
            board: Arc::new(Board::new(deployment, Arc::clone(&self.telemetry))),
            trouble: None,
            settled: false,
        })
    }

    /// Partitions of a deployment's inputs, which are its tasks.
    pub fn partitions(&self, registered: &Registered) -> Result<i32, ControlError> {
        let found = self.admin.describe_topics(&registered.topics())?;
        found.into_iter().flatten().map(|topic| topic.partitions).max().ok_or_else(|| {
            ControlError::Precondition(format!("the inputs of {} do not exist any more", registered.name))
        })
    }

    /// Makes a topic of the node's own unless it is there, and checks that it is as it must be.
    pub fn ensure_topic(&self, topic: &NewTopic) -> Result<Topic, AdminError> {
        ensure_topic(&self.admin, &self.id, topic)
    }

    /// Removes what a deleted deployment leaves in Kafka. The group goes first, once its last member
    /// has left it: its offsets would halt the next deployment of the name, and nobody writes to the
    /// changelog any more when it is gone.
    pub fn retire(&self, name: &str, incarnation: &str) -> Result<(), ControlError> {
        let group = self.group(name);
        let is_due = || self.control_log.view().retiring(name) == Some(incarnation);
        once_empty(EMPTY_GROUP_WAIT, is_due, || self.admin.delete_group(&group)).map_err(|error| {
            ControlError::Precondition(format!(
                "{name} is deleted or reset, but its group {group} is still there ({error}): stop whoever uses it, then repeat the \
                 command, which completes it",
            ))
        })?;
        let unavailable = |error: SourceError| ControlError::Unavailable(error.to_string());
        let view = self.control_log.catch_up().map_err(unavailable)?;
        if view.retiring(name) != Some(incarnation) {
            // Somebody else has completed it, and the topics may be the next life's.
            return Ok(());
        }
        // After a reset, ids may go on: see `reset`. After a delete there is no deployment of the name.
        let ids = (!view.leaves_ids(name)).then(|| self.inbox_topic(name));
        for topic in ids.into_iter().chain([self.changelog_topic(name)]) {
            match self.admin.delete_topics(&[topic]) {
                Ok(()) | Err(AdminError::Missing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub fn close_stores(&self) {
        self.leases.close_idle(self.state_dir.path());
    }

    /// A module that was deployed once.
    pub fn module(&self, digest: &str) -> Result<Vec<u8>, PrepareError> {
        let module = self.modules.load(digest, &self.module_log);
        module.map_err(|error| match error {
            ModuleError::Missing { .. } => PrepareError::Precondition(vec![error.to_string().into()]),
            _ => PrepareError::Unavailable(error.to_string()),
        })
    }

    /// Makes a module loadable by every node of the fleet.
    pub fn publish_module(&self, digest: &str, module: &[u8]) -> Result<(), ControlError> {
        modules::publish(&self.module_log, digest, module)
            .map_err(|error| ControlError::Unavailable(format!("cannot publish the module: {error}")))?;
        self.modules.keep(digest, module).map_err(|error| ControlError::Internal(error.to_string()))
    }
}

/// Deletes a group once its last member has left it, which is tried for so long. Not when it is not due any more: then
/// somebody else has completed it, and a group of that name is the next life's, whose offsets would go with it.
fn once_empty(
    patience: Duration,
    is_due: impl Fn() -> bool,
    delete: impl Fn() -> Result<(), AdminError>,
) -> Result<(), AdminError> {
    let deadline = Instant::now() + patience;
    while is_due() {
        match delete() {
            // A group that never had a member does not exist.
            Ok(()) | Err(AdminError::Missing { .. }) => break,
            Err(AdminError::Refused { .. } | AdminError::Unavailable { .. }) if Instant::now() < deadline => {
                std::thread::park_timeout(EMPTY_GROUP_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// For a node that has not started yet: [`NodeRuntime::ensure_topic`].
pub fn ensure_topic(admin: &Admin, node: &str, topic: &NewTopic) -> Result<Topic, AdminError> {
    let (found, is_made) = admin.ensure_topic(topic)?;
    if is_made {
        let told = "it was not there, and nodes keep something of their own in it";
        Line::by_itself(node, "Topics.Apply", &topic.name).write(0, "Ok", told);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_group_is_not_deleted_any_more_once_somebody_else_has_completed_the_delete() {
        let asked = Cell::new(0);
        let delete = || {
            asked.set(asked.get() + 1);
            Err(AdminError::Refused { what: "group g".into(), reason: "it has members".into() })
        };
        let is_due = || asked.get() == 0;
        assert_eq!(once_empty(EMPTY_GROUP_WAIT, is_due, delete).map_err(|error| error.to_string()), Ok(()));
        assert_eq!(asked.get(), 1, "the members are the next life's");
        assert!(once_empty(Duration::ZERO, || true, delete).is_err(), "nobody has, and the time is over");
    }
}
