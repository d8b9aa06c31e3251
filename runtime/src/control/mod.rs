//! The control plane: gRPC services and HTTP endpoints over [`crate::node::Handle`].
//!
//! | file | what |
//! |---|---|
//! | [`run`], `connections`, [`incoming`], [`server`] | a node's listeners, connections on their way in, the gRPC server |
//! | [`admission`] | whether the node takes one more call, and how long that may take |
//! | [`guard`], [`caller`], `audit` | who asks, whether they may, and what is written about it |
//! | [`methods`] | every RPC and the role that it needs |
//! | [`grpc`], [`forward`] | the services; what concerns other nodes |
//! | [`upload`], [`page`], [`deadline`], `adoption`, `details` | parts of requests and answers |
//! | [`http`] | metrics and health |
//!
//! Runs on tokio; everything that may touch Kafka, RocksDB or Wasm is handed to a blocking thread.

pub mod admission;
mod adoption;
mod audit;
pub mod caller;
mod connections;
pub mod deadline;
mod details;
mod drain;
pub mod forward;
pub mod grpc;
pub mod guard;
#[cfg(test)]
mod guard_tests;
pub mod http;
pub mod incoming;
mod lag;
mod letters;
mod logs;
pub mod methods;
mod outbox;
pub mod page;
mod parked;
mod peers;
pub mod run;
pub mod server;
mod streams;
mod topics;
pub mod upload;
