//! The connection to Kafka, for the commands that talk to it directly.

use super::failure::Failure;
use super::settings::SettingArgs;
use crate::config::load::Effective;
use crate::config::problem::nearest;
use crate::kafka::admin::{Admin, AdminError};
use crate::kafka::config::KafkaConfig;
use crate::kafka::probe::{ProbeError, probe};
use crate::kafka::tools::ToolError;

const CLIENT_ID: &str = "tidemill-cli";

/// A cluster that answered.
pub struct Kafka {
    pub config: KafkaConfig,
    pub admin: Admin,
    pub effective: Effective,
}

/// Reads the configuration and makes sure that Kafka answers, so that every later error is about the
/// request and not about the connection.
pub fn connect(settings: &SettingArgs) -> Result<Kafka, Failure> {
    let effective = settings.load()?;
    let config = kafka_config(&effective)?;
    probe(&config, effective.config.kafka.connect_timeout)?;
    let admin = Admin::new(&config)?;
    Ok(Kafka { config, admin, effective })
}

pub fn kafka_config(effective: &Effective) -> Result<KafkaConfig, Failure> {
    let config = KafkaConfig::from_node(&effective.config.kafka, CLIENT_ID);
    match config.problems().as_slice() {
        [] => Ok(config),
        problems => Err(Failure::refused(problems.join("\n  "))),
    }
}

impl Kafka {
    /// Partitions of a topic; one that is missing is an error with the nearest name.
    pub fn partitions(&self, topic: &str) -> Result<i32, Failure> {
        let topics = self.admin.topics()?;
        if let Some(&partitions) = topics.get(topic) {
            return Ok(partitions);
        }
        let create = format!(" (`tidemill topics create {topic}` makes it)");
        Err(none_such("topic", topic, topics.keys(), &create))
    }

    /// A group that has to be there; one that is missing is an error with the nearest name.
    pub fn require_group(&self, group: &str) -> Result<(), Failure> {
        let groups = self.admin.groups()?;
        if groups.iter().any(|name| name == group) {
            return Ok(());
        }
        Err(none_such("group", group, groups.iter(), ""))
    }
}

fn none_such<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>, remedy: &str) -> Failure {
    let hint = match nearest(name, known.map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("`tidemill {what}s list` shows what there is"),
    };
    Failure::not_found(format!("there is no {what} `{name}`, {hint}{remedy}"))
}

impl From<ProbeError> for Failure {
    fn from(error: ProbeError) -> Failure {
        let fix = match &error {
            ProbeError::Connection { .. } => {
                "Name the brokers with --bootstrap-servers or KAFKA_BOOTSTRAP_SERVERS"
            }
            ProbeError::Timeout { .. } => "kafka.connect_timeout says how long to wait",
        };
        Failure::unreachable(format!("{error}. {fix}"))
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Failure {
        let message = error.to_string();
        match error {
            AdminError::Missing { .. } => Failure::not_found(message),
            AdminError::Exists { .. } | AdminError::Refused { .. } => Failure::refused(message),
            AdminError::Unavailable { .. } => Failure::unreachable(message),
        }
    }
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Failure {
        Failure::failed(error.to_string())
    }
}
