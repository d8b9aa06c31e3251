//! The one recovery rule: from whatever is on disk and in Kafka to a task's start, or to a sentence
//! that says why there can be none. The same for a crash, a move and an unknown outcome.
//!
//! ```text
//!   (the caller has fenced its predecessor: init_transactions)
//!   1  fetch the group's stable offsets
//!   2  open the store, or delete it and begin an empty one
//!   3  take the changelog's bounds; read it from the store's offset to the high watermark
//!   4  compare position record, offsets, topic ids, incarnation: start, or halt
//! ```
//!
//! A deployment with an inbox has a second log: [`ids`] brings it in after the changelog, because the
//! position record says what of it must be there.
//!
//! Blocking; runs on a restore thread. The decisions are in [`decide`], as pure functions.

mod decide;
mod ids;
mod replay;

use std::path::Path;
use std::time::Duration;

pub use decide::{Decision, Facts, Known, Started, StoreVerdict, decide, judge_store, made_again};
pub use replay::Replayed;

use self::decide::cut_off;
use self::replay::Replay;
use super::{Rewrites, Start, TaskConfig};
use crate::faults::{CrashPoint, crash_point};
use crate::ports::{CommittedOffset, Log, Recovery, SourceError};
use crate::record::{InputPartition, Offset};
use crate::store::{Identity, Opening, Store, StoreBudget, StoreError};

/// Fetches of offsets that must exist before their absence is believed.
const MISSING_FETCHES: u32 = 6;
const MISSING_PAUSE: Duration = Duration::from_secs(1);
/// Looks at a changelog that ends below its store before it is believed to have lost records, and the
/// pause between two. Kafka answers a commit before its markers are written, and the store counts
/// the marker: a task that moves at once may find its changelog without it.
const SHORT_LOG_LOOKS: u32 = 300;
const SHORT_LOG_PAUSE: Duration = Duration::from_millis(100);
/// Changelog records between two reports of progress.
const REPORT_EVERY_RECORDS: u64 = 10_000;

/// What is known about a task before its recovery.
pub struct Job<'a> {
    pub config: &'a TaskConfig,
    pub partition: i32,
    pub known: Known,
    pub cluster_id: &'a str,
    /// Not used by a stateless task.
    pub disk: Disk<'a>,
    pub rules: Rules,
}

/// Where the task's store lies.
pub struct Disk<'a> {
    pub budget: &'a StoreBudget,
    /// Of this task alone.
    pub dir: &'a Path,
    /// The store itself, when it is still open from a former start.
    pub open: Option<Store>,
}

/// What ages mean; from the changelog's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// `delete.retention.ms`
    pub delete_retention: Duration,
    /// `min.compaction.lag.ms`
    pub min_compaction_lag: Duration,
    pub old_tail: OldTail,
    /// Now, milliseconds since the epoch.
    pub wall_ms: i64,
}

/// What an unclosed tail means (`at_least_once`) that is so old that compaction may have preferred
/// its rows to committed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OldTail {
    #[default]
    Halt,
    Apply,
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreProgress {
    /// Offsets up to the high watermark; some may hold no record.
    pub remaining: u64,
    pub records: u64,
    pub bytes: u64,
}

/// How a caller takes part in a recovery.
pub struct Hooks<'a> {
    /// Called now and then while restoring; false stops the recovery.
    pub progress: &'a mut dyn FnMut(RestoreProgress) -> bool,
    /// Waits, or answers false to stop the recovery.
    pub pause: &'a mut dyn FnMut(Duration) -> bool,
}

/// What was done to the store, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Why a store was deleted and rebuilt, if one was.
    pub rebuilt: Option<String>,
    /// Where reading began.
    pub from: Offset,
    pub replayed: Replayed,
    /// Records of an old unclosed tail that the policy had applied.
    pub tail_applied: u64,
    /// For the start, which takes it.
    rewrites: Rewrites,
}

#[derive(Debug)]
pub enum Outcome {
    Start(Start, Report),
    /// Resolve `start:` of these inputs, write it to the registry, and recover again with it.
    Unresolved(Vec<u16>, Option<Store>),
    /// Only a person can help; the sentence says what, where, and how.
    Halt(String),
    /// A hook or the reader said stop. The next recovery goes on from what the store holds.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Kafka(#[from] SourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Recovers one task. Except in a start the store is closed, with what was restored, before this
/// returns (and left behind unflushed by an error, which costs restoring it again).
pub fn recover(
    job: Job<'_>,
    kafka: &mut dyn Recovery,
    hooks: &mut Hooks<'_>,
) -> Result<Outcome, RecoveryError> {
    let Job { config, partition, known, cluster_id, disk, rules } = job;
    let Some(committed) = unless_stopped(kafka.committed(&partitions(config, partition)))? else {
        return stopped(disk.open);
    };
    let mut report = Report::default();
    let mut store = None;
    if !config.is_stateless() {
        let identity = Identity {
            cluster_id: cluster_id.to_owned(),
            incarnation: config.incarnation.clone(),
            changelog_topic_id: config.changelog.topic_id.clone(),
        };
        let restore = Restore { config, partition, budget: disk.budget, dir: disk.dir, identity, rules };
        let restored = restore.run(disk.open, kafka, hooks, &mut report)?;
        let restored = match (restored, &config.inbox) {
            (Restored::Done(done), Some(_)) => restore.inbox(*done, kafka, hooks)?,
            (restored, _) => restored,
        };
        match restored {
            Restored::Done(done) => store = Some(*done),
            Restored::Halt(reason) => return Ok(Outcome::Halt(reason)),
            Restored::Stopped => return Ok(Outcome::Stopped),
        }
    }
    let facts = Deciding { config, partition, known: &known, writer_seen: report.replayed.writer_seen };
    let decision = facts.decide(store.as_ref(), committed, kafka, hooks)?;
    match decision {
        Some(Decision::Start { next, writer, unbound, first }) => {
            let rewrites = std::mem::take(&mut report.rewrites);
            Ok(Outcome::Start(Start { store, next, writer, unbound, first, rewrites }, report))
        }
        Some(Decision::Unresolved(inputs)) => Ok(Outcome::Unresolved(inputs, store)),
        Some(Decision::Halt(reason) | Decision::Missing(reason)) => {
            store.map_or(Ok(()), Store::close)?;
            Ok(Outcome::Halt(reason))
        }
        None => stopped(store),
    }
}

fn stopped(store: Option<Store>) -> Result<Outcome, RecoveryError> {
    store.map_or(Ok(()), Store::close)?;
    Ok(Outcome::Stopped)
}

/// None = the reader was told to stop, which is no failure.
fn unless_stopped<T>(read: Result<T, SourceError>) -> Result<Option<T>, RecoveryError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(SourceError::Stopped) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn partitions(config: &TaskConfig, partition: i32) -> Vec<InputPartition> {
    (0..config.inputs.len()).map(|input| InputPartition { input: input as u16, partition }).collect()
}

/// The last step, repeated while an offset that must exist is missing.
struct Deciding<'a> {
    config: &'a TaskConfig,
    partition: i32,
    known: &'a Known,
    writer_seen: u64,
}

impl Deciding<'_> {
    /// None = stopped.
    fn decide(
        &self,
        store: Option<&Store>,
        mut committed: Vec<Option<CommittedOffset>>,
        kafka: &mut dyn Recovery,
        hooks: &mut Hooks<'_>,
    ) -> Result<Option<Decision>, RecoveryError> {
        let mut fetches = 1;
        loop {
            let facts = Facts {
                config: self.config,
                partition: self.partition,
                position: store.and_then(Store::position),
                writer_seen: self.writer_seen,
                committed: &committed,
                known: self.known,
            };
            let decision = decide(&facts);
            if !matches!(decision, Decision::Missing(_)) || fetches == MISSING_FETCHES {
                return Ok(Some(decision));
            }
            if !(hooks.pause)(MISSING_PAUSE) {
                return Ok(None);
            }
            let again = kafka.look_up_again();
            let again = again.and_then(|()| kafka.committed(&partitions(self.config, self.partition)));
            let Some(found) = unless_stopped(again)? else { return Ok(None) };
            committed = found;
            fetches += 1;
        }
    }
}

enum Restored {
    Done(Box<Store>),
    Halt(String),
    Stopped,
}

/// Brings a store to the changelog's high watermark.
struct Restore<'a> {
    config: &'a TaskConfig,
    partition: i32,
    budget: &'a StoreBudget,
    dir: &'a Path,
    identity: Identity,
    rules: Rules,
}

impl Restore<'_> {
    fn run(
        &self,
        open: Option<Store>,
        kafka: &mut dyn Recovery,
        hooks: &mut Hooks<'_>,
        report: &mut Report,
    ) -> Result<Restored, RecoveryError> {
        // Before the store is opened, which would be in vain while Kafka is away.
        let Some(mut bounds) = self.bounds(Log::Changelog, Offset(0), kafka, hooks)? else {
            open.map_or(Ok(()), Store::close)?;
            return Ok(Restored::Stopped);
        };
        let mut store = match open {
            Some(store) => store,
            None => self.open(report)?,
        };
        let next = store.progress().changelog_next;
        if next > bounds.1 {
            let Some(later) = self.bounds(Log::Changelog, next, kafka, hooks)? else {
                store.close()?;
                return Ok(Restored::Stopped);
            };
            bounds = later;
        }
        let retention_ms = millis(self.rules.delete_retention);
        match judge_store(store.progress(), bounds, retention_ms, self.rules.wall_ms) {
            StoreVerdict::Use => {}
            StoreVerdict::Halt(reason) => {
                store.close()?;
                return Ok(Restored::Halt(format!(
                    "changelog {}/{}, store {}: {reason}",
                    self.config.changelog.topic,
                    self.partition,
                    self.dir.display()
                )));
            }
            StoreVerdict::Rebuild(why) => {
                drop(store);
                store = self.rebuild(why, report)?;
            }
        }
        match self.replay(store, bounds, kafka, hooks, report) {
            Err(RecoveryError::Store(StoreError::Corrupt(why))) if bounds.0 > Offset(0) => {
                Ok(Restored::Halt(format!("{}: {why}; {}", self.dir.display(), cut_off(Offset(0), bounds.0))))
            }
            Err(RecoveryError::Store(StoreError::Corrupt(why))) => {
                // Once; a second time it is the disk.
                let store = self.rebuild(why, report)?;
                self.replay(store, bounds, kafka, hooks, report)
            }
            restored => restored,
        }
    }

    /// The bounds of a log, looked at again while it ends below `next`. None = stopped.
    fn bounds(
        &self,
        log: Log,
        next: Offset,
        kafka: &mut dyn Recovery,
        hooks: &mut Hooks<'_>,
    ) -> Result<Option<(Offset, Offset)>, RecoveryError> {
        let mut looks = 0;
        loop {
            let Some(bounds) = unless_stopped(kafka.log_bounds(log, self.partition))? else {
                return Ok(None);
            };
            if next <= bounds.1 || looks == SHORT_LOG_LOOKS {
                return Ok(Some(bounds));
            }
            if !(hooks.pause)(SHORT_LOG_PAUSE) {
                return Ok(None);
            }
            looks += 1;
        }
    }

    fn open(&self, report: &mut Report) -> Result<Store, StoreError> {
        match Store::open(self.budget, self.dir, &self.identity)? {
            Opening::Ready(store) => Ok(*store),
            Opening::Missing => Store::create(self.budget, self.dir, &self.identity),
            Opening::Unusable(why) => self.rebuild(why.to_string(), report),
        }
    }

    fn rebuild(&self, why: String, report: &mut Report) -> Result<Store, StoreError> {
        tracing::warn!(
            deployment = %self.config.deployment,
            partition = self.partition,
            "store {} is deleted and rebuilt from its changelog: {why}",
            self.dir.display(),
        );
        report.rebuilt = Some(why);
        Store::destroy(self.budget, self.dir)?;
        Store::create(self.budget, self.dir, &self.identity)
    }

    fn replay(
        &self,
        mut store: Store,
        (_, log_end): (Offset, Offset),
        kafka: &mut dyn Recovery,
        hooks: &mut Hooks<'_>,
        report: &mut Report,
    ) -> Result<Restored, RecoveryError> {
        let from = store.progress().changelog_next;
        report.from = from;
        let mut replay = Replay::new(&mut store);
        let mut failed = None;
        let mut stopped = false;
        let read = kafka.read_log(Log::Changelog, self.partition, (from, log_end), &mut |record| {
            crash_point(CrashPoint::DuringRestore);
            let next = Offset(record.offset.0 + 1);
            if let Err(error) = replay.push(record) {
                failed = Some(error);
                return false;
            }
            let seen = replay.seen();
            if seen.records.is_multiple_of(REPORT_EVERY_RECORDS) {
                let remaining = next.lag(log_end);
                stopped = !(hooks.progress)(RestoreProgress {
                    remaining,
                    records: seen.records,
                    bytes: seen.bytes,
                });
            }
            !stopped
        });
        let read = unless_stopped(read)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if stopped || read.is_none() {
            replay.stop()?;
            store.close()?;
            return Ok(Restored::Stopped);
        }
        if let Some(reason) = self.judge_tail(&mut replay, report) {
            replay.stop()?;
            store.close()?;
            return Ok(Restored::Halt(reason));
        }
        (report.replayed, report.rewrites) = replay.finish(log_end)?;
        let Replayed { records, bytes, .. } = report.replayed;
        (hooks.progress)(RestoreProgress { remaining: 0, records, bytes });
        Ok(Restored::Done(Box::new(store)))
    }

    /// Stamped rows that nothing closed. New ones are dropped: their commit did not happen, and their
    /// input is read again. Old ones may have made compaction remove committed values.
    fn judge_tail(&self, replay: &mut Replay<'_>, report: &mut Report) -> Option<String> {
        let (tail, age_ms) = replay.tail(self.rules.wall_ms)?;
        if age_ms <= millis(self.rules.min_compaction_lag) / 2 {
            return None;
        }
        match self.rules.old_tail {
            OldTail::Apply => {
                report.tail_applied = tail.rows;
                replay.accept_tail();
                None
            }
            OldTail::Halt => Some(format!(
                "changelog {}/{} ends in {} records of an unfinished commit, from offset {}, and its last position record is {} s old, \
                 more than half of min.compaction.lag.ms: compaction may have preferred them to committed values; let the deployment \
                 apply them, or delete it and deploy it again to begin anew",
                self.config.changelog.topic,
                self.partition,
                tail.rows,
                tail.first,
                age_ms / 1000,
            )),
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
