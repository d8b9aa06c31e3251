//! Settings of topics: described, replaced, changed one by one.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, alter_configs_response,
    incremental_alter_configs_response,
};

use super::{Core, NODE_ID, text};
use crate::journal::Entry;
use crate::settings::{self, Settings};

/// Resource types of the protocol.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Where a value comes from, as the protocol numbers it.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;

/// How `IncrementalAlterConfigs` changes a value.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

type Overrides = BTreeMap<String, String>;
type Refusal = (ResponseError, String);

impl Core {
    pub(super) fn describe_configs(&self, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
        let mut results = Vec::with_capacity(request.resources.len());
        for resource in &request.resources {
            let described = match resource.resource_type {
                TOPIC => self.describe_topic(resource, request.include_synonyms),
                BROKER => Ok(self.describe_broker(resource)),
                _ => Err(ResponseError::InvalidRequest),
            };
            let error = described.as_ref().err().map_or(0, ResponseError::code);
            results.push(
                DescribeConfigsResult::default()
                    .with_error_code(error)
                    .with_resource_type(resource.resource_type)
                    .with_resource_name(resource.resource_name.clone())
                    .with_configs(described.unwrap_or_default()),
            );
        }
        DescribeConfigsResponse::default().with_results(results)
    }

    fn describe_topic(
        &self,
        resource: &DescribeConfigsResource,
        synonyms: bool,
    ) -> Result<Vec<DescribeConfigsResourceResult>, ResponseError> {
        let id = self.topics.id(&resource.resource_name);
        let topic = id.and_then(|id| self.topics.get(id));
        let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition)?;
        let wanted = |entry: &&settings::Entry| asked_for(resource, entry.name);
        let describe = |entry: &settings::Entry| {
            let own = topic.overrides.get(entry.name);
            let source = if own.is_some() { SOURCE_TOPIC } else { SOURCE_DEFAULT };
            let value = Some(text(own.map_or(entry.default, String::as_str)));
            let mut result = DescribeConfigsResourceResult::default()
                .with_name(text(entry.name))
                .with_value(value.clone())
                .with_config_source(source)
                .with_config_type(entry.wire_type());
            if synonyms {
                result.synonyms = vec![
                    DescribeConfigsSynonym::default()
                        .with_name(text(entry.name))
                        .with_value(value)
                        .with_source(source),
                ];
            }
            result
        };
        Ok(settings::TABLE.iter().filter(wanted).map(describe).collect())
    }

    /// The few settings of the broker itself that clients look at. They cannot be changed.
    fn describe_broker(&self, resource: &DescribeConfigsResource) -> Vec<DescribeConfigsResourceResult> {
        let pairs = [
            ("auto.create.topics.enable", self.config.auto_create_topics.to_string()),
            ("broker.id", NODE_ID.to_string()),
            ("default.replication.factor", "1".to_owned()),
            ("message.max.bytes", "1048588".to_owned()),
            ("min.insync.replicas", "1".to_owned()),
            ("node.id", NODE_ID.to_string()),
            ("num.partitions", self.config.partitions_default.to_string()),
            ("transaction.max.timeout.ms", self.config.transaction_timeout_max.as_millis().to_string()),
        ];
        let wanted = pairs.into_iter().filter(|(name, _)| asked_for(resource, name));
        let describe = |(name, value): (&str, String)| {
            DescribeConfigsResourceResult::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
                .with_read_only(true)
                .with_config_source(SOURCE_STATIC_BROKER)
        };
        wanted.map(describe).collect()
    }

    pub(super) fn alter_configs(&mut self, request: AlterConfigsRequest) -> AlterConfigsResponse {
        let mut responses = Vec::with_capacity(request.resources.len());
        for resource in &request.resources {
            let mut overrides = Overrides::new();
            for config in &resource.configs {
                if let Some(value) = &config.value {
                    overrides.insert(config.name.to_string(), value.to_string());
                }
            }
            let replace = |_: &Overrides| Ok(overrides);
            let kind = resource.resource_type;
            let result = self.alter(kind, &resource.resource_name, request.validate_only, replace);
            let (error, message) = outcome(result);
            responses.push(
                alter_configs_response::AlterConfigsResourceResponse::default()
                    .with_resource_type(kind)
                    .with_resource_name(resource.resource_name.clone())
                    .with_error_code(error)
                    .with_error_message(message.map(text)),
            );
        }
        AlterConfigsResponse::default().with_responses(responses)
    }

    pub(super) fn incremental_alter_configs(
        &mut self,
        request: IncrementalAlterConfigsRequest,
    ) -> IncrementalAlterConfigsResponse {
        let mut responses = Vec::with_capacity(request.resources.len());
        for resource in &request.resources {
            let change = |now: &Overrides| {
                let mut next = now.clone();
                for config in &resource.configs {
                    let value = config.value.as_ref().map(|value| value.as_str());
                    apply(&mut next, &config.name, config.config_operation, value)?;
                }
                Ok(next)
            };
            let kind = resource.resource_type;
            let result = self.alter(kind, &resource.resource_name, request.validate_only, change);
            let (error, message) = outcome(result);
            responses.push(
                incremental_alter_configs_response::AlterConfigsResourceResponse::default()
                    .with_resource_type(kind)
                    .with_resource_name(resource.resource_name.clone())
                    .with_error_code(error)
                    .with_error_message(message.map(text)),
            );
        }
        IncrementalAlterConfigsResponse::default().with_responses(responses)
    }

    fn alter(
        &mut self,
        kind: i8,
        name: &str,
        validate_only: bool,
        change: impl FnOnce(&Overrides) -> Result<Overrides, Refusal>,
    ) -> Result<(), Refusal> {
        if kind != TOPIC {
            let message = "Only the settings of topics can be changed on this broker.".to_owned();
            return Err((ResponseError::InvalidRequest, message));
        }
        let unknown = || (ResponseError::UnknownTopicOrPartition, String::new());
        let id = self.topics.id(name).ok_or_else(unknown)?;
        let topic = self.topics.get(id).ok_or_else(unknown)?;
        let partitions = topic.partitions.len() as i32;
        let overrides = change(&topic.overrides)?;
        for (name, value) in &overrides {
            settings::check(name, value).map_err(|m| (ResponseError::InvalidConfig, m))?;
        }
        if validate_only {
            return Ok(());
        }
        let settings = overrides.clone();
        self.record(&Entry::Topic { name: name.to_owned(), id, partitions, settings })
            .map_err(|error| (error, "Cannot write the journal.".to_owned()))?;
        if let Some(topic) = self.topics.get_mut(id) {
            topic.settings = Settings::new(&overrides);
            topic.overrides = overrides;
        }
        Ok(())
    }
}

fn asked_for(resource: &DescribeConfigsResource, name: &str) -> bool {
    let keys = resource.configuration_keys.as_ref().filter(|keys| !keys.is_empty());
    keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
}

fn outcome(result: Result<(), Refusal>) -> (i16, Option<String>) {
    match result {
        Ok(()) => (0, None),
        Err((error, message)) => (error.code(), Some(message)),
    }
}

/// One change of one value.
fn apply(overrides: &mut Overrides, name: &str, operation: i8, value: Option<&str>) -> Result<(), Refusal> {
    let invalid = |message: &str| (ResponseError::InvalidConfig, format!("{message}: {name}"));
    let entry = settings::find(name).ok_or_else(|| invalid("Unknown topic config name"))?;
    let is_list = matches!(entry.kind, settings::Kind::ListOf(_));
    let now = overrides.get(name).map_or(entry.default, String::as_str).to_owned();
    let words = || now.split(',').map(str::trim).filter(|word| !word.is_empty());
    match (operation, value) {
        (DELETE, _) => {
            overrides.remove(name);
        }
        (SET, Some(value)) => {
            overrides.insert(name.to_owned(), value.to_owned());
        }
        (APPEND, Some(value)) if is_list => {
            let more = value.split(',').map(str::trim).filter(|word| !words().any(|w| w == *word));
            let joined: Vec<&str> = words().chain(more).collect();
            overrides.insert(name.to_owned(), joined.join(","));
        }
        (SUBTRACT, Some(value)) if is_list => {
            let gone: Vec<&str> = value.split(',').map(str::trim).collect();
            let left: Vec<&str> = words().filter(|word| !gone.contains(word)).collect();
            overrides.insert(name.to_owned(), left.join(","));
        }
        _ => return Err(invalid("This operation is not possible for this setting")),
    }
    Ok(())
}
