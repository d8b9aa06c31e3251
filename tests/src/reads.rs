//! Reading one's own writes: a record is produced, and a read that asks for the position behind it has what
//! the record did, ten thousand times in a row, whatever happens to the nodes meanwhile.
//!
//! | when | what happens, with the record on its way |
//! |---|---|
//! | at 1/8 and 3/8 | a new version is swapped in |
//! | at 1/4 | a second node joins, and half the partitions move to it |
//! | at 1/2 | the first node is restarted: its partitions go away, and come back |
//! | at 5/8 | the second node is killed, and started again |
//! | at 3/4 | the second node leaves for good |
//!
//! Every so often both halves are the command line's: what `tidemill produce` prints goes to `tidemill state
//! get --at-least`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use tidemill_proto::v1::state_client::StateClient;
use tidemill_proto::v1::{GetStateRequest, InputPosition};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::cases::block_on;
use crate::cluster::Cluster;
use crate::node::{Node, plain};
use crate::wait::until;

const TOPIC: &str = "words";
const KEYS: u64 = 40;
const PARTITIONS: &str = "4";
/// The longest wait for one read: a killed node's partitions move when its session has ended.
const READ_MAX: Duration = Duration::from_secs(60);
/// One call's own deadline.
const CALL_MAX: Duration = Duration::from_secs(20);
/// Rounds of the command line among all.
const BY_COMMAND: u64 = 20;

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub rounds: u64,
    /// Reads that had the write.
    pub seen: u64,
    /// Of those that had not, what they answered.
    pub missed: Vec<String>,
    /// From the acknowledgement of a record to its read.
    pub longest: Duration,
}

/// Where the last record lies.
#[derive(Default)]
struct Acks(Mutex<Option<Result<(i32, i64), String>>>);

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let ack = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.to_string()),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ack);
    }
}

struct Writer(BaseProducer<Acks>);

impl Writer {
    fn new(cluster: &Cluster) -> Writer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap()).set("linger.ms", "0");
        config.set("partitioner", "murmur2_random").set("enable.idempotence", "true");
        Writer(config.create_with_context(Acks::default()).expect("a producer"))
    }

    /// The position behind the record.
    fn write(&self, key: &str) -> InputPosition {
        let record = BaseRecord::to(TOPIC).key(key).payload("");
        self.0.send(record).map_err(|(error, _)| error).expect("there is room");
        let (partition, offset) = until("the record is acknowledged", READ_MAX, || {
            self.0.poll(Duration::from_millis(50));
            self.0.context().0.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(())
        })
        .expect("it is written");
        InputPosition { topic: TOPIC.into(), partition, offset: offset as u64 + 1 }
    }
}

/// Runs so many rounds on one cluster. `module` is the count handler.
pub fn run(cluster: &Cluster, module: &Path, rounds: u64) -> Seen {
    let directory = tempfile::tempdir().expect("a directory");
    let mut first = Node::start(cluster, &directory.path().join("first"));
    let mut second = Node::prepare(cluster, &directory.path().join("second"), &plain(cluster));
    block_on(first.client());
    first.tidemill(&["topics", "create", TOPIC, "counts", "--partitions", PARTITIONS]).ok();
    deploy(&first, directory.path(), module, 500);
    let writer = Writer::new(cluster);
    let mut counts: HashMap<String, u64> = HashMap::new();
    let mut seen = Seen::default();
    for round in 1..=rounds {
        let key = format!("k{}", round % KEYS);
        let count = counts.entry(key.clone()).or_default();
        *count += 1;
        let by_command = round.is_multiple_of((rounds / BY_COMMAND).max(1));
        let at = if by_command { produce(&first, &key) } else { writer.write(&key) };
        let written = Instant::now();
        match round {
            _ if round == rounds / 8 => deploy(&first, directory.path(), module, 400),
            _ if round == rounds / 4 => second.restart(),
            _ if round == rounds * 3 / 8 => deploy(&first, directory.path(), module, 300),
            _ if round == rounds / 2 => {
                assert!(first.stop().success(), "{}", first.log());
                first.restart();
            }
            _ if round == rounds * 5 / 8 => {
                second.kill();
                second.restart();
            }
            _ if round == rounds * 3 / 4 => assert!(second.stop().success(), "{}", second.log()),
            _ => {}
        }
        // Either node is asked, whoever has the partition.
        let both = (rounds / 4..rounds * 3 / 4).contains(&round);
        let asked = if both && round.is_multiple_of(2) { &second } else { &first };
        let found = if by_command { get(asked, &key, &at) } else { block_on(read(&asked.grpc, &key, &at)) };
        seen.rounds += 1;
        match found == count.to_string() {
            true => seen.seen += 1,
            false => seen.missed.push(format!("{key} is {found}, not {count}, at {at:?}")),
        }
        seen.longest = seen.longest.max(written.elapsed());
        if round.is_multiple_of(1_000) {
            println!("{round} rounds, {} missed, longest {:.1?}", seen.missed.len(), seen.longest);
        }
    }
    assert!(first.stop().success(), "{}", first.log());
    seen
}

/// Each bound makes another version, with the same inputs, that is swapped in.
fn deploy(node: &Node, directory: &Path, module: &Path, batch_records: u32) {
    let document = format!(
        "name: word-count\nmodule: {}\ninputs: {{ in: {{ topic: {TOPIC} }} }}\noutputs: {{ out: {{ topic: counts }} }}\n\
         limits: {{ batch_records: {batch_records} }}\n",
        module.display()
    );
    let file = directory.join("word-count.yaml");
    std::fs::write(&file, document).expect("a file");
    node.tidemill(&["apply", "-f", &file.display().to_string()]).ok();
}

/// What `tidemill produce` prints.
fn produce(node: &Node, key: &str) -> InputPosition {
    let printed = node.tidemill(&["produce", TOPIC, "x", "--key", key, "--output", "json"]).ok();
    let printed: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let at = &printed["positions"][0];
    let partition = at["partition"].as_i64().and_then(|partition| i32::try_from(partition).ok());
    InputPosition {
        topic: TOPIC.into(),
        partition: partition.expect("a partition"),
        offset: at["offset"].as_u64().expect("an offset"),
    }
}

/// What `tidemill state get` prints for a key.
fn get(node: &Node, key: &str, at: &InputPosition) -> String {
    let position = format!("{}/{}@{}", at.topic, at.partition, at.offset);
    let arguments =
        ["state", "get", "word-count", "counts", key, "--at-least", &position, "--timeout", "20s"];
    until("the command answers", READ_MAX, || {
        let finished = node.tidemill(&arguments);
        // 5 says that the key is not there: a miss. What else fails may be tried again.
        match finished.status.code() {
            Some(0 | 5) => Ok(finished.stdout.trim().to_owned()),
            _ => Err(finished),
        }
    })
}

async fn read(address: &str, key: &str, at: &InputPosition) -> String {
    let started = Instant::now();
    loop {
        let error = match try_read(address, key, at).await {
            Ok(found) => return found,
            Err(error) => error,
        };
        assert!(started.elapsed() < READ_MAX, "no answer from {address}: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The value as text, or what is there instead; an error if a later try may have an answer.
async fn try_read(address: &str, key: &str, at: &InputPosition) -> Result<String, String> {
    let mut request = tonic::Request::new(GetStateRequest {
        deployment: "word-count".into(),
        store: "counts".into(),
        key: key.into(),
        at_least: vec![at.clone()],
        partition: Some(at.partition),
        text: true,
        ..GetStateRequest::default()
    });
    request.set_timeout(CALL_MAX);
    let channel = connect(address).await?;
    match StateClient::new(channel).get(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let reached =
                answer.read_at.iter().any(|read| read.positions.iter().any(|p| p.offset >= at.offset));
            let text = answer.entries.into_iter().find_map(|entry| entry.text);
            Ok(text.filter(|_| reached).unwrap_or_else(|| format!("nothing, read at {:?}", answer.read_at)))
        }
        Err(status)
            if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) =>
        {
            Err(status.to_string())
        }
        Err(status) => Ok(format!("refused: {status}")),
    }
}

async fn connect(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    endpoint.connect().await.map_err(|error| error.to_string())
}

/// The short form, for a test.
pub fn every_write_is_seen(cluster: &Cluster, rounds: u64) {
    let modules = tempfile::tempdir().expect("a directory");
    let module = build_count(modules.path());
    let seen = run(cluster, &module, rounds);
    assert_eq!((seen.seen, &seen.missed), (rounds, &Vec::new()), "{seen:?}");
}

/// Builds the count handler into a directory.
pub fn build_count(directory: &Path) -> std::path::PathBuf {
    let module = directory.join("count.wasm");
    let source = crate::programs::workspace().join("plugins/count");
    let mut build = crate::programs::tidemill(["build"]);
    crate::programs::run(build.arg(source).arg("--out").arg(&module)).ok();
    module
}
