//! Pass-through client properties: which are librdkafka's, which are Java's and mean something
//! else here, and which the node sets itself.
//!
//! A property is translated or refused, never ignored: a name from a Java configuration that the
//! client would not know must not look as if it had an effect.

use super::librdkafka_names::NAMES;
use super::problem::nearest;

/// What becomes of one property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Handed to librdkafka under this name and value.
    Pass {
        name: String,
        value: String,
    },
    /// It means one of the node's own settings.
    Setting {
        key: &'static str,
        value: String,
    },
    /// Right as it is and without effect, because the node always does so; worth a line in the log.
    Implied(&'static str),
    Refuse(String),
}

/// Java's names and librdkafka's for the same thing; and of the two that librdkafka has for some, the one that is not
/// Java's.
const RENAMED: &[(&str, &str)] = &[
    ("fetch.max.wait.ms", "fetch.wait.max.ms"),
    ("max.request.size", "message.max.bytes"),
    ("receive.buffer.bytes", "socket.receive.buffer.bytes"),
    ("send.buffer.bytes", "socket.send.buffer.bytes"),
    ("socket.connection.setup.timeout.ms", "socket.connection.setup.timeout.ms"),
    ("default.api.timeout.ms", "socket.timeout.ms"),
    ("request.timeout.ms", "socket.timeout.ms"),
    ("compression.codec", "compression.type"),
    ("fetch.message.max.bytes", "max.partition.fetch.bytes"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("message.send.max.retries", "retries"),
    ("message.timeout.ms", "delivery.timeout.ms"),
];

/// Properties that are one of our own settings.
const OWN: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka.bootstrap_servers"),
    ("metadata.broker.list", "kafka.bootstrap_servers"),
    ("security.protocol", "kafka.security_protocol"),
    ("sasl.mechanism", "kafka.sasl.mechanism"),
    ("sasl.mechanisms", "kafka.sasl.mechanism"),
    ("ssl.ca.location", "kafka.ssl.ca"),
    ("ssl.certificate.location", "kafka.ssl.certificate"),
    ("ssl.key.location", "kafka.ssl.key"),
    ("acks", "kafka.acks"),
    ("request.required.acks", "kafka.acks"),
    ("enable.idempotence", "kafka.enable_idempotence"),
    ("enable.auto.commit", "kafka.enable_auto_commit"),
    ("auto.offset.reset", "kafka.auto_offset_reset"),
    ("max.poll.records", "defaults.batch_records"),
    ("partitioner", "kafka.partitioner"),
    ("group.protocol", "kafka.group_protocol"),
    // Of Kafka Streams.
    ("num.stream.threads", "defaults.workers"),
    ("replication.factor", "replication_factor"),
    ("state.dir", "state_dir"),
];

/// Properties that the node's way of committing makes needless; given ones are noted in the log.
const IMPLIED: &[(&str, &str)] = &[
    ("linger.ms", "every commit sends its records at once; without effect"),
    ("queue.buffering.max.ms", "every commit sends its records at once; without effect"),
    ("batch.size", "batches are as large as their topic allows; without effect"),
    ("max.block.ms", "the client never blocks in a send; without effect"),
];

/// Properties that would break a guarantee, or that have no counterpart; each with what to do.
const REFUSED: &[(&str, &str)] = &[
    (
        "group.id",
        "the node names its groups {environment}.{group}.{deployment}: set `environment` and `group`",
    ),
    ("group.instance.id", "the node derives it from its persisted id"),
    ("group.remote.assignor", "the node chooses it by the number of inputs of a deployment"),
    ("partition.assignment.strategy", "the node chooses it by the number of inputs of a deployment"),
    ("transactional.id", "the node derives it from fleet, deployment, node id and worker"),
    ("transaction.timeout.ms", "the node keeps transactions to milliseconds and sets it itself"),
    ("enable.auto.offset.store", "the node owns its offsets"),
    ("auto.commit.interval.ms", "the node commits offsets with their effects: set defaults.commit_interval"),
    ("offset.store.method", "the node owns its offsets"),
    (
        "processing.guarantee",
        "the node commits exactly once unless a deployment's document says `guarantee: at_least_once`",
    ),
    ("application.id", "set `fleet`; a deployment's group is {environment}.{group}.{deployment}"),
    ("allow.auto.create.topics", "topics are never created by accident: use `tidemill topics create`"),
    ("sasl.jaas.config", "set kafka.sasl.username and TIDEMILL_KAFKA_SASL_PASSWORD instead"),
    ("sasl.username", "set kafka.sasl.username instead"),
    (
        "sasl.password",
        "set TIDEMILL_KAFKA_SASL_PASSWORD or kafka.sasl.password_file, so that it stays hidden",
    ),
    ("ssl.key.password", "set TIDEMILL_KAFKA_SSL_KEY_PASSWORD or kafka.ssl.key_password_file"),
    (
        "ssl.truststore.location",
        "a Java trust store is not read: export the certificate as PEM, set kafka.ssl.ca",
    ),
    (
        "ssl.truststore.password",
        "a Java trust store is not read: export the certificate as PEM, set kafka.ssl.ca",
    ),
    (
        "ssl.truststore.type",
        "a Java trust store is not read: export the certificate as PEM, set kafka.ssl.ca",
    ),
    ("ssl.keystore.type", "give kafka.ssl.certificate and kafka.ssl.key as PEM instead"),
    ("key.serializer", "records are bytes to the node: encode in the handler"),
    ("value.serializer", "records are bytes to the node: encode in the handler"),
    ("key.deserializer", "records are bytes to the node: decode in the handler"),
    ("value.deserializer", "records are bytes to the node: decode in the handler"),
    ("partitioner.class", "Java classes cannot be loaded: set kafka.partitioner"),
    ("interceptor.classes", "Java classes cannot be loaded"),
    ("metric.reporters", "Java classes cannot be loaded: scrape /metrics"),
    ("plugin.library.paths", "foreign code is not loaded into the node"),
];

/// Decides what becomes of one property.
pub(super) fn judge(name: &str, value: &str) -> Fate {
    let find = |table: &'static [(&str, &'static str)]| {
        table.iter().find(|(from, _)| *from == name).map(|&(_, to)| to)
    };
    if name == "isolation.level" {
        return match value {
            "read_committed" => Fate::Implied("the node always reads committed records only"),
            _ => {
                Fate::Refuse("only read_committed is possible: other records may never have happened".into())
            }
        };
    }
    if name == "check.crcs" {
        return match value {
            "true" => Fate::Implied("the node always checks checksums"),
            _ => Fate::Refuse("checksums are always checked".into()),
        };
    }
    if let Some(note) = find(IMPLIED) {
        return Fate::Implied(note);
    }
    if let Some(key) = find(OWN) {
        return Fate::Setting { key, value: value.to_owned() };
    }
    if name == "commit.interval.ms" {
        return Fate::Setting { key: "defaults.commit_interval", value: format!("{value}ms") };
    }
    if let Some(reason) = find(REFUSED) {
        return Fate::Refuse(reason.to_owned());
    }
    if name == "buffer.memory" {
        return buffer_memory(value);
    }
    let name = find(RENAMED).unwrap_or(name);
    match NAMES.contains(&name) {
        true => Fate::Pass { name: name.to_owned(), value: value.to_owned() },
        false => Fate::Refuse(unknown(name)),
    }
}

/// Java counts the producer's queue in bytes, librdkafka in KiB.
fn buffer_memory(value: &str) -> Fate {
    match super::units::parse_bytes(value) {
        Ok(bytes) if (1024..=2_147_483_647 * 1024).contains(&bytes) => {
            Fate::Pass { name: "queue.buffering.max.kbytes".to_owned(), value: (bytes / 1024).to_string() }
        }
        Ok(_) => Fate::Refuse("is outside 1KiB to 2TiB".to_owned()),
        Err(message) => Fate::Refuse(message),
    }
}

fn unknown(name: &str) -> String {
    let java = RENAMED.iter().chain(OWN).chain(REFUSED).map(|(name, _)| *name);
    match nearest(name, NAMES.iter().copied().chain(java)) {
        Some(near) => format!("unknown client property, did you mean `{near}`?"),
        None => "unknown client property: librdkafka's CONFIGURATION.md lists them".to_owned(),
    }
}

/// True for values that must not be shown, in no log either.
pub fn is_secret(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let words = ["password", "passphrase", "secret", "pem", "token", "config", "jaas"];
    words.iter().any(|word| last.contains(word))
}

/// True for what signs somebody in. Certificates and names are no secret, but may be hidden all the same.
pub(super) fn is_credential(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    ["password", "passphrase", "secret"].iter().any(|word| last.contains(word)) || name.ends_with("key.pem")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_java_settings_are_translated_or_refused() {
        let pass = |name: &str, value: &str| Fate::Pass { name: name.into(), value: value.into() };
        for (given, value, expected) in [
            ("retries", "3", pass("retries", "3")),
            ("compression.type", "lz4", pass("compression.type", "lz4")),
            ("buffer.memory", "67108864", pass("queue.buffering.max.kbytes", "65536")),
            ("fetch.min.bytes", "1024", pass("fetch.min.bytes", "1024")),
            ("fetch.max.wait.ms", "500", pass("fetch.wait.max.ms", "500")),
            ("max.partition.fetch.bytes", "1048576", pass("max.partition.fetch.bytes", "1048576")),
            ("fetch.max.bytes", "10485760", pass("fetch.max.bytes", "10485760")),
            ("client.rack", "a", pass("client.rack", "a")),
        ] {
            assert_eq!(judge(given, value), expected, "{given}");
        }
        assert_eq!(
            judge("max.poll.records", "500"),
            Fate::Setting { key: "defaults.batch_records", value: "500".into() }
        );
        for (given, value, key, own) in [
            ("commit.interval.ms", "100", "defaults.commit_interval", "100ms"),
            ("num.stream.threads", "3", "defaults.workers", "3"),
            ("replication.factor", "3", "replication_factor", "3"),
        ] {
            assert_eq!(judge(given, value), Fate::Setting { key, value: own.into() }, "{given}");
        }
        for implied in ["batch.size", "linger.ms", "max.block.ms"] {
            assert!(matches!(judge(implied, "10"), Fate::Implied(_)), "{implied}");
        }
        for refused in [
            "processing.guarantee",
            "sasl.jaas.config",
            "ssl.truststore.location",
            "transactional.id",
            "group.id",
        ] {
            assert!(matches!(judge(refused, "1"), Fate::Refuse(_)), "{refused}");
        }
        assert_eq!(
            judge("linger.msec", "5"),
            Fate::Refuse("unknown client property, did you mean `linger.ms`?".into())
        );
        assert!(matches!(judge("isolation.level", "read_uncommitted"), Fate::Refuse(_)));
    }

    #[test]
    fn what_signs_in_is_told_from_what_may_be_shown() {
        let secrets: Vec<&str> = NAMES.iter().copied().filter(|name| is_secret(name)).collect();
        for name in [
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.keystore.password",
        ] {
            assert!(secrets.contains(&name), "{name}");
        }
        for name in ["sasl.oauthbearer.token.endpoint.url", "ssl.key.location"] {
            assert!(!secrets.contains(&name), "{name}");
        }
        let mut credentials = NAMES.iter().copied().filter(|name| is_credential(name));
        assert!(credentials.all(|name| secrets.contains(&name)));
        assert!(is_credential("ssl.key.pem") && !is_credential("ssl.certificate.pem"));
    }
}
