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
    /// When this node read it, on its own clock; started in the past for records found at start.
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
    /// Takes one record of the topic; `wall_ms` is this node's clock now.
    pub fn apply(&self, key: &[u8], value: Option<&[u8]>, timestamp_ms: i64, wall_ms: i64) {
        let Ok(id) = std::str::from_utf8(key) else { return };
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match value.map(Heartbeat::decode) {
            Some(Ok(heartbeat)) => {
                let age = Duration::from_millis(u64::try_from(wall_ms - timestamp_ms).unwrap_or(0));
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
