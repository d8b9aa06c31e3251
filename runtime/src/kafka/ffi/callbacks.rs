//! What librdkafka calls, and where the calls leave what they saw.
//!
//! Callbacks run on librdkafka's threads (log, event, wake) or inside a poll of ours (error,
//! rebalance). They copy what they are shown into [`Shared`] and return; decisions are made by the
//! thread that owns the client.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rdkafka_sys as rd;

use super::last_error::LastError;
use super::partitions::Partitions;
use super::{Code, KafkaError, text};
use crate::ports::Membership;

/// What the group asked of this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Change {
    Assign,
    Revoke,
    /// A revocation of what the group has already given to others.
    Lost,
}

/// One rebalance event, with the group metadata as it was inside the callback.
#[derive(Debug)]
pub(in crate::kafka) struct Rebalance {
    pub change: Change,
    pub partitions: Vec<(String, i32)>,
    pub membership: Membership,
}

/// A record that was not delivered.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Failure {
    pub topic: String,
    pub error: KafkaError,
}

/// What became of a record that was produced with a ticket.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Delivered {
    pub result: Result<i64, KafkaError>,
    /// The broker may have it although the result is an error.
    pub possibly_persisted: bool,
}

/// What is called once with the outcome of a record, on librdkafka's background thread: it must not wait. It is
/// dropped without a call if the client ends before.
pub(in crate::kafka) type Notice = Box<dyn FnOnce(Delivered) + Send>;

/// Failures kept for one transaction. One says what went wrong; the rest only cost memory.
const FAILURES_MAX: usize = 64;

/// Everything callbacks write and the owner of the client reads.
pub(in crate::kafka) struct Shared {
    label: String,
    /// True once the consumer's queue may hold something.
    ready: Mutex<bool>,
    ready_changed: Condvar,
    rebalances: Mutex<Vec<Rebalance>>,
    /// Set while the consumer leaves: rebalance callbacks then answer for themselves.
    answers: AtomicBool,
    failures: Mutex<Vec<Failure>>,
    /// Who wants to hear what became of a record, by its ticket.
    tickets: Mutex<HashMap<u64, Notice>>,
    /// Next offset by partition of what was delivered; kept only for whoever asked for it.
    positions: Mutex<Option<BTreeMap<i32, u64>>>,
    /// A request of a transaction went out, or may have, and no answer came back.
    unanswered: AtomicBool,
    last_error: Mutex<Option<LastError>>,
    panicked: AtomicBool,
}

/// The data under every lock here is valid after any panic, so poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(label: &str) -> Shared {
        Shared {
            label: label.to_owned(),
            ready: Mutex::new(true),
            ready_changed: Condvar::new(),
            rebalances: Mutex::default(),
            answers: AtomicBool::new(false),
            failures: Mutex::default(),
            tickets: Mutex::default(),
            positions: Mutex::default(),
            unanswered: AtomicBool::new(false),
            last_error: Mutex::default(),
            panicked: AtomicBool::new(false),
        }
    }

    /// Waits until the queue may hold something, and forgets that it was told so. The caller must
    /// then empty the queue, because only an empty one tells again.
    pub fn wait_ready(&self, deadline: Instant) -> bool {
        let mut ready = lock(&self.ready);
        while !*ready {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            ready = self.ready_changed.wait_timeout(ready, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *ready = false;
        true
    }

    pub fn set_ready(&self) {
        *lock(&self.ready) = true;
        self.ready_changed.notify_one();
    }

    pub fn rebalances(&self) -> Vec<Rebalance> {
        std::mem::take(&mut *lock(&self.rebalances))
    }

    pub fn has_rebalances(&self) -> bool {
        !lock(&self.rebalances).is_empty()
    }

    /// Whether rebalances are answered where they arrive, because nobody cares any more. Not once the
    /// consumer closes: its group may end first, and then no answer comes back.
    pub fn answer_in_callback(&self, answers: bool) {
        self.answers.store(answers, Ordering::SeqCst);
    }

    pub fn failures(&self) -> Vec<Failure> {
        std::mem::take(&mut *lock(&self.failures))
    }

    pub fn expect_ticket(&self, ticket: u64, notice: Notice) {
        lock(&self.tickets).insert(ticket, notice);
    }

    pub fn forget_ticket(&self, ticket: u64) {
        lock(&self.tickets).remove(&ticket);
    }

    pub fn follow_positions(&self) {
        *lock(&self.positions) = Some(BTreeMap::new());
    }

    pub fn positions(&self) -> BTreeMap<i32, u64> {
        lock(&self.positions).clone().unwrap_or_default()
    }

    fn note_position(&self, partition: i32, offset: i64) {
        if let Some(positions) = lock(&self.positions).as_mut()
            && let Ok(offset) = u64::try_from(offset)
        {
            let next = positions.entry(partition).or_default();
            *next = (offset + 1).max(*next);
        }
    }

    /// True once a request of a transaction was left without an answer. librdkafka sends it again by
    /// itself, and the first one may still arrive.
    pub fn has_unanswered(&self) -> bool {
        self.unanswered.load(Ordering::SeqCst)
    }

    pub fn last_error(&self) -> Option<KafkaError> {
        lock(&self.last_error).as_ref().map(|last| last.error.clone())
    }

    /// The last error, if it is no older.
    pub fn error_since(&self, since: Instant) -> Option<KafkaError> {
        lock(&self.last_error).as_ref().filter(|last| last.is_since(since)).map(|last| last.error.clone())
    }

    /// Why a broker does not let this client in, if nothing else has been told for a while.
    pub fn shut_out(&self) -> Option<KafkaError> {
        let last = lock(&self.last_error);
        last.as_ref().filter(|last| last.shuts_out(Instant::now())).map(|last| last.error.clone())
    }

    /// True when a callback panicked: what it should have recorded is missing.
    pub fn panicked(&self) -> bool {
        self.panicked.load(Ordering::SeqCst)
    }

    fn note_error(&self, error: KafkaError) {
        tracing::debug!(client = %self.label, %error, "kafka client error");
        let mut last = lock(&self.last_error);
        // "All brokers are down" follows the error that says why.
        if last.is_none() || !error.is(Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) {
            *last = Some(LastError::after(last.as_ref(), error, Instant::now()));
        }
    }

    fn note_failure(&self, topic: String, error: KafkaError) {
        let mut failures = lock(&self.failures);
        if failures.len() < FAILURES_MAX {
            failures.push(Failure { topic, error });
        }
    }

    fn note_delivery(&self, ticket: u64, delivered: Delivered) {
        // Called without the lock: a notice may be anything.
        let notice = lock(&self.tickets).remove(&ticket);
        if let Some(notice) = notice {
            notice(delivered);
        }
    }
}

/// Runs the body of a callback so that no panic leaves it.
///
/// # Safety
/// `opaque` is what `Client::new` set: a [`Shared`] that outlives the client.
unsafe fn guarded(opaque: *mut c_void, body: impl FnOnce(&Shared)) {
    if opaque.is_null() {
        return;
    }
    // SAFETY: by the function's contract.
    let shared = unsafe { &*opaque.cast::<Shared>() };
    if catch_unwind(AssertUnwindSafe(|| body(shared))).is_err() {
        shared.panicked.store(true, Ordering::SeqCst);
        shared.set_ready();
    }
}

/// Api keys of AddPartitionsToTxn, AddOffsetsToTxn, EndTxn and TxnOffsetCommit.
const TRANSACTIONAL: [i16; 4] = [24, 25, 26, 28];

/// A producer is being made: asks to be told of its requests' ends.
pub(super) unsafe extern "C" fn on_new(
    rk: *mut rd::rd_kafka_t,
    _: *const rd::rd_kafka_conf_t,
    opaque: *mut c_void,
    _: *mut c_char,
    _: usize,
) -> Code {
    // SAFETY: the handle is live inside this call, and the opaque pointer is the client's own.
    unsafe {
        let name = c"tidemill".as_ptr();
        rd::rd_kafka_interceptor_add_on_response_received(rk, name, Some(on_response), opaque)
    }
}

/// A request has ended, by an answer or without one (`error`), on one of librdkafka's threads.
unsafe extern "C" fn on_response(
    _: *mut rd::rd_kafka_t,
    _: c_int,
    _: *const c_char,
    _: i32,
    api: i16,
    _: i16,
    _: i32,
    _: usize,
    _: i64,
    error: Code,
    opaque: *mut c_void,
) -> Code {
    if error != Code::RD_KAFKA_RESP_ERR_NO_ERROR && TRANSACTIONAL.contains(&api) {
        // SAFETY: registered with the client's own opaque pointer.
        unsafe { guarded(opaque, |shared| shared.unanswered.store(true, Ordering::SeqCst)) }
    }
    Code::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// The consumer's queue went from empty to non-empty.
pub(super) unsafe extern "C" fn on_ready(_: *mut rd::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: registered with the client's own opaque pointer.
    unsafe { guarded(opaque, Shared::set_ready) }
}

pub(super) unsafe extern "C" fn on_log(
    rk: *const rd::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    message: *const c_char,
) {
    // SAFETY: librdkafka hands out live, NUL-terminated strings; `rk` may be null while a client
    // is being made, and has the opaque of its configuration otherwise.
    unsafe {
        let opaque = if rk.is_null() { std::ptr::null_mut() } else { rd::rd_kafka_opaque(rk) };
        guarded(opaque, |shared| {
            let (facility, message, client) = (text(facility), text(message), &shared.label);
            // syslog levels: 0-3 errors, 4 warning, 5-6 information.
            match level {
                ..=3 => tracing::warn!(target: "librdkafka", %client, %facility, "{message}"),
                4 => tracing::info!(target: "librdkafka", %client, %facility, "{message}"),
                _ => tracing::debug!(target: "librdkafka", %client, %facility, "{message}"),
            }
        });
    }
}

pub(super) unsafe extern "C" fn on_error(
    _: *mut rd::rd_kafka_t,
    code: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: the reason is a live C string for the length of the call.
    unsafe {
        guarded(opaque, |shared| {
            shared.note_error(KafkaError {
                code,
                text: text(reason),
                fatal: code == Code::RD_KAFKA_RESP_ERR__FATAL as i32,
            });
        });
    }
}

/// A producer's delivery report or error, on librdkafka's background thread.
pub(super) unsafe extern "C" fn on_event(
    _: *mut rd::rd_kafka_t,
    event: *mut rd::rd_kafka_event_t,
    opaque: *mut c_void,
) {
    // SAFETY: the event is ours to read and must be destroyed by us; messages in it live as long
    // as it does, and each is returned once.
    unsafe {
        guarded(opaque, |shared| {
            if rd::rd_kafka_event_type(event) == rd::RD_KAFKA_EVENT_ERROR {
                shared.note_error(KafkaError {
                    code: super::admin::event_code(event),
                    text: text(rd::rd_kafka_event_error_string(event)),
                    fatal: rd::rd_kafka_event_error_is_fatal(event) != 0,
                });
                return;
            }
            loop {
                let message = rd::rd_kafka_event_message_next(event);
                if message.is_null() {
                    break;
                }
                let code = super::message::code(message);
                let result = if code == 0 {
                    shared.note_position((*message).partition, (*message).offset);
                    Ok((*message).offset)
                } else {
                    // The broker's own words for a refused record, where it gave some.
                    let reason = text(rd::rd_kafka_message_produce_errstr(message));
                    let error = KafkaError::from_code(code);
                    Err(if reason.is_empty() { error } else { KafkaError { text: reason, ..error } })
                };
                let ticket = (*message)._private as u64;
                if ticket != 0 {
                    let status = rd::rd_kafka_message_status(message);
                    let possibly_persisted =
                        status != rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED;
                    shared.note_delivery(ticket, Delivered { result, possibly_persisted });
                } else if let Err(error) = result {
                    shared.note_failure(text(rd::rd_kafka_topic_name((*message).rkt)), error);
                }
            }
        });
        rd::rd_kafka_event_destroy(event);
    }
}

/// The group assigns or revokes. Nothing is answered here: librdkafka stays in its "waiting for
/// the (un)assign call" state until the worker, having finished or dropped its work, makes the call.
pub(super) unsafe extern "C" fn on_rebalance(
    rk: *mut rd::rd_kafka_t,
    err: rd::rd_kafka_resp_err_t,
    list: *mut rd::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: `rk` is the live client, `list` lives for the length of the call, and this is the
    // thread that polls, so the metadata and assignment calls are allowed.
    unsafe {
        guarded(opaque, |shared| {
            let assign = err == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
            if shared.answers.load(Ordering::SeqCst) {
                answer(rk, assign, list);
                return;
            }
            let change = match assign {
                true => Change::Assign,
                false if rd::rd_kafka_assignment_lost(rk) != 0 => Change::Lost,
                false => Change::Revoke,
            };
            let rebalance = Rebalance {
                change,
                partitions: Partitions::borrowed_names(list),
                membership: membership(rk),
            };
            lock(&shared.rebalances).push(rebalance);
        });
    }
}

/// What a rebalance wants to hear when nobody cares any more.
///
/// # Safety
/// Called on the polling thread with a live handle and list.
unsafe fn answer(rk: *mut rd::rd_kafka_t, assign: bool, list: *mut rd::rd_kafka_topic_partition_list_t) {
    // SAFETY: by the function's contract; errors are dropped because the client is being closed.
    unsafe {
        let cooperative = text(rd::rd_kafka_rebalance_protocol(rk)) == "COOPERATIVE";
        let _ = match (cooperative, assign) {
            (true, true) => super::consume(rd::rd_kafka_incremental_assign(rk, list)),
            (true, false) => super::consume(rd::rd_kafka_incremental_unassign(rk, list)),
            (false, true) => super::check(rd::rd_kafka_assign(rk, list) as i32),
            (false, false) => super::check(rd::rd_kafka_assign(rk, std::ptr::null()) as i32),
        };
    }
}

/// The consumer's group metadata as of now.
///
/// # Safety
/// `rk` is a live consumer.
pub(super) unsafe fn membership(rk: *mut rd::rd_kafka_t) -> Membership {
    // SAFETY: the metadata object is ours until destroyed; its strings are copied before that.
    unsafe {
        let metadata = rd::rd_kafka_consumer_group_metadata(rk);
        if metadata.is_null() {
            return Membership { generation: -1, ..Membership::default() };
        }
        let instance = rd::rd_kafka_consumer_group_metadata_group_instance_id(metadata);
        let membership = Membership {
            group: text(rd::rd_kafka_consumer_group_metadata_group_id(metadata)),
            generation: rd::rd_kafka_consumer_group_metadata_generation_id(metadata),
            member_id: text(rd::rd_kafka_consumer_group_metadata_member_id(metadata)),
            instance_id: (!instance.is_null()).then(|| text(instance)).filter(|id| !id.is_empty()),
        };
        rd::rd_kafka_consumer_group_metadata_destroy(metadata);
        membership
    }
}
