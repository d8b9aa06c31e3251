//! Opens a log after a stop or a kill: reads every batch, cuts what was torn, rebuilds producers.
//!
//! A kill can only tear the end of the last segment, because every earlier one was complete before
//! its successor was created. So a bad batch at the end of the last segment is cut off and said
//! so, and a bad batch anywhere else is damage that the broker refuses to hide.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tidemill_batches::{BatchError, COMMIT, HEADER_LEN, Header, control_type};

use super::producers::Producers;
use super::segment::{self, Segment};
use super::{Log, VecDeque};

/// A file cannot hold a larger batch than a request could bring.
const BATCH_BYTES_MAX: usize = 1 << 30;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    File {
        /// File or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A segment other than the last has a bad batch, which a kill cannot cause.
    #[error(
        "{path} is damaged at byte {position}: {reason}; restore the file or delete the topic's directory"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where.
        position: u64,
        /// What is wrong.
        reason: BatchError,
    },
}

impl Log {
    /// Opens the log in `directory`; `start` is the log start known from the metadata journal.
    pub fn open(
        directory: PathBuf,
        start: i64,
        sync_every_append: bool,
        now_ms: i64,
    ) -> Result<Log, RecoverError> {
        let file_error = |source| RecoverError::File { path: directory.clone(), source };
        let bases = segment_bases(&directory).map_err(file_error)?;
        let mut producers = Producers::default();
        let mut segments = VecDeque::new();
        for (at, base) in bases.iter().enumerate() {
            let path = directory.join(segment::file_name(*base));
            let last = at + 1 == bases.len();
            segments.push_back(replay(&path, *base, (last, now_ms), &mut producers)?);
        }
        let end = segments.back().map_or(0, |segment: &Segment| segment.next);
        if segments.is_empty() || start > end {
            // The journal outlived the data, which only a power loss can do: begin after it.
            segments.push_back(Segment::create(Some(&directory), start.max(end)).map_err(file_error)?);
        }
        let start = segments.front().map_or(start, |first| start.max(first.base));
        producers.trim(start);
        let directory = Some(directory);
        Ok(Log { producers, directory, segments, start, cleaned_to: start, sync_every_append })
    }
}

/// Base offsets of the segment files, sorted. Removes what an interrupted compaction left.
fn segment_bases(directory: &Path) -> io::Result<Vec<i64>> {
    let mut bases = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("cleaned") => std::fs::remove_file(&path)?,
            Some("log") => bases.extend(stem.parse::<i64>().ok()),
            _ => {}
        }
    }
    bases.sort_unstable();
    Ok(bases)
}

/// Reads one segment from start to end.
fn replay(
    path: &Path,
    base: i64,
    (last, now_ms): (bool, i64),
    producers: &mut Producers,
) -> Result<Segment, RecoverError> {
    let file_error = |source| RecoverError::File { path: path.to_owned(), source };
    let mut segment = Segment::open(path.to_owned(), base).map_err(file_error)?;
    let mut reader = io::BufReader::with_capacity(1 << 20, File::open(path).map_err(file_error)?);
    loop {
        let batch = match next_batch(&mut reader, segment.next).map_err(file_error)? {
            Ok(None) => return Ok(segment),
            Ok(Some(batch)) => batch,
            Err(reason) if !last => {
                let (path, position) = (path.to_owned(), segment.size);
                return Err(RecoverError::Damaged { path, position, reason });
            }
            Err(reason) => {
                tracing::warn!(path = %path.display(), position = segment.size, %reason, "cut a torn write");
                segment.truncate_to_size().map_err(file_error)?;
                return Ok(segment);
            }
        };
        let (header, bytes) = batch;
        // Records may have no time, or one before 1970: those are as old as the start, or retention would take them at once.
        let appended_ms = if header.max_timestamp < 0 { now_ms } else { header.max_timestamp };
        segment.first_append_ms.get_or_insert(appended_ms);
        segment.note(&header);
        if header.control() {
            producers.ended(&header, is_commit(&header, &bytes), now_ms);
        } else {
            producers.appended(&header, now_ms);
        }
    }
}

/// A whole batch, nothing at a clean end of the file, or what is wrong with the bytes.
type NextBatch = Result<Option<(Header, Vec<u8>)>, BatchError>;

/// Reads one batch.
fn next_batch(reader: &mut impl Read, expected: i64) -> io::Result<NextBatch> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    reader.by_ref().take(HEADER_LEN as u64).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(Ok(None));
    }
    let header = match Header::parse(&bytes) {
        Ok(header) if header.size() <= BATCH_BYTES_MAX && header.base_offset >= expected => header,
        Ok(_) => return Ok(Err(BatchError::Header)),
        Err(error) => return Ok(Err(error)),
    };
    reader.by_ref().take((header.size() - HEADER_LEN) as u64).read_to_end(&mut bytes)?;
    Ok(Header::check(&bytes).map(|header| Some((header, bytes))))
}

/// Whether a control batch commits.
fn is_commit(header: &Header, bytes: &[u8]) -> bool {
    let records = bytes.get(HEADER_LEN..header.size()).unwrap_or_default();
    control_type(records) == Ok(Some(COMMIT))
}
