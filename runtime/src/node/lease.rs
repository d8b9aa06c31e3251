//! Stores that are open but held by no task, and who may open which: a store moves from worker to
//! worker of a node without being closed, and is never opened twice.
//!
//! ```text
//!   closed --acquire--> restoring --restored--> held --put--> idle --acquire--> restoring
//!     ^                  |    ^                 |  |
//!     |                  |    +----restoring----+  |
//!     +-------free-------+------free, reclaim------+
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ports::Stop;
use crate::store::{Store, StoreReader};

/// How often whoever waits looks whether it is still wanted. Few wait at once: restores do so with a permit in their hands.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[expect(clippy::large_enum_variant, reason = "one is moved a restore; a box would say nothing")]
enum Entry {
    /// Somebody restores it, or deletes it, and says when that is over.
    Restoring,
    /// Open, and a task or a commit owns it.
    Held,
    /// Open, and nobody does.
    Idle(Store),
}

impl Entry {
    fn is_taken(&self) -> bool {
        matches!(self, Entry::Restoring | Entry::Held)
    }
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
    /// Somebody still holds it after the time-out, or when nobody wants it here any more.
    Busy,
}

impl Leases {
    /// Waits up to `timeout` for the present holder of `dir` to let go, and no longer than until the stop.
    pub fn acquire(&self, dir: &Path, timeout: Duration, stop: &Stop) -> Lease {
        let deadline = Instant::now() + timeout;
        let mut entries = self.lock();
        while entries.get(dir).is_some_and(Entry::is_taken) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || stop.is_raised() {
                return Lease::Busy;
            }
            let waited = self.freed.wait_timeout(entries, left.min(LOOK_EVERY));
            (entries, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        match entries.insert(dir.to_owned(), Entry::Restoring) {
            Some(Entry::Idle(store)) => Lease::Open(store),
            _ => Lease::Closed,
        }
    }

    /// The store that a task held is about to be restored, while it is open.
    pub fn restoring(&self, dir: &Path) {
        self.lock().insert(dir.to_owned(), Entry::Restoring);
    }

    /// The open store is about to be a task's.
    pub fn restored(&self, dir: &Path) {
        self.lock().insert(dir.to_owned(), Entry::Held);
    }

    /// Says that whoever held a directory has ended without a word, and its store with it. Only to be
    /// called once that is certain; what is being restored comes back by itself.
    pub fn reclaim(&self, dir: &Path) {
        let mut entries = self.lock();
        if matches!(entries.get(dir), Some(Entry::Held)) {
            entries.remove(dir);
            self.freed.notify_all();
        }
    }

    /// Somebody has it open, or is about to open it.
    pub fn is_held(&self, dir: &Path) -> bool {
        self.lock().get(dir).is_some_and(Entry::is_taken)
    }

    /// Reads a store that is open and that nobody has.
    pub fn reader(&self, dir: &Path) -> Option<StoreReader> {
        match self.lock().get(dir)? {
            Entry::Idle(store) => Some(store.reader()),
            Entry::Restoring | Entry::Held => None,
        }
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
            match std::mem::replace(entry, Entry::Restoring) {
                Entry::Idle(store) => closing.push((dir.clone(), store)),
                taken => *entry = taken,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Interest;

    #[test]
    fn what_a_task_held_that_has_ended_can_be_opened_again_and_what_is_being_restored_cannot() {
        let leases = Leases::default();
        let dirs = ["a", "b"].map(Path::new);
        let is_busy = |dir| matches!(leases.acquire(dir, Duration::ZERO, &Stop::never()), Lease::Busy);
        assert!(dirs.iter().all(|dir| !is_busy(dir)));
        leases.restored(dirs[0]);
        assert!(dirs.iter().all(|dir| is_busy(dir) && leases.is_held(dir)));
        dirs.iter().for_each(|dir| leases.reclaim(dir));
        assert!(!leases.is_held(dirs[0]) && leases.is_held(dirs[1]));
        assert!(!is_busy(dirs[0]) && is_busy(dirs[1]));
        // A task that is restored anew.
        leases.restored(dirs[0]);
        leases.restoring(dirs[0]);
        leases.reclaim(dirs[0]);
        assert!(is_busy(dirs[0]));
        leases.free(dirs[0]);
        assert!(!is_busy(dirs[0]));
    }

    #[test]
    fn who_is_not_wanted_any_more_waits_for_no_directory_and_is_in_nobodys_way() {
        let (leases, dir) = (Leases::default(), Path::new("a"));
        leases.restored(dir);
        let interest = Interest::default();
        let (stop, for_ever) = (interest.stop(), Duration::from_secs(3_600));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| matches!(leases.acquire(dir, for_ever, &stop), Lease::Busy));
            let next = scope.spawn(|| matches!(leases.acquire(dir, for_ever, &Stop::never()), Lease::Closed));
            drop(interest);
            assert!(waiting.join().expect("no panic"));
            leases.free(dir);
            assert!(next.join().expect("no panic"));
        });
        assert!(leases.is_held(dir), "by the one that is wanted");
    }
}
