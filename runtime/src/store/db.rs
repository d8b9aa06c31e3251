//! One task's database: its writer ([`Store`]), and what opening one can find.
//!
//! ```text
//!   Store::open --Missing----------------------> Store::create --+
//!        |------Unusable--> Store::destroy -------^              |
//!        +------Ready--------------------------------------------+--> write* --> close
//! ```
//!
//! A store dropped without `close` loses what it had not flushed, as in a crash. Readers outlive it
//! harmlessly: they answer [`StoreError::Closed`].

use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use prost::Message;
use rocksdb::{DB, ErrorKind, WriteBatch};

use super::budget::{self, Expiry, StoreBudget};
use super::flush::Watch;
use super::lock::FileLock;
use super::sweep::Sweep;
use super::{Ages, Position, StoreError, StoreReader, dir, keys};
use crate::record::Offset;

/// Whose data a store holds. A store that says anything else is deleted and rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: String,
    /// One life of the deployment, from its first deploy to its delete.
    pub incarnation: String,
    /// Of the changelog that the store is rebuilt from.
    pub changelog_topic_id: String,
}

const FORMAT: &str = "1";

impl Identity {
    fn encode(&self) -> Vec<u8> {
        let mut text = String::new();
        for (field, value) in self.fields() {
            text.push_str(&format!("{field}={value}\n"));
        }
        text.into_bytes()
    }

    fn fields(&self) -> [(&'static str, &str); 4] {
        [
            ("format", FORMAT),
            ("cluster", &self.cluster_id),
            ("incarnation", &self.incarnation),
            ("changelog", &self.changelog_topic_id),
        ]
    }

    /// What in `bytes`, an encoded identity, differs from this one.
    fn difference(&self, bytes: &[u8]) -> Option<Unusable> {
        let text = String::from_utf8_lossy(bytes);
        for (field, expected) in self.fields() {
            let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix('='));
            if found != Some(expected) {
                return Some(Unusable::Foreign {
                    field,
                    found: found.unwrap_or_default().to_owned(),
                    expected: expected.to_owned(),
                });
            }
        }
        None
    }
}

/// What a directory holds.
#[derive(Debug)]
pub enum Opening {
    Ready(Box<Store>),
    /// Nothing, or a database that never got its identity.
    Missing,
    /// To be deleted ([`Store::destroy`]) and rebuilt; logged and counted by whoever does that.
    Unusable(Unusable),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("it is corrupt: {0}")]
    Corrupt(String),
    #[error("its {field} is '{found}', not '{expected}'")]
    Foreign { field: &'static str, found: String, expected: String },
}

/// How far into its changelog a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Everything committed below this offset is in the store. May be a lower bound: applying a
    /// record twice is harmless.
    pub changelog_next: Offset,
    /// Broker's timestamp of the last record applied, or a time not after it; ms since the epoch.
    pub changelog_ms: i64,
    /// The same for the inbox's topic.
    pub inbox_next: Offset,
    /// Ids that have come from there, those that were forgotten since and those applied twice included.
    pub inbox_ids: u64,
    /// Writer and number of the last commit that counts below `changelog_next`, for whoever reads on from there. None = as
    /// the position says, which may be ahead.
    pub closed: Option<(u64, u64)>,
}

impl Progress {
    const NONE: Progress = Progress {
        changelog_next: Offset(0),
        changelog_ms: 0,
        inbox_next: Offset(0),
        inbox_ids: 0,
        closed: None,
    };

    fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&self.changelog_next.0.to_le_bytes());
        bytes.extend_from_slice(&self.changelog_ms.to_le_bytes());
        bytes.extend_from_slice(&self.inbox_next.0.to_le_bytes());
        bytes.extend_from_slice(&self.inbox_ids.to_le_bytes());
        if let Some((writer, commit)) = self.closed {
            bytes.extend_from_slice(&writer.to_le_bytes());
            bytes.extend_from_slice(&commit.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Progress> {
        let next = bytes.get(..8)?.try_into().ok()?;
        let ms = bytes.get(8..16)?.try_into().ok()?;
        // Stores of 0.1 have no inbox.
        let inbox_next = match bytes.get(16..24) {
            Some(next) => u64::from_le_bytes(next.try_into().ok()?),
            None => 0,
        };
        Some(Progress {
            changelog_next: Offset(u64::from_le_bytes(next)),
            changelog_ms: i64::from_le_bytes(ms),
            inbox_next: Offset(inbox_next),
            // Before ids were packed each had an offset.
            inbox_ids: match bytes.get(24..32) {
                Some(ids) => u64::from_le_bytes(ids.try_into().ok()?),
                None => inbox_next,
            },
            closed: match (bytes.get(32..40), bytes.get(40..48)) {
                (Some(writer), Some(commit)) => Some((
                    u64::from_le_bytes(writer.try_into().ok()?),
                    u64::from_le_bytes(commit.try_into().ok()?),
                )),
                _ => None,
            },
        })
    }
}

/// What writer and readers share. The lock is held for reading by every use of the database and for
/// writing only by the close, which therefore waits for reads in progress.
pub(super) struct Shared {
    db: RwLock<Option<Open>>,
    pub(super) watch: Mutex<Watch>,
    /// Ids dated before it are dropped when RocksDB rewrites them; ms since the epoch.
    inbox_expired_before_ms: Expiry,
    pub(super) sweep: Sweep,
}

pub(super) struct Open {
    pub(super) db: DB,
    /// Held as long as the database is open; an in-memory database has none.
    _lock: Option<FileLock>,
}

/// Nothing behind these locks can be left half-changed, so a panic elsewhere does not spoil them.
pub(super) fn read_lock(shared: &Shared) -> RwLockReadGuard<'_, Option<Open>> {
    shared.db.read().unwrap_or_else(PoisonError::into_inner)
}

/// The writer. Not `Clone`: it is handed from worker to commit thread and back, and whoever has it
/// is the only one who writes.
pub struct Store {
    shared: Arc<Shared>,
    dir: PathBuf,
    progress: Progress,
    position: Option<Position>,
    ages: Option<Ages>,
    inbox_begins: Offset,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// True if there are files of a database here.
fn has_remains(dir: &Path) -> bool {
    let is_remains =
        |name: &str| name.starts_with("MANIFEST") || name.ends_with(".sst") || name.ends_with(".log");
    fs::read_dir(dir)
        .is_ok_and(|entries| entries.flatten().any(|entry| is_remains(&entry.file_name().to_string_lossy())))
}

impl Store {
    /// Opens what is there. An error says that nothing is known about the data (locked, disk full,
    /// permission), so it must not be deleted.
    pub fn open(budget: &StoreBudget, dir: &Path, identity: &Identity) -> Result<Opening, StoreError> {
        if !budget.is_in_memory() && !dir.join("CURRENT").exists() {
            return Ok(match has_remains(dir) {
                // RocksDB neither opens them nor makes a database among them.
                true => Opening::Unusable(Unusable::Corrupt("its CURRENT file is gone".into())),
                false => Opening::Missing,
            });
        }
        let lock = lock(budget, dir)?;
        let expiry = Expiry::default();
        let db = match budget.open(dir, false, &expiry) {
            Ok(db) => db,
            Err(error) => return refused_open(budget, error),
        };
        match Store::recognise(&db, identity) {
            Ok(Recognised::Ours(known)) => {
                Ok(Opening::Ready(Box::new(Store::with(db, lock, dir, known, expiry))))
            }
            Ok(Recognised::Blank) => Ok(Opening::Missing),
            Ok(Recognised::Not(why)) => Ok(Opening::Unusable(why)),
            Err(StoreError::Corrupt(why)) => Ok(Opening::Unusable(Unusable::Corrupt(why))),
            Err(error) => Err(error),
        }
    }

    fn recognise(db: &DB, identity: &Identity) -> Result<Recognised, StoreError> {
        let Some(found) = db.get(keys::IDENTITY)? else {
            return Ok(Recognised::Blank);
        };
        if let Some(difference) = identity.difference(&found) {
            return Ok(Recognised::Not(difference));
        }
        let progress = match db.get(keys::PROGRESS)? {
            None => Progress::NONE,
            Some(bytes) => match Progress::decode(&bytes) {
                Some(progress) => progress,
                None => {
                    return Ok(Recognised::Not(Unusable::Corrupt("unreadable progress".into())));
                }
            },
        };
        // Without them nothing is known to expire before what is there now.
        let ages = db.get(keys::INBOX_AGES)?.and_then(|bytes| Ages::decode(&bytes));
        match decode_position(db.get(keys::POSITION)?.as_deref()) {
            Ok(position) => Ok(Recognised::Ours(Known { progress, position, ages })),
            Err(StoreError::Corrupt(why)) => Ok(Recognised::Not(Unusable::Corrupt(why))),
            Err(error) => Err(error),
        }
    }

    /// Makes an empty store that has applied nothing. Whatever lies in `dir` must have been
    /// [`Opening::Missing`] or destroyed.
    pub fn create(budget: &StoreBudget, dir: &Path, identity: &Identity) -> Result<Store, StoreError> {
        if !budget.is_in_memory() {
            fs::create_dir_all(dir)
                .map_err(|error| StoreError::Io(format!("cannot make {}: {error}", dir.display())))?;
        }
        let lock = lock(budget, dir)?;
        let expiry = Expiry::default();
        let db = budget.open(dir, true, &expiry)?;
        let progress = Progress::NONE;
        let mut batch = WriteBatch::default();
        batch.put(keys::IDENTITY, identity.encode());
        batch.put(keys::PROGRESS, progress.encode());
        db.write_opt(batch, &budget::write_options())?;
        let known = Known { progress, position: None, ages: None };
        Ok(Store::with(db, lock, dir, known, expiry))
    }

    fn with(
        db: DB,
        lock: Option<FileLock>,
        dir: &Path,
        Known { progress, position, ages }: Known,
        inbox_expired_before_ms: Expiry,
    ) -> Store {
        let open = Open { db, _lock: lock };
        let shared = Shared {
            db: RwLock::new(Some(open)),
            watch: Mutex::default(),
            inbox_expired_before_ms,
            sweep: Sweep::default(),
        };
        let (shared, dir) = (Arc::new(shared), dir.to_path_buf());
        Store { shared, dir, progress, position, ages, inbox_begins: Offset(0) }
    }

    pub fn reader(&self) -> StoreReader {
        StoreReader { shared: Arc::clone(&self.shared) }
    }

    /// Ids of the inbox dated before this may be dropped: whoever reads one judges its age anyway. So many
    /// of those that have come are known to be dated so.
    pub fn expire_inbox(&self, before_ms: i64, expired: u64) {
        self.shared.inbox_expired_before_ms.set(before_ms);
        self.shared.sweep.set(expired, self.progress.inbox_ids);
    }

    /// As of the last write that carried them.
    pub fn ages(&self) -> Option<&Ages> {
        self.ages.as_ref()
    }

    /// Of the first so many ids, none that has expired is in the store any more.
    pub fn swept(&self) -> u64 {
        self.shared.sweep.swept()
    }

    /// Where the inbox's topic began when this store was restored: what lay below it had expired.
    pub fn inbox_begins(&self) -> Offset {
        self.inbox_begins
    }

    pub fn set_inbox_begins(&mut self, at: Offset) {
        self.inbox_begins = at;
    }

    /// A task with an inbox takes the store over, which was swept up to there.
    pub fn begin_inbox(&self, swept: u64) {
        self.shared.sweep.begin(swept);
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// As of the last write that carried a position.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Writes rows and progress as one batch: after a crash either all of it is there or nothing.
    /// Keys are as in the changelog; sorted, they are written in two thirds of the time. A row whose
    /// key is [`keys::POSITION`] also becomes this store's position.
    pub fn write<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let (mut position, mut ages) = (None, None);
        for (key, value) in rows {
            if key == keys::POSITION {
                position = decode_position(value)?;
            }
            if key == keys::INBOX_AGES {
                ages = value.and_then(Ages::decode);
            }
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        batch.put(keys::PROGRESS, progress.encode());
        let guard = read_lock(&self.shared);
        let open = guard.as_ref().ok_or(StoreError::Closed)?;
        open.db.write_opt(batch, &budget::write_options())?;
        drop(guard);
        self.progress = progress;
        self.position = position.or(self.position.take());
        self.ages = ages.or(self.ages.take());
        Ok(())
    }

    /// Flushes and closes; waits for reads in progress. After an error the store is closed all the
    /// same and has lost what was not flushed, which its changelog has.
    pub fn close(self) -> Result<(), StoreError> {
        let flushed = self.reader().flush();
        // The drop closes it.
        drop(self);
        flushed
    }

    /// Deletes the database in `dir`. It must not be open.
    pub fn destroy(budget: &StoreBudget, dir: &Path) -> Result<(), StoreError> {
        if budget.is_in_memory() {
            return Ok(DB::destroy(budget.options(), dir)?);
        }
        let _lock = if dir.exists() { lock(budget, dir)? } else { None };
        dir::remove(dir)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.shared.sweep.is_under_way()
            && let Some(open) = read_lock(&self.shared).as_ref()
        {
            // It holds the lock that is wanted here, and ends as soon as it sees this.
            open.db.cancel_all_background_work(false);
        }
        let mut guard = self.shared.db.write().unwrap_or_else(PoisonError::into_inner);
        drop(guard.take());
    }
}

/// What a store says of itself.
struct Known {
    progress: Progress,
    position: Option<Position>,
    ages: Option<Ages>,
}

enum Recognised {
    Ours(Known),
    Blank,
    Not(Unusable),
}

/// RocksDB locks its files too, but reports that in words only.
fn lock(budget: &StoreBudget, dir: &Path) -> Result<Option<FileLock>, StoreError> {
    if budget.is_in_memory() {
        return Ok(None);
    }
    let path = dir.join("tidemill.lock");
    let failed = |error: std::io::Error| StoreError::Io(format!("cannot lock {}: {error}", path.display()));
    match FileLock::take(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn refused_open(budget: &StoreBudget, error: rocksdb::Error) -> Result<Opening, StoreError> {
    match error.kind() {
        ErrorKind::InvalidArgument if budget.is_in_memory() => Ok(Opening::Missing),
        ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotFound => {
            Ok(Opening::Unusable(Unusable::Corrupt(error.into_string())))
        }
        // A file that the manifest names and the disk does not have is reported as an I/O error; its
        // text is the only thing that tells it from a disk that is full or refuses.
        ErrorKind::IOError if error.as_ref().contains("No such file or directory") => {
            Ok(Opening::Unusable(Unusable::Corrupt(error.into_string())))
        }
        _ => Err(error.into()),
    }
}

pub(super) fn decode_position(bytes: Option<&[u8]>) -> Result<Option<Position>, StoreError> {
    bytes
        .map(|bytes| {
            Position::decode(bytes).map_err(|error| StoreError::Corrupt(format!("position record: {error}")))
        })
        .transpose()
}
