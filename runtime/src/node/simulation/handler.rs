//! The handlers of the simulation, in Rust, and the truth about them.
//!
//! | handler | for each record | state |
//! |---|---|---|
//! | chain | emits {value, count, h} with h = H(h before, key, value) | count and h by key |
//! | copy | emits the value | none |
//!
//! Every emission ends in the revision that made it.
//!
//! A duplicate, a loss, a reordering or a stale read makes every later h of its key wrong. The chain
//! also remembers what it wrote, as a handler that caches in its own memory does, so an instance that
//! outlives a drop shows as well.

use std::collections::BTreeMap;
use std::time::Duration;

use super::broker::TOXIC;
use super::random::Random;
use crate::effects::{Effects, Fault, Order, Prefetched, Status};
use crate::ports::Handler;
use crate::record::Batch;
use crate::store::View;

/// What a record's value commands, by its first byte.
pub const PLAIN: u8 = b'+';
/// The broker refuses what is emitted for it.
pub const POISON: u8 = b'!';
/// Deletes the key's state.
pub const DELETE: u8 = b'-';

/// Fails now and then, and succeeds in the end.
pub const FLAKY: u8 = b'~';
/// Fails for ever: a dead letter.
pub const DOOMED: u8 = b'x';
/// Before the key of a dead letter, where the output's rows are.
pub const LETTER: &[u8] = b"dead ";

/// The output that has an outbox.
const HOOK: u16 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Chain,
    Copy,
}

/// Count and hash of a key.
type Link = (u64, u64);

fn encode((count, hash): Link) -> Vec<u8> {
    [count.to_be_bytes(), hash.to_be_bytes()].concat()
}

fn decode(bytes: &[u8]) -> Option<Link> {
    let (count, hash) = bytes.split_at_checked(8)?;
    Some((u64::from_be_bytes(count.try_into().ok()?), u64::from_be_bytes(hash.try_into().ok()?)))
}

/// FNV-1a over the hash before, the key and the value.
fn link(before: Option<Link>, key: &[u8], value: &[u8]) -> Link {
    let (count, hash) = before.unwrap_or_default();
    let start = hash ^ 0xcbf2_9ce4_8422_2325;
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    (count + 1, key.iter().chain(value).fold(start, step))
}

/// What a record makes of its key's state, and what it emits.
fn effect(kind: Kind, before: Option<Link>, key: &[u8], value: &[u8]) -> (Option<Link>, Vec<u8>) {
    let after = match value.first() {
        Some(&DELETE) => None,
        _ => Some(link(before, key, value)),
    };
    let mut emission = match kind {
        Kind::Copy => value.to_vec(),
        Kind::Chain => [value.to_vec(), encode(after.unwrap_or_default())].concat(),
    };
    if value.first() == Some(&POISON) {
        emission.splice(..0, TOXIC.iter().copied());
    }
    (after, emission)
}

pub struct ModelHandler {
    kind: Kind,
    revision: u64,
    /// What it emits it also emits to the output with an outbox.
    outbox: bool,
    memory: BTreeMap<Vec<u8>, Option<Link>>,
    luck: Random,
    used: Duration,
}

impl ModelHandler {
    pub fn new((kind, outbox): (Kind, bool), revision: u64, luck: Random) -> ModelHandler {
        ModelHandler { kind, revision, outbox, memory: BTreeMap::new(), luck, used: Duration::ZERO }
    }

    fn judge(&mut self, value: &[u8]) -> Status {
        match value.first() {
            Some(&FLAKY) if self.luck.one_in(2) => Status::Transient,
            Some(&DOOMED) => Status::Permanent,
            _ => Status::Ok,
        }
    }
}

impl Handler for ModelHandler {
    fn handle(
        &mut self,
        batch: &Batch,
        order: Order,
        prefetched: Prefetched,
        state: &mut View,
    ) -> Result<Effects, Fault> {
        for (key, value) in prefetched.keys.iter().zip(prefetched.values.iter()) {
            let key = key.unwrap_or_default();
            self.memory.entry(key.to_vec()).or_insert_with(|| value.and_then(decode));
        }
        // Now and then so slow that the rest of the batch waits for another turn.
        let slow = self.luck.one_in(4);
        self.used = if slow { Duration::from_millis(60) * batch.len() as u32 } else { Duration::ZERO };
        let mut effects = Effects::default();
        let mut failed = Vec::new();
        for (row, (key, value)) in batch.keys.iter().zip(batch.values.iter()).enumerate() {
            let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
            let held_back = order == Order::Key && failed.contains(&key);
            let status = if held_back { Status::Blocked } else { self.judge(value) };
            effects.statuses.push(status);
            effects.reasons.push(None);
            if status != Status::Ok {
                failed.push(key);
                continue;
            }
            let before = match (self.kind, self.memory.get(key)) {
                (Kind::Copy, _) => None,
                (Kind::Chain, Some(known)) => *known,
                (Kind::Chain, None) => {
                    let found = state.get(0, key).map_err(|error| Fault::Store(error.to_string()))?;
                    found.as_deref().and_then(decode)
                }
            };
            let (after, mut emission) = effect(self.kind, before, key, value);
            emission.extend(self.revision.to_be_bytes());
            if self.kind == Kind::Chain {
                self.memory.insert(key.to_vec(), after);
                effects.writes.sources.push(row as u32);
                effects.writes.stores.push(0);
                effects.writes.keys.push(Some(key));
                effects.writes.values.push(after.map(encode).as_deref());
            }
            let outputs: &[u16] = if self.outbox { &[0, HOOK] } else { &[0] };
            for &output in outputs {
                effects.emissions.sources.push(row as u32);
                effects.emissions.outputs.push(output);
                effects.emissions.partitions.push(-1);
                effects.emissions.timestamps.push(batch.timestamps[row]);
                effects.emissions.keys.push(Some(key));
                effects.emissions.values.push(Some(&emission));
                effects.emissions.headers.push(None);
            }
        }
        Ok(effects)
    }

    fn renew(&mut self) -> Result<(), Fault> {
        self.memory.clear();
        self.used = Duration::ZERO;
        Ok(())
    }

    fn used(&self) -> Duration {
        self.used
    }
}

/// What a deployment must have made of its input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// Emissions by key, in order.
    pub emitted: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    /// The same without the dead letters: what is delivered if there is an outbox.
    pub hooked: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    /// Offset of the record that each emission is for.
    pub sources: BTreeMap<Vec<u8>, Vec<u64>>,
    /// State by key.
    pub state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Ids that the inbox must hold, and what each is dated with; none of a deployment without one.
    pub seen: BTreeMap<Vec<u8>, i64>,
    horizon_ms: i64,
}

/// What the truth needs to know of a case: the handler, and the TTL of its inbox.
pub type Rules = (Kind, Option<i64>);

impl Truth {
    /// Adds one record. What the broker refuses has no effect (`failures: skip`).
    pub fn add(
        &mut self,
        (kind, ttl_ms): Rules,
        (offset, timestamp_ms): (u64, i64),
        key: &[u8],
        value: &[u8],
    ) {
        let now_ms = self.horizon_ms.max(timestamp_ms);
        let repeats = self.seen.get(value).is_some_and(|date| date + ttl_ms.unwrap_or(0) > now_ms);
        if value.first() == Some(&POISON) || repeats {
            return;
        }
        if value.first() == Some(&DOOMED) {
            self.emitted.entry([LETTER, key].concat()).or_default().push(value.to_vec());
            return;
        }
        if ttl_ms.is_some() {
            self.horizon_ms = now_ms;
            self.seen.insert(value.to_vec(), now_ms);
        }
        let before = self.state.get(key).and_then(|bytes| decode(bytes));
        let (after, emission) = effect(kind, before, key, value);
        self.hooked.entry(key.to_vec()).or_default().push(emission.clone());
        self.emitted.entry(key.to_vec()).or_default().push(emission);
        self.sources.entry(key.to_vec()).or_default().push(offset);
        match after.filter(|_| kind == Kind::Chain) {
            Some(after) => drop(self.state.insert(key.to_vec(), encode(after))),
            None => drop(self.state.remove(key)),
        }
    }
}
