//! What a transaction adds to the records of a commit: its coordinator hears of every partition before that is written to,
//! the group's offsets are a part of it, and the coordinator decides.

use std::collections::BTreeMap;
use std::time::Duration;

use super::answers::Trouble;
use super::batches::Place;
use super::cluster::Cluster;
use super::coordinator::{Coordinator, Offset};
use super::patience::Deadline;
use crate::kafka::epochs::Epochs;
use crate::ports::{Membership, TaskOffset};

pub(super) struct Transaction {
    pub coordinator: Coordinator,
    /// Topics of the inputs in the manifest's order.
    inputs: Vec<String>,
    epochs: Epochs,
    /// Of all before its end: its coordinator gives it no more time either.
    pub until: Deadline,
}

impl Transaction {
    /// Offsets are committed with the leader epochs that `epochs` knows.
    pub fn new(id: &str, timeout: Duration, inputs: Vec<String>, epochs: Epochs) -> Transaction {
        let coordinator = Coordinator::new(id, timeout);
        Transaction { coordinator, inputs, epochs, until: Deadline::after(Duration::ZERO) }
    }

    /// Refuses when the membership could not fence, or when there is nothing to fence with.
    pub fn check(offsets: &[TaskOffset], membership: &Membership) -> Result<(), Trouble> {
        if !membership.is_valid() {
            return Err(Trouble::Generation("this worker is not a member of its group".to_owned()));
        }
        if offsets.is_empty() {
            return Err(Trouble::Unknown("a commit without offsets would not be fenced".to_owned()));
        }
        Ok(())
    }

    /// Has the coordinator know of these.
    pub fn add_partitions(
        &mut self,
        cluster: &mut Cluster,
        places: &[Place],
        until: Deadline,
    ) -> Result<(), Trouble> {
        let mut topics: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for place in places {
            let partition = i32::try_from(place.partition).unwrap_or(i32::MAX);
            topics.entry(place.topic).or_default().push(partition);
        }
        let named = |(topic, partitions)| (cluster.leaders.name(topic), partitions);
        let topics = topics.into_iter().map(named).collect();
        self.coordinator.add_partitions(cluster, topics, until)
    }

    /// Commits offsets with the transaction, which the group's are a part of.
    pub fn commit_offsets(
        &mut self,
        cluster: &mut Cluster,
        offsets: &[TaskOffset],
        membership: &Membership,
        until: Deadline,
    ) -> Result<(), Trouble> {
        let mut list = Vec::with_capacity(offsets.len());
        for row in offsets {
            let (input, partition) = (usize::from(row.partition.input), row.partition.partition);
            let Some(topic) = self.inputs.get(input).map(String::as_str) else {
                return Err(Trouble::Unknown(format!("the deployment has no input {input}")));
            };
            let offset = row.offset.0 as i64;
            let leader_epoch = self.epochs.before(topic, partition, offset);
            list.push(Offset { topic, partition, offset, leader_epoch, metadata: &row.metadata });
        }
        self.coordinator.commit_offsets(cluster, membership, &list, until)
    }

    /// One of which no broker has heard is committed as it is.
    pub fn commit(&mut self, cluster: &mut Cluster, until: Deadline) -> Result<(), Trouble> {
        match self.coordinator.has_begun() {
            true => self.coordinator.commit(cluster, until),
            false => Ok(()),
        }
    }
}
