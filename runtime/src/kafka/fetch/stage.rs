//! Brokers that do what they are told, in this process.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    AddOffsetsToTxnResponse, ApiKey, ApiVersionsResponse, BrokerId, FetchRequest, FetchResponse,
    FindCoordinatorResponse, MetadataResponse, ProduceRequest, ProduceResponse, RequestHeader, RequestKind,
    ResponseHeader, ResponseKind, SaslAuthenticateResponse, SaslHandshakeResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use tidemill_batches::Header;
use uuid::Uuid;

use super::Fetcher;
use crate::kafka::config::KafkaConfig;

pub(in crate::kafka) const TOPIC: &str = "words";

/// What becomes of a fetch.
pub(in crate::kafka) enum Reply {
    Answer(FetchResponse),
    /// Its first half, and the connection is closed.
    Half(FetchResponse),
    /// Nothing, until the connection ends.
    Nothing,
}

/// Answers fetches; it is told the broker.
type Script = Box<dyn FnMut(i32, &FetchRequest) -> Reply + Send>;

/// What both brokers do.
pub(in crate::kafka) struct Stage {
    ports: [u16; 2],
    pub leader: Mutex<i32>,
    /// Which topic of the name there is.
    pub topic: Mutex<Uuid>,
    /// They fetch by names alone.
    pub is_old: AtomicBool,
    /// How often they were asked who leads what.
    pub looks: AtomicUsize,
    /// Nobody is let in who signs in from now on.
    pub is_closed: AtomicBool,
    /// So often whoever looks for a coordinator is still sent where nobody listens, and then to the first broker.
    pub misses: Mutex<usize>,
    /// So many requests of a producer still have no answer, until the connection ends.
    pub hangs: Mutex<usize>,
    /// Of the batches that came, the first numbers.
    pub sequences: Mutex<Vec<i32>>,
    has_ended: AtomicBool,
    script: Mutex<Script>,
}

/// Two brokers with the numbers 0 and 1, of which one leads every partition.
pub(in crate::kafka) struct Cluster {
    pub stage: Arc<Stage>,
}

impl Cluster {
    pub fn new(script: impl FnMut(i32, &FetchRequest) -> Reply + Send + 'static) -> Cluster {
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let stage = Arc::new(Stage {
            ports: [0, 1].map(|broker: usize| listeners[broker].local_addr().expect("bound").port()),
            leader: Mutex::new(0),
            topic: Mutex::new(Uuid::from_u128(1)),
            is_old: AtomicBool::new(false),
            looks: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            misses: Mutex::new(0),
            hangs: Mutex::new(0),
            sequences: Mutex::new(Vec::new()),
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

    pub fn fetcher(&self, change: impl FnOnce(&mut KafkaConfig)) -> Fetcher {
        let mut config = self.config();
        change(&mut config);
        let topics = vec![TOPIC.to_owned()];
        Fetcher::new(&config, config.fetching(), topics, &[], Box::new(|| {})).expect("it is complete")
    }

    pub fn config(&self) -> KafkaConfig {
        KafkaConfig::new(format!("127.0.0.1:{}", self.stage.ports[0]))
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
            RequestKind::FindCoordinator(_) => ResponseKind::FindCoordinator(coordinator(stage)),
            RequestKind::Produce(request) => {
                let response = produced(stage, request);
                if hangs(stage) {
                    let _ = stream.read(&mut [0; 1]);
                    return;
                }
                ResponseKind::Produce(response)
            }
            RequestKind::AddOffsetsToTxn(_) => {
                if hangs(stage) {
                    let _ = stream.read(&mut [0; 1]);
                    return;
                }
                ResponseKind::AddOffsetsToTxn(AddOffsetsToTxnResponse::default())
            }
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

fn coordinator(stage: &Stage) -> FindCoordinatorResponse {
    let mut misses = stage.misses.lock().expect("no panic");
    let port = if *misses > 0 { 1 } else { stage.ports[0] };
    *misses = misses.saturating_sub(1);
    let found =
        Coordinator::default().with_host(StrBytes::from_static_str("127.0.0.1")).with_port(i32::from(port));
    FindCoordinatorResponse::default().with_coordinators(vec![found])
}

/// The request that has come is one of those without an answer.
fn hangs(stage: &Stage) -> bool {
    let mut hangs = stage.hangs.lock().expect("no panic");
    let is_one = *hangs > 0;
    *hangs = hangs.saturating_sub(1);
    is_one
}

/// Takes every batch.
fn produced(stage: &Stage, request: ProduceRequest) -> ProduceResponse {
    let take = |data: PartitionProduceData| {
        let header = Header::check(&data.records.expect("a batch")).expect("it is whole");
        stage.sequences.lock().expect("no panic").push(header.base_sequence);
        PartitionProduceResponse::default().with_index(data.index)
    };
    let topics = request.topic_data.into_iter().map(|topic| {
        let partitions = topic.partition_data.into_iter().map(take).collect();
        TopicProduceResponse::default().with_name(topic.name).with_partition_responses(partitions)
    });
    ProduceResponse::default().with_responses(topics.collect())
}

/// A batch of a hundred records from an offset on, written under an epoch.
pub(in crate::kafka) fn batch(from: i64, epoch: i32) -> Bytes {
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

pub(in crate::kafka) fn data(partition: i32) -> PartitionData {
    PartitionData::default().with_partition_index(partition)
}

pub(in crate::kafka) fn answer(partitions: Vec<PartitionData>) -> FetchResponse {
    let topic = FetchableTopicResponse::default()
        .with_topic(TopicName(StrBytes::from_static_str(TOPIC)))
        .with_partitions(partitions);
    FetchResponse::default().with_responses(vec![topic])
}

/// What a request asks for: partition, offset, epoch of the record before.
pub(in crate::kafka) fn asked(request: &FetchRequest) -> Vec<(i32, i64, i32)> {
    let of = |partition: &kafka_protocol::messages::fetch_request::FetchPartition| {
        (partition.partition, partition.fetch_offset, partition.last_fetched_epoch)
    };
    let mut asked: Vec<_> = request.topics.iter().flat_map(|topic| topic.partitions.iter().map(of)).collect();
    asked.sort_unstable();
    asked
}

/// A hundred records of everything that is asked for.
pub(in crate::kafka) fn more(request: &FetchRequest) -> FetchResponse {
    let of = |(partition, offset, _)| data(partition).with_records(Some(batch(offset, 0)));
    answer(asked(request).into_iter().map(of).collect())
}
