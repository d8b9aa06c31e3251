//! Kafka's record batch, format v2: the bytes that producers send, brokers keep and consumers get.
//!
//! Functions over bytes that may come from anybody: no I/O, no clock, no panic, and no memory but by a bound.
//!
//! ```text
//! offset size field                      offset size field
//!      0    8 base offset                    27    8 base timestamp, ms
//!      8    4 length of all that follows     35    8 max timestamp, ms
//!     12    4 partition leader epoch         43    8 producer id, or -1
//!     16    1 magic, 2                       51    2 producer epoch
//!     17    4 CRC-32C of all that follows    53    4 base sequence
//!     21    2 attributes                     57    4 number of records
//!     23    4 last offset delta              61      records
//! ```
//! Base offset and leader epoch lie before the CRC, so that a broker can set them without
//! computing it again.
//!
//! | file | what it is |
//! |---|---|
//! | `header` | the fields before the records, checked |
//! | `records` | the records, one after the other and without a copy |
//! | `codec` | decompression with a bound |
//! | `write` | what a broker writes itself, and into the batches that it was sent |
//! | `writer` | a batch that a producer makes, record by record |
//! | `testing` | batches for tests |
#![forbid(unsafe_code)]

mod codec;
mod header;
mod records;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod write;
mod writer;

pub use codec::decompress;
pub use header::{HEADER_LEN, Header, LENGTH_END, NO_PRODUCER_ID, NO_SEQUENCE};
pub use records::{
    ABORT, COMMIT, RECORD_BYTES_MIN, RecordView, Records, control_type, records_of, take_record, walk,
};
pub use write::{assemble, assign_offset, marker, seal, set_append_time, uncompressed};
pub use writer::{BATCH_BYTES_MAX, Codec, Producer, TooLarge, UnknownCodec, Writer};

/// Why a batch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the header or its length field says.
    #[error("the batch is cut short")]
    Short,
    /// A message format older than v2, which Kafka 4 does not take either.
    #[error("the message format is not v2")]
    Magic,
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Crc,
    /// Header fields contradict each other.
    #[error("the batch header is inconsistent")]
    Header,
    /// A record cannot be parsed.
    #[error("a record is malformed")]
    Record,
    /// The records cannot be decompressed, or need more memory than the limit.
    #[error("the records cannot be decompressed")]
    Compression,
}
