//! What the supervisor has done on this node: a revision is made ready, started in the place of another,
//! stopped. What is done when is the business of [`super::supervisor`] and [`super::place`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::deployment::{Leave, RunningDeployment};
use super::former;
use super::registered::Registered;
use super::revision::{self, PrepareError, Revision};
use super::runtime::NodeRuntime;
use super::trouble::Trouble;

/// Where deployments run. Cheap to clone.
pub(super) trait Site: Clone + Send + 'static {
    /// A revision that is ready to run.
    type Ready;
    type Running: Running;

    /// Makes a revision ready to run. What runs goes on meanwhile.
    fn prepare(&self, registered: &Registered) -> Result<Self::Ready, PrepareError>;

    /// When a module was last begun to be compiled, whoever's it is: who prepares another waits for that.
    fn compiler_begun(&self) -> Option<Instant>;

    /// Runs a revision in the place of `before`, of which nothing is left if this fails.
    fn start(&self, ready: Self::Ready, before: Option<Self::Running>)
    -> Result<Self::Running, PrepareError>;

    /// A revision could not be made ready, which may be its own fault.
    fn condemn(&self, registered: &Registered, error: &PrepareError);

    /// Why a revision of a deployment does not run here; none when nothing is wrong.
    fn set_trouble(&self, deployment: &str, trouble: Option<Trouble>);

    /// Of a deployment that is gone, and of which nothing runs any more.
    fn forget(&self, deployment: &str);

    /// Closes the stores that nobody has.
    fn close_stores(&self);
}

/// A deployment that runs.
pub(super) trait Running: Send + 'static {
    fn revision(&self) -> u64;

    /// True once a worker has panicked.
    fn is_broken(&self) -> bool;

    /// Makes the group look at its topics again. Waits for nothing.
    fn rejoin(&self);

    /// Commits, closes, and returns when every worker has ended.
    fn stop(self, leave: Leave);
}

impl Site for Arc<NodeRuntime> {
    type Ready = Revision;
    type Running = RunningDeployment;

    fn prepare(&self, registered: &Registered) -> Result<Revision, PrepareError> {
        revision::prepare(self, registered)
    }

    fn compiler_begun(&self) -> Option<Instant> {
        self.compiler.last_begun()
    }

    fn start(
        &self,
        ready: Revision,
        before: Option<RunningDeployment>,
    ) -> Result<RunningDeployment, PrepareError> {
        let (deployment, revision) = (&ready.registered.name, ready.registered.revision);
        match before {
            Some(mut running) if running.shared().can_become(&ready) => {
                tracing::info!(deployment, revision, "changed; swapping");
                running.swap(self, Arc::new(ready));
                return Ok(running);
            }
            Some(running) => {
                tracing::info!(deployment, revision, "changed; starting again");
                let leave = leaving(&running.shared(), &ready.registered);
                running.stop(leave);
            }
            None => {}
        }
        let evictions = former::settle(self, &ready)?;
        RunningDeployment::start(self, Arc::new(ready), evictions)
    }

    /// A version that is wrong in itself counts as one that fails. Not one whose document this node cannot
    /// read: a newer one wrote it.
    fn condemn(&self, registered: &Registered, error: &PrepareError) {
        let is_read = registered.spec().is_some() && registered.manifest().is_some();
        if is_read && matches!(error, PrepareError::Invalid(_)) {
            self.trials.of(registered).unfit(format!("it cannot start: {error}"));
        }
    }

    fn set_trouble(&self, deployment: &str, trouble: Option<Trouble>) {
        NodeRuntime::set_trouble(self, deployment, trouble);
    }

    fn forget(&self, deployment: &str) {
        NodeRuntime::forget(self, deployment);
    }

    fn close_stores(&self) {
        NodeRuntime::close_stores(self);
    }
}

/// Who leaves the group when a deployment changes. Members that come back keep their places and take
/// their partitions up at once. One that does not must not keep them, and then all leave: it may be
/// joining just now, which only ends when the others answer. With other inputs nobody's place means the
/// same any more, so the group ends and begins anew: a change of inputs stops it as a whole.
fn leaving(old: &Revision, new: &Registered) -> Leave {
    let topics: BTreeSet<String> = new.topics().into_iter().collect();
    let has: BTreeSet<&str> = old.inputs.iter().map(|input| input.topic.as_str()).collect();
    match new.spec() {
        Some(_) if !topics.iter().map(String::as_str).eq(has) => Leave::All,
        Some(spec) if spec.workers < old.spec.workers => Leave::All,
        Some(_) | None => Leave::Nobody,
    }
}
