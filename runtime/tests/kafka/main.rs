//! The Kafka client against a real broker: the embedded one, or Apache Kafka with
//! `TIDEMILL_KAFKA=apache`. The same cases run on both.

#![allow(clippy::unwrap_used)] // Everything here is a test.

/// Each as a test with the node's own client, and with librdkafka.
macro_rules! by_either {
    ($($name:ident),* $(,)?) => {
        mod own {
            $(#[test]
            fn $name() {
                super::$name(tidemill::config::node::KafkaClient::Own);
            })*
        }
        mod librdkafka {
            $(#[test]
            fn $name() {
                super::$name(tidemill::config::node::KafkaClient::Librdkafka);
            })*
        }
    };
}

mod admin;
mod consumer;
mod fetching;
mod harness;
mod producing;
mod recovery;
mod sink;
