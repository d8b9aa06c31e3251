//! The broker under test and the small vocabulary that the tests are written in.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tidemill_broker::{Broker, Config};
use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::raw::Raw;

/// No condition in this suite takes longer on a working broker.
pub const PATIENCE: Duration = Duration::from_secs(60);

enum Server {
    Embedded(Broker),
    Apache(#[expect(dead_code, reason = "it runs as long as it is held")] ApacheKafka),
}

/// The broker all tests of this process share.
pub struct Cluster {
    pub bootstrap: String,
    server: Server,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static UNIQUE: AtomicU32 = AtomicU32::new(0);

/// The broker under test, started on first use.
pub fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| match std::env::var("TIDEMILL_KAFKA").as_deref() {
        Ok("apache") => {
            let kafka = ApacheKafka::start_with(&apache_options()).expect("Apache Kafka starts");
            Cluster { bootstrap: kafka.bootstrap.clone(), server: Server::Apache(kafka) }
        }
        _ => {
            let broker = Broker::start(embedded_config()).expect("the broker starts");
            Cluster { bootstrap: broker.address().to_string(), server: Server::Embedded(broker) }
        }
    })
}

/// Short intervals, so that no test waits for a background pass; the same on both brokers.
pub fn embedded_config() -> Config {
    Config {
        session_timeout_min: Duration::from_millis(100),
        transaction_abort_interval: Duration::from_millis(200),
        maintenance_interval: Duration::from_millis(200),
        ..Config::default()
    }
}

fn apache_options() -> Options {
    let pairs = [
        ("group.min.session.timeout.ms", "100"),
        ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "200"),
        ("log.retention.check.interval.ms", "200"),
        ("log.initial.task.delay.ms", "100"),
        ("log.cleaner.backoff.ms", "200"),
        ("log.cleaner.dedupe.buffer.size", "4194304"),
    ];
    let properties = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    Options { properties, ..Options::default() }
}

impl Cluster {
    /// The embedded broker, if it is under test.
    pub fn embedded(&self) -> Option<&Broker> {
        match &self.server {
            Server::Embedded(broker) => Some(broker),
            Server::Apache(_) => None,
        }
    }
}

/// A name that no other test uses.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", UNIQUE.fetch_add(1, Ordering::SeqCst))
}

/// Creates a topic and waits until clients can see it.
pub fn topic(name: &str, partitions: i32, settings: &[(&str, &str)]) -> String {
    let name = unique(name);
    let mut new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let results = block_on(admin().create_topics([&new], &AdminOptions::new())).expect("is answered");
    results[0].as_ref().expect("is created");
    let client: BaseProducer = client().create().expect("is created");
    wait_until("the topic is visible", || {
        let metadata = client.client().fetch_metadata(Some(&name), PATIENCE).expect("is answered");
        let topic = &metadata.topics()[0];
        let led = |p: &rdkafka::metadata::MetadataPartition| p.leader() > 0;
        topic.partitions().len() == partitions as usize && topic.partitions().iter().all(led)
    });
    // A broker tells of a leader a moment before that leader serves.
    wait_until("its partitions are served", || {
        (0..partitions).all(|partition| client.client().fetch_watermarks(&name, partition, PATIENCE).is_ok())
    });
    name
}

/// A connection of its own, without a client library.
pub fn connect() -> Raw {
    Raw::connect(&cluster().bootstrap)
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    client().create().expect("is created")
}

/// A configuration with what every client here has.
pub fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &cluster().bootstrap)
        .set("broker.address.family", "v4")
        .set("topic.metadata.propagation.max.ms", "10000");
    config
}

pub fn producer(settings: &[(&str, &str)]) -> BaseProducer {
    let mut config = client();
    config.set("linger.ms", "0").set("message.timeout.ms", "20000");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config.create().expect("is created")
}

/// A transactional producer that has said hello.
pub fn transactional(id: &str) -> BaseProducer {
    // Messages must time out before their transaction does.
    let times = [("transaction.timeout.ms", "60000"), ("message.timeout.ms", "60000")];
    let producer = producer(&[("transactional.id", id), times[0], times[1]]);
    producer.init_transactions(PATIENCE).expect("is initialised");
    producer
}

/// Produces keys and values to one partition and waits until they are acknowledged.
pub fn produce(producer: &BaseProducer, topic: &str, partition: i32, records: &[(&str, &str)]) {
    for (key, value) in records {
        let record = BaseRecord::to(topic).partition(partition).key(*key).payload(*value);
        producer.send(record).map_err(|(error, _)| error).expect("is queued");
    }
    producer.flush(PATIENCE).expect("is acknowledged");
}

/// A consumer outside of any rebalance.
pub fn reader(isolation: &str) -> BaseConsumer {
    let mut config = client();
    config
        .set("group.id", unique("reader"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "100")
        .set("isolation.level", isolation);
    config.create().expect("is created")
}

/// One record as tests compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub offset: i64,
    pub key: Option<String>,
    pub value: Option<String>,
}

impl Seen {
    pub fn of(message: &BorrowedMessage<'_>) -> Seen {
        let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(b).into_owned());
        Seen { offset: message.offset(), key: text(message.key()), value: text(message.payload()) }
    }
}

/// Everything in a partition from an offset to its end, as a reader of this isolation sees it.
pub fn read(topic: &str, partition: i32, from: i64, isolation: &str) -> Vec<Seen> {
    let consumer = reader(isolation);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(from)).expect("is valid");
    consumer.assign(&list).expect("is assigned");
    let mut seen = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "end of {topic}/{partition} not reached; saw {seen:?}");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(message)) => seen.push(Seen::of(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) => return seen,
            Some(Err(error)) => panic!("cannot read {topic}/{partition}: {error}"),
        }
    }
}

/// The values among what was read.
pub fn values(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|record| record.value.as_deref().unwrap_or("null")).collect()
}

/// Waits for a condition, and fails with its name if it does not come true.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future of the admin client to its end.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
