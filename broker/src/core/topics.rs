//! Topics and partitions: look-up, creation, deletion, growth.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
};
use uuid::Uuid;

use super::{Core, text};
use crate::config::Fsync;
use crate::journal::Entry;
use crate::log::Log;
use crate::settings::{self, Settings};

/// Kafka's limit, which lets a name and a partition number fit into a file name.
const NAME_LENGTH_MAX: usize = 249;

/// One topic.
#[derive(Debug)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// What differs from the defaults.
    pub overrides: BTreeMap<String, String>,
    /// The settings in effect.
    pub settings: Settings,
    /// Logs by partition number.
    pub partitions: Vec<Log>,
}

/// All topics.
#[derive(Debug, Default)]
pub struct Topics {
    by_name: BTreeMap<String, Uuid>,
    by_id: HashMap<Uuid, Topic>,
}

impl Topics {
    /// Id of a topic.
    pub fn id(&self, name: &str) -> Option<Uuid> {
        self.by_name.get(name).copied()
    }

    /// A topic by id.
    pub fn get(&self, id: Uuid) -> Option<&Topic> {
        self.by_id.get(&id)
    }

    /// A topic by id, to be changed.
    pub fn get_mut(&mut self, id: Uuid) -> Option<&mut Topic> {
        self.by_id.get_mut(&id)
    }

    /// A partition by topic id.
    pub fn log(&self, id: Uuid, partition: i32) -> Option<&Log> {
        self.by_id.get(&id)?.partitions.get(usize::try_from(partition).ok()?)
    }

    /// A partition and its topic's settings, to be written to.
    pub fn log_mut(&mut self, id: Uuid, partition: i32) -> Option<(&mut Log, &Settings)> {
        let topic = self.by_id.get_mut(&id)?;
        let log = topic.partitions.get_mut(usize::try_from(partition).ok()?)?;
        Some((log, &topic.settings))
    }

    /// A partition by topic name, with the topic's id.
    pub fn find(&self, name: &str, partition: i32) -> Option<(Uuid, &Log)> {
        let id = self.id(name)?;
        Some((id, self.log(id, partition)?))
    }

    /// All topics, by name.
    pub fn iter(&self) -> impl Iterator<Item = (Uuid, &Topic)> {
        self.by_name.values().filter_map(|id| Some((*id, self.by_id.get(id)?)))
    }

    /// All topics, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Uuid, &mut Topic)> {
        self.by_id.iter_mut().map(|(id, topic)| (*id, topic))
    }

    /// Adds a topic.
    pub fn insert(&mut self, id: Uuid, topic: Topic) {
        self.by_name.insert(topic.name.clone(), id);
        self.by_id.insert(id, topic);
    }

    /// Removes a topic.
    pub fn remove(&mut self, id: Uuid) -> Option<Topic> {
        let topic = self.by_id.remove(&id)?;
        self.by_name.remove(&topic.name);
        Some(topic)
    }

    fn partitions(&self) -> usize {
        self.by_id.values().map(|topic| topic.partitions.len()).sum()
    }
}

/// A refusal with its explanation.
type Refusal = (ResponseError, String);

impl Core {
    pub(super) fn create_topics(&mut self, request: CreateTopicsRequest) -> CreateTopicsResponse {
        let mut results = Vec::with_capacity(request.topics.len());
        for wanted in &request.topics {
            let twice = request.topics.iter().filter(|other| other.name == wanted.name).count() > 1;
            let result = match twice {
                true => Err((ResponseError::InvalidRequest, "Duplicate topic name.".to_owned())),
                false => self.create_requested(wanted, request.validate_only),
            };
            results.push(match result {
                Ok(result) => result,
                Err((error, message)) => CreatableTopicResult::default()
                    .with_name(wanted.name.clone())
                    .with_error_code(error.code())
                    .with_error_message(Some(text(message))),
            });
        }
        CreateTopicsResponse::default().with_topics(results)
    }

    fn create_requested(
        &mut self,
        wanted: &CreatableTopic,
        validate_only: bool,
    ) -> Result<CreatableTopicResult, Refusal> {
        let count = partition_count(wanted, self.config.partitions_default)?;
        if !matches!(wanted.replication_factor, -1 | 1) && wanted.assignments.is_empty() {
            let message = format!(
                "Unable to replicate the partition {} time(s): this broker is a single node.",
                wanted.replication_factor
            );
            return Err((ResponseError::InvalidReplicationFactor, message));
        }
        let mut overrides = BTreeMap::new();
        for config in &wanted.configs {
            let Some(value) = &config.value else { continue };
            settings::check(&config.name, value).map_err(|m| (ResponseError::InvalidConfig, m))?;
            overrides.insert(config.name.to_string(), value.to_string());
        }
        let id = self.create_topic(&wanted.name, count, overrides.clone(), validate_only)?;
        let effective = settings::TABLE.iter().map(|entry| {
            let own = overrides.get(entry.name);
            CreatableTopicConfigs::default()
                .with_name(text(entry.name))
                .with_value(Some(text(own.map_or(entry.default, String::as_str))))
                .with_config_source(if own.is_some() { 1 } else { 5 })
        });
        Ok(CreatableTopicResult::default()
            .with_name(wanted.name.clone())
            .with_topic_id(id)
            .with_num_partitions(count)
            .with_replication_factor(1)
            .with_configs(Some(effective.collect())))
    }

    /// Creates a topic, or with `validate_only` just says whether it could be.
    pub(super) fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        overrides: BTreeMap<String, String>,
        validate_only: bool,
    ) -> Result<Uuid, Refusal> {
        check_name(name)?;
        if self.topics.id(name).is_some() {
            let message = format!("Topic '{name}' already exists.");
            return Err((ResponseError::TopicAlreadyExists, message));
        }
        self.check_room(partitions as usize)?;
        if validate_only {
            return Ok(Uuid::nil());
        }
        let id = Uuid::new_v4();
        let logs = self.create_logs(id, 0..partitions).map_err(storage)?;
        let entry = Entry::Topic { name: name.to_owned(), id, partitions, settings: overrides };
        self.record(&entry).map_err(|error| (error, "Cannot write the journal.".to_owned()))?;
        let Entry::Topic { name, settings: overrides, .. } = entry else { return Ok(id) };
        let settings = Settings::new(&overrides);
        tracing::info!(topic = %name, %id, partitions, "created");
        self.topics.insert(id, Topic { name, overrides, settings, partitions: logs });
        Ok(id)
    }

    fn check_room(&self, more: usize) -> Result<(), Refusal> {
        let max = self.config.partitions_max;
        if self.topics.partitions() + more <= max {
            return Ok(());
        }
        Err((ResponseError::PolicyViolation, format!("This broker holds at most {max} partitions.")))
    }

    fn create_logs(&self, id: Uuid, partitions: std::ops::Range<i32>) -> io::Result<Vec<Log>> {
        let sync = self.config.fsync == Fsync::EveryWrite;
        let create = |partition: i32| {
            let directory = self.partition_directory(id, partition);
            if let Some(directory) = &directory {
                std::fs::create_dir_all(directory)?;
            }
            Log::create(directory, sync)
        };
        partitions.map(create).collect()
    }

    /// Where a partition's segments are, if there is a data directory.
    pub(super) fn partition_directory(&self, id: Uuid, partition: i32) -> Option<PathBuf> {
        self.config.data_dir.as_deref().map(|data| topic_directory(data, id).join(partition.to_string()))
    }

    pub(super) fn delete_topics(&mut self, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
        let by_name = request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil()));
        let by_either = request.topics.into_iter().map(|topic| (topic.name, topic.topic_id));
        let mut responses = Vec::new();
        for (name, id) in by_name.chain(by_either) {
            let found = match &name {
                Some(name) => self.topics.id(name),
                None => Some(id).filter(|id| self.topics.get(*id).is_some()),
            };
            let unknown = match name {
                Some(_) => ResponseError::UnknownTopicOrPartition,
                None => ResponseError::UnknownTopicId,
            };
            let result = found.ok_or(unknown).and_then(|id| self.delete_topic(id));
            let name = name.or(result.as_ref().ok().map(|n| TopicName(text(n.clone()))));
            let result = result.map(|_| ());
            responses.push(
                DeletableTopicResult::default()
                    .with_name(name)
                    .with_topic_id(found.unwrap_or(id))
                    .with_error_code(super::code(&result)),
            );
        }
        DeleteTopicsResponse::default().with_responses(responses)
    }

    /// Deletes a topic with its records and committed offsets; returns its name.
    fn delete_topic(&mut self, id: Uuid) -> Result<String, ResponseError> {
        self.record(&Entry::TopicDeleted { id })?;
        let topic = self.topics.remove(id).ok_or(ResponseError::UnknownTopicId)?;
        tracing::info!(topic = %topic.name, %id, "deleted");
        for group in self.groups.values_mut() {
            group.offsets.delete_topic(&topic.name);
        }
        self.wake_topic(id);
        if let Some(data) = &self.config.data_dir {
            let directory = topic_directory(data, id);
            // What stays behind is removed at the next start, because no entry names it.
            if let Err(error) = std::fs::remove_dir_all(&directory) {
                tracing::warn!(path = %directory.display(), %error, "cannot remove a deleted topic");
            }
        }
        Ok(topic.name)
    }

    pub(super) fn create_partitions(&mut self, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
        let mut results = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let result = self.grow(&topic.name, topic.count, request.validate_only);
            let (error, message) = match result {
                Ok(()) => (0, None),
                Err((error, message)) => (error.code(), Some(text(message))),
            };
            results.push(
                CreatePartitionsTopicResult::default()
                    .with_name(topic.name.clone())
                    .with_error_code(error)
                    .with_error_message(message),
            );
        }
        CreatePartitionsResponse::default().with_results(results)
    }

    fn grow(&mut self, name: &str, count: i32, validate_only: bool) -> Result<(), Refusal> {
        let unknown = || (ResponseError::UnknownTopicOrPartition, String::new());
        let id = self.topics.id(name).ok_or_else(unknown)?;
        let topic = self.topics.get(id).ok_or_else(unknown)?;
        let now = topic.partitions.len() as i32;
        if count <= now {
            let message =
                format!("The topic currently has {now} partition(s); {count} would not be an increase.");
            return Err((ResponseError::InvalidPartitions, message));
        }
        let settings = topic.overrides.clone();
        self.check_room((count - now) as usize)?;
        if validate_only {
            return Ok(());
        }
        let logs = self.create_logs(id, now..count).map_err(storage)?;
        let entry = Entry::Topic { name: name.to_owned(), id, partitions: count, settings };
        self.record(&entry).map_err(|error| (error, "Cannot write the journal.".to_owned()))?;
        if let Some(topic) = self.topics.get_mut(id) {
            topic.partitions.extend(logs);
        }
        Ok(())
    }
}

/// Where all partitions of a topic are.
pub(super) fn topic_directory(data: &Path, id: Uuid) -> PathBuf {
    data.join("topics").join(id.to_string())
}

fn storage(error: io::Error) -> Refusal {
    tracing::error!(%error, "cannot create the files of a topic");
    (ResponseError::KafkaStorageError, error.to_string())
}

fn partition_count(wanted: &CreatableTopic, default: i32) -> Result<i32, Refusal> {
    if !wanted.assignments.is_empty() {
        let foreign = |node: &kafka_protocol::messages::BrokerId| node.0 != super::NODE_ID;
        let assigned = &wanted.assignments;
        if assigned.iter().any(|a| a.broker_ids.is_empty() || a.broker_ids.iter().any(foreign)) {
            let message = "This broker is a single node.".to_owned();
            return Err((ResponseError::InvalidReplicaAssignment, message));
        }
        return Ok(assigned.len() as i32);
    }
    match wanted.num_partitions {
        -1 => Ok(default),
        count if count > 0 => Ok(count),
        _ => Err((
            ResponseError::InvalidPartitions,
            "Number of partitions must be larger than 0, or -1 to use the default value.".to_owned(),
        )),
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let refused = name.is_empty()
        || name.len() > NAME_LENGTH_MAX
        || matches!(name, "." | "..")
        || !name.chars().all(legal);
    if refused {
        let message = format!("Topic name `{name}` is illegal.");
        return Err((ResponseError::InvalidTopicException, message));
    }
    Ok(())
}
