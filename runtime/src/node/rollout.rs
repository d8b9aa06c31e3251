//! How far the fleet is with a deployment's revision: every partition, whoever runs it; and when there is nothing more
//! to wait for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;

use super::fleet::ALIVE;
use super::handle::{ControlError, Handle, task_state};
use super::query;
use crate::record::Offset;

/// What a caller may wait, in milliseconds.
pub(super) const WAIT_MS_MAX: u32 = 60_000;

/// A version that has halted is taken back within this, if it is.
const TAKEN_BACK_MAX: Duration = Duration::from_secs(5);

impl Handle {
    /// By this node's own tasks, and by what the others told last.
    pub fn rollout(&self, name: &str) -> Result<proto::RolloutResponse, ControlError> {
        let partitions = self.node.partitions(&self.registered(name)?)?;
        // Once for every part of the answer, after Kafka's, and in this order: no task of this node is of a newer
        // revision than the deployment.
        let own = self.node.tasks(name);
        let registered = self.registered(name)?;
        let trial = self.node.trials.find(&registered).map(|trial| {
            let (tried, failed) = trial.counts();
            proto::Trial { open: trial.is_open(), tried, failed }
        });
        let inputs = registered.topics();
        let mut tasks: BTreeMap<i32, proto::TaskRollout> = (0..partitions)
            .map(|partition| (partition, proto::TaskRollout { partition, ..proto::TaskRollout::default() }))
            .collect();
        let first = |partition, offsets: &[u64]| {
            let offsets: Vec<_> = (0..).zip(offsets.iter().copied().map(Offset)).collect();
            query::positions(&offsets, &inputs, partition)
        };
        for (id, peer) in self.node.fleet.peers() {
            let told = peer.heartbeat.tasks.iter().filter(|task| task.deployment == name);
            for task in told.filter(|_| peer.age() < ALIVE && id != self.node.id) {
                let rollout = proto::TaskRollout {
                    partition: task.partition,
                    state: task.state,
                    reason: String::new(),
                    node: id.clone(),
                    revision: task.revision,
                    first: first(task.partition, &task.first),
                };
                tasks.insert(task.partition, rollout);
            }
        }
        for (&partition, task) in &own {
            let offsets: Vec<u64> = task.first.iter().flatten().map(|first| first.0).collect();
            let rollout = proto::TaskRollout {
                partition,
                state: task_state(task.state).into(),
                reason: task.reason.clone(),
                node: self.node.id.clone(),
                revision: task.revision,
                first: first(partition, &offsets),
            };
            tasks.insert(partition, rollout);
        }
        Ok(proto::RolloutResponse {
            version: registered.version(),
            revision: registered.revision,
            tasks: tasks.into_values().collect(),
            trial,
            deployment: Some(self.describe_with(&registered, &own)),
        })
    }
}

/// What has become of a revision that somebody waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Every task runs it, or a later one.
    Complete,
    /// It has no tasks: the deployment is paused.
    Paused,
    /// A node has taken its version back by itself, for this reason.
    TakenBack(String),
    /// Something of it does not go on by itself.
    Halted(String),
    /// None of these yet.
    Coming,
}

/// Follows a revision, from one look to the next.
pub struct Following<'a> {
    asked: &'a proto::Deployment,
    partition: Option<i32>,
    halted_since: Option<Instant>,
}

impl<'a> Following<'a> {
    /// With the task of one partition, or every one.
    pub fn new(asked: &'a proto::Deployment, partition: Option<i32>) -> Following<'a> {
        Following { asked, partition, halted_since: None }
    }

    /// By one answer, which tells of one moment: of two, the second might blame what the first did not know of.
    pub fn look(&mut self, rollout: &proto::RolloutResponse) -> Progress {
        let Some(now) = &rollout.deployment else { return Progress::Coming };
        let (asked, partition) = (self.asked, self.partition);
        if now.version > asked.version && !now.rolled_back.is_empty() {
            return Progress::TakenBack(now.rolled_back.clone());
        }
        if now.state() == proto::DeploymentState::Paused {
            return Progress::Paused;
        }
        let is_asked = |task: &&proto::TaskRollout| partition.is_none_or(|asked| task.partition == asked);
        let counts = |task: &&proto::TaskRollout| is_asked(task) && task.revision >= asked.revision;
        if let Some(halted) = halted(now, &rollout.tasks, counts) {
            let since = *self.halted_since.get_or_insert_with(Instant::now);
            let on_trial = match &rollout.trial {
                Some(trial) => trial.open,
                // This node does not run the version: the task is another one's, whose trial it does not know.
                None => halted.is_of_a_task,
            };
            if !on_trial || since.elapsed() > TAKEN_BACK_MAX {
                return Progress::Halted(halted.reason);
            }
        }
        let mut tasks = rollout.tasks.iter().filter(is_asked);
        let is_known = now.revision >= asked.revision && !rollout.tasks.is_empty();
        match is_known && tasks.all(|task| runs(task, now.revision)) {
            true => Progress::Complete,
            false => Progress::Coming,
        }
    }
}

/// A commit says where the task began with this revision. One that is ahead of it is of a node that knows more
/// than the one that answers, which will know as much in a moment.
fn runs(task: &proto::TaskRollout, revision: u64) -> bool {
    task.revision == revision && task.state() == proto::TaskState::Running && !task.first.is_empty()
}

/// That a deployment does not go on by itself, and why: as a whole, or one of its tasks.
struct Halted {
    reason: String,
    is_of_a_task: bool,
}

/// As a whole, or one of the tasks that count.
fn halted(
    deployment: &proto::Deployment,
    tasks: &[proto::TaskRollout],
    counts: impl Fn(&&proto::TaskRollout) -> bool,
) -> Option<Halted> {
    let proto::Deployment { name, revision, reason, .. } = deployment;
    let mut halted = tasks.iter().filter(|task| task.state() == proto::TaskState::Halted);
    let is_of_a_task = halted.clone().any(|task| task.revision == *revision && task.reason == *reason);
    if deployment.state() == proto::DeploymentState::Halted && !is_of_a_task {
        return Some(Halted { reason: format!("{name} is halted: {reason}"), is_of_a_task });
    }
    let task = halted.find(counts)?;
    let proto::TaskRollout { partition, node, .. } = task;
    // Heartbeats do not say why.
    let reason = match task.reason.as_str() {
        "" => format!("task {partition} of {name} is halted on {node}: `tidemill lag {name}` says why"),
        reason => format!("task {partition} of {name} is halted: {reason}"),
    };
    Some(Halted { reason, is_of_a_task: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(partition: i32, revision: u64, state: proto::TaskState) -> proto::TaskRollout {
        let first = proto::InputPosition { topic: "in".into(), partition, offset: 7 };
        proto::TaskRollout {
            partition,
            revision,
            state: state.into(),
            reason: format!("as told in {partition}"),
            first: vec![first],
            ..proto::TaskRollout::default()
        }
    }

    fn rollout(
        now: &proto::Deployment,
        tasks: Vec<proto::TaskRollout>,
        on_trial: bool,
    ) -> proto::RolloutResponse {
        let trial = Some(proto::Trial { open: on_trial, ..proto::Trial::default() });
        proto::RolloutResponse {
            tasks,
            trial,
            deployment: Some(now.clone()),
            ..proto::RolloutResponse::default()
        }
    }

    fn deployment(version: u64, state: proto::DeploymentState) -> proto::Deployment {
        proto::Deployment {
            name: "count".into(),
            version,
            revision: 9,
            state: state.into(),
            ..proto::Deployment::default()
        }
    }

    #[test]
    fn a_revision_is_complete_once_every_task_runs_what_the_answer_is_about_from_an_offset_that_is_known() {
        use proto::TaskState::{Restoring, Running};
        let running = deployment(2, proto::DeploymentState::Running);
        let look =
            |tasks, partition| Following::new(&running, partition).look(&rollout(&running, tasks, false));
        let unknown = proto::TaskRollout { first: Vec::new(), ..task(1, 9, Running) };
        assert_eq!(look(vec![task(0, 9, Running), task(1, 9, Running)], None), Progress::Complete);
        // The node of one of a later revision knows more than the one that answers.
        for behind in [task(1, 8, Running), task(1, 11, Running), task(1, 9, Restoring), unknown] {
            let tasks = vec![task(0, 9, Running), behind];
            assert_eq!(look(tasks.clone(), None), Progress::Coming, "{tasks:?}");
            assert_eq!(look(tasks, Some(0)), Progress::Complete, "nobody asks for the other");
        }
        assert_eq!(look(Vec::new(), None), Progress::Coming, "nobody knows of a task");
        let paused = deployment(2, proto::DeploymentState::Paused);
        let mut following = Following::new(&running, None);
        assert_eq!(following.look(&rollout(&paused, Vec::new(), false)), Progress::Paused);
        let later = proto::Deployment { revision: 11, ..running.clone() };
        let tasks = vec![task(0, 11, Running)];
        let progress = Following::new(&running, None).look(&rollout(&later, tasks, false));
        assert_eq!(progress, Progress::Complete, "somebody has changed it since");
    }

    #[test]
    fn a_task_that_halted_before_does_not_count_against_what_was_asked_for() {
        use proto::TaskState::Halted;
        let halted = |reason: &str| proto::Deployment {
            reason: reason.into(),
            ..deployment(2, proto::DeploymentState::Halted)
        };
        let tasks = || vec![task(0, 7, Halted), task(1, 9, Halted)];
        let look = |now: &proto::Deployment, partition, on_trial| {
            Following::new(now, partition).look(&rollout(now, tasks(), on_trial))
        };
        let of_a_task = halted("as told in 1");
        assert_eq!(look(&of_a_task, Some(0), false), Progress::Coming);
        let told = Progress::Halted("task 1 of count is halted: as told in 1".into());
        assert_eq!(look(&of_a_task, None, false), told);
        assert_eq!(look(&of_a_task, None, true), Progress::Coming, "a node may take the version back");
        let told = Progress::Halted("count is halted: topic in does not exist".into());
        assert_eq!(look(&halted("topic in does not exist"), Some(0), false), told);
    }

    #[test]
    fn a_task_that_is_halted_on_another_node_may_be_on_a_trial_that_this_one_does_not_know() {
        let look = |following: &mut Following<'_>, now: &proto::Deployment, tasks| {
            following.look(&proto::RolloutResponse { trial: None, ..rollout(now, tasks, false) })
        };
        let starting = deployment(2, proto::DeploymentState::Starting);
        let elsewhere = || proto::TaskRollout {
            node: "n2".into(),
            reason: String::new(),
            ..task(0, 9, proto::TaskState::Halted)
        };
        let mut following = Following::new(&starting, None);
        assert_eq!(look(&mut following, &starting, vec![elsewhere()]), Progress::Coming);
        following.halted_since = Instant::now().checked_sub(TAKEN_BACK_MAX * 2);
        let told = "task 0 of count is halted on n2: `tidemill lag count` says why";
        assert_eq!(look(&mut following, &starting, vec![elsewhere()]), Progress::Halted(told.into()));
        let reason = "topic in does not exist".into();
        let halted = proto::Deployment { reason, ..deployment(2, proto::DeploymentState::Halted) };
        let told = Progress::Halted("count is halted: topic in does not exist".into());
        assert_eq!(
            look(&mut Following::new(&halted, None), &halted, Vec::new()),
            told,
            "no trial mends that"
        );
    }

    #[test]
    fn a_version_that_was_rolled_back_is_told_why() {
        let at = |version, rolled_back: &str| proto::Deployment {
            rolled_back: rolled_back.into(),
            ..deployment(version, proto::DeploymentState::Starting)
        };
        let asked = at(2, "");
        let look =
            |now: proto::Deployment| Following::new(&asked, None).look(&rollout(&now, Vec::new(), false));
        assert_eq!(look(at(2, "version 2 failed and cannot be rolled back")), Progress::Coming);
        assert_eq!(look(at(3, "")), Progress::Coming, "somebody deployed another");
        let reason = "version 2 failed and was rolled back: as told";
        assert_eq!(look(at(3, reason)), Progress::TakenBack(reason.into()));
    }
}
