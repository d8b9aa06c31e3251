//! A hash map from keys to optional values whose bytes lie in one arena.
//!
//! What it is for: an overlay takes millions of puts per second, most of them to keys it already
//! holds. A put to a known key copies the value over the old one; a new key appends to the arena; a
//! cleared map keeps its memory. Nothing is ever removed singly: a deletion is an entry without a value.
//!
//! Keys are held in the form they have in RocksDB (prefix, then key), so sorting the entries gives
//! the order of a write batch. The hash covers store and key only and is computed by the caller,
//! because one record's key is looked up in several maps.

use std::mem::size_of;

use hashbrown::HashTable;

use super::sort::sort_keys;

/// What a map knows about a key: nothing (`None` around it), a value, or that there is none.
pub(super) type Known<'a> = Option<&'a [u8]>;

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    /// Where the prefixed key begins in the arena.
    key_at: usize,
    value_at: usize,
    /// With the prefix.
    key_len: u32,
    value_len: u32,
    /// Bytes that `value_at` has room for.
    value_room: u32,
    store: u16,
    /// At most 257: type byte, length byte, name. With [`DELETED`], which makes an entry 40 bytes
    /// instead of 48.
    prefix_len: u16,
}

const DELETED: u16 = 1 << 15;

fn flagged(prefix_len: u16, deleted: bool) -> u16 {
    if deleted { prefix_len | DELETED } else { prefix_len }
}

impl Entry {
    fn prefix_len(&self) -> usize {
        usize::from(self.prefix_len & !DELETED)
    }

    fn is_deleted(&self) -> bool {
        self.prefix_len & DELETED != 0
    }

    fn set_deleted(&mut self, deleted: bool) {
        self.prefix_len = flagged(self.prefix_len & !DELETED, deleted);
    }
}

/// Bytes an entry costs beside its key and value: the entry, and its index and control byte in a
/// table that is at most 7/8 full and on average a third less.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>() + 8;

/// Names a key: its hash, its store, and the bytes with and without the store's prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyRef<'a> {
    pub hash: u64,
    pub store: u16,
    pub prefix: &'a [u8],
    pub key: &'a [u8],
}

#[derive(Debug, Default)]
pub(super) struct KeyMap {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    table: HashTable<u32>,
}

impl KeyMap {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Memory in use: every byte appended since the last clear, and the entries.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.entries.len() * ENTRY_BYTES
    }

    pub fn get(&self, key: KeyRef<'_>) -> Option<Known<'_>> {
        let index = self.find(key)?;
        Some(self.value(index))
    }

    /// Sets a key; `None` deletes it. Answers the index of an entry that is new to the map.
    pub fn put(&mut self, key: KeyRef<'_>, value: Option<&[u8]>) -> Option<u32> {
        if let Some(index) = self.find(key) {
            self.overwrite(index, value);
            return None;
        }
        let key_at = self.arena.len();
        self.arena.extend_from_slice(key.prefix);
        self.arena.extend_from_slice(key.key);
        let value_at = self.arena.len();
        let bytes = value.unwrap_or_default();
        self.arena.extend_from_slice(bytes);
        // Lengths fit: a column's rows are below i32::MAX, and so is a prefix of at most 257 bytes.
        let index = self.entries.len() as u32;
        self.entries.push(Entry {
            hash: key.hash,
            key_at,
            value_at,
            key_len: (key.prefix.len() + key.key.len()) as u32,
            value_len: bytes.len() as u32,
            value_room: bytes.len() as u32,
            store: key.store,
            prefix_len: flagged(key.prefix.len() as u16, value.is_none()),
        });
        let entries = &self.entries;
        self.table.insert_unique(key.hash, index, |&other| entries[other as usize].hash);
        Some(index)
    }

    fn find(&self, key: KeyRef<'_>) -> Option<u32> {
        let found = self.table.find(key.hash, |&index| {
            let entry = &self.entries[index as usize];
            entry.hash == key.hash
                && entry.store == key.store
                && self.arena[entry.key_at + entry.prefix_len()..entry.key_at + entry.key_len as usize]
                    == *key.key
        });
        found.copied()
    }

    fn overwrite(&mut self, index: u32, value: Option<&[u8]>) {
        let entry = &mut self.entries[index as usize];
        entry.set_deleted(value.is_none());
        let Some(value) = value else { return };
        if value.len() > entry.value_room as usize {
            // Room to grow by half, so that a value that grows with every record costs its size a
            // constant number of times.
            let room = value.len() + value.len() / 2;
            entry.value_at = self.arena.len();
            entry.value_room = u32::try_from(room).unwrap_or(u32::MAX);
            self.arena.extend_from_slice(value);
            self.arena.resize(entry.value_at + entry.value_room as usize, 0);
        } else {
            self.arena[entry.value_at..entry.value_at + value.len()].copy_from_slice(value);
        }
        entry.value_len = value.len() as u32;
    }

    /// The prefixed key of an entry.
    pub fn full_key(&self, index: u32) -> &[u8] {
        let entry = &self.entries[index as usize];
        &self.arena[entry.key_at..entry.key_at + entry.key_len as usize]
    }

    pub fn value(&self, index: u32) -> Known<'_> {
        let entry = &self.entries[index as usize];
        (!entry.is_deleted()).then(|| &self.arena[entry.value_at..entry.value_at + entry.value_len as usize])
    }

    /// Every entry, for copying into another map.
    pub fn iter(&self) -> impl Iterator<Item = (KeyRef<'_>, Known<'_>)> {
        (0..self.entries.len() as u32).map(|index| (self.key(index), self.value(index)))
    }

    /// What an entry is the value of.
    pub fn key(&self, index: u32) -> KeyRef<'_> {
        let entry = &self.entries[index as usize];
        let (prefix, key) = self.full_key(index).split_at(entry.prefix_len());
        KeyRef { hash: entry.hash, store: entry.store, prefix, key }
    }

    /// Indexes of the entries of one store, in no order.
    pub fn of_store(&self, store: u16) -> impl Iterator<Item = u32> + '_ {
        (0..self.entries.len() as u32).filter(move |&index| self.entries[index as usize].store == store)
    }

    /// Indexes of all entries, in the order of their prefixed keys.
    pub fn sorted(&self) -> Vec<u32> {
        sort_keys(self.entries.len(), |index| self.full_key(index))
    }

    /// Forgets everything. Keeps the memory, unless it is more than `keep_bytes`.
    pub fn clear(&mut self, keep_bytes: usize) {
        if self.arena.capacity() + self.entries.capacity() * ENTRY_BYTES > keep_bytes {
            *self = KeyMap::default();
            return;
        }
        self.arena.clear();
        self.entries.clear();
        self.table.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &[u8]) -> KeyRef<'_> {
        // A poor hash on purpose: every key of a length collides.
        KeyRef { hash: key.len() as u64, store: 0, prefix: b"\x01\x01s", key }
    }

    #[test]
    fn a_known_key_is_overwritten_in_place() {
        let mut map = KeyMap::default();
        assert_eq!(map.put(key(b"a"), Some(b"12345678")), Some(0));
        let bytes = map.bytes();
        for _ in 0..1000 {
            assert_eq!(map.put(key(b"a"), Some(b"87654321")), None);
        }
        assert_eq!(map.bytes(), bytes);
        assert_eq!(map.get(key(b"a")), Some(Some(&b"87654321"[..])));
        assert_eq!(map.get(key(b"b")), None);
    }

    #[test]
    fn a_deleted_key_is_known_to_be_absent_and_can_come_back() {
        let mut map = KeyMap::default();
        map.put(key(b"a"), Some(b"long value"));
        map.put(key(b"a"), None);
        assert_eq!(map.get(key(b"a")), Some(None));
        map.put(key(b"a"), Some(b"short"));
        assert_eq!(map.get(key(b"a")), Some(Some(&b"short"[..])));
        map.put(key(b"a"), Some(b""));
        assert_eq!(map.get(key(b"a")), Some(Some(&b""[..])));
    }

    #[test]
    fn a_growing_value_costs_a_few_times_its_size() {
        let mut map = KeyMap::default();
        let value = vec![7u8; 10_000];
        for len in 1..=value.len() {
            map.put(key(b"a"), Some(&value[..len]));
        }
        assert_eq!(map.get(key(b"a")), Some(Some(&value[..])));
        assert!(map.bytes() < 6 * value.len(), "{} bytes", map.bytes());
    }

    #[test]
    fn entries_sort_by_their_prefixed_keys() {
        let mut map = KeyMap::default();
        for name in [&b"b"[..], b"", b"aa", b"a"] {
            map.put(key(name), Some(name));
        }
        let keys: Vec<&[u8]> = map.sorted().into_iter().map(|index| &map.full_key(index)[3..]).collect();
        assert_eq!(keys, [&b""[..], b"a", b"aa", b"b"]);
    }
}
