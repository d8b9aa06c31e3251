//! A broker, a node's directory and the words to talk about them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill::config::NodeConfig;
use tidemill::config::load::Sources;
use tidemill::kafka::admin::{Admin, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::tools::{self, ConsumeSpec, Consumed, From, Row, ToolError};
use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::{Handle, Node};
use tidemill::telemetry::Telemetry;
use tidemill_broker::{Broker, Config};
use tidemill_proto::v1 as proto;

/// The program, which compiles the modules.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tidemill");

/// Waits for a condition, and says which one when it does not come.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub struct World {
    broker: Broker,
    pub dir: tempfile::TempDir,
    /// Of the nodes' members.
    pub session: Duration,
}

impl World {
    pub fn new(topics: &[(&str, i32)]) -> World {
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("info").try_init();
        let broker =
            Broker::start(Config { listen: "127.0.0.1:0".into(), ..Config::default() }).expect("broker");
        let world = World {
            broker,
            dir: tempfile::tempdir().expect("temporary directory"),
            session: Duration::from_secs(10),
        };
        let admin = Admin::new(&world.kafka()).expect("admin");
        for (name, partitions) in topics {
            admin.create_topic(&NewTopic::new(*name, *partitions)).expect("topic");
        }
        world
    }

    pub fn kafka(&self) -> KafkaConfig {
        KafkaConfig::new(self.broker.address().to_string())
    }

    /// Every committed record of a topic, each partition in its order.
    pub fn committed(&self, topic: &str) -> Result<Vec<Consumed>, ToolError> {
        let spec = ConsumeSpec {
            topic: topic.into(),
            partitions: Vec::new(),
            from: From::Beginning,
            max: None,
            committed: true,
            follow: false,
        };
        let mut records = Vec::new();
        let mut each = |record: Option<Consumed>| {
            records.extend(record);
            true
        };
        tools::consume(&self.kafka(), &spec, &mut each).map(|_| records)
    }

    pub fn node(&self) -> Node {
        self.node_with("")
    }

    /// A node of id `n` with more lines in its file.
    pub fn node_with(&self, more: &str) -> Node {
        Node::start(self.config(more), "127.0.0.1:0".into(), PROGRAM.into(), Telemetry::new()).expect("node")
    }

    /// Node `n` of another world, on this one's cluster.
    pub fn node_of(&self, other: &World) -> Node {
        let config = NodeConfig { state_dir: other.dir.path().join("node-n"), ..self.config("") };
        Node::start(config, "127.0.0.1:0".into(), PROGRAM.into(), Telemetry::new()).expect("node")
    }

    /// A node of that id, which others reach there.
    pub fn member(&self, id: &str, address: &str) -> Node {
        let config = self.config_of(id, "");
        Node::start(config, address.into(), PROGRAM.into(), Telemetry::new()).expect("node")
    }

    /// Of node `n`.
    pub fn config(&self, more: &str) -> NodeConfig {
        self.config_of("n", more)
    }

    fn config_of(&self, id: &str, more: &str) -> NodeConfig {
        let file = format!(
            "fleet: test\nstate_dir: {}\nkafka:\n  bootstrap_servers: {}\n  properties: {{ topic.metadata.refresh.interval.ms: 300, \
             session.timeout.ms: {} }}\nreplication_factor: 1\nnode_id: {id}\n\
             listen: {{ grpc: 127.0.0.1:0, http: 127.0.0.1:0 }}\n{more}",
            self.dir.path().join(format!("node-{id}")).display(),
            self.broker.address(),
            self.session.as_millis(),
        );
        let sources = Sources { file: Some(("test.yaml".into(), file)), ..Sources::default() };
        NodeConfig::load(&sources).expect("configuration").config
    }

    pub fn produce(&self, topic: &str, keys: &[&str]) {
        let log = TopicLog::open(&self.kafka(), topic).expect("log");
        for key in keys {
            log.append(Some(key.as_bytes()), Some(b"")).expect("appended");
        }
    }

    pub fn admin(&self) -> Admin {
        Admin::new(&self.kafka()).expect("admin")
    }

    /// Answers the position behind the last one.
    pub fn produce_to(&self, topic: &str, partition: i32, keys: &[&str]) -> u64 {
        let rows = keys.iter().map(|key| Row {
            key: Some(key.as_bytes().to_vec()),
            value: Some(Vec::new()),
            partition: Some(partition),
            ..Row::default()
        });
        let produced = tools::produce(&self.kafka(), topic, rows, None, &mut |_| {}).expect("produced");
        produced.next[&partition]
    }

    /// Last value by key of everything in a single-partition topic.
    pub fn latest(&self, topic: &str) -> BTreeMap<String, String> {
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

pub fn deploy(node: &Node, document: &str, module: &[u8]) {
    let header = proto::DeployHeader { document: document.into(), ..proto::DeployHeader::default() };
    node.handle().deploy(header, module.to_vec()).expect("deployed");
}

/// Whether every task runs the newest version and says where it began: what is produced from then on is that version's.
pub fn is_adopted(handle: &Handle, name: &str) -> bool {
    handle.rollout(name).is_ok_and(|rollout| {
        let current = |task: &proto::TaskRollout| task.revision == rollout.revision && !task.first.is_empty();
        rollout.tasks.iter().all(current)
    })
}

/// State and reason of a deployment.
pub fn status(node: &Node, name: &str) -> (proto::DeploymentState, String) {
    let deployment = node.handle().deployment(name).expect("it is deployed");
    (deployment.state(), deployment.reason)
}

pub fn delete(node: &Node, name: &str, keep_state: bool) {
    let request = proto::DeleteDeploymentRequest {
        name: name.into(),
        keep_state,
        ..proto::DeleteDeploymentRequest::default()
    };
    node.handle().delete(request).expect("deleted");
}
