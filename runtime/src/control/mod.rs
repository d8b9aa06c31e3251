//! The control plane: gRPC services and HTTP endpoints over [`crate::node::Handle`].
//!
//! Runs on tokio; everything that may touch Kafka, RocksDB or Wasm is handed to a blocking thread.

pub mod admission;
mod connections;
pub mod deadline;
mod details;
mod drain;
pub mod forward;
pub mod grpc;
pub mod http;
mod lag;
mod letters;
mod logs;
mod outbox;
pub mod page;
mod peers;
pub mod run;
pub mod server;
mod streams;
pub mod upload;
