//! A topic of another Kafka cluster.

use std::collections::BTreeMap;

use rdkafka::message::{BorrowedMessage, Message};
use rustix::process::{Signal, kill_process};

use super::chapters::Order;
use super::receiver::{Arrival, FLAPPING, Receiver, Rhythm, SLOW, Stutter, Trouble};
use super::stage::PARTITIONS;
use crate::cluster::Cluster;
use crate::programs::tidemill;
use crate::reading::{header, read_on};

const TOPIC: &str = "w7-mirror";
/// More of each partition than may be under way to a topic at once.
const KEYS: u64 = 4_000;

pub struct Mirror {
    /// Ends before the broker does.
    stutter: Option<Stutter>,
    cluster: Cluster,
    /// By partition: where what was not told begins.
    next: BTreeMap<i32, i64>,
}

impl Mirror {
    pub fn start(cluster: Cluster) -> Mirror {
        let partitions = PARTITIONS.to_string();
        // With the time at which the broker took it.
        let stamped = "message.timestamp.type=LogAppendTime";
        let made = tidemill(["topics", "create", TOPIC, "--partitions", &partitions, "--config", stamped])
            .env("KAFKA_BOOTSTRAP_SERVERS", cluster.bootstrap())
            .output();
        assert!(made.is_ok_and(|made| made.status.success()), "the other cluster has no topic");
        Mirror { stutter: None, cluster, next: (0..PARTITIONS).map(|partition| (partition, 0)).collect() }
    }

    fn stutter(&mut self, rhythm: Rhythm) {
        let broker = self.cluster.only_broker();
        self.stutter = Some(Stutter::start(rhythm, move |signal| {
            // Gone already is as good.
            let _ = kill_process(broker, signal);
        }));
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.cluster.only_broker(), signal).expect("an own process can be signalled");
    }
}

impl Receiver for Mirror {
    fn place(&self) -> String {
        format!("kafka: {{ bootstrap_servers: '{}', topic: {TOPIC} }}", self.cluster.bootstrap())
    }

    fn port(&self) -> u16 {
        let port = self.cluster.bootstrap().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.expect("a broker has a port")
    }

    fn troubles(&self) -> &'static [Trouble] {
        &[Trouble::Slow, Trouble::Hung, Trouble::Flapping]
    }

    fn misbehave(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Slow => self.stutter(SLOW),
            Trouble::Hung => self.signal(Signal::STOP),
            Trouble::Flapping => self.stutter(FLAPPING),
            Trouble::Failing | Trouble::Busy | Trouble::Refusing | Trouble::Twice | Trouble::Unroutable => {
                panic!("a broker is never {trouble:?}")
            }
        }
    }

    fn recover(&mut self) {
        self.stutter = None;
        self.signal(Signal::CONT);
    }

    fn vanish(&mut self) {
        self.cluster.kill();
    }

    fn come_back(&mut self) {
        self.cluster.restart();
    }

    fn arrived(&mut self) -> Vec<Arrival> {
        let mut all = Vec::new();
        read_on(self.cluster.bootstrap(), TOPIC, &mut self.next, |record| all.push(arrival(record)));
        all
    }

    /// What was given up may lie in a connection to a broker that stands still, and be taken when it goes on: under
    /// another producer's number than what was sent in its place.
    fn order_in_trouble(&self) -> Order {
        Order::Any
    }

    fn keys(&self) -> u64 {
        KEYS
    }
}

fn arrival(record: &BorrowedMessage<'_>) -> Arrival {
    let text = |name: &str| String::from_utf8(header(record, name)?.to_vec()).ok();
    Arrival {
        id: text("tidemill-id").unwrap_or_default(),
        sequence: text("tidemill-sequence").and_then(|text| text.parse().ok()).unwrap_or_default(),
        key: String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned(),
        body: record.payload().unwrap_or_default().to_vec(),
        correlation: String::new(),
        at_ms: record.timestamp().to_millis(),
    }
}
