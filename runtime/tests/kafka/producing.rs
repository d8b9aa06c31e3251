//! The node's own producer: commits larger than what may wait, and commits of which a request or its answer is lost, or
//! whose records a leader denies to have. What it does otherwise is what every sink does (`sink`).

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill::kafka::admin::{Admin, NewTopic};
use tidemill::kafka::config::KafkaConfig;
use tidemill::kafka::consumer::ConsumerSpec;
use tidemill::kafka::epochs::Epochs;
use tidemill::kafka::produce::Producer;
use tidemill::kafka::sink::SinkSpec;
use tidemill::kafka::tools::{self, ConsumeSpec, Consumed, From};
use tidemill::ports::{CommitError, End, Group, Membership, Produce, Sink, TaskOffset};
use tidemill::record::Offset;

use crate::harness::{Cluster, Member, at, unique};
use crate::sink::{columns, emissions, sink_spec};

/// Kafka's numbers of requests.
const PRODUCE: i16 = 0;
const INIT_PRODUCER_ID: i16 = 22;
const ADD_PARTITIONS_TO_TXN: i16 = 24;
const ADD_OFFSETS_TO_TXN: i16 = 25;
const END_TXN: i16 = 26;
const TXN_OFFSET_COMMIT: i16 = 28;

/// Its numbers of errors.
const NOT_LEADER_OR_FOLLOWER: i16 = 6;
const REQUEST_TIMED_OUT: i16 = 7;
const MESSAGE_TOO_LARGE: i16 = 10;
const NOT_ENOUGH_REPLICAS_AFTER_APPEND: i16 = 20;

/// What is lost, with the connection; or an answer says something else than is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Request,
    Answer,
    /// Records are written, and the answer names this error.
    Truth(i16),
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
    /// In their order, each for the next request of its kind.
    losses: Mutex<VecDeque<(i16, Lost)>>,
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
            losses: Mutex::default(),
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

    /// The next request of this kind is lost, or its answer; the one after it, if one is to be lost already.
    fn lose(&self, api: i16, what: Lost) {
        self.way.losses.lock().unwrap().push_back((api, what));
    }

    fn has_lost(&self) -> bool {
        self.way.losses.lock().unwrap().is_empty()
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
            let mut answer = frame(&mut broker)?;
            match lost {
                Some(Lost::Answer) => return Ok(()),
                Some(Lost::Truth(error)) => deny(&mut answer, error),
                Some(Lost::Request) | None => {}
            }
            client.write_all(&answer)?;
        }
    }

    fn lost(&self, api: i16) -> Option<Lost> {
        let mut losses = self.losses.lock().unwrap();
        let (wanted, what) = *losses.front()?;
        if wanted != api {
            return None;
        }
        losses.pop_front();
        Some(what)
    }
}

/// Puts an error in the place of the first one in an answer to a write, version 9: length, correlation id, no tagged fields;
/// the number of topics and the length of the first one's name, each a byte and one more than they are; the name, the
/// number of its partitions, the number of the first one, its error.
fn deny(answer: &mut [u8], error: i16) {
    let name_bytes = usize::from(answer[10]) - 1;
    let at = 11 + name_bytes + 1 + 4;
    answer[at..at + 2].copy_from_slice(&error.to_be_bytes());
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

    fn spec(&self) -> SinkSpec {
        sink_spec(&[&self.output], None, &[&self.input])
    }

    /// With transactions.
    fn producer(&self) -> Producer {
        Producer::transactional(&self.config, &self.id, self.spec(), Epochs::default()).unwrap()
    }

    fn commit(&self, producer: &mut Producer, value: &str) -> Result<(), CommitError> {
        commit(producer, &self.member.consumer.membership(), value)
    }

    fn visible(&self) -> Vec<String> {
        let all = read(&self.config, &self.output);
        all.into_iter().map(|record| String::from_utf8(record.value.unwrap_or_default()).unwrap()).collect()
    }
}

/// Makes a producer: one of the three that follow.
type Make = fn(&KafkaConfig, SinkSpec) -> Producer;

fn transactional(config: &KafkaConfig, spec: SinkSpec) -> Producer {
    Producer::transactional(config, &unique("tx"), spec, Epochs::default()).unwrap()
}

fn idempotent(config: &KafkaConfig, spec: SinkSpec) -> Producer {
    Producer::plain(config, spec).unwrap()
}

/// Its batches have no sequence numbers.
fn unnumbered(config: &KafkaConfig, spec: SinkSpec) -> Producer {
    Producer::plain(&KafkaConfig { enable_idempotence: false, ..config.clone() }, spec).unwrap()
}

fn commit(producer: &mut Producer, membership: &Membership, value: &str) -> Result<(), CommitError> {
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
fn without_a_transaction_what_is_lost_is_sent_again_and_written_once() {
    let scene = Scene::set();
    let mut producer = idempotent(&scene.config, scene.spec());
    let mut expected = Vec::new();
    for what in [Lost::Request, Lost::Answer] {
        let values = ["lost", "after"].map(|when| format!("{when} {what:?}"));
        scene.detour.lose(PRODUCE, what);
        scene.commit(&mut producer, &values[0]).unwrap();
        assert!(scene.detour.has_lost());
        let ids = scene.detour.asked(INIT_PRODUCER_ID);
        scene.commit(&mut producer, &values[1]).unwrap();
        assert!(scene.detour.asked(INIT_PRODUCER_ID) > ids, "the same producer id after {what:?}");
        expected.extend(values);
    }
    assert_eq!(scene.visible(), expected);
    let of_transactions = [ADD_PARTITIONS_TO_TXN, ADD_OFFSETS_TO_TXN, TXN_OFFSET_COMMIT, END_TXN];
    assert_eq!(of_transactions.map(|api| scene.detour.asked(api)), [0; 4]);
}

#[test]
fn without_sequence_numbers_nothing_lost_is_sent_again_and_nobody_knows_what_became_of_it() {
    for (what, expected) in [(Lost::Request, &["after"][..]), (Lost::Answer, &["lost", "after"][..])] {
        let scene = Scene::set();
        let make = || unnumbered(&scene.config, scene.spec());
        let mut producer = make();
        scene.detour.lose(PRODUCE, what);
        assert_indefinite(scene.commit(&mut producer, "lost"));
        assert!(scene.detour.has_lost());
        assert_indefinite(producer.end(End::Abort));
        assert_indefinite(producer.begin());
        scene.commit(&mut make(), "after").unwrap();
        assert_eq!(scene.visible(), expected, "{what:?}");
        assert_eq!(scene.detour.asked(INIT_PRODUCER_ID), 0);
    }
}

/// A leader that is none any more, or whose followers are late, may have the batch all the same.
#[test]
fn records_that_a_leader_denies_go_again_and_are_there_twice_only_without_sequence_numbers() {
    let scene = Scene::set();
    let producers = [
        (transactional(&scene.config, scene.spec()), "transactional", 1),
        (idempotent(&scene.config, scene.spec()), "idempotent", 1),
        (unnumbered(&scene.config, scene.spec()), "unnumbered", 2),
    ];
    for (mut producer, name, copies) in producers {
        for error in [NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS_AFTER_APPEND] {
            let value = format!("{name} {error}");
            scene.detour.lose(PRODUCE, Lost::Truth(error));
            scene.commit(&mut producer, &value).unwrap();
            assert!(scene.detour.has_lost());
            let found = scene.visible().into_iter().filter(|seen| *seen == value).count();
            assert_eq!(found, copies, "{value}");
        }
    }
}

/// Two requests are under way when the first of them is refused. Nothing would keep the other one from being written in the
/// midst of the next commit.
#[test]
fn a_refused_commit_without_a_transaction_is_in_doubt_while_something_of_it_has_no_answer() {
    let scene = Scene::set();
    let output = unique("wide");
    Admin::new(&scene.config).unwrap().create_topic(&NewTopic::new(&output, 2)).unwrap();
    let mut producer = idempotent(&scene.config, sink_spec(&[&output], None, &[]));
    // With its key as long as its value each is most of what a request has.
    let half = "x".repeat(400_000);
    scene.detour.lose(PRODUCE, Lost::Truth(MESSAGE_TOO_LARGE));
    scene.detour.lose(PRODUCE, Lost::Answer);
    producer.begin().unwrap();
    for partition in [0, 1] {
        producer.produce(Produce::Emissions(&emissions(&[half.as_str()], partition))).unwrap();
    }
    let answer = producer.send_offsets(&[], &Membership::default());
    assert!(matches!(&answer, Err(CommitError::Record { topic, .. }) if *topic == output), "{answer:?}");
    assert_indefinite(producer.end(End::Abort));
    assert!(scene.detour.has_lost());
    assert_indefinite(producer.begin());
}

#[test]
fn a_commit_that_goes_ahead_in_parts_keeps_every_record_and_their_order() {
    let cluster = Cluster::get();
    let room: [(&str, u32, Make); 8] = [
        ("none", 64 << 10, transactional),
        ("none", 256, transactional),
        ("gzip", 256, transactional),
        ("snappy", 256, transactional),
        ("lz4", 256, transactional),
        ("zstd", 256, transactional),
        ("none", 256, idempotent),
        ("none", 256, unnumbered),
    ];
    for (codec, queue_kib, make) in room {
        let mut config = cluster.config();
        config.properties.insert("compression.type".to_owned(), codec.to_owned());
        config.limits.produce_queue_kib = queue_kib;
        let (input, output) = (cluster.topic("in", 1), cluster.topic("out", 4));
        let mut member = Member::join(&cluster, ConsumerSpec::new(unique("group"), vec![input.clone()]));
        member.step_until("the partition", |member| member.running.len() == 1);
        let mut spec = sink_spec(&[&output], None, &[&input]);
        spec.batch_bytes = 20_000;
        let mut producer = make(&config, spec);
        let values: Vec<String> = (0..10_000).map(|n| format!("{n:0100}")).collect();
        for share in values.chunks(5_000) {
            let rows: Vec<&str> = share.iter().map(String::as_str).collect();
            producer.begin().unwrap();
            producer.produce(Produce::Emissions(&emissions(&rows, -1))).unwrap();
            let offset = TaskOffset { partition: at(0, 0), offset: Offset(1), metadata: String::new() };
            producer.send_offsets(&[offset], &member.consumer.membership()).unwrap();
            producer.end(End::Commit).unwrap();
        }

        cluster.settle(&output);
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
    let mut producer = transactional(&cluster.config(), spec);
    for _ in 0..3 {
        let mut rows = columns(&["a", "b", "c"], -1);
        rows.keys = Default::default();
        (0..3).for_each(|_| rows.keys.push(None));
        producer.begin().unwrap();
        producer.produce(Produce::Emissions(&rows.into())).unwrap();
        let offset = TaskOffset { partition: at(0, 0), offset: Offset(1), metadata: String::new() };
        producer.send_offsets(&[offset], &member.consumer.membership()).unwrap();
        producer.end(End::Commit).unwrap();
    }
    cluster.settle(&output);
    let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
    for record in read(&cluster.config(), &output) {
        *counts.entry(record.partition).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [3, 3, 3]);
}
