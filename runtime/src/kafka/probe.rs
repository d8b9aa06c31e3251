//! Can Kafka be reached, and if not, why? Answers in seconds and names the cause.

use std::time::{Duration, Instant};

use super::config::KafkaConfig;
use super::ffi::{Client, Code, KafkaError, Kind};
use crate::config::units::show_duration;

/// How long the same cause may show before it is taken for the answer. A broker that is just
/// starting refuses connections for a moment, too.
const SETTLE: Duration = Duration::from_secs(2);

/// Why Kafka cannot be reached. The first words are the documented ones; support searches for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("InfraConnectionError: Failed to connect to Kafka at {servers}: {cause}")]
    Connection { servers: String, cause: Cause },
    #[error("InfraTimeoutError: Timeout connecting to Kafka after {} ({servers}): {cause}", show_duration(*.after))]
    Timeout { servers: String, after: Duration, cause: Cause },
}

/// What stood in the way, with the client's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("the host name cannot be resolved: {0}")]
    Dns(String),
    #[error("no connection; is the broker running, and is this its address? {0}")]
    Connect(String),
    #[error("TLS failed; check the certificate, its authority and the host name: {0}")]
    Tls(String),
    #[error("authentication failed; check mechanism, user name and password: {0}")]
    Authentication(String),
    #[error("the configuration is wrong: {0}")]
    Configuration(String),
    #[error("nothing answers at that address; a firewall may be dropping packets")]
    Silence,
}

/// A cluster that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub cluster_id: Option<String>,
    /// From the first attempt to the first answer.
    pub took: Duration,
}

/// Tries to reach the cluster. Blocks for a few seconds when the cause of a failure is clear, for
/// `timeout` when nothing answers at all.
pub fn probe(config: &KafkaConfig, timeout: Duration) -> Result<Reached, ProbeError> {
    let servers = config.bootstrap_servers.clone();
    let begun = Instant::now();
    let client = match Client::new(Kind::Producer, &config.admin(), "probe") {
        Ok(client) => client,
        Err(error) => {
            return Err(ProbeError::Connection { servers, cause: Cause::Configuration(error.text) });
        }
    };
    loop {
        if client.metadata(Duration::from_millis(500)).is_ok() {
            let took = begun.elapsed();
            return Ok(Reached { cluster_id: client.cluster_id(Duration::from_secs(1)), took });
        }
        let cause = client.shared().last_error().map(|error| cause(&error));
        let elapsed = begun.elapsed();
        match cause {
            Some(cause) if elapsed >= SETTLE.min(timeout) => {
                return Err(ProbeError::Connection { servers, cause });
            }
            None if elapsed >= timeout => {
                return Err(ProbeError::Timeout { servers, after: timeout, cause: Cause::Silence });
            }
            _ => {}
        }
    }
}

fn cause(error: &KafkaError) -> Cause {
    let text = error.text.clone();
    if error.is(Code::RD_KAFKA_RESP_ERR__RESOLVE) {
        Cause::Dns(text)
    } else if error.is(Code::RD_KAFKA_RESP_ERR__SSL) {
        Cause::Tls(text)
    } else if error.is(Code::RD_KAFKA_RESP_ERR__AUTHENTICATION)
        || error.is(Code::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED)
        || error.is(Code::RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM)
    {
        Cause::Authentication(text)
    } else {
        Cause::Connect(text)
    }
}
