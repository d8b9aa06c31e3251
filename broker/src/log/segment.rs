//! A run of batches that is rolled, deleted and compacted as one; in memory or in one file.
//!
//! ```text
//!  base                                             next
//!   | batch | batch | batch | ...            | batch |      bytes: whole batches, end to end
//!   ^ index entry    ^ index entry (every 4 KiB)
//! ```
//! Invariant: `base <= first offset <= last offset < next`, offsets rise strictly. Only the last
//! segment of a log is written to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidemill_batches::{HEADER_LEN, Header};

/// Distance of index entries. A look-up walks at most this many bytes of headers, plus one batch.
const INDEX_INTERVAL_BYTES: u64 = 4096;

/// Where the bytes are. Shared with compaction, which reads closed segments without the lock.
#[derive(Debug, Clone)]
enum Store {
    Memory(Arc<Vec<u8>>),
    File { file: Arc<File>, path: PathBuf },
}

#[derive(Debug, Clone, Copy)]
struct IndexEntry {
    base_offset: i64,
    position: u64,
    /// Largest timestamp of everything **before** this position.
    max_timestamp_before: i64,
}

/// One segment.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Offset that the segment starts at; its file is named after it.
    pub base: i64,
    /// Offset after the last batch.
    pub next: i64,
    /// Bytes of all batches.
    pub size: u64,
    /// Largest timestamp, or -1.
    pub max_timestamp: i64,
    /// When the first batch was appended, ms since 1970.
    pub first_append_ms: Option<i64>,
    /// When compaction first went over it, ms since 1970; tombstones are kept for a while after.
    pub cleaned_ms: Option<i64>,
    /// Whether compaction kept something that is to go later: a tombstone or a marker.
    pub ages: bool,
    store: Store,
    index: Vec<IndexEntry>,
    indexed_to: u64,
    unsynced: bool,
}

/// A batch and where it lies in its segment.
#[derive(Debug, Clone, Copy)]
pub struct Located {
    /// Byte position.
    pub position: u64,
    /// Its header.
    pub header: Header,
}

impl Segment {
    /// A new, empty segment; a file in `directory` if there is one.
    pub fn create(directory: Option<&Path>, base: i64) -> io::Result<Segment> {
        let store = match directory {
            None => Store::Memory(Arc::default()),
            Some(directory) => {
                let path = directory.join(file_name(base));
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
                Store::File { file: Arc::new(file), path }
            }
        };
        Ok(Segment::new(store, base))
    }

    fn new(store: Store, base: i64) -> Segment {
        Segment {
            base,
            next: base,
            size: 0,
            max_timestamp: -1,
            first_append_ms: None,
            cleaned_ms: None,
            ages: false,
            store,
            index: Vec::new(),
            indexed_to: 0,
            unsynced: false,
        }
    }

    /// Opens a file without reading it; the caller replays its batches with [`Segment::note`].
    pub fn open(path: PathBuf, base: i64) -> io::Result<Segment> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        Ok(Segment::new(Store::File { file: Arc::new(file), path }, base))
    }

    /// Appends one whole batch. After an error the segment is as before.
    pub fn append(&mut self, header: &Header, batch: &[u8], now_ms: i64) -> io::Result<()> {
        match &mut self.store {
            // Nobody shares the segment that is written to, so this never copies it.
            Store::Memory(bytes) => Arc::make_mut(bytes).extend_from_slice(batch),
            Store::File { file, .. } => {
                if let Err(error) = file.write_all_at(batch, self.size) {
                    // Recovery would find half a batch; cutting it now saves that, and if the
                    // cut fails too, the next append writes over it.
                    let _ = file.set_len(self.size);
                    return Err(error);
                }
            }
        }
        self.first_append_ms.get_or_insert(now_ms);
        self.unsynced = true;
        self.note(header);
        Ok(())
    }

    /// Takes note of a batch that lies at the end of the bytes.
    pub fn note(&mut self, header: &Header) {
        if self.index.is_empty() || self.size - self.indexed_to >= INDEX_INTERVAL_BYTES {
            self.index.push(IndexEntry {
                base_offset: header.base_offset,
                position: self.size,
                max_timestamp_before: self.max_timestamp,
            });
            self.indexed_to = self.size;
        }
        self.size += header.size() as u64;
        self.next = header.next_offset();
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
    }

    /// Reads bytes; the range must lie within the segment.
    pub fn read(&self, position: u64, length: usize) -> io::Result<Bytes> {
        match &self.store {
            Store::Memory(bytes) => {
                let start = position as usize;
                let range = bytes.get(start..start + length);
                range.map(Bytes::copy_from_slice).ok_or(io::ErrorKind::UnexpectedEof.into())
            }
            Store::File { file, .. } => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, position)?;
                Ok(bytes.into())
            }
        }
    }

    /// The batch at a position, or none at the end.
    pub fn batch_at(&self, position: u64) -> io::Result<Option<Located>> {
        if position >= self.size {
            return Ok(None);
        }
        let header = match &self.store {
            Store::Memory(bytes) => Header::parse(&bytes[position as usize..]),
            Store::File { file, .. } => {
                let mut bytes = [0; HEADER_LEN];
                file.read_exact_at(&mut bytes, position)?;
                Header::parse(&bytes)
            }
        };
        let header = header.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some(Located { position, header }))
    }

    /// The first batch from `position` on for which `wanted` holds.
    pub fn find(&self, position: u64, wanted: impl Fn(&Header) -> bool) -> io::Result<Option<Located>> {
        let mut at = position;
        while let Some(located) = self.batch_at(at)? {
            if wanted(&located.header) {
                return Ok(Some(located));
            }
            at += located.header.size() as u64;
        }
        Ok(None)
    }

    /// The batch that holds `offset`, or the first one after it.
    pub fn find_offset(&self, offset: i64) -> io::Result<Option<Located>> {
        let after = self.index.partition_point(|entry| entry.base_offset <= offset);
        let start = after.checked_sub(1).map_or(0, |at| self.index[at].position);
        self.find(start, |header| header.last_offset() >= offset)
    }

    /// The first batch with a timestamp of at least `timestamp_ms`.
    pub fn find_timestamp(&self, timestamp_ms: i64) -> io::Result<Option<Located>> {
        if self.max_timestamp < timestamp_ms {
            return Ok(None);
        }
        let after = self.index.partition_point(|entry| entry.max_timestamp_before < timestamp_ms);
        let start = after.checked_sub(1).map_or(0, |at| self.index[at].position);
        self.find(start, |header| header.max_timestamp >= timestamp_ms)
    }

    /// Time of the newest record; if none has one, of the first append, in ms since 1970.
    pub fn newest_ms(&self) -> i64 {
        match self.max_timestamp {
            none if none < 0 => self.first_append_ms.unwrap_or(i64::MAX),
            newest => newest,
        }
    }

    /// Forces to the disk what was appended since the last time.
    pub fn sync(&mut self) -> io::Result<()> {
        if let Store::File { file, .. } = &self.store
            && self.unsynced
        {
            file.sync_data()?;
        }
        self.unsynced = false;
        Ok(())
    }

    /// Cuts a file to the batches noted so far; used once, after a torn write was found.
    pub fn truncate_to_size(&self) -> io::Result<()> {
        match &self.store {
            Store::Memory(_) => Ok(()),
            Store::File { file, .. } => file.set_len(self.size),
        }
    }

    /// Replaces the content by that of `cleaned`, atomically for a file. The caller has forced
    /// it to the disk.
    pub fn replace_with(&mut self, cleaned: Segment) -> io::Result<()> {
        self.store = match (cleaned.store, &self.store) {
            (Store::File { file, path: from }, Store::File { path, .. }) => {
                std::fs::rename(&from, path)?;
                Store::File { file, path: path.clone() }
            }
            (store, _) => store,
        };
        self.size = cleaned.size;
        self.max_timestamp = cleaned.max_timestamp;
        self.index = cleaned.index;
        self.indexed_to = cleaned.indexed_to;
        Ok(())
    }

    /// An empty segment beside this one for compaction to write to.
    pub fn scratch(&self) -> io::Result<Segment> {
        let store = match &self.store {
            Store::Memory(_) => Store::Memory(Arc::default()),
            Store::File { path, .. } => {
                let path = path.with_extension("cleaned");
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
                Store::File { file: Arc::new(file), path }
            }
        };
        Ok(Segment::new(store, self.base))
    }

    /// Removes the file, if any.
    pub fn delete(self) -> io::Result<()> {
        match self.store {
            Store::Memory(_) => Ok(()),
            Store::File { path, .. } => std::fs::remove_file(path),
        }
    }
}

/// `00000000000000000042.log`, Kafka's own naming, so that a listing sorts by offset.
pub fn file_name(base: i64) -> String {
    format!("{base:020}.log")
}
