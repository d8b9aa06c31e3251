//! Compaction: keeps the last record of each key, drops aborted records, ages out tombstones.
//!
//! ```text
//!   Log::plan (with the lock) --> Job::run (without) --> Log::apply (with the lock)
//! ```
//! Closed segments below the last stable offset never change, so the work itself needs no lock.
//! It goes over them twice: first to find the last offset of each key, then to write each segment
//! anew without what is superseded. Offsets never change; a reader just finds gaps. Each segment
//! is replaced by an atomic rename, so a kill in between leaves some segments cleaned and some
//! not, both of which are right.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;

use bytes::{Bytes, BytesMut};
use tidemill_batches::{self as batch, BatchError, Header};

use super::Log;
use super::producers::Aborted;
use super::segment::{Located, Segment};
use crate::settings::Settings;

/// Distinct keys of one pass. Beyond it later segments wait for the next pass.
const KEYS_MAX: usize = 8_000_000;

/// A pass to be run over a snapshot of closed segments.
#[derive(Debug)]
pub struct Job {
    segments: Vec<Segment>,
    aborted: AbortedBy,
    delete_retention_ms: i64,
    now_ms: i64,
}

/// The result of a pass: a replacement for each segment gone over.
#[derive(Debug)]
pub struct Cleaned {
    replacements: Vec<Replacement>,
    now_ms: i64,
}

#[derive(Debug)]
struct Replacement {
    base: i64,
    next: i64,
    size_before: u64,
    /// Less is in it than was. It may be larger all the same: what is left of a compressed batch is not compressed.
    has_less: bool,
    cleaned: Segment,
}

/// Aborted transactions by producer, in log order.
type AbortedBy = HashMap<i64, Vec<Aborted>>;

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
    aborted: &'a AbortedBy,
    /// Producers of whose transaction a data batch has been kept since its last marker.
    kept_data: HashSet<i64>,
    /// Something of the present segment was not kept.
    dropped: bool,
}

impl Log {
    /// Whether enough has been written since the last pass, or enough time has gone by, to make
    /// one worth it.
    pub fn compaction_due(&self, settings: &Settings, now_ms: i64) -> bool {
        let cleanable = &|| self.segments.iter().take(self.cleanable(settings, now_ms));
        let dirty = |segment: &&Segment| segment.next > self.cleaned_to;
        let dirty_bytes: u64 = cleanable().filter(dirty).map(|segment| segment.size).sum();
        let total: u64 = cleanable().map(|segment| segment.size).sum();
        let old = |at: i64| now_ms.saturating_sub(at) >= settings.delete_retention_ms;
        let aged = cleanable().any(|segment| segment.ages && segment.cleaned_ms.is_some_and(old));
        let worth_it = dirty_bytes as f64 >= settings.min_cleanable_dirty_ratio * total as f64;
        aged || (dirty_bytes > 0 && worth_it)
    }

    /// A pass over all closed segments that may be compacted.
    pub fn plan(&self, settings: &Settings, now_ms: i64) -> Job {
        let count = self.cleanable(settings, now_ms);
        let segments: Vec<Segment> = self.segments.iter().take(count).cloned().collect();
        let end = segments.last().map_or(self.start, |last| last.next);
        let mut aborted = AbortedBy::new();
        for transaction in self.producers.aborted_between(self.start, end) {
            aborted.entry(transaction.producer_id).or_default().push(transaction);
        }
        Job { segments, aborted, delete_retention_ms: settings.delete_retention_ms, now_ms }
    }

    /// Puts the result of a pass in place, as far as the segments are still there.
    pub fn apply(&mut self, cleaned: Cleaned) -> io::Result<()> {
        for replacement in cleaned.replacements {
            let Replacement { base, next, size_before, has_less, cleaned: segment } = replacement;
            let same = |s: &&mut Segment| s.base == base && s.size == size_before && s.next == next;
            let Some(target) = self.segments.iter_mut().find(same) else {
                segment.delete()?;
                continue;
            };
            target.ages = segment.ages;
            target.cleaned_ms.get_or_insert(cleaned.now_ms);
            if has_less {
                target.replace_with(segment)?;
            } else {
                segment.delete()?;
            }
            self.cleaned_to = self.cleaned_to.max(next);
        }
        // Of the aborted transactions below, no record is left to be told about.
        self.producers.trim(self.cleaned_to);
        self.drop_empty_segments();
        Ok(())
    }

    /// Removes closed segments of which nothing was kept. Readers pass the gap.
    fn drop_empty_segments(&mut self) {
        let Some(last) = self.segments.pop_back() else { return };
        let (kept, empty) = self.segments.drain(..).partition(|segment| segment.size > 0);
        self.segments = kept;
        self.segments.push_back(last);
        let empty: VecDeque<Segment> = empty;
        for segment in empty {
            // A file that stays behind is empty, and the next start goes over it in no time.
            if let Err(error) = segment.delete() {
                tracing::warn!(%error, "cannot remove an empty segment");
            }
        }
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
}

impl Job {
    /// Does the work. Takes as long as reading and writing the segments takes.
    pub fn run(self) -> io::Result<Cleaned> {
        let (keys, covered) = self.last_offsets()?;
        let mut filter =
            Filter { keys: &keys, aborted: &self.aborted, kept_data: HashSet::new(), dropped: false };
        let mut replacements = Vec::with_capacity(covered);
        for segment in self.segments.iter().take(covered) {
            let old = |at: i64| self.now_ms.saturating_sub(at) >= self.delete_retention_ms;
            let mut cleaned = filter.rewrite(segment, segment.cleaned_ms.is_some_and(old))?;
            // Forced even by default: a power loss may cost what is new, never what is old.
            cleaned.sync()?;
            let Segment { base, next, size: size_before, .. } = *segment;
            let has_less = std::mem::take(&mut filter.dropped);
            replacements.push(Replacement { base, next, size_before, has_less, cleaned });
        }
        Ok(Cleaned { replacements, now_ms: self.now_ms })
    }

    /// The last offset of each key, and over how many segments: the bound on keys may leave
    /// later ones to the next pass.
    fn last_offsets(&self) -> io::Result<(KeyMap, usize)> {
        let mut keys = KeyMap::new();
        for (at, segment) in self.segments.iter().enumerate() {
            if at > 0 && keys.last.len() >= KEYS_MAX {
                return Ok((keys, at));
            }
            let mut position = 0;
            while let Some(Located { header, .. }) = segment.batch_at(position)? {
                let bytes = segment.read(position, header.size())?;
                position += header.size() as u64;
                if header.control() || is_aborted(&self.aborted, &header) {
                    continue;
                }
                for_each_record(&header, &bytes, |record| {
                    if let Some(key) = record.key {
                        let hash = keys.hash(key);
                        keys.last.insert(hash, header.base_offset.saturating_add(record.offset_delta));
                    }
                })?;
            }
        }
        Ok((keys, self.segments.len()))
    }
}

/// Whether a batch is part of an aborted transaction. Those of one producer do not overlap.
fn is_aborted(aborted: &AbortedBy, header: &Header) -> bool {
    let Some(of_producer) = aborted.get(&header.producer_id) else { return false };
    let at = of_producer.partition_point(|aborted| aborted.last_offset < header.base_offset);
    header.transactional() && of_producer.get(at).is_some_and(|a| a.first_offset <= header.base_offset)
}

impl Filter<'_> {
    /// Writes what is kept of a segment into a new one.
    fn rewrite(&mut self, segment: &Segment, drop_tombstones: bool) -> io::Result<Segment> {
        let mut cleaned = segment.scratch()?;
        let mut position = 0;
        while let Some(Located { header, .. }) = segment.batch_at(position)? {
            let bytes = segment.read(position, header.size())?;
            position += header.size() as u64;
            let kept = match header.control() {
                true => self.keep_marker(&header, drop_tombstones).then_some(bytes),
                false => self.keep_data(&header, bytes, drop_tombstones, &mut cleaned.ages)?,
            };
            cleaned.ages |= kept.is_some() && header.control();
            if let Some(kept) = kept {
                let header = Header::parse(&kept).map_err(invalid)?;
                cleaned.append(&header, &kept, segment.first_append_ms.unwrap_or(0))?;
            }
        }
        Ok(cleaned)
    }

    /// A marker outlives its data, or a restart would take kept data for undecided.
    fn keep_marker(&mut self, header: &Header, drop_tombstones: bool) -> bool {
        let has_data = self.kept_data.remove(&header.producer_id);
        let keeps = has_data || !drop_tombstones;
        self.dropped |= !keeps;
        keeps
    }

    /// What is to be kept of a data batch; `ages` becomes true if a tombstone is among it.
    fn keep_data(
        &mut self,
        header: &Header,
        bytes: Bytes,
        drop_tombstones: bool,
        ages: &mut bool,
    ) -> io::Result<Option<Bytes>> {
        if is_aborted(self.aborted, header) {
            self.dropped = true;
            return Ok(None);
        }
        let mut kept = BytesMut::new();
        let mut count = 0;
        for_each_record(header, &bytes, |record| {
            let offset = header.base_offset.saturating_add(record.offset_delta);
            let last = record.key.and_then(|key| self.keys.last.get(&self.keys.hash(key)));
            let superseded = last.is_none_or(|last| *last > offset);
            let expired = record.is_tombstone() && drop_tombstones;
            if !superseded && !expired {
                kept.extend_from_slice(record.raw);
                count += 1;
                *ages |= record.is_tombstone();
            }
        })?;
        if count > 0 && header.transactional() {
            self.kept_data.insert(header.producer_id);
        }
        if count == header.count {
            return Ok(Some(bytes));
        }
        self.dropped = true;
        let attributes = batch::uncompressed(header.attributes);
        let header = Header { count, attributes, ..*header };
        Ok((count > 0).then(|| batch::assemble(&header, &kept).freeze()))
    }
}

fn invalid(error: BatchError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn for_each_record(
    header: &Header,
    bytes: &Bytes,
    mut each: impl FnMut(batch::RecordView<'_>),
) -> io::Result<()> {
    let records = batch::records_of(header, bytes).map_err(invalid)?;
    for record in batch::walk(&records) {
        each(record.map_err(invalid)?);
    }
    Ok(())
}
