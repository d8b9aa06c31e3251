//! The order in which the letters of a partition come back.
//!
//! Normally that of the topic: a key's records fail in their order, so its letters lie in it. A record that
//! came back and failed again is a letter behind those of later records of its key, which may still wait.
//! So a first look finds the keys whose letters lie out of the order of their records; those letters come
//! first, sorted; then everything comes as it lies, and the task passes over what it has marked by then.
//!
//! ```text
//!   topic      a@1   b@2   a@5   a@1 (again)   c@9        a: out of order
//!   first      a@1 (again)   a@5                          the first a@1 is marked since it came back
//!   then       a@1   b@2   a@5   a@1 (again)   c@9        of which b and c are given back
//! ```

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use super::Reading;
use crate::ports::{SourceError, TopicRecord};
use crate::record::Offset;
use crate::store::{StoreError, Table};
use crate::task::TaskConfig;
use crate::task::letter::Letter;
use crate::task::redrive::{LetterPage, Redrive, Standing, mark_key};

/// Letters of one page, and their bytes.
const PAGE_LETTERS: usize = 200;
const PAGE_BYTES: usize = 1 << 20;
/// Letters that come before their turn, in bytes of all of them.
const EARLY_BYTES_MAX: usize = 64 << 20;

/// Reads one partition of a dead-letter topic, read_committed.
pub trait Scan {
    /// Where it begins.
    fn start(&mut self) -> Result<Offset, SourceError>;

    /// Reads until the position reaches the second offset. `apply` answers false to stop early.
    fn scan(
        &mut self,
        range: (Offset, Offset),
        apply: &mut dyn FnMut(TopicRecord) -> bool,
    ) -> Result<(), SourceError>;
}

/// Why a feed ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error(transparent)]
    Kafka(#[from] SourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "its letters that lie out of the order of their records are more than {} MiB: give some back first, by --key or --offsets",
        EARLY_BYTES_MAX >> 20
    )]
    TooManyEarly,
}

/// Reads to the end of the order. `send` takes the pages, and answers false when nobody wants more.
pub fn run(
    reading: &Reading,
    config: &TaskConfig,
    scan: &mut dyn Scan,
    send: &mut dyn FnMut(LetterPage) -> bool,
) -> Result<(), FeedError> {
    let Some(redrive) = reading.order.redrive(reading.partition) else { return Ok(()) };
    let mut feed =
        Feeding { reading, config, redrive, log_start: scan.start()?, page: LetterPage::default() };
    let range = (reading.from.max(feed.log_start), feed.redrive.end);
    if feed.early(range, scan, send)? {
        feed.stream(range, scan, send)?;
    }
    Ok(())
}

struct Feeding<'a> {
    reading: &'a Reading,
    config: &'a TaskConfig,
    redrive: Redrive,
    log_start: Offset,
    page: LetterPage,
}

impl Feeding<'_> {
    /// Sends what comes before its turn. False when nobody wants more.
    fn early(
        &self,
        range: (Offset, Offset),
        scan: &mut dyn Scan,
        send: &mut dyn FnMut(LetterPage) -> bool,
    ) -> Result<bool, FeedError> {
        if self.redrive.discard {
            return Ok(true);
        }
        let keys = self.disordered(range, scan)?;
        if keys.is_empty() {
            return Ok(true);
        }
        let (mut found, mut bytes, mut failed) = (Vec::new(), 0, None);
        scan.scan(range, &mut |record| {
            match self.wanted(&record) {
                Ok(Some((letter, _))) if letter.key.as_ref().is_some_and(|key| keys.contains(key)) => {
                    bytes += size(&record);
                    found.push((letter.original_offset, record));
                }
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
            failed.is_none() && bytes <= EARLY_BYTES_MAX
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if bytes > EARLY_BYTES_MAX {
            return Err(FeedError::TooManyEarly);
        }
        found.sort_by_key(|(original, record)| (*original, record.offset));
        let mut records: Vec<TopicRecord> = found.into_iter().map(|(_, record)| record).collect();
        while !records.is_empty() {
            let rest = records.split_off(PAGE_LETTERS.min(records.len()));
            let page = LetterPage { records: records.into(), next: None, log_start: self.log_start };
            if !send(page) {
                return Ok(false);
            }
            records = rest;
        }
        Ok(true)
    }

    /// Keys with a letter whose record is older than that of a letter before it.
    fn disordered(
        &self,
        range: (Offset, Offset),
        scan: &mut dyn Scan,
    ) -> Result<HashSet<Vec<u8>>, FeedError> {
        let hasher = RandomState::new();
        let mut newest: HashMap<(u16, u64), u64> = HashMap::new();
        let mut keys = HashSet::new();
        let mut failed = None;
        scan.scan(range, &mut |record| {
            match self.wanted(&record) {
                Ok(Some((Letter { key: Some(key), original_offset, .. }, input))) => {
                    let newest = newest.entry((input, hasher.hash_one(&key))).or_insert(original_offset);
                    if original_offset < *newest {
                        keys.insert(key);
                    }
                    *newest = original_offset.max(*newest);
                }
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
            failed.is_none()
        })?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(keys),
        }
    }

    /// The letter that would be given back, and its input.
    fn wanted(&self, record: &TopicRecord) -> Result<Option<(Letter, u16)>, StoreError> {
        let (partition, filter) = (self.reading.partition, &self.redrive.filter);
        let Some(letter) = self.config.letter_of(filter, partition, record) else { return Ok(None) };
        let Standing::Of(input) = self.config.standing(&letter, self.redrive.retries_max) else {
            return Ok(None);
        };
        let mark = mark_key(&self.redrive.topic_id, letter.offset);
        let is_marked = self.reading.marks.snapshot(|marks| marks.row(Table::Letters, &mark))?.is_some();
        Ok((!is_marked).then_some((letter, input)))
    }

    /// Sends everything as it lies, to the end or until nobody wants more.
    fn stream(
        &mut self,
        range: (Offset, Offset),
        scan: &mut dyn Scan,
        send: &mut dyn FnMut(LetterPage) -> bool,
    ) -> Result<(), FeedError> {
        let (mut bytes, mut goes_on) = (0, true);
        if range.0 < range.1 {
            scan.scan(range, &mut |record| {
                if record.offset >= range.1 {
                    return false;
                }
                let next = Offset(record.offset.0 + 1);
                if self.config.letter_of(&self.redrive.filter, self.reading.partition, &record).is_some() {
                    bytes += size(&record);
                    self.page.records.push_back(record);
                }
                if self.page.records.len() >= PAGE_LETTERS || bytes >= PAGE_BYTES {
                    bytes = 0;
                    goes_on = send(self.take(next));
                }
                goes_on
            })?;
        }
        if goes_on {
            let end = self.redrive.end;
            send(self.take(end));
        }
        Ok(())
    }

    fn take(&mut self, next: Offset) -> LetterPage {
        let page = std::mem::take(&mut self.page);
        LetterPage { next: Some(next), log_start: self.log_start, ..page }
    }
}

fn size(record: &TopicRecord) -> usize {
    let parts = [&record.key, &record.value, &record.headers];
    parts.into_iter().flatten().map(Vec::len).sum()
}
