//! librdkafka behind safe types. All `unsafe` of the crate's Kafka client is in this directory.
//!
//! | file | what it wraps |
//! |---|---|
//! | `mod.rs` | errors, configuration, the client handle |
//! | `callbacks.rs` | what librdkafka calls back into, and what it leaves there |
//! | `last_error.rs` | of what it leaves, the last error of a client |
//! | `partitions.rs` | topic-partition lists |
//! | `message.rs` | a fetched message |
//! | `consumer.rs`, `producer.rs`, `admin.rs` | what a client is for: reading, writing, questions about the cluster |
//! | `metadata.rs` | what brokers say of their cluster |
//! | `permissions.rs` | admin requests that ask what is permitted |
//! | `topic_settings.rs` | admin requests about a topic's settings |
//!
//! Invariants that every block relies on:
//! - A handle outlives everything made from it. Messages, queues and topic objects are fields of
//!   the type that owns the handle and are released before `rd_kafka_destroy`.
//! - [`Shared`] outlives the handle: callbacks borrow it through the opaque pointer, and
//!   `rd_kafka_destroy` joins every thread that could call one.
//! - No panic crosses into C: each callback runs under `catch_unwind`.
//! - Error codes are read as integers. A broker may answer with a code that the bound enumeration
//!   does not know, and such a value must not become a Rust enum.

pub(super) mod admin;
mod callbacks;
pub(super) mod consumer;
mod last_error;
mod message;
mod metadata;
pub(super) mod partitions;
pub(super) mod permissions;
pub(super) mod producer;
pub(super) mod topic_settings;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka_sys as rd;

pub(super) use callbacks::{Change, Delivered, Failure, Shared};
pub(super) use message::Message;

pub(super) use rd::rd_kafka_resp_err_t as Code;

use crate::config::failures::{CONNECTION_ERROR, TIMEOUT_ERROR, UNAVAILABLE_ERROR};

// The same functions as in the bindings, with the code as the integer that it is in C.
unsafe extern "C" {
    fn rd_kafka_err2str(code: c_int) -> *const c_char;
    fn rd_kafka_err2name(code: c_int) -> *const c_char;
    fn rd_kafka_error_code(error: *const rd::rd_kafka_error_t) -> c_int;
}

/// A refusal by librdkafka or, through it, by a broker. Its text begins with its type, if it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{begin}{text} ({name})", begin = begin(*code), name = name(*code))]
pub(super) struct KafkaError {
    pub code: i32,
    pub text: String,
    /// The handle is beyond repair.
    pub fatal: bool,
}

impl KafkaError {
    pub fn new(code: Code, text: impl Into<String>) -> KafkaError {
        KafkaError { code: code as i32, text: text.into(), fatal: code == Code::RD_KAFKA_RESP_ERR__FATAL }
    }

    pub fn from_code(code: i32) -> KafkaError {
        KafkaError { code, text: describe(code), fatal: code == Code::RD_KAFKA_RESP_ERR__FATAL as i32 }
    }

    pub fn is(&self, code: Code) -> bool {
        self.code == code as i32
    }

    pub fn is_any(&self, codes: &[Code]) -> bool {
        codes.iter().any(|&code| self.is(code))
    }

    /// Whom brokers let in, or whom the client believes: certificates and sign-in.
    pub fn is_of_access(&self) -> bool {
        self.is_any(&[
            Code::RD_KAFKA_RESP_ERR__SSL,
            Code::RD_KAFKA_RESP_ERR__AUTHENTICATION,
            Code::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED,
            Code::RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM,
        ])
    }
}

/// What kind of trouble with the cluster a code tells of; none = the brokers have judged what they were asked.
fn error_type(code: i32) -> Option<&'static str> {
    use Code as C;
    const SORTED: [(&str, &[Code]); 3] = [
        (
            CONNECTION_ERROR,
            &[
                C::RD_KAFKA_RESP_ERR__TRANSPORT,
                C::RD_KAFKA_RESP_ERR__RESOLVE,
                C::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
                C::RD_KAFKA_RESP_ERR__SSL,
                C::RD_KAFKA_RESP_ERR__AUTHENTICATION,
                C::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION,
                C::RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM,
                C::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED,
            ],
        ),
        (
            TIMEOUT_ERROR,
            &[
                C::RD_KAFKA_RESP_ERR__TIMED_OUT,
                C::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT,
                C::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE,
                C::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            ],
        ),
        (
            UNAVAILABLE_ERROR,
            &[
                C::RD_KAFKA_RESP_ERR__WAIT_COORD,
                C::RD_KAFKA_RESP_ERR__QUEUE_FULL,
                C::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
                C::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                C::RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE,
                C::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
                C::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
                C::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
                C::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
                C::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
                C::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
                C::RD_KAFKA_RESP_ERR_NOT_CONTROLLER,
                C::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
                C::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
            ],
        ),
    ];
    let found = SORTED.iter().find(|(_, codes)| codes.iter().any(|&known| known as i32 == code));
    found.map(|(name, _)| *name)
}

/// What an error's text begins with.
fn begin(code: i32) -> String {
    error_type(code).map_or_else(String::new, |name| format!("{name}: "))
}

/// Turns the code of a call into a result.
pub(super) fn check(code: i32) -> Result<(), KafkaError> {
    if code == 0 { Ok(()) } else { Err(KafkaError::from_code(code)) }
}

/// What a code means, in librdkafka's words.
pub(super) fn describe(code: i32) -> String {
    // SAFETY: both functions accept any integer and return a static or thread-local C string.
    unsafe { text(rd_kafka_err2str(code)) }
}

/// A code's symbolic name, such as `UNKNOWN_MEMBER_ID`.
pub(super) fn name(code: i32) -> String {
    // SAFETY: as for `describe`.
    unsafe { text(rd_kafka_err2name(code)) }
}

/// Copies a C string; null becomes empty.
///
/// # Safety
/// `pointer` is null or points to a NUL-terminated string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null; the caller vouches for the rest.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// Takes an error object apart and frees it; null is success.
///
/// # Safety
/// `error` is null or owned by the caller, who gives it away.
unsafe fn consume(error: *mut rd::rd_kafka_error_t) -> Result<(), KafkaError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a live error object; its string is copied before it is destroyed.
    unsafe {
        let taken = KafkaError {
            code: rd_kafka_error_code(error),
            text: text(rd::rd_kafka_error_string(error)),
            fatal: rd::rd_kafka_error_is_fatal(error) != 0,
        };
        rd::rd_kafka_error_destroy(error);
        Err(taken)
    }
}

/// A C string for a name of ours. Names with a NUL byte do not exist in Kafka, so one that has it
/// becomes a name that no broker knows.
fn c_string(value: &str) -> CString {
    CString::new(value).unwrap_or_else(|_| c"\u{fffd}".to_owned())
}

/// Milliseconds for a C call; at least 1, so that a positive duration never means "do not wait".
fn millis(duration: Duration) -> c_int {
    if duration.is_zero() {
        return 0;
    }
    c_int::try_from(duration.as_millis().max(1)).unwrap_or(c_int::MAX)
}

/// Names and values for `rd_kafka_conf_set`, in order; a later value replaces an earlier one.
pub(super) type Settings = Vec<(String, String)>;

/// Which of librdkafka's two clients a handle is, and whether its owner polls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Consumer,
    Producer,
    /// A consumer that joins no group, reads nothing and is not polled: for requests to coordinators.
    Asker,
}

/// An owned `rd_kafka_t`, with what its callbacks write to.
pub(super) struct Client {
    rk: NonNull<rd::rd_kafka_t>,
    shared: Arc<Shared>,
    /// The destructor may not return; see `abandon`.
    abandoned: AtomicBool,
}

// SAFETY: librdkafka's handle is thread-safe by contract; `Shared` is `Send + Sync`.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

impl Client {
    pub fn new(kind: Kind, settings: &[(String, String)], label: &str) -> Result<Client, KafkaError> {
        let conf = Conf::new(settings)?;
        let shared = Arc::new(Shared::new(label));
        let transactional = settings.iter().any(|(name, _)| name == "transactional.id");
        let opaque = Arc::as_ptr(&shared).cast_mut().cast::<c_void>();
        // SAFETY: `conf` is live. The opaque pointer stays valid for as long as callbacks can run:
        // `shared` is a field of the client and dropped after `rd_kafka_destroy` (see `Drop`).
        unsafe {
            rd::rd_kafka_conf_set_opaque(conf.0, opaque);
            rd::rd_kafka_conf_set_log_cb(conf.0, Some(callbacks::on_log));
            match kind {
                Kind::Consumer => {
                    rd::rd_kafka_conf_set_error_cb(conf.0, Some(callbacks::on_error));
                    rd::rd_kafka_conf_set_rebalance_cb(conf.0, Some(callbacks::on_rebalance));
                }
                // Delivery reports and errors reach a thread of librdkafka's own, so that flush,
                // commit and abort need nobody to poll meanwhile; with reports of failures only,
                // that thread sleeps through every success.
                Kind::Producer | Kind::Asker => {
                    rd::rd_kafka_conf_set_events(conf.0, rd::RD_KAFKA_EVENT_DR | rd::RD_KAFKA_EVENT_ERROR);
                    rd::rd_kafka_conf_set_background_event_cb(conf.0, Some(callbacks::on_event));
                }
            }
            if transactional {
                // Fails only for a name that is taken, and nobody else takes names.
                rd::rd_kafka_conf_interceptor_add_on_new(
                    conf.0,
                    c"tidemill".as_ptr(),
                    Some(callbacks::on_new),
                    opaque,
                );
            }
        }
        let oauth = settings
            .iter()
            .any(|(name, value)| name == "sasl.mechanisms" && value.eq_ignore_ascii_case("OAUTHBEARER"));
        if oauth {
            // SAFETY: `conf` is live.
            unsafe { rd::rd_kafka_conf_enable_sasl_queue(conf.0, 1) };
        }
        let mut reason = [0 as c_char; 512];
        let native = match kind {
            Kind::Consumer | Kind::Asker => rd::rd_kafka_type_t::RD_KAFKA_CONSUMER,
            Kind::Producer => rd::rd_kafka_type_t::RD_KAFKA_PRODUCER,
        };
        // SAFETY: `conf` is live and owned by the new handle on success only; the buffer is as
        // long as told and NUL-terminated by the callee.
        let rk = unsafe { rd::rd_kafka_new(native, conf.0, reason.as_mut_ptr(), reason.len()) };
        let Some(rk) = NonNull::new(rk) else {
            // SAFETY: the callee wrote a NUL-terminated reason.
            let reason = unsafe { text(reason.as_ptr()) };
            if transactional {
                // librdkafka 2.12 frees the interceptors when it fails, and again with the configuration
                // that it gives back: better to lose the memory of one configuration.
                std::mem::forget(conf);
            }
            return Err(KafkaError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG, reason));
        };
        std::mem::forget(conf);
        let client = Client { rk, shared, abandoned: AtomicBool::new(false) };
        if kind != Kind::Consumer {
            // SAFETY: the handle is live; the queue references are ours and given back, and
            // forwarding keeps references of its own.
            unsafe {
                let main = rd::rd_kafka_queue_get_main(client.raw());
                // Null for a producer, which has no group.
                let of_group = rd::rd_kafka_queue_get_consumer(client.raw());
                let background = rd::rd_kafka_queue_get_background(client.raw());
                for queue in [main, of_group].into_iter().filter(|queue| !queue.is_null()) {
                    rd::rd_kafka_queue_forward(queue, background);
                    rd::rd_kafka_queue_destroy(queue);
                }
                rd::rd_kafka_queue_destroy(background);
            }
        }
        if oauth {
            // SAFETY: the handle is live.
            unsafe { consume(rd::rd_kafka_sasl_background_callbacks_enable(client.raw()))? };
        }
        Ok(client)
    }

    pub(in crate::kafka) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The same, for threads that may outlive the client.
    pub(in crate::kafka) fn shared_with_threads(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Leaves the destruction of the handle to a thread of its own.
    fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
    }

    /// Gives every partition of a closing consumer back, on a thread of its own: the call may never
    /// return, and uses nothing of the handle once its request has been taken up.
    fn give_all_back(&self) -> Option<JoinHandle<()>> {
        let rk = Handle(self.rk);
        let name = "kafka-unassign".to_owned();
        let spawned = std::thread::Builder::new().name(name).spawn(move || rk.unassign());
        spawned.inspect_err(|error| tracing::warn!(%error, "a consumer cannot give its partitions back")).ok()
    }

    fn raw(&self) -> *mut rd::rd_kafka_t {
        self.rk.as_ptr()
    }

    /// Log start and end of a partition as the handle's isolation level sees the end: the high
    /// watermark with read_uncommitted, the last stable offset with read_committed.
    pub fn watermarks(&self, topic: &str, partition: i32, wait: Duration) -> Result<(i64, i64), KafkaError> {
        let topic = c_string(topic);
        let (mut low, mut high) = (0, 0);
        // SAFETY: the handle is live, the out-pointers are to locals.
        let code = unsafe {
            rd::rd_kafka_query_watermark_offsets(
                self.raw(),
                topic.as_ptr(),
                partition,
                &mut low,
                &mut high,
                millis(wait),
            )
        };
        check(code as i32)?;
        Ok((low, high))
    }

    /// The error after which the handle is useless, if it has come to that.
    pub fn fatal(&self) -> Option<KafkaError> {
        let mut reason = [0 as c_char; 512];
        // SAFETY: the handle is live; the buffer is as long as told.
        let code = unsafe { rd::rd_kafka_fatal_error(self.raw(), reason.as_mut_ptr(), reason.len()) } as i32;
        if code == 0 {
            return None;
        }
        // SAFETY: the callee wrote a NUL-terminated reason.
        Some(KafkaError { code, text: unsafe { text(reason.as_ptr()) }, fatal: true })
    }

    /// Makes the handle useless, as a broker's refusal may.
    #[cfg(test)]
    pub fn fail(&self) {
        // SAFETY: the handle is live; the reason is copied. A handle that has failed already stays as it is.
        unsafe {
            let code = Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
            rd::rd_kafka_test_fatal_error(self.raw(), code, c"as told".as_ptr());
        }
    }

    /// Has the cluster that librdkafka plays for this client (`test.mock.num.brokers`) answer its next request with
    /// that api key with an error.
    #[cfg(test)]
    pub fn answer_next(&self, api: i16, code: Code) {
        let codes = [code];
        // SAFETY: the handle is live, and has such a cluster for as long as it lives; the codes are copied.
        unsafe {
            let cluster = rd::rd_kafka_handle_mock_cluster(self.raw());
            assert!(!cluster.is_null(), "it plays none");
            rd::rd_kafka_mock_push_request_errors_array(cluster, api, codes.len(), codes.as_ptr());
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let (rk, shared) = (Handle(self.rk), Arc::clone(&self.shared));
        if !self.abandoned.load(Ordering::SeqCst) {
            return rk.destroy(shared);
        }
        let name = "kafka-destroy".to_owned();
        let spawned = std::thread::Builder::new().name(name).spawn(move || rk.destroy(shared));
        if let Err(error) = spawned {
            tracing::warn!(%error, "a Kafka client is left as it is");
        }
    }
}

/// A handle on its way to another thread.
struct Handle(NonNull<rd::rd_kafka_t>);

// SAFETY: librdkafka's handle may be used and destroyed on any thread.
unsafe impl Send for Handle {}

impl Handle {
    fn unassign(self) {
        // SAFETY: the closing consumer waits for this call, or is left behind with it. The answer is of
        // no interest: the group ends either way.
        let _ = unsafe { rd::rd_kafka_assign(self.0.as_ptr(), std::ptr::null()) };
    }

    /// Ends the client; `shared` lives until nothing can call back any more.
    fn destroy(self, shared: Arc<Shared>) {
        // A consumer that belongs to a group has been closed. Without this flag the destructor
        // would close for itself and wait for rebalance answers that nobody is left to give.
        // SAFETY: the last use of the handle. Everything made from it is gone by the module's
        // first invariant; callbacks still running are joined, and `shared` lives until after.
        unsafe {
            rd::rd_kafka_destroy_flags(self.0.as_ptr(), rd::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        }
        drop(shared);
    }
}

/// An owned configuration object.
struct Conf(*mut rd::rd_kafka_conf_t);

impl Conf {
    fn new(settings: &[(String, String)]) -> Result<Conf, KafkaError> {
        // SAFETY: no preconditions; never null.
        let conf = Conf(unsafe { rd::rd_kafka_conf_new() });
        for (name, value) in settings {
            conf.set(name, value)?;
        }
        Ok(conf)
    }

    fn set(&self, name: &str, value: &str) -> Result<(), KafkaError> {
        let mut reason = [0 as c_char; 512];
        let (c_name, c_value) = (c_string(name), c_string(value));
        // SAFETY: live object, NUL-terminated strings, a buffer as long as told.
        let result = unsafe {
            rd::rd_kafka_conf_set(
                self.0,
                c_name.as_ptr(),
                c_value.as_ptr(),
                reason.as_mut_ptr(),
                reason.len(),
            )
        };
        if result == rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
            return Ok(());
        }
        // The reason may quote the value, which may be a secret: only the name is told.
        let why = match result {
            rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_UNKNOWN => "is not a setting of this client",
            _ => "has a value that this client does not accept",
        };
        Err(KafkaError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG, format!("kafka setting `{name}` {why}")))
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        // SAFETY: owned; `Client::new` forgets it once a handle has taken it over.
        unsafe { rd::rd_kafka_conf_destroy(self.0) }
    }
}

/// Tries one setting without making a client.
pub(super) fn check_setting(name: &str, value: &str) -> Result<(), KafkaError> {
    Conf::new(&[])?.set(name, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_with_a_cluster_is_told_by_its_type_first_and_a_brokers_judgement_as_it_is() {
        let told = |code: Code| KafkaError::from_code(code as i32).to_string();
        for (code, begins) in [
            (Code::RD_KAFKA_RESP_ERR__TRANSPORT, "InfraConnectionError: Local: "),
            (Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN, "InfraConnectionError: Local: "),
            (Code::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED, "InfraConnectionError: Broker: "),
            (Code::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, "InfraTimeoutError: Local: "),
            (Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, "InfraTimeoutError: Broker: "),
            (Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, "InfraUnavailableError: Broker: "),
            (Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, "InfraUnavailableError: Broker: "),
            (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "Broker: "),
            (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "Broker: "),
        ] {
            let told = told(code);
            assert!(told.starts_with(begins), "{told} does not begin with {begins}");
        }
        assert!(told(Code::RD_KAFKA_RESP_ERR__TRANSPORT).ends_with("(_TRANSPORT)"));
        // Of a broker that is newer than this client.
        assert!(!KafkaError::from_code(12_345).to_string().contains("Infra"));
    }
}
