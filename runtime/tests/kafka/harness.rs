//! A broker shared by the tests that run at the same time, topics of one's own, and a member of a
//! group that does what a worker would.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tidemill::kafka::admin::{Admin, At, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::consumer::{Consumer, ConsumerSpec};
use tidemill::kafka::tools::{self, Row};
use tidemill::ports::{Group, Source, SourceError, Taken};
use tidemill::record::{Batch, InputPartition, Offset};
use tidemill_kafka_harness::{ApacheKafka, Options};

/// Nothing here takes long; a machine that is busy with other things may.
pub const PATIENCE: Duration = Duration::from_secs(60);

enum Broker {
    Embedded(tidemill_broker::Broker),
    Apache(ApacheKafka),
}

/// What is closed of a compacted log is gone over at once, as the embedded broker does.
fn apache_options() -> Options {
    let pairs = [
        ("log.initial.task.delay.ms", "100"),
        ("log.cleaner.backoff.ms", "200"),
        ("log.cleaner.dedupe.buffer.size", "4194304"),
    ];
    let properties = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Options { properties, ..Options::default() }
}

/// A broker. It ends with the last test that holds it.
pub struct Cluster {
    broker: Broker,
}

impl Cluster {
    pub fn get() -> Arc<Cluster> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return cluster;
        }
        let broker = match std::env::var("TIDEMILL_KAFKA").as_deref() {
            Ok("apache") => Broker::Apache(ApacheKafka::start_with(&apache_options()).unwrap()),
            Ok("embedded") | Err(_) => Broker::Embedded(
                tidemill_broker::Broker::start(tidemill_broker::Config {
                    listen: "127.0.0.1:0".to_owned(),
                    ..tidemill_broker::Config::default()
                })
                .unwrap(),
            ),
            Ok(other) => panic!("TIDEMILL_KAFKA is `{other}`, not embedded or apache"),
        };
        let cluster = Arc::new(Cluster { broker });
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    pub fn config(&self) -> KafkaConfig {
        let mut config = KafkaConfig::new(match &self.broker {
            Broker::Embedded(broker) => broker.address().to_string(),
            Broker::Apache(kafka) => kafka.bootstrap.clone(),
        });
        config.limits.session_timeout = Duration::from_secs(6);
        config
    }

    pub fn admin(&self) -> Admin {
        Admin::new(&self.config()).unwrap()
    }

    /// Makes a topic with a name that no other test has.
    pub fn topic(&self, stem: &str, partitions: i32) -> String {
        self.topic_with(NewTopic::new(unique(stem), partitions))
    }

    pub fn topic_with(&self, topic: NewTopic) -> String {
        self.admin().create_topic(&topic).unwrap();
        topic.name
    }

    pub fn produce(&self, topic: &str, rows: impl IntoIterator<Item = Row>) {
        tools::produce(&self.config(), topic, rows, None, &mut |_| {}).unwrap();
    }

    /// Waits until nothing in a topic is undecided: Kafka answers to the end of a transaction before its markers are
    /// there.
    pub fn settle(&self, topic: &str) {
        let admin = self.admin();
        let partitions = 0..admin.topic(topic).unwrap().partitions;
        let partitions: Vec<_> = partitions.map(|partition| (topic.to_owned(), partition)).collect();
        eventually("the markers are there", || {
            let [stable, end] = [At::StableEnd, At::End].map(|at| admin.offsets(&partitions, at).unwrap());
            (stable == end).then_some(())
        });
    }

    /// Values `from..to` as text, keyed by themselves, to one partition.
    pub fn produce_numbers(&self, topic: &str, partition: i32, numbers: std::ops::Range<u64>) {
        self.produce(topic, numbers.map(|n| row(partition, &n.to_string())));
    }
}

pub fn row(partition: i32, value: &str) -> Row {
    Row {
        key: Some(value.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
        partition: Some(partition),
        ..Row::default()
    }
}

/// Records are given times of today, because retention would delete older ones.
pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

pub fn unique(stem: &str) -> String {
    format!("{stem}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

pub fn at(input: u16, partition: i32) -> InputPartition {
    InputPartition { input, partition }
}

/// Waits for a condition.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A member that answers every event at once: partitions start where `start_at` says.
pub struct Member {
    pub consumer: Consumer,
    pub running: Vec<InputPartition>,
    pub batches: Vec<Batch>,
    /// Everything but batches, in order, shortly.
    pub events: Vec<String>,
    pub start_at: fn(InputPartition) -> Offset,
}

impl Member {
    pub fn join(cluster: &Cluster, spec: ConsumerSpec) -> Member {
        Member::join_with(&cluster.config(), spec)
    }

    pub fn join_with(config: &KafkaConfig, spec: ConsumerSpec) -> Member {
        let consumer = Consumer::new(config, spec).unwrap();
        Member {
            consumer,
            running: Vec::new(),
            batches: Vec::new(),
            events: Vec::new(),
            start_at: |_| Offset(0),
        }
    }

    /// One `take`, with what a worker answers.
    pub fn step(&mut self) {
        let mut out = Vec::new();
        self.consumer.take(Duration::from_millis(20), &mut out).unwrap();
        for taken in out {
            match taken {
                Taken::Batch(batch) => self.batches.push(batch),
                Taken::Assigned(partitions) => {
                    self.events.push(format!("assigned {}", numbers(&partitions)));
                    let offsets: Vec<_> = partitions.iter().map(|&id| (id, (self.start_at)(id))).collect();
                    self.consumer.assign(&offsets).unwrap();
                    for (id, offset) in offsets {
                        self.consumer.start(id, offset).unwrap();
                        self.running.push(id);
                    }
                }
                Taken::Revoked(partitions) | Taken::Lost(partitions) => {
                    self.events.push(format!("revoked {}", numbers(&partitions)));
                    self.running.retain(|id| !partitions.contains(id));
                    self.consumer.unassign(&partitions).unwrap();
                }
                Taken::Failed { partition, reason } => {
                    self.events.push(format!("failed {}: {reason}", partition.partition));
                    self.running.retain(|id| *id != partition);
                }
            }
        }
    }

    pub fn step_until(&mut self, what: &str, mut done: impl FnMut(&Member) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}; events: {:?}", self.events);
            self.step();
        }
    }

    /// Keeps what it has, while another joins, until the group wants some of it back: by `take` or by `listen`, and what
    /// else that brings is the caller's.
    pub fn until_revoked(
        &mut self,
        other: &mut Member,
        ask: fn(&mut Consumer, Duration, &mut Vec<Taken>) -> Result<(), SourceError>,
        mut else_brought: impl FnMut(Taken),
    ) -> Vec<InputPartition> {
        let mut out = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no revocation");
            ask(&mut self.consumer, Duration::from_millis(20), &mut out).unwrap();
            other.step();
            match out.pop() {
                Some(Taken::Revoked(partitions)) => return partitions,
                Some(Taken::Assigned(partitions)) => {
                    assert!(partitions.is_empty());
                    self.consumer.assign(&[]).unwrap();
                }
                Some(taken) => else_brought(taken),
                None => {}
            }
        }
    }

    /// Offsets and values of a partition, in the order they came.
    pub fn records(&self, id: InputPartition) -> Vec<(i64, String)> {
        let of = self.batches.iter().filter(|batch| batch.input_partition() == id);
        of.flat_map(|batch| {
            let values = batch.values.iter().map(|value| {
                value.map_or("null".to_owned(), |value| String::from_utf8_lossy(value).into_owned())
            });
            batch.offsets.iter().copied().zip(values).collect::<Vec<_>>()
        })
        .collect()
    }

    pub fn count(&self) -> usize {
        self.batches.iter().map(Batch::len).sum()
    }
}

fn numbers(partitions: &[InputPartition]) -> String {
    let mut sorted: Vec<_> = partitions.to_vec();
    sorted.sort();
    let text: Vec<_> = sorted.iter().map(|id| format!("{}/{}", id.input, id.partition)).collect();
    text.join(" ")
}
