//! The librdkafka calls of the native loop and of what fills topics: a consumer read in batches, a
//! producer written record by record with timestamps. Not a general client: one topic is read, its
//! partitions assigned by hand, and every error is fatal to the run.
//!
//! librdkafka's handles are thread-safe; here each is owned by one value and used from one thread.

use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use anyhow::{Context, Result, bail, ensure};
use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_vtype_t as vtype;

/// Longest wait for any answer of the broker.
pub const ANSWER_MS_MAX: c_int = 30_000;
/// The partitioner decides (`RD_KAFKA_PARTITION_UA`).
const BY_KEY: i32 = -1;
const NO_ERROR: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// A record, borrowed from the batch that owns it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// A record to write, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// Reads partitions 0 to `partitions` of one topic from their beginning.
pub struct Consumer {
    handle: NonNull<sys::rd_kafka_t>,
    queue: NonNull<sys::rd_kafka_queue_t>,
    topic: CString,
    /// Reused by every batch.
    slots: Vec<*mut sys::rd_kafka_message_t>,
}

impl Consumer {
    pub fn new(settings: &[(&str, &str)], topic: &str, partitions: i32, batch: usize) -> Result<Consumer> {
        let handle = client(sys::rd_kafka_type_t::RD_KAFKA_CONSUMER, settings)?;
        let topic = CString::new(topic)?;
        let start = Offsets::new(&topic, &vec![0; usize::try_from(partitions)?])?;
        // SAFETY: the handle is live, and the list is copied by the call.
        let queue = unsafe {
            checked(sys::rd_kafka_poll_set_consumer(handle.as_ptr()))?;
            checked(sys::rd_kafka_assign(handle.as_ptr(), start.list.as_ptr()))?;
            sys::rd_kafka_queue_get_consumer(handle.as_ptr())
        };
        let queue = NonNull::new(queue).context("the consumer has no queue")?;
        Ok(Consumer { handle, queue, topic, slots: vec![ptr::null_mut(); batch] })
    }

    /// Waits up to `wait_ms` for a batch. The borrow ends before the next call.
    pub fn take(&mut self, wait_ms: c_int) -> Result<Batch<'_>> {
        // SAFETY: the queue is live and `slots` has the length that is passed.
        let taken = unsafe {
            sys::rd_kafka_consume_batch_queue(
                self.queue.as_ptr(),
                wait_ms,
                self.slots.as_mut_ptr(),
                self.slots.len(),
            )
        };
        let taken = usize::try_from(taken).context("the consumer failed")?;
        Ok(Batch { messages: &mut self.slots[..taken] })
    }

    /// Commits through the group, outside any transaction.
    pub fn commit(&self, next: &[i64]) -> Result<()> {
        let offsets = Offsets::new(&self.topic, next)?;
        // SAFETY: both are live for the duration of this synchronous call.
        checked(unsafe { sys::rd_kafka_commit(self.handle.as_ptr(), offsets.list.as_ptr(), 0) })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // SAFETY: the queue reference is given back before its client is destroyed; no batch can
        // be alive because each borrows this value.
        unsafe {
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
            sys::rd_kafka_consumer_close(self.handle.as_ptr());
            sys::rd_kafka_destroy(self.handle.as_ptr());
        }
    }
}

/// Messages owned by this value and given back to librdkafka when it is dropped.
pub struct Batch<'a> {
    messages: &'a mut [*mut sys::rd_kafka_message_t],
}

impl Batch<'_> {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// The records in queue order; an error event ends the run.
    pub fn records(&self) -> impl Iterator<Item = Result<Record<'_>>> {
        self.messages.iter().map(|&message| {
            // SAFETY: the call filled this slot with a message that lives until this batch is dropped.
            let message_ref = unsafe { &*message };
            checked(message_ref.err)?;
            // SAFETY: pointer and length describe memory owned by the message; null means absent.
            let bytes = |pointer: *mut c_void, length: usize| unsafe {
                (!pointer.is_null()).then(|| std::slice::from_raw_parts(pointer.cast::<u8>(), length))
            };
            Ok(Record {
                partition: message_ref.partition,
                offset: message_ref.offset,
                // SAFETY: the message is live; a null type pointer is allowed.
                timestamp: unsafe { sys::rd_kafka_message_timestamp(message, ptr::null_mut()) },
                key: bytes(message_ref.key, message_ref.key_len),
                value: bytes(message_ref.payload, message_ref.len),
            })
        })
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for message in &*self.messages {
            // SAFETY: each message is destroyed exactly once, here.
            unsafe { sys::rd_kafka_message_destroy(*message) };
        }
    }
}

/// Writes records to topics, by the key's hash.
pub struct Producer {
    handle: NonNull<sys::rd_kafka_t>,
}

// SAFETY: librdkafka's handles may be used from any thread.
unsafe impl Send for Producer {}

/// A topic of a producer.
pub struct Topic<'a> {
    topic: NonNull<sys::rd_kafka_topic_t>,
    _producer: PhantomData<&'a Producer>,
}

impl Drop for Topic<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `Producer::topic`, given back once, before its client is destroyed.
        unsafe { sys::rd_kafka_topic_destroy(self.topic.as_ptr()) };
    }
}

impl Producer {
    pub fn new(settings: &[(&str, &str)]) -> Result<Producer> {
        let handle = client(sys::rd_kafka_type_t::RD_KAFKA_PRODUCER, settings)?;
        Ok(Producer { handle })
    }

    pub fn topic(&self, name: &str) -> Result<Topic<'_>> {
        let name = CString::new(name)?;
        // SAFETY: the handle is live; a null configuration means the client's own.
        let topic = unsafe { sys::rd_kafka_topic_new(self.handle.as_ptr(), name.as_ptr(), ptr::null_mut()) };
        let topic = NonNull::new(topic).context("the topic handle was refused")?;
        Ok(Topic { topic, _producer: PhantomData })
    }

    /// Queues a copy of the record; waits while the queue is full.
    pub fn send(&self, topic: &Topic<'_>, record: &Message<'_>) -> Result<()> {
        let view =
            |bytes: Option<&[u8]>| bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
        let (key, key_size) = view(record.key);
        let (value, value_size) = view(record.value);
        loop {
            // SAFETY: a varargs call in the order that librdkafka documents, ended by VTYPE_END;
            // key and value are copied (F_COPY) before it returns.
            let error = unsafe {
                sys::rd_kafka_producev(
                    self.handle.as_ptr(),
                    vtype::RD_KAFKA_VTYPE_RKT as c_int,
                    topic.topic.as_ptr(),
                    vtype::RD_KAFKA_VTYPE_MSGFLAGS as c_int,
                    sys::RD_KAFKA_MSG_F_COPY,
                    vtype::RD_KAFKA_VTYPE_KEY as c_int,
                    key.cast::<c_void>(),
                    key_size,
                    vtype::RD_KAFKA_VTYPE_VALUE as c_int,
                    value.cast::<c_void>(),
                    value_size,
                    vtype::RD_KAFKA_VTYPE_TIMESTAMP as c_int,
                    record.timestamp,
                    vtype::RD_KAFKA_VTYPE_END as c_int,
                )
            };
            if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                return checked(error);
            }
            self.poll(1);
        }
    }

    /// Queues copies of the records by one call; waits while the queue is full. That call takes no timestamps, so that
    /// the records are of now, whatever they say.
    pub fn send_batch<'a>(
        &self,
        topic: &Topic<'_>,
        records: impl Iterator<Item = Message<'a>>,
    ) -> Result<()> {
        let mut messages: Vec<sys::rd_kafka_message_t> = records.map(untimed).collect();
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            let count = c_int::try_from(rest.len())?;
            // SAFETY: the topic is live, and so many messages are; their bytes, which the caller keeps alive, are
            // copied (F_COPY) before it returns.
            unsafe {
                sys::rd_kafka_produce_batch(
                    topic.topic.as_ptr(),
                    BY_KEY,
                    sys::RD_KAFKA_MSG_F_COPY,
                    rest.as_mut_ptr(),
                    count,
                )
            };
            // Once the queue is full, all that follow are refused for that.
            let Some(refused) = rest.iter().position(|message| message.err != NO_ERROR) else { break };
            if rest[refused].err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                return checked(rest[refused].err);
            }
            rest = &mut rest[refused..];
            self.poll(1);
        }
        Ok(())
    }

    /// Serves the client's callbacks.
    pub fn poll(&self, wait_ms: c_int) {
        // SAFETY: the handle is live.
        unsafe { sys::rd_kafka_poll(self.handle.as_ptr(), wait_ms) };
    }

    /// Waits until everything queued is acknowledged.
    pub fn flush(&self) -> Result<()> {
        // SAFETY: the handle is live.
        checked(unsafe { sys::rd_kafka_flush(self.handle.as_ptr(), ANSWER_MS_MAX) })
    }

    pub fn init_transactions(&self) -> Result<()> {
        // SAFETY: the handle is live.
        transacted(unsafe { sys::rd_kafka_init_transactions(self.handle.as_ptr(), ANSWER_MS_MAX) })
    }

    pub fn begin(&self) -> Result<()> {
        // SAFETY: the handle is live.
        transacted(unsafe { sys::rd_kafka_begin_transaction(self.handle.as_ptr()) })
    }

    /// Adds the consumer's positions to the transaction.
    pub fn send_offsets(&self, consumer: &Consumer, next: &[i64]) -> Result<()> {
        let offsets = Offsets::new(&consumer.topic, next)?;
        // SAFETY: all handles are live; the metadata is destroyed after its only use.
        let sent = unsafe {
            let group = sys::rd_kafka_consumer_group_metadata(consumer.handle.as_ptr());
            let sent = sys::rd_kafka_send_offsets_to_transaction(
                self.handle.as_ptr(),
                offsets.list.as_ptr(),
                group,
                ANSWER_MS_MAX,
            );
            sys::rd_kafka_consumer_group_metadata_destroy(group);
            sent
        };
        transacted(sent)
    }

    /// Commits the transaction; flushes first.
    pub fn commit(&self) -> Result<()> {
        // SAFETY: the handle is live.
        transacted(unsafe { sys::rd_kafka_commit_transaction(self.handle.as_ptr(), ANSWER_MS_MAX) })
    }
}

/// A record in librdkafka's form, which points to the same bytes.
fn untimed(record: Message<'_>) -> sys::rd_kafka_message_t {
    let view = |bytes: Option<&[u8]>| {
        bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len()))
    };
    let ((key, key_len), (payload, len)) = (view(record.key), view(record.value));
    sys::rd_kafka_message_t {
        err: NO_ERROR,
        rkt: ptr::null_mut(),
        partition: BY_KEY,
        payload,
        len,
        key,
        key_len,
        offset: 0,
        _private: ptr::null_mut(),
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // SAFETY: every topic borrows this value, so none is left.
        unsafe { sys::rd_kafka_destroy(self.handle.as_ptr()) };
    }
}

/// Next offsets of partitions 0, 1, ... of one topic.
struct Offsets {
    list: NonNull<sys::rd_kafka_topic_partition_list_t>,
}

impl Offsets {
    fn new(topic: &CStr, next: &[i64]) -> Result<Offsets> {
        let size = c_int::try_from(next.len())?;
        // SAFETY: plain allocation, freed by `Drop`.
        let list = unsafe { sys::rd_kafka_topic_partition_list_new(size) };
        let offsets = Offsets { list: NonNull::new(list).context("out of memory")? };
        for (partition, &offset) in (0..size).zip(next) {
            // SAFETY: the list is live; the topic is copied; the answer points into the list.
            unsafe {
                (*sys::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), partition)).offset = offset
            };
        }
        Ok(offsets)
    }
}

impl Drop for Offsets {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.list.as_ptr()) };
    }
}

fn client(kind: sys::rd_kafka_type_t, settings: &[(&str, &str)]) -> Result<NonNull<sys::rd_kafka_t>> {
    let mut reason = [0; 512];
    // SAFETY: plain allocation; ownership passes to `rd_kafka_new` when that succeeds.
    let configuration = unsafe { sys::rd_kafka_conf_new() };
    for (name, value) in settings {
        let (name, value) = (CString::new(*name)?, CString::new(*value)?);
        // SAFETY: all pointers are live and the buffer's size is passed.
        let set = unsafe {
            sys::rd_kafka_conf_set(
                configuration,
                name.as_ptr(),
                value.as_ptr(),
                reason.as_mut_ptr(),
                reason.len(),
            )
        };
        ensure!(set == sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK, "{}", text(&reason));
    }
    // SAFETY: as above.
    let handle = unsafe { sys::rd_kafka_new(kind, configuration, reason.as_mut_ptr(), reason.len()) };
    NonNull::new(handle).with_context(|| text(&reason))
}

fn text(buffer: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|&c| c.cast_unsigned()).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn checked(error: sys::rd_kafka_resp_err_t) -> Result<()> {
    if error == NO_ERROR {
        return Ok(());
    }
    // SAFETY: librdkafka answers a static string for every code.
    let reason = unsafe { CStr::from_ptr(sys::rd_kafka_err2str(error)) };
    bail!("{}", reason.to_string_lossy())
}

fn transacted(error: *mut sys::rd_kafka_error_t) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the error is live until it is destroyed, after its text was copied.
    let reason = unsafe {
        let reason = CStr::from_ptr(sys::rd_kafka_error_string(error)).to_string_lossy().into_owned();
        sys::rd_kafka_error_destroy(error);
        reason
    };
    bail!("{reason}")
}
