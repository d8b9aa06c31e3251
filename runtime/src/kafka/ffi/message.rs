//! A fetched message: a view into librdkafka's fetch buffer, or an error event in its place.

use std::ptr::NonNull;

use rdkafka_sys as rd;

use super::{KafkaError, text};
use crate::record::headers;

/// An owned message. Dropping it gives the fetch buffer back.
pub(in crate::kafka) struct Message(NonNull<rd::rd_kafka_message_t>);

// SAFETY: a message has one owner; librdkafka allows it to be read and destroyed on any thread.
unsafe impl Send for Message {}

/// Reads a message's code as the integer it is in C.
///
/// # Safety
/// `message` is live.
pub(super) unsafe fn code(message: *const rd::rd_kafka_message_t) -> i32 {
    // SAFETY: by the function's contract; the field has the size and alignment of an i32.
    unsafe { std::ptr::addr_of!((*message).err).cast::<i32>().read() }
}

impl Message {
    /// # Safety
    /// `message` came from a consume call and is not owned by anybody else.
    pub(super) unsafe fn from_raw(message: NonNull<rd::rd_kafka_message_t>) -> Message {
        Message(message)
    }

    /// An error event that came in the place of a record.
    pub fn error(&self) -> Option<KafkaError> {
        // SAFETY: live message; the reason is a C string inside it.
        unsafe {
            let code = code(self.0.as_ptr());
            (code != 0).then(|| KafkaError {
                text: text(rd::rd_kafka_message_errstr(self.0.as_ptr())),
                ..KafkaError::from_code(code)
            })
        }
    }

    #[inline]
    pub fn is_error(&self) -> bool {
        // SAFETY: live message.
        unsafe { code(self.0.as_ptr()) != 0 }
    }

    /// Identifies the topic object as long as the partition stays assigned; 0 = no topic.
    #[inline]
    pub fn topic_id(&self) -> usize {
        // SAFETY: live message.
        unsafe { std::ptr::addr_of!((*self.0.as_ptr()).rkt).read() as usize }
    }

    pub fn topic(&self) -> String {
        // SAFETY: a live message keeps its topic object alive.
        unsafe {
            let topic = std::ptr::addr_of!((*self.0.as_ptr()).rkt).read();
            if topic.is_null() { String::new() } else { text(rd::rd_kafka_topic_name(topic)) }
        }
    }

    #[inline]
    pub fn partition(&self) -> i32 {
        // SAFETY: live message.
        unsafe { std::ptr::addr_of!((*self.0.as_ptr()).partition).read() }
    }

    #[inline]
    pub fn offset(&self) -> i64 {
        // SAFETY: live message.
        unsafe { std::ptr::addr_of!((*self.0.as_ptr()).offset).read() }
    }

    /// Of the leader that wrote it; -1 = not known.
    #[inline]
    pub fn leader_epoch(&self) -> i32 {
        // SAFETY: live message.
        unsafe { rd::rd_kafka_message_leader_epoch(self.0.as_ptr()) }
    }

    #[inline]
    pub fn key(&self) -> Option<&[u8]> {
        // SAFETY: live message; see `bytes`.
        unsafe { bytes((*self.0.as_ptr()).key, (*self.0.as_ptr()).key_len) }
    }

    #[inline]
    pub fn value(&self) -> Option<&[u8]> {
        // SAFETY: live message; see `bytes`.
        unsafe { bytes((*self.0.as_ptr()).payload, (*self.0.as_ptr()).len) }
    }

    /// Milliseconds since the epoch; -1 = none.
    #[inline]
    pub fn timestamp(&self) -> i64 {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: live message, out-pointer to a local.
        unsafe { rd::rd_kafka_message_timestamp(self.0.as_ptr(), &mut kind) }
    }

    /// Appends the headers in Kafka's own encoding to `out`; false when there are none.
    pub fn headers(&self, out: &mut Vec<u8>) -> bool {
        let mut list = std::ptr::null_mut();
        // SAFETY: live message. The list belongs to it; names are C strings and values are null or
        // `size` bytes, all valid while the message is.
        unsafe {
            if rd::rd_kafka_message_headers(self.0.as_ptr(), &mut list) as i32 != 0 {
                return false;
            }
            let count = rd::rd_kafka_header_cnt(list);
            headers::write_count(out, count);
            for index in 0..count {
                let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
                rd::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size);
                let name = std::ffi::CStr::from_ptr(name).to_bytes();
                headers::write_one(out, name, bytes(value, size));
            }
            count > 0
        }
    }

    /// The value of the last header of that name.
    pub fn header(&self, name: &std::ffi::CStr) -> Option<&[u8]> {
        let (mut list, mut value, mut size) = (std::ptr::null_mut(), std::ptr::null(), 0);
        // SAFETY: as for `headers`; the value lives as long as the message.
        unsafe {
            if rd::rd_kafka_message_headers(self.0.as_ptr(), &mut list) as i32 != 0
                || rd::rd_kafka_header_get_last(list, name.as_ptr(), &mut value, &mut size) as i32 != 0
            {
                return None;
            }
            bytes(value, size)
        }
    }
}

/// # Safety
/// `pointer` is null, or `length` bytes are readable behind it for as long as `'a`.
#[inline]
unsafe fn bytes<'a>(pointer: *const std::ffi::c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: by the function's contract.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) })
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: owned, dropped once, before its consumer (module invariant).
        unsafe { rd::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}
