//! Groups as an operator sees them: list, describe, delete, delete offsets.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId,
    ListGroupsRequest, ListGroupsResponse, OffsetDeleteRequest, OffsetDeleteResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{Call, Core, text};
use crate::group::{Group, Member, State};
use crate::journal::Entry;

/// From this version on an unknown group is an error and not a dead group.
const DESCRIBE_NOT_FOUND: i16 = 6;

impl Core {
    pub(super) fn list_groups(&self, request: ListGroupsRequest) -> ListGroupsResponse {
        let allows = |filter: &[StrBytes], value: &str| {
            filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
        };
        let wanted = |group: &Group| {
            allows(&request.states_filter, group.state.name()) && allows(&request.types_filter, "classic")
        };
        let describe = |(id, group): (&String, &Group)| {
            ListedGroup::default()
                .with_group_id(GroupId(text(id.clone())))
                .with_protocol_type(text(group.protocol_type.clone().unwrap_or_default()))
                .with_group_state(text(group.state.name()))
                .with_group_type(text("classic"))
        };
        let groups = self.groups.iter().filter(|(_, group)| wanted(group)).map(describe).collect();
        ListGroupsResponse::default().with_groups(groups)
    }

    pub(super) fn describe_groups(
        &self,
        request: DescribeGroupsRequest,
        call: &Call<'_>,
    ) -> DescribeGroupsResponse {
        let describe = |id: GroupId| match self.groups.get(id.as_str()) {
            Some(group) => describe_group(id, group),
            None if call.version >= DESCRIBE_NOT_FOUND => DescribedGroup::default()
                .with_error_message(Some(text(format!("Group {} not found.", id.as_str()))))
                .with_error_code(ResponseError::GroupIdNotFound.code())
                .with_group_id(id)
                .with_group_state(text("Dead")),
            None => DescribedGroup::default().with_group_id(id).with_group_state(text("Dead")),
        };
        let groups = request.groups.into_iter().map(describe).collect();
        DescribeGroupsResponse::default().with_groups(groups)
    }

    pub(super) fn delete_groups(&mut self, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
        let mut results = Vec::with_capacity(request.groups_names.len());
        for group_id in request.groups_names {
            let result = self.delete_group(&group_id);
            let code = super::code(&result);
            results.push(DeletableGroupResult::default().with_group_id(group_id).with_error_code(code));
        }
        DeleteGroupsResponse::default().with_results(results)
    }

    fn delete_group(&mut self, group_id: &str) -> Result<(), ResponseError> {
        let group = self.groups.get(group_id).ok_or(ResponseError::GroupIdNotFound)?;
        if group.state != State::Empty {
            return Err(ResponseError::NonEmptyGroup);
        }
        self.record(&Entry::GroupDeleted { group: group_id.to_owned() })?;
        self.groups.remove(group_id);
        Ok(())
    }

    pub(super) fn offset_delete(&mut self, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
        let Some(group) = self.groups.get(request.group_id.as_str()) else {
            let error = ResponseError::GroupIdNotFound.code();
            return OffsetDeleteResponse::default().with_error_code(error);
        };
        let mut gone = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let subscribed = group.members.values().any(|member| subscribes(group, member, &topic.name));
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let index = partition.partition_index;
                let error = if subscribed {
                    ResponseError::GroupSubscribedToTopic.code()
                } else if self.topics.find(&topic.name, index).is_none() {
                    ResponseError::UnknownTopicOrPartition.code()
                } else {
                    gone.push((topic.name.to_string(), index));
                    0
                };
                let answer = OffsetDeleteResponsePartition::default();
                partitions.push(answer.with_partition_index(index).with_error_code(error));
            }
            let answer = OffsetDeleteResponseTopic::default().with_name(topic.name.clone());
            topics.push(answer.with_partitions(partitions));
        }
        let group_id = request.group_id.to_string();
        let entry = Entry::OffsetsDeleted { group: group_id.clone(), partitions: gone.clone() };
        if let Err(error) = self.record(&entry) {
            return OffsetDeleteResponse::default().with_error_code(error.code());
        }
        if let Some(group) = self.groups.get_mut(&group_id) {
            for (topic, partition) in &gone {
                group.offsets.delete(topic, *partition);
            }
        }
        OffsetDeleteResponse::default().with_topics(topics)
    }
}

fn describe_group(id: GroupId, group: &Group) -> DescribedGroup {
    let stable = group.state == State::Stable;
    let protocol = group.protocol.clone().filter(|_| stable).unwrap_or_default();
    let describe = |member: &Member| {
        let described = DescribedGroupMember::default()
            .with_member_id(text(member.id.clone()))
            .with_group_instance_id(member.instance.clone().map(text))
            .with_client_id(text(member.client_id.clone()))
            .with_client_host(text(member.client_host.clone()));
        match stable {
            true => described
                .with_member_metadata(member.metadata(&protocol))
                .with_member_assignment(member.assignment.clone()),
            false => described,
        }
    };
    DescribedGroup::default()
        .with_group_id(id)
        .with_group_state(text(group.state.name()))
        .with_protocol_type(text(group.protocol_type.clone().unwrap_or_default()))
        .with_members(group.members.values().map(describe).collect())
        .with_protocol_data(text(protocol))
}

/// Whether a consumer's metadata names a topic: {version i16, count i32, names...}. The bytes come
/// from a client, so anything unexpected just counts as no.
fn subscribes(group: &Group, member: &Member, topic: &str) -> bool {
    let metadata = member.metadata(group.protocol.as_deref().unwrap_or_default());
    let mut bytes = metadata.get(2..).unwrap_or_default();
    let mut take = |length: usize| {
        let (head, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        Some(head)
    };
    let Some(count) = take(4).and_then(|b| b.try_into().ok()).map(i32::from_be_bytes) else {
        return false;
    };
    for _ in 0..count {
        let length = take(2).and_then(|b| b.try_into().ok()).map(i16::from_be_bytes);
        let Some(name) = length.and_then(|length| take(usize::try_from(length).ok()?)) else {
            return false;
        };
        if name == topic.as_bytes() {
            return true;
        }
    }
    false
}
