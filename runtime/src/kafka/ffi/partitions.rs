//! Topic-partition lists: what assign, seek, pause, commit and position take and return.

use rdkafka_sys as rd;

use super::{KafkaError, c_string, text};

/// An owned list.
pub(in crate::kafka) struct Partitions(*mut rd::rd_kafka_topic_partition_list_t);

// SAFETY: a list is plain heap data with a single owner and no interior mutability.
unsafe impl Send for Partitions {}

/// One row of a list, copied out.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Row {
    pub topic: String,
    pub partition: i32,
    /// Negative = librdkafka's "none" (-1001).
    pub offset: i64,
    /// Of the record before the offset; -1 = not known.
    pub leader_epoch: i32,
    pub metadata: String,
    /// What is wrong with this partition alone.
    pub error: Option<KafkaError>,
}

impl Partitions {
    pub fn with_capacity(rows: usize) -> Partitions {
        // SAFETY: no preconditions; never null. The size is a hint.
        Partitions(unsafe { rd::rd_kafka_topic_partition_list_new(rows.min(4096) as i32) })
    }

    pub fn one(topic: &str, partition: i32, offset: i64) -> Partitions {
        let mut list = Partitions::with_capacity(1);
        list.add(topic, partition, offset, "");
        list
    }

    /// Adds a row. Metadata travels with a committed offset; empty = none.
    pub fn add(&mut self, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let topic = c_string(topic);
        // SAFETY: the list is live; the returned row belongs to it and stays valid until the next
        // add. The metadata buffer is allocated by librdkafka because the list frees it with its
        // own allocator, and is written for exactly its length.
        unsafe {
            let row = rd::rd_kafka_topic_partition_list_add(self.0, topic.as_ptr(), partition);
            (*row).offset = offset;
            if !metadata.is_empty() {
                let buffer = rd::rd_kafka_mem_malloc(std::ptr::null_mut(), metadata.len());
                if !buffer.is_null() {
                    std::ptr::copy_nonoverlapping(metadata.as_ptr(), buffer.cast::<u8>(), metadata.len());
                    (*row).metadata = buffer;
                    (*row).metadata_size = metadata.len();
                }
            }
        }
    }

    /// Says of which leader epoch the record before the last row's offset is; below 0 = not known.
    pub fn set_leader_epoch(&mut self, epoch: i32) {
        // SAFETY: the list is live and its `cnt` rows are initialised; the row stays where it is.
        unsafe {
            if let Some(last) = usize::try_from((*self.0).cnt).ok().and_then(|count| count.checked_sub(1)) {
                rd::rd_kafka_topic_partition_set_leader_epoch((*self.0).elems.add(last), epoch);
            }
        }
    }

    pub fn rows(&self) -> Vec<Row> {
        // SAFETY: the list is live.
        unsafe { rows(self.0) }
    }

    /// Topic and partition of each row of a list that librdkafka owns.
    ///
    /// # Safety
    /// `list` is null or live for the length of the call.
    pub(super) unsafe fn borrowed_names(
        list: *const rd::rd_kafka_topic_partition_list_t,
    ) -> Vec<(String, i32)> {
        // SAFETY: by the function's contract.
        unsafe { rows(list) }.into_iter().map(|row| (row.topic, row.partition)).collect()
    }

    pub(super) fn raw(&self) -> *mut rd::rd_kafka_topic_partition_list_t {
        self.0
    }
}

/// Copies the rows of a list; null is empty.
///
/// # Safety
/// `list` is null or live.
pub(super) unsafe fn rows(list: *const rd::rd_kafka_topic_partition_list_t) -> Vec<Row> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: `elems` holds `cnt` initialised rows. They are not viewed as a Rust slice because
    // the error field may hold a code outside its enumeration.
    unsafe {
        let count = usize::try_from((*list).cnt).unwrap_or(0);
        (0..count).map(|index| row((*list).elems.add(index))).collect()
    }
}

/// # Safety
/// `row` points to a live row.
pub(super) unsafe fn row(row: *const rd::rd_kafka_topic_partition_t) -> Row {
    // SAFETY: fields are read one by one; the error as the integer it is in C; metadata is null or
    // `metadata_size` bytes.
    unsafe {
        let code = std::ptr::addr_of!((*row).err).cast::<i32>().read();
        let metadata = match (*row).metadata.is_null() {
            true => String::new(),
            false => {
                let bytes = std::slice::from_raw_parts((*row).metadata.cast::<u8>(), (*row).metadata_size);
                String::from_utf8_lossy(bytes).into_owned()
            }
        };
        Row {
            topic: text((*row).topic),
            partition: (*row).partition,
            offset: (*row).offset,
            leader_epoch: rd::rd_kafka_topic_partition_get_leader_epoch(row),
            metadata,
            error: (code != 0).then(|| KafkaError::from_code(code)),
        }
    }
}

impl Drop for Partitions {
    fn drop(&mut self) {
        // SAFETY: owned, dropped once.
        unsafe { rd::rd_kafka_topic_partition_list_destroy(self.0) }
    }
}
