//! Stores that are open but held by no task, and who may open which: a store moves from worker to
//! worker of a node without being closed, and is never opened twice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::Store;

#[expect(clippy::large_enum_variant, reason = "one is moved a restore; a box would say nothing")]
enum Entry {
    /// Open, and a task, a commit or a restore owns it.
    Held,
    /// Open, and nobody does.
    Idle(Store),
}

/// One per node.
#[derive(Default)]
pub struct Leases {
    entries: Mutex<HashMap<PathBuf, Entry>>,
    freed: Condvar,
}

/// The right to open a directory, with the open store if there is one.
#[expect(clippy::large_enum_variant, reason = "one is moved a restore; a box would say nothing")]
pub enum Lease {
    Open(Store),
    /// Nobody has it open; the caller opens it and owns it, or calls [`Leases::free`].
    Closed,
    /// Somebody still holds it after the time-out.
    Busy,
}

impl Leases {
    /// Waits up to `timeout` for the present holder of `dir` to let go.
    pub fn acquire(&self, dir: &Path, timeout: Duration) -> Lease {
        let entries = self.lock();
        let waited = self
            .freed
            .wait_timeout_while(entries, timeout, |entries| matches!(entries.get(dir), Some(Entry::Held)));
        let (mut entries, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match entries.insert(dir.to_owned(), Entry::Held) {
            None => Lease::Closed,
            Some(Entry::Idle(store)) => Lease::Open(store),
            Some(Entry::Held) => Lease::Busy,
        }
    }

    /// Somebody has it open, or is about to open it.
    pub fn is_held(&self, dir: &Path) -> bool {
        matches!(self.lock().get(dir), Some(Entry::Held))
    }

    /// Gives an open store back; the next owner takes it as it is.
    pub fn put(&self, dir: &Path, store: Store) {
        self.lock().insert(dir.to_owned(), Entry::Idle(store));
        self.freed.notify_all();
    }

    /// Says that a held directory is closed now.
    pub fn free(&self, dir: &Path) {
        self.lock().remove(dir);
        self.freed.notify_all();
    }

    /// Closes the idle stores below `root`; all of them flush what they hold.
    pub fn close_idle(&self, root: &Path) {
        let mut closing = Vec::new();
        for (dir, entry) in self.lock().iter_mut().filter(|(dir, _)| dir.starts_with(root)) {
            match std::mem::replace(entry, Entry::Held) {
                Entry::Idle(store) => closing.push((dir.clone(), store)),
                Entry::Held => {}
            }
        }
        // Closing writes to disk: not under the lock. Nobody opens the directory meanwhile.
        for (dir, store) in closing {
            if let Err(error) = store.close() {
                tracing::warn!(%error, "a store did not close cleanly; it will restore more than its tail");
            }
            self.free(&dir);
        }
    }

    /// Drops the idle stores without a flush, as a killed process does.
    #[cfg(test)]
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
