//! When ids that have expired are cleared out of a store.
//!
//! RocksDB drops an expired id when it rewrites the table that holds it. It does so for its own reasons,
//! and for ids that rise with time it has none: their tables never overlap, so the old ones are
//! never rewritten. So the node has them rewritten once more ids have expired than are remembered: a
//! store then holds at most about twice what is remembered, and each id is rewritten about once more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{StoreError, StoreReader};
use crate::record::Offset;

/// Fewer expired ids are left alone: they are a megabyte or so.
const IDS_MIN: u64 = 16_384;

/// Offsets in the inbox's topic that stand for the ids of a store; markers count as ids.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Ids below it have expired.
    start: AtomicU64,
    next: AtomicU64,
    /// Of the ids below it, none that has expired is left.
    swept: AtomicU64,
    under_way: AtomicBool,
}

/// A sweep that is under way until this is dropped.
pub(super) struct UnderWay<'a> {
    sweep: &'a Sweep,
    /// Ids below it have expired by now, so none of them will be left.
    start: u64,
}

impl Sweep {
    pub fn set(&self, start: Offset, next: Offset) {
        self.start.store(start.0, Ordering::Relaxed);
        self.next.store(next.0, Ordering::Relaxed);
    }

    pub fn begin(&self, swept: Offset) {
        self.swept.store(swept.0, Ordering::Relaxed);
    }

    pub fn swept(&self) -> Offset {
        Offset(self.swept.load(Ordering::Relaxed))
    }

    pub fn is_due(&self) -> bool {
        let (start, next) = (self.start.load(Ordering::Relaxed), self.next.load(Ordering::Relaxed));
        let expired = start.saturating_sub(self.swept().0);
        expired >= IDS_MIN.max(next.saturating_sub(start))
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    /// None while another one is under way.
    pub fn start(&self) -> Option<UnderWay<'_>> {
        let start = self.start.load(Ordering::Relaxed);
        let is_first = !self.under_way.swap(true, Ordering::AcqRel);
        is_first.then_some(UnderWay { sweep: self, start })
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.sweep.swept.fetch_max(self.start, Ordering::Relaxed);
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
