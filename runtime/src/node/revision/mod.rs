//! A revision made ready to run: document, module and topics, checked against each other.
//!
//! The same checks serve a deploy (nothing may be wrong before anything runs) and a start (the
//! world may have changed since).
//!
//! | file | what it does |
//! |---|---|
//! | `check` | everything that can be wrong, found before anything runs |
//! | `topics` | the topics of a document, and those that the deployment has for itself |
//! | `prepare` | makes them, links the module |

mod check;
mod prepare;
mod topics;

use std::sync::Arc;
use std::time::Duration;

pub use check::{Found, check, deleted, lost, outgrown, warnings};
pub use prepare::prepare;
pub use topics::InternalTopics;

use super::registered::Registered;
use super::runtime::NodeRuntime;
use super::trial::Trial;
use crate::config::deployment::{DeploymentSpec, InboxSpec, Start};
use crate::config::manifest::Manifest;
use crate::config::problem::Problem;
use crate::kafka::admin::AdminError;
use crate::ports::{Handler, SourceError};
use crate::relay::Stations;
use crate::store::{CacheBudget, Stores};
use crate::task::{self, ChangelogConfig, EventsRule, OutputRule, TaskConfig, TaskInput};
use crate::wasm::{Linked, Module, ModuleError};

/// Why a revision cannot run, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The document or the module is wrong.
    #[error("{}", in_a_line(.0))]
    Invalid(Vec<Problem>),
    /// They are right, but the cluster does not have what they need.
    #[error("{}", in_a_line(.0))]
    Precondition(Vec<Problem>),
    #[error("{0}")]
    Unavailable(String),
}

fn in_a_line(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl From<SourceError> for PrepareError {
    fn from(error: SourceError) -> PrepareError {
        match error {
            SourceError::Refused(reason) => PrepareError::Precondition(vec![reason.into()]),
            SourceError::Fatal(reason) | SourceError::Unavailable(reason) => {
                PrepareError::Unavailable(reason)
            }
            SourceError::Stopped => PrepareError::Unavailable(error.to_string()),
        }
    }
}

impl From<AdminError> for PrepareError {
    fn from(error: AdminError) -> PrepareError {
        match error {
            AdminError::Unavailable { .. } => PrepareError::Unavailable(error.to_string()),
            AdminError::Missing { .. } | AdminError::Exists { .. } | AdminError::Refused { .. } => {
                PrepareError::Precondition(vec![error.to_string().into()])
            }
        }
    }
}

/// An input of a running revision, in the manifest's order.
#[derive(Debug, Clone)]
pub struct InputTopic {
    pub topic: String,
    /// A topic deleted and made again has another one.
    pub topic_id: String,
    pub start: Start,
}

/// The changelog of a deployment that keeps something.
#[derive(Debug, Clone)]
pub struct ChangelogTopic {
    pub topic: String,
    pub topic_id: String,
    pub record_bytes_max: usize,
    pub delete_retention: Duration,
}

/// Everything that the workers of one revision share, read-only.
pub struct Revision {
    pub registered: Registered,
    pub spec: DeploymentSpec,
    pub manifest: Manifest,
    pub group: String,
    pub inputs: Vec<InputTopic>,
    /// The manifest's, then the topics of dead letters and of events, if there are such.
    pub outputs: Vec<OutputRule>,
    /// Which of the outputs takes dead letters.
    pub dead_letters: Option<u16>,
    /// Where failures are told.
    pub events: Option<EventsRule>,
    /// None for a deployment that keeps nothing.
    pub changelog: Option<ChangelogTopic>,
    /// The topic of a deployment with an inbox.
    pub inbox: Option<String>,
    /// Of every input; the tasks.
    pub partitions: i32,
    pub linked: Linked,
    pub stores: Arc<Stores>,
    /// Where its outboxes deliver to.
    pub stations: Arc<Stations>,
    /// Of its version.
    pub trial: Arc<Trial>,
    /// The node's, for committed values.
    pub cache: Arc<CacheBudget>,
}

/// Values handed to one call beforehand.
const PREFETCH_BYTES_MAX: usize = 4 << 20;

impl Revision {
    /// True if workers of this revision can go on in `next` as they are: the same members, reading the same
    /// partitions in the same way.
    pub fn can_become(&self, next: &Revision) -> bool {
        let topics = |revision: &Revision| -> Vec<(String, String)> {
            revision.inputs.iter().map(|input| (input.topic.clone(), input.topic_id.clone())).collect()
        };
        let changelog = |revision: &Revision| {
            revision.changelog.as_ref().map(|changelog| (changelog.topic.clone(), changelog.topic_id.clone()))
        };
        topics(self) == topics(next)
            && changelog(self) == changelog(next)
            && self.partitions == next.partitions
            && self.spec.workers == next.spec.workers
            && self.spec.guarantee == next.spec.guarantee
            && self.reads_headers() == next.reads_headers()
            && self.spec.inbox == next.spec.inbox
            && self.registered.incarnation == next.registered.incarnation
    }

    /// The handler of a task; in no program that users have it is anything but an instance of the module.
    pub fn handler(&self, partition: i32) -> Result<Box<dyn Handler>, ModuleError> {
        #[cfg(feature = "native")]
        if let Some(factory) = super::native::factory() {
            return factory(&self.manifest).map_err(ModuleError::Start);
        }
        Ok(Box::new(self.linked.instantiate(partition)?))
    }

    /// Headers of records are read for the handler, or because the node itself has a use for them.
    pub fn reads_headers(&self) -> bool {
        self.manifest.wants_headers
            || self.spec.inbox.as_ref().is_some_and(InboxSpec::reads_headers)
            || self.spec.failures.keeps_records()
            || self.spec.failures.events.is_some()
            || self.spec.correlation
    }

    /// What its tasks are told.
    pub fn task_config(&self) -> TaskConfig {
        let inputs = self.inputs.iter();
        let changelog = self.changelog.as_ref();
        TaskConfig {
            deployment: self.registered.name.clone(),
            group: self.group.clone(),
            revision: self.registered.revision,
            incarnation: self.registered.incarnation.clone(),
            guarantee: self.spec.guarantee,
            failures: self.spec.failures.clone(),
            inputs: inputs
                .map(|input| TaskInput { topic: input.topic.clone(), topic_id: input.topic_id.clone() })
                .collect(),
            outputs: self.outputs.clone(),
            stores: Arc::clone(&self.stores),
            keeps_rows: changelog.is_some(),
            inbox: self.spec.inbox.clone(),
            correlation: self.spec.correlation,
            dead_letters: self.dead_letters,
            events: self.events.clone(),
            changelog: ChangelogConfig {
                topic: changelog.map(|changelog| changelog.topic.clone()).unwrap_or_default(),
                topic_id: changelog.map(|changelog| changelog.topic_id.clone()).unwrap_or_default(),
                record_bytes_max: changelog.map_or(0, |changelog| changelog.record_bytes_max),
            },
            call_records_max: call_records_max(&self.spec),
            call_bytes_max: call_bytes_max(&self.spec),
            store_bytes_max: self.spec.limits.store_bytes,
            overlay_bytes_max: self.spec.commit.overlay_bytes as usize,
            cache: Arc::clone(&self.cache),
            prefetch_bytes_max: PREFETCH_BYTES_MAX,
        }
    }
}

/// The ABI's bound on one batch, whatever a deployment allows.
const BATCH_RECORDS_MAX: u32 = 500;

/// Records of one call.
pub fn call_records_max(spec: &DeploymentSpec) -> usize {
    spec.limits.batch_records.min(BATCH_RECORDS_MAX) as usize
}

/// Bytes of one call.
pub fn call_bytes_max(spec: &DeploymentSpec) -> usize {
    task::call_bytes_max(spec.limits.memory_bytes)
}

/// Binds a module to its deployment; or why no instance of it starts, or none with this `config`.
pub fn link(module: &Module, spec: &DeploymentSpec) -> Result<Linked, Problem> {
    Linked::new(module, &spec.name, &spec.config, &spec.limits).map_err(|error| {
        let key = if matches!(error, ModuleError::Config(_)) { "config" } else { "module" };
        Problem::at(key, error.to_string())
    })
}

/// Compiles a module under the node's limits; or what is wrong with it.
pub fn compile(node: &NodeRuntime, bytes: &[u8]) -> Result<Module, PrepareError> {
    Module::load_with(&node.compiler, bytes).map_err(|error| {
        if error.is_of_the_machine() {
            return PrepareError::Unavailable(error.to_string());
        }
        let problems = error.into_problems();
        let at_module = |problem: &ModuleError| Problem::at("module", problem.to_string());
        PrepareError::Invalid(problems.iter().map(at_module).collect())
    })
}
