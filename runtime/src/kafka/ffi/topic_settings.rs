//! Admin requests about a topic's settings: what they are, and changing them one by one (KIP-339).

use std::ffi::{c_char, c_int};
use std::time::Duration;

use rd::rd_kafka_AlterConfigOpType_t as Alter;
use rd::rd_kafka_ConfigSource_t as Source;
use rd::rd_kafka_admin_op_t as Op;
use rdkafka_sys as rd;

use super::{Client, KafkaError, c_string, check, consume, text};

// The same functions as in the bindings, with codes and sources as the integers they are in C.
unsafe extern "C" {
    fn rd_kafka_ConfigResource_error(resource: *const rd::rd_kafka_ConfigResource_t) -> c_int;
    fn rd_kafka_ConfigEntry_source(entry: *const rd::rd_kafka_ConfigEntry_t) -> c_int;
}

/// One setting of a topic, as it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSetting {
    /// Kafka's name.
    pub name: String,
    pub value: String,
    /// Set for this topic, and not for every topic that does not say.
    pub own: bool,
}

/// Topics with their settings, or why those cannot be had.
pub(in crate::kafka) type SettingsByTopic = Vec<(String, Result<Vec<TopicSetting>, KafkaError>)>;

/// A setting and its next value; none = whatever counts for topics that do not say.
pub type SettingChange = (String, Option<String>);

impl Client {
    /// The settings of topics, defaults included, of each that the brokers answer for. No topic is named twice.
    pub fn describe_settings(&self, topics: &[&str], wait: Duration) -> Result<SettingsByTopic, KafkaError> {
        // SAFETY: the resources are made, used and destroyed here; what is found is read while the reply lives.
        unsafe {
            let mut resources: Vec<_> = topics.iter().map(|topic| of_topic(topic)).collect();
            let reply = self.request(Op::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, wait, |post| {
                let (resources, count) = (resources.as_mut_ptr(), resources.len());
                rd::rd_kafka_DescribeConfigs(post.rk, resources, count, post.options, post.queue);
            });
            rd::rd_kafka_ConfigResource_destroy_array(resources.as_mut_ptr(), resources.len());
            let reply = reply?;
            let found = reply.results(
                rd::rd_kafka_event_DescribeConfigs_result,
                rd::rd_kafka_DescribeConfigs_result_resources,
            );
            // In the order asked, with null for what the brokers have left out.
            let found = found.iter().filter(|resource| !resource.is_null());
            Ok(found
                .map(|&resource| (text(rd::rd_kafka_ConfigResource_name(resource)), settings(resource)))
                .collect())
        }
    }

    /// Changes settings of a topic and leaves the others alone, or with `validate_only` asks whether they could be
    /// changed.
    pub fn alter_settings(
        &self,
        topic: &str,
        changes: &[SettingChange],
        validate_only: bool,
        wait: Duration,
    ) -> Result<(), KafkaError> {
        // SAFETY: the resource is made, used and destroyed here, and copied by the request; the results are
        // read while the reply lives.
        unsafe {
            let resource = of_topic(topic);
            let added = changes.iter().try_for_each(|(name, value)| add(resource, name, value.as_deref()));
            let mut resources = [resource];
            let reply = added.and_then(|()| {
                self.request(Op::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS, wait, |post| {
                    if validate_only {
                        post.only_validate();
                    }
                    let resources = resources.as_mut_ptr();
                    rd::rd_kafka_IncrementalAlterConfigs(post.rk, resources, 1, post.options, post.queue);
                })
            });
            rd::rd_kafka_ConfigResource_destroy(resource);
            let reply = reply?;
            let found = reply.results(
                rd::rd_kafka_event_IncrementalAlterConfigs_result,
                rd::rd_kafka_IncrementalAlterConfigs_result_resources,
            );
            let Some(&changed) = found.first() else { return Ok(()) };
            match rd_kafka_ConfigResource_error(changed) {
                0 => Ok(()),
                code => Err(KafkaError {
                    text: text(rd::rd_kafka_ConfigResource_error_string(changed)),
                    ..KafkaError::from_code(code)
                }),
            }
        }
    }
}

/// For the caller to destroy.
fn of_topic(name: &str) -> *mut rd::rd_kafka_ConfigResource_t {
    let name = c_string(name);
    // SAFETY: the name is copied.
    unsafe {
        rd::rd_kafka_ConfigResource_new(rd::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr())
    }
}

/// Adds a change of one setting.
///
/// # Safety
/// `resource` is live.
unsafe fn add(
    resource: *mut rd::rd_kafka_ConfigResource_t,
    name: &str,
    value: Option<&str>,
) -> Result<(), KafkaError> {
    let (name, value) = (c_string(name), value.map(c_string));
    let (operation, value): (_, *const c_char) = match &value {
        Some(value) => (Alter::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET, value.as_ptr()),
        None => (Alter::RD_KAFKA_ALTER_CONFIG_OP_TYPE_DELETE, std::ptr::null()),
    };
    // SAFETY: by the function's contract; name and value are copied, and the error object, if there is one, is ours.
    unsafe {
        consume(rd::rd_kafka_ConfigResource_add_incremental_config(resource, name.as_ptr(), operation, value))
    }
}

/// # Safety
/// `resource` is live.
unsafe fn settings(resource: *const rd::rd_kafka_ConfigResource_t) -> Result<Vec<TopicSetting>, KafkaError> {
    // SAFETY: by the function's contract; entries belong to the resource.
    unsafe {
        check(rd_kafka_ConfigResource_error(resource))?;
        let mut count = 0;
        let entries = rd::rd_kafka_ConfigResource_configs(resource, &mut count);
        Ok((0..count).map(|index| setting(*entries.add(index))).collect())
    }
}

/// # Safety
/// `entry` is live.
unsafe fn setting(entry: *const rd::rd_kafka_ConfigEntry_t) -> TopicSetting {
    // SAFETY: by the function's contract; what the getters return belongs to the entry.
    unsafe {
        TopicSetting {
            name: text(rd::rd_kafka_ConfigEntry_name(entry)),
            value: text(rd::rd_kafka_ConfigEntry_value(entry)),
            own: rd_kafka_ConfigEntry_source(entry)
                == Source::RD_KAFKA_CONFIG_SOURCE_DYNAMIC_TOPIC_CONFIG as c_int,
        }
    }
}
