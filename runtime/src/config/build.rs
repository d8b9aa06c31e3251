//! Checked values to a [`NodeConfig`], and the combinations that do not go together.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::deployment::Start;
use super::document::SpecDefaults;
use super::files;
use super::listen;
use super::load::Values;
use super::node::{
    GroupProtocol, KafkaClient, KafkaConfig, LogConfig, LogFormat, MemoryBudget, NodeConfig, Sasl, Secret,
    Ssl,
};
use super::outbox::BreakerSpec;
use super::policy::Policy;
use super::roles::Grant;
use super::settings::Value;
use crate::telemetry::LogBounds;

/// `None` only if something was reported.
pub(super) fn node_config(
    values: &Values<'_>,
    roles: Vec<Grant>,
    mut notes: Vec<String>,
) -> Option<NodeConfig> {
    let listen = listen::read(values);
    check_producer(values);
    check_session(values);
    let kafka = kafka(values)?;
    notes.extend(kafka.notes_of_own_client());
    Some(NodeConfig {
        fleet: text(values, "fleet").unwrap_or_default(),
        node_id: text(values, "node_id"),
        environment: text(values, "environment").unwrap_or_default(),
        group: text(values, "group").unwrap_or_default(),
        state_dir: path(values, "state_dir").unwrap_or_default(),
        state_free_min_bytes: integer(values, "state_free_min"),
        state_unused_keep: duration(values, "state_unused_keep"),
        listen,
        roles,
        roles_file: values.file_of("roles"),
        shutdown_timeout: duration(values, "shutdown_timeout"),
        replication_factor: integer(values, "replication_factor") as i16,
        memory: MemoryBudget {
            value_cache_bytes: integer(values, "memory.value_cache"),
            block_cache_bytes: integer(values, "memory.block_cache"),
            write_buffers_bytes: integer(values, "memory.write_buffers"),
            queues_bytes: integer(values, "memory.queues"),
        },
        defaults: SpecDefaults {
            start: match text(values, "kafka.auto_offset_reset").as_deref() {
                Some("latest") => Start::Latest,
                _ => Start::Earliest,
            },
            workers: integer(values, "defaults.workers") as u32,
            commit_interval: duration(values, "defaults.commit_interval"),
            batch_records: integer(values, "defaults.batch_records") as u32,
            policy: policy(values),
            attempts: integer(values, "kafka.max_retry_attempts") as u32,
            first_pause: seconds(values, "kafka.retry_backoff_base"),
            breaker: BreakerSpec {
                failures: integer(values, "kafka.circuit_breaker_threshold") as u32,
                open: seconds(values, "kafka.circuit_breaker_reset_timeout"),
            },
            dead_letters: text(values, "kafka.dead_letter_topic"),
        },
        log: LogConfig {
            format: match text(values, "log.format").as_deref() {
                Some("json") => LogFormat::Json,
                _ => LogFormat::Human,
            },
            filter: text(values, "log.filter").unwrap_or_default(),
        },
        handler_logs: LogBounds {
            lines: integer(values, "log.handler_lines") as usize,
            bytes: integer(values, "log.handler_bytes") as usize,
        },
        kafka,
        notes,
    })
}

fn policy(values: &Values<'_>) -> Policy {
    let number = |key| match values.get(key) {
        Value::Integer(value) => Some(*value),
        _ => None,
    };
    Policy {
        memory_bytes: number("policy.memory"),
        batch_time: match values.get("policy.batch_time") {
            Value::Duration(time) => Some(*time),
            _ => None,
        },
        emit_bytes: number("policy.emit_bytes"),
        emit_records: number("policy.emit_records"),
        table_elements: number("policy.table_elements"),
        batch_records: number("policy.batch_records"),
        store_bytes: number("policy.store_bytes"),
        log_lines: number("policy.log_lines"),
    }
}

fn kafka(values: &Values<'_>) -> Option<KafkaConfig> {
    let security_protocol = text(values, "kafka.security_protocol").unwrap_or_default();
    let sasl = sasl(values, &security_protocol);
    let ssl = ssl(values, &security_protocol);
    let properties: BTreeMap<String, String> =
        values.properties.iter().map(|(name, (value, _))| (name.clone(), value.clone())).collect();
    let kafka = KafkaConfig {
        bootstrap_servers: list(values, "kafka.bootstrap_servers"),
        security_protocol,
        sasl,
        ssl,
        connect_timeout: duration(values, "kafka.connect_timeout"),
        group_protocol: match text(values, "kafka.group_protocol").as_deref() {
            Some("consumer") => GroupProtocol::Consumer,
            _ => GroupProtocol::Classic,
        },
        client: match text(values, "kafka.client").as_deref() {
            Some("own") => Some(KafkaClient::Own),
            Some("librdkafka") => Some(KafkaClient::Librdkafka),
            _ => None,
        },
        acks: text(values, "kafka.acks").unwrap_or_default(),
        enable_idempotence: flag(values, "kafka.enable_idempotence"),
        partitioner: text(values, "kafka.partitioner").unwrap_or_default(),
        properties,
    };
    for problem in kafka.problems_of_own_client() {
        values.refuse("kafka.client", problem);
    }
    Some(kafka)
}

fn sasl(values: &Values<'_>, protocol: &str) -> Option<Sasl> {
    let wanted = protocol.starts_with("SASL_");
    let password = secret(values, "kafka.sasl.password", "kafka.sasl.password_file");
    if !wanted {
        for key in
            ["kafka.sasl.mechanism", "kafka.sasl.username", "kafka.sasl.password", "kafka.sasl.password_file"]
        {
            if values.is_given(key) {
                let setting = values.name("kafka.security_protocol");
                let message = format!(
                    "has no effect with {setting} {protocol}: set {setting} to SASL_SSL, or leave it out"
                );
                values.refuse(key, message);
            }
        }
        return None;
    }
    let Some(mechanism) = text(values, "kafka.sasl.mechanism") else {
        let message = format!("{protocol} needs kafka.sasl.mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512");
        values.refuse("kafka.security_protocol", message);
        return None;
    };
    let username = text(values, "kafka.sasl.username");
    if mechanism != "OAUTHBEARER" && (username.is_none() || password.is_none()) {
        let message = format!(
            "{mechanism} needs kafka.sasl.username and a password (TIDEMILL_KAFKA_SASL_PASSWORD or kafka.sasl.password_file)"
        );
        values.refuse("kafka.sasl.mechanism", message);
    }
    Some(Sasl { mechanism, username, password })
}

fn ssl(values: &Values<'_>, protocol: &str) -> Ssl {
    let keys = ["kafka.ssl.ca", "kafka.ssl.certificate", "kafka.ssl.key"];
    let encrypted = protocol == "SSL" || protocol == "SASL_SSL";
    for key in keys {
        if values.is_given(key) && !encrypted {
            let setting = values.name("kafka.security_protocol");
            let message =
                format!("has no effect with {setting} {protocol}: set {setting} to SSL or SASL_SSL");
            values.refuse(key, message);
            continue;
        }
        if let Some(path) = path(values, key)
            && let Err(error) = std::fs::File::open(&path)
        {
            values.refuse(key, format!("{} cannot be read: {error}", path.display()));
        }
    }
    let ssl = Ssl {
        ca: path(values, keys[0]),
        certificate: path(values, keys[1]),
        key: path(values, keys[2]),
        key_password: secret(values, "kafka.ssl.key_password", "kafka.ssl.key_password_file"),
    };
    if ssl.certificate.is_some() != ssl.key.is_some() {
        let (given, missing) = if ssl.key.is_some() { (keys[2], keys[1]) } else { (keys[1], keys[2]) };
        values.refuse(given, format!("needs {missing} as well"));
    }
    ssl
}

/// From the variable, or from the file that a setting names.
fn secret(values: &Values<'_>, key: &str, file_key: &str) -> Option<Secret> {
    let direct = text(values, key);
    let Some(file) = path(values, file_key) else {
        return direct.map(Secret::new);
    };
    if direct.is_some() {
        values.refuse(file_key, format!("and {} are both given: keep one", values.name(key)));
        return None;
    }
    match files::secret(&file) {
        Ok(secret) => Some(Secret::new(secret)),
        Err(message) => {
            values.refuse(file_key, message);
            None
        }
    }
}

fn check_producer(values: &Values<'_>) {
    let (acks, idempotence) = ("kafka.acks", "kafka.enable_idempotence");
    let all = matches!(text(values, acks).as_deref(), Some("all" | "-1"));
    if !flag(values, idempotence) {
        return;
    }
    if !all {
        let message = format!(
            "{} does not go with {} true: set {} all, or {} false",
            text(values, acks).unwrap_or_default(),
            values.name(idempotence),
            values.name(acks),
            values.name(idempotence)
        );
        values.refuse(acks, message);
    }
    for name in ["max.in.flight.requests.per.connection", "max.in.flight"] {
        if let Some((value, _)) = values.properties.get(name)
            && value.parse::<u64>().is_ok_and(|value| value > 5)
        {
            let message = format!(
                "kafka.properties.{name} {value} does not go with {} true: at most 5 requests may be in flight",
                values.name(idempotence)
            );
            values.refuse(idempotence, message);
        }
    }
}

/// As Kafka's documentation has it: 3:1.
const HEARTBEATS_PER_SESSION_MIN: u64 = 3;

/// Group membership settings have an order of their own; the broker would only say "rejected".
fn check_session(values: &Values<'_>) {
    let number = |name: &str| -> Option<u64> { values.properties.get(name)?.0.parse().ok() };
    let session = number("session.timeout.ms").unwrap_or(10_000);
    let poll = number("max.poll.interval.ms").unwrap_or(300_000);
    let key = "kafka.properties";
    // One that is not set is a fifth of the session.
    if let Some(heartbeat) = number("heartbeat.interval.ms")
        && heartbeat.saturating_mul(HEARTBEATS_PER_SESSION_MIN) > session
    {
        let message = format!(
            "heartbeat.interval.ms ({heartbeat}) must be at most a third of session.timeout.ms ({session}): one that is late must \
             not end the session"
        );
        values.refuse(key, message);
    }
    if poll < session {
        let message =
            format!("max.poll.interval.ms ({poll}) must not be below session.timeout.ms ({session})");
        values.refuse(key, message);
    }
}

fn text(values: &Values<'_>, key: &str) -> Option<String> {
    match values.get(key) {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    }
}

pub(super) fn path(values: &Values<'_>, key: &str) -> Option<PathBuf> {
    text(values, key).map(PathBuf::from)
}

pub(super) fn list(values: &Values<'_>, key: &str) -> Vec<String> {
    match values.get(key) {
        Value::List(items) => items.clone(),
        _ => Vec::new(),
    }
}

fn integer(values: &Values<'_>, key: &str) -> u64 {
    match values.get(key) {
        Value::Integer(value) => *value,
        _ => 0,
    }
}

pub(super) fn flag(values: &Values<'_>, key: &str) -> bool {
    matches!(values.get(key), Value::Bool(true))
}

/// A bare number of seconds.
fn seconds(values: &Values<'_>, key: &str) -> Duration {
    match values.get(key) {
        Value::Number(value) => Duration::from_secs_f64(*value),
        _ => Duration::ZERO,
    }
}

fn duration(values: &Values<'_>, key: &str) -> Duration {
    match values.get(key) {
        Value::Duration(value) => *value,
        _ => Duration::ZERO,
    }
}

pub(super) fn address(values: &Values<'_>, key: &str) -> SocketAddr {
    match values.get(key) {
        Value::Address(address) => *address,
        _ => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}
