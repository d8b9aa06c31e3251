//! The first half of a rebalance: members join until all are there or time is up.

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Effects, Group, Joined, Member, Millis, Reply, ReplyTo, State, Synced, Timer};

/// A member that has just joined and never sent a heartbeat is given this long to appear again.
const NEW_MEMBER_TIMEOUT: Millis = 5 * 60 * 1000;

/// A request to join.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// Where to answer.
    pub reply_to: ReplyTo,
    /// Empty for a new member.
    pub member_id: String,
    /// Id for a member without one; only used if one is needed.
    pub fresh_id: String,
    /// For a static member.
    pub instance: Option<String>,
    /// The client's name for itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// How long it may be silent.
    pub session_timeout: Millis,
    /// How long a rebalance waits for it.
    pub rebalance_timeout: Millis,
    /// Kind of group.
    pub protocol_type: String,
    /// Strategies with metadata, best first.
    pub protocols: Vec<(String, Bytes)>,
    /// The client knows that it has to come back with the id it is given (KIP-394).
    pub id_required: bool,
    /// The client knows `skip_assignment` (KIP-814).
    pub may_skip_assignment: bool,
    /// How long the group's first rebalance waits.
    pub initial_delay: Millis,
}

impl Group {
    /// Handles a join. The answer may come at once or when the rebalance completes.
    pub fn join(&mut self, request: JoinRequest, now: Millis, effects: &mut Effects) {
        if !self.supports(&request) {
            return reject(&request, ResponseError::InconsistentGroupProtocol, effects);
        }
        if !request.member_id.is_empty() {
            return self.join_known(request, now, effects);
        }
        let existing = request.instance.as_ref().and_then(|i| self.instances.get(i)).cloned();
        match existing {
            Some(old_id) => self.replace_static(&old_id, request, now, effects),
            None if request.instance.is_none() && request.id_required => {
                let id = request.fresh_id.clone();
                let until = now + request.session_timeout;
                self.pending_members.insert(id.clone(), until);
                effects.timers.push((until, Timer::PendingMember(id.clone())));
                let error = ResponseError::MemberIdRequired.code();
                let joined = Joined { error, generation: -1, member_id: id, ..Joined::default() };
                effects.replies.push((request.reply_to, Reply::Join(joined)));
            }
            None => {
                let id = request.fresh_id.clone();
                self.add_member(id, request, now, effects);
            }
        }
    }

    /// Whether the group's members would still have a strategy in common.
    fn supports(&self, request: &JoinRequest) -> bool {
        if self.members.is_empty() {
            return !request.protocol_type.is_empty() && !request.protocols.is_empty();
        }
        let offered_by_all = |(name, _): &(String, Bytes)| {
            let mut others = self.members.values().filter(|member| member.id != request.member_id);
            others.all(|member| member.protocols.iter().any(|(offered, _)| offered == name))
        };
        self.protocol_type.as_ref() == Some(&request.protocol_type)
            && request.protocols.iter().any(offered_by_all)
    }

    fn join_known(&mut self, request: JoinRequest, now: Millis, effects: &mut Effects) {
        let id = request.member_id.clone();
        if self.pending_members.remove(&id).is_some() {
            return self.add_member(id, request, now, effects);
        }
        if let Err(error) = self.validate_member(&id, request.instance.as_deref()) {
            return reject(&request, error, effects);
        }
        let is_leader = self.leader.as_deref() == Some(&id);
        let unchanged = self.members.get(&id).is_some_and(|member| member.protocols == request.protocols);
        match self.state {
            State::Empty => reject(&request, ResponseError::UnknownMemberId, effects),
            // The answer got lost, or a follower asks out of turn: tell it what it knows.
            State::Completing if unchanged => self.repeat_joined(&request, now, effects),
            State::Stable if unchanged && !is_leader => self.repeat_joined(&request, now, effects),
            State::Preparing => {
                self.update_member(&id, request, now);
                self.try_complete_join(now, effects);
            }
            State::Completing | State::Stable => {
                self.update_member(&id, request, now);
                self.prepare_rebalance(0, now, effects);
            }
        }
    }

    fn repeat_joined(&mut self, request: &JoinRequest, now: Millis, effects: &mut Effects) {
        self.touch(&request.member_id, now);
        let joined = self.joined(&request.member_id);
        effects.replies.push((request.reply_to, Reply::Join(joined)));
    }

    fn add_member(&mut self, id: String, request: JoinRequest, now: Millis, effects: &mut Effects) {
        if let Some(instance) = &request.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        self.protocol_type.get_or_insert_with(|| request.protocol_type.clone());
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.clone());
        }
        self.leader.get_or_insert_with(|| id.clone());
        let initial_delay = request.initial_delay;
        let member = Member {
            id: id.clone(),
            instance: request.instance,
            client_id: request.client_id,
            client_host: request.client_host,
            protocols: request.protocols,
            assignment: Bytes::new(),
            session_timeout: request.session_timeout,
            rebalance_timeout: request.rebalance_timeout,
            expires_at: now + NEW_MEMBER_TIMEOUT,
            joining: Some(request.reply_to),
            syncing: None,
        };
        effects.timers.push((now + member.session_timeout, Timer::Session(id.clone())));
        self.members.insert(id, member);
        match self.state {
            State::Preparing => self.try_complete_join(now, effects),
            State::Empty => self.prepare_rebalance(initial_delay, now, effects),
            State::Completing | State::Stable => self.prepare_rebalance(0, now, effects),
        }
    }

    fn update_member(&mut self, id: &str, request: JoinRequest, now: Millis) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.protocols = request.protocols;
        member.session_timeout = request.session_timeout;
        member.rebalance_timeout = request.rebalance_timeout;
        member.client_id = request.client_id;
        member.client_host = request.client_host;
        member.joining = Some(request.reply_to);
        member.expires_at = now + member.session_timeout;
    }

    /// A static member is back under a new member id: the old id is fenced, and in a stable group
    /// the assignment stays, so that a restart costs no rebalance.
    fn replace_static(&mut self, old_id: &str, request: JoinRequest, now: Millis, effects: &mut Effects) {
        let Some(mut member) = self.members.remove(old_id) else { return };
        let former_leader = self.leader.clone().unwrap_or_default();
        let new_id = request.fresh_id.clone();
        fence(&mut member, effects);
        member.id = new_id.clone();
        if let Some(instance) = &request.instance {
            self.instances.insert(instance.clone(), new_id.clone());
        }
        if self.leader.as_deref() == Some(old_id) {
            self.leader = Some(new_id.clone());
        }
        if self.pending_sync.remove(old_id) {
            self.pending_sync.insert(new_id.clone());
        }
        effects.timers.push((now + request.session_timeout, Timer::Session(new_id.clone())));
        self.members.insert(new_id.clone(), member);
        let (reply_to, may_skip) = (request.reply_to, request.may_skip_assignment);
        self.update_member(&new_id, request, now);

        let same_protocol = self.protocol.is_some() && self.select_protocol() == self.protocol;
        match self.state {
            State::Stable if same_protocol => {
                if let Some(member) = self.members.get_mut(&new_id) {
                    member.joining = None;
                }
                let mut joined = self.joined(&new_id);
                joined.skip_assignment = may_skip && joined.leader == new_id;
                if !may_skip {
                    // An old client that believes itself the leader would assign to no effect:
                    // naming the former id keeps it a follower.
                    joined.leader = former_leader;
                    joined.members.clear();
                }
                effects.replies.push((reply_to, Reply::Join(joined)));
                effects.changed = true;
            }
            State::Preparing => self.try_complete_join(now, effects),
            _ => self.prepare_rebalance(0, now, effects),
        }
    }

    /// Starts a rebalance: everyone has to join again.
    pub(super) fn prepare_rebalance(&mut self, delay: Millis, now: Millis, effects: &mut Effects) {
        for member in self.members.values_mut() {
            if let Some(reply_to) = member.syncing.take() {
                let error = ResponseError::RebalanceInProgress.code();
                let synced = Synced { error, ..Synced::default() };
                effects.replies.push((reply_to, Reply::Sync(synced)));
                member.expires_at = now + member.session_timeout;
            }
        }
        self.pending_sync.clear();
        self.state = State::Preparing;
        self.initial_until = now + delay;
        let longest = self.members.values().map(|member| member.rebalance_timeout).max();
        self.join_deadline = now + longest.unwrap_or(0).max(delay);
        effects.timers.push((if delay > 0 { self.initial_until } else { self.join_deadline }, Timer::Join));
        self.try_complete_join(now, effects);
    }

    /// Completes the rebalance if everyone is there.
    pub(super) fn try_complete_join(&mut self, now: Millis, effects: &mut Effects) {
        let all_joined = self.members.values().all(|member| member.joining.is_some());
        if all_joined && self.pending_members.is_empty() && now >= self.initial_until {
            self.complete_join(now, effects);
        }
    }

    /// The rebalance has waited long enough, or its initial delay is over.
    pub(super) fn on_join_timer(&mut self, now: Millis, effects: &mut Effects) {
        if self.state != State::Preparing {
            return;
        }
        if now >= self.join_deadline {
            self.complete_join(now, effects);
        } else if now >= self.initial_until {
            effects.timers.push((self.join_deadline, Timer::Join));
            self.try_complete_join(now, effects);
        }
    }

    fn complete_join(&mut self, now: Millis, effects: &mut Effects) {
        // Who has not come back is out; a static member keeps its place until its session ends.
        let absent = |member: &Member| member.joining.is_none() && member.instance.is_none();
        let gone: Vec<String> =
            self.members.values().filter(|member| absent(member)).map(|m| m.id.clone()).collect();
        for id in gone {
            self.forget(&id);
        }
        let joined = |member: &&Member| member.joining.is_some();
        if !self.members.is_empty() && !self.members.values().any(|member| joined(&member)) {
            self.join_deadline = now + self.longest_rebalance();
            effects.timers.push((self.join_deadline, Timer::Join));
            return;
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        effects.changed = true;
        if self.members.is_empty() {
            self.state = State::Empty;
            self.protocol = None;
            self.leader = None;
            return;
        }
        let leader_is_here =
            self.leader.as_ref().and_then(|id| self.members.get(id)).is_some_and(|m| joined(&m));
        if !leader_is_here {
            self.leader = self.members.values().find(joined).map(|member| member.id.clone());
        }
        self.state = State::Completing;
        self.protocol = self.select_protocol();
        self.pending_sync = self.members.keys().cloned().collect();
        let deadline = now + self.longest_rebalance();
        effects.timers.push((deadline, Timer::Sync(self.generation)));
        // Nothing to persist before there are assignments.
        effects.changed = false;
        self.answer_joined(now, effects);
    }

    fn answer_joined(&mut self, now: Millis, effects: &mut Effects) {
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else { continue };
            if let Some(reply_to) = member.joining.take() {
                member.expires_at = now + member.session_timeout;
                effects.replies.push((reply_to, Reply::Join(joined)));
            }
        }
    }

    fn longest_rebalance(&self) -> Millis {
        self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or(0)
    }

    /// The strategy that all members offer and most of them like best.
    fn select_protocol(&self) -> Option<String> {
        let common =
            |name: &str| self.members.values().all(|member| member.protocols.iter().any(|(n, _)| n == name));
        let mut votes: Vec<(&str, usize)> = Vec::new();
        for member in self.members.values() {
            let Some((best, _)) = member.protocols.iter().find(|(name, _)| common(name)) else {
                continue;
            };
            match votes.iter_mut().find(|(name, _)| name == best) {
                Some((_, count)) => *count += 1,
                None => votes.push((best, 1)),
            }
        }
        votes.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name.to_owned())
    }

    /// The answer for a member of the current generation; the leader also learns of everyone.
    fn joined(&self, id: &str) -> Joined {
        let leader = self.leader.clone().unwrap_or_default();
        let protocol = self.protocol.clone().unwrap_or_default();
        let describe =
            |member: &Member| (member.id.clone(), member.instance.clone(), member.metadata(&protocol));
        let members = match leader == id {
            true => self.members.values().map(describe).collect(),
            false => Vec::new(),
        };
        Joined {
            error: 0,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader,
            member_id: id.to_owned(),
            skip_assignment: false,
            members,
        }
    }
}

/// Answers whatever a replaced member was waiting for.
fn fence(member: &mut Member, effects: &mut Effects) {
    let error = ResponseError::FencedInstanceId.code();
    if let Some(reply_to) = member.joining.take() {
        let member_id = member.id.clone();
        let joined = Joined { error, generation: -1, member_id, ..Joined::default() };
        effects.replies.push((reply_to, Reply::Join(joined)));
    }
    if let Some(reply_to) = member.syncing.take() {
        let synced = Synced { error, ..Synced::default() };
        effects.replies.push((reply_to, Reply::Sync(synced)));
    }
}

fn reject(request: &JoinRequest, error: ResponseError, effects: &mut Effects) {
    let member_id = request.member_id.clone();
    let joined = Joined { error: error.code(), generation: -1, member_id, ..Joined::default() };
    effects.replies.push((request.reply_to, Reply::Join(joined)));
}
