//! The node's own producer: commits larger than what may wait, and commits of which a request or its answer is lost. What it
//! does otherwise is what every sink does (`sink`).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill::kafka::admin::{Admin, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::consumer::ConsumerSpec;
use tidemill::kafka::produce::TransactionalProducer;
use tidemill::kafka::tools::{self, ConsumeSpec, Consumed, From};
use tidemill::ports::{CommitError, End, Group, Membership, Produce, Sink, TaskOffset};
use tidemill::record::Offset;

use crate::harness::{Cluster, Member, at, unique};
use crate::sink::{emissions, sink_spec};

/// Kafka's numbers of requests.
const PRODUCE: i16 = 0;
const INIT_PRODUCER_ID: i16 = 22;
const ADD_PARTITIONS_TO_TXN: i16 = 24;
const ADD_OFFSETS_TO_TXN: i16 = 25;
const END_TXN: i16 = 26;
const TXN_OFFSET_COMMIT: i16 = 28;

/// What is lost, with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Request,
    Answer,
}

/// A way to an embedded broker on which things get lost. The broker tells its clients that it is on another loopback
/// address, where the detour listens on the same port.
struct Detour {
    _broker: tidemill_broker::Broker,
    way: Arc<Way>,
    address: SocketAddr,
}

struct Way {
    broker: SocketAddr,
    next: Mutex<Option<(i16, Lost)>>,
    /// Requests by their kind.
    asked: Mutex<BTreeMap<i16, usize>>,
    clients: Mutex<Vec<TcpStream>>,
}

impl Detour {
    fn start() -> Detour {
        let broker = tidemill_broker::Broker::start(tidemill_broker::Config {
            listen: "127.0.0.1:0".to_owned(),
            advertised_host: Some("127.0.0.2".to_owned()),
            ..tidemill_broker::Config::default()
        })
        .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 2], broker.address().port()));
        let listener = TcpListener::bind(address).unwrap();
        let way = Arc::new(Way {
            broker: broker.address(),
            next: Mutex::default(),
            asked: Mutex::default(),
            clients: Mutex::default(),
        });
        let shared = Arc::clone(&way);
        // Ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let way = Arc::clone(&shared);
                way.clients.lock().unwrap().push(client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = way.pass(&client);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Detour { _broker: broker, way, address }
    }

    /// The next request of this kind is lost, or its answer.
    fn lose(&self, api: i16, what: Lost) {
        *self.way.next.lock().unwrap() = Some((api, what));
    }

    fn has_lost(&self) -> bool {
        self.way.next.lock().unwrap().is_none()
    }

    /// How many requests of this kind have come by.
    fn asked(&self, api: i16) -> usize {
        self.way.asked.lock().unwrap().get(&api).copied().unwrap_or(0)
    }

    /// Ends every connection.
    fn cut(&self) {
        for client in self.way.clients.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

impl Way {
    /// One request after the other. Returns when something is lost.
    fn pass(&self, mut client: &TcpStream) -> io::Result<()> {
        let mut broker = TcpStream::connect(self.broker)?;
        loop {
            let request = frame(&mut client)?;
            let api = i16::from_be_bytes([request[4], request[5]]);
            *self.asked.lock().unwrap().entry(api).or_default() += 1;
            let lost = self.lost(api);
            if lost == Some(Lost::Request) {
                return Ok(());
            }
            broker.write_all(&request)?;
            let answer = frame(&mut broker)?;
            if lost == Some(Lost::Answer) {
                return Ok(());
            }
            client.write_all(&answer)?;
        }
    }

    fn lost(&self, api: i16) -> Option<Lost> {
        let mut next = self.next.lock().unwrap();
        let (_, what) = next.filter(|(wanted, _)| *wanted == api)?;
        *next = None;
        Some(what)
    }
}

/// A request or an answer, with its length in front.
fn frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut bytes = length.to_vec();
    bytes.resize(4 + u32::from_be_bytes(length) as usize, 0);
    from.read_exact(&mut bytes[4..])?;
    Ok(bytes)
}

/// A deployment of one task whose producer goes by the detour.
struct Scene {
    detour: Detour,
    config: KafkaConfig,
    member: Member,
    input: String,
    output: String,
    id: String,
}

impl Scene {
    fn set() -> Scene {
        let detour = Detour::start();
        let mut config = KafkaConfig::new(detour.address.to_string());
        config.limits.session_timeout = Duration::from_secs(6);
        let (input, output) = (unique("in"), unique("out"));
        let admin = Admin::new(&config).unwrap();
        for topic in [&input, &output] {
            admin.create_topic(&NewTopic::new(topic, 1)).unwrap();
        }
        let mut member = Member::join_with(&config, ConsumerSpec::new(unique("group"), vec![input.clone()]));
        member.step_until("the partition", |member| member.running.len() == 1);
        Scene { detour, config, member, input, output, id: unique("tx") }
    }

    fn producer(&self) -> TransactionalProducer {
        let spec = sink_spec(&[&self.output], None, &[&self.input]);
        TransactionalProducer::new(&self.config, &self.id, spec).unwrap()
    }

    fn commit(&self, producer: &mut TransactionalProducer, value: &str) -> Result<(), CommitError> {
        commit(producer, &self.member.consumer.membership(), value)
    }

    fn visible(&self) -> Vec<String> {
        let all = read(&self.config, &self.output);
        all.into_iter().map(|record| String::from_utf8(record.value.unwrap_or_default()).unwrap()).collect()
    }
}

fn commit(
    producer: &mut TransactionalProducer,
    membership: &Membership,
    value: &str,
) -> Result<(), CommitError> {
    producer.begin()?;
    producer.produce(Produce::Emissions(&emissions(&[value], -1)))?;
    let offset = TaskOffset { partition: at(0, 0), offset: Offset(1), metadata: String::new() };
    producer.send_offsets(&[offset], membership)?;
    producer.end(End::Commit)
}

/// What a reader of committed records sees of a topic.
fn read(config: &KafkaConfig, topic: &str) -> Vec<Consumed> {
    let spec = ConsumeSpec {
        topic: topic.to_owned(),
        partitions: Vec::new(),
        from: From::Beginning,
        max: None,
        committed: true,
        follow: false,
    };
    let mut all = Vec::new();
    tools::consume(config, &spec, &mut |record| {
        all.extend(record);
        true
    })
    .unwrap();
    all
}

#[track_caller]
fn assert_indefinite(answer: Result<(), CommitError>) {
    assert!(matches!(answer, Err(CommitError::Indefinite(_))), "{answer:?}");
}

#[test]
fn after_a_lost_end_only_another_producer_can_tell_what_became_of_the_commit() {
    for (what, expected) in [(Lost::Request, &["after"][..]), (Lost::Answer, &["lost", "after"][..])] {
        let scene = Scene::set();
        let mut producer = scene.producer();
        scene.detour.lose(END_TXN, what);
        assert_indefinite(scene.commit(&mut producer, "lost"));
        assert!(scene.detour.has_lost());
        assert_indefinite(producer.end(End::Abort));
        assert_indefinite(producer.begin());
        scene.commit(&mut scene.producer(), "after").unwrap();
        assert_eq!(scene.visible(), expected, "{what:?}");
    }
}

#[test]
fn what_is_all_the_same_a_second_time_is_sent_again_and_written_once() {
    let scene = Scene::set();
    let mut producer = scene.producer();
    let mut expected = Vec::new();
    for api in [PRODUCE, ADD_PARTITIONS_TO_TXN, ADD_OFFSETS_TO_TXN] {
        for what in [Lost::Request, Lost::Answer] {
            let values = ["lost", "after"].map(|when| format!("{when} {api} {what:?}"));
            scene.detour.lose(api, what);
            scene.commit(&mut producer, &values[0]).unwrap();
            assert!(scene.detour.has_lost());
            let epochs = scene.detour.asked(INIT_PRODUCER_ID);
            scene.commit(&mut producer, &values[1]).unwrap();
            assert!(scene.detour.asked(INIT_PRODUCER_ID) > epochs, "the same epoch after {api} {what:?}");
            expected.extend(values);
        }
    }
    assert_eq!(scene.visible(), expected);
}

#[test]
fn lost_offsets_are_the_end_of_their_producer_and_nothing_of_the_transaction_is_seen() {
    let scene = Scene::set();
    for what in [Lost::Request, Lost::Answer] {
        let mut producer = scene.producer();
        scene.detour.lose(TXN_OFFSET_COMMIT, what);
        assert_indefinite(scene.commit(&mut producer, "lost"));
        assert!(scene.detour.has_lost());
        assert_indefinite(producer.end(End::Commit));
        assert_indefinite(producer.end(End::Abort));
        scene.commit(&mut scene.producer(), "after").unwrap();
    }
    assert_eq!(scene.visible(), ["after", "after"]);
}

#[test]
fn connections_that_end_while_nothing_is_to_be_done_disturb_no_commit() {
    let scene = Scene::set();
    let mut producer = scene.producer();
    scene.commit(&mut producer, "before").unwrap();
    scene.detour.cut();
    scene.commit(&mut producer, "after").unwrap();
    assert_eq!(scene.visible(), ["before", "after"]);
}

#[test]
fn a_commit_that_goes_ahead_in_parts_keeps_every_record_and_their_order() {
    let cluster = Cluster::get();
    let room =
        [("none", 64 << 10), ("none", 256), ("gzip", 256), ("snappy", 256), ("lz4", 256), ("zstd", 256)];
    for (codec, queue_kib) in room {
        let mut config = cluster.config();
        config.properties.insert("compression.type".to_owned(), codec.to_owned());
        config.limits.produce_queue_kib = queue_kib;
        let (input, output) = (cluster.topic("in", 1), cluster.topic("out", 4));
        let mut member = Member::join(&cluster, ConsumerSpec::new(unique("group"), vec![input.clone()]));
        member.step_until("the partition", |member| member.running.len() == 1);
        let mut spec = sink_spec(&[&output], None, &[&input]);
        spec.batch_bytes = 20_000;
        let mut producer = TransactionalProducer::new(&config, &unique("tx"), spec).unwrap();
        let values: Vec<String> = (0..10_000).map(|n| format!("{n:0100}")).collect();
        for share in values.chunks(5_000) {
            let rows: Vec<&str> = share.iter().map(String::as_str).collect();
            producer.begin().unwrap();
            producer.produce(Produce::Emissions(&emissions(&rows, -1))).unwrap();
            let offset = TaskOffset { partition: at(0, 0), offset: Offset(1), metadata: String::new() };
            producer.send_offsets(&[offset], &member.consumer.membership()).unwrap();
            producer.end(End::Commit).unwrap();
        }

        let mut by_partition: BTreeMap<i32, Vec<Vec<u8>>> = BTreeMap::new();
        for record in read(&config, &output) {
            by_partition.entry(record.partition).or_default().extend(record.value);
        }
        assert_eq!(by_partition.len(), 4, "{codec}");
        for (partition, values) in &by_partition {
            assert!(values.is_sorted(), "{codec}: partition {partition} is out of order");
        }
        let mut all: Vec<Vec<u8>> = by_partition.into_values().flatten().collect();
        all.sort();
        assert!(all.iter().eq(values.iter().map(|value| value.as_bytes())), "{codec}: {} records", all.len());
    }
}

#[test]
fn records_without_a_key_stay_together_within_a_batch_and_spread_over_commits() {
    let cluster = Cluster::get();
    let (input, output) = (cluster.topic("in", 1), cluster.topic("out", 3));
    let mut member = Member::join(&cluster, ConsumerSpec::new(unique("group"), vec![input.clone()]));
    member.step_until("the partition", |member| member.running.len() == 1);
    let spec = sink_spec(&[&output], None, &[&input]);
    let mut producer = TransactionalProducer::new(&cluster.config(), &unique("tx"), spec).unwrap();
    for _ in 0..3 {
        let mut rows = emissions(&["a", "b", "c"], -1);
        rows.keys = Default::default();
        (0..3).for_each(|_| rows.keys.push(None));
        producer.begin().unwrap();
        producer.produce(Produce::Emissions(&rows)).unwrap();
        let offset = TaskOffset { partition: at(0, 0), offset: Offset(1), metadata: String::new() };
        producer.send_offsets(&[offset], &member.consumer.membership()).unwrap();
        producer.end(End::Commit).unwrap();
    }
    let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
    for record in read(&cluster.config(), &output) {
        *counts.entry(record.partition).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [3, 3, 3]);
}
