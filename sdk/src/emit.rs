//! Emissions, written straight into the columns that return to the node.

use crate::bindings::tidemill::handler::types::Emissions;
use crate::column::Column;
use crate::payload::Payload;
use crate::record::{write_header, write_varint};
use crate::{Failure, Record};

/// Lets the key's hash choose the partition.
const BY_HASH: i32 = -1;

/// Stands for the timestamp of the record in progress.
const OF_RECORD: i64 = -1;

/// What one call emits.
pub(crate) struct Out {
    columns: Emissions,
    /// Where the record in progress began.
    record: Mark,
    /// Index of the record in progress in its batch.
    source: u32,
    /// Headers of the emission in progress.
    headers: Vec<u8>,
    /// Sizes of the batch before: the next one is about as large, so its columns need not grow.
    last: Mark,
}

/// Sizes of the columns at some moment. All have the same number of rows.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    rows: usize,
    key_bytes: usize,
    value_bytes: usize,
    header_bytes: usize,
}

impl Default for Out {
    fn default() -> Out {
        Out {
            columns: columns(Mark::default()),
            record: Mark::default(),
            source: 0,
            headers: Vec::new(),
            last: Mark::default(),
        }
    }
}

impl Out {
    pub(crate) fn begin(&mut self) {
        self.columns = columns(self.last);
    }

    #[inline]
    pub(crate) fn begin_record(&mut self, source: u32) {
        self.source = source;
        self.record = self.mark();
    }

    /// Takes back what the record in progress emitted.
    pub(crate) fn rollback(&mut self) {
        let Mark { rows, key_bytes, value_bytes, header_bytes } = self.record;
        let columns = &mut self.columns;
        columns.source.truncate(rows);
        columns.output.truncate(rows);
        columns.partition.truncate(rows);
        columns.timestamp.truncate(rows);
        for (column, bytes) in [
            (&mut columns.key, key_bytes),
            (&mut columns.value, value_bytes),
            (&mut columns.headers, header_bytes),
        ] {
            column.bytes.truncate(bytes);
            column.lengths.truncate(rows);
        }
    }

    pub(crate) fn finish(&mut self) -> Emissions {
        self.last = self.mark();
        std::mem::replace(&mut self.columns, columns(Mark::default()))
    }

    /// A record without headers, with the time of the one in progress.
    #[inline]
    pub(crate) fn emit(
        &mut self,
        output: u16,
        key: impl Payload,
        value: impl Payload,
    ) -> Result<(), Failure> {
        let columns = &mut self.columns;
        let (key_start, value_start) = (columns.key.bytes.len(), columns.value.bytes.len());
        let written = key.write(&mut columns.key.bytes).and_then(|key_present| {
            value.write(&mut columns.value.bytes).map(|value_present| (key_present, value_present))
        });
        match written {
            Ok((key_present, value_present)) => {
                columns.key.close_row(key_start, key_present);
                columns.value.close_row(value_start, value_present);
                columns.headers.push(None);
                self.close_row(output, BY_HASH, OF_RECORD);
                Ok(())
            }
            Err(failure) => {
                columns.key.bytes.truncate(key_start);
                columns.value.bytes.truncate(value_start);
                Err(failure)
            }
        }
    }

    #[inline]
    fn close_row(&mut self, output: u16, partition: i32, timestamp: i64) {
        self.columns.source.push(self.source);
        self.columns.output.push(output);
        self.columns.partition.push(partition);
        self.columns.timestamp.push(timestamp);
    }

    #[inline]
    fn mark(&self) -> Mark {
        Mark {
            rows: self.columns.source.len(),
            key_bytes: self.columns.key.bytes.len(),
            value_bytes: self.columns.value.bytes.len(),
            header_bytes: self.columns.headers.bytes.len(),
        }
    }
}

/// Empty columns with room for as much as the mark says.
fn columns(room: Mark) -> Emissions {
    let column = |bytes| Column { bytes: Vec::with_capacity(bytes), lengths: Vec::with_capacity(room.rows) };
    Emissions {
        source: Vec::with_capacity(room.rows),
        output: Vec::with_capacity(room.rows),
        partition: Vec::with_capacity(room.rows),
        timestamp: Vec::with_capacity(room.rows),
        key: column(room.key_bytes),
        value: column(room.value_bytes),
        headers: column(room.header_bytes),
    }
}

/// An emission in the making.
#[must_use = "nothing is emitted without `send`"]
pub struct Emission<'c> {
    out: &'c mut Out,
    start: Mark,
    output: u16,
    partition: i32,
    timestamp: i64,
    /// None until set; then whether it is not null.
    key: Option<bool>,
    value: Option<bool>,
    header_count: i64,
    failure: Option<Failure>,
}

impl<'c> Emission<'c> {
    #[inline]
    pub(crate) fn begin(out: &'c mut Out, output: Result<u16, Failure>) -> Emission<'c> {
        out.headers.clear();
        let (output, failure) = match output {
            Ok(output) => (output, None),
            Err(failure) => (0, Some(failure)),
        };
        Emission {
            start: out.mark(),
            out,
            output,
            partition: BY_HASH,
            timestamp: OF_RECORD,
            key: None,
            value: None,
            header_count: 0,
            failure,
        }
    }

    #[inline]
    pub fn key(mut self, key: impl Payload) -> Self {
        let bytes = &mut self.out.columns.key.bytes;
        bytes.truncate(self.start.key_bytes);
        match key.write(bytes) {
            Ok(present) => self.key = Some(present),
            Err(failure) => self.failure = Some(failure),
        }
        self
    }

    #[inline]
    pub fn value(mut self, value: impl Payload) -> Self {
        let bytes = &mut self.out.columns.value.bytes;
        bytes.truncate(self.start.value_bytes);
        match value.write(bytes) {
            Ok(present) => self.value = Some(present),
            Err(failure) => self.failure = Some(failure),
        }
        self
    }

    /// Adds a header; a name may repeat.
    ///
    /// Names that begin with `tidemill-` are the node's own. An outbox to Kafka or RabbitMQ writes headers of such names
    /// itself and leaves those of the emission out, without an error; a topic with `ids: true` writes its own
    /// `tidemill-id` in the place of this one.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        write_header(name.as_bytes(), Some(value.as_ref()), &mut self.out.headers);
        self.header_count += 1;
        self
    }

    /// Passes on the headers of a record, which a handler sees only if it is exported with
    /// `wants_headers: true`. What [`Emission::header`] says of names that begin with `tidemill-` holds of them, too.
    pub fn headers_of(mut self, record: &Record<'_>) -> Self {
        let (count, encoded) = record.headers().encoded();
        self.out.headers.extend_from_slice(encoded);
        self.header_count += count;
        self
    }

    /// The partition to write to, instead of the one that the key's hash gives.
    pub fn partition(mut self, partition: u16) -> Self {
        self.partition = i32::from(partition);
        self
    }

    /// Milliseconds since the epoch, instead of the time of the record in progress.
    pub fn timestamp(mut self, timestamp_ms: i64) -> Self {
        if timestamp_ms < 0 {
            self.failure =
                Some(Failure::permanent(format!("a timestamp of {timestamp_ms} ms is before 1970")));
        }
        self.timestamp = timestamp_ms;
        self
    }

    /// Emits the record. Fails as permanent if the output is not declared or a part of it cannot be written.
    #[inline]
    pub fn send(mut self) -> Result<(), Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let start = self.start;
        let columns = &mut self.out.columns;
        columns.key.close_row(start.key_bytes, self.key.unwrap_or(false));
        columns.value.close_row(start.value_bytes, self.value.unwrap_or(false));
        if self.header_count == 0 {
            columns.headers.push(None);
        } else {
            write_varint(self.header_count, &mut columns.headers.bytes);
            columns.headers.bytes.extend_from_slice(&self.out.headers);
            columns.headers.close_row(start.header_bytes, true);
        }
        self.out.close_row(self.output, self.partition, self.timestamp);
        Ok(())
    }
}

impl Drop for Emission<'_> {
    #[inline]
    fn drop(&mut self) {
        // Sent emissions have their row; of all others nothing may stay.
        let columns = &mut self.out.columns;
        if columns.source.len() == self.start.rows {
            columns.key.bytes.truncate(self.start.key_bytes);
            columns.value.bytes.truncate(self.start.value_bytes);
        }
    }
}
