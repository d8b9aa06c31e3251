//! What the node's principal may do, where the cluster has an authorizer; everything, where it has none.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::admin::{Admin, AdminError, NewTopic, REQUEST_WAIT, Topic, is_missing, sorted};
use super::config::KafkaConfig;
use super::ffi::admin::TopicSpec;
use super::ffi::producer::Producer;
use super::ffi::{Code, KafkaError};

/// What may be done with a topic, a group or a transactional id. The numbers are Kafka's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Operation {
    Read = 3,
    Write = 4,
    Create = 5,
    Delete = 6,
    Alter = 7,
    Describe = 8,
    DescribeConfigs = 10,
    AlterConfigs = 11,
}

impl Operation {
    /// As `kafka-acls --operation` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "Read",
            Operation::Write => "Write",
            Operation::Create => "Create",
            Operation::Delete => "Delete",
            Operation::Alter => "Alter",
            Operation::Describe => "Describe",
            Operation::DescribeConfigs => "DescribeConfigs",
            Operation::AlterConfigs => "AlterConfigs",
        }
    }
}

/// All that a principal can be given of a topic (read, write, create, delete, alter, describe, and its
/// configuration). Who has it is bound by nothing, or nobody asks who he is.
const OF_A_TOPIC: usize = 8;

/// What the brokers permit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permitted(Option<Vec<i32>>);

impl Permitted {
    /// Also where the brokers do not say.
    pub fn allows(&self, operation: Operation) -> bool {
        self.0.as_ref().is_none_or(|allowed| allowed.contains(&(operation as i32)))
    }

    fn is_bounded(&self) -> bool {
        self.0.as_ref().is_some_and(|allowed| allowed.len() < OF_A_TOPIC)
    }

    const NOTHING: Permitted = Permitted(Some(Vec::new()));
}

/// A topic as its description shows it to this principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    There(Topic, Permitted),
    /// Or so it is told who may not know.
    Missing,
    /// It may not even be described.
    Denied,
}

impl Looked {
    /// Not everything is permitted, so somebody is looking.
    pub fn is_bounded(&self) -> bool {
        match self {
            Looked::There(_, permitted) => permitted.is_bounded(),
            Looked::Denied => true,
            Looked::Missing => false,
        }
    }
}

/// Whether a topic that does not exist could be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation {
    Possible,
    /// Not by this principal.
    Denied,
    /// Not as it is wanted: replication, a policy of the brokers.
    Refused(String),
}

/// How long the coordinator of transactions may take to say no.
const TRANSACTIONS_WAIT: Duration = Duration::from_secs(15);

impl Admin {
    /// Describes topics and what may be done with them, in one request.
    pub fn look(&self, names: &[String]) -> Result<BTreeMap<String, Looked>, AdminError> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let answers = self
            .client()
            .describe_permitted(names, REQUEST_WAIT)
            .map_err(|error| sorted("topics", &error))?;
        let looked = |answer| match answer {
            (Ok(info), allowed) => {
                let topic = Topic::from(info);
                Ok((topic.name.clone(), Looked::There(topic, Permitted(allowed))))
            }
            (Err((name, error)), _) if is_missing(&error) => Ok((name, Looked::Missing)),
            (Err((name, error)), _) if is_denied(&error) => Ok((name, Looked::Denied)),
            (Err((name, error)), _) => Err(sorted(&name, &error)),
        };
        answers.into_iter().map(looked).collect()
    }

    /// What may be done with a group, whether or not it exists.
    pub fn group_permissions(&self, group: &str) -> Result<Permitted, AdminError> {
        match self.ask_coordinator(group, |coordinator| coordinator.group_operations(group, REQUEST_WAIT)) {
            Ok(allowed) => Ok(Permitted(allowed)),
            Err(error) if is_denied(&error) => Ok(Permitted::NOTHING),
            // A broker that does not describe what is not there does not say what would be permitted either.
            Err(error) if is_missing(&error) => Ok(Permitted(None)),
            Err(error) => Err(sorted(&format!("group `{group}`"), &error)),
        }
    }

    /// Asks whether a topic could be made, without making it.
    pub fn could_create(&self, topic: &NewTopic) -> Result<Creation, AdminError> {
        let spec = TopicSpec {
            name: &topic.name,
            partitions: topic.partitions,
            replication: topic.replication.map_or(-1, i32::from),
            configs: &topic.configs,
        };
        match self.client().could_create(&spec, REQUEST_WAIT) {
            Ok(()) => Ok(Creation::Possible),
            Err(error) if is_denied(&error) => Ok(Creation::Denied),
            Err(error) => match sorted(&topic.name, &error) {
                // Somebody else was faster, which shows that it could.
                AdminError::Exists { .. } => Ok(Creation::Possible),
                AdminError::Refused { reason, .. } => Ok(Creation::Refused(reason)),
                other => Err(other),
            },
        }
    }
}

/// True unless the brokers refuse a producer of that transactional id. Makes one, so the id must be nobody
/// else's.
pub fn may_transact(config: &KafkaConfig, transactional_id: &str) -> bool {
    let producer = Producer::new(&config.producer(Some(transactional_id), 1 << 20), transactional_id);
    let Ok(producer) = producer else { return true };
    match producer.init_transactions(TRANSACTIONS_WAIT) {
        Err(error) => !error.is(Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
        Ok(()) => true,
    }
}

fn is_denied(error: &KafkaError) -> bool {
    error.is_any(&[
        Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
    ])
}

impl From<super::ffi::admin::TopicInfo> for Topic {
    fn from(info: super::ffi::admin::TopicInfo) -> Topic {
        Topic {
            name: info.name,
            id: Uuid::from_u64_pair(info.id.0, info.id.1),
            partitions: info.partitions,
            replication: info.replication,
        }
    }
}
