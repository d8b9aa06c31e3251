//! The fault matrix: each test is one row of it, on nodes under load, judged by the checker.
//!
//! Whatever the fault, the workloads must come out right: nothing lost, nothing twice, no store with a
//! wrong value, no transaction left open, no partition that stands still (W1 to W5, W8 to W10). What a
//! test asserts beside that is that its fault really happened, and what the node said about it.
//!
//! | file | faults of |
//! |---|---|
//! | [`members`] | a node as a member of its groups |
//! | [`brokers`] | the brokers |
//! | [`network`] | the way between them |
//! | [`inputs`] | the topics that are read |
//! | [`damage`] | the brokers' disks |
//! | [`disk`] | a node's disk |
//! | [`stores`] | what is on it |
//! | [`planted`] | bugs that the simulation only mirrors at its own edges |
//!
//! `make matrix` runs it, `make matrix ONLY=f07` one row of it; the table is `docs/reliability.md`.
//! With `BROKER=embedded` the rows that ask nothing special of the broker run on the embedded one.

#![forbid(unsafe_code)]

mod brokers;
mod damage;
mod disk;
mod inputs;
mod members;
mod network;
mod planted;
mod stores;

use std::time::Duration;

use tidemill_tests::rig::case::{Broker, Case};

/// The session of a group's member.
const SESSION: Duration = Duration::from_secs(10);

/// A case without a plan on whichever broker the run is for; [`Case::plain`] is for Apache Kafka alone.
fn case(nodes: usize, records: u64) -> Case {
    let broker = match std::env::var("TIDEMILL_KAFKA").as_deref() {
        Ok("apache") => Broker::Apache,
        _ => Broker::Embedded,
    };
    Case { broker, ..Case::plain(nodes, records) }
}
