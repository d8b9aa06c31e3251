//! The fault matrix: each test is one row of it, on nodes under load, judged by the checker.
//!
//! Whatever the fault, the workloads must come out right: nothing lost, nothing twice, no store with a
//! wrong value, no transaction left open, no partition that stands still (W1 to W5, W8, W9). What a
//! test asserts beside that is that its fault really happened, and what the node said about it.
//!
//! | file | faults of |
//! |---|---|
//! | [`members`] | a node as a member of its groups |
//! | [`brokers`] | the brokers |
//! | [`network`] | the way between them |
//! | [`disk`] | a node's disk and what is on it |
//!
//! `make matrix` runs it, `make matrix ONLY=f07` one row of it; the table is `docs/reliability.md`.

#![forbid(unsafe_code)]

mod brokers;
mod disk;
mod members;
mod network;

use std::time::Duration;

/// The session of a group's member.
const SESSION: Duration = Duration::from_secs(10);
