//! Changes of deployments: checked as a whole, proposed to the registry, accepted or refused by it.
//!
//! ```text
//!   catch up with the registry -> unchanged? -> check everything -> publish the module -> propose
//!                                                    |                                      |
//!                                          every problem at once          accepted | somebody else was first
//! ```
//!
//! Safe from any number of places at once: a proposal names the revision that was looked at, and of two
//! proposals that name the same one the log accepts the first.

use std::sync::Arc;

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::{DeleteEntry, DeployEntry, PauseEntry, RestartEntry, RetiredEntry};

use super::deployment::wall_ms;
use super::handle::{ControlError, Handle};
use super::history::Version;
use super::modules;
use super::registered::{Parsed, Registered};
use super::registry::{Outcome, Registry};
use super::retries::Retries;
use super::revision::{self, Found, PrepareError};
use super::rollout::WAIT_MS_MAX;
use super::topics;
use super::uploads;
use super::versions::{change, version};
use crate::config::changes::Contents;
use crate::config::deployment::DeploymentSpec;
use crate::config::problem::Problem;
use crate::config::topic::TopicDocument;

/// What a caller says about himself is bounded, because it is kept for ever.
pub(super) const AUTHOR_BYTES_MAX: usize = 200;
const REASON_BYTES_MAX: usize = 1_000;

/// Names of stores to be dropped at once; a deployment has no more of them.
const DROPS_MAX: usize = 1_000;

/// A version that passed every check.
struct Candidate {
    name: String,
    digest: String,
    document: String,
    manifest: String,
    partitions: i32,
    drops: Vec<String>,
    warnings: Vec<String>,
}

/// What a version is to be made of.
struct Wanted<'a> {
    document: &'a str,
    module: &'a [u8],
    /// Stores whose data is given up.
    drops: &'a [String],
    /// Topics that are to be as these say by then.
    topics: &'a [TopicDocument],
    /// What is wrong with the request, whatever it is to be made of.
    problems: &'a [Problem],
}

impl Candidate {
    fn contents(&self) -> Contents<'_> {
        Contents { module: &self.digest, document: &self.document, manifest: &self.manifest }
    }
}

impl Handle {
    /// Checks everything, publishes the module, and proposes the deployment to the fleet.
    pub fn deploy(
        &self,
        header: proto::DeployHeader,
        module: Vec<u8>,
    ) -> Result<proto::DeployResponse, ControlError> {
        let mut problems = Vec::from_iter(too_long("author", &header.author, AUTHOR_BYTES_MAX));
        let topics = coming(&header).unwrap_or_else(|wrong| {
            problems.extend(wrong);
            Vec::new()
        });
        let drops = distinct(header.drop_stores);
        problems.extend(too_many(&drops));
        problems.extend(too_patient(header.wait_ms));
        let view = self.latest()?;
        let digest = modules::digest(&module);
        let spec = self.node.spec(&header.document);
        let current = spec.as_ref().ok().and_then(|spec| view.deployments.get(&spec.name));
        let is_done = |current: &Registered| is_same(current, &digest, &header.document, &drops);
        let wanted = Wanted {
            document: &header.document,
            module: &module,
            drops: &drops,
            topics: &topics,
            problems: &problems,
        };
        if let Some(current) = current.filter(|current| problems.is_empty() && is_done(current)) {
            if self.grows(current, &topics)? {
                self.check(&Wanted { drops: &[], ..wanted }, &view)?;
            }
            return Ok(self.unchanged(current, &topics));
        }
        if let Ok(spec) = &spec {
            expect(&view, &spec.name, header.expected_revision)?;
            is_free(&view, &spec.name)?;
        }
        let candidate = self.check(&wanted, &view)?;
        let (changes, warnings) = (differences(current, &candidate, &view), candidate.warnings.clone());
        let answer = |registered: &Registered| proto::DeployResponse {
            deployment: Some(self.describe(registered)),
            unchanged: false,
            changes,
            warnings,
            adoption: None,
        };
        if header.dry_run {
            return Ok(answer(&self.proposed(&view, &candidate, &header.author)));
        }
        let uploaded_ms = wall_ms();
        self.node.publish_module(&digest, &module)?;
        let name = candidate.name.clone();
        let entry = entry(&view, candidate, header.author);
        match self.propose(&name, Entry::Deploy(entry)) {
            Ok(()) => {
                let deployed = self.registered(&name)?;
                if uploads::is_late(uploaded_ms, deployed.deployed_at_ms) {
                    tracing::warn!(deployment = name, "came long after its module, which is uploaded again");
                    self.node.publish_module(&digest, &module)?;
                }
                let answer = answer(&deployed);
                log_warnings(&name, &answer.warnings);
                Ok(answer)
            }
            // Who was first may have wanted the same.
            Err(error @ ControlError::Conflict { .. }) => {
                let view = self.node.control_log.view();
                match view.deployments.get(&name).filter(|now| is_done(now)) {
                    Some(now) => Ok(self.unchanged(now, &topics)),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// There is nothing left to do.
    fn unchanged(&self, current: &Registered, topics: &[TopicDocument]) -> proto::DeployResponse {
        let (deployment, warnings) = (Some(self.describe(current)), self.warnings(current, topics));
        proto::DeployResponse { deployment, unchanged: true, warnings, ..Default::default() }
    }

    /// Of a version that is there already.
    fn warnings(&self, current: &Registered, topics: &[TopicDocument]) -> Vec<String> {
        current.spec().map(|spec| revision::warnings(&self.node, spec, topics)).unwrap_or_default()
    }

    /// Makes a new version of an old one's module and document.
    pub fn rollback(&self, request: proto::RollbackRequest) -> Result<proto::RollbackResponse, ControlError> {
        self.roll_back(request, false)
    }

    /// `automatic`: nobody asked for it.
    pub(super) fn roll_back(
        &self,
        request: proto::RollbackRequest,
        automatic: bool,
    ) -> Result<proto::RollbackResponse, ControlError> {
        let drops = distinct(request.drop_stores);
        let problems = [
            too_long("author", &request.author, AUTHOR_BYTES_MAX),
            too_long("reason", &request.reason, REASON_BYTES_MAX),
            too_many(&drops),
            too_patient(request.wait_ms),
        ];
        refuse(problems.into_iter().flatten())?;
        let view = self.latest()?;
        let current = self.registered_in(&view, &request.name)?;
        expect(&view, &request.name, request.expected_revision)?;
        is_free(&view, &request.name)?;
        let target = target(&current, request.to)?;
        if is_same(&current, &target.module, &target.document, &drops) {
            let (deployment, warnings) = (Some(self.describe(&current)), self.warnings(&current, &[]));
            return Ok(proto::RollbackResponse { deployment, warnings, ..Default::default() });
        }
        let module = self.node.module(&target.module)?;
        let wanted =
            Wanted { document: &target.document, module: &module, drops: &drops, topics: &[], problems: &[] };
        let candidate = self.check(&wanted, &view)?;
        let changes = differences(Some(&current), &candidate, &view);
        let warnings = candidate.warnings.clone();
        if request.dry_run {
            let deployment = Some(self.describe(&self.proposed(&view, &candidate, &request.author)));
            return Ok(proto::RollbackResponse { deployment, changes, warnings, adoption: None });
        }
        let entry = DeployEntry {
            rollback_to: target.number,
            reason: request.reason,
            automatic,
            ..entry(&view, candidate, request.author)
        };
        self.propose(&request.name, Entry::Deploy(entry))?;
        log_warnings(&request.name, &warnings);
        let deployment = Some(self.deployment(&request.name)?);
        Ok(proto::RollbackResponse { deployment, changes, warnings, adoption: None })
    }

    pub fn pause(&self, request: proto::PauseRequest) -> Result<proto::PauseResponse, ControlError> {
        let proto::PauseRequest { name, expected_revision, author } = request;
        let unchanged = self.set_paused(&name, expected_revision, author, true)?;
        Ok(proto::PauseResponse { deployment: Some(self.deployment(&name)?), unchanged })
    }

    pub fn resume(&self, request: proto::ResumeRequest) -> Result<proto::ResumeResponse, ControlError> {
        let proto::ResumeRequest { name, expected_revision, author } = request;
        let unchanged = self.set_paused(&name, expected_revision, author, false)?;
        Ok(proto::ResumeResponse { deployment: Some(self.deployment(&name)?), unchanged })
    }

    /// Makes a revision of the same version, which every node adopts: what is halted is restored by the one
    /// rule then, what runs goes on.
    pub fn restart(&self, request: proto::RestartRequest) -> Result<proto::RestartResponse, ControlError> {
        let proto::RestartRequest { name, expected_revision, author, partition } = request;
        bounded("author", &author, AUTHOR_BYTES_MAX)?;
        let view = self.latest()?;
        let current = self.registered_in(&view, &name)?;
        expect(&view, &name, expected_revision)?;
        if let Some(partition) = partition {
            let count = self.node.partitions(&current)?;
            if !(0..count).contains(&partition) {
                let message =
                    format!("{name} has no partition {partition}: its inputs have 0 to {}", count - 1);
                return Err(ControlError::Invalid(vec![Problem::at("partition", message)]));
            }
        }
        let expected_revision = current.revision;
        let entry = RestartEntry { name: name.clone(), expected_revision, author, partition };
        self.propose(&name, Entry::Restart(entry))?;
        Ok(proto::RestartResponse { deployment: Some(self.deployment(&name)?) })
    }

    /// True if there was nothing to do.
    fn set_paused(
        &self,
        name: &str,
        expected: Option<u64>,
        author: String,
        paused: bool,
    ) -> Result<bool, ControlError> {
        bounded("author", &author, AUTHOR_BYTES_MAX)?;
        let view = self.latest()?;
        let current = self.registered_in(&view, name)?;
        if current.paused == paused {
            return Ok(true);
        }
        expect(&view, name, expected)?;
        let entry = PauseEntry { name: name.to_owned(), expected_revision: current.revision, paused, author };
        self.propose(name, Entry::Pause(entry))?;
        Ok(false)
    }

    /// Ends a deployment, or completes a delete that did not come to its end.
    pub fn delete(&self, request: proto::DeleteDeploymentRequest) -> Result<(), ControlError> {
        let proto::DeleteDeploymentRequest { name, keep_state, expected_revision, author } = request;
        bounded("author", &author, AUTHOR_BYTES_MAX)?;
        let view = self.latest()?;
        if let Some(incarnation) = view.retiring(&name) {
            self.retire(&name, incarnation)?;
            // Of a name that is there, it was a reset that had not come to its end.
            if !view.deployments.contains_key(&name) {
                return Ok(());
            }
        }
        let current = self.registered_in(&view, &name)?;
        expect(&view, &name, expected_revision)?;
        let entry = DeleteEntry {
            name: name.clone(),
            expected_revision: current.revision,
            keep_state,
            author,
            retires: !keep_state,
        };
        self.propose(&name, Entry::Delete(entry))?;
        if keep_state { Ok(()) } else { self.retire(&name, &current.incarnation) }
    }

    /// Removes what a deleted life has in Kafka, and frees its name.
    pub(super) fn retire(&self, name: &str, incarnation: &str) -> Result<(), ControlError> {
        self.node.retire(name, incarnation)?;
        let entry = RetiredEntry { name: name.to_owned(), incarnation: incarnation.to_owned() };
        self.propose(name, Entry::Retired(entry))
    }

    /// Whether an input is to have more partitions by then, which may stop a deployment that stays as it is.
    fn grows(&self, current: &Registered, topics: &[TopicDocument]) -> Result<bool, ControlError> {
        let inputs = current.topics();
        let wanted: Vec<&TopicDocument> =
            topics.iter().filter(|topic| inputs.contains(&topic.name)).collect();
        let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
        let found = self.node.admin.describe_topics(&names)?;
        let mut pairs = wanted.into_iter().zip(found);
        Ok(pairs.any(|(wanted, found)| found.is_some_and(|found| found.partitions < wanted.partitions)))
    }

    /// Every problem of a document, its module and what they would do to the stores, at once.
    fn check(&self, wanted: &Wanted<'_>, view: &Registry) -> Result<Candidate, ControlError> {
        let mut found = Found {
            deploys: true,
            topics: wanted.topics.to_vec(),
            problems: wanted.problems.to_vec(),
            ..Found::default()
        };
        let spec = self.node.spec(wanted.document).map_err(|problems| found.problems.extend(problems.0)).ok();
        spec.as_ref().map_or(Ok(()), |spec| self.may_name(spec))?;
        let compiled = match revision::compile(&self.node, wanted.module) {
            Ok(module) => Some(module),
            Err(PrepareError::Invalid(problems)) => {
                found.problems.extend(problems);
                None
            }
            Err(error) => return Err(error.into()),
        };
        let manifest = compiled.as_ref().map(|module| module.manifest());
        let Some(spec) = spec else { return Err(ControlError::Invalid(found.problems)) };
        // Nothing of it runs with more than it may have.
        let is_allowed = self.node.config.defaults.policy.exceeded(&spec.limits).is_empty();
        if let Some(module) = compiled.as_ref().filter(|_| is_allowed) {
            found.problems.extend(revision::link(module, &spec).err());
        }
        if let Some(manifest) = manifest {
            let ledger = view.ledger(&spec.name);
            found.problems.extend(ledger.unknown_drops(manifest, wanted.drops));
            found.unmet.extend(ledger.conflicts(manifest, wanted.drops));
        }
        let checked = revision::check(&self.node, &spec, manifest, view.life(&spec.name), found)?;
        let (Some(checked), Some(manifest)) = (checked, manifest) else {
            return Err(ControlError::Internal("a module without a problem has a manifest".into()));
        };
        Ok(Candidate {
            name: spec.name,
            digest: modules::digest(wanted.module),
            document: wanted.document.to_owned(),
            manifest: serde_json::to_string(manifest)
                .map_err(|error| ControlError::Internal(error.to_string()))?,
            partitions: checked.partitions,
            drops: wanted.drops.to_vec(),
            warnings: checked.warnings,
        })
    }

    /// Refuses a document with topics or secrets that are not the caller's to name, before anything is said about them.
    fn may_name(&self, spec: &DeploymentSpec) -> Result<(), ControlError> {
        let refusal = |key: String, what: &str, list: &str| {
            let message = format!(
                "the node's `roles` do not let you name {what} in {}: have it added to `{list}` there",
                spec.name
            );
            Problem::at(key, message)
        };
        let foreign = spec.topics().filter(|(_, topic)| !self.scope.binds(&spec.name, topic));
        let topics = foreign.map(|(key, topic)| refusal(key, &format!("the topic {topic}"), "topics"));
        let hidden = spec.secrets().filter(|(_, secret)| !self.scope.gives(&spec.name, secret));
        let secrets = hidden.map(|(key, secret)| refusal(key, &secret, "secrets"));
        let problems: Vec<Problem> = topics.chain(secrets).collect();
        if problems.is_empty() { Ok(()) } else { Err(ControlError::Denied(problems)) }
    }

    /// What the registry would hold.
    fn proposed(&self, view: &Registry, candidate: &Candidate, author: &str) -> Registered {
        let current = view.deployments.get(&candidate.name);
        let mut history = current.map(|current| current.history.clone()).unwrap_or_default();
        let revision = view.revision(&candidate.name);
        history.push(Version {
            number: history.next_number(),
            revision,
            module: candidate.digest.clone(),
            document: candidate.document.clone(),
            manifest: candidate.manifest.clone(),
            author: author.to_owned(),
            deployed_at_ms: 0,
            rollback_to: None,
            automatic: false,
            reason: String::new(),
            dropped: candidate.drops.clone(),
        });
        let parsed = Parsed::read(&candidate.document, &candidate.manifest, &self.node.config.defaults);
        let mut ledger = view.ledger(&candidate.name);
        let accepting = Arc::make_mut(&mut ledger);
        accepting.accept(parsed.manifest.as_ref().ok(), &candidate.drops);
        accepting.accept_rows(parsed.leaves_rows());
        Registered {
            name: candidate.name.clone(),
            revision,
            module: candidate.digest.clone(),
            document: candidate.document.clone(),
            parsed: Arc::new(parsed),
            ledger,
            incarnation: String::new(),
            deployed_at_ms: 0,
            first_partitions: candidate.partitions,
            paused: current.is_some_and(|current| current.paused),
            retries: Retries::default(),
            history,
        }
    }

    /// The registry with everything that was written before this call.
    pub(super) fn latest(&self) -> Result<Arc<Registry>, ControlError> {
        self.node.control_log.catch_up().map_err(|error| ControlError::Unavailable(error.to_string()))
    }

    pub(super) fn propose(&self, name: &str, entry: Entry) -> Result<(), ControlError> {
        match self.node.control_log.propose(entry)? {
            Outcome::Accepted(_) => Ok(()),
            Outcome::Stale { expected, current } => Err(conflict(name, expected, current)),
            Outcome::Refused(reason) => Err(ControlError::Precondition(reason)),
        }
    }
}

fn entry(view: &Registry, candidate: Candidate, author: String) -> DeployEntry {
    let is_new = !view.deployments.contains_key(&candidate.name);
    DeployEntry {
        expected_revision: view.revision(&candidate.name),
        name: candidate.name,
        module: candidate.digest,
        document: candidate.document,
        incarnation: if is_new { uuid::Uuid::new_v4().simple().to_string() } else { String::new() },
        manifest: candidate.manifest,
        partitions: candidate.partitions,
        author,
        drop_stores: candidate.drops,
        keeps_stores: true,
        ..DeployEntry::default()
    }
}

/// Topics that a plan takes for made. Nothing is deployed onto what is not there.
fn coming(header: &proto::DeployHeader) -> Result<Vec<TopicDocument>, Vec<Problem>> {
    if !header.dry_run && !header.topics.is_empty() {
        let message = "go with a dry run only; have them applied, then deploy";
        return Err(vec![Problem::at("topics", message)]);
    }
    topics::documents(&header.topics)
}

/// True if there is nothing left to do. A drop that the current version was deployed with is not done again:
/// whoever repeats a call must not lose what has been written since.
fn is_same(current: &Registered, module: &str, document: &str, drops: &[String]) -> bool {
    let dropped = current.history.current().map(|version| version.dropped.as_slice()).unwrap_or_default();
    let has_dropped = drops.iter().all(|name| dropped.contains(name));
    current.module == module && current.document == document && has_dropped
}

/// Each once.
fn distinct(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names.dedup();
    names
}

fn too_many(drops: &[String]) -> Option<Problem> {
    let message = || format!("has {} stores; at most {DROPS_MAX} are taken", drops.len());
    (drops.len() > DROPS_MAX).then(|| Problem::at("drop_stores", message()))
}

fn too_patient(wait_ms: u32) -> Option<Problem> {
    let message = || format!("is {wait_ms}; 0 to {WAIT_MS_MAX} are possible");
    (wait_ms > WAIT_MS_MAX).then(|| Problem::at("wait_ms", message()))
}

/// For whoever reads the log; who has asked is told by the answer.
fn log_warnings(deployment: &str, warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(deployment, "{warning}");
    }
}

fn differences(current: Option<&Registered>, candidate: &Candidate, view: &Registry) -> Vec<proto::Change> {
    let before = current.and_then(|current| current.history.current());
    let changes = before.map(|before| before.changes(candidate.contents())).unwrap_or_default();
    let ledger = view.ledger(&candidate.name);
    let dropped = candidate.drops.iter().filter_map(|name| {
        let holds: Vec<String> = ledger.holds(name).iter().map(u32::to_string).collect();
        let before = (!holds.is_empty()).then(|| format!("schema {}", holds.join(", ")))?;
        Some(proto::Change { field: format!("state.{name}"), before, after: "dropped".into() })
    });
    changes.into_iter().map(change).chain(dropped).collect()
}

/// The version that a rollback takes up. Without a number it is the one before what runs, so that one
/// rollback after the other goes back step by step.
fn target(current: &Registered, to: u64) -> Result<&Version, ControlError> {
    if to != 0 {
        return version(current, to);
    }
    let runs = current.history.running().unwrap_or(0);
    if runs <= 1 {
        return Err(ControlError::Precondition(format!(
            "{} runs its first version; there is none before it to go back to",
            current.name
        )));
    }
    version(current, runs - 1)
}

pub(super) fn expect(view: &Registry, name: &str, expected: Option<u64>) -> Result<(), ControlError> {
    let current = view.revision(name);
    match expected {
        Some(expected) if expected != current => Err(conflict(name, expected, current)),
        _ => Ok(()),
    }
}

fn conflict(name: &str, expected: u64, current: u64) -> ControlError {
    ControlError::Conflict { name: name.to_owned(), expected, current }
}

fn is_free(view: &Registry, name: &str) -> Result<(), ControlError> {
    view.unfinished(name).map_or(Ok(()), |reason| Err(ControlError::Precondition(reason)))
}

pub(super) fn bounded(field: &str, text: &str, bytes_max: usize) -> Result<(), ControlError> {
    refuse(too_long(field, text, bytes_max))
}

pub(super) fn too_long(field: &str, text: &str, bytes_max: usize) -> Option<Problem> {
    let message = || format!("has {} bytes; at most {bytes_max} are kept", text.len());
    (text.len() > bytes_max).then(|| Problem::at(field, message()))
}

/// Everything that is wrong with a request, at once; nothing if nothing is.
pub(super) fn refuse(problems: impl IntoIterator<Item = Problem>) -> Result<(), ControlError> {
    let problems: Vec<Problem> = problems.into_iter().collect();
    if problems.is_empty() { Ok(()) } else { Err(ControlError::Invalid(problems)) }
}
