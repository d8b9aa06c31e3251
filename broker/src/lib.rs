//! An embedded, single-node server that speaks Kafka's protocol, for development and tests.
//!
//! Any Kafka client can use it: librdkafka, the Java clients and tools, Kafka Streams. It keeps
//! topics in memory or in a data directory, and it is careful about what stream processing relies
//! on: groups, idempotence, transactions, isolation, compaction. It is **not** a replacement for
//! Apache Kafka: one node, no replication, no security, and by default no fsync per write. KIP-848
//! groups, share groups and the second part of KIP-890 are not there.
//!
//! ```no_run
//! use tidemill_broker::{Broker, Config};
//!
//! let broker = Broker::start(Config { listen: "127.0.0.1:9092".into(), ..Config::default() })?;
//! println!("bootstrap.servers={}", broker.address());
//! broker.shutdown()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Layout
//!
//! ```text
//!   server/   sockets and threads: frames in, frames out, time
//!     |         one thread per connection; a request in progress blocks only its connection
//!     v
//!   core/     all requests, on one state behind one lock; synchronous, no I/O but its files
//!     |------ group/    one consumer group
//!     |------ txn       one transactional id
//!     |------ log/      one partition: segments, producers, compaction, recovery
//!     +------ journal   metadata that survives a restart
//! ```
//! From socket to effect it is three hops: `server::connection` reads a frame, `core::Core::handle`
//! finds the request's method, the method changes a `Log`, a `Group` or a `Transaction`.
//!
//! # What survives what
//!
//! Without [`Config::data_dir`] nothing survives. With it, whatever a client was told has happened
//! survives `kill -9` at any instant; with [`Fsync::EveryWrite`] also a power loss.
#![forbid(unsafe_code)]

mod config;
mod core;
mod error;
mod group;
mod journal;
mod log;
mod server;
mod settings;
mod txn;

pub use config::{Config, Fsync};
pub use error::Error;
pub use journal::JournalError;
pub use log::RecoverError;
pub use server::Broker;
