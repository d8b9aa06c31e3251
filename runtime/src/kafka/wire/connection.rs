//! A connection to one broker: made, encrypted and signed in, then requests and their answers.
//!
//! ```text
//!   request:  size i32 | api key i16 | version i16 | correlation id i32 | client id | ... | body
//!   answer:   size i32 | correlation id i32 | (tagged fields) | body
//! ```
//!
//! An answer is one piece of memory, and the records in it are slices of that piece. Nothing that a broker says is
//! believed unseen: a size is looked at before memory is reserved for it, and [`super::guard`] sees every body before
//! it is decoded. Until a broker has signed us in it gets less of our memory and time.
//!
//! Requests may be out together, and answers come in their order: a broker takes the next one when it has answered.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

use super::access::{Access, Address};
use super::frames::{Fault, Wire};
use super::guard;
use super::hang_ups;
use super::sasl::Sasl;
use crate::tls::blocking::{explain, is_end};

/// Whose answers are understood; Kafka has had them since 2.8.
pub(in crate::kafka) const FETCH_VERSION: i16 = 12;
/// The same by topic ids instead of names, so that a topic which was made again is another; Kafka has had it since 3.1.
pub(in crate::kafka) const FETCH_BY_ID_VERSION: i16 = 13;
/// The first that tells a topic from a later one of its name.
pub(in crate::kafka) const METADATA_VERSION: i16 = 10;
/// As Kafka 3.6 has it. What came later tells of new leaders and of transactions of the new kind (KIP-890, part 2).
pub(in crate::kafka) const PRODUCE_VERSION: i16 = 9;
/// The first that asks for several coordinators at once; Kafka has had it since 3.0.
pub(in crate::kafka) const FIND_COORDINATOR_VERSION: i16 = 4;
/// Of what makes a transaction; none asks for more than Kafka 3.0.
pub(in crate::kafka) const INIT_PRODUCER_ID_VERSION: i16 = 4;
pub(in crate::kafka) const TRANSACTION_VERSION: i16 = 3;
const HANDSHAKE_VERSION: i16 = 1;
const AUTHENTICATE_VERSION: i16 = 2;

/// What the producer asks.
const OF_PRODUCER: [(ApiKey, i16); 7] = [
    (ApiKey::Produce, PRODUCE_VERSION),
    (ApiKey::FindCoordinator, FIND_COORDINATOR_VERSION),
    (ApiKey::InitProducerId, INIT_PRODUCER_ID_VERSION),
    (ApiKey::AddPartitionsToTxn, TRANSACTION_VERSION),
    (ApiKey::AddOffsetsToTxn, TRANSACTION_VERSION),
    (ApiKey::TxnOffsetCommit, TRANSACTION_VERSION),
    (ApiKey::EndTxn, TRANSACTION_VERSION),
];

/// An answer of a broker that has not signed us in yet.
const EARLY_BYTES_MAX: usize = 1 << 20;
/// Memory that a connection keeps for its next request: a producer's are half as large, unless a record is larger.
const FRAME_BYTES_KEPT: usize = 4 << 20;
/// What is shown of a text of the broker's.
const TEXT_CHARS_MAX: usize = 300;
/// The longest that anybody waits: beyond that lie numbers that a time cannot be reckoned with.
const PATIENCE_MAX: Duration = Duration::from_secs(86_400);
/// Requests that are out together; no broker orders the writes of a producer that has more than five.
const OUT_MAX: usize = 16;

/// Why a connection is of no use, or came to none.
#[derive(Debug, thiserror::Error)]
pub(in crate::kafka) enum ConnectionError {
    #[error("{address} cannot be reached: {reason}")]
    Unreachable { address: Address, reason: String },
    #[error("{address} closed the connection before it had answered {what}")]
    Closed { address: Address, what: String },
    #[error("{address} did not answer {what} within {} ms", .waited.as_millis())]
    Late { address: Address, what: String, waited: Duration },
    #[error("the connection to {address} broke before {what} was answered: {reason}")]
    Broken { address: Address, what: String, reason: io::Error },
    #[error("{address} answered {what} with what cannot be read: {reason}")]
    Malformed { address: Address, what: String, reason: String },
    #[error(
        "{address} ended the connection in the middle of the TLS handshake: it stops or starts just now or, if that goes on, its port \
         does not speak TLS (kafka.security_protocol), or none that the node's own client speaks (kafka.client)"
    )]
    HungUp { address: Address },
    #[error("{address}: {reason} (kafka.ssl; kafka.client: librdkafka lets OpenSSL judge it)")]
    Tls { address: Address, reason: String },
    #[error("{address} does not let `{username}` sign in with {mechanism}: {reason}")]
    SignIn { address: Address, username: String, mechanism: &'static str, reason: String },
    #[error(
        "{address} does not speak {what}, which the node's own client needs: leave it to librdkafka (kafka.client: librdkafka)"
    )]
    Unsupported { address: Address, what: String },
}

impl ConnectionError {
    /// Of TLS, sign-in or versions: another attempt ends the same, and librdkafka, which has its own of all three, may get
    /// through nevertheless.
    pub fn lasts(&self) -> bool {
        match self {
            ConnectionError::Tls { .. }
            | ConnectionError::SignIn { .. }
            | ConnectionError::Unsupported { .. }
            | ConnectionError::Malformed { .. } => true,
            ConnectionError::Unreachable { .. }
            | ConnectionError::Closed { .. }
            | ConnectionError::Late { .. }
            | ConnectionError::Broken { .. }
            // A port without TLS does the same, and librdkafka, which is asked first at a node's start, does not get through
            // there either.
            | ConnectionError::HungUp { .. } => false,
        }
    }
}

/// See the module.
pub(in crate::kafka) struct Connection {
    wire: Wire,
    address: Address,
    client_id: StrBytes,
    correlation_id: i32,
    /// Without an answer yet, oldest first.
    out: VecDeque<Asked>,
    /// The request, kept for its memory, if that is not too much.
    frame: Vec<u8>,
    answer_bytes_max: usize,
    expires: Option<Instant>,
    fetches_by_id: bool,
}

/// A request that is out.
#[derive(Debug, Clone, Copy)]
struct Asked {
    key: ApiKey,
    version: i16,
    correlation_id: i32,
    at: Instant,
}

impl Connection {
    /// Connects, by every address that the name has, encrypts, asks for versions and signs in; all of that within
    /// `connect_timeout`, except that the system may take longer to look a name up.
    pub fn open(access: &Access, address: &Address) -> Result<Connection, ConnectionError> {
        Connection::open_until(access, address, Instant::now() + PATIENCE_MAX)
    }

    /// The same, but not beyond `until`.
    pub fn open_until(
        access: &Access,
        address: &Address,
        until: Instant,
    ) -> Result<Connection, ConnectionError> {
        let began = Instant::now();
        let until = until.min(began + access.connect_timeout.min(PATIENCE_MAX));
        let tcp = reach(address, until)?;
        let unusable = |error| failure(address, Fault::Io(error), "the connection".to_owned(), began);
        tcp.set_nodelay(true).map_err(unusable)?;
        let wire = match &access.tls {
            None => Wire::plain(tcp),
            Some(tls) => {
                let session = tls.connect(tcp, &address.host, until);
                let session = session.map_err(|error| unshaken(address, error, began))?;
                hang_ups::end();
                Wire::encrypted(session)
            }
        };
        let mut connection = Connection {
            wire,
            address: address.clone(),
            client_id: StrBytes::from_string(access.client_id.clone()),
            correlation_id: 0,
            out: VecDeque::new(),
            frame: Vec::new(),
            answer_bytes_max: EARLY_BYTES_MAX.min(access.response_bytes_max),
            expires: None,
            fetches_by_id: false,
        };
        connection.check_versions(access.sasl.is_some(), until)?;
        if let Some(sasl) = &access.sasl {
            connection.sign_in(sasl, until)?;
        }
        connection.answer_bytes_max = access.response_bytes_max;
        Ok(connection)
    }

    /// The socket, to be shut down from another thread when a waiting read has to end.
    pub fn socket(&self) -> io::Result<TcpStream> {
        self.wire.socket().try_clone()
    }

    /// Another one should be made instead: the broker wants to be signed in at again, and closes this one soon.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= Instant::now())
    }

    /// The broker speaks [`FETCH_BY_ID_VERSION`].
    pub fn fetches_by_id(&self) -> bool {
        self.fetches_by_id
    }

    /// One request and its answer; `patience` is how long both may take together. After an error the connection is
    /// of no use.
    pub fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        patience: Duration,
    ) -> Result<R::Response, ConnectionError> {
        self.exchange(request, version, Instant::now() + patience.min(PATIENCE_MAX))
    }

    fn exchange<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        until: Instant,
    ) -> Result<R::Response, ConnectionError> {
        self.send(request, version, until)?;
        self.receive::<R>(version, until)
    }

    /// A request alone; [`Connection::receive`] brings its answer, so it has to be one that is answered (a write with
    /// `acks` 0 is not). A broker reads nothing while it writes: of a long request while a long answer is due, neither
    /// gets through before `until`. After an error the connection is of no use.
    pub fn send<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        until: Instant,
    ) -> Result<(), ConnectionError> {
        let at = Instant::now();
        let Ok(key) = ApiKey::try_from(R::KEY) else {
            return Err(self.unsupported(format!("API {}", R::KEY)));
        };
        if self.out.len() >= OUT_MAX {
            let reason = io::Error::other(format!("{OUT_MAX} requests are out, and no more are sent"));
            return Err(failure(&self.address, Fault::Io(reason), format!("{key:?}"), at));
        }
        self.encode(request, version).map_err(|reason| self.unsupported(format!("{key:?}: {reason}")))?;
        self.wire
            .send(&self.frame, until)
            .map_err(|fault| failure(&self.address, fault, format!("{key:?}"), at))?;
        if self.frame.capacity() > FRAME_BYTES_KEPT {
            self.frame = Vec::new();
        }
        self.out.push_back(Asked { key, version, correlation_id: self.correlation_id, at });
        Ok(())
    }

    /// The answer to the oldest request that has none, which is an `R` of that version. After an error the connection
    /// is of no use.
    pub fn receive<R: Request>(
        &mut self,
        version: i16,
        until: Instant,
    ) -> Result<R::Response, ConnectionError> {
        let is_asked = |asked: &Asked| asked.key as i16 == R::KEY && asked.version == version;
        let Some(Asked { key, correlation_id, at, .. }) = self.out.pop_front().filter(is_asked) else {
            return Err(self.malformed(format!("API {}", R::KEY), "none is due".to_owned()));
        };
        let what = || format!("{key:?}");
        let size = self.wire.receive(4, until).map_err(|fault| failure(&self.address, fault, what(), at))?;
        let size = self.believed(&size).map_err(|reason| self.malformed(what(), reason))?;
        let answer =
            self.wire.receive(size, until).map_err(|fault| failure(&self.address, fault, what(), at))?;
        decode::<R::Response>(key, version, correlation_id, Bytes::from(answer))
            .map_err(|reason| self.malformed(what(), reason))
    }

    /// Makes the frame of a request; fails for what the caller has done wrong.
    fn encode<R: Request>(&mut self, request: &R, version: i16) -> Result<(), String> {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(self.client_id.clone()));
        self.frame.clear();
        self.frame.extend_from_slice(&[0; 4]);
        header.encode(&mut self.frame, R::header_version(version)).map_err(|error| error.to_string())?;
        request.encode(&mut self.frame, version).map_err(|error| error.to_string())?;
        let size = i32::try_from(self.frame.len() - 4).map_err(|error| error.to_string())?;
        self.frame[..4].copy_from_slice(&size.to_be_bytes());
        Ok(())
    }

    /// The size of an answer, if it may be that large.
    fn believed(&self, size: &[u8]) -> Result<usize, String> {
        let most = self.answer_bytes_max;
        let size = <[u8; 4]>::try_from(size).map(i32::from_be_bytes).unwrap_or(-1);
        match usize::try_from(size) {
            Ok(size) if size <= most => Ok(size),
            // The first bytes of something else read as a number, too.
            _ => Err(format!(
                "it is {size} bytes, at most {most} are read (receive.message.max.bytes); a listener that expects TLS answers \
                 such numbers to whoever does not encrypt, and so does what is no Kafka broker"
            )),
        }
    }

    fn check_versions(&mut self, signs_in: bool, until: Instant) -> Result<(), ConnectionError> {
        let answer = self.exchange(&ApiVersionsRequest::default(), 0, until)?;
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return Err(self.malformed("ApiVersions".to_owned(), error.to_string()));
        }
        let needed = [
            (true, ApiKey::Fetch, FETCH_VERSION),
            (true, ApiKey::Metadata, METADATA_VERSION),
            (signs_in, ApiKey::SaslHandshake, HANDSHAKE_VERSION),
            (signs_in, ApiKey::SaslAuthenticate, AUTHENTICATE_VERSION),
        ];
        // Where there are no transactions, librdkafka has none either.
        let knows = |key: ApiKey| answer.api_keys.iter().any(|spoken| spoken.api_key == key as i16);
        let of_producer = OF_PRODUCER.map(|(key, version)| (knows(key), key, version));
        let speaks = |key: ApiKey, version: i16| {
            answer.api_keys.iter().any(|spoken| {
                spoken.api_key == key as i16 && (spoken.min_version..=spoken.max_version).contains(&version)
            })
        };
        for (is_needed, key, version) in needed.into_iter().chain(of_producer) {
            if is_needed && !speaks(key, version) {
                return Err(self.unsupported(format!("version {version} of {key:?}")));
            }
        }
        self.fetches_by_id = speaks(ApiKey::Fetch, FETCH_BY_ID_VERSION);
        Ok(())
    }

    fn sign_in(&mut self, sasl: &Sasl, until: Instant) -> Result<(), ConnectionError> {
        let mechanism = StrBytes::from_static_str(sasl.mechanism());
        let handshake = SaslHandshakeRequest::default().with_mechanism(mechanism);
        let answer = self.exchange(&handshake, HANDSHAKE_VERSION, until)?;
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            let known: Vec<&str> = answer.mechanisms.iter().map(|name| name.as_str()).collect();
            return Err(self.refused(sasl, &format!("{error}; it knows {}", known.join(", "))));
        }
        let (mut dialog, mut message) = sasl.begin();
        loop {
            let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(message));
            let answer = self.exchange(&request, AUTHENTICATE_VERSION, until);
            // It may be a password, and would lie there until a longer request comes.
            self.frame.fill(0);
            let answer = answer?;
            if let Some(error) = ResponseError::try_from_code(answer.error_code) {
                let said = answer.error_message.map(|said| said.to_string());
                return Err(self.refused(sasl, &said.unwrap_or_else(|| error.to_string())));
            }
            match dialog.answer(&answer.auth_bytes) {
                Ok(Some(next)) => message = next,
                Ok(None) => {
                    self.expires = expiry(answer.session_lifetime_ms);
                    return Ok(());
                }
                Err(distrust) => return Err(self.refused(sasl, &distrust.to_string())),
            }
        }
    }

    fn malformed(&self, what: String, reason: String) -> ConnectionError {
        ConnectionError::Malformed { address: self.address.clone(), what, reason }
    }

    fn unsupported(&self, what: String) -> ConnectionError {
        ConnectionError::Unsupported { address: self.address.clone(), what }
    }

    fn refused(&self, sasl: &Sasl, reason: &str) -> ConnectionError {
        ConnectionError::SignIn {
            address: self.address.clone(),
            username: sasl.username.clone(),
            mechanism: sasl.mechanism(),
            // Of whoever listens there.
            reason: reason.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect(),
        }
    }
}

impl fmt::Debug for Connection {
    /// Nothing of what was said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A connection to any of the addresses that a name has. Each has its share of the time that is left, so that one
/// which nobody answers at does not take it from the others.
fn reach(address: &Address, until: Instant) -> Result<TcpStream, ConnectionError> {
    let unreachable = |reason: String| ConnectionError::Unreachable { address: address.clone(), reason };
    let found = (address.host.as_str(), address.port).to_socket_addrs();
    let found = found.map_err(|error| unreachable(format!("its name cannot be resolved: {error}")))?;
    let found: Vec<SocketAddr> = found.collect();
    let mut reasons = Vec::new();
    for (at, candidate) in found.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(found.len() - at).unwrap_or(u32::MAX);
        if share.is_zero() {
            reasons.push("no time is left".to_owned());
            break;
        }
        match TcpStream::connect_timeout(candidate, share) {
            Ok(tcp) => return Ok(tcp),
            Err(error) => reasons.push(format!("{candidate}: {error}")),
        }
    }
    match reasons.is_empty() {
        true => Err(unreachable("its name has no address".to_owned())),
        false => Err(unreachable(reasons.join("; "))),
    }
}

/// A body, if the answer is to the request of that correlation id and holds what it says.
fn decode<A: Decodable + HeaderVersion>(
    key: ApiKey,
    version: i16,
    correlation_id: i32,
    mut answer: Bytes,
) -> Result<A, String> {
    let answered = answer.first_chunk::<4>().map(|id| i32::from_be_bytes(*id));
    if answered != Some(correlation_id) {
        let answered = answered.map_or("none".to_owned(), |id| id.to_string());
        return Err(format!("it is to request {answered}, and {correlation_id} was asked"));
    }
    guard::check(key, version, &answer).map_err(|error| error.to_string())?;
    ResponseHeader::decode(&mut answer, A::header_version(version)).map_err(|error| error.to_string())?;
    A::decode(&mut answer, version).map_err(|error| error.to_string())
}

fn failure(address: &Address, fault: Fault, what: String, began: Instant) -> ConnectionError {
    let address = address.clone();
    match fault {
        Fault::Closed => ConnectionError::Closed { address, what },
        Fault::Late => ConnectionError::Late { address, what, waited: began.elapsed() },
        Fault::Io(reason) => match explain(&reason, &address.host) {
            Some(reason) => ConnectionError::Tls { address, reason },
            None => ConnectionError::Broken { address, what, reason },
        },
    }
}

/// Why a TLS handshake has come to nothing.
fn unshaken(address: &Address, error: io::Error, began: Instant) -> ConnectionError {
    let fault = match error.kind() {
        _ if is_end(&error) => {
            hang_ups::add(address);
            return ConnectionError::HungUp { address: address.clone() };
        }
        // What the broker is called can stand in no certificate.
        io::ErrorKind::InvalidInput => {
            return ConnectionError::Tls { address: address.clone(), reason: error.to_string() };
        }
        io::ErrorKind::TimedOut => Fault::Late,
        _ => Fault::Io(error),
    };
    failure(address, fault, "the TLS handshake".to_owned(), began)
}

/// A tenth of the time before a broker closes the connection of whoever has not signed in again.
fn expiry(session_lifetime_ms: i64) -> Option<Instant> {
    let lifetime = u64::try_from(session_lifetime_ms).ok().filter(|lifetime| *lifetime > 0)?;
    Instant::now().checked_add(Duration::from_millis(lifetime / 10 * 9 + lifetime % 10 * 9 / 10))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::thread::{self, JoinHandle};

    use kafka_protocol::messages::api_versions_response::ApiVersion;
    use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
    use kafka_protocol::messages::{
        ApiVersionsResponse, MetadataRequest, MetadataResponse, SaslAuthenticateResponse,
        SaslHandshakeResponse, TopicName,
    };

    use tidemill_test_support::certificates::Authority;

    use super::*;
    use crate::kafka::config::KafkaConfig;
    use crate::tls::blocking::Client;

    const SOON: Duration = Duration::from_secs(10);

    /// The other end of one connection, which says what a test wants.
    struct Broker {
        tcp: TcpStream,
    }

    impl Broker {
        fn hear<R: Request>(&mut self) -> (RequestHeader, R) {
            let mut size = [0; 4];
            self.tcp.read_exact(&mut size).expect("a request");
            let mut frame = vec![0; u32::from_be_bytes(size) as usize];
            self.tcp.read_exact(&mut frame).expect("all of it");
            let mut frame = Bytes::from(frame);
            let version = i16::from_be_bytes([frame[2], frame[3]]);
            let header = RequestHeader::decode(&mut frame, R::header_version(version)).expect("a header");
            assert_eq!(header.request_api_key, R::KEY);
            (header, R::decode(&mut frame, version).expect("a body"))
        }

        fn say<A: Encodable + HeaderVersion>(&mut self, asked: &RequestHeader, answer: &A) {
            self.tcp.write_all(&framed(asked, answer)).expect("sent");
        }

        /// Says which versions it speaks, as everyone asks first.
        fn greet(&mut self, fetch: i16) {
            self.greet_with(&[(ApiKey::Fetch, fetch)]);
        }

        /// The same, with the newest versions of these as well.
        fn greet_with(&mut self, more: &[(ApiKey, i16)]) {
            let (asked, _) = self.hear::<ApiVersionsRequest>();
            let always = [
                (ApiKey::Metadata, METADATA_VERSION),
                (ApiKey::SaslHandshake, HANDSHAKE_VERSION),
                (ApiKey::SaslAuthenticate, AUTHENTICATE_VERSION),
            ];
            let spoken = always.iter().chain(more).map(|&(key, newest)| {
                ApiVersion::default().with_api_key(key as i16).with_min_version(0).with_max_version(newest)
            });
            self.say(&asked, &ApiVersionsResponse::default().with_api_keys(spoken.collect()));
        }
    }

    fn framed<A: Encodable + HeaderVersion>(asked: &RequestHeader, answer: &A) -> Vec<u8> {
        let version = asked.request_api_version;
        let header = ResponseHeader::default().with_correlation_id(asked.correlation_id);
        let mut frame = vec![0; 4];
        header.encode(&mut frame, A::header_version(version)).expect("a header");
        answer.encode(&mut frame, version).expect("a body");
        let size = u32::try_from(frame.len() - 4).expect("small");
        frame[..4].copy_from_slice(&size.to_be_bytes());
        frame
    }

    fn of_cluster(id: &'static str) -> MetadataResponse {
        MetadataResponse::default().with_cluster_id(Some(StrBytes::from_static_str(id)))
    }

    fn serve(speak: impl FnOnce(Broker) + Send + 'static) -> (Access, Address, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let address = Address { host: "127.0.0.1".to_owned(), port };
        let access = Access::new(&KafkaConfig::new(address.to_string())).expect("plain");
        let speaker = thread::spawn(move || speak(Broker { tcp: listener.accept().expect("a client").0 }));
        (access, address, speaker)
    }

    fn ask(connection: &mut Connection, patience: Duration) -> Result<MetadataResponse, ConnectionError> {
        connection.call(&MetadataRequest::default(), METADATA_VERSION, patience)
    }

    /// The error of a broker that takes the connection and then says `answer` to what it is asked.
    fn error_of(
        patience: Duration,
        answer: impl FnOnce(&mut Broker, &RequestHeader) + Send + 'static,
    ) -> ConnectionError {
        let (access, address, broker) = serve(move |mut broker| {
            broker.greet(FETCH_VERSION);
            let (asked, _) = broker.hear::<MetadataRequest>();
            answer(&mut broker, &asked);
        });
        let mut connection = Connection::open(&access, &address).expect("a connection");
        let error = ask(&mut connection, patience).expect_err("no answer");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        drop(connection);
        broker.join().expect("the broker is content");
        error
    }

    #[test]
    fn every_request_has_its_answer_and_the_node_says_who_it_is() {
        let (access, address, broker) = serve(|mut broker| {
            broker.greet(FETCH_VERSION);
            for id in ["one", "two"] {
                let (asked, _) = broker.hear::<MetadataRequest>();
                assert_eq!(asked.client_id.as_deref(), Some("tidemill"));
                broker.say(&asked, &of_cluster(id));
            }
        });
        let mut connection = Connection::open(&access, &address).expect("a connection");
        assert_eq!(connection.expires, None);
        for id in ["one", "two"] {
            let answer = ask(&mut connection, SOON).expect("an answer");
            assert_eq!(answer.cluster_id.as_deref(), Some(id));
        }
        broker.join().expect("the broker is content");
        let error = ask(&mut connection, SOON).expect_err("it is gone");
        assert!(matches!(error, ConnectionError::Closed { .. } | ConnectionError::Broken { .. }), "{error}");
    }

    /// What a broker says to a request, byte by byte.
    type Said = fn(&RequestHeader) -> Vec<u8>;

    #[test]
    fn an_answer_that_is_none_is_refused_with_the_reason() {
        let answers: [(Said, &str); 5] = [
            (|_| vec![0x7f, 0xff, 0xff, 0xff], "it is 2147483647 bytes, at most 100000000 are read"),
            (|_| vec![0xff; 4], "it is -1 bytes"),
            (|_| vec![0, 0, 0, 2, 1, 2], "it is to request none"),
            (
                |asked| {
                    let other = asked.clone().with_correlation_id(asked.correlation_id + 1);
                    framed(&other, &MetadataResponse::default())
                },
                "it is to request",
            ),
            (
                |asked| {
                    let mut frame = framed(asked, &MetadataResponse::default());
                    // The number of brokers, behind size, correlation id, no tagged fields and a throttle time.
                    frame[4 + 4 + 1 + 4] = 0x7f;
                    frame
                },
                "it does not hold what it says",
            ),
        ];
        for (answer, reason) in answers {
            let error = error_of(SOON, move |broker, asked| {
                broker.tcp.write_all(&answer(asked)).expect("sent");
            });
            assert!(matches!(error, ConnectionError::Malformed { .. }), "{error}");
            assert!(error.to_string().contains(reason), "{reason}: {error}");
        }
    }

    #[test]
    fn a_broker_that_closes_in_the_middle_has_not_answered() {
        let error = error_of(SOON, |broker, asked| {
            let frame = framed(asked, &of_cluster("one"));
            broker.tcp.write_all(&frame[..frame.len() - 3]).expect("sent");
            broker.tcp.shutdown(Shutdown::Write).expect("closed");
        });
        assert!(
            error.to_string().contains("closed the connection before it had answered Metadata"),
            "{error}"
        );
    }

    #[test]
    fn answers_to_requests_that_are_out_together_come_in_their_order() {
        let (access, address, broker) = serve(|mut broker| {
            broker.greet(FETCH_VERSION);
            let asked = [0, 1].map(|_| broker.hear::<MetadataRequest>().0);
            // Both at once, so that the second has come when the first is read.
            let both = [framed(&asked[0], &of_cluster("one")), framed(&asked[1], &of_cluster("two"))];
            broker.tcp.write_all(&both.concat()).expect("sent");
            let asked = [0, 1].map(|_| broker.hear::<MetadataRequest>().0);
            broker.say(&asked[1], &of_cluster("three"));
        });
        let mut connection = Connection::open(&access, &address).expect("a connection");
        let until = Instant::now() + SOON;
        let request = MetadataRequest::default();
        let send_two = |connection: &mut Connection| {
            for _ in 0..2 {
                connection.send(&request, METADATA_VERSION, until).expect("sent");
            }
        };
        send_two(&mut connection);
        for id in ["one", "two"] {
            let answer = connection.receive::<MetadataRequest>(METADATA_VERSION, until).expect("an answer");
            assert_eq!(answer.cluster_id.as_deref(), Some(id));
        }
        send_two(&mut connection);
        let error = connection.receive::<MetadataRequest>(METADATA_VERSION, until).expect_err("of another");
        assert!(matches!(error, ConnectionError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("it is to request"), "{error}");
        broker.join().expect("the broker is content");
    }

    #[test]
    fn an_answer_that_is_not_due_is_not_waited_for_and_requests_that_nobody_answers_are_few() {
        let (access, address, broker) = serve(|mut broker| {
            broker.greet(FETCH_VERSION);
            broker.tcp.read_to_end(&mut Vec::new()).expect("the end");
        });
        let mut connection = Connection::open(&access, &address).expect("a connection");
        let until = Instant::now() + SOON;
        let error = connection.receive::<MetadataRequest>(METADATA_VERSION, until).expect_err("not asked");
        assert!(error.to_string().contains("none is due"), "{error}");
        for _ in 0..OUT_MAX {
            connection.send(&MetadataRequest::default(), METADATA_VERSION, until).expect("sent");
        }
        let error = connection.send(&MetadataRequest::default(), METADATA_VERSION, until);
        assert!(error.expect_err("too many").to_string().contains("16 requests"));
        let error = connection.receive::<ApiVersionsRequest>(0, until).expect_err("another is due");
        assert!(error.to_string().contains("none is due"), "{error}");
        assert!(Instant::now() < until);
        drop(connection);
        broker.join().expect("the broker is content");
    }

    #[test]
    fn a_large_request_does_not_keep_its_memory() {
        let (access, address, broker) = serve(|mut broker| {
            broker.greet(FETCH_VERSION);
            for _ in 0..2 {
                let (asked, _) = broker.hear::<MetadataRequest>();
                broker.say(&asked, &MetadataResponse::default());
            }
        });
        let mut connection = Connection::open(&access, &address).expect("a connection");
        ask(&mut connection, SOON).expect("an answer");
        assert!(connection.frame.capacity() > 0, "a small one does");
        let name = StrBytes::from_string("n".repeat(30_000));
        let topic = MetadataRequestTopic::default().with_name(Some(TopicName(name)));
        let request = MetadataRequest::default().with_topics(Some(vec![topic; 200]));
        connection.call(&request, METADATA_VERSION, SOON).expect("an answer");
        assert!(connection.frame.capacity() <= FRAME_BYTES_KEPT, "{}", connection.frame.capacity());
        broker.join().expect("the broker is content");
    }

    #[test]
    fn a_connection_is_given_up_at_the_earlier_of_two_limits() {
        let (access, address, broker) = serve(|mut broker| {
            broker.tcp.read_to_end(&mut Vec::new()).expect("the end");
        });
        let began = Instant::now();
        // Time enough to be let in: it is the broker's silence that is given up.
        let error = Connection::open_until(&access, &address, began + Duration::from_secs(1));
        assert!(matches!(error, Err(ConnectionError::Late { .. })), "{error:?}");
        assert!(began.elapsed() < access.connect_timeout / 2, "{:?}", began.elapsed());
        broker.join().expect("the broker is content");
    }

    #[test]
    fn an_answer_that_trickles_in_is_late_as_a_whole() {
        let error = error_of(Duration::from_millis(200), |broker, _| {
            broker.tcp.write_all(&1_000_000u32.to_be_bytes()).expect("sent");
            while broker.tcp.write_all(&[0]).is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        assert!(error.to_string().contains("did not answer Metadata within"), "{error}");
    }

    #[test]
    fn a_call_that_waits_ends_when_another_thread_shuts_the_socket_down() {
        let (access, address, broker) = serve(|mut broker| {
            broker.greet(FETCH_VERSION);
            broker.tcp.read_to_end(&mut Vec::new()).expect("the end");
        });
        let mut connection = Connection::open(&access, &address).expect("a connection");
        let socket = connection.socket().expect("a handle");
        let caller = thread::spawn(move || ask(&mut connection, 6 * SOON));
        socket.shutdown(Shutdown::Both).expect("shut down");
        let began = Instant::now();
        caller.join().expect("no panic").expect_err("no answer");
        assert!(began.elapsed() < SOON);
        broker.join().expect("the broker is content");
    }

    #[test]
    fn who_is_not_there_or_no_broker_of_this_time_is_said() {
        let (access, address, broker) = serve(|mut broker| broker.greet(FETCH_VERSION - 1));
        let error = Connection::open(&access, &address).expect_err("too old").to_string();
        assert!(error.contains("does not speak version 12 of Fetch"), "{error}");
        broker.join().expect("the broker is content");
        let error = Connection::open(&access, &address).expect_err("it is gone").to_string();
        assert!(error.contains("cannot be reached") && error.contains("127.0.0.1"), "{error}");
        let (access, address, broker) = serve(|mut broker| {
            broker.hear::<ApiVersionsRequest>();
            broker.tcp.write_all(&[0, 0x20, 0, 0]).expect("sent");
        });
        let error = Connection::open(&access, &address).expect_err("too much").to_string();
        assert!(error.contains("at most 1048576 are read"), "{error}");
        broker.join().expect("the broker is content");
    }

    /// An alert that ends a handshake, in plain text.
    fn alert(description: u8) -> Vec<u8> {
        let (alert, fatal) = (21, 2);
        vec![alert, 3, 3, 0, 2, fatal, description]
    }

    #[test]
    fn a_broker_that_hangs_up_in_a_handshake_may_be_restarting_and_one_that_says_why_is_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let (close_notify, user_canceled, unknown_ca) = (alert(0), alert(90), alert(48));
        for (said, lasts) in [
            (Vec::new(), false),
            (close_notify, false),
            (user_canceled, false),
            (unknown_ca, true),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), true),
        ] {
            let (mut access, address, broker) = serve(move |mut broker| {
                // What is unread at the end is answered with a reset, ahead of what was said.
                drop(broker.tcp.read(&mut [0; 16 << 10]));
                broker.tcp.write_all(&said).expect("sent");
            });
            access.tls = Some(Client::from_files(Some(&authority.ca), None).expect("a client"));
            let error = Connection::open(&access, &address).expect_err("no handshake");
            assert_eq!(error.lasts(), lasts, "{error}");
            assert_eq!(matches!(error, ConnectionError::HungUp { .. }), !lasts, "{error}");
            broker.join().expect("the broker is content");
        }
        for (host, lasts, why) in [
            // What the client has sent is unread, as by a broker that takes it for a request that is too large.
            ("127.0.0.1", false, "its port does not speak TLS"),
            ("127.1", true, "neither a DNS name nor an IP address"),
        ] {
            let (mut access, address, broker) = serve(drop);
            access.tls = Some(Client::from_files(Some(&authority.ca), None).expect("a client"));
            let address = Address { host: host.to_owned(), ..address };
            let error = Connection::open(&access, &address).expect_err("no handshake");
            assert_eq!(error.lasts(), lasts, "{error}");
            assert!(error.to_string().contains(why), "{error}");
            broker.join().expect("the broker is content");
        }
    }

    #[test]
    fn a_broker_has_transactions_as_the_node_knows_them_or_none() {
        for (newest, is_refused) in [(3, true), (4, false)] {
            let spoken = [(ApiKey::Fetch, FETCH_VERSION), (ApiKey::FindCoordinator, newest)];
            let (access, address, broker) = serve(move |mut broker| broker.greet_with(&spoken));
            let opened = Connection::open(&access, &address).map(drop).map_err(|error| error.to_string());
            assert_eq!(opened.is_err(), is_refused, "{opened:?}");
            if let Err(error) = opened {
                assert!(error.contains("version 4 of FindCoordinator"), "{error}");
            }
            broker.join().expect("the broker is content");
        }
    }

    fn signing_in(speak: impl FnOnce(Broker) + Send + 'static) -> (Access, Address, JoinHandle<()>) {
        let (mut access, address, broker) = serve(speak);
        access.sasl = Some(Sasl::new("PLAIN", Some("user"), Some("pencil")).expect("complete"));
        (access, address, broker)
    }

    #[test]
    fn plain_signs_in_and_knows_how_long_that_holds() {
        let (access, address, broker) = signing_in(|mut broker| {
            broker.greet(FETCH_VERSION);
            let (asked, handshake) = broker.hear::<SaslHandshakeRequest>();
            assert_eq!((asked.request_api_version, handshake.mechanism.as_str()), (1, "PLAIN"));
            broker.say(&asked, &SaslHandshakeResponse::default());
            let (asked, message) = broker.hear::<SaslAuthenticateRequest>();
            assert_eq!((asked.request_api_version, &message.auth_bytes[..]), (2, &b"\0user\0pencil"[..]));
            broker.say(&asked, &SaslAuthenticateResponse::default().with_session_lifetime_ms(100_000));
            let (asked, _) = broker.hear::<MetadataRequest>();
            broker.say(&asked, &of_cluster("one"));
        });
        let mut connection = Connection::open(&access, &address).expect("a connection");
        assert!(!connection.frame.windows(6).any(|bytes| bytes == b"pencil"), "it has been said");
        let left = connection.expires.expect("an end").duration_since(Instant::now());
        assert!((80..=90).contains(&left.as_secs()), "{left:?}");
        assert_eq!(ask(&mut connection, SOON).expect("an answer").cluster_id.as_deref(), Some("one"));
        assert!(!format!("{connection:?}").contains("pencil"));
        broker.join().expect("the broker is content");
    }

    #[test]
    fn whoever_is_not_let_in_is_told_why_and_the_password_is_not_shown() {
        let (access, address, broker) = signing_in(|mut broker| {
            broker.greet(FETCH_VERSION);
            let (asked, _) = broker.hear::<SaslHandshakeRequest>();
            let known = vec![StrBytes::from_static_str("GSSAPI")];
            let code = ResponseError::UnsupportedSaslMechanism.code();
            broker
                .say(&asked, &SaslHandshakeResponse::default().with_error_code(code).with_mechanisms(known));
        });
        let error = Connection::open(&access, &address).expect_err("not known").to_string();
        assert!(error.contains("PLAIN") && error.contains("it knows GSSAPI"), "{error}");
        broker.join().expect("the broker is content");
        let (access, address, broker) = signing_in(|mut broker| {
            broker.greet(FETCH_VERSION);
            let (asked, _) = broker.hear::<SaslHandshakeRequest>();
            broker.say(&asked, &SaslHandshakeResponse::default());
            let (asked, _) = broker.hear::<SaslAuthenticateRequest>();
            let answer = SaslAuthenticateResponse::default()
                .with_error_code(ResponseError::SaslAuthenticationFailed.code())
                .with_error_message(Some(StrBytes::from_static_str("Invalid username\n or password")));
            broker.say(&asked, &answer);
        });
        let error = Connection::open(&access, &address).expect_err("not let in").to_string();
        assert!(error.ends_with("let `user` sign in with PLAIN: Invalid username or password"), "{error}");
        assert!(!error.contains("pencil"), "{error}");
        broker.join().expect("the broker is content");
    }

    #[test]
    fn a_sign_in_that_lasts_is_made_again_before_it_ends() {
        assert_eq!([0, -1, i64::MIN].map(expiry), [None; 3]);
        let before = Instant::now();
        let end = expiry(1_005).expect("an end");
        let left = [before, Instant::now()].map(|now| end.saturating_duration_since(now).as_millis());
        assert!(left[0] >= 904 && left[1] <= 1_005, "{left:?}");
        // However long: it may be beyond what a time can be.
        let _ = expiry(i64::MAX);
    }
}
