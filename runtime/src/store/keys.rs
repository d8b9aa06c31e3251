//! How keys are laid out, in RocksDB and in the changelog alike: one form for both, so that a
//! changelog row is applied as it is.
//!
//! On disk and in Kafka since 0.1: add, never renumber. `docs/formats/store.md` is the reference.
//!
//! | first byte | rest | value |
//! |---|---|---|
//! | `0x00` meta | name, ASCII | by name, see the constants below |
//! | `0x01` state | length of the store's name (u8), name, key | the handler's bytes |
//! | `0x04` parked | the task's own ([`Table::Parked`]) | `tidemill.v1.ParkedRecord` |
//! | `0x02` inbox | the id | when and where it was seen ([`Table::Inbox`]) |
//! | `0x07` sequences | the task's own ([`Table::Sequences`]) | the last numbers of a key |
//! | `0x06` letters | the task's own ([`Table::Letters`]) | marks, and `tidemill.v1.RedriveProgress` |
//! | `0x03` outbox | its sequence number ([`Table::Outbox`]) | `tidemill.v1.OutboxRow` |
//! | `0x05` | kept for timers | |
//! | `0x08` | of records of the inbox's topic alone: rows packed together ([`super::unpack`]) | |

use crate::config::manifest::StoreManifest;
use crate::store::StoreError;

const META: u8 = 0x00;
const STATE: u8 = 0x01;

/// The task's position record (`tidemill.v1.Position`). The one meta key that is also in the changelog.
pub const POSITION: &[u8] = b"\0position";
/// Next changelog offset (u64) and the last applied changelog timestamp in ms (i64), little endian.
pub(super) const PROGRESS: &[u8] = b"\0progress";
/// How old the ids are, by offset ([`super::Ages`]). Of the store alone.
pub const INBOX_AGES: &[u8] = b"\0inbox-ages";
/// Whose data this is: format, cluster, incarnation, changelog topic id, one per line.
pub(super) const IDENTITY: &[u8] = b"\0identity";

/// What is kept in the inbox's topic, not in the changelog. Every row begins with its date, which says when it
/// is forgotten.
pub(super) const INBOX: [Table; 2] = [Table::Inbox, Table::Sequences];

/// The first byte of a record of the inbox's topic that has rows packed in it ([`super::pack`]).
pub(super) const PACK: u8 = 0x08;

/// True for rows that are kept in the inbox's topic, not in the changelog.
pub fn is_inbox_key(key: &[u8]) -> bool {
    INBOX.iter().any(|table| key.starts_with(table.prefix()))
}

/// What a row of the inbox's topic is dated with; ms since the epoch.
pub fn inbox_date_ms(row: &[u8]) -> Option<i64> {
    row.first_chunk().copied().map(i64::from_le_bytes)
}

/// Rows that a task keeps for itself beside its handler's state, in the same store and changelog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Ids whose records have had their effects.
    Inbox,
    /// Records that failed, and those that wait behind them.
    Parked,
    /// Effects for destinations outside the transaction, committed and not known to be delivered.
    Outbox,
    /// Dead letters that have been given back, and how far that is.
    Letters,
    /// The last numbers of the keys that have come in.
    Sequences,
}

impl Table {
    pub(super) fn prefix(self) -> &'static [u8] {
        match self {
            Table::Inbox => &[0x02],
            Table::Parked => &[0x04],
            Table::Outbox => &[0x03],
            Table::Letters => &[0x06],
            Table::Sequences => &[0x07],
        }
    }

    /// What stands for a store's number where one is needed; there are never that many stores.
    pub(super) fn number(self) -> u16 {
        match self {
            Table::Inbox => u16::MAX - 1,
            Table::Parked => u16::MAX,
            Table::Outbox => u16::MAX - 2,
            Table::Sequences => u16::MAX - 3,
            Table::Letters => u16::MAX - 4,
        }
    }
}

/// True for keys that a changelog may carry into a store.
pub fn is_changelog_key(key: &[u8]) -> bool {
    key == POSITION || key.first().is_some_and(|&kind| kind != META) && !is_inbox_key(key)
}

/// The bytes in front of every key of a state store. Names are at most 255 bytes ([`Stores::new`]).
pub(super) fn state_prefix(name: &str) -> Box<[u8]> {
    let mut prefix = Vec::with_capacity(2 + name.len());
    prefix.push(STATE);
    prefix.push(name.len() as u8);
    prefix.extend_from_slice(name.as_bytes());
    prefix.into()
}

/// The first key beyond every key that begins with `prefix`. A state prefix begins with `0x01`, so
/// there always is one.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// The name that a store's keys carry: its own and, once its data has been dropped, the number of its
/// generation. No store's own name has a `#` in it, so nobody else's keys begin like that.
pub fn key_name(name: &str, generation: u32) -> String {
    match generation {
        0 => name.to_owned(),
        generation => format!("{name}#{generation}"),
    }
}

/// One state store of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreDef {
    pub name: String,
    /// As its keys name it ([`key_name`]).
    pub key_name: String,
    /// Keyed by the record's own key and handed over with the batch.
    pub prefetch: bool,
    /// The overlay keeps its keys in order, so a scan need not sort.
    pub ordered: bool,
    pub(super) prefix: Box<[u8]>,
}

/// The highest numbers stand for [`Table`]s and [`DROPPED`].
const STORES_MAX: usize = u16::MAX as usize - 8;

/// What stands for a store's number in rows of dropped generations, which are named by their whole keys.
pub(super) const DROPPED: u16 = u16::MAX - 6;

/// The state stores of a deployment, in the manifest's order: an index into it names a store in
/// writes and reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stores {
    defs: Vec<StoreDef>,
    /// Prefixes of generations that were dropped: nobody sees their rows, and the task deletes them.
    dropped: Vec<Box<[u8]>>,
}

impl Stores {
    /// Stores whose data was never dropped. Checks what the layout needs: names of 1 to 255 bytes, none
    /// twice, not too many.
    pub fn new(manifest: &[StoreManifest]) -> Result<Stores, StoreError> {
        Stores::with_generations(manifest, |_| 0, std::iter::empty())
    }

    /// Stores in their current generations; `dropped` are the key names of all generations that are no
    /// more.
    pub fn with_generations(
        manifest: &[StoreManifest],
        generation: impl Fn(&str) -> u32,
        dropped: impl Iterator<Item = String>,
    ) -> Result<Stores, StoreError> {
        if manifest.len() > STORES_MAX {
            return Err(StoreError::Refused(format!(
                "{} stores, at most {STORES_MAX} are possible",
                manifest.len(),
            )));
        }
        let mut defs: Vec<StoreDef> = Vec::with_capacity(manifest.len());
        for store in manifest {
            let key_name = key_name(&store.name, generation(&store.name));
            if store.name.is_empty() || key_name.len() > usize::from(u8::MAX) {
                return Err(StoreError::Refused(format!(
                    "store name '{}' must have 1 to 255 bytes",
                    store.name
                )));
            }
            if defs.iter().any(|def| def.name == store.name) {
                return Err(StoreError::Refused(format!("store name '{}' is declared twice", store.name)));
            }
            defs.push(StoreDef {
                name: store.name.clone(),
                prefetch: store.prefetch,
                ordered: store.ordered,
                prefix: state_prefix(&key_name),
                key_name,
            });
        }
        Ok(Stores { defs, dropped: dropped.map(|name| state_prefix(&name)).collect() })
    }

    /// How keys name the store of that name; none if there is no such store.
    pub fn key_name(&self, name: &str) -> Option<&str> {
        self.defs.iter().find(|def| def.name == name).map(|def| def.key_name.as_str())
    }

    /// Key prefixes of what was dropped.
    pub fn dropped(&self) -> &[Box<[u8]>] {
        &self.dropped
    }

    pub fn len(&self) -> usize {
        self.defs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.defs.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &StoreDef> {
        self.defs.iter()
    }

    pub fn get(&self, store: u16) -> Option<&StoreDef> {
        self.defs.get(usize::from(store))
    }

    /// Bytes that the layout adds to a key of this store; 0 for a store that does not exist.
    pub fn prefix_len(&self, store: u16) -> usize {
        self.get(store).map_or(0, |def| def.prefix.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_store() {
        let end = prefix_end(&state_prefix("ab"));
        assert_eq!(end, b"\x01\x02ac");
        assert_eq!(prefix_end(b"\x01\xff\xff"), b"\x02");
    }

    #[test]
    fn a_changelog_carries_positions_and_state_but_no_other_meta_key() {
        assert!(is_changelog_key(POSITION));
        assert!(is_changelog_key(b"\x01\x01sk"));
        assert!(!is_changelog_key(PROGRESS));
        assert!(!is_changelog_key(IDENTITY));
        assert!(!is_changelog_key(b""));
    }

    #[test]
    fn a_store_needs_a_name_of_its_own() {
        let store = |name: &str| StoreManifest {
            name: name.into(),
            kind: Default::default(),
            schema: 1,
            reads: Vec::new(),
            prefetch: false,
            ordered: false,
        };
        assert!(Stores::new(&[store("a"), store("b")]).is_ok());
        assert!(Stores::new(&[store("a"), store("a")]).is_err());
        assert!(Stores::new(&[store("")]).is_err());
        assert!(Stores::new(&[store(&"x".repeat(256))]).is_err());
    }

    #[test]
    fn a_dropped_stores_rows_are_apart_from_those_of_its_next_generation() {
        let manifest = StoreManifest {
            name: "a".into(),
            kind: Default::default(),
            schema: 1,
            reads: Vec::new(),
            prefetch: false,
            ordered: false,
        };
        let dropped = [key_name("a", 0), key_name("a", 1)].into_iter();
        let stores = Stores::with_generations(&[manifest], |_| 2, dropped).expect("valid");
        assert_eq!(stores.key_name("a"), Some("a#2"));
        let prefixes: Vec<&[u8]> = stores.dropped().iter().map(AsRef::as_ref).collect();
        assert_eq!(prefixes, [&b"\x01\x01a"[..], b"\x01\x03a#1"]);
        assert!(prefixes.iter().all(|prefix| !b"\x01\x03a#2key".starts_with(prefix)));
    }
}
