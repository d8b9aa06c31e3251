//! What a broker can be told. Every bound is here, by name and unit.

use std::path::PathBuf;
use std::time::Duration;

/// When writes are forced to the disk. Without a data directory it has no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// Only at shutdown. What was acknowledged survives a kill of the process, because the
    /// operating system keeps what was written, but not a power loss.
    #[default]
    AtShutdown,
    /// After every append and every journal entry, before the client is answered.
    EveryWrite,
}

/// Configuration of a [`Broker`](crate::Broker). Start from `Config::default()`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Host that clients are told to connect to; by default the one listened on, or 127.0.0.1
    /// if that is "all interfaces". The port is always the one listened on.
    pub advertised_host: Option<String>,
    /// Where to keep topics, offsets and transactions; without it everything is in memory.
    pub data_dir: Option<PathBuf>,
    /// When writes are forced to the disk.
    pub fsync: Fsync,
    /// Create a topic when a client asks for the metadata of one that does not exist.
    pub auto_create_topics: bool,
    /// Partitions of a topic whose creator does not say how many.
    pub partitions_default: i32,
    /// Connections at a time; further ones are closed at once.
    pub connections_max: usize,
    /// Bytes of one request; a larger one closes its connection.
    pub request_bytes_max: usize,
    /// Bytes of all large requests being read or handled at once; further ones wait.
    pub requests_bytes_max: usize,
    /// How long the rest of a large request may take to come, once it has its room among them.
    pub request_read_max: Duration,
    /// Bytes of records in one fetch response, unless its first batch alone is larger.
    pub fetch_bytes_max: usize,
    /// Bytes of all logs when there is no data directory; beyond it produce is refused.
    pub memory_bytes_max: u64,
    /// Partitions of all topics together.
    pub partitions_max: usize,
    /// Groups that exist at a time, with or without members.
    pub groups_max: usize,
    /// Members of one group.
    pub group_members_max: usize,
    /// Transactional ids known at a time.
    pub transactional_ids_max: usize,
    /// Bytes of the metadata stored with a committed offset.
    pub offset_metadata_bytes_max: usize,
    /// Shortest session time-out that a group member may ask for.
    pub session_timeout_min: Duration,
    /// Longest session time-out that a group member may ask for.
    pub session_timeout_max: Duration,
    /// How long a group's first rebalance waits for more members.
    pub initial_rebalance_delay: Duration,
    /// Longest transaction time-out that a producer may ask for.
    pub transaction_timeout_max: Duration,
    /// How often transactions are checked for having timed out.
    pub transaction_abort_interval: Duration,
    /// How long a producer's sequence numbers are remembered after its last batch.
    pub producer_expiry: Duration,
    /// How often retention and compaction run.
    pub maintenance_interval: Duration,
    /// For tests: time between the end of a transaction and its marker in each further partition.
    pub marker_delay: Duration,
}

impl Config {
    /// Short intervals, for tests that wait for sessions and transactions to end.
    pub fn hasty() -> Config {
        let short = Duration::from_millis(100);
        Config {
            session_timeout_min: short,
            transaction_abort_interval: short,
            maintenance_interval: short,
            ..Config::default()
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        const MIB: usize = 1024 * 1024;
        Config {
            listen: "127.0.0.1:0".to_owned(),
            advertised_host: None,
            data_dir: None,
            fsync: Fsync::default(),
            auto_create_topics: false,
            partitions_default: 1,
            connections_max: 1024,
            request_bytes_max: 100 * MIB,
            requests_bytes_max: 256 * MIB,
            request_read_max: Duration::from_secs(30),
            fetch_bytes_max: 55 * MIB,
            memory_bytes_max: 4096 * MIB as u64,
            partitions_max: 10_000,
            groups_max: 10_000,
            group_members_max: 1000,
            transactional_ids_max: 10_000,
            offset_metadata_bytes_max: 4096,
            session_timeout_min: Duration::from_secs(6),
            session_timeout_max: Duration::from_secs(30 * 60),
            initial_rebalance_delay: Duration::ZERO,
            transaction_timeout_max: Duration::from_secs(15 * 60),
            transaction_abort_interval: Duration::from_secs(1),
            producer_expiry: Duration::from_secs(24 * 60 * 60),
            maintenance_interval: Duration::from_secs(1),
            marker_delay: Duration::ZERO,
        }
    }
}
