//! What a scene plays on: a broker, nodes, one deployment with a topic and a destination, and a feed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::node::{Node, plain};
use crate::wait::until;

pub const DEPLOYMENT: &str = "w7";
pub const FLEET: &str = "w7";
pub const INPUT: &str = "w7-in";
pub const OUTPUT: &str = "w7-out";
pub const PARTITIONS: i32 = 4;
/// Of a feed that does not say how many it has.
pub const KEYS: u64 = 40;
/// Every so many records' text has this mark, which a receiver may refuse for good.
pub const MARK: &str = "x";
const MARK_EVERY: u64 = 50;

const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Until everything has been delivered that waits after minutes without a receiver, back-offs and a busy machine
/// included.
const DRAIN_MAX: Duration = Duration::from_secs(300);
const FLUSH_MAX: Duration = Duration::from_secs(30);

/// How often the task of each partition has started.
pub type Starts = [u64; PARTITIONS as usize];

pub struct Stage {
    pub cluster: Cluster,
    pub nodes: Vec<Node>,
    pub directory: tempfile::TempDir,
    /// The deployment's document.
    file: PathBuf,
}

impl Stage {
    /// Nodes on a broker, none of which is started yet. `destination` is the output's mapping.
    pub fn new(cluster: Cluster, nodes: usize, destination: &str, module: &Path) -> Stage {
        let directory = tempfile::Builder::new().prefix("tidemill-outbox-").tempdir().expect("a directory");
        let settings = format!("fleet: {FLEET}\n{}", plain(&cluster));
        let node = |number| Node::prepare(&cluster, &directory.path().join(format!("n{number}")), &settings);
        let nodes = (0..nodes).map(node).collect();
        let file = directory.path().join("w7.yaml");
        // Not compacted, so that the judge sees every row there ever was.
        let document = format!(
            "name: {DEPLOYMENT}\nmodule: {}\ninputs: {{ in: {{ topic: {INPUT} }} }}\noutputs:\n  out: {{ topic: {OUTPUT} }}\n  \
             hook: {destination}\ncommit: {{ interval: 50ms }}\nchangelog: {{ min_compaction_lag: 1d }}\n",
            module.display()
        );
        std::fs::write(&file, document).expect("the deployment's file");
        Stage { cluster, nodes, directory, file }
    }

    /// Starts the first node, as that program and with those variables, makes the topics and deploys.
    pub fn begin(&mut self, program: &str, variables: &[(&str, &str)]) {
        self.nodes[0].restart_as(program, variables);
        self.until_it_answers(0);
        let partitions = PARTITIONS.to_string();
        self.nodes[0].tidemill(&["topics", "create", INPUT, OUTPUT, "--partitions", &partitions]).ok();
        let file = self.file.display().to_string();
        self.nodes[0].tidemill(&["apply", "-f", &file, "--wait"]).ok();
    }

    pub fn until_it_answers(&self, node: usize) {
        self.nodes[node].until_it_answers(ANSWER_MAX);
    }

    /// A command that answers JSON; none if it fails.
    pub fn ask(&self, node: usize, arguments: &[&str]) -> Option<Value> {
        let finished = self.nodes[node].tidemill(&[arguments, &["-o", "json"]].concat());
        if finished.status.success() { serde_json::from_str(&finished.stdout).ok() } else { None }
    }

    /// Rows that wait, as any node tells.
    pub fn waiting(&self, node: usize) -> Option<u64> {
        self.ask(node, &["outbox", "list", DEPLOYMENT])?["total"].as_u64()
    }

    /// Nothing is behind and nothing waits.
    pub fn until_drained(&self, node: usize) {
        until("everything is delivered", DRAIN_MAX, || {
            let lag = self.ask(node, &["lag", DEPLOYMENT]).and_then(|lag| lag["total"].as_u64());
            let rows = self.waiting(node);
            if (lag, rows) == (Some(0), Some(0)) { Ok(()) } else { Err((lag, rows)) }
        });
    }

    /// On any node so far, as their logs say.
    pub fn starts(&self) -> Starts {
        let mut starts = Starts::default();
        self.nodes.iter().for_each(|node| count_starts(&node.whole_log(), &mut starts));
        starts
    }

    /// Resident memory of a node, in MiB.
    pub fn memory_mib(&self, node: usize) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.nodes[node].pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) / 1024
    }
}

pub fn count_starts(log: &str, starts: &mut Starts) {
    for line in log.lines().filter(|line| line.contains(" task starts ")) {
        let partition = line.split_once(" partition=").and_then(|(_, rest)| rest.split(' ').next());
        let partition = partition.and_then(|partition| partition.parse::<usize>().ok());
        if let Some(count) = partition.and_then(|partition| starts.get_mut(partition)) {
            *count += 1;
        }
    }
}

/// What was fed: texts by key, in their order.
pub type Fed = BTreeMap<String, Vec<String>>;

/// Feeds on a thread of its own until told to finish.
pub struct Feeder {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Fed>,
}

impl Feeder {
    /// `rate` in records a second.
    pub fn start(bootstrap: &str, rate: u64) -> Feeder {
        Feeder::with_keys(bootstrap, rate, KEYS)
    }

    /// `keys` is a multiple of the number of partitions.
    pub fn with_keys(bootstrap: &str, rate: u64, keys: u64) -> Feeder {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .create()
            .expect("a producer");
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counting) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut fed = Fed::new();
            let mut number = 0;
            while !stopping.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
                while number < due {
                    feed(&producer, (number, keys), &mut fed);
                    number += 1;
                }
                counting.store(number, Ordering::Relaxed);
                producer.poll(Duration::from_millis(5));
            }
            producer.flush(FLUSH_MAX).expect("every record is acknowledged");
            fed
        });
        Feeder { stop, sent, thread }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn finish(self) -> Fed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the feeder did not panic")
    }
}

fn feed(producer: &BaseProducer, (number, keys): (u64, u64), fed: &mut Fed) {
    let key = format!("k{}", number % keys);
    let mark = if number % MARK_EVERY == MARK_EVERY - 1 { MARK } else { "" };
    let text = format!("t{number}{mark}");
    let partition = (number % keys) as i32 % PARTITIONS;
    let record = || BaseRecord::to(INPUT).key(&key).payload(&text).partition(partition);
    while producer.send(record()).is_err() {
        producer.poll(Duration::from_millis(20));
    }
    fed.entry(key).or_default().push(text);
}

/// What a node's `/metrics` has shown, looked at all the time.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// States of the circuit breaker.
    pub breaker: BTreeSet<String>,
    /// An outbox is full, by the last look. Not kept, because each trouble of a receiver may fill one.
    pub full: bool,
    /// Rows of all partitions at once, the most of any look.
    pub rows_max: u64,
    /// Deliveries that were acknowledged, by the last look.
    pub delivered: u64,
}

impl Watcher {
    pub fn start(http: &str) -> Watcher {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (stopping, noting, http) = (Arc::clone(&stop), Arc::clone(&seen), http.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                if let Some(text) = get(&http, "/metrics") {
                    noting.lock().unwrap_or_else(PoisonError::into_inner).note(&text);
                }
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        Watcher { stop, seen, thread: Some(thread) }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only looks.
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn note(&mut self, text: &str) {
        let (mut rows, mut full) = (0, false);
        for line in text.lines().filter(|line| line.contains("destination=\"hook\"")) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let value: f64 = value.parse().unwrap_or_default();
            if name.starts_with("tidemill_outbox_rows{") {
                rows += value as u64;
            }
            full |= name.starts_with("tidemill_outbox_full{") && value > 0.0;
            if name.starts_with("tidemill_deliveries_total{") && name.contains("outcome=\"delivered\"") {
                self.delivered = value as u64;
            }
            if name.starts_with("tidemill_breaker_state{") && value > 0.0 {
                let state = name.split("state=\"").nth(1).and_then(|rest| rest.split('"').next());
                self.breaker.extend(state.map(str::to_owned));
            }
        }
        self.rows_max = self.rows_max.max(rows);
        self.full = full;
    }
}

/// The body of an answer of 200.
pub fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}
