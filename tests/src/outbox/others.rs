//! The scenes of W7 for destinations that are no webhook: RabbitMQ, and another Kafka cluster.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::Offset;
use rustix::process::Signal;

use super::Summary;
use super::judge::{Arrival, judge};
use super::rabbit::Rabbit;
use super::scenes::Length;
use super::stage::{Feeder, PARTITIONS, Stage};
use crate::cluster::Cluster;
use crate::play::Findings;
use crate::programs::tidemill;
use crate::reading::{assign, reading};
use crate::wait::until;

const SHOWN_MAX: Duration = Duration::from_secs(60);
const QUEUE: &str = "w7";
const MIRROR: &str = "w7-mirror";
/// More of each partition than may be under way to a topic at once.
const MIRROR_KEYS: u64 = 4_000;

const COMMON: &str = "timeout: 2s, retry: 50ms..500ms, breaker: { failures: 10, open: 500ms }";

/// A broker that has no queue yet, is stopped, continued, killed and started again, and is gone for long.
pub fn rabbit(cluster: Cluster, length: &Length, module: &Path) -> Summary {
    let mut found = Summary::default();
    if let Err(why) = Rabbit::is_installed() {
        found.invalid.push(format!("INVALID rabbit: {why}"));
        return found;
    }
    let mut rabbit = Rabbit::start();
    let place = format!(
        "{{ amqp: {{ url: '{}', routing_key: {QUEUE} }}, rows: {}, {COMMON} }}",
        rabbit.url(),
        length.rows
    );
    let mut stage = Stage::new(cluster, 1, &place, module);
    stage.begin("tidemill", &[]);
    let feeder = Feeder::start(stage.cluster.bootstrap(), length.rate);
    // Nobody is bound, so everything comes back: it waits, and is not lost.
    until("rows wait for a queue", SHOWN_MAX, || match stage.waiting(0) {
        Some(1..) => Ok(()),
        waiting => Err(waiting),
    });
    std::thread::sleep(length.phase);
    rabbit.make_queue(QUEUE);
    std::thread::sleep(length.phase);
    rabbit.signal(Signal::STOP);
    std::thread::sleep(length.phase);
    rabbit.signal(Signal::CONT);
    std::thread::sleep(length.phase);
    rabbit.kill();
    std::thread::sleep(length.gone);
    rabbit.run();
    std::thread::sleep(length.phase);
    let fed = feeder.finish();
    stage.until_drained(0);
    let applied = rabbit.empty(QUEUE);
    found.add(judge("rabbit", stage.cluster.bootstrap(), &fed, &applied));
    stage.nodes[0].stop();
    found
}

/// Another cluster, whose broker is killed and started again, beside the one that the node runs on.
pub fn mirror(cluster: Cluster, mut other: Cluster, length: &Length, module: &Path) -> Summary {
    let topics = ["topics", "create", MIRROR, "--partitions", &PARTITIONS.to_string()];
    let made = tidemill(topics).env("KAFKA_BOOTSTRAP_SERVERS", other.bootstrap()).output();
    assert!(made.is_ok_and(|made| made.status.success()), "the other cluster has no topic");
    let place = format!(
        "{{ kafka: {{ bootstrap_servers: '{}', topic: {MIRROR} }}, rows: {}, {COMMON} }}",
        other.bootstrap(),
        length.rows
    );
    let mut stage = Stage::new(cluster, 1, &place, module);
    stage.begin("tidemill", &[]);
    let feeder = Feeder::with_keys(stage.cluster.bootstrap(), length.rate, MIRROR_KEYS);
    std::thread::sleep(length.phase);
    other.kill();
    std::thread::sleep(length.gone.min(length.phase * 4));
    other.restart();
    std::thread::sleep(length.phase);
    let fed = feeder.finish();
    stage.until_drained(0);
    let applied = read(other.bootstrap());
    let found = judge("mirror", stage.cluster.bootstrap(), &fed, &applied);
    stage.nodes[0].stop();
    found
}

/// What the mirror holds, each partition in its order. A key has one partition.
fn read(bootstrap: &str) -> Vec<Arrival> {
    let consumer: BaseConsumer = reading(bootstrap, "w7-judge", true)
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    assign(&consumer, MIRROR, 0..PARTITIONS, Offset::Beginning).expect("assigned");
    let mut open: BTreeSet<i32> = (0..PARTITIONS).collect();
    let mut all = Vec::new();
    let deadline = Instant::now() + SHOWN_MAX;
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "{MIRROR} could not be read to its end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            // Lost connections and the like; librdkafka goes on by itself.
            None | Some(Err(_)) => {}
            Some(Ok(message)) => {
                let text = |name: &str| {
                    let found = message.headers()?.iter().find(|header| header.key == name)?;
                    String::from_utf8(found.value?.to_vec()).ok()
                };
                all.push(Arrival {
                    id: text("tidemill-id").unwrap_or_default(),
                    sequence: text("tidemill-sequence")
                        .and_then(|text| text.parse().ok())
                        .unwrap_or_default(),
                    key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
                    body: message.payload().unwrap_or_default().to_vec(),
                    correlation: String::new(),
                    at_ms: None,
                });
            }
        }
    }
    all
}
