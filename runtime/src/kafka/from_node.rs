//! From a node's configuration to the clients': properties that have a limit of their own become
//! that limit, the rest is passed through.

use std::time::Duration;

use super::config::KafkaConfig;
use crate::config::node::KafkaConfig as Configured;

impl KafkaConfig {
    /// How to reach the cluster that the node's configuration names.
    pub fn from_node(configured: &Configured, client_id: &str) -> KafkaConfig {
        let mut kafka = KafkaConfig::new(configured.bootstrap_servers.join(","));
        kafka.client_id = client_id.to_owned();
        kafka.security_protocol = configured.security_protocol.clone();
        kafka.partitioner = configured.partitioner.clone();
        kafka.acks = configured.acks.clone();
        kafka.enable_idempotence = configured.enable_idempotence;
        kafka.client = configured.client;
        if let Some(sasl) = &configured.sasl {
            kafka.sasl_mechanism = Some(sasl.mechanism.clone());
            kafka.sasl_username = sasl.username.clone();
            kafka.sasl_password = sasl.password.as_ref().map(|password| password.expose().to_owned());
        }
        let files = [
            ("ssl.ca.location", &configured.ssl.ca),
            ("ssl.certificate.location", &configured.ssl.certificate),
            ("ssl.key.location", &configured.ssl.key),
        ];
        for (name, path) in files {
            if let Some(path) = path {
                kafka.properties.insert(name.to_owned(), path.to_string_lossy().into_owned());
            }
        }
        if let Some(password) = &configured.ssl.key_password {
            kafka.properties.insert("ssl.key.password".to_owned(), password.expose().to_owned());
        }
        for (name, value) in &configured.properties {
            kafka.take(name, value);
        }
        kafka
    }

    fn take(&mut self, name: &str, value: &str) {
        let limits = &mut self.limits;
        let limit = match name {
            "queued.max.messages.kbytes" => &mut limits.fetch_queue_kib,
            "fetch.max.bytes" => &mut limits.fetch_bytes,
            "fetch.message.max.bytes" | "max.partition.fetch.bytes" => &mut limits.partition_fetch_bytes,
            "queue.buffering.max.kbytes" => &mut limits.produce_queue_kib,
            "queue.buffering.max.messages" => &mut limits.produce_queue_records,
            "message.max.bytes" => &mut limits.record_bytes,
            "session.timeout.ms" | "max.poll.interval.ms" | "topic.metadata.refresh.interval.ms" => {
                let time = match name {
                    "session.timeout.ms" => &mut limits.session_timeout,
                    "max.poll.interval.ms" => &mut limits.poll_interval,
                    _ => &mut limits.metadata_refresh,
                };
                match value.parse().map(Duration::from_millis) {
                    Ok(parsed) => *time = parsed,
                    Err(_) => self.pass(name, value),
                }
                return;
            }
            _ => return self.pass(name, value),
        };
        match value.parse() {
            Ok(parsed) => *limit = parsed,
            // Passed on as it is, so that the check of the whole names it.
            Err(_) => self.pass(name, value),
        }
    }

    fn pass(&mut self, name: &str, value: &str) {
        self.properties.insert(name.to_owned(), value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::GroupSettings;
    use super::super::ffi::{Client, Kind};
    use super::*;
    use crate::config::NodeConfig;
    use crate::config::load::{Flag, Sources};
    use crate::config::node::GroupProtocol;
    use crate::config::settings;

    fn configured<const N: usize>(flags: [(&str, &str); N]) -> KafkaConfig {
        let flags = flags.map(|(key, value)| Flag { name: key.into(), key: key.into(), value: value.into() });
        let sources = Sources { flags: flags.into(), ..Sources::default() };
        let configured = NodeConfig::load(&sources).expect("valid").config.kafka;
        KafkaConfig::from_node(&configured, "test")
    }

    #[test]
    fn every_accepted_setting_reaches_the_client_or_becomes_its_limit() {
        let kafka = configured([
            ("kafka.properties.session.timeout.ms", "30000"),
            ("kafka.properties.topic.metadata.refresh.interval.ms", "5000"),
            ("kafka.properties.buffer.memory", "67108864"),
            ("kafka.properties.max.partition.fetch.bytes", "1048576"),
            ("kafka.properties.compression.type", "lz4"),
            ("kafka.acks", "1"),
            ("kafka.enable_idempotence", "false"),
        ]);
        assert_eq!(kafka.problems(), Vec::<String>::new());
        assert_eq!(kafka.limits.session_timeout, Duration::from_secs(30));
        assert_eq!(kafka.limits.metadata_refresh, Duration::from_secs(5));
        assert_eq!(kafka.limits.produce_queue_kib, 65_536);
        assert_eq!(kafka.limits.partition_fetch_bytes, 1 << 20);
        assert_eq!(kafka.properties.get("compression.type").map(String::as_str), Some("lz4"));
        let plain = kafka.producer(None, 1 << 20);
        let transactional = kafka.producer(Some("id"), 1 << 20);
        let value = |settings: &[(String, String)], name: &str| {
            settings.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        assert_eq!(value(&plain, "acks").as_deref(), Some("1"));
        assert_eq!(value(&transactional, "acks").as_deref(), Some("all"));
    }

    #[test]
    fn librdkafka_takes_every_client_of_a_node_with_any_profile() {
        let protocol = GroupProtocol::Classic;
        let group = GroupSettings { id: "g", instance_id: Some("i"), protocol, inputs: 1 };
        for key in ["kafka.producer_profile", "kafka.consumer_profile"] {
            let choice = settings::find(key).map(|setting| setting.kind);
            let Some(settings::Kind::Choice(profiles)) = choice else { panic!("{key} is a choice") };
            for &profile in profiles {
                let kafka = configured([(key, profile)]);
                assert_eq!(kafka.problems(), Vec::<String>::new(), "{profile}");
                for (kind, name, given) in [
                    (Kind::Producer, "exactly once", kafka.producer(Some("id"), 1 << 20)),
                    (Kind::Producer, "at least once", kafka.producer(None, 1 << 20)),
                    (Kind::Producer, "of the node's own topics", kafka.appender()),
                    (Kind::Producer, "of a command", kafka.reporting_producer()),
                    (Kind::Producer, "admin", kafka.admin()),
                    (Kind::Asker, "of questions about groups", kafka.asker("g")),
                    (Kind::Consumer, "of a worker", kafka.consumer(&group)),
                    (Kind::Consumer, "of one partition", kafka.reader("g", true, Duration::from_millis(100))),
                ] {
                    let made = Client::new(kind, &given, "test").map(drop);
                    assert_eq!(made, Ok(()), "{profile}: {name}");
                }
            }
        }
    }

    #[test]
    fn requests_in_flight_are_fewer_only_where_sends_are_idempotent() {
        let in_flight = ("kafka.properties.max.in.flight", "10");
        let kafka = configured([("kafka.acks", "1"), ("kafka.enable_idempotence", "false"), in_flight]);
        let long = "max.in.flight.requests.per.connection";
        let last = |settings: Vec<(String, String)>| {
            settings.into_iter().rev().find(|(name, _)| name == long).map(|(_, value)| value)
        };
        assert_eq!(last(kafka.producer(None, 1 << 20)).as_deref(), Some("10"));
        assert_eq!(last(kafka.producer(Some("id"), 1 << 20)).as_deref(), Some("5"));
        assert_eq!(last(kafka.appender()).as_deref(), Some("5"));
    }
}
