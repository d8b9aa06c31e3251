//! How many bytes of keys and values a task keeps in its stores, and whether a record may add to them.
//!
//! ```text
//!   write:   + the new size, - the size it replaces, if an overlay or the cache knows it
//!   seal:    - the sizes that were not known, by one sorted read of those keys
//!   commit:  the position record carries the sums, so that a restart or a move need not count again
//! ```
//!
//! Between a write and its seal the sum may be too high, never too low, so that a record within the quota by it is
//! within it indeed; one that is not is judged by the exact sizes.
//! Nobody counts, and nothing is looked up, for a deployment without `limits.store_bytes`.
//!
//! Counted are the handler's keys and values, not prefixes, rows of the task's own, or what RocksDB makes
//! of them: what a user can add up himself.

/// Bytes by store, in the order of the task's stores.
pub type StoreBytes = Vec<u64>;

/// What a task may keep, and what it keeps.
#[derive(Debug, Clone)]
pub(super) struct Quota {
    pub bytes_max: u64,
    /// Known to be committed.
    committed: StoreBytes,
    /// As of the last seal.
    sealed: StoreBytes,
    /// With the active overlay. Signed: a deletion of a key whose size is not known comes before it is.
    now: Vec<i64>,
    /// Entries of the active overlay whose committed value has not been looked up, by index.
    pub unknown: Vec<u32>,
}

impl Quota {
    pub fn new(bytes_max: u64, committed: StoreBytes) -> Quota {
        let now = committed.iter().map(|&bytes| bytes as i64).collect();
        Quota { bytes_max, sealed: committed.clone(), committed, now, unknown: Vec::new() }
    }

    /// A value of one size takes the place of one of another.
    pub fn replace(&mut self, store: u16, before: u64, after: u64) {
        if let Some(now) = self.now.get_mut(usize::from(store)) {
            *now += after as i64 - before as i64;
        }
    }

    /// All stores together; too high while sizes are unknown.
    pub fn total(&self) -> u64 {
        self.now.iter().sum::<i64>().max(0) as u64
    }

    /// The active overlay is frozen. By store.
    pub fn seal(&mut self) {
        self.sealed = self.now.iter().map(|&now| now.max(0) as u64).collect();
        self.unknown.clear();
    }

    pub fn sealed(&self) -> &[u64] {
        &self.sealed
    }

    pub fn commit(&mut self) {
        self.committed.clone_from(&self.sealed);
    }

    pub fn drop_uncommitted(&mut self) {
        *self = Quota::new(self.bytes_max, std::mem::take(&mut self.committed));
    }
}

/// Of an entry; one that is not there has none.
pub(super) fn size(key: usize, value: Option<usize>) -> u64 {
    value.map_or(0, |value| (key + value) as u64)
}
