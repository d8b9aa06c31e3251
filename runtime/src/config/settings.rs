//! The table of a node's settings: key, kind, range, default, documentation.
//!
//! One row is everything there is to know about a setting: the file's key, the variable
//! `TIDEMILL_...`, the documented `KAFKA_...` variable, the check, and what `config explain` says.
//! All three sources give text, so that there is one reader and one check.

use std::net::SocketAddr;
use std::time::Duration;

use super::problem::suggestion;
use super::profiles::{CONSUMER_KEY, CONSUMER_NAMES, PRODUCER_KEY, PRODUCER_NAMES};
use super::{roles, units};

pub struct Setting {
    /// Dotted path in the file; also `TIDEMILL_` + upper case with `_` for `.`.
    pub key: &'static str,
    /// The name that existing configurations use: a top-level key of the file, and `KAFKA_` + upper
    /// case as a variable. Bare numbers of durations are seconds there.
    pub alias: Option<&'static str>,
    pub kind: Kind,
    /// As it would be written; empty = not set.
    pub default: &'static str,
    pub doc: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    /// Letters, digits, `.`, `_`, `-`: part of topic and group names.
    Name,
    /// `host:port`, several separated by commas.
    Servers,
    /// `ip:port`.
    Address,
    Path,
    /// Never shown; taken from the environment only.
    Secret,
    Bool,
    Choice(&'static [&'static str]),
    /// Smallest and largest.
    Integer(u64, u64),
    /// Smallest and largest, in bytes.
    Bytes(u64, u64),
    /// Smallest and largest, in milliseconds.
    Duration(u64, u64),
    /// Smallest and largest; accepted for the sake of existing configurations.
    Number(f64, f64),
    /// A list of mappings, in the file only; [`super::roles`] reads it.
    Roles,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unset,
    Text(String),
    List(Vec<String>),
    Address(SocketAddr),
    Bool(bool),
    Integer(u64),
    Number(f64),
    Duration(Duration),
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const fn setting(
    key: &'static str,
    alias: Option<&'static str>,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Setting {
    Setting { key, alias, kind, default, doc }
}

#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    setting("fleet", None, Kind::Name, "tidemill",
        "Nodes with the same fleet name on the same Kafka cluster share their work. Part of the names of internal topics."),
    setting("node_id", None, Kind::Name, "",
        "Name of this node within the fleet. Not set = made once and kept in the state directory."),
    setting("environment", Some("environment"), Kind::Name, "local",
        "First part of consumer group names: {environment}.{group}.{deployment}. Usually local, dev, staging or prod."),
    setting("group", Some("group"), Kind::Name, "default",
        "Second part of consumer group names: {environment}.{group}.{deployment}."),
    setting("state_dir", None, Kind::Path, "./tidemill-state",
        "Directory of the node's stores. One node each; can be rebuilt from the changelogs."),
    setting("state_free_min", None, Kind::Bytes(0, 1024 * GIB), "256MiB",
        "The node refuses to start with less free space than this in the state directory."),
    setting("state_unused_keep", None, Kind::Duration(0, 365 * 86_400_000), "24h",
        "How long state that no task will take up again stays in the state directory, from when it was found; `tidemill stores` lists it."),
    setting("listen.grpc", None, Kind::Address, "127.0.0.1:7600",
        "Address of the control plane. Beyond loopback only with listen.tls (or insecure: true)."),
    setting("listen.http", None, Kind::Address, "127.0.0.1:7601",
        "Address of /metrics and /health; with listen.tls encrypted, for anyone. Beyond loopback only with that (or insecure: true)."),
    setting("listen.advertise", None, Kind::Servers, "",
        "host:port under which other nodes reach listen.grpc. Not set = listen.grpc itself."),
    setting("listen.tls.cert", None, Kind::Path, "",
        "This node's certificate and what is between it and its CA (PEM): shown to callers, and to other nodes when it calls them. Read again when it changes."),
    setting("listen.tls.key", None, Kind::Path, "",
        "Private key of listen.tls.cert (PEM, not encrypted). Read again when it changes."),
    setting("listen.tls.client_ca", None, Kind::Path, "",
        "CA certificates (PEM) that every caller's certificate, and every other node's, must come from; one that is no CA's is good for its holder alone. Read again when it changes."),
    setting("roles", None, Kind::Roles, "",
        "Who may do what, by the names in a caller's certificate: a list of { san, role, deployments, topics, secrets }; needs listen.tls. See docs/security.md."),
    setting("insecure", None, Kind::Bool, "false",
        "Allows listeners without TLS beyond loopback: anyone who can reach them can deploy code."),
    setting("shutdown_timeout", None, Kind::Duration(1_000, 600_000), "25s",
        "How long a stopping node may take to finish its work, commit and leave, before it exits anyway."),
    setting("replication_factor", None, Kind::Integer(1, 15), "1",
        "Replication factor of internal topics that are created (changelogs, registry). Use 3 in production."),
    setting("memory.value_cache", None, Kind::Bytes(0, 1024 * GIB), "128MiB",
        "Values that were read or written lately, of all stores of the node together; each task has an equal share."),
    setting("memory.block_cache", None, Kind::Bytes(MIB, 1024 * GIB), "64MiB",
        "Block cache of all stores of the node together."),
    setting("memory.write_buffers", None, Kind::Bytes(4 * MIB, 256 * GIB), "64MiB",
        "Write buffers of all stores of the node together."),
    setting("memory.queues", None, Kind::Bytes(16 * MIB, 256 * GIB), "256MiB",
        "Records fetched ahead and waiting to be sent. Each worker gets an equal share when it starts, at most a quarter."),
    setting("defaults.workers", None, Kind::Integer(1, 64), "1",
        "Threads of a deployment on this node when its document does not say (num.stream.threads)."),
    setting("defaults.commit_interval", None, Kind::Duration(1, 60_000), "100ms",
        "Longest time between two commits when a deployment's document does not say (commit.interval.ms)."),
    setting("defaults.batch_records", None, Kind::Integer(1, 500), "500",
        "Most records a handler is called with when a deployment's document does not say (max.poll.records)."),
    setting("policy.memory", None, Kind::Bytes(MIB, 4 * GIB), "",
        "The most that a deployment's limits.memory may be; a deployment that wants more is refused. Not set = no cap, as for all of policy."),
    setting("policy.batch_time", None, Kind::Duration(1, 600_000), "",
        "The most that a deployment's limits.batch_time may be."),
    setting("policy.emit_bytes", None, Kind::Bytes(1 << 10, GIB), "",
        "The most that a deployment's limits.emit_bytes may be."),
    setting("policy.emit_records", None, Kind::Integer(1, 1_000_000), "",
        "The most that a deployment's limits.emit_records may be."),
    setting("policy.table_elements", None, Kind::Integer(1, 10_000_000), "",
        "The most that a deployment's limits.table_elements may be."),
    setting("policy.batch_records", None, Kind::Integer(1, 500), "",
        "The most that a deployment's limits.batch_records may be."),
    setting("policy.store_bytes", None, Kind::Bytes(1 << 10, 1024 * GIB), "",
        "The most that a deployment's limits.store_bytes may be; one that does not say is held to it."),
    setting("policy.log_lines", None, Kind::Integer(0, 100_000), "",
        "The most that a deployment's limits.log_lines may be, a second."),
    setting("log.format", None, Kind::Choice(&["human", "json"]), "human",
        "human: one coloured line per entry on a terminal. json: one object per line."),
    setting("log.filter", None, Kind::Text, "info",
        "What is logged: a level, or module=level pairs separated by commas."),
    setting("log.handler_lines", None, Kind::Integer(10, 1_000_000), "2000",
        "Lines that the node keeps in memory of what a deployment's handlers log, for `tidemill logs`."),
    setting("log.handler_bytes", None, Kind::Bytes(16 << 10, 256 * MIB), "512KiB",
        "Memory of those lines, for each deployment."),
    setting("kafka.bootstrap_servers", Some("bootstrap_servers"), Kind::Servers, "localhost:9092",
        "Brokers to ask for the cluster's metadata, host:port separated by commas."),
    setting("kafka.security_protocol", None, Kind::Choice(&["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]), "PLAINTEXT",
        "How to talk to the brokers."),
    setting("kafka.sasl.mechanism", None, Kind::Choice(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]), "",
        "How to sign in; needs kafka.security_protocol SASL_SSL (or SASL_PLAINTEXT)."),
    setting("kafka.sasl.username", None, Kind::Text, "",
        "User name for PLAIN and SCRAM."),
    setting("kafka.sasl.password", None, Kind::Secret, "",
        "Password for PLAIN and SCRAM; from the variable only, or through kafka.sasl.password_file."),
    setting("kafka.sasl.password_file", None, Kind::Path, "",
        "File whose content is the password; a line end at its end is dropped."),
    setting("kafka.ssl.ca", None, Kind::Path, "",
        "Certificates (PEM) that brokers are checked against. Not set = the system's."),
    setting("kafka.ssl.certificate", None, Kind::Path, "",
        "This client's certificate (PEM), with kafka.ssl.key."),
    setting("kafka.ssl.key", None, Kind::Path, "",
        "This client's private key (PEM), with kafka.ssl.certificate."),
    setting("kafka.ssl.key_password", None, Kind::Secret, "",
        "Password of the private key; from the variable only, or through kafka.ssl.key_password_file."),
    setting("kafka.ssl.key_password_file", None, Kind::Path, "",
        "File whose content is the private key's password."),
    setting("kafka.connect_timeout", Some("timeout_seconds"), Kind::Duration(1_000, 300_000), "30s",
        "How long a first connection to Kafka may take before the node gives up and says so."),
    setting("kafka.group_protocol", None, Kind::Choice(&["classic", "consumer"]), "classic",
        "classic: static membership, a restarted node takes its partitions back at once. consumer: KIP-848 (Kafka 4.0 or later), without static membership: the partitions of a killed node wait for the broker's session time-out."),
    setting("kafka.client", None, Kind::Choice(&["own", "librdkafka"]), "",
        "Who fetches the records of inputs and of restores and writes what deployments commit. own: the node's own client, which takes a third of the CPU. librdkafka: the client library, which honours every property. Not set = own, unless something is configured that only librdkafka can do; the node says so at its start."),
    setting("kafka.acks", Some("acks"), Kind::Choice(&["all", "1", "0", "-1"]), "all",
        "Acknowledgements a write waits for; none (0) leaves reading and writing to librdkafka. exactly_once deployments always use all."),
    setting("kafka.enable_idempotence", Some("enable_idempotence"), Kind::Bool, "true",
        "Repeated sends are written once; needs acks: all. exactly_once deployments always use it."),
    setting(PRODUCER_KEY, None, Kind::Choice(PRODUCER_NAMES), "",
        "A set of producer properties: docs/operations.md lists them. What is given by itself wins."),
    setting(CONSUMER_KEY, None, Kind::Choice(CONSUMER_NAMES), "",
        "A set of consumer properties: docs/operations.md lists them. What is given by itself wins."),
    setting("kafka.auto_offset_reset", Some("auto_offset_reset"), Kind::Choice(&["earliest", "latest"]), "earliest",
        "Where an input that was never read begins when a deployment's document has no `start`."),
    setting("kafka.partitioner", None, Kind::Choice(&["murmur2_random", "murmur2", "consistent_random", "consistent", "fnv1a_random", "fnv1a", "random"]), "murmur2_random",
        "Which partition a key goes to. murmur2_random puts keys where Java producers put them."),
    setting("kafka.enable_auto_commit", Some("enable_auto_commit"), Kind::Bool, "false",
        "Understood, and made safe: the node always commits offsets itself, together with their effects."),
    setting("kafka.consumer_sleep_interval", Some("consumer_sleep_interval"), Kind::Number(0.01, 10.0), "0.1",
        "Accepted and not needed: the node wakes when records arrive and never sleeps between polls. Seconds."),
    setting("kafka.max_retry_attempts", Some("max_retry_attempts"), Kind::Integer(0, 10), "3",
        "How often a transient failure is tried again by deployments whose `failures` do not say."),
    setting("kafka.retry_backoff_base", Some("retry_backoff_base"), Kind::Number(0.1, 60.0), "1.0",
        "The first pause between attempts of deployments whose `failures` do not say. Seconds."),
    setting("kafka.circuit_breaker_threshold", Some("circuit_breaker_threshold"), Kind::Integer(1, 100), "5",
        "After how many failures in a row a destination is left alone, for outputs without `breaker.failures`."),
    setting("kafka.circuit_breaker_reset_timeout", Some("circuit_breaker_reset_timeout"), Kind::Number(1.0, 3600.0), "30.0",
        "For how long a destination is left alone at most, for outputs without `breaker.open`. Seconds."),
    setting("kafka.dead_letter_topic", Some("dead_letter_topic"), Kind::Name, "",
        "Where dead letters of deployments go that name no topic. Not set = each has its own."),
];

/// Settings that are read but do nothing yet; a node that is given one says so at its start.
pub(super) const WITHOUT_EFFECT: &[&str] = &["kafka.consumer_sleep_interval"];

/// Pass-through client properties live below this key.
pub const PROPERTIES: &str = "kafka.properties";

pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

impl Setting {
    /// `TIDEMILL_KAFKA_BOOTSTRAP_SERVERS`.
    pub fn variable(&self) -> String {
        format!("TIDEMILL_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    /// `KAFKA_BOOTSTRAP_SERVERS`, for the settings that existing configurations know.
    pub fn kafka_variable(&self) -> Option<String> {
        self.alias.map(|alias| format!("KAFKA_{}", alias.to_ascii_uppercase()))
    }

    /// Checks a text. `seconds` says that a bare number is a duration in seconds.
    pub fn read(&self, text: &str, seconds: bool) -> Result<Value, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Value::Unset);
        }
        match self.kind {
            Kind::Text | Kind::Path | Kind::Secret => Ok(Value::Text(text.to_owned())),
            Kind::Name => name(text),
            Kind::Servers => servers(text),
            Kind::Address => text
                .parse()
                .map(Value::Address)
                .map_err(|_| format!("`{text}` is no address: write IP:PORT, for example 127.0.0.1:7600")),
            Kind::Bool => match text {
                "true" | "1" => Ok(Value::Bool(true)),
                "false" | "0" => Ok(Value::Bool(false)),
                _ => Err(format!("`{text}` is neither true nor false")),
            },
            Kind::Choice(choices) => choice(text, choices),
            Kind::Integer(low, high) => match text.parse::<u64>() {
                Ok(value) if (low..=high).contains(&value) => Ok(Value::Integer(value)),
                Ok(value) => Err(format!("{value} is outside {low} to {high}")),
                Err(_) => Err(format!("`{text}` is no whole number from {low} to {high}")),
            },
            Kind::Bytes(low, high) => {
                let value = units::parse_bytes(text)?;
                let show = units::show_bytes;
                if !(low..=high).contains(&value) {
                    return Err(format!("{} is outside {} to {}", show(value), show(low), show(high)));
                }
                Ok(Value::Integer(value))
            }
            Kind::Duration(low, high) => {
                let bare = seconds && text.parse::<f64>().is_ok();
                let value = units::parse_duration(&if bare { format!("{text}s") } else { text.to_owned() })?;
                let (low, high) = (Duration::from_millis(low), Duration::from_millis(high));
                let show = units::show_duration;
                if !(low..=high).contains(&value) {
                    return Err(format!("{} is outside {} to {}", show(value), show(low), show(high)));
                }
                Ok(Value::Duration(value))
            }
            Kind::Roles => Err("is a list of mappings, which only the file can hold".to_owned()),
            Kind::Number(low, high) => match text.parse::<f64>() {
                Ok(value) if (low..=high).contains(&value) => Ok(Value::Number(value)),
                Ok(value) => Err(format!("{value} is outside {low} to {high}")),
                Err(_) => Err(format!("`{text}` is no number from {low} to {high}")),
            },
        }
    }

    /// Kind and range, for people.
    pub fn range(&self) -> String {
        match self.kind {
            Kind::Text => "text".to_owned(),
            Kind::Name => "1 to 100 characters of a-z, A-Z, 0-9, `.`, `_`, `-`".to_owned(),
            Kind::Servers => "HOST:PORT, several separated by commas".to_owned(),
            Kind::Address => "IP:PORT".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::Secret => "secret, from the environment only".to_owned(),
            Kind::Bool => "true or false".to_owned(),
            Kind::Choice(choices) => choices.join(", "),
            Kind::Integer(low, high) => format!("whole number, {low} to {high}"),
            Kind::Bytes(low, high) => {
                format!("size, {} to {}", units::show_bytes(low), units::show_bytes(high))
            }
            Kind::Duration(low, high) => {
                let show = |ms| units::show_duration(Duration::from_millis(ms));
                format!("duration, {} to {}", show(low), show(high))
            }
            Kind::Number(low, high) => format!("number, {low} to {high}"),
            Kind::Roles => format!("list of {}, in the file only", roles::ENTRY),
        }
    }
}

fn name(text: &str) -> Result<Value, String> {
    let valid = text.len() <= 100
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !valid {
        return Err(format!(
            "`{text}` is no name: use 1 to 100 characters of a-z, A-Z, 0-9, `.`, `_` and `-`"
        ));
    }
    Ok(Value::Text(text.to_owned()))
}

fn choice(text: &str, choices: &[&str]) -> Result<Value, String> {
    let same = |choice: &&&str| choice.eq_ignore_ascii_case(text);
    match choices.iter().find(same) {
        Some(choice) => Ok(Value::Text((*choice).to_owned())),
        None => Err(format!("unknown value `{text}`, {}", suggestion(text, choices))),
    }
}

fn servers(text: &str) -> Result<Value, String> {
    let mut servers = Vec::new();
    for server in text.split(',').map(str::trim).filter(|server| !server.is_empty()) {
        let valid = server.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains("://") && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !valid {
            return Err(format!(
                "`{server}` is no broker address: write HOST:PORT, for example localhost:9092"
            ));
        }
        servers.push(server.to_owned());
    }
    if servers.is_empty() {
        return Err("names no broker: write HOST:PORT".to_owned());
    }
    Ok(Value::List(servers))
}

impl Value {
    /// As it would be written.
    pub fn show(&self, kind: Kind) -> String {
        match self {
            Value::Unset => String::new(),
            Value::Text(text) => text.clone(),
            Value::List(items) => items.join(","),
            Value::Address(address) => address.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Integer(value) if matches!(kind, Kind::Bytes(..)) => units::show_bytes(*value),
            Value::Integer(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            Value::Duration(value) => units::show_duration(*value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_passes_its_own_check_and_every_key_is_distinct() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            let value = setting.read(setting.default, false).expect(setting.key);
            let shown = value.show(setting.kind);
            assert_eq!(setting.read(&shown, false), Ok(value), "{}: {shown}", setting.key);
            assert!(SETTINGS[..at].iter().all(|earlier| earlier.key != setting.key), "{}", setting.key);
            assert!(setting.doc.ends_with('.'), "{}", setting.key);
        }
    }

    #[test]
    fn an_entry_of_roles_is_explained_with_all_that_it_may_say() {
        let setting = find("roles").expect("a setting");
        assert!(setting.doc.contains(roles::ENTRY), "{}", setting.doc);
    }

    #[test]
    fn documented_variables_have_their_documented_names() {
        let names: Vec<_> = SETTINGS.iter().filter_map(Setting::kafka_variable).collect();
        for name in [
            "KAFKA_BOOTSTRAP_SERVERS",
            "KAFKA_ENVIRONMENT",
            "KAFKA_GROUP",
            "KAFKA_TIMEOUT_SECONDS",
            "KAFKA_CONSUMER_SLEEP_INTERVAL",
            "KAFKA_AUTO_OFFSET_RESET",
            "KAFKA_ENABLE_AUTO_COMMIT",
            "KAFKA_ACKS",
            "KAFKA_ENABLE_IDEMPOTENCE",
            "KAFKA_MAX_RETRY_ATTEMPTS",
            "KAFKA_RETRY_BACKOFF_BASE",
            "KAFKA_CIRCUIT_BREAKER_THRESHOLD",
            "KAFKA_CIRCUIT_BREAKER_RESET_TIMEOUT",
            "KAFKA_DEAD_LETTER_TOPIC",
        ] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
    }
}
