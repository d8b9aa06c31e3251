//! Compaction: keeps the last record of each key, drops aborted records, ages out tombstones.
//!
//! Two passes over the closed segments below the last stable offset. The first finds the last
//! offset of each key; the second writes each segment anew without what is superseded. Offsets
//! never change, so a reader just finds gaps. Each segment is replaced by an atomic rename, so a
//! kill in between leaves some segments cleaned and some not, both of which are right.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;

use bytes::{Bytes, BytesMut};

use super::Log;
use super::batch::{self, Header};
use super::segment::Segment;
use crate::settings::Settings;

/// Distinct keys of one pass. Beyond it later segments wait for the next pass.
const KEYS_MAX: usize = 8_000_000;

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes before, in the segments gone over.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
}

/// 128 bits of a key instead of the key, so that memory does not depend on key sizes.
struct KeyMap {
    seeds: (RandomState, RandomState),
    last: HashMap<(u64, u64), i64>,
}

impl KeyMap {
    fn new() -> KeyMap {
        KeyMap { seeds: (RandomState::new(), RandomState::new()), last: HashMap::new() }
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        (self.seeds.0.hash_one(key), self.seeds.1.hash_one(key))
    }
}

/// What decides about a record besides the key map.
struct Filter<'a> {
    keys: &'a KeyMap,
    aborted: HashMap<i64, Vec<(i64, i64)>>,
    /// Transactions, by producer, of which a data batch has been kept since its last marker.
    kept_data: HashMap<i64, bool>,
}

impl Log {
    /// Whether enough has been written since the last pass to make one worth it.
    pub fn compaction_due(&self, settings: &Settings, now_ms: i64) -> bool {
        let count = self.cleanable(settings, now_ms);
        let cleanable = || self.segments.iter().take(count);
        let dirty = |segment: &&Segment| segment.next > self.cleaned_to;
        let dirty_bytes: u64 = cleanable().filter(dirty).map(|segment| segment.size).sum();
        let total: u64 = cleanable().map(|segment| segment.size).sum();
        let aged = cleanable().any(|segment| {
            // Only a segment that still holds something can lose a tombstone.
            segment.size > 0
                && segment
                    .cleaned_ms
                    .is_some_and(|at| (at..at + 60_000).contains(&(now_ms - settings.delete_retention_ms)))
        });
        dirty_bytes > 0 && dirty_bytes as f64 >= settings.min_cleanable_dirty_ratio * total as f64 || aged
    }

    /// Goes over all closed segments that may be compacted.
    pub fn compact(&mut self, settings: &Settings, now_ms: i64) -> io::Result<Compacted> {
        let cleanable = self.cleanable(settings, now_ms);
        let (keys, covered) = self.last_offsets(cleanable)?;
        let end = self.segments.get(covered).map_or_else(|| self.end(), |segment| segment.base);
        let mut filter = Filter { keys: &keys, aborted: HashMap::new(), kept_data: HashMap::new() };
        for aborted in self.producers.aborted_between(self.start, end) {
            let ranges = filter.aborted.entry(aborted.producer_id).or_default();
            ranges.push((aborted.first_offset, aborted.last_offset));
        }
        let mut done = Compacted::default();
        for segment in self.segments.iter_mut().take(covered) {
            let horizon = segment.cleaned_ms.map(|at| at + settings.delete_retention_ms);
            let drop_tombstones = horizon.is_some_and(|horizon| now_ms >= horizon);
            done.bytes_before += segment.size;
            let cleaned = filter.rewrite(segment, drop_tombstones)?;
            if cleaned.size < segment.size {
                segment.replace_with(cleaned)?;
            } else {
                cleaned.delete()?;
            }
            segment.cleaned_ms.get_or_insert(now_ms);
            done.bytes_after += segment.size;
        }
        self.cleaned_to = self.cleaned_to.max(end);
        self.drop_empty_segments()?;
        Ok(done)
    }

    /// Removes closed segments of which nothing was kept. Readers pass the gap.
    fn drop_empty_segments(&mut self) -> io::Result<()> {
        let last = self.segments.len() - 1;
        let mut kept = VecDeque::with_capacity(self.segments.len());
        for (at, segment) in std::mem::take(&mut self.segments).into_iter().enumerate() {
            if at < last && segment.size == 0 {
                segment.delete()?;
            } else {
                kept.push_back(segment);
            }
        }
        self.segments = kept;
        Ok(())
    }

    /// How many segments from the front may be gone over.
    fn cleanable(&self, settings: &Settings, now_ms: i64) -> usize {
        let stable = self.stable_end();
        let old_enough = now_ms.saturating_sub(settings.min_compaction_lag_ms);
        let closed = self.segments.len() - 1;
        let may = |segment: &&Segment| {
            segment.next <= stable
                && (settings.min_compaction_lag_ms == 0 || segment.max_timestamp <= old_enough)
        };
        self.segments.iter().take(closed).take_while(may).count()
    }

    /// The last offset of each key in the first `cleanable` segments, or in as many of them as
    /// the bound on keys allows; returns that number too.
    fn last_offsets(&self, cleanable: usize) -> io::Result<(KeyMap, usize)> {
        let mut keys = KeyMap::new();
        for (at, segment) in self.segments.iter().take(cleanable).enumerate() {
            if at > 0 && keys.last.len() >= KEYS_MAX {
                return Ok((keys, at));
            }
            let mut position = 0;
            while let Some(located) = segment.batch_at(position)? {
                position += located.header.size() as u64;
                let header = located.header;
                if header.control() || self.aborted(&header) {
                    continue;
                }
                let bytes = segment.read(located.position, header.size())?;
                for_each_record(&header, &bytes, |record| {
                    if let Some(key) = record.key {
                        let hash = keys.hash(key);
                        keys.last.insert(hash, header.base_offset + record.offset_delta);
                    }
                })?;
            }
        }
        Ok((keys, cleanable))
    }

    fn aborted(&self, header: &Header) -> bool {
        let overlapping = || self.producers.aborted_between(header.base_offset, header.base_offset + 1);
        header.transactional()
            && overlapping().iter().any(|aborted| aborted.producer_id == header.producer_id)
    }
}

impl Filter<'_> {
    /// Writes what is kept of a segment into a new one.
    fn rewrite(&mut self, segment: &Segment, drop_tombstones: bool) -> io::Result<Segment> {
        let mut cleaned = segment.scratch()?;
        let mut position = 0;
        while let Some(located) = segment.batch_at(position)? {
            position += located.header.size() as u64;
            let bytes = segment.read(located.position, located.header.size())?;
            if let Some(kept) = self.keep(&located.header, bytes, drop_tombstones)? {
                let header = Header::parse(&kept)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                cleaned.append(&header, &kept, segment.first_append_ms.unwrap_or(0))?;
            }
        }
        Ok(cleaned)
    }

    /// The batch as it is to be kept, or none.
    fn keep(&mut self, header: &Header, bytes: Bytes, drop_tombstones: bool) -> io::Result<Option<Bytes>> {
        if header.control() {
            // A marker outlives its data, or a restart would take kept data for undecided.
            let has_data = self.kept_data.remove(&header.producer_id).unwrap_or(false);
            return Ok((has_data || !drop_tombstones).then_some(bytes));
        }
        let in_range = |(first, last): &(i64, i64)| (*first..=*last).contains(&header.base_offset);
        let ranges = self.aborted.get(&header.producer_id);
        if header.transactional() && ranges.is_some_and(|ranges| ranges.iter().any(in_range)) {
            return Ok(None);
        }
        let mut kept = BytesMut::new();
        let mut count = 0;
        for_each_record(header, &bytes, |record| {
            let offset = header.base_offset + record.offset_delta;
            let last = record.key.and_then(|key| self.keys.last.get(&self.keys.hash(key)));
            let superseded = last.is_none_or(|last| *last > offset);
            if !superseded && !(record.tombstone && drop_tombstones) {
                kept.extend_from_slice(record.raw);
                count += 1;
            }
        })?;
        if count > 0 && header.transactional() {
            self.kept_data.insert(header.producer_id, true);
        }
        if count == header.count {
            return Ok(Some(bytes));
        }
        let attributes = batch::uncompressed(header.attributes);
        let header = Header { count, attributes, ..*header };
        Ok((count > 0).then(|| batch::assemble(&header, &kept).freeze()))
    }
}

fn for_each_record(
    header: &Header,
    bytes: &Bytes,
    mut each: impl FnMut(batch::RecordView<'_>),
) -> io::Result<()> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let records = batch::records_of(header, bytes).map_err(invalid)?;
    for record in batch::walk(&records) {
        each(record.map_err(invalid)?);
    }
    Ok(())
}
