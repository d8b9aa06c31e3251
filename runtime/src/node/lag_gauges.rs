//! Lag as `/metrics` shows it: of what this node runs, and of partitions that no node has, for which it grows unseen.
//!
//! | a partition | is counted from | and is shown by |
//! |---|---|---|
//! | whose task has a position | that | the task's node |
//! | whose task has none: it restores, or has halted before | what the group has committed | the task's node |
//! | that no node has, of a deployment that is not paused | what the group has committed | of the nodes that are alive, the one with the first id |
//!
//! The last two begin at the second look that finds them so: a moment without a position is part of every move.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fleet::{ALIVE, Peer};
use super::lag::{self, AGES_TIME_MAX};
use super::registered::Registered;
use super::runtime::NodeRuntime;
use crate::kafka::admin::{AdminError, At, Topic};
use crate::record::Offset;
use crate::telemetry::{InputLag, PartitionLag, TaskMetrics};

/// Time between two looks, which ask Kafka.
pub const EVERY: Duration = Duration::from_secs(5);
/// A lag that takes longer to ask for is unknown: those of other deployments, and the trials of their versions, wait
/// behind it, and brokers that do not answer are often those of one deployment's topics.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct LagGauges {
    /// By deployment, the partitions that had no position at the last look.
    without: HashMap<String, BTreeSet<i32>>,
}

impl LagGauges {
    /// What cannot be had now is unknown, never an old number.
    pub fn look(&mut self, node: &NodeRuntime) {
        let (view, peers) = (node.control_log.view(), node.fleet.peers());
        let claims = Claims::seen_by(&node.id, &peers);
        self.without.retain(|name, _| view.deployments.contains_key(name));
        let (mut behind, mut unassigned) = (Vec::new(), BTreeMap::new());
        for registered in view.deployments.values() {
            let with_position = Ok(of_tasks(node, registered));
            let without = self.without_position(node, registered, claims.as_ref(), &mut unassigned);
            // Each is asked for by itself: what is wrong with the one does not hide the other.
            for followed in [with_position, without] {
                match followed.and_then(|followed| counted(node, followed)) {
                    Ok(counted) => behind.extend(counted),
                    Err(error) => {
                        tracing::debug!(deployment = registered.name, %error, "the lag is unknown");
                        node.telemetry.forget_lag(&registered.name);
                    }
                }
            }
        }
        node.telemetry.set_lags(with_ages(node, behind), unassigned);
    }

    /// The partitions of a deployment without a position, at this look and at the one before: those of tasks here,
    /// and those that no node has if this one looks after them, which then are counted.
    fn without_position(
        &mut self,
        node: &NodeRuntime,
        registered: &Registered,
        claims: Option<&Claims<'_>>,
        unassigned: &mut BTreeMap<String, u64>,
    ) -> Result<Vec<Followed>, AdminError> {
        let name = &registered.name;
        let tasks = node.tasks(name);
        let here = tasks.iter().filter(|(_, task)| task.positions.is_empty());
        let mut without: BTreeMap<i32, Option<Arc<TaskMetrics>>> =
            here.map(|(&partition, task)| (partition, Some(Arc::clone(&task.metrics)))).collect();
        let claims = claims.filter(|_| !registered.paused);
        let mut topics: Vec<Topic> = Vec::new();
        if claims.is_some() || !without.is_empty() {
            topics.extend(node.admin.describe_topics(&registered.topics())?.into_iter().flatten());
        }
        let partitions = topics.iter().map(|topic| topic.partitions).max();
        let looked_after = claims.zip(partitions);
        if let Some((claims, partitions)) = looked_after {
            let nobodys = |number: &i32| !tasks.contains_key(number) && !claims.has(name, *number);
            without.extend((0..partitions).filter(nobodys).map(|number| (number, None)));
        }
        let now = without.keys().copied().collect();
        let before = self.without.insert(name.clone(), now).unwrap_or_default();
        without.retain(|number, _| before.contains(number));
        if looked_after.is_some() {
            let nobodys = without.values().filter(|task| task.is_none()).count();
            unassigned.insert(name.clone(), nobodys as u64);
        }
        of_the_group(node, registered, &topics, without)
    }
}

/// Which partitions the nodes that are alive say they have.
struct Claims<'a>(HashMap<&'a str, BTreeSet<i32>>);

impl<'a> Claims<'a> {
    /// None if it is not this node that looks after what nobody has.
    fn seen_by(node: &str, peers: &'a HashMap<String, Peer>) -> Option<Claims<'a>> {
        let alive = || peers.iter().filter(|(_, peer)| peer.age() < ALIVE);
        // One that has not heard of itself may not have heard of the others either.
        if alive().map(|(id, _)| id.as_str()).min() != Some(node) {
            return None;
        }
        let mut claims: HashMap<&str, BTreeSet<i32>> = HashMap::new();
        for task in alive().flat_map(|(_, peer)| &peer.heartbeat.tasks) {
            claims.entry(&task.deployment).or_default().insert(task.partition);
        }
        Some(Claims(claims))
    }

    fn has(&self, deployment: &str, partition: i32) -> bool {
        self.0.get(deployment).is_some_and(|partitions| partitions.contains(&partition))
    }
}

/// A partition number of a deployment, and from where its lag counts.
struct Followed {
    deployment: String,
    group: String,
    partition: i32,
    /// None if no node has it.
    task: Option<Arc<TaskMetrics>>,
    /// Topic and next offset.
    inputs: Vec<(String, Offset)>,
}

/// The tasks of this node that have a position.
fn of_tasks(node: &NodeRuntime, registered: &Registered) -> Vec<Followed> {
    let topics = registered.topics();
    let of = |(input, next): &(u16, Offset)| Some((topics.get(usize::from(*input))?.clone(), *next));
    let tasks = node.tasks(&registered.name).into_iter().map(|(partition, task)| Followed {
        deployment: registered.name.clone(),
        group: node.group(&registered.name),
        partition,
        inputs: task.positions.iter().filter_map(of).collect(),
        task: Some(task.metrics),
    });
    tasks.filter(|task| !task.inputs.is_empty()).collect()
}

/// These partitions, from where the group goes on in them.
fn of_the_group(
    node: &NodeRuntime,
    registered: &Registered,
    topics: &[Topic],
    partitions: BTreeMap<i32, Option<Arc<TaskMetrics>>>,
) -> Result<Vec<Followed>, AdminError> {
    let mut wanted = Vec::new();
    for &partition in partitions.keys() {
        let inputs = topics.iter().filter(|topic| partition < topic.partitions);
        wanted.extend(inputs.map(|topic| (topic.name.clone(), partition)));
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let positions = lag::group_positions(node, &registered.name, &wanted, Instant::now() + WAIT)?;
    let mut inputs: BTreeMap<i32, Vec<(String, Offset)>> = BTreeMap::new();
    for ((topic, partition), position) in wanted.into_iter().zip(positions) {
        inputs.entry(partition).or_default().push((topic, position.next));
    }
    let followed = partitions.into_iter().map(|(partition, task)| Followed {
        deployment: registered.name.clone(),
        group: node.group(&registered.name),
        partition,
        task,
        inputs: inputs.remove(&partition).unwrap_or_default(),
    });
    Ok(followed.filter(|followed| !followed.inputs.is_empty()).collect())
}

/// Records that each task of a deployment on this node is behind, as Kafka answers now.
pub fn records_now(node: &NodeRuntime, registered: &Registered) -> Result<BTreeMap<i32, u64>, AdminError> {
    let counted = counted(node, of_tasks(node, registered))?.into_iter();
    Ok(counted.map(|(task, records)| (task.partition, records.iter().sum())).collect())
}

/// With the records behind, by input.
fn counted(node: &NodeRuntime, followed: Vec<Followed>) -> Result<Vec<(Followed, Vec<u64>)>, AdminError> {
    let inputs = followed
        .iter()
        .flat_map(|one| one.inputs.iter().map(|(topic, next)| ((topic.clone(), one.partition), *next)));
    let (partitions, nexts): (Vec<_>, Vec<_>) = inputs.unzip();
    let ends = node.admin.offsets_within(&partitions, At::StableEnd, WAIT)?;
    let mut behind = nexts.iter().zip(ends).map(|(next, end)| next.lag(end));
    let counted = followed.into_iter().map(|one| {
        let records: Vec<u64> = behind.by_ref().take(one.inputs.len()).collect();
        (one, records)
    });
    Ok(counted.collect())
}

/// Whoever is furthest behind comes first, and is looked at first.
fn with_ages(node: &NodeRuntime, mut behind: Vec<(Followed, Vec<u64>)>) -> Vec<PartitionLag> {
    behind.sort_by_key(|(_, records)| Reverse(records.iter().sum::<u64>()));
    let deadline = Instant::now() + AGES_TIME_MAX;
    let with_age = |(followed, records): (Followed, Vec<u64>)| {
        let Followed { deployment, group, partition, task, inputs } = followed;
        let inputs = inputs.into_iter().zip(records).map(|((topic, next), records)| {
            let seconds = lag::seconds(node, (&topic, partition), (next, records), deadline);
            InputLag { topic, records, seconds }
        });
        PartitionLag { deployment, partition, group, task, inputs: inputs.collect() }
    };
    behind.into_iter().map(with_age).collect()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tidemill_proto::v1::{Heartbeat, HeartbeatTask};

    use super::super::fleet::Fleet;
    use super::*;

    fn beat(partitions: &[i32]) -> Vec<u8> {
        let count = HeartbeatTask { deployment: "count".into(), ..HeartbeatTask::default() };
        let tasks = partitions.iter().map(|&partition| HeartbeatTask { partition, ..count.clone() });
        Heartbeat { tasks: tasks.collect(), ..Heartbeat::default() }.encode_to_vec()
    }

    #[test]
    fn of_the_nodes_that_are_alive_the_first_looks_after_what_none_of_them_has() {
        let fleet = Fleet::default();
        fleet.heard(b"c", Some(&beat(&[1])));
        assert!(Claims::seen_by("b", &fleet.peers()).is_none(), "it has not heard of itself");
        fleet.heard(b"b", Some(&beat(&[0])));
        fleet.found(b"a", Some(&beat(&[2])), 0, ALIVE.as_millis() as i64);
        let peers = fleet.peers();
        assert!(Claims::seen_by("a", &peers).is_none(), "it is not alive");
        assert!(Claims::seen_by("c", &peers).is_none(), "it is not the first");
        let claims = Claims::seen_by("b", &peers).expect("it is the first");
        assert!(claims.has("count", 0) && claims.has("count", 1));
        assert!(!claims.has("count", 2), "who had it has been silent");
        assert!(!claims.has("others", 0));
        fleet.heard(b"b", None);
        assert!(Claims::seen_by("c", &fleet.peers()).is_some(), "b has gone");
    }
}
