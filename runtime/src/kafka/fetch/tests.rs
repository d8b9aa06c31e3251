//! The fetcher beside brokers that do what they are told, in this process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_response::{EpochEndOffset, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, FetchRequest, FetchResponse, MetadataResponse, RequestHeader,
    RequestKind, ResponseHeader, ResponseKind, SaslAuthenticateResponse, SaslHandshakeResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use tidemill_batches::testing::{NewBatch, NewRecord};
use uuid::Uuid;

use super::{Fetcher, Refusal, Room, What};
use crate::kafka::config::KafkaConfig;
use crate::record::{Batch, InputPartition};

const TOPIC: &str = "words";
const SOON: Duration = Duration::from_secs(20);

/// What becomes of a fetch.
enum Reply {
    Answer(FetchResponse),
    /// Its first half, and the connection is closed.
    Half(FetchResponse),
    /// Nothing, until the connection ends.
    Nothing,
}

/// Answers fetches; it is told the broker.
type Script = Box<dyn FnMut(i32, &FetchRequest) -> Reply + Send>;

/// What both brokers do.
struct Stage {
    ports: [u16; 2],
    leader: Mutex<i32>,
    /// Which topic of the name there is.
    topic: Mutex<Uuid>,
    /// They fetch by names alone.
    is_old: AtomicBool,
    /// How often they were asked who leads what.
    looks: AtomicUsize,
    /// Nobody is let in who signs in from now on.
    is_closed: AtomicBool,
    has_ended: AtomicBool,
    script: Mutex<Script>,
}

/// Two brokers with the numbers 0 and 1, of which one leads every partition.
struct Cluster {
    stage: Arc<Stage>,
}

impl Cluster {
    fn new(script: impl FnMut(i32, &FetchRequest) -> Reply + Send + 'static) -> Cluster {
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let stage = Arc::new(Stage {
            ports: [0, 1].map(|broker: usize| listeners[broker].local_addr().expect("bound").port()),
            leader: Mutex::new(0),
            topic: Mutex::new(Uuid::from_u128(1)),
            is_old: AtomicBool::new(false),
            looks: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            script: Mutex::new(Box::new(script)),
        });
        for (broker, listener) in (0..).zip(listeners) {
            let stage = Arc::clone(&stage);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stage.has_ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let stage = Arc::clone(&stage);
                    let stream = stream.expect("a connection");
                    std::thread::spawn(move || serve(stream, broker, &stage));
                }
            });
        }
        Cluster { stage }
    }

    fn fetcher(&self, change: impl FnOnce(&mut KafkaConfig)) -> Fetcher {
        let mut config = KafkaConfig::new(format!("127.0.0.1:{}", self.stage.ports[0]));
        change(&mut config);
        Fetcher::new(&config, vec![TOPIC.to_owned()], &[], Box::new(|| {})).expect("it is complete")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stage.has_ended.store(true, Ordering::SeqCst);
    }
}

fn serve(mut stream: TcpStream, broker: i32, stage: &Stage) {
    while let Some((key, version, correlation_id, request)) = read(&mut stream) {
        let mut is_half = false;
        let response = match request {
            RequestKind::ApiVersions(_) => ResponseKind::ApiVersions(versions(stage)),
            RequestKind::SaslHandshake(_) => ResponseKind::SaslHandshake(SaslHandshakeResponse::default()),
            RequestKind::SaslAuthenticate(_) => {
                let code = match stage.is_closed.load(Ordering::SeqCst) {
                    true => ResponseError::SaslAuthenticationFailed.code(),
                    false => 0,
                };
                ResponseKind::SaslAuthenticate(SaslAuthenticateResponse::default().with_error_code(code))
            }
            RequestKind::Metadata(_) => ResponseKind::Metadata(metadata(stage)),
            RequestKind::Fetch(request) => match reply(stage, broker, version, &request) {
                Reply::Answer(response) => ResponseKind::Fetch(response),
                Reply::Half(response) => {
                    is_half = true;
                    ResponseKind::Fetch(response)
                }
                Reply::Nothing => {
                    let _ = stream.read(&mut [0; 1]);
                    return;
                }
            },
            other => panic!("nobody should ask {other:?}"),
        };
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        let header = ResponseHeader::default().with_correlation_id(correlation_id);
        header.encode(&mut frame, key.response_header_version(version)).expect("encodes");
        response.encode(&mut frame, version).expect("encodes");
        let length = frame.len() as i32 - 4;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        let end = if is_half { frame.len() / 2 } else { frame.len() };
        if stream.write_all(&frame[..end]).is_err() || is_half {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// As the script has it, of the topic that is there.
fn reply(stage: &Stage, broker: i32, version: i16, request: &FetchRequest) -> Reply {
    let id = *stage.topic.lock().expect("no panic");
    let is_by_id = version >= 13;
    if is_by_id && request.topics.iter().any(|topic| topic.topic_id != id) {
        let gone = |(partition, ..): (i32, i64, i32)| {
            data(partition).with_error_code(ResponseError::UnknownTopicId.code())
        };
        let mut response = answer(asked(request).into_iter().map(gone).collect());
        response.responses[0].topic_id = request.topics[0].topic_id;
        return Reply::Answer(response);
    }
    let mut reply = (stage.script.lock().expect("no panic"))(broker, request);
    if let Reply::Answer(response) | Reply::Half(response) = &mut reply {
        response.responses.iter_mut().for_each(|topic| topic.topic_id = id);
    }
    reply
}

fn read(stream: &mut TcpStream) -> Option<(ApiKey, i16, i32, RequestKind)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).ok()?;
    let mut frame = Bytes::from(frame);
    let key = ApiKey::try_from(i16::from_be_bytes([frame[0], frame[1]])).expect("an API of Kafka");
    let version = i16::from_be_bytes([frame[2], frame[3]]);
    let header = RequestHeader::decode(&mut frame, key.request_header_version(version)).expect("a header");
    let request = RequestKind::decode(key, &mut frame, version).expect("a request");
    Some((key, version, header.correlation_id, request))
}

fn versions(stage: &Stage) -> ApiVersionsResponse {
    let newest = if stage.is_old.load(Ordering::SeqCst) { 12 } else { 16 };
    let api = |key: ApiKey, max| {
        ApiVersion::default().with_api_key(key as i16).with_min_version(0).with_max_version(max)
    };
    let keys = vec![
        api(ApiKey::Fetch, newest),
        api(ApiKey::Metadata, 12),
        api(ApiKey::ApiVersions, 3),
        api(ApiKey::SaslHandshake, 1),
        api(ApiKey::SaslAuthenticate, 2),
    ];
    ApiVersionsResponse::default().with_api_keys(keys)
}

fn metadata(stage: &Stage) -> MetadataResponse {
    stage.looks.fetch_add(1, Ordering::SeqCst);
    let leader = *stage.leader.lock().expect("no panic");
    let broker = |id: usize| {
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(id as i32))
            .with_host(StrBytes::from_static_str("127.0.0.1"))
            .with_port(i32::from(stage.ports[id]))
    };
    let partition = |index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(leader))
            .with_leader_epoch(leader)
    };
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_static_str(TOPIC))))
        .with_topic_id(*stage.topic.lock().expect("no panic"))
        .with_partitions(vec![partition(0), partition(1)]);
    MetadataResponse::default().with_brokers(vec![broker(0), broker(1)]).with_topics(vec![topic])
}

/// A batch of a hundred records from an offset on, written under an epoch.
fn batch(from: i64, epoch: i32) -> Bytes {
    let record = |n: i64| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: epoch,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: from + n,
        // The encoder ends a batch where sequences do not follow each other.
        sequence: n as i32,
        timestamp: 1,
        key: None,
        value: Some(Bytes::from((from + n).to_string())),
        headers: IndexMap::new(),
    };
    let records: Vec<_> = (0..100).map(record).collect();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, &records, &options).expect("encodes");
    bytes.freeze()
}

fn data(partition: i32) -> PartitionData {
    PartitionData::default().with_partition_index(partition)
}

fn answer(partitions: Vec<PartitionData>) -> FetchResponse {
    let topic = FetchableTopicResponse::default()
        .with_topic(TopicName(StrBytes::from_static_str(TOPIC)))
        .with_partitions(partitions);
    FetchResponse::default().with_responses(vec![topic])
}

/// What a request asks for: partition, offset, epoch of the record before.
fn asked(request: &FetchRequest) -> Vec<(i32, i64, i32)> {
    let of = |partition: &kafka_protocol::messages::fetch_request::FetchPartition| {
        (partition.partition, partition.fetch_offset, partition.last_fetched_epoch)
    };
    let mut asked: Vec<_> = request.topics.iter().flat_map(|topic| topic.partitions.iter().map(of)).collect();
    asked.sort_unstable();
    asked
}

/// A hundred records of everything that is asked for.
fn more(request: &FetchRequest) -> FetchResponse {
    let of = |(partition, offset, _)| data(partition).with_records(Some(batch(offset, 0)));
    answer(asked(request).into_iter().map(of).collect())
}

fn at(partition: i32) -> InputPartition {
    InputPartition { input: 0, partition }
}

/// Takes until a partition has so many records, or a refusal has come.
fn take(fetcher: &mut Fetcher, wanted: usize) -> (BTreeMap<i32, Vec<i64>>, Option<Refusal>) {
    let mut taken: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    let began = Instant::now();
    while taken.values().all(|offsets| offsets.len() < wanted) {
        assert!(began.elapsed() < SOON, "only {taken:?}");
        assert!(!fetcher.has_panicked());
        let Some(arrival) = fetcher.front() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let partition = arrival.partition.partition;
        match &mut arrival.what {
            What::Failed(refusal) => return (taken, Some(refusal.clone())),
            What::Chunk(chunk) => {
                let mut batch = Batch::default();
                let mut room = Room { rows: usize::MAX, bytes: usize::MAX };
                chunk.take(0, &mut room, false, &mut batch, &mut |_, _| {}).expect("whole");
                taken.entry(partition).or_default().extend(batch.offsets);
            }
        }
        fetcher.pop();
    }
    (taken, None)
}

fn run_on(from: i64, to: i64) -> Vec<i64> {
    (from..to).collect()
}

#[test]
fn records_come_in_order_and_once_whatever_becomes_of_connections() {
    let mut fetches = 0;
    let cluster = Cluster::new(move |_, request| {
        fetches += 1;
        match fetches % 3 {
            0 => Reply::Half(more(request)),
            _ => Reply::Answer(more(request)),
        }
    });
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 7, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 1_000);
    assert_eq!(refusal, None);
    assert_eq!(taken[&0][..1_000], run_on(7, 1_007));
}

#[test]
fn a_partition_whose_leader_has_changed_is_read_on_from_the_new_one() {
    let stage = Arc::new(OnceLock::<Arc<Stage>>::new());
    let moves = Arc::clone(&stage);
    let cluster = Cluster::new(move |broker, request| {
        if broker == 0 && asked(request)[0].1 >= 300 {
            // The metadata say so a moment later.
            *moves.get().expect("set below").leader.lock().expect("no panic") = 1;
            let moved = data(0).with_error_code(ResponseError::NotLeaderOrFollower.code());
            return Reply::Answer(answer(vec![moved]));
        }
        Reply::Answer(more(request))
    });
    assert!(stage.set(Arc::clone(&cluster.stage)).is_ok());
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 600);
    assert_eq!(refusal, None);
    assert_eq!(taken[&0][..600], run_on(0, 600));
}

#[test]
fn a_log_that_was_cut_off_and_has_grown_again_ends_the_run() {
    let cluster = Cluster::new(move |_, request| {
        let (_, offset, epoch) = asked(request)[0];
        match offset {
            0 => Reply::Answer(more(request)),
            // The last batch was written under epoch 0.
            _ => {
                assert_eq!((offset, epoch), (100, 0));
                let parted = EpochEndOffset::default().with_epoch(0).with_end_offset(60);
                Reply::Answer(answer(vec![data(0).with_diverging_epoch(parted)]))
            }
        }
    });
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 101);
    assert_eq!(taken[&0], run_on(0, 100));
    assert!(matches!(&refusal, Some(Refusal::OutOfRange(why)) if why.contains("60")), "{refusal:?}");
}

#[test]
fn a_topic_that_was_made_again_between_two_fetches_is_not_read_on_with() {
    let stage = Arc::new(OnceLock::<Arc<Stage>>::new());
    let changes = Arc::clone(&stage);
    let cluster = Cluster::new(move |_, request| {
        if asked(request)[0].1 == 200 {
            // Same name, leader and epoch, and as many records.
            *changes.get().expect("set below").topic.lock().expect("no panic") = Uuid::from_u128(2);
        }
        Reply::Answer(more(request))
    });
    assert!(stage.set(Arc::clone(&cluster.stage)).is_ok());
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 300);
    assert_eq!((&taken[&0], refusal), (&run_on(0, 300), None));
    let looks = || cluster.stage.looks.load(Ordering::SeqCst);
    let (before, began) = (looks(), Instant::now());
    while looks() < before + 3 {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(fetcher.front().is_none());
}

#[test]
fn brokers_that_fetch_by_names_alone_are_asked_by_them() {
    let cluster = Cluster::new(|_, request| {
        assert_eq!(request.topics[0].topic.as_str(), TOPIC);
        Reply::Answer(more(request))
    });
    cluster.stage.is_old.store(true, Ordering::SeqCst);
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 200);
    assert_eq!((taken[&0][..200].to_vec(), refusal), (run_on(0, 200), None));
}

#[test]
fn what_was_fetched_for_a_run_that_has_ended_never_comes_out() {
    let cluster = Cluster::new(|_, request| Reply::Answer(more(request)));
    let mut fetcher = cluster.fetcher(|_| {});
    for from in [0, 5_000, 40, 9_000] {
        fetcher.start(at(0), from, -1);
        fetcher.begin_started();
        let (taken, refusal) = take(&mut fetcher, 200);
        assert_eq!(refusal, None);
        assert_eq!(taken[&0][..200], run_on(from, from + 200));
        fetcher.stop(at(0));
        assert!(fetcher.front().is_none());
    }
}

#[test]
fn a_partition_that_nobody_takes_from_is_left_out_and_the_other_goes_on() {
    let most = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&most);
    let cluster = Cluster::new(move |_, request| {
        for (partition, offset, _) in asked(request) {
            if partition == 1 {
                let mut most = seen.lock().expect("no panic");
                *most = offset.max(*most);
            }
        }
        Reply::Answer(more(request))
    });
    let mut fetcher = cluster.fetcher(|config| config.limits.partition_fetch_bytes = 4_000);
    fetcher.start(at(0), 0, -1);
    fetcher.start(at(1), 0, -1);
    fetcher.begin_started();
    // Of partition 1 nothing is popped: its first arrival stays in front, so the other is seen by its requests alone.
    let began = Instant::now();
    while *most.lock().expect("no panic") < 100 {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(200));
    let reached = *most.lock().expect("no panic");
    assert!(reached <= 500, "{reached} records of a partition that holds four thousand bytes");
}

#[test]
fn an_answer_unpacks_to_no_more_than_is_usual() {
    const BYTES: usize = 3_000_000;
    let cluster = Cluster::new(|_, request| {
        let zeros = vec![0u8; BYTES];
        let record = NewRecord { value: Some(&zeros), ..NewRecord::default() };
        let batch = |offset: i64| NewBatch::at(offset).push(&record).codec(4).build();
        let of = |(partition, offset, _): (i32, i64, i32)| {
            let batches: Vec<u8> = (offset..offset + 5).flat_map(|offset| batch(offset).to_vec()).collect();
            data(partition).with_records(Some(batches.into()))
        };
        Reply::Answer(answer(asked(request).into_iter().map(of).collect()))
    });
    let mut fetcher = cluster.fetcher(|config| config.limits.fetch_queue_kib = 1_024);
    fetcher.start(at(0), 0, -1);
    fetcher.start(at(1), 0, -1);
    fetcher.begin_started();
    let began = Instant::now();
    while !fetcher.has_arrived() {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    let arrived = fetcher.shared.arrived();
    // Of the ten that came; the queue holds 1 MiB.
    assert!(arrived.iter().map(|arrival| arrival.bytes).sum::<usize>() < 4 * BYTES);
    for arrival in arrived {
        fetcher.shared.taken(arrival.partition, arrival.bytes);
    }
    // Behind what came of them, neither leaves anything out.
    let (taken, refusal) = take(&mut fetcher, 4);
    assert_eq!(refusal, None);
    for offsets in taken.values() {
        assert!(offsets.windows(2).all(|pair| pair[1] == pair[0] + 1), "{taken:?}");
    }
}

#[test]
fn a_start_calls_a_fetch_back_that_waits_without_it() {
    let cluster = Cluster::new(|_, request| match asked(request)[..] {
        [(0, ..)] => Reply::Nothing,
        _ => Reply::Answer(answer(vec![data(1).with_records(Some(batch(asked(request)[1].1, 0)))])),
    });
    let mut fetcher = cluster.fetcher(|config| {
        config.properties.insert("fetch.wait.max.ms".to_owned(), "60000".to_owned());
    });
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    fetcher.start(at(1), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 100);
    assert_eq!((taken[&1][..100].to_vec(), refusal), (run_on(0, 100), None));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn garbage_from_a_broker_is_not_the_end() {
    let mut fetches = 0;
    let cluster = Cluster::new(move |_, request| {
        fetches += 1;
        let good = more(request);
        Reply::Answer(match fetches {
            // Of a partition, and of a topic, that nobody asked for.
            1 => answer(vec![data(17).with_records(Some(batch(0, 0)))]),
            2 => FetchResponse::default().with_error_code(ResponseError::UnknownServerError.code()),
            3 => answer(vec![data(0).with_error_code(12_345)]),
            _ => good,
        })
    });
    let mut fetcher = cluster.fetcher(|_| {});
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let (taken, refusal) = take(&mut fetcher, 200);
    assert_eq!((taken[&0][..200].to_vec(), refusal), (run_on(0, 200), None));
}

#[test]
fn a_password_that_is_wrong_by_now_is_said_until_it_is_right_again() {
    let mut fetches = 0;
    let cluster = Cluster::new(move |_, request| {
        fetches += 1;
        // One connection for each fetch, so that there is a sign-in for each.
        if fetches % 2 == 0 { Reply::Half(more(request)) } else { Reply::Answer(more(request)) }
    });
    let mut fetcher = cluster.fetcher(|config| {
        config.security_protocol = "sasl_plaintext".to_owned();
        config.sasl_mechanism = Some("PLAIN".to_owned());
        config.sasl_username = Some("me".to_owned());
        config.sasl_password = Some("canary".to_owned());
    });
    fetcher.start(at(0), 0, -1);
    fetcher.begin_started();
    let from = take(&mut fetcher, 200).0[&0].len() as i64;
    assert_eq!(fetcher.obstacle(), None);
    cluster.stage.is_closed.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let met = loop {
        assert!(began.elapsed() < SOON);
        // There has to be room for more.
        if fetcher.front().is_some() {
            fetcher.pop();
        }
        match fetcher.obstacle() {
            Some(met) => break met,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert!(met.contains("does not let `me` sign in with PLAIN") && !met.contains("canary"), "{met}");
    cluster.stage.is_closed.store(false, Ordering::SeqCst);
    let (taken, refusal) = take(&mut fetcher, 200);
    assert_eq!(refusal, None);
    assert!(taken[&0][0] >= from, "{taken:?}");
    while fetcher.obstacle().is_some() {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
}
