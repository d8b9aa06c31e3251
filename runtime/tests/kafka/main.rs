//! The Kafka client against a real broker: the embedded one, or Apache Kafka with
//! `TIDEMILL_KAFKA=apache`. The same cases run on both.

#![allow(clippy::unwrap_used)] // Everything here is a test.

mod admin;
mod consumer;
mod fetching;
mod harness;
mod recovery;
mod sink;
