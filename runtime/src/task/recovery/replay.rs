//! From changelog records to store contents: which of them count, and how they are written.
//!
//! Records of a transaction carry no stamp and count as they come: aborted ones are never read.
//! Records written under `at_least_once` carry {writer, commit} and count when their commit is
//! closed:
//!
//! ```text
//!   offset   10      11      12          13      14          15
//!   record   a 3,7   b 3,7   pos 3,7     a 3,8   a 4,1       pos 4,1
//!            '---- closed ----'          |       '-- closed --'
//!                                        never closed: the next offset belongs to another commit
//! ```
//!
//! Compaction removes position records that a later one replaces, so a commit whose position record
//! is missing counts as closed when something is missing right behind its last record, and as never
//! closed when nothing is. That takes a commit that was never closed for a closed one once compaction has
//! removed what lay behind it. By then later records of its keys count: compaction keeps off the log's newer
//! part for `min.compaction.lag.ms`, and whoever comes across rows that do not count has them written over
//! with what is committed (`task/rewrite.rs`). For those a replay remembers their keys.
//!
//! A record of a writer older than one already seen never counts, and neither does one of a commit that is
//! not above the last closed one: a request of a dead life may come as late as it likes.

use std::collections::BTreeMap;

use prost::Message;

use crate::ports::LogView;
use crate::record::Offset;
use crate::store::{POSITION, Position, Progress, Run, Store, StoreError, is_changelog_key};
use crate::task::Rewrites;

/// Bytes of rows that are written as one batch, of the inbox's topic too.
pub(super) const CHUNK_BYTES: usize = 16 << 20;

/// What a replay came across.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    pub records: u64,
    pub bytes: u64,
    /// Records of commits that were never closed, or of an outdated writer.
    pub unclosed: u64,
    /// The highest writer number seen in stamps and position records.
    pub writer_seen: u64,
}

pub(super) struct Replay<'a> {
    store: &'a mut Store,
    /// Rows that count, in log order, not yet written.
    ready: Run,
    open: Option<OpenCommit>,
    /// After the last record that was looked at, or before it if that is not settled.
    next: Offset,
    /// Of the last record before `next` that may count.
    changelog_ms: i64,
    /// When the last position record was written.
    position_ms: i64,
    /// Stamp of the last commit that counts.
    closed: (u64, u64),
    /// Stamped commits up to this one are in the store, so that what compaction has made of one since is not looked at.
    applied: (u64, u64),
    /// Keys whose last record so far does not count, and about where that is: not behind it.
    hidden: BTreeMap<Vec<u8>, Offset>,
    /// Not behind the first of those, and `closed` before it. The next replay has to come across it, and to know what
    /// this one knew, as long as nothing is written over it.
    held: Option<(Offset, (u64, u64))>,
    seen: Replayed,
}

/// A stamped commit whose position record has not come yet. Bounded by the writer's overlay.
struct OpenCommit {
    stamp: (u64, u64),
    rows: Run,
    first: Offset,
    /// After its last record.
    next: Offset,
    /// `Replay::changelog_ms` without its records.
    before_ms: i64,
}

/// Stamped rows at the end of the log that nothing has closed.
#[derive(Debug)]
pub(super) struct Tail {
    pub rows: u64,
    pub first: Offset,
}

impl<'a> Replay<'a> {
    pub fn new(store: &'a mut Store) -> Replay<'a> {
        let progress = store.progress();
        let position = store.position().map_or((0, 0), |position| (position.writer, position.commit));
        let closed = progress.closed.unwrap_or(position);
        Replay {
            store,
            ready: Run::default(),
            open: None,
            next: progress.changelog_next,
            changelog_ms: progress.changelog_ms,
            position_ms: progress.changelog_ms,
            closed,
            applied: position,
            hidden: BTreeMap::new(),
            held: None,
            seen: Replayed { writer_seen: closed.0, ..Replayed::default() },
        }
    }

    pub fn seen(&self) -> Replayed {
        self.seen
    }

    /// Takes one record, in log order.
    pub fn push(&mut self, record: LogView<'_>) -> Result<(), StoreError> {
        self.seen.records += 1;
        self.seen.bytes += (record.key.len() + record.value.map_or(0, <[u8]>::len)) as u64;
        let after = Offset(record.offset.0 + 1);
        if record.stamp.is_some_and(|stamp| stamp.0 < self.seen.writer_seen || stamp <= self.closed) {
            self.seen.unclosed += 1;
            if is_changelog_key(record.key) {
                // Whoever goes on from there is to know what made it outdated.
                let at = self.open.as_ref().map_or(record.offset, |open| open.first);
                self.hide(record.key, at);
            }
            // It lies between the records of an open commit, not behind the last one.
            if let Some(open) = self.open.as_mut().filter(|open| open.next == record.offset) {
                open.next = after;
            }
            self.next = after;
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|open| Some(open.stamp) != record.stamp) {
            self.pass_open(record.offset);
        }
        if is_changelog_key(record.key) {
            match record.stamp {
                None => self.count(record)?,
                Some(stamp) => self.stamped(stamp, record)?,
            }
        }
        self.changelog_ms = self.changelog_ms.max(record.timestamp_ms);
        self.next = after;
        if self.ready.bytes() >= CHUNK_BYTES { self.write() } else { Ok(()) }
    }

    fn stamped(&mut self, stamp: (u64, u64), record: LogView<'_>) -> Result<(), StoreError> {
        self.seen.writer_seen = stamp.0;
        if record.key == POSITION {
            self.accept_tail();
            return self.count(record);
        }
        let before_ms = self.changelog_ms;
        let open = self.open.get_or_insert_with(|| OpenCommit {
            stamp,
            rows: Run::default(),
            first: record.offset,
            next: record.offset,
            before_ms,
        });
        open.next = Offset(record.offset.0 + 1);
        open.rows.push(record.key, record.value);
        Ok(())
    }

    /// Another commit's record at `offset` follows an open one.
    fn pass_open(&mut self, offset: Offset) {
        let Some(open) = self.open.take() else { return };
        if open.next == offset {
            self.seen.unclosed += open.rows.len() as u64;
            self.changelog_ms = open.before_ms;
            for (key, _) in open.rows.iter() {
                self.hide(key, open.first);
            }
            return;
        }
        self.close(&open);
    }

    /// All of it counts.
    fn close(&mut self, open: &OpenCommit) {
        self.closed = self.closed.max(open.stamp);
        if open.stamp > self.applied {
            self.ready.append(&open.rows);
        }
        if !self.hidden.is_empty() {
            for (key, _) in open.rows.iter() {
                // One of an old writer may lie behind it, among the commit's records.
                if self.hidden.get(key).is_some_and(|&at| at < open.first) {
                    self.reveal(key);
                }
            }
        }
    }

    /// The last record of this key does not count.
    fn hide(&mut self, key: &[u8], at: Offset) {
        self.held.get_or_insert((at, self.closed));
        self.hidden.insert(key.to_vec(), at);
    }

    /// The last record of this key counts.
    fn reveal(&mut self, key: &[u8]) {
        self.hidden.remove(key);
        if self.hidden.is_empty() {
            self.held = None;
        }
    }

    fn count(&mut self, record: LogView<'_>) -> Result<(), StoreError> {
        if record.key == POSITION {
            let position = Position::decode(record.value.unwrap_or_default()).map_err(|error| {
                StoreError::Refused(format!("position record at {}: {error}", record.offset))
            })?;
            self.seen.writer_seen = self.seen.writer_seen.max(position.writer);
            self.closed = self.closed.max((position.writer, position.commit));
            self.position_ms = record.timestamp_ms;
        }
        match record.stamp {
            Some(stamp) if stamp <= self.applied => {}
            Some(_) => self.ready.push(record.key, record.value),
            None => {
                // Nothing says whether it is in the store already, so all behind it is written again.
                self.applied = (0, 0);
                self.ready.push(record.key, record.value);
            }
        }
        if !self.hidden.is_empty() {
            self.reveal(record.key);
        }
        Ok(())
    }

    /// Writes what counts so far. Of several rows of a key the last one is written. An open commit is read again by whoever
    /// goes on from here, who must not take what came before it for younger than it is. Rows that do not count are read
    /// again as well, but not for their time: what counts behind them is in the store.
    fn write(&mut self) -> Result<(), StoreError> {
        let (ahead, changelog_ms) = match &self.open {
            Some(open) => (open.first, open.before_ms),
            None => (self.next, self.changelog_ms),
        };
        let (changelog_next, closed) = self.held.unwrap_or((ahead, self.closed));
        let progress =
            Progress { changelog_next, changelog_ms, closed: Some(closed), ..self.store.progress() };
        self.store.write(self.ready.last_of_each_key(), progress)?;
        self.ready.clear();
        Ok(())
    }

    /// How old the last position record is, and what follows it unclosed.
    pub fn tail(&self, wall_ms: i64) -> Option<(Tail, i64)> {
        let open = self.open.as_ref()?;
        let tail = Tail { rows: open.rows.len() as u64, first: open.first };
        Some((tail, wall_ms.saturating_sub(self.position_ms)))
    }

    /// Counts the open commit: it is closed, or to be taken as if it were.
    pub fn accept_tail(&mut self) {
        if let Some(open) = self.open.take() {
            self.close(&open);
        }
    }

    /// Ends a replay that reached `to`; with it the keys whose last record does not count. An unclosed tail stays
    /// ahead of the store, so that the next recovery sees its writer's number again.
    pub fn finish(mut self, to: Offset) -> Result<(Replayed, Rewrites), StoreError> {
        self.next = self.next.max(to);
        self.seen.unclosed += self.open.as_ref().map_or(0, |open| open.rows.len() as u64);
        self.write()?;
        if let Some(open) = self.open.take() {
            for (key, _) in open.rows.iter() {
                self.hide(key, open.first);
            }
        }
        Ok((self.seen, Rewrites { keys: self.hidden.into_keys().collect(), read_to: self.next }))
    }

    /// Ends a replay that was stopped on the way; what was written counts.
    pub fn stop(mut self) -> Result<(), StoreError> {
        self.write()
    }
}
