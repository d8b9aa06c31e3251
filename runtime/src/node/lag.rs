//! How far a deployment is behind: the group's committed offsets against the ends of its inputs.
//!
//! Both are asked of Kafka when somebody asks, so that the answer is the one that Kafka's own tools
//! give, whichever node answers and whether or not a task runs anywhere.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;

use super::deployment::wall_ms;
use super::fleet::ALIVE;
use super::handle::{ControlError, task_state};
use super::registered::Registered;
use super::runtime::NodeRuntime;
use crate::kafka::admin::{AdminError, At};
use crate::record::Offset;

/// Looking at the oldest records that wait takes no longer in one answer; the ages of the rest are unknown
/// in it.
pub(super) const AGES_TIME_MAX: Duration = Duration::from_secs(2);
/// Offsets of one deployment that somebody names: as long as a call waits that does not say.
pub(super) const WAIT: Duration = Duration::from_secs(30);
/// Among all of them: brokers that do not answer are often those of one deployment's topics, and the others wait
/// behind it.
const WAIT_AMONG_ALL: Duration = Duration::from_secs(5);
/// Deployments that are not asked about within this are only named, so that the answer comes within [`WAIT`].
const ALL_TIME_MAX: Duration = Duration::from_secs(20);

impl From<AdminError> for ControlError {
    fn from(error: AdminError) -> ControlError {
        match error {
            AdminError::Unavailable { .. } => ControlError::Unavailable(error.to_string()),
            AdminError::Missing { .. } | AdminError::Exists { .. } | AdminError::Refused { .. } => {
                ControlError::Precondition(error.to_string())
            }
        }
    }
}

/// Of these deployments, one after the other.
pub fn of_all<'a>(
    node: &NodeRuntime,
    deployments: impl Iterator<Item = &'a Registered>,
) -> Vec<proto::PartitionLag> {
    each(deployments, Instant::now() + ALL_TIME_MAX, |registered| of(node, registered, WAIT_AMONG_ALL))
}

/// One that cannot be asked about hides no other: it has one row, without a topic and with the reason.
fn each<'a>(
    deployments: impl Iterator<Item = &'a Registered>,
    deadline: Instant,
    mut ask: impl FnMut(&Registered) -> Result<Vec<proto::PartitionLag>, ControlError>,
) -> Vec<proto::PartitionLag> {
    let mut lags = Vec::new();
    for registered in deployments {
        let asked = match Instant::now() < deadline {
            true => ask(registered).map_err(|error| error.to_string()),
            false => {
                Err("it was not asked about, because those before it took too long: ask for it alone".into())
            }
        };
        lags.extend(asked.unwrap_or_else(|reason| {
            let deployment = registered.name.clone();
            vec![proto::PartitionLag { deployment, reason, ..proto::PartitionLag::default() }]
        }));
    }
    lags
}

/// Of one. `wait` is for all of its offsets.
pub fn of(
    node: &NodeRuntime,
    registered: &Registered,
    wait: Duration,
) -> Result<Vec<proto::PartitionLag>, ControlError> {
    let inputs = registered.topics();
    let mut partitions = Vec::new();
    let mut lags = Vec::new();
    for (name, topic) in inputs.iter().zip(node.admin.describe_topics(&inputs)?) {
        match topic {
            Some(topic) => {
                partitions.extend((0..topic.partitions).map(|partition| (name.clone(), partition)))
            }
            // Nobody's lag is hidden because one topic is gone.
            None => lags.push(proto::PartitionLag {
                deployment: registered.name.clone(),
                topic: name.clone(),
                state: proto::TaskState::Halted.into(),
                reason: format!("topic {name} does not exist any more"),
                ..proto::PartitionLag::default()
            }),
        }
    }
    if partitions.is_empty() {
        return Ok(lags);
    }
    let until = Instant::now() + wait;
    let ends = node.admin.offsets_within(&partitions, At::StableEnd, wait)?;
    let positions = group_positions(node, &registered.name, &partitions, until)?;
    let owners = Owners::of(node, &registered.name);
    let deadline = Instant::now() + AGES_TIME_MAX;
    for (((topic, partition), end), position) in partitions.into_iter().zip(ends).zip(positions) {
        let GroupPosition { committed, next } = position;
        let records = next.lag(end);
        let owner = owners.of_partition(partition);
        lags.push(proto::PartitionLag {
            deployment: registered.name.clone(),
            seconds: seconds(node, (&topic, partition), (next, records), deadline),
            topic,
            partition,
            committed: committed.map(|offset| offset.0),
            end: end.0,
            records,
            state: owner.state.into(),
            node: owner.node,
            reason: owner.reason,
            revision: owner.revision,
            ..proto::PartitionLag::default()
        });
    }
    Ok(lags)
}

/// Where a group is in a partition.
pub(super) struct GroupPosition {
    pub(super) committed: Option<Offset>,
    /// Where it goes on. While nothing is committed, everything that is there is still to be read.
    pub(super) next: Offset,
}

/// Of the group of a deployment, in the order asked.
pub(super) fn group_positions(
    node: &NodeRuntime,
    deployment: &str,
    partitions: &[(String, i32)],
    until: Instant,
) -> Result<Vec<GroupPosition>, AdminError> {
    let left = || until.saturating_duration_since(Instant::now());
    let starts = node.admin.offsets_within(partitions, At::Start, left())?;
    let offsets = match node.admin.group_offsets_within(&node.group(deployment), partitions, left()) {
        Ok(offsets) => offsets,
        // The group comes into being with its first member.
        Err(AdminError::Missing { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    let committed: HashMap<(String, i32), Offset> = offsets
        .into_iter()
        .filter_map(|committed| Some(((committed.topic, committed.partition), committed.offset?)))
        .collect();
    let position = |(partition, start): (&(String, i32), Offset)| {
        let committed = committed.get(partition).copied();
        GroupPosition { committed, next: committed.unwrap_or(start) }
    };
    Ok(partitions.iter().zip(starts).map(position).collect())
}

/// Age of the oldest of the records behind, which is the next to read; unknown when it cannot be read at once, or
/// the deadline is over.
pub(super) fn seconds(
    node: &NodeRuntime,
    (topic, partition): (&str, i32),
    (next, records): (Offset, u64),
    deadline: Instant,
) -> Option<f64> {
    if records == 0 {
        return Some(0.0);
    }
    if Instant::now() >= deadline {
        return None;
    }
    let timestamp_ms = node.peek.timestamp_ms(topic, partition, next)?;
    Some((wall_ms() - timestamp_ms).max(0) as f64 / 1000.0)
}

/// Where the tasks of a deployment are, by what this node sees and what the others tell.
struct Owners {
    by_partition: HashMap<i32, Owner>,
}

#[derive(Debug, Clone, Default)]
struct Owner {
    state: proto::TaskState,
    node: String,
    reason: String,
    revision: u64,
}

impl Owners {
    fn of(node: &NodeRuntime, deployment: &str) -> Owners {
        let mut by_partition = HashMap::new();
        for (id, peer) in node.fleet.peers() {
            let tasks = peer.heartbeat.tasks.iter().filter(|task| task.deployment == deployment);
            for task in tasks.filter(|_| peer.age() < ALIVE && id != node.id) {
                let state = task_state_of(task.state);
                let owner = Owner { state, node: id.clone(), reason: String::new(), revision: task.revision };
                by_partition.insert(task.partition, owner);
            }
        }
        for (partition, task) in node.tasks(deployment) {
            let (state, node) = (task_state(task.state), node.id.clone());
            let owner = Owner { state, node, reason: task.reason, revision: task.revision };
            by_partition.insert(partition, owner);
        }
        Owners { by_partition }
    }

    fn of_partition(&self, partition: i32) -> Owner {
        self.by_partition.get(&partition).cloned().unwrap_or_default()
    }
}

fn task_state_of(number: i32) -> proto::TaskState {
    proto::TaskState::try_from(number).unwrap_or(proto::TaskState::Unspecified)
}

#[cfg(test)]
mod tests {
    use super::super::fake_site::registered;
    use super::*;

    #[test]
    fn a_deployment_that_cannot_be_asked_about_says_why_and_hides_no_other() {
        let deployments = ["a", "b", "c"].map(|name| Registered { name: name.into(), ..registered() });
        let ask = |registered: &Registered| match registered.name.as_str() {
            "b" => Err(ControlError::Unavailable("`in` [0] has no leader".into())),
            name => Ok(vec![proto::PartitionLag {
                deployment: name.into(),
                topic: "in".into(),
                records: 3,
                ..proto::PartitionLag::default()
            }]),
        };
        let told = |deadline| {
            let lags = each(deployments.iter(), deadline, ask).into_iter();
            lags.map(|lag| (lag.deployment, lag.topic, lag.records, lag.reason)).collect::<Vec<_>>()
        };
        let row = |name: &str, topic: &str, records, why: &str| {
            (name.to_owned(), topic.to_owned(), records, why.to_owned())
        };
        let expected =
            [row("a", "in", 3, ""), row("b", "", 0, "`in` [0] has no leader"), row("c", "in", 3, "")];
        assert_eq!(told(Instant::now() + ALL_TIME_MAX), expected);
        let late = told(Instant::now());
        assert!(
            late.len() == 3
                && late.iter().all(|(_, topic, _, why)| topic.is_empty() && why.contains("too long"))
        );
    }
}
