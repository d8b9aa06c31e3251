//! Staying and leaving: heartbeats, sessions that end, members that say goodbye.

use kafka_protocol::ResponseError;

use super::{Effects, Group, Millis, State, Timer};

/// A member that leaves; an operator may name a static one by its instance alone.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// Empty if only the instance is known.
    pub member_id: String,
    /// For a static member.
    pub instance: Option<String>,
}

impl Group {
    /// Handles a heartbeat.
    pub fn heartbeat(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
        now: Millis,
    ) -> Result<(), ResponseError> {
        if self.state == State::Empty {
            return Err(ResponseError::UnknownMemberId);
        }
        self.validate_member(member_id, instance)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        self.touch(member_id, now);
        match self.state {
            State::Preparing => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// The member has shown that it is alive.
    pub fn touch(&mut self, member_id: &str, now: Millis) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.expires_at = now + member.session_timeout;
        }
    }

    /// Handles a member that leaves.
    pub fn leave(
        &mut self,
        leaving: &Leaving,
        now: Millis,
        effects: &mut Effects,
    ) -> Result<(), ResponseError> {
        let member_id = match &leaving.instance {
            None => leaving.member_id.clone(),
            Some(instance) => match self.instances.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(current) if !leaving.member_id.is_empty() && *current != leaving.member_id => {
                    return Err(ResponseError::FencedInstanceId);
                }
                Some(current) => current.clone(),
            },
        };
        if self.pending_members.remove(&member_id).is_some() {
            if self.state == State::Preparing {
                self.try_complete_join(now, effects);
            }
            return Ok(());
        }
        if !self.members.contains_key(&member_id) {
            return Err(ResponseError::UnknownMemberId);
        }
        self.remove_member(&member_id, now, effects);
        Ok(())
    }

    /// Carries out a timer. Timers are never cancelled: a stale one finds nothing to do.
    pub fn on_timer(&mut self, timer: Timer, now: Millis, effects: &mut Effects) {
        match timer {
            Timer::Session(id) => self.on_session(id, now, effects),
            Timer::PendingMember(id) => {
                let unused = self.pending_members.get(&id).is_some_and(|until| now >= *until);
                if unused {
                    self.pending_members.remove(&id);
                    if self.state == State::Preparing {
                        self.try_complete_join(now, effects);
                    }
                }
            }
            Timer::Join => self.on_join_timer(now, effects),
            Timer::Sync(generation) => {
                let current = generation == self.generation;
                let synced = matches!(self.state, State::Completing | State::Stable);
                if current && synced && !self.pending_sync.is_empty() {
                    for id in std::mem::take(&mut self.pending_sync) {
                        self.forget(&id);
                    }
                    self.prepare_rebalance(0, now, effects);
                }
            }
        }
    }

    fn on_session(&mut self, id: String, now: Millis, effects: &mut Effects) {
        let Some(member) = self.members.get(&id) else { return };
        if member.waits() {
            effects.timers.push((now + member.session_timeout, Timer::Session(id)));
        } else if member.expires_at > now {
            effects.timers.push((member.expires_at, Timer::Session(id)));
        } else {
            tracing::info!(member = %id, "session timed out");
            self.remove_member(&id, now, effects);
        }
    }

    fn remove_member(&mut self, id: &str, now: Millis, effects: &mut Effects) {
        self.forget(id);
        match self.state {
            State::Empty => {}
            State::Preparing => self.try_complete_join(now, effects),
            State::Completing | State::Stable => self.prepare_rebalance(0, now, effects),
        }
    }

    /// Takes a member out of every table. The caller decides what follows.
    pub(super) fn forget(&mut self, id: &str) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(instance) = member.instance {
            self.instances.remove(&instance);
        }
        self.pending_sync.remove(id);
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }
}
