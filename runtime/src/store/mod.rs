//! State: one RocksDB database per task, and the overlay in front of it. The only module that names
//! RocksDB. It knows nothing of Kafka, commits or recovery; it only keeps what it is told.
//!
//! ```text
//!   handler                                    commit thread                query threads
//!      | get, scan, put_many                        |                            |
//!      v                                            v                            v
//!    View:  scratch > active > frozen > cache    Store (the writer)         StoreReader (clones)
//!                                 |                 | one write batch            | position and values
//!                                 +------> RocksDB <+----------------------------+ under one snapshot
//! ```
//!
//! Invariants:
//! - RocksDB holds committed data only; what is not committed is in an overlay and nowhere else.
//! - A [`Store`] is one owned value: whoever has it is the only writer.
//! - Position and values change in one write batch, so a reader never sees one without the other.
//! - A store may be behind its changelog (the log is the truth) and never ahead of it.

mod ages;
mod budget;
mod cache;
mod db;
mod dir;
mod flush;
mod keymap;
mod keys;
mod lock;
mod overlay;
mod pack;
mod quota;
mod reader;
mod run;
mod scan;
mod sort;
mod sweep;
mod view;

use std::path::PathBuf;

pub use ages::Ages;
pub use budget::{BudgetConfig, StoreBudget};
pub use cache::CacheBudget;
pub use db::{Identity, Opening, Progress, Store, Unusable};
pub use dir::{StateDir, StoreDir};
pub use flush::{FlushRule, flush_due};
pub use keys::{
    INBOX_AGES, POSITION, StoreDef, Stores, Table, inbox_date_ms, is_changelog_key, is_inbox_key, key_name,
};
pub use lock::FileLock;
pub use pack::{MalformedPack, Packed, packed_rows, unpack};
pub use quota::StoreBytes;
pub use reader::{Sizes, Snapshot, StoreReader};
pub use run::Run;
pub use scan::{PAGE_BYTES_MAX, Page};
pub use sweep::sweep_due;
pub use tidemill_proto::v1::{
    Guarantee as PositionGuarantee, OutboxRow, ParkedRecord, Position, PositionInput, RedriveProgress,
};
pub use view::{Changes, View, ViewLimits};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Disk full, permission, too many files: the data is as it was. Try again or tell a person.
    #[error("state store: {0}")]
    Io(String),
    /// The local data cannot be trusted: delete it and rebuild it from the changelog.
    #[error("state store is corrupt: {0}")]
    Corrupt(String),
    /// Another process, or another part of this one, has the database open.
    #[error(
        "state store {} is in use by another process; give each node a state directory of its own, or stop the other node",
        .0.display()
    )]
    Locked(PathBuf),
    /// The store was closed or handed away.
    #[error("state store is closed")]
    Closed,
    /// What was asked is not possible: an unknown store, a limit. The asker is at fault.
    #[error("{0}")]
    Refused(String),
}

impl From<rocksdb::Error> for StoreError {
    fn from(error: rocksdb::Error) -> StoreError {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => StoreError::Corrupt(error.into_string()),
            _ => StoreError::Io(error.into_string()),
        }
    }
}

#[cfg(test)]
mod tests;
