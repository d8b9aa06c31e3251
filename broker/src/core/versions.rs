//! The API versions this broker speaks. What is not listed is refused.
//!
//! Where the upper end is below Kafka's own, the note says why.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, ResponseKind, api_versions_response::ApiVersion,
};

/// Lowest and highest version of each API.
static TABLE: [(ApiKey, i16, i16); 34] = [
    // 12 and 13 belong to the second part of KIP-890, which needs a cluster feature.
    (ApiKey::Produce, 3, 11),
    // 17 and later concern replicas.
    (ApiKey::Fetch, 4, 16),
    // 9 and later ask for tiered storage.
    (ApiKey::ListOffsets, 1, 8),
    (ApiKey::Metadata, 0, 12),
    (ApiKey::OffsetCommit, 2, 9),
    (ApiKey::OffsetFetch, 1, 9),
    // 6 is about share groups.
    (ApiKey::FindCoordinator, 0, 5),
    (ApiKey::JoinGroup, 0, 9),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 5),
    (ApiKey::SyncGroup, 0, 5),
    (ApiKey::DescribeGroups, 0, 6),
    (ApiKey::ListGroups, 0, 5),
    (ApiKey::ApiVersions, 0, 4),
    (ApiKey::CreateTopics, 2, 7),
    (ApiKey::DeleteTopics, 1, 6),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 5),
    (ApiKey::OffsetForLeaderEpoch, 2, 4),
    // 4 and later are for brokers.
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::AddOffsetsToTxn, 0, 4),
    // 5 belongs to the second part of KIP-890, here and for TxnOffsetCommit.
    (ApiKey::EndTxn, 0, 4),
    (ApiKey::TxnOffsetCommit, 0, 4),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::AlterConfigs, 0, 2),
    (ApiKey::DescribeLogDirs, 1, 4),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::OffsetDelete, 0, 0),
    (ApiKey::DescribeCluster, 0, 1),
    (ApiKey::DescribeProducers, 0, 0),
    (ApiKey::DescribeTransactions, 0, 0),
    (ApiKey::ListTransactions, 0, 1),
];

/// Whether a request of this version is served.
pub fn supported(key: ApiKey, version: i16) -> bool {
    TABLE.iter().any(|(k, min, max)| *k == key && (*min..=*max).contains(&version))
}

/// Answers ApiVersions.
pub fn answer(_request: &ApiVersionsRequest) -> ResponseKind {
    ResponseKind::ApiVersions(response())
}

/// The answer to a version of ApiVersions that is not known: the client falls back to what the
/// table says. It is always encoded as version 0.
pub fn fallback() -> ResponseKind {
    ResponseKind::ApiVersions(response().with_error_code(ResponseError::UnsupportedVersion.code()))
}

fn response() -> ApiVersionsResponse {
    let describe = |(key, min, max): &(ApiKey, i16, i16)| {
        // librdkafka compresses only if Produce starts at 0; Kafka 4 says so too and refuses
        // versions below 3 when they are used (KAFKA-18659).
        let min = if *key == ApiKey::Produce { 0 } else { *min };
        ApiVersion::default().with_api_key(*key as i16).with_min_version(min).with_max_version(*max)
    };
    ApiVersionsResponse::default().with_api_keys(TABLE.iter().map(describe).collect())
}
