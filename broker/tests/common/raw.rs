//! The protocol without a client library: for requests that no proper client would send.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{
    FetchRequest, FindCoordinatorRequest, InitProducerIdRequest, MetadataRequest, ProduceRequest,
    RequestHeader, ResponseHeader, TopicName, TransactionalId,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

/// No answer takes longer from a working broker.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
pub struct Raw {
    pub stream: TcpStream,
    correlation_id: i32,
}

pub fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

pub fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

impl Raw {
    pub fn connect(address: &str) -> Raw {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("is set");
        stream.set_nodelay(true).expect("is set");
        Raw { stream, correlation_id: 0 }
    }

    /// Sends a request and waits for its answer.
    pub fn call<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        self.send(request, version);
        self.receive::<R>(version)
    }

    /// The same; none if the broker is gone.
    pub fn try_call<R: Request>(&mut self, request: &R, version: i16) -> Option<R::Response> {
        self.send(request, version);
        let frame = self.receive_frame()?;
        Some(self.decode::<R>(frame, version))
    }

    pub fn send<R: Request>(&mut self, request: &R, version: i16) {
        self.correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(text("raw")));
        let mut body = BytesMut::new();
        header.encode(&mut body, R::header_version(version)).expect("header encodes");
        request.encode(&mut body, version).expect("request encodes");
        self.send_frame(&body);
    }

    pub fn send_frame(&mut self, body: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_i32(body.len() as i32);
        frame.put_slice(body);
        // A broker that has closed the connection is noticed when reading.
        let _ = self.stream.write_all(&frame);
    }

    pub fn receive<R: Request>(&mut self, version: i16) -> R::Response {
        let frame = self.receive_frame().expect("the broker answers");
        self.decode::<R>(frame, version)
    }

    fn decode<R: Request>(&self, mut frame: Bytes, version: i16) -> R::Response {
        let header_version = <R::Response as HeaderVersion>::header_version(version);
        let header = ResponseHeader::decode(&mut frame, header_version).expect("header decodes");
        assert_eq!(header.correlation_id, self.correlation_id);
        let response = R::Response::decode(&mut frame, version).expect("response decodes");
        assert!(frame.is_empty(), "nothing is left of the response");
        response
    }

    /// The next frame; none if the broker has closed the connection.
    pub fn receive_frame(&mut self) -> Option<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut frame = vec![0; i32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame).ok()?;
        Some(frame.into())
    }
}

/// A producer's identity for [`batch`].
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub id: i64,
    pub epoch: i16,
    pub sequence: i32,
    pub transactional: bool,
}

/// For records of no particular producer.
pub const NOBODY: Stamp = Stamp { id: -1, epoch: -1, sequence: -1, transactional: false };

/// A record batch of these values with keys `k`.
pub fn batch(stamp: Stamp, values: &[&str]) -> Bytes {
    batch_at(stamp, values, now_ms(), Compression::None)
}

pub fn batch_at(stamp: Stamp, values: &[&str], timestamp: i64, compression: Compression) -> Bytes {
    let record = |(at, value): (usize, &&str)| Record {
        transactional: stamp.transactional,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: stamp.id,
        producer_epoch: stamp.epoch,
        // The encoder ends a batch where sequences do not follow each other.
        sequence: stamp.sequence.wrapping_add(at as i32),
        timestamp_type: TimestampType::Creation,
        offset: at as i64,
        timestamp,
        key: Some(Bytes::from_static(b"k")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: IndexMap::new(),
    };
    let records: Vec<Record> = values.iter().enumerate().map(record).collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression };
    RecordBatchEncoder::encode(&mut bytes, &records, &options).expect("batch encodes");
    bytes.freeze()
}

pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_millis() as i64
}

/// Produces one batch to partition 0 and returns what the broker says of it.
pub fn produce_raw(
    raw: &mut Raw,
    topic: &str,
    transactional_id: Option<&str>,
    batch: Bytes,
) -> PartitionProduceResponse {
    produce_version(raw, topic, transactional_id, batch, 9)
}

pub fn produce_version(
    raw: &mut Raw,
    topic: &str,
    transactional_id: Option<&str>,
    batch: Bytes,
    version: i16,
) -> PartitionProduceResponse {
    let data = PartitionProduceData::default().with_index(0).with_records(Some(batch));
    let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![data]);
    let request = ProduceRequest::default()
        .with_transactional_id(transactional_id.map(|id| TransactionalId(text(id))))
        .with_acks(-1)
        .with_timeout_ms(5000)
        .with_topic_data(vec![topic]);
    let mut response = raw.call(&request, version);
    response.responses.remove(0).partition_responses.remove(0)
}

/// A fetch of partition 0.
pub fn fetch_request(topic: &str, offset: i64, wait: Duration, min_bytes: i32) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(offset)
        .with_current_leader_epoch(-1)
        .with_partition_max_bytes(1 << 20);
    FetchRequest::default()
        .with_max_wait_ms(wait.as_millis() as i32)
        .with_min_bytes(min_bytes)
        .with_max_bytes(50 << 20)
        .with_session_epoch(-1)
        .with_topics(vec![
            FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]),
        ])
}

/// Producer id and epoch for a transactional id, once its coordinator is there.
pub fn init_producer(raw: &mut Raw, transactional_id: &str, timeout_ms: i32) -> (i64, i16) {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(text(transactional_id))))
        .with_transaction_timeout_ms(timeout_ms)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let response = retry(|| {
        let response = raw.call(&request, 4);
        (response.error_code, response)
    });
    assert_eq!(response.error_code, 0, "producer id");
    (response.producer_id.0, response.producer_epoch)
}

/// Repeats a call while the answer is "not yet": coordinators that load, markers on their way.
pub fn retry<T>(mut call: impl FnMut() -> (i16, T)) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (error, value) = call();
        // COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, CONCURRENT_TRANSACTIONS
        if !matches!(error, 14 | 15 | 16 | 51) {
            return value;
        }
        assert!(Instant::now() < deadline, "still error {error}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Makes sure that the coordinator of a key exists; Apache Kafka creates its topics on demand.
pub fn find_coordinator(raw: &mut Raw, key: &str, key_type: i8) {
    let request =
        FindCoordinatorRequest::default().with_key_type(key_type).with_coordinator_keys(vec![text(key)]);
    retry(|| {
        let response = raw.call(&request, 4);
        (response.coordinators[0].error_code, ())
    });
}

/// The id of a topic.
pub fn topic_id(raw: &mut Raw, topic: &str) -> uuid::Uuid {
    use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
    let wanted = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
    raw.call(&request, 12).topics[0].topic_id
}
