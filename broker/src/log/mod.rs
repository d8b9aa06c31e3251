//! One partition: segments of batches, its producers, and the offsets that bound them.
//!
//! Synchronous and without a clock or a socket: the caller says what time it is. What a client
//! may do with a partition is decided in `core`; this module only keeps the bytes right.
//!
//! A batch is never decoded on its way: it is checked, its offset is written into the header, and the
//! bytes are stored. Records are walked only to validate and to compact them.
//!
//! Invariants: `start <= stable_end <= end`; there is always a last segment, which alone is
//! written to; a replica is never behind, so the high watermark is `end`.

mod compact;
pub mod producers;
mod recover;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use tidemill_batches::{self as batch, Header};

use crate::settings::Settings;
use producers::Producers;
use segment::{Located, Segment};

pub use compact::{Cleaned, Job};
pub use recover::RecoverError;

/// Of this broker, which every partition has had as its only leader.
const LEADER_EPOCH: i32 = 0;

/// A record found by its timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamped {
    /// Offset of the record.
    pub offset: i64,
    /// Its timestamp, ms since 1970.
    pub timestamp_ms: i64,
}

/// Whole batches, as read.
#[derive(Debug)]
pub struct Chunk {
    /// The batches, end to end.
    pub bytes: Bytes,
    /// Offset after the last of them.
    pub next: i64,
}

/// How far a reader may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// To the end of the log.
    Uncommitted,
    /// To the first offset of the oldest open transaction.
    Committed,
}

/// The log of one partition.
#[derive(Debug)]
pub struct Log {
    /// Idempotent and transactional producers.
    pub producers: Producers,
    directory: Option<PathBuf>,
    segments: VecDeque<Segment>,
    start: i64,
    /// Offset up to which compaction has been over the log.
    cleaned_to: i64,
    sync_every_append: bool,
}

impl Log {
    /// A new, empty log; in `directory`, which must exist, or in memory.
    pub fn create(directory: Option<PathBuf>, sync_every_append: bool) -> io::Result<Log> {
        let first = Segment::create(directory.as_deref(), 0)?;
        Ok(Log {
            producers: Producers::default(),
            directory,
            segments: VecDeque::from([first]),
            start: 0,
            cleaned_to: 0,
            sync_every_append,
        })
    }

    /// First offset that can be read.
    pub fn start(&self) -> i64 {
        self.start
    }

    /// Offset of the next record, which is also the high watermark.
    pub fn end(&self) -> i64 {
        self.segments.back().map_or(self.start, |last| last.next)
    }

    /// The last stable offset: below it, every transaction is decided.
    pub fn stable_end(&self) -> i64 {
        self.producers.first_open().unwrap_or_else(|| self.end())
    }

    /// The end for a reader of this isolation.
    pub fn end_for(&self, isolation: Isolation) -> i64 {
        match isolation {
            Isolation::Uncommitted => self.end(),
            Isolation::Committed => self.stable_end(),
        }
    }

    /// Bytes of all segments.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Appends a checked data batch and returns its base offset.
    ///
    /// Time is applied here because with `LogAppendTime` it is part of the bytes.
    pub fn append(&mut self, batch: &mut BytesMut, settings: &Settings, now_ms: i64) -> io::Result<i64> {
        if settings.log_append_time {
            batch::set_append_time(batch, now_ms);
        }
        let header = self.write(batch, settings, now_ms)?;
        self.producers.appended(&header, now_ms);
        Ok(header.base_offset)
    }

    /// Appends the marker that ends a transaction.
    pub fn append_marker(
        &mut self,
        producer: (i64, i16),
        commit: bool,
        settings: &Settings,
        now_ms: i64,
    ) -> io::Result<()> {
        let mut batch = batch::marker(producer.0, producer.1, commit, now_ms);
        let header = self.write(&mut batch, settings, now_ms)?;
        self.producers.ended(&header, commit, now_ms);
        Ok(())
    }

    fn write(&mut self, batch: &mut BytesMut, settings: &Settings, now_ms: i64) -> io::Result<Header> {
        self.roll_if_due(batch.len() as u64, settings, now_ms)?;
        batch::assign_offset(batch, self.end(), LEADER_EPOCH);
        let header =
            Header::parse(batch).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let sync = self.sync_every_append;
        let last = self.last_mut()?;
        last.append(&header, batch, now_ms)?;
        if sync {
            last.sync()?;
        }
        Ok(header)
    }

    fn last_mut(&mut self) -> io::Result<&mut Segment> {
        self.segments.back_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn roll_if_due(&mut self, incoming: u64, settings: &Settings, now_ms: i64) -> io::Result<()> {
        let last = self.last_mut()?;
        let full = last.size + incoming > settings.segment_bytes;
        let old =
            last.first_append_ms.is_some_and(|first| now_ms.saturating_sub(first) >= settings.segment_ms);
        if last.size > 0 && (full || old) { self.roll() } else { Ok(()) }
    }

    /// Starts a new segment unless the last one is empty.
    pub fn roll(&mut self) -> io::Result<()> {
        let last = self.last_mut()?;
        if last.size == 0 && last.base == last.next {
            return Ok(());
        }
        let next = Segment::create(self.directory.as_deref(), self.end())?;
        self.segments.push_back(next);
        Ok(())
    }

    /// Whole batches from `offset` on and below `upper`, at most `max_bytes` unless
    /// `at_least_one` and the first batch is larger. Empty if there is nothing.
    pub fn read(&self, offset: i64, upper: i64, max_bytes: usize, at_least_one: bool) -> io::Result<Chunk> {
        for segment in self.segments_from(offset) {
            let Some(first) = segment.find_offset(offset)? else { continue };
            if first.header.base_offset >= upper {
                break;
            }
            let limit = if upper >= segment.next {
                segment.size
            } else {
                segment.find_offset(upper)?.map_or(segment.size, |after| after.position)
            };
            return read_whole(segment, first, limit, max_bytes, at_least_one);
        }
        Ok(Chunk { bytes: Bytes::new(), next: offset })
    }

    /// Bytes between two offsets, as far as batches allow.
    pub fn bytes_between(&self, from: i64, upper: i64) -> io::Result<u64> {
        Ok(self.bytes_from(from)?.saturating_sub(self.bytes_from(upper)?))
    }

    fn bytes_from(&self, offset: i64) -> io::Result<u64> {
        let mut total = 0;
        for segment in self.segments_from(offset) {
            let skipped = match offset <= segment.base {
                true => 0,
                false => segment.find_offset(offset)?.map_or(segment.size, |at| at.position),
            };
            total += segment.size - skipped;
        }
        Ok(total)
    }

    fn segments_from(&self, offset: i64) -> impl Iterator<Item = &Segment> {
        let first = self.segments.partition_point(|segment| segment.next <= offset);
        self.segments.range(first..)
    }

    /// The first record below `upper` with a timestamp of at least `timestamp_ms`.
    pub fn find_timestamp(&self, timestamp_ms: i64, upper: i64) -> io::Result<Option<Stamped>> {
        for segment in self.segments_from(self.start) {
            let Some(mut located) = segment.find_timestamp(timestamp_ms)? else { continue };
            loop {
                let wanted = |s: &Stamped| s.timestamp_ms >= timestamp_ms && s.offset >= self.start;
                let mut records = stamps(segment, &located)?.into_iter();
                if let Some(found) = records.find(wanted) {
                    return Ok(Some(found).filter(|found| found.offset < upper));
                }
                let after = located.position + located.header.size() as u64;
                match segment.find(after, |header| header.max_timestamp >= timestamp_ms)? {
                    Some(next) => located = next,
                    None => break,
                }
            }
        }
        Ok(None)
    }

    /// The first record with the largest timestamp.
    pub fn find_max_timestamp(&self) -> io::Result<Option<Stamped>> {
        let max = self.segments_from(self.start).map(|segment| segment.max_timestamp).max();
        match max {
            Some(max) if max >= 0 => self.find_timestamp(max, i64::MAX),
            _ => Ok(None),
        }
    }

    /// Moves the start of the log up to `offset` and drops segments that lie below it.
    pub fn delete_before(&mut self, offset: i64) -> io::Result<()> {
        self.start = self.start.max(offset.min(self.end()));
        while self.segments.len() > 1 && self.segments[0].next <= self.start {
            if let Some(segment) = self.segments.pop_front() {
                segment.delete()?;
            }
        }
        self.producers.trim(self.start);
        Ok(())
    }

    /// Applies retention by time and size. Returns whether the start moved.
    pub fn retain(&mut self, settings: &Settings, now_ms: i64) -> io::Result<bool> {
        if !settings.delete {
            return Ok(false);
        }
        let before = self.start;
        let expired = |segment: &Segment| {
            settings.retention_ms >= 0
                && segment.size > 0
                && segment.newest_ms() < now_ms.saturating_sub(settings.retention_ms)
        };
        if self.segments.len() == 1 && self.segments.iter().all(expired) {
            self.roll()?;
        }
        while let [first, _, ..] = self.segments.make_contiguous() {
            let rest = first.next;
            let size = first.size;
            let too_large = settings.retention_bytes >= 0
                && self.size().saturating_sub(size) >= settings.retention_bytes.unsigned_abs();
            let expired = expired(&self.segments[0]);
            // An undecided transaction keeps its data: its marker must still find them.
            if !(expired || too_large) || rest > self.stable_end() {
                break;
            }
            self.delete_before(rest)?;
        }
        if self.segments.len() == 1 && self.segments.iter().all(expired) {
            self.roll()?;
            self.delete_before(self.end())?;
        }
        Ok(self.start != before)
    }

    /// Forces everything to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.segments.iter_mut().try_for_each(Segment::sync)
    }
}

/// Reads whole batches from `first` on, up to position `limit`.
fn read_whole(
    segment: &Segment,
    first: Located,
    limit: u64,
    max_bytes: usize,
    at_least_one: bool,
) -> io::Result<Chunk> {
    let wanted = (limit - first.position).min(max_bytes as u64) as usize;
    let bytes = segment.read(first.position, wanted)?;
    let mut whole = 0;
    let mut next = first.header.base_offset;
    while let Ok(header) = Header::parse(&bytes[whole..]) {
        if whole + header.size() > bytes.len() {
            break;
        }
        whole += header.size();
        next = header.next_offset();
    }
    if whole == 0 && at_least_one {
        let bytes = segment.read(first.position, first.header.size())?;
        return Ok(Chunk { bytes, next: first.header.next_offset() });
    }
    Ok(Chunk { bytes: bytes.slice(..whole), next })
}

/// Offsets and timestamps of the records of one batch.
fn stamps(segment: &Segment, located: &Located) -> io::Result<Vec<Stamped>> {
    let header = &located.header;
    let bytes = segment.read(located.position, header.size())?;
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    if header.log_append_time() {
        let (offset, timestamp_ms) = (header.base_offset, header.max_timestamp);
        return Ok(vec![Stamped { offset, timestamp_ms }]);
    }
    let records = batch::records_of(header, &bytes).map_err(invalid)?;
    let stamp = |record: batch::RecordView<'_>| Stamped {
        offset: header.base_offset.saturating_add(record.offset_delta),
        timestamp_ms: header.base_timestamp.saturating_add(record.timestamp_delta),
    };
    batch::walk(&records).map(|record| record.map(stamp).map_err(invalid)).collect()
}
