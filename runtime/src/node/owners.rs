//! Who answers for which partition: what runs here, and what the others' heartbeats tell.

use std::collections::BTreeMap;

use tidemill_proto::v1::{HeartbeatTask, TaskState};

use super::fleet::ALIVE;
use super::handle::ControlError;
use super::registered::Registered;
use super::runtime::NodeRuntime;

/// Who answers for a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Here,
    At { node: String, address: String },
}

/// Who answers for one partition of a deployment, or for each. A partition that nobody runs is an error.
pub fn of(
    node: &NodeRuntime,
    registered: &Registered,
    partition: Option<i32>,
) -> Result<BTreeMap<i32, Owner>, ControlError> {
    let name = &registered.name;
    // What this node runs needs no look at Kafka.
    if let Some(partition) = partition
        && node.board(name).is_some_and(|board| board.task(partition).is_some())
    {
        return Ok(BTreeMap::from([(partition, Owner::Here)]));
    }
    let partitions = node.partitions(registered)?;
    let wanted = match partition {
        None => 0..partitions,
        Some(partition) if (0..partitions).contains(&partition) => partition..partition + 1,
        Some(partition) => return Err(no_such(name, partition, partitions)),
    };
    let here = node.tasks(name);
    let mut owners = BTreeMap::new();
    for partition in wanted {
        let owner = match here.contains_key(&partition) {
            true => Some(Owner::Here),
            false => elsewhere(node, name, partition),
        };
        let owner = owner.ok_or_else(|| {
            ControlError::Unavailable(format!(
                "partition {partition} of {name} is on no node right now (a rebalance, or no node runs); try again"
            ))
        })?;
        owners.insert(partition, owner);
    }
    Ok(owners)
}

/// Of a deployment with so many.
pub fn no_such(name: &str, partition: i32, partitions: i32) -> ControlError {
    ControlError::NotFound(format!("partition {partition} of {name} does not exist; there are {partitions}"))
}

/// The other node that runs a task, or says so. Of two that do, while it moves, the one whose task
/// runs, then the one that said so last.
pub fn elsewhere(node: &NodeRuntime, deployment: &str, partition: i32) -> Option<Owner> {
    let peers = node.fleet.peers();
    let claims = peers.iter().filter(|(id, peer)| **id != node.id && peer.age() < ALIVE);
    let claims = claims.filter_map(|(id, peer)| {
        let of_task = |task: &&HeartbeatTask| task.deployment == deployment && task.partition == partition;
        let task = peer.heartbeat.tasks.iter().find(of_task)?;
        Some((task.state == i32::from(TaskState::Running), std::cmp::Reverse(peer.age()), id, peer))
    });
    let (_, _, id, peer) = claims.max_by_key(|(running, age, ..)| (*running, *age))?;
    Some(Owner::At { node: id.clone(), address: peer.heartbeat.address.clone() })
}
