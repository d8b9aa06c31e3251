//! What one answer of a broker holds of a partition: from the bytes of its batches to columns.
//!
//! ```text
//!   | batch | batch | marker | aborted | batch | bat        the answer; its last batch is cut short
//!       |       |                          |
//!       v       v    read: checked,        v    decompressed
//!     [run]   [run]                      [run]
//!         \_______|______________________/
//!                 v    take: as much as there is room for
//!          columns of a Batch
//! ```
//! What costs something by batch is done by `read`, what costs something by record by `take`: one walk over the
//! record's numbers and a copy of its bytes, without an allocation of its own.
//!
//! Invariants:
//! - Offsets that come out rise, and none is below the one that was asked for: a broker sends the whole batch that an
//!   offset lies in.
//! - `next` is behind everything that was read, be it a record, a marker, aborted, or removed by compaction: what is
//!   fetched from there on goes on where this ends.
//! - No length, count or offset is believed that a batch tells of itself. What contradicts itself is [`Damage`], at the
//!   first offset that cannot be read, and everything before it comes out.
//! - A chunk holds what it may hold and one batch more at most, however little came of the wire.

#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::iter::Peekable;

use bytes::Bytes;
use tidemill_batches::{
    ABORT, BatchError, Header, RECORD_BYTES_MIN, RecordView, control_type, records_of, take_record,
};

use crate::record::Batch;

/// A transaction that was aborted, as the broker tells of it beside the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aborted {
    pub producer_id: i64,
    /// Of its records in this partition.
    pub first_offset: i64,
}

/// A batch that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct Damage {
    /// The first offset that is not to be had.
    pub offset: i64,
    pub error: BatchError,
}

/// How much may still be taken; less after each [`Chunk::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct Room {
    pub rows: usize,
    /// Of keys, values and the headers that are wanted.
    pub bytes: usize,
}

impl Room {
    pub fn is_used_up(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }
}

/// Batches of one partition that were checked, without markers and what was aborted.
#[derive(Debug)]
pub(in crate::kafka) struct Chunk {
    runs: VecDeque<Run>,
    /// Offset after the last batch that was read, whatever it holds; the one that was asked for if there was none.
    pub next: i64,
    /// Of the batch before `next`; -1 = none was read, or it does not say.
    pub leader_epoch: i32,
    bytes: usize,
}

impl Chunk {
    /// Reads the batches of `records`, which is what a broker sent for one partition, from offset `from` on.
    ///
    /// A last batch that is cut short ends the chunk, which is ordinary. If it is the only one, it is damage
    /// ([`BatchError::Short`]): a broker sends a batch that is larger than was asked for whole, so asking again would
    /// be no better.
    ///
    /// Damage ends the chunk as well, `next` is then its offset. So does that it holds `most` bytes; what comes next is to
    /// be fetched once more.
    pub(super) fn read(
        records: Bytes,
        from: i64,
        aborted: Vec<Aborted>,
        most: usize,
    ) -> (Chunk, Option<Damage>) {
        let mut chunk = Chunk { runs: VecDeque::new(), next: from, leader_epoch: -1, bytes: 0 };
        let read = chunk.read_all(records, Transactions::new(aborted), most);
        let damage = read.err().map(|error| Damage { offset: chunk.next, error });
        (chunk, damage)
    }

    fn read_all(
        &mut self,
        mut left: Bytes,
        mut transactions: Transactions,
        most: usize,
    ) -> Result<(), BatchError> {
        let all = left.len();
        while self.bytes < most {
            let Some(header) = Header::first(&left)? else {
                let is_only = left.len() == all && all > 0;
                return if is_only { Err(BatchError::Short) } else { Ok(()) };
            };
            let batch = left.split_to(header.size());
            self.read_batch(header, &batch, &mut transactions)?;
        }
        Ok(())
    }

    fn read_batch(
        &mut self,
        header: Header,
        batch: &Bytes,
        transactions: &mut Transactions,
    ) -> Result<(), BatchError> {
        if header.base_offset < 0 {
            return Err(BatchError::Header);
        }
        let is_hidden = transactions.hide(&header, batch)?;
        if header.next_offset() <= self.next {
            return Ok(());
        }
        if !is_hidden && header.count > 0 {
            let run = Run::new(header, records_of(&header, batch)?, self.next);
            self.bytes += run.bytes();
            self.runs.push_back(run);
        }
        self.next = header.next_offset();
        self.leader_epoch = header.leader_epoch;
        Ok(())
    }

    /// Appends records at or above `from` to `out`, until there is no room for the next one or none is left; an `out`
    /// without a record takes one that is larger than the room. `room` is less what was taken, and is used up if
    /// something did not fit.
    ///
    /// With `wants_headers` there is a row of headers for each record: the number of headers and the headers in
    /// Kafka's own encoding, null without any. `epoch` is told the leader epoch of every batch with the offset of its
    /// first record that came out, and once only.
    ///
    /// What comes before damage is in `out`. Damage stays where it is: the next `take` is told of it again.
    pub fn take(
        &mut self,
        from: i64,
        room: &mut Room,
        wants_headers: bool,
        out: &mut Batch,
        epoch: &mut impl FnMut(i64, i32),
    ) -> Result<(), Damage> {
        while let Some(run) = self.runs.front_mut() {
            let is_read = run.header.next_offset() <= from
                || run
                    .take(from, room, wants_headers, out, epoch)
                    .map_err(|error| Damage { offset: run.next().max(from), error })?;
            if !is_read {
                break;
            }
            self.bytes -= run.bytes();
            self.runs.pop_front();
        }
        Ok(())
    }

    /// Nothing is left to take; damage counts as something.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// What is left, uncompressed and by whole batches, and what it takes to know of them. The bytes of a batch that came
    /// uncompressed are a part of the broker's answer, and keep all of it in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies what is a part of the broker's answer, so that the rest of it need not be kept.
    pub(super) fn detach(&mut self) {
        for run in self.runs.iter_mut().filter(|run| run.header.codec() == 0) {
            run.records = Bytes::copy_from_slice(&run.records);
        }
    }
}

/// One batch with records.
#[derive(Debug)]
struct Run {
    header: Header,
    /// End to end, uncompressed.
    records: Bytes,
    /// Where in `records` the next one begins.
    at: usize,
    /// Records that are still to come, by the header.
    left: usize,
    /// Offset of the last record that was read, relative to the batch's base; -1 before the first one.
    last_delta: i64,
    /// What lies below was not asked for, or came with an earlier batch.
    from: i64,
    /// Its leader epoch was told.
    is_told: bool,
}

impl Run {
    fn new(header: Header, records: Bytes, from: i64) -> Run {
        let left = usize::try_from(header.count).unwrap_or(0);
        Run { header, records, at: 0, left, last_delta: -1, from, is_told: false }
    }

    fn bytes(&self) -> usize {
        size_of::<Run>() + self.records.len()
    }

    /// Offset after the last record that was read.
    fn next(&self) -> i64 {
        self.header.base_offset + self.last_delta + 1
    }

    /// As [`Chunk::take`]; true once it has been read to its end.
    fn take(
        &mut self,
        from: i64,
        room: &mut Room,
        wants_headers: bool,
        out: &mut Batch,
        epoch: &mut impl FnMut(i64, i32),
    ) -> Result<bool, BatchError> {
        let header = &self.header;
        let from = from.max(self.from);
        let time = |delta| match header.log_append_time() {
            true => header.max_timestamp,
            false => header.base_timestamp.saturating_add(delta),
        };
        let mut left = &self.records[self.at..];
        let mut is_reserved = false;
        while self.left > 0 && !room.is_used_up() {
            let there = left.len();
            let record = take_record(&mut left)?;
            let delta = record.offset_delta;
            if delta <= self.last_delta || delta > i64::from(header.last_offset_delta) {
                return Err(BatchError::Record);
            }
            // No more than the header's last offset, which was checked to be one.
            let offset = header.base_offset + delta;
            if offset >= from {
                let size = size(&record, wants_headers);
                if size > room.bytes && !out.is_empty() {
                    room.bytes = 0;
                    break;
                }
                if !is_reserved {
                    is_reserved = true;
                    let rows = self.left.min(there / RECORD_BYTES_MIN).min(room.rows);
                    let rows = rows.min((room.bytes / size.max(1)).saturating_add(1));
                    reserve(out, &record, wants_headers, rows, there);
                }
                if !self.is_told {
                    self.is_told = true;
                    epoch(offset, header.leader_epoch);
                }
                out.offsets.push(offset);
                out.timestamps.push(time(record.timestamp_delta));
                out.keys.push(record.key);
                out.values.push(record.value);
                if wants_headers {
                    out.headers.push(record.headers);
                }
                room.rows -= 1;
                room.bytes = room.bytes.saturating_sub(size);
            }
            self.last_delta = delta;
            self.left -= 1;
            self.at = self.records.len() - left.len();
        }
        match self.left {
            0 if self.at == self.records.len() => Ok(true),
            0 => Err(BatchError::Record),
            _ => Ok(false),
        }
    }
}

/// Bytes that a record takes of the room.
#[inline]
fn size(record: &RecordView<'_>, wants_headers: bool) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    length(record.key) + length(record.value) + if wants_headers { length(record.headers) } else { 0 }
}

/// Makes room in `out` for `rows` records like this one, the first of `there` bytes.
fn reserve(out: &mut Batch, record: &RecordView<'_>, wants_headers: bool, rows: usize, there: usize) {
    let bytes = |one: Option<&[u8]>| one.map_or(0, <[u8]>::len).saturating_mul(rows).min(there);
    out.offsets.reserve(rows);
    out.timestamps.reserve(rows);
    out.keys.reserve(rows, bytes(record.key));
    out.values.reserve(rows, bytes(record.value));
    if wants_headers {
        out.headers.reserve(rows, bytes(record.headers));
    }
}

/// Whose transaction is known to be aborted at the batch that is being read. As Java's consumer has it
/// (`CompletedFetch.nextFetchedRecord`), so that the two see the same records.
struct Transactions {
    /// Those that begin later, in the order of their first offsets.
    ahead: Peekable<std::vec::IntoIter<Aborted>>,
    /// Producers between an aborted transaction's first record and its marker.
    aborted: HashSet<i64>,
}

impl Transactions {
    fn new(mut aborted: Vec<Aborted>) -> Transactions {
        aborted.sort_unstable_by_key(|transaction| transaction.first_offset);
        Transactions { ahead: aborted.into_iter().peekable(), aborted: HashSet::new() }
    }

    /// Takes note of a batch; true if a reader of committed records sees nothing of it.
    fn hide(&mut self, header: &Header, batch: &Bytes) -> Result<bool, BatchError> {
        let last = header.last_offset();
        while let Some(begun) = self.ahead.next_if(|transaction| transaction.first_offset <= last) {
            self.aborted.insert(begun.producer_id);
        }
        if !header.control() {
            return Ok(header.transactional() && self.aborted.contains(&header.producer_id));
        }
        // Compaction may have left nothing of a marker but its header.
        if header.count > 0 && control_type(&records_of(header, batch)?)? == Some(ABORT) {
            self.aborted.remove(&header.producer_id);
        }
        Ok(true)
    }
}
