//! Uploads of modules in `_<fleet>.modules`. Those that no version needs are deleted, by any node and by several at
//! once; nothing is agreed on for it.
//!
//! ```text
//!   read the topic to its end -> read the registry to its end -> null the chunks of what was not needed for a day
//! ```
//!
//! A module is **named** by every version that can run or be taken up again ([`Registry::modules`]). An upload is
//! **needed** while its module is named and no whole upload of the same module began later.
//!
//! Why a named module is never without a whole upload (at length in docs/decisions/0024-how-modules-leave-the-topic.md):
//! - A deploy uploads, also what is there already, and no two uploads share a key: nulls that come late, from a node
//!   that looked before, take nothing of it.
//! - `upload began <= named < upload began + LATE < upload began + KEEP`: what waits for its version stays. An upload
//!   whose version came later is repeated after it, and whoever sees the second one sees the version as well.
//! - A rollback uploads nothing. It is accepted only while its name is at the revision that was looked at, so what it
//!   takes up is named until then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::modules::{ChunkKey, ModuleError};
use super::registry::Registry;
use super::routine::Routine;
use super::runtime::NodeRuntime;
use crate::kafka::topic_log::{AppendError, TopicLog};
use crate::ports::{LogRecord, SourceError};
use crate::record::Offset;
use crate::telemetry::audit::Line;

/// Time between two looks, and until the first. A look reads what is new since the last one.
const EVERY: Duration = Duration::from_secs(3600);

/// How long an upload has not been needed when it goes. Measured by one process, from the end of one look's reading
/// to the beginning of another's: no wall clock of a node or a broker, and no sleep of this one, can make an upload
/// older than it is. A restart begins anew.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// What is longer from the beginning of an upload to its version is too long. It takes seconds, unless the node slept
/// in between.
const LATE: Duration = Duration::from_secs(3600);

/// Looks now and then until it is dropped.
pub fn start(node: Arc<NodeRuntime>) -> std::io::Result<Routine> {
    let mut uploads = Uploads::default();
    Routine::start("uploads", EVERY, move || {
        if let Err(error) = collect(&node, &mut uploads) {
            tracing::warn!(%error, "cannot collect uploads of modules that no version needs");
        }
    })
}

fn collect(node: &NodeRuntime, uploads: &mut Uploads) -> Result<(), ModuleError> {
    let log = &node.module_log;
    let unneeded = uploads.look(log, || node.control_log.catch_up(), Instant::now)?;
    for upload in &unneeded {
        upload.delete(log)?;
        let told = format!("an upload of {} bytes that no version needs", upload.bytes);
        Line::by_itself(&node.id, "Modules.Collect", &upload.module).write(0, "Ok", &told);
        node.telemetry.node.collected_uploads.add(1);
    }
    if !unneeded.is_empty() {
        let bytes: u64 = unneeded.iter().map(|upload| upload.bytes).sum();
        tracing::info!(uploads = unneeded.len(), bytes, "deleted uploads of modules that no version needs");
    }
    Ok(())
}

/// True if a version came so long after its upload that this may be gone. By the clock of whoever uploads and by that
/// of the registry's topic, which does not sleep with him; milliseconds since the epoch. Clocks that differ that much
/// are as good as late.
pub fn is_late(uploaded_ms: i64, named_ms: i64) -> bool {
    u128::from(named_ms.abs_diff(uploaded_ms)) >= LATE.as_millis()
}

/// An upload to be deleted.
#[derive(Debug)]
pub struct Unneeded {
    /// Digest of what was uploaded.
    module: String,
    keys: Vec<String>,
    pub bytes: u64,
}

impl Unneeded {
    pub fn delete(&self, log: &TopicLog) -> Result<(), AppendError> {
        self.keys.iter().try_for_each(|key| log.append(Some(key.as_bytes()), None).map(drop))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Upload {
    digest: String,
    /// That it has when it is whole.
    chunks: usize,
    id: String,
}

impl Upload {
    fn key(&self, index: usize) -> String {
        ChunkKey { digest: &self.digest, index, chunks: self.chunks, upload: &self.id }.to_string()
    }
}

#[derive(Debug)]
struct Found {
    /// Index and bytes of the chunks that are there.
    chunks: BTreeMap<usize, u64>,
    /// Offset of the first of them.
    began: Offset,
    /// In every look since.
    unneeded_since: Option<Instant>,
}

/// What the topic has as far as it was read: keys and sizes, no bytes of modules.
#[derive(Debug, Default)]
pub struct Uploads {
    next: Offset,
    found: BTreeMap<Upload, Found>,
}

impl Uploads {
    /// Uploads that have not been needed for a day. `registry` is asked once the topic has been read, and answers
    /// with everything that is in its log by then.
    pub fn look(
        &mut self,
        log: &TopicLog,
        registry: impl FnOnce() -> Result<Arc<Registry>, SourceError>,
        clock: impl Fn() -> Instant,
    ) -> Result<Vec<Unneeded>, SourceError> {
        let began = clock();
        let mut tail = log.tail(self.next)?;
        let end = tail.read_to_end(&mut |record| self.read(&record))?;
        self.next = end;
        let read = clock();
        let registry = registry()?;
        Ok(self.unneeded(&registry, began, read))
    }

    /// Keys from before uploads were told apart are left alone: a node of that time may be writing one again.
    fn read(&mut self, record: &LogRecord) {
        let Some(key) = ChunkKey::parse(&record.key).filter(|key| !key.upload.is_empty()) else { return };
        let upload = Upload { digest: key.digest.to_owned(), chunks: key.chunks, id: key.upload.to_owned() };
        if let Some(chunk) = &record.value {
            let found = self.found.entry(upload).or_insert_with(|| Found {
                chunks: BTreeMap::new(),
                began: record.offset,
                unneeded_since: None,
            });
            found.chunks.insert(key.index, chunk.len() as u64);
        } else if let Some(found) = self.found.get_mut(&upload) {
            found.chunks.remove(&key.index);
            if found.chunks.is_empty() {
                self.found.remove(&upload);
            }
        }
    }

    /// `began` and `read`: when the look's reading of the topic began, and when it had ended.
    fn unneeded(&mut self, registry: &Registry, began: Instant, read: Instant) -> Vec<Unneeded> {
        let needed = self.needed(registry);
        let mut unneeded = Vec::new();
        for (upload, found) in &mut self.found {
            if needed.contains(&found.began) {
                found.unneeded_since = None;
            } else if began.duration_since(*found.unneeded_since.get_or_insert(read)) >= KEEP {
                let keys = found.chunks.keys().map(|&index| upload.key(index)).collect();
                let (module, bytes) = (upload.digest.clone(), found.chunks.values().sum());
                unneeded.push(Unneeded { module, keys, bytes });
            }
        }
        unneeded
    }

    /// Where those began that are needed. One that is not whole is among them while it may become the last: what is
    /// nulled in part must never be taken for whole by a node that missed the nulls.
    fn needed(&self, registry: &Registry) -> BTreeSet<Offset> {
        let digests = registry.modules();
        let named = self.found.iter().filter(|(upload, _)| digests.contains(upload.digest.as_str()));
        let mut last_whole: BTreeMap<&str, Offset> = BTreeMap::new();
        for (upload, found) in named.clone().filter(|(upload, found)| found.chunks.len() == upload.chunks) {
            let last = last_whole.entry(&upload.digest).or_default();
            *last = found.began.max(*last);
        }
        let is_last = |upload: &Upload, found: &Found| {
            last_whole.get(upload.digest.as_str()).is_none_or(|last| found.began >= *last)
        };
        named.filter(|(upload, found)| is_last(upload, found)).map(|(_, found)| found.began).collect()
    }
}

#[cfg(test)]
mod tests;
