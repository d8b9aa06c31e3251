//! Group membership as requests: join, sync, heartbeat, leave.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, ResponseKind, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::time::Timer;
use super::{Call, Core, Now, Outcome, text};
use crate::group::{self, Effects, Group, JoinRequest, Joined, Leaving, Millis, Reply, SyncRequest, Synced};
use crate::journal::Entry;

/// From this version on a new member gets its id first and joins with it (KIP-394).
const JOIN_WITH_ID: i16 = 4;
/// From this version on a leader can be told not to assign (KIP-814).
const JOIN_MAY_SKIP: i16 = 9;
/// From this version on several members can leave at once.
const LEAVE_BATCHED: i16 = 3;

impl Core {
    pub(super) fn join_group(&mut self, request: JoinGroupRequest, call: &Call<'_>) -> Outcome {
        let group_id = request.group_id.to_string();
        if let Err(error) = self.admit(&request) {
            let joined = Joined { error: error.code(), generation: -1, ..Joined::default() };
            let joined = Joined { member_id: request.member_id.to_string(), ..joined };
            return Outcome::Answer(joined_response(joined));
        }
        let join = self.join_request(request, call);
        let now_wall = call.now.wall;
        let group = self.groups.entry(group_id.clone()).or_insert_with(|| Group::new(now_wall));
        let mut effects = Effects::default();
        group.join(join, call.now.mono, &mut effects);
        self.carry_out(&group_id, effects, call.now);
        Outcome::Later
    }

    /// Bounds and plain mistakes, before anything is created.
    fn admit(&self, request: &JoinGroupRequest) -> Result<(), ResponseError> {
        if request.group_id.is_empty() {
            return Err(ResponseError::InvalidGroupId);
        }
        let session = i128::from(request.session_timeout_ms);
        let min = self.config.session_timeout_min.as_millis().cast_signed();
        let max = self.config.session_timeout_max.as_millis().cast_signed();
        if session < min || session > max {
            return Err(ResponseError::InvalidSessionTimeout);
        }
        match self.groups.get(request.group_id.as_str()) {
            Some(group) => {
                let instance = request.group_instance_id.as_deref();
                let returning = !request.member_id.is_empty() || instance.is_some_and(|i| group.knows(i));
                let full = group.size() >= self.config.group_members_max;
                if full && !returning { Err(ResponseError::GroupMaxSizeReached) } else { Ok(()) }
            }
            // An unknown group cannot have the member that the client believes to be.
            None if !request.member_id.is_empty() => Err(ResponseError::UnknownMemberId),
            None if self.groups.len() >= self.config.groups_max => {
                Err(ResponseError::CoordinatorNotAvailable)
            }
            None => Ok(()),
        }
    }

    fn join_request(&self, request: JoinGroupRequest, call: &Call<'_>) -> JoinRequest {
        let session_timeout = u64::from(request.session_timeout_ms.unsigned_abs());
        let rebalance_timeout = match request.rebalance_timeout_ms {
            // Version 0 has no such field.
            none if none < 0 => session_timeout,
            timeout => u64::from(timeout.unsigned_abs()),
        };
        let instance = request.group_instance_id.map(|instance| instance.to_string());
        let prefix = instance.as_deref().unwrap_or(call.client_id);
        let protocols = request.protocols.into_iter();
        JoinRequest {
            reply_to: call.reply_to,
            member_id: request.member_id.to_string(),
            fresh_id: format!("{prefix}-{}", Uuid::new_v4()),
            client_id: call.client_id.to_owned(),
            client_host: call.client_host.to_owned(),
            session_timeout,
            rebalance_timeout,
            protocol_type: request.protocol_type.to_string(),
            protocols: protocols.map(|p| (p.name.to_string(), detached(p.metadata))).collect(),
            id_required: call.version >= JOIN_WITH_ID,
            may_skip_assignment: call.version >= JOIN_MAY_SKIP,
            initial_delay: self.config.initial_rebalance_delay.as_millis() as Millis,
            instance,
        }
    }

    pub(super) fn sync_group(&mut self, request: SyncGroupRequest, call: &Call<'_>) -> Outcome {
        let group_id = request.group_id.to_string();
        let Some(group) = self.groups.get_mut(&group_id) else {
            let error = ResponseError::UnknownMemberId.code();
            return Outcome::Answer(synced_response(Synced { error, ..Synced::default() }));
        };
        let assignments = request.assignments.into_iter();
        let sync = SyncRequest {
            reply_to: call.reply_to,
            member_id: request.member_id.to_string(),
            instance: request.group_instance_id.map(|instance| instance.to_string()),
            generation: request.generation_id,
            protocol_type: request.protocol_type.map(|kind| kind.to_string()),
            protocol: request.protocol_name.map(|name| name.to_string()),
            assignments: assignments.map(|a| (a.member_id.to_string(), detached(a.assignment))).collect(),
        };
        let mut effects = Effects::default();
        group.sync(sync, call.now.mono, &mut effects);
        self.carry_out(&group_id, effects, call.now);
        Outcome::Later
    }

    pub(super) fn heartbeat(&mut self, request: HeartbeatRequest, call: &Call<'_>) -> HeartbeatResponse {
        let instance = request.group_instance_id.as_ref().map(|instance| instance.as_str());
        let result = match self.groups.get_mut(request.group_id.as_str()) {
            None => Err(ResponseError::UnknownMemberId),
            Some(group) => {
                group.heartbeat(&request.member_id, instance, request.generation_id, call.now.mono)
            }
        };
        HeartbeatResponse::default().with_error_code(super::code(&result))
    }

    pub(super) fn leave_group(&mut self, request: LeaveGroupRequest, call: &Call<'_>) -> LeaveGroupResponse {
        let group_id = request.group_id.to_string();
        let mut effects = Effects::default();
        let mut leave = |leaving: &Leaving| match self.groups.get_mut(&group_id) {
            None => Err(ResponseError::UnknownMemberId),
            Some(group) => group.leave(leaving, call.now.mono, &mut effects),
        };
        let response = if call.version < LEAVE_BATCHED {
            let leaving = Leaving { member_id: request.member_id.to_string(), instance: None };
            LeaveGroupResponse::default().with_error_code(super::code(&leave(&leaving)))
        } else {
            let mut answer = |member: kafka_protocol::messages::leave_group_request::MemberIdentity| {
                let instance = member.group_instance_id.as_ref().map(|instance| instance.to_string());
                let leaving = Leaving { member_id: member.member_id.to_string(), instance };
                MemberResponse::default()
                    .with_error_code(super::code(&leave(&leaving)))
                    .with_member_id(member.member_id)
                    .with_group_instance_id(member.group_instance_id)
            };
            let members = request.members.into_iter().map(&mut answer).collect();
            LeaveGroupResponse::default().with_members(members)
        };
        self.carry_out(&group_id, effects, call.now);
        response
    }

    pub(super) fn on_group_timer(&mut self, group_id: &str, timer: group::Timer, now: Now) {
        let Some(group) = self.groups.get_mut(group_id) else { return };
        let mut effects = Effects::default();
        group.on_timer(timer, now.mono, &mut effects);
        self.carry_out(group_id, effects, now);
    }

    /// Does what an operation on a group asks for.
    pub(super) fn carry_out(&mut self, group_id: &str, effects: Effects, now: Now) {
        for (at, timer) in effects.timers {
            self.timers.set(at, Timer::Group(group_id.to_owned(), timer));
        }
        if effects.changed {
            let membership = self.groups.get_mut(group_id).map(|group| {
                if group.members.is_empty() {
                    group.empty_since_ms = now.wall;
                }
                group.settled = group.membership();
                group.settled.clone()
            });
            if let Some(membership) = membership {
                // A failure is logged; members then just join again after a restart.
                let _ = self.record(&Entry::Group { group: group_id.to_owned(), membership });
            }
        }
        for (reply_to, reply) in effects.replies {
            let response = match reply {
                Reply::Join(joined) => joined_response(joined),
                Reply::Sync(synced) => synced_response(synced),
            };
            self.replies.push((reply_to, response));
        }
    }
}

/// A copy, so that what the group keeps does not keep a whole request alive.
fn detached(bytes: bytes::Bytes) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&bytes)
}

fn joined_response(joined: Joined) -> ResponseKind {
    let member = |(id, instance, metadata): (String, Option<String>, bytes::Bytes)| {
        JoinGroupResponseMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(instance.map(text))
            .with_metadata(metadata)
    };
    // Before version 7 the protocol must not be null.
    let protocol = joined.protocol.unwrap_or_default();
    ResponseKind::JoinGroup(
        JoinGroupResponse::default()
            .with_error_code(joined.error)
            .with_generation_id(joined.generation)
            .with_protocol_type(joined.protocol_type.map(text))
            .with_protocol_name(Some(StrBytes::from_string(protocol)))
            .with_leader(text(joined.leader))
            .with_skip_assignment(joined.skip_assignment)
            .with_member_id(text(joined.member_id))
            .with_members(joined.members.into_iter().map(member).collect()),
    )
}

fn synced_response(synced: Synced) -> ResponseKind {
    ResponseKind::SyncGroup(
        SyncGroupResponse::default()
            .with_error_code(synced.error)
            .with_protocol_type(synced.protocol_type.map(text))
            .with_protocol_name(synced.protocol.map(text))
            .with_assignment(synced.assignment),
    )
}
