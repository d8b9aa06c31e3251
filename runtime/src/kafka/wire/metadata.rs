//! What every client of brokers asks of the cluster: who its brokers are, and who leads what of some topics.

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::{MetadataRequest, TopicName};

use super::Address;

/// Of these topics, none of which is made by asking.
pub(in crate::kafka) fn request(topics: impl Iterator<Item = TopicName>) -> MetadataRequest {
    let named = |name| MetadataRequestTopic::default().with_name(Some(name));
    MetadataRequest::default()
        .with_topics(Some(topics.map(named).collect()))
        .with_allow_auto_topic_creation(false)
}

/// Where brokers listen, by their ids.
pub(in crate::kafka) fn addresses(
    brokers: Vec<MetadataResponseBroker>,
) -> impl Iterator<Item = (i32, Address)> {
    brokers.into_iter().filter_map(|broker| {
        let port = u16::try_from(broker.port).ok()?;
        Some((broker.node_id.0, Address { host: broker.host.to_string(), port }))
    })
}
