//! Who is there and what exists: Metadata, DescribeCluster, FindCoordinator, DescribeLogDirs.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, DescribeClusterResponse, DescribeLogDirsRequest, DescribeLogDirsResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::topics::Topic;
use super::{Call, Core, NODE_ID, text};

/// From this version of FindCoordinator on, several keys are asked for at once.
const FIND_COORDINATOR_BATCHED: i16 = 4;

impl Core {
    pub(super) fn metadata(&mut self, request: MetadataRequest, call: &Call<'_>) -> MetadataResponse {
        // Version 0 has no null: there an empty list stands for all topics.
        let all = match &request.topics {
            None => true,
            Some(topics) => call.version == 0 && topics.is_empty(),
        };
        let topics = if all {
            self.topics.iter().map(|(id, topic)| describe(id, topic)).collect()
        } else {
            let may_create =
                self.config.auto_create_topics && (request.allow_auto_topic_creation || call.version < 4);
            let wanted = request.topics.unwrap_or_default();
            wanted.into_iter().map(|topic| self.describe_or_create(topic, may_create)).collect()
        };
        MetadataResponse::default()
            .with_brokers(vec![
                MetadataResponseBroker::default()
                    .with_node_id(BrokerId(NODE_ID))
                    .with_host(text(self.identity.host.clone()))
                    .with_port(i32::from(self.identity.port)),
            ])
            .with_cluster_id(Some(text(self.identity.cluster_id.clone())))
            .with_controller_id(BrokerId(NODE_ID))
            .with_topics(topics)
    }

    fn describe_or_create(
        &mut self,
        wanted: MetadataRequestTopic,
        may_create: bool,
    ) -> MetadataResponseTopic {
        let failed = |error: ResponseError| {
            MetadataResponseTopic::default()
                .with_error_code(error.code())
                .with_name(wanted.name.clone().or(Some(TopicName::default())))
                .with_topic_id(wanted.topic_id)
        };
        let Some(name) = &wanted.name else {
            let id = wanted.topic_id;
            return match self.topics.get(id) {
                Some(topic) => describe(id, topic),
                None => failed(ResponseError::UnknownTopicId),
            };
        };
        if self.topics.id(name).is_none() && may_create {
            let partitions = self.config.partitions_default;
            if let Err((error, _)) = self.create_topic(name, partitions, BTreeMap::new(), false) {
                return failed(error);
            }
        }
        let found = self.topics.id(name).and_then(|id| Some((id, self.topics.get(id)?)));
        match found {
            Some((id, topic)) => describe(id, topic),
            None => failed(ResponseError::UnknownTopicOrPartition),
        }
    }

    pub(super) fn describe_cluster(&self) -> DescribeClusterResponse {
        DescribeClusterResponse::default()
            .with_cluster_id(text(self.identity.cluster_id.clone()))
            .with_controller_id(BrokerId(NODE_ID))
            .with_brokers(vec![
                DescribeClusterBroker::default()
                    .with_broker_id(BrokerId(NODE_ID))
                    .with_host(text(self.identity.host.clone()))
                    .with_port(i32::from(self.identity.port)),
            ])
    }

    /// The coordinator is always this node.
    pub(super) fn find_coordinator(
        &self,
        request: FindCoordinatorRequest,
        call: &Call<'_>,
    ) -> FindCoordinatorResponse {
        // 0 is a group, 1 a transactional id; others are not known here.
        let error = match request.key_type {
            0 | 1 => 0,
            _ => ResponseError::InvalidRequest.code(),
        };
        let node = if error == 0 { NODE_ID } else { -1 };
        let port = i32::from(self.identity.port);
        if call.version < FIND_COORDINATOR_BATCHED {
            return FindCoordinatorResponse::default()
                .with_error_code(error)
                .with_node_id(BrokerId(node))
                .with_host(text(self.identity.host.clone()))
                .with_port(port);
        }
        let coordinator = |key: StrBytes| {
            Coordinator::default()
                .with_key(key)
                .with_error_code(error)
                .with_node_id(BrokerId(node))
                .with_host(text(self.identity.host.clone()))
                .with_port(port)
        };
        let coordinators = request.coordinator_keys.into_iter().map(coordinator).collect();
        FindCoordinatorResponse::default().with_coordinators(coordinators)
    }

    pub(super) fn describe_log_dirs(&self, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
        let wanted = |name: &str| match &request.topics {
            None => true,
            Some(topics) => topics.iter().any(|topic| topic.topic.as_str() == name),
        };
        let sizes = |topic: &Topic| {
            let partition = |(index, log): (usize, &crate::log::Log)| {
                DescribeLogDirsPartition::default()
                    .with_partition_index(index as i32)
                    .with_partition_size(log.size() as i64)
            };
            DescribeLogDirsTopic::default()
                .with_name(TopicName(text(topic.name.clone())))
                .with_partitions(topic.partitions.iter().enumerate().map(partition).collect())
        };
        let topics = self.topics.iter().filter(|(_, topic)| wanted(&topic.name));
        let directory = self.config.data_dir.as_ref();
        let name = directory.map_or_else(|| "memory".to_owned(), |path| path.display().to_string());
        let result = DescribeLogDirsResult::default()
            .with_log_dir(text(name))
            .with_topics(topics.map(|(_, topic)| sizes(topic)).collect());
        DescribeLogDirsResponse::default().with_results(vec![result])
    }
}

fn describe(id: Uuid, topic: &Topic) -> MetadataResponseTopic {
    let partition = |index: usize| {
        MetadataResponsePartition::default()
            .with_partition_index(index as i32)
            .with_leader_id(BrokerId(NODE_ID))
            .with_leader_epoch(0)
            .with_replica_nodes(vec![BrokerId(NODE_ID)])
            .with_isr_nodes(vec![BrokerId(NODE_ID)])
    };
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(topic.name.clone()))))
        .with_topic_id(id)
        .with_partitions((0..topic.partitions.len()).map(partition).collect())
}
