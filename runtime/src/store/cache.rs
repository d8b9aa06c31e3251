//! Committed values read or written recently, so that a hot key does not cost a RocksDB read with
//! every batch.
//!
//! Two generations and no list: a value found in the old generation moves to the young one; when the
//! young one holds half the budget it becomes the old one, and the former old one is forgotten. That
//! approximates "least recently used" at the price of one copy per generation.
//!
//! Invariant: what it knows equals what RocksDB holds, or is about to hold when the overlay above it
//! is written. It is emptied whenever an overlay is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::keymap::{ENTRY_BYTES, KeyMap, KeyRef, Known};

/// Memory for the committed values of all tasks that share it, in equal parts. A part that becomes
/// smaller, because there are more of them, is given back with the next change of generations.
#[derive(Debug)]
pub struct CacheBudget {
    bytes: usize,
    tasks: AtomicUsize,
}

impl CacheBudget {
    /// 0 bytes = no cache.
    pub fn new(bytes: usize) -> Arc<CacheBudget> {
        Arc::new(CacheBudget { bytes, tasks: AtomicUsize::new(0) })
    }

    fn share(&self) -> usize {
        self.bytes / self.tasks.load(Ordering::Relaxed).max(1)
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    young: KeyMap,
    old: KeyMap,
    budget: Arc<CacheBudget>,
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.budget.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cache {
    pub fn new(budget: Arc<CacheBudget>) -> Cache {
        budget.tasks.fetch_add(1, Ordering::Relaxed);
        Cache { young: KeyMap::default(), old: KeyMap::default(), budget }
    }

    pub fn get(&mut self, key: KeyRef<'_>) -> Option<Known<'_>> {
        if self.young.get(key).is_none() {
            let value = self.old.get(key)?;
            if self.young.bytes() + size(key, value) > self.budget.share() / 2 {
                return Some(value);
            }
            self.young.put(key, value);
        }
        self.young.get(key)
    }

    /// Takes a committed value. One that would displace much of the cache is not worth it.
    pub fn put(&mut self, key: KeyRef<'_>, value: Known<'_>) {
        let (size, share) = (size(key, value), self.budget.share());
        if size > share / 16 {
            // Not kept, but an older value of the key must not answer for it.
            self.forget(key);
            return;
        }
        if self.young.bytes() + size > share / 2 {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear(share);
        }
        self.young.put(key, value);
    }

    /// There is no single removal, so a key that is known and now too large empties the cache. That
    /// is rare: only values above a sixteenth of the budget get here.
    fn forget(&mut self, key: KeyRef<'_>) {
        if self.young.get(key).is_some() || self.old.get(key).is_some() {
            self.clear();
        }
    }

    pub fn bytes(&self) -> usize {
        self.young.bytes() + self.old.bytes()
    }

    pub fn clear(&mut self) {
        let share = self.budget.share();
        self.young.clear(share);
        self.old.clear(share);
    }
}

fn size(key: KeyRef<'_>, value: Known<'_>) -> usize {
    key.prefix.len() + key.key.len() + value.map_or(0, <[u8]>::len) + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: &[u8; 4]) -> KeyRef<'_> {
        KeyRef {
            hash: u64::from(u32::from_le_bytes(*number)).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            store: 0,
            prefix: b"\x01\x01s",
            key: number,
        }
    }

    #[test]
    fn hot_keys_stay_while_cold_ones_go_and_the_budget_holds() {
        let budget = 64 * 1024;
        let mut cache = Cache::new(CacheBudget::new(budget));
        let hot = 7u32.to_le_bytes();
        cache.put(key(&hot), Some(b"hot"));
        for number in 1000..20_000u32 {
            cache.put(key(&number.to_le_bytes()), Some(b"cold"));
            assert_eq!(cache.get(key(&hot)), Some(Some(&b"hot"[..])));
            assert!(cache.bytes() <= budget + 1024, "{} bytes", cache.bytes());
        }
        assert_eq!(cache.get(key(&1000u32.to_le_bytes())), None);
    }

    #[test]
    fn a_cache_gives_way_to_those_of_other_tasks() {
        let budget = CacheBudget::new(64 * 1024);
        let mut first = Cache::new(Arc::clone(&budget));
        let fill = |cache: &mut Cache| {
            (0..5_000u32).for_each(|number| cache.put(key(&number.to_le_bytes()), Some(b"value")))
        };
        fill(&mut first);
        assert!(first.bytes() > 32 * 1024);
        let second = Cache::new(Arc::clone(&budget));
        fill(&mut first);
        assert!(first.bytes() <= 32 * 1024, "{} bytes", first.bytes());
        drop(second);
        fill(&mut first);
        assert!(first.bytes() > 32 * 1024);
    }

    #[test]
    fn a_value_too_large_to_keep_does_not_leave_its_predecessor_behind() {
        let mut cache = Cache::new(CacheBudget::new(1024));
        let name = 1u32.to_le_bytes();
        cache.put(key(&name), Some(b"small"));
        cache.put(key(&name), Some(&[0; 1000]));
        assert_eq!(cache.get(key(&name)), None);
    }
}
