//! A whole node in this process, on the embedded broker: from deploy to query.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill::config::NodeConfig;
use tidemill::config::load::Sources;
use tidemill::kafka::admin::{Admin, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::Node;
use tidemill_broker::{Broker, Config};
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

/// Waits for a condition, and says which one when it does not come.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

struct World {
    broker: Broker,
    dir: tempfile::TempDir,
}

impl World {
    fn new(topics: &[(&str, i32)]) -> World {
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("info").try_init();
        let broker =
            Broker::start(Config { listen: "127.0.0.1:0".into(), ..Config::default() }).expect("broker");
        let world = World { broker, dir: tempfile::tempdir().expect("temporary directory") };
        let admin = Admin::new(&world.kafka()).expect("admin");
        for (name, partitions) in topics {
            admin.create_topic(&NewTopic::new(*name, *partitions)).expect("topic");
        }
        world
    }

    fn kafka(&self) -> KafkaConfig {
        KafkaConfig::new(self.broker.address().to_string())
    }

    fn node(&self) -> Node {
        let file = format!(
            "fleet: test\nstate_dir: {}\nkafka:\n  bootstrap_servers: {}\nreplication_factor: 1\n",
            self.dir.path().join("node").display(),
            self.broker.address()
        );
        let sources = Sources { file: Some(("test.yaml".into(), file)), ..Sources::default() };
        let config = NodeConfig::load(&sources).expect("configuration").config;
        Node::start(config, "127.0.0.1:0".into(), env!("CARGO_BIN_EXE_tidemill").into()).expect("node")
    }

    fn produce(&self, topic: &str, keys: &[&str]) {
        let log = TopicLog::open(&self.kafka(), topic).expect("log");
        for key in keys {
            log.append(Some(key.as_bytes()), Some(b"")).expect("appended");
        }
    }

    /// Last value by key of everything in a single-partition topic.
    fn latest(&self, topic: &str) -> BTreeMap<String, String> {
        let mut latest = BTreeMap::new();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let log = TopicLog::open(&self.kafka(), topic).expect("log");
        let mut tail = log.tail(tidemill::record::Offset(0)).expect("tail");
        tail.read_to_end(&mut |record| {
            latest.insert(text(record.key), text(record.value.unwrap_or_default()));
        })
        .expect("read");
        latest
    }
}

fn deploy(node: &Node, document: &str, module: &[u8]) {
    let header = proto::DeployHeader { document: document.into(), ..proto::DeployHeader::default() };
    node.handle().deploy(header, module.to_vec()).expect("deployed");
}

fn lag(node: &Node) -> Option<u64> {
    let lags = node.handle().lag(Some("word-count")).ok()?;
    Some(lags.iter().map(|lag| lag.records).sum())
}

fn count(node: &Node, key: &str) -> Option<u64> {
    let request = proto::GetStateRequest {
        deployment: "word-count".into(),
        store: "counts".into(),
        key: key.into(),
        partition: Some(0),
        local: true,
    };
    let answer = node.handle().state_get(&request).ok()?;
    let value: [u8; 8] = answer.entries.first()?.value.clone().try_into().ok()?;
    Some(u64::from_le_bytes(value))
}

const WORD_COUNT: &str = "\
name: word-count
module: count.wasm
inputs: { in: { topic: words } }
outputs: { out: { topic: counts } }
";

#[test]
fn words_are_counted_from_deploy_to_query_and_over_a_restart() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    world.produce("words", &["a", "b", "a"]);

    let node = world.node();
    deploy(&node, WORD_COUNT, &module);
    eventually("a is counted twice", || count(&node, "a") == Some(2));
    eventually("no lag", || lag(&node) == Some(0));
    assert_eq!(count(&node, "b"), Some(1));
    node.stop();

    world.produce("words", &["a", "c"]);
    let node = world.node();
    eventually("a is counted three times", || count(&node, "a") == Some(3));
    eventually("no lag after the restart", || lag(&node) == Some(0));
    node.stop();
    let expected = [("a", "3"), ("b", "1"), ("c", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(world.latest("counts"), BTreeMap::from(expected));
}

#[test]
fn at_least_once_commits_its_offsets_after_its_effects() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    world.produce("words", &["a", "a"]);
    let node = world.node();
    deploy(&node, &format!("{WORD_COUNT}guarantee: at_least_once\n"), &build_guest("plugins/count"));
    eventually("a is counted twice", || count(&node, "a") == Some(2));
    eventually("no lag", || lag(&node) == Some(0));
    node.stop();
    let node = world.node();
    world.produce("words", &["a"]);
    eventually("a is counted three times, not five", || count(&node, "a") == Some(3));
    eventually("no lag after the restart", || lag(&node) == Some(0));
    node.stop();
}
