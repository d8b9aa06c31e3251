//! Topics: created, described, changed, deleted.

use kafka_protocol::messages::alter_configs_request as replace;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request as change;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    AlterConfigsRequest, CreateTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest,
    IncrementalAlterConfigsRequest, MetadataRequest,
};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, producer::Producer};

use crate::cluster::{
    PATIENCE, admin, block_on, connect, produce, producer, read, reader, topic, unique, values, wait_until,
};
use crate::raw::{Raw, text, topic_id, topic_name};

fn create(raw: &mut Raw, topic: CreatableTopic) -> (i16, Option<String>) {
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let response = raw.call(&request, 7);
    let result = &response.topics[0];
    (result.error_code, result.error_message.as_ref().map(|message| message.to_string()))
}

fn new(name: &str) -> CreatableTopic {
    CreatableTopic::default().with_name(topic_name(name)).with_num_partitions(1).with_replication_factor(1)
}

fn config(name: &str, value: &str) -> CreatableTopicConfig {
    CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
}

/// Error and number of partitions of a topic, as version `version` of Metadata tells.
fn describe(raw: &mut Raw, name: &str, version: i16) -> (i16, usize) {
    let wanted = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
    let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
    let topic = raw.call(&request, version).topics.remove(0);
    (topic.error_code, topic.partitions.len())
}

/// Value and source of a topic's setting.
fn setting(raw: &mut Raw, topic: &str, name: &str) -> (String, i8) {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configuration_keys(Some(vec![text(name)]));
    let response = raw.call(&DescribeConfigsRequest::default().with_resources(vec![resource]), 4);
    assert_eq!(response.results[0].error_code, 0);
    let config = &response.results[0].configs[0];
    (config.value.as_ref().map(|value| value.to_string()).unwrap_or_default(), config.config_source)
}

#[test]
fn a_created_topic_is_described_in_every_version_of_metadata() {
    let name = topic("described", 3, &[]);
    let mut raw = connect();
    assert!(!topic_id(&mut raw, &name).is_nil());
    for version in 0..=12 {
        assert_eq!(describe(&mut raw, &name, version), (0, 3), "version {version}");
    }
    let by_id = MetadataRequestTopic::default().with_topic_id(topic_id(&mut raw, &name)).with_name(None);
    let response = raw.call(&MetadataRequest::default().with_topics(Some(vec![by_id])), 12);
    assert_eq!(response.topics[0].name.as_ref().map(|n| n.as_str()), Some(name.as_str()));
    let none = MetadataRequestTopic::default().with_topic_id(uuid::Uuid::from_u128(9)).with_name(None);
    let response = raw.call(&MetadataRequest::default().with_topics(Some(vec![none])), 12);
    assert_eq!(response.topics[0].error_code, 100);
}

#[test]
fn asking_for_an_unknown_topic_does_not_create_it() {
    let mut raw = connect();
    let name = unique("ghost");
    assert_eq!(describe(&mut raw, &name, 12).0, 3);
    assert_eq!(describe(&mut raw, &name, 12).0, 3);
}

#[test]
fn a_topic_is_created_once_and_only_if_all_is_legal() {
    let mut raw = connect();
    let name = topic("once", 1, &[]);
    assert_eq!(create(&mut raw, new(&name)).0, 36);
    assert_eq!(create(&mut raw, new("no/slash")).0, 17);
    assert_eq!(create(&mut raw, new("..")).0, 17);
    assert_eq!(create(&mut raw, new(&"x".repeat(250))).0, 17);
    assert_eq!(create(&mut raw, new(&unique("t")).with_num_partitions(0)).0, 37);
    assert_eq!(create(&mut raw, new(&unique("t")).with_replication_factor(3)).0, 38);
    for (key, value) in [("retention.ms", "soon"), ("cleanup.policy", "shred"), ("no.such", "1")] {
        let wrong = new(&unique("t")).with_configs(vec![config(key, value)]);
        assert_eq!(create(&mut raw, wrong).0, 40, "{key}={value}");
    }
}

#[test]
fn validation_alone_creates_nothing() {
    let mut raw = connect();
    let name = unique("dry-run");
    let request = CreateTopicsRequest::default()
        .with_topics(vec![new(&name)])
        .with_timeout_ms(10_000)
        .with_validate_only(true);
    assert_eq!(raw.call(&request, 7).topics[0].error_code, 0);
    assert_eq!(describe(&mut raw, &name, 12).0, 3);
}

#[test]
fn a_deleted_topic_is_gone_and_its_name_can_be_used_again() {
    let name = topic("reborn", 1, &[]);
    let mut raw = connect();
    let id = topic_id(&mut raw, &name);
    produce(&producer(&[]), &name, 0, &[("k", "old")]);
    let deleted = block_on(admin().delete_topics(&[&name], &AdminOptions::new())).expect("is answered");
    assert!(deleted[0].is_ok());
    wait_until("the topic is gone", || describe(&mut raw, &name, 12).0 == 3);
    let again = block_on(admin().delete_topics(&[&name], &AdminOptions::new())).expect("is answered");
    assert!(again[0].is_err());

    wait_until("the topic is created again", || create(&mut raw, new(&name)).0 == 0);
    wait_until("the topic is visible", || describe(&mut raw, &name, 12) == (0, 1));
    assert_ne!(topic_id(&mut raw, &name), id);
    produce(&producer(&[]), &name, 0, &[("k", "new")]);
    assert_eq!(values(&read(&name, 0, 0, "read_committed")), ["new"]);
}

#[test]
fn partitions_are_added_but_never_taken_away() {
    let name = topic("growing", 1, &[]);
    let admin = admin();
    let options = AdminOptions::new();
    let grow = |to| {
        let new = NewPartitions::new(&name, to);
        block_on(admin.create_partitions([&new], &options)).expect("is answered").remove(0)
    };
    assert!(grow(3).is_ok());
    assert!(grow(2).is_err());
    assert!(grow(3).is_err());
    let mut raw = connect();
    wait_until("the partitions are there", || describe(&mut raw, &name, 12) == (0, 3));
    produce(&producer(&[]), &name, 2, &[("k", "v")]);
    assert_eq!(values(&read(&name, 2, 0, "read_committed")), ["v"]);
}

#[test]
fn settings_are_described_with_their_source_and_can_be_changed() {
    let name = topic("settings", 1, &[("retention.ms", "1000000")]);
    let mut raw = connect();
    assert_eq!(setting(&mut raw, &name, "retention.ms"), ("1000000".to_owned(), 1));
    assert_eq!(setting(&mut raw, &name, "cleanup.policy"), ("delete".to_owned(), 5));
    assert_eq!(setting(&mut raw, &name, "max.message.bytes"), ("1048588".to_owned(), 5));

    let mut alter = |key: &str, operation: i8, value: Option<&str>| {
        let config = change::AlterableConfig::default()
            .with_name(text(key))
            .with_config_operation(operation)
            .with_value(value.map(text));
        let resource = change::AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(&name))
            .with_configs(vec![config]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        raw.call(&request, 1).responses[0].error_code
    };
    assert_eq!(alter("cleanup.policy", 0, Some("compact")), 0);
    assert_eq!(alter("cleanup.policy", 2, Some("delete")), 0);
    assert_eq!(alter("retention.ms", 1, None), 0);
    assert_eq!(alter("retention.ms", 0, Some("later")), 40);
    assert_eq!(alter("no.such", 0, Some("1")), 40);
    let compact_delete = ("compact,delete".to_owned(), 1);
    wait_until("it is changed", || setting(&mut raw, &name, "cleanup.policy") == compact_delete);
    wait_until("it is the default", || setting(&mut raw, &name, "retention.ms").0 == "604800000");
}

#[test]
fn replacing_settings_resets_those_not_named() {
    let name = topic("replaced", 1, &[("retention.ms", "1000000")]);
    let mut raw = connect();
    let config = replace::AlterableConfig::default()
        .with_name(text("delete.retention.ms"))
        .with_value(Some(text("5000")));
    let resource = replace::AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(&name))
        .with_configs(vec![config]);
    let request = AlterConfigsRequest::default().with_resources(vec![resource]);
    assert_eq!(raw.call(&request, 2).responses[0].error_code, 0);
    wait_until("it is set", || setting(&mut raw, &name, "delete.retention.ms").0 == "5000");
    assert_eq!(setting(&mut raw, &name, "retention.ms"), ("604800000".to_owned(), 5));
}

#[test]
fn the_cluster_is_one_node() {
    let mut raw = connect();
    let response = raw.call(&DescribeClusterRequest::default(), 1);
    assert_eq!((response.error_code, response.brokers.len()), (0, 1));
    assert!(!response.cluster_id.is_empty());
    let producer = producer(&[]);
    let cluster_id = producer.client().fetch_cluster_id(PATIENCE);
    assert_eq!(cluster_id.as_deref(), Some(response.cluster_id.as_str()));
}

#[test]
fn deleting_records_moves_the_start_of_the_log() {
    let name = topic("trimmed", 1, &[]);
    let producer = producer(&[]);
    for value in ["a", "b", "c", "d"] {
        produce(&producer, &name, 0, &[("k", value)]);
    }
    let admin = admin();
    let options = AdminOptions::new();
    let delete = |to: Offset| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, 0, to).expect("is valid");
        let answer = block_on(admin.delete_records(&list, &options)).expect("is answered");
        let elements = answer.elements();
        (elements[0].error().is_ok(), elements[0].offset())
    };
    assert_eq!(delete(Offset::Offset(2)), (true, Offset::Offset(2)));
    assert_eq!(delete(Offset::Offset(1)), (true, Offset::Offset(2)));
    assert!(!delete(Offset::Offset(9)).0);
    let watermarks = || reader("read_committed").fetch_watermarks(&name, 0, PATIENCE).expect("is answered");
    assert_eq!(watermarks(), (2, 4));
    assert_eq!(values(&read(&name, 0, 2, "read_committed")), ["c", "d"]);
    assert_eq!(delete(Offset::End), (true, Offset::Offset(4)));
    assert_eq!(watermarks(), (4, 4));
    produce(&producer, &name, 0, &[("k", "e")]);
    assert_eq!(values(&read(&name, 0, 4, "read_committed")), ["e"]);
}
