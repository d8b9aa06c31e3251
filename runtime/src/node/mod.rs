//! A running node: registry, deployments, workers, fleet. Plugs [`crate::wasm`] and
//! [`crate::kafka`] into tasks; everything above it talks to [`Handle`] only.
//!
//! ```text
//!   control topic --> control_log --> supervisor --> deployment --> worker --> commit thread
//!                                                                     |            |
//!                                       restorer <--- assigned -------+            v
//!                                          |                                 Kafka, then stores
//!                                          +--> task
//! ```

pub mod board;
mod change;
pub mod clients;
pub mod commit;
pub mod control_log;
pub mod deployment;
pub mod drain;
pub mod edit_state;
pub mod edits;
#[cfg(test)]
mod fake_site;
mod first_commits;
pub mod fleet;
pub mod former;
pub mod gauges;
pub mod handle;
pub mod heartbeat;
pub mod history;
pub mod identity;
pub mod inputs;
pub mod lag;
pub mod lag_gauges;
pub mod lease;
pub mod ledger;
pub mod modules;
#[cfg(feature = "native")]
pub mod native;
mod nodes;
pub mod outbox;
pub mod owners;
pub mod pace;
mod parked_keys;
mod permissions;
pub mod permits;
mod place;
mod places;
#[cfg(test)]
mod proposal;
pub mod query;
pub mod redrive;
pub mod registered;
pub mod registry;
pub mod reset;
pub mod restore;
pub mod restorer;
mod retreat;
pub mod retries;
pub mod revision;
mod rollout;
pub mod routine;
pub mod runtime;
pub mod seen;
#[cfg(test)]
mod simulation;
mod site;
mod start;
pub mod supervisor;
mod tidy;
mod topics;
pub mod trial;
mod trouble;
pub mod unpark;
pub mod uploads;
mod versions;
pub mod worker;

pub use deployment::wall_ms;
pub use handle::{ControlError, Handle};
pub use owners::Owner;
pub use rollout::{Following, Progress};
pub use start::{Node, NodeError};
pub use topics::TOPICS_MAX;
