//! The control plane: gRPC services and HTTP endpoints over [`crate::node::Handle`].
//!
//! Runs on tokio; everything that may touch Kafka, RocksDB or Wasm is handed to a blocking thread.

pub mod admission;
mod connections;
pub mod deadline;
mod details;
pub mod forward;
pub mod grpc;
pub mod http;
mod letters;
mod outbox;
pub mod page;
pub mod run;
pub mod server;
pub mod upload;
