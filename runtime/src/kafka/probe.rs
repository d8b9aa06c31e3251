//! Can Kafka be reached, by librdkafka and by the node's own connections, and if not, why? Answers in seconds and names
//! the cause.

use std::time::{Duration, Instant};

use super::config::KafkaConfig;
use super::ffi::{Client, Code, KafkaError, Kind};
use super::wire::{Access, Connection};
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

/// Whether the node's own client gets through to a cluster that [`probe`] has reached: its own connections have other TLS, sign-in
/// and versions than librdkafka's. Err says what stands in the way; what may pass by itself, such as a broker that is away
/// just now, does not. Blocks for `timeout` at most, except that the system may take longer to look names up.
pub fn probe_own_client(config: &KafkaConfig, timeout: Duration) -> Result<(), String> {
    let until = Instant::now() + timeout;
    let access = Access::new(config).map_err(|error| error.to_string())?;
    let mut reasons = Vec::new();
    for (address, left) in access.bootstrap.iter().zip((1..=access.bootstrap.len()).rev()) {
        // Each has its share of the time that is left, so that one which is away does not take it from the others.
        let now = Instant::now();
        let share = until.saturating_duration_since(now) / u32::try_from(left).unwrap_or(u32::MAX);
        match Connection::open_until(&access, address, now + share) {
            Ok(_) => return Ok(()),
            Err(error) if error.lasts() => reasons.push(error.to_string()),
            Err(_) => {}
        }
    }
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(reasons.join("; ")),
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A broker that answers one question, for its versions, with these of Fetch and Metadata, 0 being the first.
    fn broker(newest: [u8; 2]) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let speaker = thread::spawn(move || {
            let mut tcp = listener.accept().expect("a client").0;
            let mut size = [0; 4];
            tcp.read_exact(&mut size).expect("a request");
            let mut request = vec![0; u32::from_be_bytes(size) as usize];
            tcp.read_exact(&mut request).expect("all of it");
            let [fetch, metadata] = newest;
            // Correlation id, no error, two of: key, first and last version.
            let mut answer = request[4..8].to_vec();
            answer.extend([0, 0, 0, 0, 0, 2]);
            answer.extend([0, 1, 0, 0, 0, fetch]);
            answer.extend([0, 3, 0, 0, 0, metadata]);
            tcp.write_all(&[&[0, 0, 0, answer.len() as u8][..], &answer].concat()).expect("sent");
            tcp.read_to_end(&mut Vec::new()).expect("the end");
        });
        (address, speaker)
    }

    #[test]
    fn only_what_lasts_keeps_the_node_from_fetching_by_itself() {
        let ((old, old_broker), (new, new_broker)) = (broker([11, 9]), broker([12, 10]));
        // No other address contains it.
        let nobody = "127.0.0.2:1";
        let text = probe_own_client(&KafkaConfig::new(format!("{nobody},{old}")), SOON).expect_err("too old");
        for part in [old.as_str(), "version 12 of Fetch", "kafka.client: librdkafka"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains(nobody), "{text}");
        old_broker.join().expect("it is content");
        assert_eq!(probe_own_client(&KafkaConfig::new(nobody), SOON), Ok(()));
        assert_eq!(probe_own_client(&KafkaConfig::new(format!("{nobody},{new}")), SOON), Ok(()));
        new_broker.join().expect("it is content");
    }

    #[test]
    fn what_cannot_be_read_or_does_not_answer_does_not_take_long() {
        let mut config = KafkaConfig::new("localhost:9092");
        config.security_protocol = "ssl".to_owned();
        config.properties.insert("ssl.ca.location".to_owned(), "/nowhere".to_owned());
        let text = probe_own_client(&config, SOON).expect_err("there are no certificates");
        assert!(text.contains("/nowhere cannot be read"), "{text}");
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = silent.local_addr().expect("bound").to_string();
        let began = Instant::now();
        assert_eq!(probe_own_client(&KafkaConfig::new(address), Duration::from_millis(50)), Ok(()));
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
}
