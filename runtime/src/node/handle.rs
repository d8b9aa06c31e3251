//! What the control plane may ask of a node. Every call may block; none runs on a tokio worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tidemill_proto::v1 as proto;

use super::board::TaskEntry;
use super::control_log::ProposeError;
use super::lag;
use super::owners::{self, Owner};
use super::registered::Registered;
use super::registry::Registry;
use super::revision::PrepareError;
use super::runtime::NodeRuntime;
use crate::config::deployment::{OutputSpec, Ownership};
use crate::config::manifest::StoreManifest;
use crate::config::problem::{Problem, lines};
use crate::config::roles::Scope;
use crate::telemetry::TaskState;

/// Why a call is refused, by what its caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Every problem of the request, one by one.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
    /// The request is fine, the world is not; names the fix.
    #[error("{0}")]
    Precondition(String),
    /// The same, with several things to mend.
    #[error("{}", lines(.0))]
    Unmet(Vec<Problem>),
    /// The caller may not name what the request names.
    #[error("{}", lines(.0))]
    Denied(Vec<Problem>),
    #[error("{0}")]
    NotFound(String),
    /// Somebody else changed the same thing; 0 = the name is not deployed.
    #[error(
        "{name} is at revision {current}, not {expected}: somebody else changed it; look at `tidemill history {name}` and try again"
    )]
    Conflict { name: String, expected: u64, current: u64 },
    /// May be tried again.
    #[error("{0}")]
    Unavailable(String),
    /// What was to be waited for did not come in time.
    #[error("{0}")]
    Deadline(String),
    /// Whether it happened is not known: says how to find out. Unlike `Unavailable` it must not be tried again unseen.
    #[error("{0}")]
    Unknown(String),
    /// More than a call may have, or the node may hold.
    #[error("{0}")]
    Exhausted(String),
    #[error("{0}")]
    Internal(String),
}

impl ControlError {
    /// The outcome, as the audit log names it: the status of gRPC that it becomes, but for `Unknown`.
    pub fn code(&self) -> &'static str {
        match self {
            ControlError::Invalid(_) => "InvalidArgument",
            ControlError::Precondition(_) | ControlError::Unmet(_) => "FailedPrecondition",
            ControlError::Denied(_) => "PermissionDenied",
            ControlError::NotFound(_) => "NotFound",
            ControlError::Conflict { .. } => "Aborted",
            ControlError::Unavailable(_) => "Unavailable",
            ControlError::Deadline(_) => "DeadlineExceeded",
            ControlError::Unknown(_) => "Unknown",
            ControlError::Exhausted(_) => "ResourceExhausted",
            ControlError::Internal(_) => "Internal",
        }
    }

    /// Of an entry that only says what is about to be done: none of it was, wherever the entry is.
    pub(super) fn not_recorded(error: ProposeError) -> ControlError {
        let (ProposeError::Unavailable(reason) | ProposeError::Unknown(reason)) = error;
        ControlError::Unavailable(format!(
            "nothing was changed, for the fleet's control topic is to hold who asked for it, and does not take that: {reason}"
        ))
    }
}

impl From<ProposeError> for ControlError {
    fn from(error: ProposeError) -> ControlError {
        match error {
            ProposeError::Unavailable(_) => ControlError::Unavailable(error.to_string()),
            ProposeError::Unknown(_) => ControlError::Unknown(error.to_string()),
        }
    }
}

impl From<PrepareError> for ControlError {
    fn from(error: PrepareError) -> ControlError {
        match error {
            PrepareError::Invalid(problems) => ControlError::Invalid(problems),
            PrepareError::Precondition(problems) => ControlError::Unmet(problems),
            PrepareError::Unavailable(reason) => ControlError::Unavailable(reason),
        }
    }
}

/// How a node is, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VitalSigns {
    /// The last heartbeat was written.
    pub kafka_answers: bool,
    /// In the registry.
    pub deployments: usize,
    /// Each of those was started here, or could not be.
    pub settled: bool,
    /// Of those, the ones without a halted task or other trouble on this node.
    pub running: usize,
    /// Distinct input topics of all deployments.
    pub topics: usize,
    /// Of those, the ones of running deployments.
    pub consumed_topics: usize,
}

/// A running node, as its control plane sees it. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) node: Arc<NodeRuntime>,
    /// For this handle no other deployment exists, and documents name no other topic.
    pub(super) scope: Scope,
}

impl Handle {
    pub(super) fn new(node: Arc<NodeRuntime>) -> Handle {
        Handle { node, scope: Scope::All }
    }

    /// The same node for a caller who may know of these deployments only. Whether he may change them
    /// is not asked here.
    pub fn within(&self, scope: Scope) -> Handle {
        Handle { node: Arc::clone(&self.node), scope }
    }

    pub fn deployment(&self, name: &str) -> Result<proto::Deployment, ControlError> {
        Ok(self.describe(&self.registered(name)?))
    }

    pub fn deployments(&self) -> Vec<proto::Deployment> {
        let view = self.node.control_log.view();
        let seen = view.deployments.values().filter(|registered| self.scope.covers(&registered.name));
        seen.map(|registered| self.describe(registered)).collect()
    }

    /// Of one deployment, or of all, of which one that cannot be asked about is no error.
    pub fn lag(&self, name: Option<&str>) -> Result<Vec<proto::PartitionLag>, ControlError> {
        if let Some(name) = name {
            return lag::of(&self.node, &self.registered(name)?, lag::WAIT);
        }
        let view = self.node.control_log.view();
        let seen = view.deployments.values().filter(|registered| self.scope.covers(&registered.name));
        Ok(lag::of_all(&self.node, seen))
    }

    /// Reads keys of one partition that this node runs. Waits for the position that was asked for until
    /// `until`.
    pub fn state_get_many(
        &self,
        request: &proto::GetManyStateRequest,
        until: Instant,
    ) -> Result<proto::GetManyStateResponse, ControlError> {
        super::query::get_many(&self.node, request, until)
    }

    /// Reads one page of one partition that this node runs. Waits for the position that was asked for
    /// until `until`.
    pub fn state_scan(
        &self,
        request: &proto::ScanStateRequest,
        until: Instant,
    ) -> Result<proto::ScanStateResponse, ControlError> {
        super::query::scan(&self.node, request, until)
    }

    /// Looks an id up in the inbox of one partition that this node runs. Waits like a read of state.
    pub fn inbox_get(
        &self,
        request: &proto::GetInboxRequest,
        until: Instant,
    ) -> Result<proto::GetInboxResponse, ControlError> {
        super::seen::get(&self.node, request, until)
    }

    /// Edits one key of one partition that this node runs, and waits for its commit until `until`.
    pub fn state_edit(
        &self,
        request: proto::EditStateRequest,
        until: Instant,
    ) -> Result<proto::EditStateResponse, ControlError> {
        super::edit_state::edit(&self.node, request, until)
    }

    /// Who answers for one partition of a deployment, or for each. A partition that nobody runs is an
    /// error.
    pub fn owners(
        &self,
        deployment: &str,
        partition: Option<i32>,
    ) -> Result<BTreeMap<i32, Owner>, ControlError> {
        let registered = self.registered(deployment)?;
        if registered.paused {
            return Err(ControlError::Precondition(format!(
                "{deployment} is paused, so nobody reads its state; `tidemill resume {deployment}` starts it again"
            )));
        }
        owners::of(&self.node, &registered, partition)
    }

    /// Somebody wants it to run nowhere.
    pub fn is_paused(&self, deployment: &str) -> Result<bool, ControlError> {
        Ok(self.registered(deployment)?.paused)
    }

    /// Partitions of a deployment's inputs.
    pub fn partitions(&self, deployment: &str) -> Result<i32, ControlError> {
        self.node.partitions(&self.registered(deployment)?)
    }

    /// Refuses a partition that no input has; none while the brokers do not say how many there are.
    pub fn may_have(&self, deployment: &str, partition: i32) -> Result<(), ControlError> {
        match self.partitions(deployment) {
            Ok(partitions) if !(0..partitions).contains(&partition) => {
                Err(owners::no_such(deployment, partition, partitions))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Cheap: asks nobody.
    pub fn vital_signs(&self) -> VitalSigns {
        let view = self.node.control_log.view();
        let mut topics = BTreeSet::new();
        let mut consumed = BTreeSet::new();
        let mut running = 0;
        let mut settled = true;
        for registered in view.deployments.values() {
            if registered.paused {
                // It does what it is told.
                running += 1;
                continue;
            }
            let inputs = registered.topics();
            let trouble = self.node.trouble(registered).is_some();
            settled &= trouble || self.node.is_settled(&registered.name);
            let halted = trouble || self.node.board(&registered.name).is_some_and(|board| board.is_halted());
            if !halted {
                running += 1;
                consumed.extend(inputs.iter().cloned());
            }
            topics.extend(inputs);
        }
        VitalSigns {
            kafka_answers: self.node.kafka_answers.load(Ordering::Relaxed),
            deployments: view.deployments.len(),
            settled,
            running,
            topics: topics.len(),
            consumed_topics: consumed.len(),
        }
    }

    /// Whether this handle is to know of a deployment.
    pub(super) fn sees(&self, deployment: &str) -> bool {
        self.scope.covers(deployment)
    }

    pub(super) fn registered(&self, name: &str) -> Result<Registered, ControlError> {
        self.registered_in(&self.node.control_log.view(), name)
    }

    /// As it was at one look at the registry, for whoever proposes by that look.
    pub(super) fn registered_in(&self, view: &Registry, name: &str) -> Result<Registered, ControlError> {
        let seen = |name: &&str| self.scope.covers(name);
        view.deployments.get(name).filter(|_| seen(&name)).cloned().ok_or_else(|| {
            let names: Vec<_> = view.deployments.keys().map(String::as_str).filter(seen).collect();
            ControlError::NotFound(match names.as_slice() {
                [] => format!("{name} is not deployed; nothing is"),
                names => format!("{name} is not deployed; there are {}", names.join(", ")),
            })
        })
    }

    pub(super) fn describe(&self, registered: &Registered) -> proto::Deployment {
        self.describe_with(registered, &self.node.tasks(&registered.name))
    }

    /// With these tasks, which are this node's.
    pub(super) fn describe_with(
        &self,
        registered: &Registered,
        tasks: &BTreeMap<i32, TaskEntry>,
    ) -> proto::Deployment {
        let trouble = self.node.trouble(registered).map(|trouble| trouble.told(|name| self.sees(name)));
        let inputs = registered.topics();
        // A task of an older revision says nothing about this one.
        let mut adopted = tasks.values().filter(|task| task.revision == registered.revision);
        let halted = adopted.clone().find(|task| task.state == TaskState::Halted);
        let (state, reason) = match (&trouble, halted) {
            _ if registered.paused => (proto::DeploymentState::Paused, String::new()),
            (Some(trouble), _) => (proto::DeploymentState::Halted, trouble.clone()),
            (None, Some(task)) => (proto::DeploymentState::Halted, task.reason.clone()),
            (None, None) if adopted.any(|task| task.state == TaskState::Running) => {
                (proto::DeploymentState::Running, String::new())
            }
            (None, None) if tasks.is_empty() && self.is_passed_over(&registered.name) => {
                (proto::DeploymentState::Idle, String::new())
            }
            (None, None) => (proto::DeploymentState::Starting, String::new()),
        };
        proto::Deployment {
            name: registered.name.clone(),
            revision: registered.revision,
            module: registered.module.clone(),
            document: registered.document.clone(),
            deployed_at_ms: registered.deployed_at_ms,
            state: state.into(),
            reason,
            tasks: tasks.iter().map(|(partition, task)| self.task(*partition, task, &inputs)).collect(),
            group: self.node.group(&registered.name),
            outputs: registered
                .spec()
                .iter()
                .flat_map(|spec| spec.outputs.iter().map(|(name, output)| shown_output(name, output)))
                .collect(),
            stores: registered
                .manifest()
                .iter()
                .flat_map(|manifest| &manifest.stores)
                .map(|store| proto::StoreInfo {
                    holds: registered.ledger.holds(&store.name),
                    ..store_info(store)
                })
                .collect(),
            inputs,
            version: registered.version(),
            author: registered.history.current().map(|version| version.author.clone()).unwrap_or_default(),
            rolled_back: self.rolled_back(registered),
            ownership: registered.spec().map(|spec| ownership(&spec.ownership)),
        }
    }

    /// A deployment without a task here that none is expected of.
    fn is_passed_over(&self, name: &str) -> bool {
        self.node.is_settled(name) || self.node.drain.is_wanted()
    }

    /// Why the version before was rolled back by itself, or why this one is not.
    fn rolled_back(&self, registered: &Registered) -> String {
        match registered.history.current() {
            Some(version) if version.automatic => {
                format!("version {} failed and was rolled back: {}", version.number - 1, version.reason)
            }
            _ => {
                let trial = self.node.trials.find(registered);
                trial.and_then(|trial| trial.kept().map(str::to_owned)).unwrap_or_default()
            }
        }
    }

    fn task(&self, partition: i32, task: &TaskEntry, inputs: &[String]) -> proto::TaskStatus {
        proto::TaskStatus {
            partition,
            state: task_state(task.state).into(),
            reason: task.reason.clone(),
            node: self.node.id.clone(),
            worker: task.worker,
            restore_remaining: task.metrics.restore_remaining.get(),
            positions: super::query::positions(&task.positions, inputs, partition),
            skipped: task.skipped,
            revision: task.revision,
        }
    }
}

/// A topic, or the way out of Kafka and the output's name.
fn shown_output(name: &str, output: &OutputSpec) -> String {
    match output {
        OutputSpec::Topic(topic) => topic.topic.clone(),
        OutputSpec::Destination(destination) => format!("{}:{name}", destination.way.as_str()),
    }
}

pub(super) fn task_state(state: TaskState) -> proto::TaskState {
    match state {
        TaskState::Absent => proto::TaskState::Unspecified,
        TaskState::Restoring => proto::TaskState::Restoring,
        TaskState::Running => proto::TaskState::Running,
        TaskState::Halted => proto::TaskState::Halted,
    }
}

pub(super) fn ownership(ownership: &Ownership) -> proto::Ownership {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    proto::Ownership {
        owner: text(&ownership.owner),
        oncall: text(&ownership.oncall),
        tier: text(&ownership.tier),
        slo: text(&ownership.slo),
    }
}

/// As its version declares it.
pub(super) fn store_info(store: &StoreManifest) -> proto::StoreInfo {
    proto::StoreInfo {
        name: store.name.clone(),
        r#type: store.kind.as_str().to_owned(),
        ordered: store.ordered,
        schema: store.schema,
        reads: store.reads.clone(),
        holds: Vec::new(),
    }
}
