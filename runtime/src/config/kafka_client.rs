//! What of a configuration only librdkafka can honour, so that it has to read and write the records.
//!
//! The node's own client does so unless it is told otherwise. Membership of groups is librdkafka's in any case, and
//! whatever concerns it stays its business. But what a property says of the connections to brokers, or of what is written,
//! is never ignored: if the node's own cannot do it, librdkafka reads and writes, and the node says so at its start.

use std::fmt;
use std::path::Path;

use super::node::{KafkaClient, KafkaConfig};

/// Batches of a producer that a broker remembers for a partition, to know one that comes again. With more under way, one
/// that was taken could be unknown when it is repeated.
pub const IN_FLIGHT_MAX: usize = 5;

/// Names of how often something is sent again, and of how much may be under way, of which the node's own client takes no
/// more notice than is told of them at its start.
const UNTIL_TIME_IS_UP: &[&str] = &["retries", "message.send.max.retries"];
const IN_FLIGHT: &[&str] = &["max.in.flight", "max.in.flight.requests.per.connection"];

/// A property that the node's own client does not know.
struct Rule {
    /// librdkafka's. One that ends in `.` or `_` stands for all that begin so.
    name: &'static str,
    /// Values that say what the node does anyway.
    same: &'static [&'static str],
    why: &'static str,
}

const YES: &[&str] = &["true", "t", "1"];
const NO: &[&str] = &["false", "f", "0"];

const fn rule(name: &'static str, same: &'static [&'static str], why: &'static str) -> Rule {
    Rule { name, same, why }
}

/// The first that fits decides.
#[rustfmt::skip]
const RULES: &[Rule] = &[
    rule("sasl.mechanisms", &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        "the node itself signs in with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    rule("ssl.key.password", &[], "the node itself does not read a private key that is encrypted"),
    rule("ssl.endpoint.identification.algorithm", &["https"], "the node itself always asks whether a broker's certificate is for its name"),
    rule("enable.ssl.certificate.verification", YES, "the node itself talks to nobody whose certificate it does not believe"),
    rule("client.rack", &[""], "the node itself reads from leaders, not from the nearest replica"),
    rule("client.dns.lookup", &["use_all_dns_ips"], "the node itself uses the names that it is given, with all their addresses"),
    rule("broker.address.family", &["any"], "the node itself uses whatever addresses a name has"),
    rule("socket.keepalive.enable", NO, "the node's own sockets have no keep-alives"),
    rule("socket.nagle.disable", YES, "the node itself sends every request at once"),
    rule("socket.receive.buffer.bytes", &["0"], "the node itself leaves the buffers of sockets to the system"),
    rule("socket.send.buffer.bytes", &["0"], "the node itself leaves the buffers of sockets to the system"),
    rule("api.version.request", YES, "the node itself always asks a broker for its versions"),
    rule("acks", &["all", "-1", "1"], "the node itself waits until what at_least_once writes is acknowledged"),
    rule("queuing.strategy", &["fifo"], "the node itself writes records in their order"),
    rule("ssl.", &[], "the node itself knows of TLS what kafka.ssl says"),
    rule("ssl_", &[], "the node itself knows of TLS what kafka.ssl says"),
    rule("sasl.", &[], "the node itself knows of signing in what kafka.sasl says"),
    rule("enable.sasl.", &[], "the node itself knows of signing in what kafka.sasl says"),
];

/// What the rules for `ssl.` and `sasl.` do not mean: it has settings of the node's, and both can do it.
const OF_BOTH: &[&str] = &[
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
];

/// How settings are named that are properties to librdkafka.
const NAMED: &[(&str, &str)] = &[
    ("acks", "kafka.acks"),
    ("sasl.mechanisms", "kafka.sasl.mechanism"),
    ("ssl.ca.location", "kafka.ssl.ca"),
    ("ssl.key.password", "kafka.ssl.key_password"),
];

/// One setting that only librdkafka can honour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// As it is named in the node's file.
    pub setting: String,
    pub why: &'static str,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.setting, self.why)
    }
}

/// Every one among `properties`, which have librdkafka's names; settings that are properties to it are among them.
pub fn obstacles<'a>(properties: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Obstacle> {
    let named = |name: &str| match NAMED.iter().find(|(known, _)| *known == name) {
        Some((_, setting)) => (*setting).to_owned(),
        None => format!("kafka.properties.{name}"),
    };
    let found = properties.into_iter().filter_map(|(name, value)| {
        let why = why(name, value)?;
        Some(Obstacle { setting: named(name), why })
    });
    found.collect()
}

/// Why only librdkafka can do what a property says; `None` = the node can, or it is not about what it does.
fn why(name: &str, value: &str) -> Option<&'static str> {
    if OF_BOTH.contains(&name) {
        let is_directory = name == "ssl.ca.location" && Path::new(value).is_dir();
        return is_directory
            .then_some("the node itself reads certificates from a file, not from a directory");
    }
    let rule = rule_of(name)?;
    let is_same = rule.same.iter().any(|same| same.eq_ignore_ascii_case(value.trim()));
    (!is_same).then_some(rule.why)
}

fn rule_of(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| match rule.name.ends_with(['.', '_']) {
        true => name.starts_with(rule.name),
        false => name == rule.name,
    })
}

/// Who fetches records of workers and restores, and writes commits: who is asked for, else the node itself if nothing
/// stands in its way.
pub fn chosen(asked: Option<KafkaClient>, obstacles: &[Obstacle]) -> KafkaClient {
    let by_default = if obstacles.is_empty() { KafkaClient::Own } else { KafkaClient::Librdkafka };
    asked.unwrap_or(by_default)
}

impl KafkaConfig {
    /// What it says that only librdkafka can honour.
    pub fn only_librdkafka(&self) -> Vec<Obstacle> {
        let mechanism = self.sasl.as_ref().map(|sasl| ("sasl.mechanisms", sasl.mechanism.as_str()));
        let ca = self.ssl.ca.as_deref().and_then(Path::to_str).map(|path| ("ssl.ca.location", path));
        // What it is does not matter.
        let password = self.ssl.key_password.as_ref().map(|_| ("ssl.key.password", ""));
        let acks = Some(("acks", self.acks.as_str()));
        let properties = self.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        obstacles([mechanism, ca, password, acks].into_iter().flatten().chain(properties))
    }

    /// What to say of it if librdkafka reads and writes, though nobody has said that it shall.
    pub fn why_librdkafka(&self) -> Option<String> {
        let obstacles = self.only_librdkafka();
        if self.client.is_some() || obstacles.is_empty() {
            return None;
        }
        let shown: Vec<String> = obstacles.iter().map(Obstacle::to_string).collect();
        Some(format!(
            "librdkafka reads and writes records, which takes more CPU than if the node does, because only it can do as is configured: {}",
            shown.join("; ")
        ))
    }

    /// What of it has no effect, or less than it says, because the node's own client writes.
    pub(super) fn notes_of_own_client(&self) -> Vec<String> {
        if chosen(self.client, &self.only_librdkafka()) != KafkaClient::Own {
            return Vec::new();
        }
        let note = |(name, value): (&String, &String)| {
            let is_one_of = |names: &[&str]| names.contains(&name.as_str());
            if is_one_of(UNTIL_TIME_IS_UP) {
                let why = "the node itself tries again until the time is up; without effect where it writes";
                return Some(format!("kafka.properties.{name}: {why}"));
            }
            let wanted = value.trim().parse::<usize>().ok().filter(|wanted| *wanted > IN_FLIGHT_MAX)?;
            is_one_of(IN_FLIGHT).then(|| {
                format!(
                    "kafka.properties.{name}: {IN_FLIGHT_MAX}, which is the most that the node itself has under way, and not {wanted}"
                )
            })
        };
        self.properties.iter().filter_map(note).collect()
    }

    /// What is wrong with it if the node's own client is asked for and cannot do it; each with what to do.
    pub(super) fn problems_of_own_client(&self) -> Vec<String> {
        if self.client != Some(KafkaClient::Own) {
            return Vec::new();
        }
        let told = |obstacle: Obstacle| {
            let Obstacle { setting, why } = obstacle;
            format!(
                "own does not go with {setting}: {why}; leave {setting} out, or leave it to librdkafka (kafka.client: librdkafka)"
            )
        };
        self.only_librdkafka().into_iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::librdkafka_names::NAMES;
    use super::*;

    /// What the node's own client honours as librdkafka does, or is a setting of its own.
    const HONOURED: &[&str] = &[
        "bootstrap.servers",
        "client.id",
        "compression.codec",
        "compression.level",
        "compression.type",
        "delivery.timeout.ms",
        // Nothing of a commit is written behind what failed, and no other commit with the same sequence of numbers.
        "enable.gapless.guarantee",
        "enable.idempotence",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.wait.max.ms",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "max.partition.fetch.bytes",
        "message.max.bytes",
        "message.timeout.ms",
        "metadata.broker.list",
        "partitioner",
        "queue.buffering.max.kbytes",
        "queued.max.messages.kbytes",
        "receive.message.max.bytes",
        // The other name of `acks`, and the same setting.
        "request.required.acks",
        "request.timeout.ms",
        "security.protocol",
        "socket.connection.setup.timeout.ms",
        "socket.timeout.ms",
        // How often the producer looks; who reads learns of new leaders from brokers' answers.
        "topic.metadata.refresh.interval.ms",
    ];

    /// What the node fixes, or what is of membership, of how librdkafka works inside (docs/operations.md tells operators what
    /// of that has no effect), or of brokers that are too old for the node.
    const NOT_OF_RECORDS: &[&str] = &[
        "allow.auto.create.topics",
        "api.version.fallback.ms",
        "api.version.request.timeout.ms",
        "auto.commit.enable",
        "auto.commit.interval.ms",
        "auto.offset.reset",
        // Of records; the node's own batches are bounded by bytes, as is said of their topic.
        "batch.num.messages",
        "batch.size",
        "broker.address.ttl",
        "broker.version.fallback",
        "check.crcs",
        "connections.max.idle.ms",
        "consume.callback.max.messages",
        "coordinator.query.interval.ms",
        "debug",
        "delivery.report.only.error",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.metrics.push",
        "enable.partition.eof",
        "enable.random.seed",
        "enabled_events",
        "fetch.error.backoff.ms",
        "fetch.queue.backoff.ms",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "group.protocol.type",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        // Of the server that gives out tokens for OAUTHBEARER, which is an obstacle itself.
        "https.ca.location",
        "https.ca.pem",
        "internal.termination.signal",
        "isolation.level",
        // A commit sends its records at once.
        "linger.ms",
        "log.connection.close",
        "log.queue",
        "log.thread.name",
        "log_level",
        "max.poll.interval.ms",
        "message.copy.max.bytes",
        // Until the time is up, the node's own tries again.
        "message.send.max.retries",
        "metadata.max.age.ms",
        "metadata.recovery.rebootstrap.trigger.ms",
        "metadata.recovery.strategy",
        "msg_order_cmp",
        "offset.store.method",
        "offset.store.path",
        "offset.store.sync.interval.ms",
        "partition.assignment.strategy",
        "plugin.library.paths",
        "produce.offset.report",
        "queue.buffering.backpressure.threshold",
        // Bounds of records, for what librdkafka spends on each; the node's own are bounded by bytes.
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        "queued.min.messages",
        "reconnect.backoff.jitter.ms",
        "reconnect.backoff.max.ms",
        "reconnect.backoff.ms",
        "retries",
        "retry.backoff.max.ms",
        "retry.backoff.ms",
        "session.timeout.ms",
        "socket.blocking.max.ms",
        "socket.max.fails",
        "statistics.interval.ms",
        // Records without a key stay together for a batch, or a commit.
        "sticky.partitioning.linger.ms",
        "topic.blacklist",
        "topic.metadata.propagation.max.ms",
        "topic.metadata.refresh.fast.cnt",
        "topic.metadata.refresh.fast.interval.ms",
        "topic.metadata.refresh.sparse",
        "transaction.timeout.ms",
        "transactional.id",
    ];

    #[test]
    fn of_every_property_somebody_has_decided_whether_the_node_can_do_it() {
        for name in NAMES {
            let decisions = [
                OF_BOTH.contains(name),
                !OF_BOTH.contains(name) && rule_of(name).is_some(),
                HONOURED.contains(name),
                NOT_OF_RECORDS.contains(name),
            ];
            let decided = decisions.iter().filter(|decided| **decided).count();
            assert_eq!(decided, 1, "{name}: {decisions:?}");
        }
    }

    #[test]
    fn a_property_with_the_value_that_the_node_goes_by_anyway_is_no_obstacle() {
        for (name, value, is_one) in [
            ("sasl.mechanisms", "SCRAM-SHA-512", false),
            ("sasl.mechanisms", "OAUTHBEARER", true),
            ("ssl.endpoint.identification.algorithm", "https", false),
            ("ssl.endpoint.identification.algorithm", "none", true),
            ("enable.ssl.certificate.verification", "True", false),
            ("enable.ssl.certificate.verification", "false", true),
            ("socket.keepalive.enable", "true", true),
            ("socket.receive.buffer.bytes", "0", false),
            ("broker.address.family", "v4", true),
            ("client.rack", "a", true),
            ("ssl.cipher.suites", "", true),
            ("ssl.ca.location", "/etc/ca.pem", false),
            ("fetch.min.bytes", "1000", false),
            ("compression.type", "zstd", false),
            ("acks", "all", false),
            ("acks", "-1", false),
            ("acks", "1", false),
            ("acks", "0", true),
            ("queuing.strategy", "fifo", false),
            ("queuing.strategy", "lifo", true),
        ] {
            assert_eq!(!obstacles([(name, value)]).is_empty(), is_one, "{name}={value}");
        }
    }

    #[test]
    fn certificates_in_a_directory_are_librdkafkas_to_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let found = obstacles([("ssl.ca.location", directory.path().to_str().expect("UTF-8"))]);
        assert_eq!(found.iter().map(|found| found.setting.as_str()).collect::<Vec<_>>(), ["kafka.ssl.ca"]);
    }
}
