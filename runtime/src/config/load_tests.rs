//! A node's configuration: who wins over whom, what is refused, and what is never shown.

use std::time::Duration;

use tidemill_test_support::proptest::prelude::*;

use super::deployment::Start;
use super::load::{Effective, Flag, Source, Sources};
use super::node::{KafkaClient, NodeConfig};
use super::problem::Problems;

fn load(file: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Effective, Problems> {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    NodeConfig::load(&Sources {
        file: Some(("tidemill.yaml".into(), file.into())),
        variables: variables.iter().map(pair).collect(),
        flags: flags
            .iter()
            .map(pair)
            .map(|(key, value)| Flag { name: format!("--{}", key.replace('.', "-")), key, value })
            .collect(),
    })
}

fn refusal(file: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
    load(file, variables, flags).expect_err("refused").to_string()
}

#[test]
fn nothing_given_is_a_safe_node_on_loopback() {
    let config = NodeConfig::default();
    assert_eq!(config.listen.grpc.to_string(), "127.0.0.1:7600");
    assert_eq!(config.listen.http.to_string(), "127.0.0.1:7601");
    assert_eq!(config.kafka.bootstrap_servers, ["localhost:9092"]);
    assert_eq!((config.kafka.acks.as_str(), config.kafka.enable_idempotence), ("all", true));
    assert_eq!(config.kafka.partitioner, "murmur2_random");
    assert_eq!(config.group_of("word-count"), "local.default.word-count");
    assert_eq!(config.defaults, super::SpecDefaults::default());
    assert!(config.notes.is_empty());
}

#[test]
fn a_flag_beats_a_variable_beats_a_documented_variable_beats_the_file() {
    let file = "kafka:\n  bootstrap_servers: [a:1, b:2]\n";
    let documented = ("KAFKA_BOOTSTRAP_SERVERS", "c:3");
    let own = ("TIDEMILL_KAFKA_BOOTSTRAP_SERVERS", "d:4");
    let flag = ("kafka.bootstrap_servers", "e:5");
    for (variables, flags, expected, source) in [
        (vec![], vec![], "a:1,b:2", Source::File { name: "tidemill.yaml".into(), line: 2 }),
        (vec![documented], vec![], "c:3", Source::Variable(documented.0.into())),
        (vec![own, documented], vec![], "d:4", Source::Variable(own.0.into())),
        (vec![documented, own], vec![flag], "e:5", Source::Flag("--kafka-bootstrap_servers".into())),
    ] {
        let effective = load(file, &variables, &flags).expect("valid");
        let shown =
            effective.shown.iter().find(|shown| shown.key == "kafka.bootstrap_servers").expect("shown");
        assert_eq!((shown.value.as_str(), &shown.source), (expected, &source));
        assert_eq!(effective.config.kafka.bootstrap_servers.join(","), expected);
    }
}

#[test]
fn the_documented_flat_file_and_variables_are_understood() {
    let file = "bootstrap_servers: localhost:9092\nenvironment: prod\ngroup: my-service\ntimeout_seconds: 45\n\
                acks: all\nenable_idempotence: true\nauto_offset_reset: latest\nenable_auto_commit: true\n\
                max_retry_attempts: 4\nretry_backoff_base: 1.5\ncircuit_breaker_threshold: 6\n\
                circuit_breaker_reset_timeout: 60.0\nconsumer_sleep_interval: 0.1\ndead_letter_topic: dlq-events\n";
    let effective = load(file, &[("KAFKA_TIMEOUT_SECONDS", "60")], &[]).expect("valid");
    let config = effective.config;
    assert_eq!(config.group_of("orders"), "prod.my-service.orders");
    assert_eq!(config.kafka.connect_timeout, Duration::from_secs(60));
    assert_eq!(config.defaults.start, Start::Latest);
    let defaults = &config.defaults;
    assert_eq!((defaults.attempts, defaults.first_pause), (4, Duration::from_millis(1500)));
    assert_eq!((defaults.breaker.failures, defaults.breaker.open), (6, Duration::from_secs(60)));
    assert_eq!(defaults.dead_letters.as_deref(), Some("dlq-events"));
    // Auto-commit and the setting without effect are said aloud, never silently dropped.
    for word in ["enable_auto_commit", "consumer_sleep_interval"] {
        assert!(config.notes.iter().any(|note| note.contains(word)), "{word}: {:?}", config.notes);
    }
}

#[test]
fn values_out_of_range_are_refused_whoever_gave_them() {
    let text = refusal(
        "kafka: { connect_timeout: 10m }\ndefaults: { workers: 0 }\n",
        &[("KAFKA_CONSUMER_SLEEP_INTERVAL", "11"), ("KAFKA_MAX_RETRY_ATTEMPTS", "-1"), ("KAFKA_ACKS", "2")],
        &[("listen.grpc", "nowhere")],
    );
    assert_eq!(
        text,
        "line 1: kafka.connect_timeout: 10m is outside 1s to 5m\n\
         line 2: defaults.workers: 0 is outside 1 to 64\n\
         --listen-grpc: `nowhere` is no address: write IP:PORT, for example 127.0.0.1:7600\n\
         KAFKA_ACKS: unknown value `2`, known are all, 1, 0, -1\n\
         KAFKA_CONSUMER_SLEEP_INTERVAL: 11 is outside 0.01 to 10\n\
         KAFKA_MAX_RETRY_ATTEMPTS: `-1` is no whole number from 0 to 10"
    );
}

#[test]
fn misspelt_keys_variables_and_properties_are_refused_with_the_nearest() {
    let text = refusal(
        "flet: a\nkafka:\n  bootstrap_server: a:1\n  properties:\n    linger.msec: 5\n",
        &[("TIDEMILL_FLET", "x"), ("KAFKA_BOOTSTRAP_SERVER", "a:1"), ("KAFKA_HEAP_OPTS", "-Xmx1g")],
        &[],
    );
    assert_eq!(
        text,
        "line 1: flet: unknown key, did you mean `fleet`?\n\
         line 3: kafka.bootstrap_server: unknown key, did you mean `kafka.bootstrap_servers`?\n\
         line 5: kafka.properties.linger.msec: unknown client property, did you mean `linger.ms`?\n\
         TIDEMILL_FLET: unknown variable, did you mean TIDEMILL_FLEET?\n\
         KAFKA_BOOTSTRAP_SERVER: unknown variable, did you mean KAFKA_BOOTSTRAP_SERVERS?"
    );
}

#[test]
fn a_key_that_is_given_twice_hides_no_other_problem() {
    assert_eq!(
        refusal("fleet: a\nfleet: b\nkafka: { acsk: all }\n", &[("KAFKA_ACKS", "2")], &[]),
        "line 2: fleet: is given twice, first on line 1: keep one\n\
         line 3: kafka.acsk: unknown key, did you mean `kafka.acks`?\n\
         KAFKA_ACKS: unknown value `2`, known are all, 1, 0, -1"
    );
}

#[test]
fn combinations_that_do_not_go_together_are_refused_naming_both() {
    for (file, variables, both) in [
        ("", vec![("KAFKA_ACKS", "1")], ["KAFKA_ACKS", "kafka.enable_idempotence"]),
        ("kafka: { acks: 1, enable_idempotence: true }", vec![], ["kafka.acks", "kafka.enable_idempotence"]),
        (
            "kafka: { properties: { max.in.flight: 10 } }",
            vec![],
            ["max.in.flight", "kafka.enable_idempotence"],
        ),
        (
            "kafka: { properties: { session.timeout.ms: 6000, heartbeat.interval.ms: 3000 } }",
            vec![],
            ["heartbeat.interval.ms", "session.timeout.ms"],
        ),
        ("kafka: { sasl: { username: me } }", vec![], ["kafka.sasl.username", "kafka.security_protocol"]),
        (
            "kafka: { security_protocol: SASL_SSL }",
            vec![],
            ["kafka.security_protocol", "kafka.sasl.mechanism"],
        ),
        (
            "kafka: { security_protocol: SASL_SSL, sasl: { mechanism: SCRAM-SHA-512, username: me } }",
            vec![],
            ["kafka.sasl.mechanism", "TIDEMILL_KAFKA_SASL_PASSWORD"],
        ),
        ("listen: { http: '127.0.0.1:7600' }", vec![], ["listen.http", "listen.grpc"]),
        ("listen: { grpc: '0.0.0.0:7600' }", vec![], ["listen.grpc", "insecure"]),
        ("acks: all\nkafka: { acks: all }", vec![], ["kafka.acks", "acks"]),
        ("kafka: { acks: all, properties: { acks: all } }", vec![], ["kafka.properties.acks", "kafka.acks"]),
    ] {
        let text = refusal(file, &variables, &[]);
        for name in both {
            assert!(text.contains(name), "{file} {variables:?} should name {name}: {text}");
        }
    }
    let low_latency = load("kafka: { acks: 1, enable_idempotence: false }", &[], &[]).expect("consistent");
    assert_eq!(low_latency.config.kafka.acks, "1");
}

#[test]
fn the_node_fetches_unless_told_otherwise_or_unless_only_librdkafka_can_do_as_is_configured() {
    let rack = "kafka: { properties: { client.rack: a } }";
    let scram = "kafka: { security_protocol: SASL_SSL, sasl: { mechanism: SCRAM-SHA-512, username: me } }";
    let tokens = "kafka: { security_protocol: SASL_SSL, sasl: { mechanism: OAUTHBEARER } }";
    let leader = "kafka: { producer_profile: high_throughput }";
    let nobody = "kafka: { acks: 0, enable_idempotence: false }";
    for (file, told, client, named) in [
        ("", "", None, None),
        ("", "own", Some(KafkaClient::Own), None),
        (scram, "own", Some(KafkaClient::Own), None),
        (rack, "", None, Some("kafka.properties.client.rack")),
        (tokens, "", None, Some("kafka.sasl.mechanism")),
        (leader, "own", Some(KafkaClient::Own), None),
        (nobody, "", None, Some("kafka.acks")),
        (rack, "librdkafka", Some(KafkaClient::Librdkafka), None),
    ] {
        let variables = [("TIDEMILL_KAFKA_CLIENT", told), ("TIDEMILL_KAFKA_SASL_PASSWORD", "hunter2")];
        let password = usize::from(file == scram);
        let kafka = load(file, &variables[..1 + password], &[]).expect("valid").config.kafka;
        assert_eq!(kafka.client, client, "{file} {told}");
        let said = kafka.why_librdkafka();
        assert_eq!(said.is_some(), named.is_some(), "{file} {told}: {said:?}");
        let said = said.unwrap_or_default();
        assert!(named.is_none_or(|named| said.contains(named)), "{file} {told}: {said}");
    }
    for (file, named) in
        [(rack, "kafka.properties.client.rack"), (tokens, "kafka.sasl.mechanism"), (nobody, "kafka.acks")]
    {
        let refused = refusal(file, &[], &[("kafka.client", "own")]);
        for part in ["--kafka-client: own does not go with", named, "kafka.client: librdkafka"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
    }
}

#[test]
fn secrets_come_from_the_environment_or_a_file_and_are_never_shown() {
    let file = "kafka: { security_protocol: SASL_SSL, sasl: { mechanism: SCRAM-SHA-512, username: me } }";
    let secret = ("TIDEMILL_KAFKA_SASL_PASSWORD", "hunter2");
    let effective = load(file, &[secret], &[]).expect("valid");
    assert!(!format!("{effective:?}").contains("hunter2"));
    let sasl = effective.config.kafka.sasl.expect("signs in");
    assert_eq!(sasl.password.expect("given").expose(), "hunter2");

    let written = refusal("kafka: { sasl: { password: hunter2 } }", &[], &[]);
    assert!(written.contains("TIDEMILL_KAFKA_SASL_PASSWORD") && !written.contains("hunter2"), "{written}");
    let typed = refusal("", &[], &[("kafka.sasl.password", "hunter2")]);
    assert!(typed.contains("command lines") && !typed.contains("hunter2"), "{typed}");

    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("password");
    std::fs::write(&path, "from-file\n").expect("written");
    let path = path.to_string_lossy().into_owned();
    let effective = load(file, &[("TIDEMILL_KAFKA_SASL_PASSWORD_FILE", &path)], &[]).expect("valid");
    let sasl = effective.config.kafka.sasl.expect("signs in");
    assert_eq!(sasl.password.expect("read").expose(), "from-file");
    let both = refusal(file, &[secret, ("TIDEMILL_KAFKA_SASL_PASSWORD_FILE", &path)], &[]);
    assert!(both.contains("TIDEMILL_KAFKA_SASL_PASSWORD_FILE") && both.contains("both given"), "{both}");
}

#[test]
fn what_signs_in_among_the_client_properties_comes_from_a_file_of_its_own() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("secret");
    std::fs::write(&path, "hunter2\n").expect("written");
    let with = |property: &str, value: &str| format!("kafka: {{ properties: {{ {property}: {value} }} }}");
    let named = with("sasl.oauthbearer.client.secret_file", &path.to_string_lossy());
    let effective = load(&named, &[], &[]).expect("valid");
    let property = &effective.config.kafka.properties["sasl.oauthbearer.client.secret"];
    assert_eq!(property, "hunter2");
    assert!(effective.shown.iter().all(|shown| !shown.value.contains("hunter2")));

    let written = refusal(&with("sasl.oauthbearer.client.secret", "hunter2"), &[], &[]);
    assert!(written.contains("kafka.properties.sasl.oauthbearer.client.secret_file"), "{written}");
    let typed = refusal("", &[], &[("kafka.properties.ssl.keystore.password", "hunter2")]);
    assert!(typed.contains("command lines") && !(typed + &written).contains("hunter2"));
    let gone = refusal(&with("ssl.keystore.password_file", "/nowhere"), &[], &[]);
    assert!(gone.contains("/nowhere cannot be read"), "{gone}");
}

#[test]
fn a_file_that_is_too_large_for_a_secret_is_not_read_to_its_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("secret");
    let shown = path.to_string_lossy();
    let most = "x".repeat(64 << 10);
    std::fs::write(&path, &most).expect("written");
    let property = format!("kafka: {{ properties: {{ ssl.keystore.password_file: {shown} }} }}");
    let effective = load(&property, &[], &[]).expect("just not too large");
    assert_eq!(effective.config.kafka.properties["ssl.keystore.password"], most);
    std::fs::write(&path, most + "x").expect("written");
    let signs_in = "kafka: { security_protocol: SASL_SSL, sasl: { mechanism: SCRAM-SHA-512, username: me } }";
    let password = ("TIDEMILL_KAFKA_SASL_PASSWORD_FILE", &*shown);
    for refused in [refusal(&property, &[], &[]), refusal(signs_in, &[password], &[])] {
        assert!(refused.contains(&format!("{shown} is larger than 64 KiB")), "{refused}");
    }
}

#[test]
fn documented_client_settings_reach_the_client_by_the_names_that_it_has() {
    let file = "kafka:\n  properties:\n    batch.size: 65536\n    buffer.memory: 67108864\n    \
                fetch.max.wait.ms: 500\n    max.poll.records: 200\n    session.timeout.ms: 30000\n    \
                heartbeat.interval.ms: 10000\n    max.poll.interval.ms: 300000\n    isolation.level: read_committed\n";
    let config = load(file, &[], &[]).expect("valid").config;
    assert_eq!(config.defaults.batch_records, 200);
    let property = |name: &str| config.kafka.properties.get(name).map(String::as_str);
    assert_eq!(property("fetch.wait.max.ms"), Some("500"));
    assert_eq!(property("queue.buffering.max.kbytes"), Some("65536"));
    // Understood, without effect, and said so.
    assert_eq!(property("batch.size"), None);
    assert!(config.notes.iter().any(|note| note.contains("batch.size")), "{:?}", config.notes);
    let text = refusal("kafka: { properties: { group.id: mine, max.poll.records: 1000 } }", &[], &[]);
    assert!(
        text.contains("set `environment` and `group`") && text.contains("1000 is outside 1 to 500"),
        "{text}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_file_and_no_variable_makes_the_loader_panic(
        file in ".{0,100}",
        key in prop::sample::select(super::settings::SETTINGS.iter().map(|s| s.key).collect::<Vec<_>>()),
        value in "[ -~]{0,30}",
    ) {
        let _ = load(&file, &[("KAFKA_ACKS", &value), ("KAFKA_TIMEOUT_SECONDS", &value)], &[(key, &value)]);
        let _ = load(&format!("{key}: {value}\n"), &[], &[]);
    }
}

#[test]
fn a_profile_stands_for_its_properties_beneath_what_is_given() {
    let file = "kafka:\n  producer_profile: high_throughput\n  consumer_profile: lag_recovery\n  \
                properties: { fetch.wait.max.ms: 20 }\ndefaults: { batch_records: 50 }\n";
    let config = load(file, &[], &[]).expect("valid").config;
    let property = |name: &str| config.kafka.properties.get(name).map(String::as_str);
    assert_eq!(property("compression.type"), Some("lz4"));
    assert_eq!(property("max.in.flight.requests.per.connection"), Some("10"));
    assert_eq!((config.kafka.acks.as_str(), config.kafka.enable_idempotence), ("1", false));
    assert_eq!(
        (property("fetch.min.bytes"), property("session.timeout.ms")),
        (Some("1048576"), Some("45000"))
    );
    assert_eq!(property("fetch.wait.max.ms"), Some("20"), "given by itself, by another name");
    assert_eq!(config.defaults.batch_records, 50, "given by itself, as a setting");
    let config = load("kafka: { consumer_profile: lag_recovery }\n", &[], &[]).expect("valid").config;
    assert_eq!(config.defaults.batch_records, 500, "of 1,000 the most that a handler is called with");
    assert!(config.notes.iter().any(|note| note.contains("not 1000")), "{:?}", config.notes);
    let refused = refusal("kafka: { producer_profile: fast }\n", &[], &[]);
    assert!(refused.contains("kafka.producer_profile") && refused.contains("high_durability"), "{refused}");
}

#[test]
fn a_property_wins_over_a_profile_by_any_of_its_names_and_is_given_by_one_of_them() {
    for (profile, given, (name, value)) in [
        ("producer_profile: low_latency", "compression.codec: zstd", ("compression.type", "zstd")),
        ("producer_profile: high_durability", "message.send.max.retries: 7", ("retries", "7")),
        (
            "producer_profile: high_durability",
            "max.in.flight: 3",
            ("max.in.flight.requests.per.connection", "3"),
        ),
        ("producer_profile: long_timeouts", "message.timeout.ms: 200000", ("delivery.timeout.ms", "200000")),
        (
            "consumer_profile: high_throughput",
            "fetch.message.max.bytes: 3000000",
            ("max.partition.fetch.bytes", "3000000"),
        ),
    ] {
        let file = format!("kafka: {{ {profile}, properties: {{ {given} }} }}\n");
        let properties = load(&file, &[], &[]).expect("valid").config.kafka.properties;
        assert_eq!(properties.get(name).map(String::as_str), Some(value), "{given}");
        assert!(properties.keys().all(|key| !given.starts_with(&format!("{key}:"))), "{properties:?}");
    }
    // Whichever of the two comes first.
    for (one, other) in
        [("fetch.max.wait.ms", "fetch.wait.max.ms"), ("max.request.size", "message.max.bytes")]
    {
        let file = format!("kafka: {{ properties: {{ {one}: 2000, {other}: 3000 }} }}\n");
        let said = refusal(&file, &[], &[]);
        let is_named = |name: &str| said.contains(&format!("kafka.properties.{name}"));
        assert!(is_named(one) && is_named(other) && said.contains("means the same"), "{said}");
    }
}

#[test]
fn what_the_nodes_own_client_does_otherwise_is_noted_only_if_it_writes() {
    let notes = |kafka: &str| load(&format!("kafka: {{ {kafka} }}"), &[], &[]).expect("valid").config.notes;
    let has = |notes: &[String], words: [&str; 2]| {
        notes.iter().any(|note| words.iter().all(|word| note.contains(word)))
    };
    let in_flight = ["max.in.flight.requests.per.connection: 5", "not 10"];
    let retries = ["kafka.properties.retries", "without effect"];
    assert!(has(&notes("producer_profile: high_throughput"), in_flight));
    assert!(has(&notes("producer_profile: high_throughput, client: own"), in_flight));
    for profile in ["high_durability", "throughput_idempotence", "long_timeouts"] {
        assert!(has(&notes(&format!("producer_profile: {profile}")), retries), "{profile}");
    }
    assert!(notes("properties: { max.in.flight: 5, fetch.min.bytes: 1000 }").is_empty());
    for librdkafka in ["client: librdkafka", "properties: { client.rack: a }"] {
        for (profile, words) in [("high_throughput", in_flight), ("long_timeouts", retries)] {
            let notes = notes(&format!("producer_profile: {profile}, {librdkafka}"));
            assert!(!has(&notes, words), "{librdkafka}: {notes:?}");
        }
    }
}

#[test]
fn certificates_come_as_three_files_and_with_roles() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, "").expect("written");
        path.display().to_string()
    };
    let tls = format!("cert: {}, key: {}, client_ca: {}", file("a"), file("b"), file("c"));
    let roles = "roles:\n  - { san: '*.ops.test', role: admin }\n  - { san: 'spiffe://o/ci', role: deployer, deployments: [ 'a-*', b ], topics: [ 'a.*' ], secrets: [ '/run/a/*' ] }\n";
    let text = format!("listen: {{ grpc: '0.0.0.0:7600', http: '0.0.0.0:7601', tls: {{ {tls} }} }}\n{roles}");
    let effective = load(&text, &[], &[]).expect("beyond loopback, without `insecure`");
    assert_eq!(effective.config.roles.len(), 2);
    let shown: Vec<_> = effective.shown.iter().filter(|shown| shown.key.starts_with("roles")).collect();
    assert_eq!(
        (shown[1].key.as_str(), shown[1].value.as_str()),
        ("roles[1]", "spiffe://o/ci is deployer of a-*, b with topics a.* with secrets /run/a/*")
    );
    assert_eq!(shown[1].source.to_string(), "tidemill.yaml:4");

    let missing = refusal(&format!("listen: {{ tls: {{ cert: {} }} }}\n", file("a")), &[], &[]);
    assert!(missing.contains("needs listen.tls.key and listen.tls.client_ca"), "{missing}");
    assert!(missing.contains("listen.tls.cert: needs `roles`"), "{missing}");
    let without = refusal(roles, &[], &[]);
    assert!(without.contains("roles: has no effect without listen.tls"), "{without}");
    let elsewhere = refusal("", &[("TIDEMILL_ROLES", "admin")], &[]);
    assert!(
        elsewhere.contains("TIDEMILL_ROLES: is a list of mappings, which only the file can hold"),
        "{elsewhere}"
    );
}

#[test]
fn every_mistake_in_roles_is_said_with_its_line() {
    let file = "roles:\n  - { san: '*', role: admin }\n  - { san: a.b, rol: admin }\n  - { san: a.b, role: root }\n  \
                - { san: a.b, role: viewer, deployments: [] }\n  - { san: a.b, role: node, deployments: [ a ] }\n  - admin\n  - { san: a.b, role: query, topics: [ a ] }\n  - { san: a.b, role: viewer, secrets: [ a ] }\n";
    let problems = refusal(file, &[], &[]);
    for (line, word) in [
        (2, "roles[0].san: says nothing about who it is"),
        (3, "roles[1].rol: unknown key, did you mean `role`?"),
        (4, "roles[2].role: unknown value `root`"),
        (5, "roles[3].deployments: expected names"),
        (6, "roles[4].deployments: does not go with role node"),
        (7, "roles[5]: expected a mapping, found a text"),
        (8, "roles[6].topics: does not go with role query"),
        (9, "roles[7].secrets: does not go with role viewer"),
    ] {
        let said = problems.lines().any(|at| at.starts_with(&format!("line {line}: ")) && at.contains(word));
        assert!(said, "line {line}: {word}\n{problems}");
    }
    assert!(refusal("roles: []\n", &[], &[]).contains("roles: is empty"));
}
