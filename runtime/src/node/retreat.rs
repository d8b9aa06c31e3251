//! Takes back versions that fail on this node: looks at their trials, and proposes the version before.
//!
//! Every node does so for itself. A proposal names the revision that was looked at, so of many nodes that
//! find the same one wins, and whoever changes the deployment first is not overruled. The proposal is a
//! rollback like any: checked like a deploy, refused if the older version does not fit the state that is
//! there, and the tasks adopt it where they stand, so that a record that halted one is tried again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_proto::v1::RollbackRequest;

use super::deployment::wall_ms;
use super::handle::{ControlError, Handle};
use super::lag_gauges;
use super::registered::Registered;
use super::routine::Routine;
use super::runtime::NodeRuntime;
use super::trial::{Cause, Judge, Lag, Verdict};
use crate::telemetry::TaskState;
use crate::telemetry::audit::Line;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// A proposal that did not get through is made again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Looks at this node's trials until it is dropped.
pub fn start(node: Arc<NodeRuntime>) -> std::io::Result<Routine> {
    let mut retreat = Retreat { handle: Handle::new(node), began: Instant::now(), watched: BTreeMap::new() };
    Routine::start("retreat", LOOK, move || retreat.look())
}

struct Retreat {
    handle: Handle,
    began: Instant,
    /// By deployment.
    watched: BTreeMap<String, Watched>,
}

/// The version of a deployment that is on trial, or was.
struct Watched {
    incarnation: String,
    version: u64,
    /// None once nothing can take it back any more.
    judge: Option<Judge>,
    not_before: Duration,
}

impl Retreat {
    fn look(&mut self) {
        let view = self.handle.node.control_log.view();
        self.watched.retain(|name, _| view.deployments.contains_key(name));
        for registered in view.deployments.values() {
            self.look_at(registered);
        }
    }

    fn look_at(&mut self, registered: &Registered) {
        let now = self.began.elapsed();
        let name = &registered.name;
        let is_same = |watched: &&mut Watched| {
            watched.version == registered.version() && watched.incarnation == registered.incarnation
        };
        let watched = match self.watched.get_mut(name).filter(is_same) {
            Some(watched) if watched.judge.is_none() || watched.not_before > now => return,
            Some(watched) => watched,
            None => self.watched.entry(name.clone()).insert_entry(Watched::new(registered)).into_mut(),
        };
        // One that waits is new when it begins, however long that takes.
        let Some(judge) = watched.judge.as_mut().filter(|_| !registered.paused) else { return };
        let node = &self.handle.node;
        let trial = node.trials.of(registered);
        trial.set_open(true);
        match judge.look(now, age(registered), &trial, || lag(node, registered)) {
            Verdict::Open => return,
            Verdict::Closed => {}
            Verdict::Unfit(cause, reason) => match self.handle.take_back(registered, cause, &reason) {
                Ok(()) => {}
                // Somebody changed the deployment, perhaps just that; or Kafka is away.
                Err(ControlError::Conflict { .. }) => return,
                Err(error) if may_pass(&error) => {
                    tracing::warn!(deployment = name, %error, reason, "cannot take the version back yet");
                    watched.not_before = now + AGAIN;
                    return;
                }
                Err(error) => {
                    tracing::error!(deployment = name, %error, reason, "cannot take the version back; it stays");
                    let version = registered.version();
                    trial.keep(format!(
                        "version {version} failed and cannot be rolled back ({error}): {reason}"
                    ));
                }
            },
        }
        trial.set_open(false);
        watched.judge = None;
    }
}

impl Watched {
    /// A rollback is never taken back, and neither is a version that is the first, or was deployed so long
    /// ago that this node cannot know how it began.
    fn new(registered: &Registered) -> Watched {
        let version = registered.history.current();
        let spec = registered.spec().map(|spec| &spec.rollout).filter(|spec| spec.automatic);
        let judge = match (version, spec) {
            (Some(version), Some(spec))
                if version.rollback_to.is_none()
                    && registered.history.get(version.number - 1).is_some()
                    && age(registered) <= spec.watch =>
            {
                Some(Judge::new(spec.clone()))
            }
            _ => None,
        };
        let (incarnation, version) = (registered.incarnation.clone(), registered.version());
        Watched { incarnation, version, judge, not_before: Duration::ZERO }
    }
}

impl Handle {
    /// Proposes the version before this one, in this node's name.
    fn take_back(&self, failing: &Registered, cause: Cause, reason: &str) -> Result<(), ControlError> {
        let request = RollbackRequest {
            name: failing.name.clone(),
            to: 0,
            expected_revision: Some(failing.revision),
            author: self.node.id.clone(),
            reason: reason.to_owned(),
            dry_run: false,
            // What the version has written and the one before cannot read stays: that refuses the rollback.
            drop_stores: Vec::new(),
            wait_ms: 0,
        };
        let line = Line {
            expected_revision: failing.revision,
            ..Line::by_itself(&self.node.id, "Deployments.Rollback", &failing.name)
        };
        let revision = self.roll_back(request, true).and_then(|answer| {
            match answer.deployment.map_or(0, |deployment| deployment.revision) {
                // A version may differ from the one before in nothing but what it has dropped.
                revision if revision == failing.revision => {
                    Err(ControlError::Precondition("the version before is the same".to_owned()))
                }
                revision => Ok(revision),
            }
        });
        match revision {
            Ok(revision) => line.write(revision, "Ok", reason),
            Err(error) => {
                line.write(0, error.code(), &format!("{error}: {reason}"));
                return Err(error);
            }
        }
        let metrics = &self.node.telemetry.node;
        let counter = match cause {
            Cause::Failures => &metrics.rollbacks_failures,
            Cause::Halted => &metrics.rollbacks_halted,
            Cause::Lag => &metrics.rollbacks_lag,
            Cause::Breaker => &metrics.rollbacks_breaker,
        };
        counter.add(1);
        tracing::error!(
            deployment = failing.name,
            version = failing.version(),
            reason,
            "the version failed and was rolled back"
        );
        Ok(())
    }
}

/// What a caller would be told to try again.
fn may_pass(error: &ControlError) -> bool {
    matches!(
        error,
        ControlError::Unavailable(_)
            | ControlError::Deadline(_)
            | ControlError::Unknown(_)
            | ControlError::Exhausted(_)
    )
}

/// Of the version, by the registry topic's clock against this node's.
fn age(registered: &Registered) -> Duration {
    Duration::from_millis(u64::try_from(wall_ms() - registered.deployed_at_ms).unwrap_or(0))
}

/// Asked of Kafka: what the gauges know may be older than the time between two looks. None while it is unknown,
/// or a task does not run.
fn lag(node: &NodeRuntime, registered: &Registered) -> Option<Lag> {
    let tasks = node.tasks(&registered.name);
    if tasks.is_empty() || tasks.values().any(|task| task.state != TaskState::Running) {
        return None;
    }
    let behind = lag_gauges::records_now(node, registered).ok()?;
    let records: u64 = behind.values().sum();
    behind.keys().eq(tasks.keys()).then(|| Lag { tasks: behind.into_keys().collect(), records })
}

#[cfg(test)]
mod tests {
    use tidemill_proto::v1::DeployEntry;
    use tidemill_proto::v1::control_entry::Entry;

    use super::super::registry::Registry;
    use super::*;
    use crate::config::SpecDefaults;
    use crate::node::proposal::proposal;
    use crate::record::Offset;

    /// A deployment with these versions after a first one: the document's `rollout:`, and whether it is a
    /// rollback; deployed so long ago.
    fn deployed(versions: &[(&str, bool)], ago: Duration) -> Registered {
        let mut registry = Registry::new(SpecDefaults::default());
        let at_ms = wall_ms() - ago.as_millis() as i64;
        for (number, (rollout, is_rollback)) in (0..).zip([("{}", false)].iter().chain(versions)) {
            let entry = DeployEntry {
                name: "a".into(),
                expected_revision: number,
                incarnation: "i".into(),
                document: format!(
                    "name: a\nmodule: a.wasm\ninputs: {{ in: {{ topic: t }} }}\nrollout: {rollout}\n"
                ),
                rollback_to: u64::from(*is_rollback),
                ..DeployEntry::default()
            };
            registry.apply(Offset(number), at_ms, &proposal(Entry::Deploy(entry)));
        }
        registry.deployments["a"].clone()
    }

    fn is_watched(versions: &[(&str, bool)], ago_s: u64) -> bool {
        Watched::new(&deployed(versions, Duration::from_secs(ago_s))).judge.is_some()
    }

    #[test]
    fn only_a_new_version_that_follows_another_is_ever_taken_back() {
        assert!(is_watched(&[("{ watch: 60s }", false)], 50));
        assert!(!is_watched(&[], 0), "there is nothing to go back to");
        assert!(!is_watched(&[("{}", false), ("{}", true)], 0), "it is a rollback");
        assert!(is_watched(&[("{}", false), ("{}", true), ("{}", false)], 0), "it follows a rollback");
        assert!(!is_watched(&[("{ automatic: false }", false)], 0));
        assert!(!is_watched(&[("{ watch: 60s }", false)], 70), "this node was not there when it began");
        assert!(!is_watched(&[("[", false)], 0), "this node cannot read it");
    }
}
