//! A producer handle: records, transactions, and the failures that delivery reports bring.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka_sys as rd;

use super::callbacks::Notice;
use super::partitions::Partitions;
use super::{Client, Code, Failure, KafkaError, Kind, c_string, check, consume, millis};
use crate::ports::Membership;
use crate::record::headers::RawHeader;

/// A broker that has not answered by then is waited for by `init_transactions`.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// A raw producer. Field order is drop order: topics, then the client.
pub(in crate::kafka) struct Producer {
    topics: Vec<Topic>,
    by_name: Mutex<HashMap<String, usize>>,
    client: Client,
}

struct Topic(*mut rd::rd_kafka_topic_t);

// SAFETY: topic objects are reference-counted and thread-safe by librdkafka's contract.
unsafe impl Send for Topic {}
// SAFETY: as above.
unsafe impl Sync for Topic {}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: an owned reference; the client is still live (field order).
        unsafe { rd::rd_kafka_topic_destroy(self.0) }
    }
}

/// One record on its way out; bytes are copied by the call.
#[derive(Debug, Clone, Copy)]
pub(in crate::kafka) struct Outgoing<'a> {
    /// -1 = by the key's murmur2 hash; keyless records go anywhere.
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Milliseconds since the epoch; negative = now.
    pub timestamp: i64,
    /// Asks for the outcome, through [`Producer::expect_ticket`]; 0 = failures only.
    pub ticket: u64,
}

impl Producer {
    pub fn new(settings: &[(String, String)], label: &str) -> Result<Producer, KafkaError> {
        let client = Client::new(Kind::Producer, settings, label)?;
        Ok(Producer { topics: Vec::new(), by_name: Mutex::default(), client })
    }

    /// Makes a topic known; the answer is its index in the calls below.
    pub fn topic(&mut self, name: &str) -> Result<usize, KafkaError> {
        let by_name = self.by_name.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(&index) = by_name.get(name) {
            return Ok(index);
        }
        let c_name = c_string(name);
        // SAFETY: live handle; a null configuration stands for the client's defaults.
        let topic =
            unsafe { rd::rd_kafka_topic_new(self.client.raw(), c_name.as_ptr(), std::ptr::null_mut()) };
        if topic.is_null() {
            return Err(KafkaError::new(
                Code::RD_KAFKA_RESP_ERR__INVALID_ARG,
                format!("`{name}` cannot be a topic name"),
            ));
        }
        self.topics.push(Topic(topic));
        by_name.insert(name.to_owned(), self.topics.len() - 1);
        Ok(self.topics.len() - 1)
    }

    /// Queues one record, with its timestamp and headers.
    pub fn produce(
        &self,
        topic: usize,
        record: Outgoing<'_>,
        headers: &[RawHeader<'_>],
    ) -> Result<(), KafkaError> {
        let mut arguments = Arguments::new(&self.topics[topic], &record);
        let list = Headers::new(headers);
        if let Some(list) = &list {
            arguments.push(rd::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS).u.headers = list.0;
        }
        // SAFETY: live handle and topic; the argument array is initialised up to its length, and
        // keys and values are copied (MSG_F_COPY) before the call returns.
        let result = unsafe {
            consume(rd::rd_kafka_produceva(self.client.raw(), arguments.items.as_ptr().cast(), arguments.len))
        };
        if result.is_ok() {
            // Accepted: the headers now belong to the message.
            std::mem::forget(list);
        }
        result
    }

    /// Queues rows of one partition in order, without timestamps (now) and headers, which is
    /// cheaper than one call each. Answers how many of the first rows were taken.
    pub fn produce_batch<'a>(
        &self,
        topic: usize,
        partition: i32,
        rows: impl Iterator<Item = (Option<&'a [u8]>, Option<&'a [u8]>)>,
    ) -> (usize, Result<(), KafkaError>) {
        let mut messages: Vec<rd::rd_kafka_message_t> =
            rows.map(|(key, value)| message(partition, key, value)).collect();
        let count = i32::try_from(messages.len()).unwrap_or(i32::MAX);
        // SAFETY: live topic; `count` initialised messages whose bytes the caller keeps alive and
        // the call copies. With a single partition rows are taken in order and, once the queue is
        // full, refused to the end, so the taken ones are a prefix unless a row alone is refused.
        unsafe {
            rd::rd_kafka_produce_batch(
                self.topics[topic].0,
                partition,
                rd::RD_KAFKA_MSG_F_COPY,
                messages.as_mut_ptr(),
                count,
            );
        }
        for (row, message) in messages.iter().enumerate() {
            // SAFETY: a live element of the array.
            let code = unsafe { super::message::code(message) };
            if code != 0 {
                return (row, Err(KafkaError::from_code(code)));
            }
        }
        (messages.len(), Ok(()))
    }

    /// Waits until every queued record has its outcome. Failures are read with [`Self::failures`].
    pub fn flush(&self, wait: Duration) -> Result<(), KafkaError> {
        // SAFETY: live handle.
        check(unsafe { rd::rd_kafka_flush(self.client.raw(), millis(wait)) } as i32)
    }

    /// Records that failed since the last call.
    pub fn failures(&self) -> Vec<Failure> {
        self.client.shared.failures()
    }

    /// True once a request of a transaction was left without an answer. It may still
    /// arrive.
    pub fn has_unanswered(&self) -> bool {
        self.client.shared.has_unanswered()
    }

    /// From now on keeps where records without a ticket went; their reports must be asked for.
    pub fn follow_positions(&self) {
        self.client.shared.follow_positions();
    }

    /// Next offset after the last acknowledged record of each partition; of one topic.
    pub fn positions(&self) -> BTreeMap<i32, u64> {
        self.client.shared.positions()
    }

    /// Asks to be told once what became of the record with this ticket, which is produced next.
    pub fn expect_ticket(&self, ticket: u64, notice: Notice) {
        self.client.shared.expect_ticket(ticket, notice);
    }

    /// Nobody waits for it any more, or it was not produced.
    pub fn forget_ticket(&self, ticket: u64) {
        self.client.shared.forget_ticket(ticket);
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Fences the producer's predecessors of the same transactional id. Without a connection librdkafka asks for
    /// the coordinator, finds nobody to ask, and looks again after a fixed 500 ms; so there is one before it asks.
    pub fn init_transactions(&self, wait: Duration) -> Result<(), KafkaError> {
        self.client.settle(CONNECT_WAIT);
        // SAFETY: live handle; the error object is ours.
        unsafe { consume(rd::rd_kafka_init_transactions(self.client.raw(), millis(wait))) }
    }

    pub fn begin_transaction(&self) -> Result<(), KafkaError> {
        // SAFETY: live handle; the error object is ours.
        unsafe { consume(rd::rd_kafka_begin_transaction(self.client.raw())) }
    }

    pub fn send_offsets(
        &self,
        offsets: &Partitions,
        membership: &Membership,
        wait: Duration,
    ) -> Result<(), KafkaError> {
        let group = c_string(&membership.group);
        let member = c_string(&membership.member_id);
        let instance = membership.instance_id.as_deref().map(c_string);
        // SAFETY: live handle and list; the metadata object is made, used and destroyed here and
        // copies its strings.
        unsafe {
            let metadata = rd::rd_kafka_consumer_group_metadata_new_with_genid(
                group.as_ptr(),
                membership.generation,
                member.as_ptr(),
                instance.as_ref().map_or(std::ptr::null(), |id| id.as_ptr()),
            );
            let result = consume(rd::rd_kafka_send_offsets_to_transaction(
                self.client.raw(),
                offsets.raw(),
                metadata,
                millis(wait),
            ));
            rd::rd_kafka_consumer_group_metadata_destroy(metadata);
            result
        }
    }

    pub fn commit_transaction(&self, wait: Duration) -> Result<(), KafkaError> {
        // SAFETY: live handle; the error object is ours.
        unsafe { consume(rd::rd_kafka_commit_transaction(self.client.raw(), millis(wait))) }
    }

    pub fn abort_transaction(&self, wait: Duration) -> Result<(), KafkaError> {
        // SAFETY: live handle; the error object is ours.
        unsafe { consume(rd::rd_kafka_abort_transaction(self.client.raw(), millis(wait))) }
    }
}

/// The argument array of one `produceva` call, on the stack.
struct Arguments {
    items: [std::mem::MaybeUninit<rd::rd_kafka_vu_t>; 8],
    len: usize,
}

impl Arguments {
    #[inline]
    fn new(topic: &Topic, record: &Outgoing<'_>) -> Arguments {
        use rd::rd_kafka_vtype_t as V;
        let mut arguments = Arguments { items: [const { std::mem::MaybeUninit::uninit() }; 8], len: 0 };
        arguments.push(V::RD_KAFKA_VTYPE_RKT).u.rkt = topic.0;
        arguments.push(V::RD_KAFKA_VTYPE_PARTITION).u.i32_ = record.partition;
        arguments.push(V::RD_KAFKA_VTYPE_MSGFLAGS).u.i = rd::RD_KAFKA_MSG_F_COPY;
        let (ptr, size) = parts(record.value);
        arguments.push(V::RD_KAFKA_VTYPE_VALUE).u.mem =
            rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr, size };
        let (ptr, size) = parts(record.key);
        arguments.push(V::RD_KAFKA_VTYPE_KEY).u.mem =
            rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr, size };
        if record.timestamp >= 0 {
            arguments.push(V::RD_KAFKA_VTYPE_TIMESTAMP).u.i64_ = record.timestamp;
        }
        if record.ticket != 0 {
            arguments.push(V::RD_KAFKA_VTYPE_OPAQUE).u.ptr = record.ticket as *mut c_void;
        }
        arguments
    }

    /// Appends an argument of the given type and lends it, to have the matching union field set.
    #[inline]
    fn push(&mut self, vtype: rd::rd_kafka_vtype_t) -> &mut rd::rd_kafka_vu_t {
        let item = &mut self.items[self.len];
        self.len += 1;
        item.write(rd::rd_kafka_vu_t {
            vtype,
            u: rd::rd_kafka_vu_s__bindgen_ty_1 { ptr: std::ptr::null_mut() },
        })
    }
}

/// An owned header list, until a message takes it over.
struct Headers(*mut rd::rd_kafka_headers_t);

impl Headers {
    fn new(headers: &[RawHeader<'_>]) -> Option<Headers> {
        if headers.is_empty() {
            return None;
        }
        // SAFETY: the list is ours; names and values are given with their sizes and copied. A null
        // value is a null pointer with size 0.
        unsafe {
            let list = Headers(rd::rd_kafka_headers_new(headers.len()));
            for (name, value) in headers {
                let (pointer, size) = parts(*value);
                rd::rd_kafka_header_add(
                    list.0,
                    name.as_ptr().cast(),
                    name.len() as isize,
                    pointer,
                    size as isize,
                );
            }
            Some(list)
        }
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // SAFETY: owned; forgotten once a message has taken the list over.
        unsafe { rd::rd_kafka_headers_destroy(self.0) }
    }
}

/// Pointer and size of a value; null for none. Empty is a non-null pointer, which is how librdkafka
/// tells it from null.
#[inline]
fn parts(value: Option<&[u8]>) -> (*mut c_void, usize) {
    value.map_or((std::ptr::null_mut(), 0), |value| (value.as_ptr().cast_mut().cast(), value.len()))
}

fn message(partition: i32, key: Option<&[u8]>, value: Option<&[u8]>) -> rd::rd_kafka_message_t {
    let (key, key_len) = parts(key);
    let (payload, len) = parts(value);
    rd::rd_kafka_message_t {
        err: Code::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: std::ptr::null_mut(),
        partition,
        payload,
        len,
        key,
        key_len,
        offset: 0,
        _private: std::ptr::null_mut(),
    }
}
