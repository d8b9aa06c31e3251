//! When ids that have expired are cleared out of a store.
//!
//! RocksDB drops an expired id when it rewrites the table that holds it. It does so for its own reasons,
//! and for ids that rise with time it has none: their tables never overlap, so the old ones are
//! never rewritten. So the node has them rewritten once more ids have expired than are remembered: a
//! store then holds at most about twice what is remembered, and each id is rewritten about once more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{StoreError, StoreReader};

/// Fewer expired ids are left alone: they are a megabyte or so.
const IDS_MIN: u64 = 16_384;

/// Counts of all the ids that have come.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The first so many have expired.
    expired: AtomicU64,
    ids: AtomicU64,
    /// Of the first so many, none that has expired is left.
    swept: AtomicU64,
    under_way: AtomicBool,
}

/// A sweep that is under way until this is dropped.
pub(super) struct UnderWay<'a> {
    sweep: &'a Sweep,
    /// So many have expired by now, so none of them will be left.
    expired: u64,
}

impl Sweep {
    pub fn set(&self, expired: u64, ids: u64) {
        self.expired.store(expired, Ordering::Relaxed);
        self.ids.store(ids, Ordering::Relaxed);
    }

    pub fn begin(&self, swept: u64) {
        self.swept.store(swept, Ordering::Relaxed);
    }

    pub fn swept(&self) -> u64 {
        self.swept.load(Ordering::Relaxed)
    }

    pub fn is_due(&self) -> bool {
        let (expired, ids) = (self.expired.load(Ordering::Relaxed), self.ids.load(Ordering::Relaxed));
        expired.saturating_sub(self.swept()) >= IDS_MIN.max(ids.saturating_sub(expired))
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    /// None while another one is under way.
    pub fn start(&self) -> Option<UnderWay<'_>> {
        let expired = self.expired.load(Ordering::Relaxed);
        let is_first = !self.under_way.swap(true, Ordering::AcqRel);
        is_first.then_some(UnderWay { sweep: self, expired })
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.sweep.swept.fetch_max(self.expired, Ordering::Relaxed);
        self.sweep.under_way.store(false, Ordering::Release);
    }
}

/// Sweeps the stores in which more ids have expired than are remembered. Blocks for the writing; belongs
/// on a thread of its own, called about once a second. Answers how many were swept.
pub fn sweep_due(stores: &[StoreReader]) -> Result<usize, StoreError> {
    let mut swept = 0;
    for store in stores.iter().filter(|store| store.is_sweep_due()) {
        match store.sweep() {
            Ok(()) => swept += 1,
            Err(StoreError::Closed) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(swept)
}
