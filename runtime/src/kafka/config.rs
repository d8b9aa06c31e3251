//! How to reach a cluster, and which librdkafka settings that makes.
//!
//! Three kinds of settings: what the operator says (servers, security, `properties`), what the
//! node computes (queue bounds, ids), and what correctness rests on. The last kind is refused in
//! `properties` by name: a different isolation level or partitioner would not be a tuning but
//! another program.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::ffi::{self, Settings};
use crate::config::kafka_client::{Obstacle, chosen, obstacles};
use crate::config::kafka_properties::is_secret;
use crate::config::node::{GroupProtocol, KafkaClient};

/// What a person wrote about Kafka. Secrets are in `properties` like everything else and never
/// appear in `Debug` output or in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated.
    pub bootstrap_servers: String,
    pub client_id: String,
    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.
    pub security_protocol: String,
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`; `None` without SASL.
    pub sasl_mechanism: Option<String>,
    pub sasl_username: Option<String>,
    pub sasl_password: Option<String>,
    /// librdkafka's own names (`ssl.ca.location`, `compression.type`, ...), passed through.
    pub properties: BTreeMap<String, String>,
    /// Where keys go; anything but `murmur2_random` parts with what Java producers do.
    pub partitioner: String,
    /// Of producers without transactions (`at_least_once`); with them it is always all.
    pub acks: String,
    /// As for `acks`.
    pub enable_idempotence: bool,
    /// Who fetches records of workers and restores, and writes commits; `None` = the node itself, unless only librdkafka
    /// can do as is configured.
    pub client: Option<KafkaClient>,
    pub limits: KafkaLimits,
}

/// Bounds of queues, per client, the node's own or librdkafka's. The defaults of that one allow 64 MiB per consumer
/// and 1 GiB per producer, which a node with many workers cannot afford.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaLimits {
    /// Fetched ahead and not yet taken, per consumer.
    pub fetch_queue_kib: u32,
    /// What a restore holds of a log, fetched ahead or being applied, if the node itself fetches it.
    pub restore_queue_kib: u32,
    /// One fetch response.
    pub fetch_bytes: u32,
    /// One partition's part of a fetch response. A larger single record still comes through.
    pub partition_fetch_bytes: u32,
    /// Produced and not yet acknowledged, per producer.
    pub produce_queue_kib: u32,
    /// The same in records; the node's own producer counts bytes alone.
    pub produce_queue_records: u32,
    /// Largest record that a producer tries to send; the topic's own limit is the broker's to apply.
    pub record_bytes: u32,
    /// A member that misses heartbeats for this long is dead to its group.
    pub session_timeout: Duration,
    /// A member that does not poll for this long leaves its group.
    pub poll_interval: Duration,
    pub transaction_timeout: Duration,
    /// Clients look this often whether topics have changed.
    pub metadata_refresh: Duration,
}

/// Room for a fetch of one partition, and for the largest record of a topic with Kafka's defaults,
/// twice over (which is what its changelog may hold).
const FETCH_QUEUE_KIB_MIN: u32 = 1024;
const PRODUCE_QUEUE_KIB_MIN: u32 = 4 * 1024;
/// Enough that no restore waits for the way to the broker and back, and no more than helps it.
const RESTORE_QUEUE_KIB: (u32, u32) = (2 * 1024, 16 * 1024);
/// A fetch of a restore has that part of what the restore may hold. Beside it there may be what is applied and what came
/// last, each of them up to [`RESTORE_UNPACKS`] times as large once it is unpacked.
const RESTORE_FETCHES: u32 = 1 + 2 * RESTORE_UNPACKS as u32;
const RESTORE_UNPACKS: usize = 2;
/// What an answer may unpack to, in times of what it was to have: most records shrink to a half or a fifth, and what is
/// beyond the bound has to be fetched once more.
const UNPACKS: usize = 8;
/// A fetch of a restore that has no news ends after that; it is only repeated then.
const RESTORE_WAIT_MAX: Duration = Duration::from_millis(500);
/// Records of a partition that are fetched ahead: two fetches of small ones. librdkafka's 100,000 are mostly its own
/// 400 bytes for each, which `fetch_queue_kib` does not count (docs/performance.md).
const FETCHED_AHEAD: u32 = 20_000;

impl Default for KafkaLimits {
    fn default() -> KafkaLimits {
        KafkaLimits {
            fetch_queue_kib: 16 * 1024,
            restore_queue_kib: RESTORE_QUEUE_KIB.1,
            fetch_bytes: 8 << 20,
            partition_fetch_bytes: 1 << 20,
            produce_queue_kib: 64 * 1024,
            produce_queue_records: 500_000,
            record_bytes: 16 << 20,
            session_timeout: Duration::from_secs(10),
            poll_interval: Duration::from_secs(300),
            transaction_timeout: Duration::from_secs(10),
            metadata_refresh: Duration::from_secs(30),
        }
    }
}

impl KafkaLimits {
    /// Lowers the queues so that a worker's consumer and producer together hold about `bytes`: a
    /// quarter fetched ahead, the rest on its way out, because a commit produces all it has at once.
    pub fn within(mut self, bytes: u64) -> KafkaLimits {
        let kib = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        self.fetch_queue_kib = self.fetch_queue_kib.min(kib(bytes / 4).max(FETCH_QUEUE_KIB_MIN));
        self.produce_queue_kib = self.produce_queue_kib.min(kib(bytes / 4 * 3).max(PRODUCE_QUEUE_KIB_MIN));
        // A record that does not fit an empty queue would wait for ever instead of being refused.
        self.record_bytes = self.record_bytes.min(self.produce_queue_kib.saturating_mul(1024));
        self
    }

    /// Lowers what a restore holds so that `restores` at once hold about `bytes` together.
    pub fn restores_within(mut self, bytes: u64, restores: u64) -> KafkaLimits {
        let share = u32::try_from((bytes / restores.max(1)) >> 10).unwrap_or(u32::MAX);
        self.restore_queue_kib = self.restore_queue_kib.min(share).max(RESTORE_QUEUE_KIB.0);
        self
    }
}

impl KafkaConfig {
    /// A plaintext cluster with defaults for everything else.
    pub fn new(bootstrap_servers: impl Into<String>) -> KafkaConfig {
        KafkaConfig {
            bootstrap_servers: bootstrap_servers.into(),
            client_id: "tidemill".to_owned(),
            security_protocol: "plaintext".to_owned(),
            sasl_mechanism: None,
            sasl_username: None,
            sasl_password: None,
            properties: BTreeMap::new(),
            partitioner: "murmur2_random".to_owned(),
            acks: "all".to_owned(),
            enable_idempotence: true,
            client: None,
            limits: KafkaLimits::default(),
        }
    }

    /// Every problem of the configuration that shows without a broker.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.bootstrap_servers.split(',').all(|server| server.trim().is_empty()) {
            problems.push("no bootstrap server is given".to_owned());
        }
        if self.security_protocol.to_ascii_lowercase().starts_with("sasl") && self.sasl_mechanism.is_none() {
            problems.push(format!("security protocol `{}` needs a SASL mechanism", self.security_protocol));
        }
        for (name, value) in &self.properties {
            if let Some(why) = fixed(name) {
                problems.push(format!("kafka property `{name}` cannot be changed: {why}"));
            } else if let Err(error) = ffi::check_setting(name, value) {
                problems.push(error.text);
            }
        }
        for (name, value) in self.connection() {
            if !self.properties.contains_key(&name)
                && let Err(error) = ffi::check_setting(&name, &value)
            {
                problems.push(error.text);
            }
        }
        problems
    }

    /// Settings that every client has.
    fn connection(&self) -> Settings {
        let mut settings = settings(&[
            ("bootstrap.servers", &self.bootstrap_servers),
            ("client.id", &self.client_id),
            ("security.protocol", &self.security_protocol.to_ascii_lowercase()),
            ("socket.nagle.disable", "true"),
            ("reconnect.backoff.max.ms", "2000"),
            ("allow.auto.create.topics", "false"),
            ("topic.metadata.refresh.interval.ms", &millis(self.limits.metadata_refresh)),
        ]);
        let sasl = [
            ("sasl.mechanisms", &self.sasl_mechanism),
            ("sasl.username", &self.sasl_username),
            ("sasl.password", &self.sasl_password),
        ];
        for (name, value) in sasl {
            settings.extend(value.iter().map(|value| (name.to_owned(), value.clone())));
        }
        settings
    }

    /// Connection, then the operator's properties that concern this kind of client, then ours.
    fn compose(&self, foreign: &[&str], ours: Settings) -> Settings {
        let mut all = self.connection();
        let concerns = |name: &str| !foreign.contains(&name) && fixed(name).is_none();
        all.extend(
            self.properties.iter().filter(|(name, _)| concerns(name)).map(|(n, v)| (n.clone(), v.clone())),
        );
        all.extend(ours);
        all
    }

    /// Settings of a client that reads: fetching, isolation, nothing automatic.
    fn reading(&self, isolation: &str) -> Settings {
        let limits = &self.limits;
        settings(&[
            ("isolation.level", isolation),
            ("check.crcs", "true"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("queued.max.messages.kbytes", &limits.fetch_queue_kib.to_string()),
            ("fetch.max.bytes", &limits.fetch_bytes.max(limits.partition_fetch_bytes).to_string()),
            ("fetch.message.max.bytes", &limits.partition_fetch_bytes.to_string()),
            // How long a full queue keeps the fetcher away; the default of a second shows as
            // bursts, because a queue this small empties in milliseconds.
            ("fetch.queue.backoff.ms", "5"),
        ])
    }

    /// What the node's own fetcher goes by: no other values than librdkafka is given for a worker's consumer.
    pub(super) fn fetching(&self) -> Fetching {
        let limits = &self.limits;
        let bytes = |bytes: u32| i32::try_from(bytes).unwrap_or(i32::MAX);
        Fetching {
            wait_max: Duration::from_millis(
                self.number("fetch.wait.max.ms").unwrap_or(FETCH_WAIT_MS).min(FETCH_WAIT_MS_MAX),
            ),
            min_bytes: self.number::<i32>("fetch.min.bytes").unwrap_or(1).max(1),
            max_bytes: bytes(limits.fetch_bytes.max(limits.partition_fetch_bytes)),
            partition_bytes: bytes(limits.partition_fetch_bytes),
            queue_bytes: (limits.fetch_queue_kib as usize).saturating_mul(1024),
            unpacks: UNPACKS,
            committed_only: true,
        }
    }

    /// The same for a restore, which reads one partition at a time: as much of it at once as fits what a restore may hold,
    /// and without waiting for more of what has an end.
    pub(super) fn restoring(&self, committed_only: bool) -> Fetching {
        let of_workers = self.fetching();
        let share = self.limits.restore_queue_kib.saturating_mul(1024) / RESTORE_FETCHES;
        let bytes = i32::try_from(share).unwrap_or(i32::MAX).min(of_workers.max_bytes);
        Fetching {
            wait_max: of_workers.wait_max.min(RESTORE_WAIT_MAX),
            min_bytes: 1,
            max_bytes: bytes,
            partition_bytes: bytes,
            queue_bytes: usize::try_from(bytes).unwrap_or(0),
            unpacks: RESTORE_UNPACKS,
            committed_only,
        }
    }

    /// Who fetches records of workers and restores, and writes commits.
    pub fn client(&self) -> KafkaClient {
        chosen(self.client, &self.only_librdkafka())
    }

    /// What is configured that only librdkafka can honour.
    pub(super) fn only_librdkafka(&self) -> Vec<Obstacle> {
        let mechanism = self.sasl_mechanism.as_deref().map(|mechanism| ("sasl.mechanisms", mechanism));
        let acks = ("acks", self.acks.as_str());
        let properties = self.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        obstacles(mechanism.into_iter().chain([acks]).chain(properties))
    }

    /// A property that is a number; [`KafkaConfig::problems`] has told of one that is not.
    pub(super) fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.properties.get(name)?.trim().parse().ok()
    }

    /// A worker's consumer in its group.
    pub(super) fn consumer(&self, group: &GroupSettings<'_>) -> Settings {
        let mut ours = self.reading("read_committed");
        ours.extend(settings(&[
            ("group.id", group.id),
            ("enable.partition.eof", "false"),
            ("max.poll.interval.ms", &millis(self.limits.poll_interval.max(self.limits.session_timeout))),
        ]));
        let said = |name: &str, default: String| self.properties.get(name).cloned().unwrap_or(default);
        ours.push(("queued.min.messages".to_owned(), said("queued.min.messages", FETCHED_AHEAD.to_string())));
        match group.protocol {
            GroupProtocol::Classic => ours.extend(settings(&[
                ("session.timeout.ms", &millis(self.limits.session_timeout)),
                (
                    "heartbeat.interval.ms",
                    &said(
                        "heartbeat.interval.ms",
                        millis(self.limits.session_timeout / HEARTBEATS_PER_SESSION),
                    ),
                ),
                (
                    "partition.assignment.strategy",
                    if group.inputs == 1 { "cooperative-sticky" } else { "range" },
                ),
            ])),
            // No instance id here: a restarted static member would be fenced until its session expires.
            GroupProtocol::Consumer => ours.extend(settings(&[
                ("group.protocol", "consumer"),
                ("group.remote.assignor", if group.inputs == 1 { "uniform" } else { "range" }),
            ])),
        }
        if let (GroupProtocol::Classic, Some(instance)) = (group.protocol, group.instance_id) {
            ours.push(("group.instance.id".to_owned(), instance.to_owned()));
        }
        self.compose(PRODUCER_ONLY, ours)
    }

    /// A reader outside any group's assignment. `group` only names whose committed offsets it may
    /// ask for. Ends of partitions are reported, because the end may lie behind transaction markers
    /// or records that compaction removed; `end_wait` bounds how long such an end goes unreported.
    pub(super) fn reader(&self, group: &str, committed: bool, end_wait: Duration) -> Settings {
        let mut ours = self.reading(if committed { "read_committed" } else { "read_uncommitted" });
        ours.extend(settings(&[
            ("group.id", group),
            ("enable.partition.eof", "true"),
            ("fetch.wait.max.ms", &millis(end_wait)),
        ]));
        self.compose(PRODUCER_ONLY, ours)
    }

    /// A worker's producer. With a transactional id it is part of `exactly_once`; without, acknowledged and
    /// idempotent as configured (all replicas, yes), but nothing more.
    pub(super) fn producer(&self, transactional_id: Option<&str>, batch_bytes: u32) -> Settings {
        let mut all = self.writing(transactional_id, batch_bytes);
        let is_given = IN_FLIGHT.iter().any(|name| self.properties.contains_key(*name));
        if self.is_idempotent(transactional_id) && !is_given {
            all.extend(settings(&[(IN_FLIGHT[0], IN_FLIGHT_OF_WORKERS)]));
        }
        all
    }

    fn is_idempotent(&self, transactional_id: Option<&str>) -> bool {
        transactional_id.is_some() || self.enable_idempotence
    }

    /// Settings of a client that writes.
    fn writing(&self, transactional_id: Option<&str>, batch_bytes: u32) -> Settings {
        let limits = &self.limits;
        let idempotent = self.is_idempotent(transactional_id);
        let mut ours = settings(&[
            ("partitioner", &self.partitioner),
            ("enable.idempotence", if idempotent { "true" } else { "false" }),
            ("acks", if transactional_id.is_some() { "all" } else { &self.acks }),
            // Every commit flushes, so lingering costs no latency and fills batches.
            ("linger.ms", "20"),
            ("batch.size", &batch_bytes.max(1024).to_string()),
            ("message.max.bytes", &limits.record_bytes.max(1000).to_string()),
            ("queue.buffering.max.kbytes", &limits.produce_queue_kib.to_string()),
            ("queue.buffering.max.messages", &limits.produce_queue_records.to_string()),
            ("delivery.report.only.error", "true"),
        ]);
        if idempotent {
            ours.extend(self.fewer_in_flight());
        }
        if let Some(id) = transactional_id {
            ours.extend(settings(&[
                ("transactional.id", id),
                ("transaction.timeout.ms", &millis(limits.transaction_timeout)),
            ]));
            // A request or a record cannot outlast the transaction that it is part of; librdkafka refuses more.
            let most = limits.transaction_timeout.as_millis();
            for name in ["socket.timeout.ms", "message.timeout.ms", "delivery.timeout.ms"] {
                let given = self.properties.get(name).and_then(|given| given.parse().ok());
                if given.is_some_and(|given: u128| given > most) {
                    ours.extend(settings(&[(name, &most.to_string())]));
                }
            }
        }
        self.compose(CONSUMER_ONLY, ours)
    }

    /// What brings requests in flight down to as many as an idempotent producer may have, if more are given.
    fn fewer_in_flight(&self) -> Settings {
        let is_too_many = |name: &&str| {
            let given = self.properties.get(*name).and_then(|given| given.parse().ok());
            given.is_some_and(|given: u32| given > IN_FLIGHT_MAX)
        };
        let most = IN_FLIGHT_MAX.to_string();
        IN_FLIGHT.into_iter().filter(is_too_many).map(|name| (name.to_owned(), most.clone())).collect()
    }

    /// A producer that hears where its records went.
    pub(super) fn reporting_producer(&self) -> Settings {
        let mut ours = self.writing(None, 1_000_000);
        ours.extend(settings(&[("delivery.report.only.error", "false")]));
        ours
    }

    /// A producer for single records whose offsets matter to the caller: idempotent, whatever is configured.
    pub(super) fn appender(&self) -> Settings {
        let mut ours = self.writing(None, self.limits.record_bytes);
        ours.extend(self.fewer_in_flight());
        ours.extend(settings(&[
            ("linger.ms", "0"),
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("delivery.report.only.error", "false"),
            ("message.timeout.ms", &millis(APPEND_TIMEOUT)),
        ]));
        ours
    }

    /// As [`KafkaConfig::appender`], for records that are given up after `timeout`.
    pub(super) fn mirror(&self, timeout: Duration) -> Settings {
        let mut ours = self.appender();
        ours.extend(settings(&[("message.timeout.ms", &millis(timeout))]));
        ours
    }

    /// A client for admin requests.
    pub(super) fn admin(&self) -> Settings {
        self.asking(&[])
    }

    /// A client for requests to the coordinators of any groups. `group` is one that it may ask about: it joins none.
    pub(super) fn asker(&self, group: &str) -> Settings {
        self.asking(&[("group.id", group), ("enable.auto.commit", "false")])
    }

    fn asking(&self, ours: &[(&str, &str)]) -> Settings {
        let ours = [&[("socket.timeout.ms", "30000")][..], ours].concat();
        self.compose(&[PRODUCER_ONLY, CONSUMER_ONLY].concat(), settings(&ours))
    }
}

/// What the node's own fetcher asks of brokers, and how much it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetching {
    /// How long a broker waits for `min_bytes`.
    pub wait_max: Duration,
    pub min_bytes: i32,
    /// One response; a larger first batch comes whole.
    pub max_bytes: i32,
    /// One partition's part of a response; the same.
    pub partition_bytes: i32,
    /// Fetched ahead and not yet taken, of all partitions together.
    pub queue_bytes: usize,
    /// What an answer may unpack to, in times of what it was to have.
    pub unpacks: usize,
    /// Hides open and aborted transactions.
    pub committed_only: bool,
}

/// librdkafka's default for `fetch.wait.max.ms`, and the most that it takes.
const FETCH_WAIT_MS: u64 = 500;
const FETCH_WAIT_MS_MAX: u64 = 300_000;

/// How many requests may be under way to a broker, by both of its names.
const IN_FLIGHT: [&str; 2] = ["max.in.flight", "max.in.flight.requests.per.connection"];
/// Requests that a broker orders by their sequence numbers; an idempotent producer may have no more under way.
const IN_FLIGHT_MAX: u32 = 5;
/// Of a worker's idempotent producer, which a busy node flushes with more than a batch for each partition. librdkafka has
/// one batch of a partition under way and takes the next for due: unless a request waits in the queue of the connection,
/// its thread looks again and again, without a pause, until the answer is there (`rd_kafka_toppar_producer_serve` in
/// rdkafka_broker.c sets the time to wake up before it looks at what is in flight). With five under way none waits there,
/// if a broker leads no more than five of the partitions; with two it takes three of them. Two keep the broker busy, which
/// answers the requests of a connection one by one.
const IN_FLIGHT_OF_WORKERS: &str = "2";

/// Of members whose operator does not say; one or two that are late must not end the session.
const HEARTBEATS_PER_SESSION: u32 = 5;

/// How long an appended record may stay undelivered before it is given up.
pub(super) const APPEND_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct GroupSettings<'a> {
    pub id: &'a str,
    pub instance_id: Option<&'a str>,
    pub protocol: GroupProtocol,
    pub inputs: usize,
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |name: &str, value: &str| {
            if is_secret(name) { "<hidden>".to_owned() } else { value.to_owned() }
        };
        let properties: BTreeMap<_, _> = self.properties.iter().map(|(n, v)| (n, shown(n, v))).collect();
        f.debug_struct("KafkaConfig")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("client_id", &self.client_id)
            .field("security_protocol", &self.security_protocol)
            .field("sasl_mechanism", &self.sasl_mechanism)
            .field("sasl_username", &self.sasl_username)
            .field("sasl_password", &self.sasl_password.as_ref().map(|_| "<hidden>"))
            .field("properties", &properties)
            .field("client", &self.client)
            .field("limits", &self.limits)
            .finish()
    }
}

/// Why a property is not the operator's to set; `None` when it is.
fn fixed(name: &str) -> Option<&'static str> {
    Some(match name {
        "partitioner" => "keys must land where Java producers put them",
        "isolation.level" => "aborted records must never be read",
        "check.crcs" => "a corrupt record must never be processed",
        "enable.auto.commit"
        | "auto.commit.enable"
        | "enable.auto.offset.store"
        | "auto.commit.interval.ms" => "offsets are committed with the effects of their records",
        "auto.offset.reset" => "an offset out of range stops the deployment; use `start:` for new partitions",
        "enable.partition.eof" | "delivery.report.only.error" => "the client relies on it",
        "allow.auto.create.topics" => "topics are created explicitly or not at all",
        "enable.idempotence"
        | "acks"
        | "request.required.acks"
        | "transactional.id"
        | "transaction.timeout.ms" => "it belongs to the guarantee",
        "group.id" | "group.instance.id" | "group.protocol" | "partition.assignment.strategy" => {
            "it is derived from the fleet and the deployment"
        }
        "bootstrap.servers"
        | "metadata.broker.list"
        | "client.id"
        | "security.protocol"
        | "sasl.mechanism"
        | "sasl.mechanisms"
        | "sasl.username"
        | "sasl.password" => "it has a key of its own",
        "linger.ms" | "queue.buffering.max.ms" => "commits decide when records are sent",
        "queued.max.messages.kbytes"
        | "queue.buffering.max.kbytes"
        | "queue.buffering.max.messages"
        | "fetch.max.bytes"
        | "fetch.message.max.bytes"
        | "max.partition.fetch.bytes"
        | "message.max.bytes"
        | "session.timeout.ms"
        | "max.poll.interval.ms"
        | "topic.metadata.refresh.interval.ms" => "it has a limit of its own",
        _ => return None,
    })
}

/// Properties that only a producer has; librdkafka warns about them on a consumer.
const PRODUCER_ONLY: &[&str] = &[
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.timeout.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.send.max.retries",
    "message.timeout.ms",
    "queue.buffering.backpressure.threshold",
    "request.timeout.ms",
    "retries",
    "retry.backoff.ms",
    "sticky.partitioning.linger.ms",
];

/// Properties that only a consumer has.
const CONSUMER_ONLY: &[&str] = &[
    "client.rack",
    "coordinator.query.interval.ms",
    "fetch.error.backoff.ms",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "queued.min.messages",
];

fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let mut config = KafkaConfig::new("localhost:9092");
        config.sasl_password = Some("canary-1".to_owned());
        config.properties.insert("ssl.key.password".to_owned(), "canary-2".to_owned());
        config.properties.insert("ssl.key.pem".to_owned(), "canary-3".to_owned());
        assert!(!format!("{config:?}").contains("canary"));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut config = KafkaConfig::new("");
        config.security_protocol = "sasl_ssl".to_owned();
        config.properties.insert("isolation.level".to_owned(), "read_uncommitted".to_owned());
        config.properties.insert("no.such.thing".to_owned(), "1".to_owned());
        config.properties.insert("fetch.min.bytes".to_owned(), "lots".to_owned());
        let problems = config.problems().join("\n");
        for part in ["bootstrap", "SASL mechanism", "isolation.level", "no.such.thing", "fetch.min.bytes"] {
            assert!(problems.contains(part), "{part} is not in:\n{problems}");
        }
    }

    #[test]
    fn queues_follow_the_budget_and_a_record_always_fits() {
        let share = |mib: u64| {
            let limits = KafkaLimits::default().within(mib << 20);
            (limits.fetch_queue_kib >> 10, limits.produce_queue_kib >> 10, limits.record_bytes >> 20)
        };
        assert_eq!(share(1024), (16, 64, 16), "never above what a client needs");
        assert_eq!(share(16), (4, 12, 12));
        assert_eq!(share(1), (1, 4, 4));
    }

    #[test]
    fn a_transaction_bounds_how_long_its_records_may_take() {
        let mut config = KafkaConfig::new("localhost:9092");
        for name in ["socket.timeout.ms", "delivery.timeout.ms"] {
            config.properties.insert(name.to_owned(), "180000".to_owned());
        }
        let settings = |id| config.producer(id, 1_000_000).into_iter().collect::<BTreeMap<_, _>>();
        let most = millis(config.limits.transaction_timeout);
        assert_eq!(settings(Some("fleet.words.n1.0"))["delivery.timeout.ms"], most);
        assert_eq!(settings(None)["delivery.timeout.ms"], "180000");
        ffi::producer::Producer::new(&config.producer(Some("fleet.words.n1.0"), 1_000_000), "test")
            .expect("librdkafka takes it");
    }

    #[test]
    fn an_idempotent_worker_has_few_requests_under_way_unless_told() {
        let in_flight = |config: &KafkaConfig, id| {
            let settings: BTreeMap<_, _> = config.producer(id, 1_000_000).into_iter().collect();
            IN_FLIGHT.map(|name| settings.get(name).cloned())
        };
        let mut config = KafkaConfig::new("localhost:9092");
        let few = [Some(IN_FLIGHT_OF_WORKERS.to_owned()), None];
        assert_eq!([None, Some("id")].map(|id| in_flight(&config, id)), [few.clone(), few.clone()]);
        assert!(config.appender().iter().all(|(name, _)| !IN_FLIGHT.contains(&name.as_str())));
        config.enable_idempotence = false;
        assert_eq!([None, Some("id")].map(|id| in_flight(&config, id)), [[None, None], few]);
        config.properties.insert(IN_FLIGHT[1].to_owned(), "4".to_owned());
        assert_eq!(in_flight(&config, Some("id")), [None, Some("4".to_owned())]);
    }

    #[test]
    fn the_nodes_own_fetcher_goes_by_what_librdkafka_is_given() {
        let mut config = KafkaConfig::new("localhost:9092");
        config.limits.fetch_bytes = 1 << 20;
        config.limits.partition_fetch_bytes = 3 << 20;
        config.limits.fetch_queue_kib = 2048;
        let group = GroupSettings { id: "g", instance_id: None, protocol: GroupProtocol::Classic, inputs: 1 };
        for (wait, bytes) in [(None, None), (Some("20"), Some("4096"))] {
            for (name, value) in [("fetch.wait.max.ms", wait), ("fetch.min.bytes", bytes)] {
                config.properties.extend(value.map(|value| (name.to_owned(), value.to_owned())));
            }
            let given: BTreeMap<String, String> = config.consumer(&group).into_iter().collect();
            let number =
                |name: &str, default: u64| given.get(name).map_or(default, |v| v.parse().expect(name));
            let own = config.fetching();
            assert_eq!(own.wait_max.as_millis(), u128::from(number("fetch.wait.max.ms", 500)));
            assert_eq!(own.min_bytes as u64, number("fetch.min.bytes", 1));
            assert_eq!(own.max_bytes as u64, number("fetch.max.bytes", 0));
            assert_eq!(own.partition_bytes as u64, number("fetch.message.max.bytes", 0));
            assert_eq!(own.queue_bytes as u64, 1024 * number("queued.max.messages.kbytes", 0));
        }
    }

    #[test]
    fn a_restore_fetches_as_much_as_it_may_hold_and_waits_for_no_more() {
        let mut config = KafkaConfig::new("localhost:9092");
        for (name, value) in [("fetch.min.bytes", "1048576"), ("fetch.wait.max.ms", "60000")] {
            config.properties.insert(name.to_owned(), value.to_owned());
        }
        // (memory for all, in MiB; what one holds, in KiB)
        for (mib, kib) in [(1 << 20, 16 * 1024), (256, 16 * 1024), (64, 4 * 1024), (16, 2 * 1024)] {
            config.limits = KafkaLimits::default().restores_within(mib << 20, 16);
            assert_eq!(config.limits.restore_queue_kib, kib);
            let own = config.restoring(true);
            let bytes = usize::try_from(own.partition_bytes).expect("above 0");
            // What is applied, what came last, and what is under way.
            assert!((2 * own.unpacks + 1) * bytes <= kib as usize * 1024);
            assert!(bytes > kib as usize * 1024 / 6 && own.max_bytes == own.partition_bytes);
            assert_eq!((own.queue_bytes, own.min_bytes), (bytes, 1));
            assert_eq!(own.wait_max, RESTORE_WAIT_MAX);
        }
        config.limits.fetch_bytes = 100_000;
        config.limits.partition_fetch_bytes = 50_000;
        assert_eq!(config.restoring(true).partition_bytes, 100_000, "no answer is larger than may be");
        assert!(config.fetching().committed_only && !config.restoring(false).committed_only);
    }

    #[test]
    fn librdkafka_fetches_if_told_or_if_only_it_can() {
        let mut config = KafkaConfig::new("localhost:9092");
        config.sasl_mechanism = Some("PLAIN".to_owned());
        assert_eq!(config.client(), KafkaClient::Own);
        config.sasl_mechanism = Some("OAUTHBEARER".to_owned());
        assert_eq!(config.client(), KafkaClient::Librdkafka);
        config.sasl_mechanism = None;
        config.properties.insert("client.rack".to_owned(), "a".to_owned());
        assert_eq!(config.client(), KafkaClient::Librdkafka);
        config.properties.clear();
        for (acks, client) in [("1", KafkaClient::Own), ("0", KafkaClient::Librdkafka)] {
            config.acks = acks.to_owned();
            assert_eq!(config.client(), client, "acks {acks}");
        }
        for told in [KafkaClient::Own, KafkaClient::Librdkafka] {
            config.client = Some(told);
            assert_eq!(config.client(), told);
        }
    }

    #[test]
    fn a_plain_configuration_is_accepted() {
        let mut config = KafkaConfig::new("localhost:9092");
        config.properties.insert("compression.type".to_owned(), "zstd".to_owned());
        config.properties.insert("ssl.ca.location".to_owned(), "/etc/ssl/ca.pem".to_owned());
        assert_eq!(config.problems(), Vec::<String>::new());
    }
}
