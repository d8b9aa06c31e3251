//! The typed configuration tree: the node's file, a deployment's document, a module's manifest.
//!
//! The only place that reads YAML. Everything it hands out has been checked, and a check that fails
//! says the line, the key and what to write instead, for all problems of a document at once.
//!
//! | file | what |
//! |---|---|
//! | [`deployment`], [`document`] | what a deployment document means; reading it |
//! | [`topic`] | what a topic's document means, and reading it |
//! | [`documents`] | files of both |
//! | [`changes`] | what two versions differ in |
//! | [`failures`] | what becomes of a record that fails |
//! | [`outbox`] | outputs that are no topic |
//! | [`jitter`] | what is waited of a pause |
//! | [`policy`] | what a node allows its deployments |
//! | [`rollout`] | when a new version is taken back by itself |
//! | [`node`], [`load`], `build`, `listen` | what a node's configuration means; reading and combining it |
//! | [`kafka_client`] | what of it only librdkafka can honour |
//! | [`roles`] | who may do what |
//! | [`roles_file`] | the same on a node that runs, as its file changes |
//! | [`settings`], [`kafka_properties`], `profiles` | the tables behind it |
//! | [`manifest`] | what a module says about itself |
//! | [`files`] | files that are named, read up to a bound |
//! | [`units`], [`problem`], `section`, `yaml` | the parts |

mod build;
pub mod changes;
pub mod deployment;
pub mod document;
pub mod documents;
pub mod failures;
pub mod files;
pub mod jitter;
pub mod kafka_client;
pub mod kafka_properties;
mod librdkafka_names;
mod listen;
pub mod load;
pub mod manifest;
pub mod node;
pub mod outbox;
pub mod policy;
pub mod problem;
mod profiles;
pub mod roles;
pub mod roles_file;
pub mod rollout;
mod section;
pub mod settings;
pub mod state_dir;
pub mod topic;
pub mod units;
mod yaml;

pub use document::SpecDefaults;
pub use node::NodeConfig;
pub use problem::{Problem, Problems};

#[cfg(test)]
mod document_tests;
#[cfg(test)]
mod load_tests;
