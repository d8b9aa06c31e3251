//! tidemill: a stream processing node whose handlers are WebAssembly components.
//!
//! # Layout
//!
//! | module | what lives there |
//! |---|---|
//! | [`record`], [`effects`] | pure values |
//! | [`store`] | RocksDB and the overlay in front of it |
//! | [`ports`] | the traits at the edges |
//! | [`task`] | one partition from source to commit |
//! | [`wasm`] | the handler host |
//! | [`kafka`] | consumer, producer, admin, log reader |
//! | [`relay`] | deliveries to destinations outside the Kafka transaction |
//! | [`node`] | workers, deployments, registry, fleet |
//! | [`control`] | gRPC and HTTP |
//! | [`tls`] | certificates: who somebody is, and what connections are encrypted with |
//! | [`telemetry`], [`config`] | every metric; the configuration tree |
//! | [`cli`] | the commands |
//! | [`faults`] | crash points and planted bugs of the tests; empty in a normal build |

pub mod cli;
pub mod config;
pub mod control;
pub mod effects;
pub mod faults;
pub mod kafka;
pub mod node;
pub mod ports;
pub mod record;
pub mod relay;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod wasm;
