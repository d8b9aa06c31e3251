//! Who else is there: heartbeats in `_<fleet>.nodes`, one compacted record per node.
//!
//! The topic decides nothing; it only tells people and state queries where tasks are. A node whose
//! heartbeat is older than [`ALIVE`] is shown, but not asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use tidemill_proto::v1::Heartbeat;

/// Time between two heartbeats while nothing changes.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// A node that has been silent for longer is taken for gone.
pub const ALIVE: Duration = Duration::from_secs(10);
/// Nodes silent for longer are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// One node as its last heartbeat told.
#[derive(Debug, Clone)]
pub struct Peer {
    pub heartbeat: Heartbeat,
    /// Zero, except of what was found at the start.
    pub age_at_read: Duration,
    pub read_at: Instant,
}

impl Peer {
    pub fn age(&self) -> Duration {
        self.age_at_read + self.read_at.elapsed()
    }
}

/// The fleet as far as its topic has been read. Cheap to clone.
#[derive(Clone, Default)]
pub struct Fleet {
    peers: Arc<Mutex<HashMap<String, Peer>>>,
}

impl Fleet {
    /// Takes a record that was in the topic before this node was; `wall_ms` is its clock now. That clock and
    /// the broker's may differ, but nothing else tells a record of today from one of yesterday.
    pub fn found(&self, key: &[u8], value: Option<&[u8]>, timestamp_ms: i64, wall_ms: i64) {
        let ms = u64::try_from(wall_ms.saturating_sub(timestamp_ms)).unwrap_or(0);
        self.apply(key, value, Duration::from_millis(ms));
    }

    /// Takes a record that has just come. It is as young as it looks from here, whatever clocks say: one that
    /// goes wrong does not make a node believe that all others are gone.
    pub fn heard(&self, key: &[u8], value: Option<&[u8]>) {
        self.apply(key, value, Duration::ZERO);
    }

    fn apply(&self, key: &[u8], value: Option<&[u8]>, age: Duration) {
        let Ok(id) = std::str::from_utf8(key) else { return };
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match value.map(Heartbeat::decode) {
            Some(Ok(heartbeat)) => {
                if age < FORGOTTEN {
                    peers
                        .insert(id.to_owned(), Peer { heartbeat, age_at_read: age, read_at: Instant::now() });
                }
            }
            Some(Err(error)) => tracing::debug!(id, %error, "a heartbeat cannot be decoded"),
            None => {
                peers.remove(id);
            }
        }
        peers.retain(|_, peer| peer.age() < FORGOTTEN);
    }

    pub fn peers(&self) -> HashMap<String, Peer> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_wrong_makes_nobody_old_who_is_heard() {
        let fleet = Fleet::default();
        let beat = Heartbeat::default().encode_to_vec();
        let is_alive = || fleet.peers()["a"].age() < ALIVE;
        // Of this node's clock, which is an hour ahead within a few seconds.
        let ahead_ms = FORGOTTEN.as_millis() as i64 - 5_000;
        fleet.found(b"a", Some(&beat), 1_000, 1_000 + ahead_ms);
        assert!(!is_alive(), "what was found may be old");
        fleet.heard(b"a", Some(&beat));
        assert!(is_alive());
        fleet.found(b"a", Some(&beat), 1_000 + ahead_ms, 1_000);
        assert!(is_alive(), "a record from the future is of now");
        fleet.heard(b"a", None);
        fleet.found(b"b", Some(&beat), 0, FORGOTTEN.as_millis() as i64);
        assert!(fleet.peers().is_empty());
    }
}
