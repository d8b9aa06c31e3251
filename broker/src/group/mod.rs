//! One consumer group, classic protocol: who is in it, which generation, which offsets.
//!
//! Synchronous and free of I/O: every operation takes the time and leaves its consequences in
//! [`Effects`]: replies to clients that may have waited, timers to set, membership to persist.
//!
//! ```text
//!                 first member                all joined, or time-out
//!   Empty ----------------------> Preparing ---------------------------> Completing
//!     ^                            ^  |  ^                                  |   |
//!     |        all members gone    |  |  |   member joins, leaves, expires  |   | leader syncs
//!     +-------------------------------+  +----------------------------------+   v
//!                                  +----------------------------------------- Stable
//!                                        member joins, leaves, expires
//! ```

mod join;
mod offsets;
mod session;
mod sync;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

pub use join::JoinRequest;
pub use offsets::{Committed, Offsets};
pub use session::Leaving;
pub use sync::SyncRequest;

/// Milliseconds of a clock that only goes forward.
pub type Millis = u64;

/// Names a client that waits for an answer: one per connection, because a connection has at most
/// one request in progress.
pub type ReplyTo = u64;

/// See the drawing above. A group that is deleted is simply gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No members; offsets may be there.
    Empty,
    /// Members are asked to join again.
    Preparing,
    /// Members have joined; the leader computes the assignment.
    Completing,
    /// Everyone has its assignment.
    Stable,
}

impl State {
    /// The name that clients know.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::Preparing => "PreparingRebalance",
            State::Completing => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }
}

/// One member.
#[derive(Debug, Clone)]
pub struct Member {
    /// Id given by the broker.
    pub id: String,
    /// Id given by the operator, for a static member.
    pub instance: Option<String>,
    /// The client's name for itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// Assignment strategies it offers, best first, with their metadata.
    pub protocols: Vec<(String, Bytes)>,
    /// What the leader gave it.
    pub assignment: Bytes,
    session_timeout: Millis,
    rebalance_timeout: Millis,
    expires_at: Millis,
    joining: Option<ReplyTo>,
    syncing: Option<ReplyTo>,
}

impl Member {
    /// Metadata for one strategy.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    /// A member that the group waits on cannot be expected to send heartbeats.
    fn waits(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }
}

/// A group.
#[derive(Debug)]
pub struct Group {
    /// Where it is in its life.
    pub state: State,
    /// Raised by every completed rebalance.
    pub generation: i32,
    /// `consumer` for consumers; none before the first member.
    pub protocol_type: Option<String>,
    /// The chosen strategy, while there are members.
    pub protocol: Option<String>,
    /// Member that computes assignments.
    pub leader: Option<String>,
    /// Members by id.
    pub members: BTreeMap<String, Member>,
    /// Committed offsets.
    pub offsets: Offsets,
    /// When the last member left, ms since 1970; for expiry of offsets.
    pub empty_since_ms: i64,
    /// Members at the end of the last rebalance, as persisted: during one they are not settled.
    pub settled: Membership,
    /// Static members: instance id -> member id.
    instances: HashMap<String, String>,
    /// Ids handed out whose owner has not joined with them yet, and until when.
    pending_members: BTreeMap<String, Millis>,
    /// Members of this generation that have not asked for their assignment yet.
    pending_sync: BTreeSet<String>,
    /// When the rebalance in progress goes on without those that have not joined.
    join_deadline: Millis,
    /// The first rebalance of a group waits this long even if all known members are there.
    initial_until: Millis,
}

/// What can become due in a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A member's session may be over.
    Session(String),
    /// An id that was handed out may not have been used.
    PendingMember(String),
    /// A rebalance has waited long enough.
    Join,
    /// Members of this generation should all have asked for their assignment.
    Sync(i32),
}

/// Answer to a join.
#[derive(Debug, Clone, Default)]
pub struct Joined {
    /// Protocol error code, 0 for success.
    pub error: i16,
    /// The new generation, or -1.
    pub generation: i32,
    /// Kind of group.
    pub protocol_type: Option<String>,
    /// Chosen strategy.
    pub protocol: Option<String>,
    /// Member id of the leader.
    pub leader: String,
    /// Member id of the one answered.
    pub member_id: String,
    /// For a leader that came back to a stable group: do not assign anew.
    pub skip_assignment: bool,
    /// For the leader: everyone's id, instance and metadata.
    pub members: Vec<(String, Option<String>, Bytes)>,
}

/// Answer to a sync.
#[derive(Debug, Clone, Default)]
pub struct Synced {
    /// Protocol error code, 0 for success.
    pub error: i16,
    /// Kind of group.
    pub protocol_type: Option<String>,
    /// Chosen strategy.
    pub protocol: Option<String>,
    /// The member's part.
    pub assignment: Bytes,
}

/// An answer to a client that may have waited.
#[derive(Debug)]
pub enum Reply {
    /// To a join.
    Join(Joined),
    /// To a sync.
    Sync(Synced),
}

/// Consequences of an operation on a group, to be carried out by the caller.
#[derive(Debug, Default)]
pub struct Effects {
    /// Answers.
    pub replies: Vec<(ReplyTo, Reply)>,
    /// Timers to set.
    pub timers: Vec<(Millis, Timer)>,
    /// Whether members or assignments changed and are to be persisted.
    pub changed: bool,
}

/// Members and assignments as they are persisted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Membership {
    /// Generation of the group.
    pub generation: i32,
    /// Kind of group.
    pub protocol_type: Option<String>,
    /// Chosen strategy.
    pub protocol: Option<String>,
    /// Member id of the leader.
    pub leader: Option<String>,
    /// All members.
    pub members: Vec<StoredMember>,
}

/// One member as it is persisted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredMember {
    id: String,
    instance: Option<String>,
    client_id: String,
    client_host: String,
    session_timeout_ms: Millis,
    rebalance_timeout_ms: Millis,
    protocols: Vec<(String, Vec<u8>)>,
    assignment: Vec<u8>,
}

impl Group {
    /// A group without members.
    pub fn new(now_wall_ms: i64) -> Group {
        Group {
            state: State::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            offsets: Offsets::default(),
            empty_since_ms: now_wall_ms,
            settled: Membership::default(),
            instances: HashMap::new(),
            pending_members: BTreeMap::new(),
            pending_sync: BTreeSet::new(),
            join_deadline: 0,
            initial_until: 0,
        }
    }

    /// Whether nothing would be lost by forgetting the group.
    pub fn forgettable(&self) -> bool {
        self.members.is_empty() && self.pending_members.is_empty() && self.offsets.is_empty()
    }

    /// Number of members and of ids handed out.
    pub fn size(&self) -> usize {
        self.members.len() + self.pending_members.len()
    }

    /// Whether a static member of this id is in the group.
    pub fn knows(&self, instance: &str) -> bool {
        self.instances.contains_key(instance)
    }

    /// Checks that a request comes from a member; both ids must agree for a static one.
    pub fn validate_member(&self, member_id: &str, instance: Option<&str>) -> Result<(), ResponseError> {
        if let Some(instance) = instance {
            match self.instances.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(current) if current != member_id => return Err(ResponseError::FencedInstanceId),
                Some(_) => {}
            }
        }
        let known = self.members.contains_key(member_id);
        if known { Ok(()) } else { Err(ResponseError::UnknownMemberId) }
    }

    /// Whether a commit of offsets by this member of this generation counts.
    ///
    /// A generation below zero stands for a client that does not use the group's membership; it
    /// may commit while there are no members. Within a transaction old clients send neither
    /// generation nor member id, and are let through.
    pub fn validate_commit(
        &self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
        transactional: bool,
    ) -> Result<(), ResponseError> {
        if generation < 0 && self.state == State::Empty {
            return Ok(());
        }
        if generation >= 0 || !member_id.is_empty() || instance.is_some() {
            self.validate_member(member_id, instance)?;
            if generation != self.generation {
                return Err(ResponseError::IllegalGeneration);
            }
        } else if !transactional && self.state != State::Empty {
            return Err(ResponseError::UnknownMemberId);
        }
        if !transactional && self.state == State::Completing {
            return Err(ResponseError::RebalanceInProgress);
        }
        Ok(())
    }

    /// What is to be persisted of the members when [`Effects::changed`] says so.
    pub fn membership(&self) -> Membership {
        let stored = |member: &Member| StoredMember {
            id: member.id.clone(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            session_timeout_ms: member.session_timeout,
            rebalance_timeout_ms: member.rebalance_timeout,
            protocols: member.protocols.iter().map(|(n, m)| (n.clone(), m.to_vec())).collect(),
            assignment: member.assignment.to_vec(),
        };
        Membership {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.values().map(stored).collect(),
        }
    }

    /// Takes over persisted members; their sessions start anew.
    pub fn restore(&mut self, membership: Membership, now: Millis, effects: &mut Effects) {
        self.settled = membership.clone();
        self.generation = membership.generation;
        self.protocol_type = membership.protocol_type;
        self.protocol = membership.protocol;
        self.leader = membership.leader;
        self.members.clear();
        self.instances.clear();
        self.state = if membership.members.is_empty() { State::Empty } else { State::Stable };
        for stored in membership.members {
            if let Some(instance) = &stored.instance {
                self.instances.insert(instance.clone(), stored.id.clone());
            }
            let expires_at = now + stored.session_timeout_ms;
            effects.timers.push((expires_at, Timer::Session(stored.id.clone())));
            let protocols = stored.protocols.into_iter().map(|(n, m)| (n, m.into())).collect();
            let member = Member {
                id: stored.id.clone(),
                instance: stored.instance,
                client_id: stored.client_id,
                client_host: stored.client_host,
                protocols,
                assignment: stored.assignment.into(),
                session_timeout: stored.session_timeout_ms,
                rebalance_timeout: stored.rebalance_timeout_ms,
                expires_at,
                joining: None,
                syncing: None,
            };
            self.members.insert(stored.id, member);
        }
    }
}
