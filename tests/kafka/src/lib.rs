//! Starts Apache Kafka 4.3.1 on free loopback ports, for tests and benchmarks.
//!
//! The broker comes from Maven Central: `mvn dependency:copy-dependencies` on the POM beside this
//! crate fills a cache directory once (about ten seconds), and every later start uses it. Each
//! `ApacheKafka` is one JVM in KRaft combined mode with its data in a temporary directory; it is
//! killed when the value is dropped. It is not a way to run Kafka for anything but tests: nothing is
//! secured unless `Options::sasl_ssl` asks for it.
//!
//! ```text
//! jars::class_path()  ->  StorageTool format  ->  kafka.Kafka  ->  "Kafka Server started"
//! ```
#![forbid(unsafe_code)]

mod error;
mod jars;
mod ports;
mod server;
mod tls;

pub use error::Error;
pub use jars::{VERSION, class_path, class_path_of, run_tool};
pub use ports::free_port;
pub use server::{ApacheKafka, Options, Secured};
