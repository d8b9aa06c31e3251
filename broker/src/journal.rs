//! The metadata journal: topics, committed offsets, groups and transactions, one JSON line each.
//!
//! Not the records: those are in the logs. State is what the entries, applied in order, leave
//! behind, so recovery has no rule of its own. A line is `crc32c(hex, 8) space json newline`; a
//! torn last line is cut off, any other bad line is damage and refused. When the file has grown
//! well beyond its live content it is written anew and renamed over the old one.
//!
//! The format is documented in `docs/formats/broker-journal.md`. On disk since 0.1: add, never
//! renumber or rename.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::Fsync;
use crate::group::{Committed, Membership};
use crate::txn::Transaction;

/// A rewrite is considered once this many bytes were appended since the last one.
const REWRITE_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// One change of metadata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// First entry of every file.
    Cluster {
        /// Format of this file; 1.
        version: u32,
        /// Cluster id that clients see.
        id: String,
    },
    /// A topic was created, or got partitions or other settings.
    Topic {
        /// Its name.
        name: String,
        /// Its id; also its directory.
        id: Uuid,
        /// Number of partitions.
        partitions: i32,
        /// Settings that differ from the defaults.
        settings: BTreeMap<String, String>,
    },
    /// A topic was deleted.
    TopicDeleted {
        /// Its id.
        id: Uuid,
    },
    /// The start of a partition's log moved.
    LogStart {
        /// Topic.
        id: Uuid,
        /// Partition.
        partition: i32,
        /// First offset that can be read.
        offset: i64,
    },
    /// Producer ids below this are taken.
    ProducerIds {
        /// The next one to hand out.
        next: i64,
    },
    /// A group's members and assignments at the end of a rebalance, or none.
    Group {
        /// The group.
        group: String,
        /// Members, absent if it has none.
        membership: Membership,
    },
    /// A group was deleted with its offsets.
    GroupDeleted {
        /// The group.
        group: String,
    },
    /// Offsets were committed.
    Offsets {
        /// The group.
        group: String,
        /// What was committed.
        offsets: Vec<Committed>,
    },
    /// Committed offsets were deleted.
    OffsetsDeleted {
        /// The group.
        group: String,
        /// Topic and partition.
        partitions: Vec<(String, i32)>,
    },
    /// Offsets were committed within a transaction that is not decided yet.
    PendingOffsets {
        /// The group.
        group: String,
        /// Producer of the transaction.
        producer_id: i64,
        /// What was committed.
        offsets: Vec<Committed>,
    },
    /// The pending offsets of a producer in a group were decided.
    OffsetsDecided {
        /// The group.
        group: String,
        /// Producer of the transaction.
        producer_id: i64,
        /// Whether they count now.
        commit: bool,
    },
    /// The state of a transactional id changed.
    Transaction {
        /// The transactional id.
        id: String,
        /// Its new state.
        state: Transaction,
    },
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    File {
        /// The journal.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A line other than a torn last one cannot be read.
    #[error("{path} is damaged at line {line}; restore the file or delete the data directory")]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
}

/// The open journal. Appends go to the file at once.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    fsync: Fsync,
    size: u64,
    size_rewritten: u64,
}

impl Journal {
    /// Opens or creates the journal and returns its entries in order.
    pub fn open(path: PathBuf, fsync: Fsync) -> Result<(Journal, Vec<Entry>), JournalError> {
        let file_error = |source| JournalError::File { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(&path).map_err(file_error)?;
        let bytes = std::fs::read(&path).map_err(file_error)?;
        let (entries, whole) = parse(&bytes, &path)?;
        if whole < bytes.len() {
            tracing::warn!(path = %path.display(), position = whole, "cut a torn write");
            file.set_len(whole as u64).map_err(file_error)?;
        }
        let size = whole as u64;
        Ok((Journal { path, file, fsync, size, size_rewritten: size }, entries))
    }

    /// Appends one entry. After an error nothing of it is in the file.
    pub fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let line = encode(entry)?;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += line.len() as u64;
        match self.fsync {
            Fsync::AtShutdown => Ok(()),
            Fsync::EveryWrite => self.file.sync_data(),
        }
    }

    /// Whether most of the file is likely to be obsolete.
    pub fn rewrite_due(&self) -> bool {
        self.size > REWRITE_BYTES_MIN.max(self.size_rewritten * 4)
    }

    /// Replaces the file by one that holds just `entries`.
    pub fn rewrite(&mut self, entries: &[Entry]) -> io::Result<()> {
        let path = self.path.with_extension("new");
        let mut text = String::new();
        for entry in entries {
            text.push_str(&encode(entry)?);
        }
        // Of an attempt that failed nothing is left.
        File::create(&path)?;
        // The handle that goes on: were the file opened again once it is renamed, and that failed, all that is appended
        // would go to the old one, which is gone.
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        std::fs::rename(&path, &self.path)?;
        self.file = file;
        self.size = text.len() as u64;
        self.size_rewritten = self.size;
        Ok(())
    }

    /// Forces everything to the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
impl Journal {
    /// One that takes nothing, as on a disk that is full.
    pub fn full() -> Journal {
        let path = PathBuf::from("/dev/full");
        let file = OpenOptions::new().append(true).open(&path).expect("Linux has it");
        Journal { path, file, fsync: Fsync::AtShutdown, size: 0, size_rewritten: 0 }
    }
}

fn encode(entry: &Entry) -> io::Result<String> {
    let json = serde_json::to_string(entry)?;
    Ok(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())))
}

/// Parses all lines; also returns the length of what is whole.
fn parse(bytes: &[u8], path: &Path) -> Result<(Vec<Entry>, usize), JournalError> {
    let mut entries = Vec::new();
    let mut whole = 0;
    for (at, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match parse_line(line) {
            Some(entry) => entries.push(entry),
            // A kill tears a line only at the end of the file.
            None if whole + line.len() == bytes.len() => break,
            None => return Err(JournalError::Damaged { path: path.to_owned(), line: at + 1 }),
        }
        whole += line.len();
    }
    Ok((entries, whole))
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let line = line.strip_suffix(b"\n")?;
    let (crc, json) = (line.get(..8)?, line.get(9..)?);
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    if crc != crc32c::crc32c(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(count: i64) -> Vec<Entry> {
        (0..count).map(|next| Entry::ProducerIds { next }).collect()
    }

    #[test]
    fn a_journal_cut_anywhere_loses_at_most_its_torn_line() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("metadata.journal");
        let (mut journal, _) = Journal::open(path.clone(), Fsync::AtShutdown).expect("opens");
        for entry in sample(5) {
            journal.append(&entry).expect("appends");
        }
        let bytes = std::fs::read(&path).expect("reads");
        for length in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..length]).expect("writes");
            let (mut journal, entries) = Journal::open(path.clone(), Fsync::AtShutdown).expect("opens");
            let lines = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(entries, sample(lines as i64), "cut at {length}");
            journal.append(&Entry::ProducerIds { next: 99 }).expect("appends");
            drop(journal);
            let (_, entries) = Journal::open(path.clone(), Fsync::AtShutdown).expect("opens");
            assert_eq!(entries.last(), Some(&Entry::ProducerIds { next: 99 }));
        }
    }

    #[test]
    fn what_is_appended_after_a_rewrite_stands_behind_it_whatever_an_earlier_attempt_left() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("metadata.journal");
        let (mut journal, _) = Journal::open(path.clone(), Fsync::AtShutdown).expect("opens");
        std::fs::write(path.with_extension("new"), [b'x'; 4096]).expect("writes");
        journal.append(&Entry::ProducerIds { next: 99 }).expect("appends");
        journal.rewrite(&sample(2)).expect("rewrites");
        journal.append(&Entry::ProducerIds { next: 2 }).expect("appends");
        let (_, entries) = Journal::open(path, Fsync::AtShutdown).expect("opens");
        assert_eq!(entries, sample(3));
    }

    #[test]
    fn damage_in_the_middle_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("metadata.journal");
        let (mut journal, _) = Journal::open(path.clone(), Fsync::AtShutdown).expect("opens");
        for entry in sample(3) {
            journal.append(&entry).expect("appends");
        }
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes[12] ^= 1;
        std::fs::write(&path, bytes).expect("writes");
        let error = Journal::open(path, Fsync::AtShutdown).expect_err("damaged");
        assert!(matches!(error, JournalError::Damaged { line: 1, .. }));
    }
}
