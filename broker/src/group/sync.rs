//! The second half of a rebalance: the leader's assignment is handed out.

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Effects, Group, Millis, Reply, ReplyTo, State, Synced};

/// A request for one's assignment, which the leader's brings along for everyone.
#[derive(Debug, Clone)]
pub struct SyncRequest {
    /// Where to answer.
    pub reply_to: ReplyTo,
    /// Who asks.
    pub member_id: String,
    /// For a static member.
    pub instance: Option<String>,
    /// The generation it joined.
    pub generation: i32,
    /// Kind of group; checked if given.
    pub protocol_type: Option<String>,
    /// Strategy; checked if given.
    pub protocol: Option<String>,
    /// Member id and assignment, from the leader.
    pub assignments: Vec<(String, Bytes)>,
}

impl Group {
    /// Handles a sync. The answer may come at once or when the leader has synced.
    pub fn sync(&mut self, request: SyncRequest, now: Millis, effects: &mut Effects) {
        if let Err(error) = self.validate_sync(&request) {
            let synced = Synced { error: error.code(), ..Synced::default() };
            effects.replies.push((request.reply_to, Reply::Sync(synced)));
            return;
        }
        self.pending_sync.remove(&request.member_id);
        self.touch(&request.member_id, now);
        if let Some(member) = self.members.get_mut(&request.member_id) {
            member.syncing = Some(request.reply_to);
        }
        let from_leader = self.leader.as_deref() == Some(&request.member_id);
        if self.state == State::Completing && from_leader {
            for member in self.members.values_mut() {
                let given = request.assignments.iter().find(|(id, _)| *id == member.id);
                member.assignment = given.map(|(_, a)| a.clone()).unwrap_or_default();
            }
            self.state = State::Stable;
            effects.changed = true;
        }
        if self.state == State::Stable {
            self.answer_synced(now, effects);
        }
    }

    fn validate_sync(&self, request: &SyncRequest) -> Result<(), ResponseError> {
        self.validate_member(&request.member_id, request.instance.as_deref())?;
        if request.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let differs = |given: &Option<String>, ours: &Option<String>| given.is_some() && given != ours;
        if differs(&request.protocol_type, &self.protocol_type) || differs(&request.protocol, &self.protocol)
        {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        match self.state {
            State::Empty => Err(ResponseError::UnknownMemberId),
            State::Preparing => Err(ResponseError::RebalanceInProgress),
            State::Completing | State::Stable => Ok(()),
        }
    }

    fn answer_synced(&mut self, now: Millis, effects: &mut Effects) {
        for member in self.members.values_mut() {
            if let Some(reply_to) = member.syncing.take() {
                member.expires_at = now + member.session_timeout;
                let synced = Synced {
                    error: 0,
                    protocol_type: self.protocol_type.clone(),
                    protocol: self.protocol.clone(),
                    assignment: member.assignment.clone(),
                };
                effects.replies.push((reply_to, Reply::Sync(synced)));
            }
        }
    }
}
