//! The group coordinator: classic members with cooperative assignment, and committed offsets.
//!
//! ```text
//!   Stable --join, leave, expiry--> Preparing --every member has joined (or was removed)--> Stable
//!                                                generation + 1, assignments to be fetched
//! ```
//!
//! A partition that must move is given to nobody in the round that takes it away; its former owner
//! gives it up and asks for another round.

use std::collections::{BTreeMap, BTreeSet};

use super::super::random::Random;
use crate::ports::{CommittedOffset, Membership, TaskOffset};
use crate::record::InputPartition;

#[derive(Debug, Default)]
struct Member {
    /// Static membership.
    instance: Option<String>,
    /// What it said it holds when it joined this round.
    owned: BTreeSet<i32>,
    joined: bool,
    synced: bool,
    assignment: BTreeSet<i32>,
}

/// What a member is told when it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    Stable,
    Rejoin,
    /// The round is complete: fetch the assignment.
    Sync,
    Unknown,
}

#[derive(Debug, Default)]
pub struct Group {
    pub partitions: i32,
    generation: i32,
    preparing: bool,
    /// By a script: no offsets are taken, as in a round that does not come to its end.
    pub is_closed: bool,
    /// The next assignment is drawn at random instead of kept.
    shaken: bool,
    members: BTreeMap<String, Member>,
    names: u64,
    offsets: BTreeMap<InputPartition, CommittedOffset>,
    /// Offsets of transactions without a marker yet, by producer.
    pending: BTreeMap<i64, Vec<TaskOffset>>,
}

impl Group {
    /// Joins, or joins again. Answers the member's id.
    pub fn join(
        &mut self,
        id: &str,
        instance: Option<&str>,
        owned: &BTreeSet<i32>,
        random: &mut Random,
    ) -> String {
        if self.members.contains_key(id) {
            self.prepare();
            if let Some(member) = self.members.get_mut(id) {
                member.owned.clone_from(owned);
                member.joined = true;
            }
            self.complete_if_all_joined(random);
            return id.to_owned();
        }
        self.names += 1;
        let name = format!("m{}", self.names);
        let mut member = Member { instance: instance.map(str::to_owned), joined: true, ..Member::default() };
        let same = |known: &Member| instance.is_some() && known.instance.as_deref() == instance;
        let former = self.members.iter().find(|(_, known)| same(known)).map(|(id, _)| id.clone());
        match former.and_then(|former| self.members.remove(&former)) {
            // A static member's return costs no round: it gets what it had.
            Some(former) if !self.preparing => {
                member.assignment = former.assignment;
                self.members.insert(name.clone(), member);
            }
            _ => {
                self.prepare();
                self.members.insert(name.clone(), member);
                self.complete_if_all_joined(random);
            }
        }
        name
    }

    pub fn beat(&self, id: &str) -> Beat {
        match self.members.get(id) {
            None => Beat::Unknown,
            Some(member) if self.preparing && !member.joined => Beat::Rejoin,
            Some(member) if !self.preparing && !member.synced => Beat::Sync,
            Some(_) => Beat::Stable,
        }
    }

    pub fn sync(&mut self, id: &str) -> (i32, BTreeSet<i32>) {
        match self.members.get_mut(id) {
            Some(member) => {
                member.synced = true;
                (self.generation, member.assignment.clone())
            }
            None => (-1, BTreeSet::new()),
        }
    }

    /// The member leaves, or its session ends.
    pub fn remove(&mut self, id: &str, random: &mut Random) {
        if self.members.remove(id).is_some() {
            self.prepare();
            self.complete_if_all_joined(random);
        }
    }

    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Everybody must join again, and partitions move without need.
    pub fn shake(&mut self) {
        self.prepare();
        self.shaken = true;
    }

    /// The rebalance time-out: who has not joined is removed.
    pub fn end_round(&mut self, random: &mut Random) {
        if self.preparing {
            self.members.retain(|_, member| member.joined);
            self.complete_if_all_joined(random);
        }
    }

    /// Begins a round if a partition belongs to nobody. As in Kafka, that is how a static member
    /// leaves the group when it dies after it was told to give a partition up, before it said that
    /// it has: its return costs no round, and nobody else asks for one.
    pub fn round_for_strays(&mut self) {
        let assigned = |partition| self.members.values().any(|member| member.assignment.contains(&partition));
        if !self.preparing && !self.members.is_empty() && !(0..self.partitions).all(assigned) {
            self.prepare();
        }
    }

    pub fn is_preparing(&self) -> bool {
        self.preparing
    }

    fn prepare(&mut self) {
        if !self.preparing {
            self.preparing = true;
            self.members.values_mut().for_each(|member| member.joined = false);
        }
    }

    fn complete_if_all_joined(&mut self, random: &mut Random) {
        if !self.preparing || self.members.is_empty() || self.members.values().any(|member| !member.joined) {
            return;
        }
        self.preparing = false;
        self.generation += 1;
        let names: Vec<String> = self.members.keys().cloned().collect();
        let most = (self.partitions as usize).div_ceil(names.len());
        let mut load = vec![0; names.len()];
        let shaken = std::mem::take(&mut self.shaken);
        let owner = |partition: i32, members: &BTreeMap<String, Member>| {
            names.iter().position(|name| members[name].owned.contains(&partition))
        };
        let mut target = Vec::new();
        for partition in 0..self.partitions {
            let kept = owner(partition, &self.members).filter(|&index| !shaken && load[index] < most);
            let least = (0..names.len()).min_by_key(|&index| load[index]).unwrap_or(0);
            let index = kept.unwrap_or(if shaken { random.below(names.len()) } else { least });
            load[index] += 1;
            target.push(index);
        }
        let owners: Vec<_> = (0..self.partitions).map(|partition| owner(partition, &self.members)).collect();
        for (index, name) in names.iter().enumerate() {
            let mine = |&partition: &i32| {
                let at = partition as usize;
                target[at] == index && owners[at].is_none_or(|owner| owner == index)
            };
            let assignment = (0..self.partitions).filter(mine).collect();
            if let Some(member) = self.members.get_mut(name) {
                member.synced = false;
                member.assignment = assignment;
            }
        }
    }

    /// Whether a commit that carries this membership is taken. One without any is: Kafka takes it
    /// for a producer that reads from no group.
    pub fn check(&self, membership: &Membership) -> Result<(), &'static str> {
        if membership.generation < 0 && membership.member_id.is_empty() {
            return Ok(());
        }
        if self.is_closed {
            return Err("REBALANCE_IN_PROGRESS");
        }
        if !self.members.contains_key(&membership.member_id) {
            return Err("UNKNOWN_MEMBER_ID");
        }
        if membership.generation != self.generation {
            return Err("ILLEGAL_GENERATION");
        }
        Ok(())
    }

    pub fn commit(&mut self, offsets: &[TaskOffset]) {
        for row in offsets {
            let committed = CommittedOffset { offset: row.offset, metadata: row.metadata.clone() };
            self.offsets.insert(row.partition, committed);
        }
    }

    pub fn commit_pending(&mut self, producer: i64, offsets: &[TaskOffset]) {
        self.pending.entry(producer).or_default().extend_from_slice(offsets);
    }

    pub fn mark(&mut self, producer: i64, commit: bool) {
        if let Some(offsets) = self.pending.remove(&producer)
            && commit
        {
            self.commit(&offsets);
        }
    }

    /// False while a transaction that carries this partition's offset is undecided.
    pub fn is_stable(&self, partition: InputPartition) -> bool {
        !self.pending.values().flatten().any(|row| row.partition == partition)
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn committed(&self, partition: InputPartition) -> Option<&CommittedOffset> {
        self.offsets.get(&partition)
    }

    /// An operator's tool; works on a group without members only.
    pub fn set(&mut self, partition: InputPartition, committed: Option<CommittedOffset>) {
        match committed {
            Some(committed) => drop(self.offsets.insert(partition, committed)),
            None => drop(self.offsets.remove(&partition)),
        }
    }
}
