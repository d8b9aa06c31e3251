//! A node's configuration, after every check: what the rest of the program is given.
//!
//! Built by [`super::load`] from the file, the environment and the flags; nothing here reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::document::SpecDefaults;
use super::roles::Grant;
use crate::telemetry::LogBounds;

#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// Nodes of one fleet share deployments; part of the names of internal topics.
    pub fleet: String,
    /// `None` = made once, kept in the state directory.
    pub node_id: Option<String>,
    pub environment: String,
    pub group: String,
    pub state_dir: PathBuf,
    /// Free space below which the node does not start.
    pub state_free_min_bytes: u64,
    /// How long state that is of no use stays.
    pub state_unused_keep: Duration,
    pub listen: Listen,
    /// Who may do what; empty = no TLS, and whoever reaches the node may everything.
    pub roles: Vec<Grant>,
    /// The file that they are in.
    pub roles_file: Option<PathBuf>,
    /// Stop, commit, leave: within this, or exit anyway.
    pub shutdown_timeout: Duration,
    /// Of internal topics whose deployment does not say.
    pub replication_factor: i16,
    pub memory: MemoryBudget,
    /// For deployment documents that do not say.
    pub defaults: SpecDefaults,
    pub log: LogConfig,
    /// Of the lines that a deployment's handlers log, which are kept for whoever asks.
    pub handler_logs: LogBounds,
    pub kafka: KafkaConfig,
    /// Settings that were understood but do nothing, and why: to be logged once at the start.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    /// `host:port` under which other nodes reach `grpc`; `None` = its own address.
    pub advertise: Option<String>,
    pub tls: Option<TlsFiles>,
}

/// What both listeners, and calls of other nodes, are encrypted with; PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
}

/// Bounds for the whole process, shared by all its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Committed values, in front of the stores.
    pub value_cache_bytes: u64,
    pub block_cache_bytes: u64,
    pub write_buffers_bytes: u64,
    /// What is fetched ahead and waits to be sent, whoever fetches and sends; each worker has a share.
    pub queues_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub format: LogFormat,
    /// `info`, or `module=level` pairs separated by commas.
    pub filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Human,
    Json,
}

/// How to reach Kafka and who to be there.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaConfig {
    /// At least one, `host:port`.
    pub bootstrap_servers: Vec<String>,
    /// `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub security_protocol: String,
    pub sasl: Option<Sasl>,
    pub ssl: Ssl,
    pub connect_timeout: Duration,
    pub group_protocol: GroupProtocol,
    /// `None` = the node itself, unless something is configured that only librdkafka can do.
    pub client: Option<KafkaClient>,
    /// Of producers without transactions; transactional ones always use all and idempotence.
    pub acks: String,
    pub enable_idempotence: bool,
    pub partitioner: String,
    /// librdkafka's own names, already translated and checked.
    pub properties: BTreeMap<String, String>,
}

/// How a consumer is a member of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupProtocol {
    /// Members agree among themselves; static membership keeps a restarted member's partitions.
    Classic,
    /// KIP-848: the broker assigns, member by member, and only to dynamic members, because a
    /// restarted static one is fenced there until its session expires.
    Consumer,
}

/// Who fetches the records of inputs and of restores, and writes what deployments commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KafkaClient {
    /// The node itself, in batches as the brokers keep them, which takes less CPU.
    Own,
    Librdkafka,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`.
    pub mechanism: String,
    pub username: Option<String>,
    pub password: Option<Secret>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ssl {
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub key_password: Option<Secret>,
}

/// A value that no log, error or `config show` prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: String) -> Secret {
        Secret(value)
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl NodeConfig {
    /// What the consumer groups of this node's deployments begin with.
    pub fn effective_group(&self) -> String {
        format!("{}.{}", self.environment, self.group)
    }

    /// The consumer group of a deployment, as Kafka's own tools name it.
    pub fn group_of(&self, deployment: &str) -> String {
        format!("{}.{deployment}", self.effective_group())
    }

    /// A topic that the brokers, this fleet or a deployment of it keep something of their own in.
    pub fn is_internal(&self, topic: &str) -> bool {
        self.is_reserved(topic) || self.keeps_state(topic)
    }

    /// The brokers' own, and those of the fleet as a whole, such as the registry.
    pub fn is_reserved(&self, topic: &str) -> bool {
        topic.starts_with("__") || topic.starts_with(&format!("_{}.", self.fleet))
    }

    /// Changelog or inbox of a deployment, whose name has no dot.
    fn keeps_state(&self, topic: &str) -> bool {
        let of_fleet = topic.strip_prefix(&self.fleet).and_then(|rest| rest.strip_prefix('.'));
        let deployment =
            of_fleet.and_then(|rest| rest.strip_suffix(".changelog").or_else(|| rest.strip_suffix(".inbox")));
        deployment.is_some_and(|name| !name.is_empty() && !name.contains('.'))
    }
}
