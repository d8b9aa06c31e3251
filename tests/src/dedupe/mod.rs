//! Workload W6: ids that repeat, through a deployment with an inbox, while its nodes are killed.
//!
//! ```text
//!  plan (from a seed) --> feed ----> once-in ----> [chain, inbox] ----> once-out
//!                                                    nemesis: kills, drains, wiped stores
//!                                                    sizes: stores and the inbox's topic, over time
//!                           evidence: a file a partition --> tidemill-check (check/repeats.rs)
//! ```
//!
//! Record time runs faster than the clock: the plan spreads its records over a dozen TTLs in the past, so
//! that a minute's run sees ids expire again and again.
//!
//! | file | what it does |
//! |---|---|
//! | [`plan`] | which id comes when, how often and how late |
//! | [`feed`] | the producer, and what it knows of each record |
//! | [`sizes`] | what the inbox takes while it runs |
//! | [`lines`] | the evidence: large topics, a line a record |
//! | [`round`] | one round from beginning to verdict |
//! | [`upstream`] | a scene of its own: an upstream that repeats, killed, and the inbox behind it |

pub mod feed;
pub mod lines;
pub mod plan;
pub mod round;
pub mod sizes;
pub mod upstream;

pub const DEPLOYMENT: &str = "once";
pub const INPUT: &str = "once-in";
pub const OUTPUT: &str = "once-out";
/// The deployment's own topic of ids.
pub const IDS: &str = "tidemill.once.inbox";
pub const PARTITIONS: i32 = 8;
/// Of the inbox, in the time of the records.
pub const TTL_MS: i64 = 60_000;
