//! How to reach brokers and sign in at them, from the configuration that librdkafka is given as well.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use super::sasl::{Sasl, SaslError};
use crate::config::kafka_client::Obstacle;
use crate::kafka::config::KafkaConfig;
use crate::tls::TlsError;
use crate::tls::blocking::Client;

/// Until a connection is made, encrypted and signed in, if `socket.connection.setup.timeout.ms` does not say. A third of
/// librdkafka's: a partition waits for nothing else meanwhile, and another attempt costs little.
const CONNECT_TIMEOUT_MS: u64 = 10_000;
/// What `socket.timeout.ms` is without being said, as for librdkafka.
const REQUEST_TIMEOUT_MS: u64 = 60_000;
/// The same of `receive.message.max.bytes`, unless a fetch may be larger.
const RESPONSE_BYTES_MAX: usize = 100_000_000;
/// What an answer to a fetch may be larger than it was to be: a batch that comes first comes whole.
const BATCH_BYTES: usize = 16 << 20;
/// librdkafka's for a server without one.
const PORT: u16 = 9092;
/// What is shown of a host: names are not longer.
const HOST_CHARS_MAX: usize = 255;

/// Where a broker listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(in crate::kafka) struct Address {
    pub host: String,
    pub port: u16,
}

/// See the module. Certificates and keys are read once, when it is made.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Access {
    pub client_id: String,
    /// At least one.
    pub bootstrap: Vec<Address>,
    pub tls: Option<Client>,
    pub(super) sasl: Option<Sasl>,
    /// Of a connection until requests may be sent on it.
    pub connect_timeout: Duration,
    /// Of an answer, beyond what the request lets the broker wait.
    pub request_timeout: Duration,
    pub response_bytes_max: usize,
}

/// Why the node's own client cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::kafka) enum AccessError {
    #[error(
        "the node's own client cannot do what is configured, leave it to librdkafka (kafka.client: librdkafka): {}",
        listed(.0)
    )]
    OnlyLibrdkafka(Vec<Obstacle>),
    #[error(
        "kafka.bootstrap_servers: `{0}` is no broker address: write HOST:PORT, for example localhost:9092"
    )]
    Server(String),
    #[error("kafka.bootstrap_servers names no broker: write HOST:PORT")]
    NoServer,
    #[error("kafka.security_protocol {0} is not known: write PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")]
    Protocol(String),
    #[error("kafka.ssl.certificate and kafka.ssl.key go together: one of them is missing")]
    Pair,
    #[error("kafka.ssl: {0}")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Sasl(#[from] SaslError),
}

fn listed(obstacles: &[Obstacle]) -> String {
    let shown: Vec<String> = obstacles.iter().map(Obstacle::to_string).collect();
    shown.join("; ")
}

impl Access {
    /// Err names every property that only librdkafka can honour.
    pub fn new(config: &KafkaConfig) -> Result<Access, AccessError> {
        let obstacles = config.only_librdkafka();
        if !obstacles.is_empty() {
            return Err(AccessError::OnlyLibrdkafka(obstacles));
        }
        let (encrypts, signs_in) = match config.security_protocol.to_ascii_lowercase().as_str() {
            "plaintext" => (false, false),
            "ssl" => (true, false),
            "sasl_plaintext" => (false, true),
            "sasl_ssl" => (true, true),
            _ => return Err(AccessError::Protocol(config.security_protocol.clone())),
        };
        let millis = |name: &str, default| Duration::from_millis(config.number(name).unwrap_or(default));
        Ok(Access {
            client_id: config.client_id.clone(),
            bootstrap: servers(&config.bootstrap_servers)?,
            tls: if encrypts { Some(tls(config)?) } else { None },
            sasl: if signs_in { Some(sasl(config)?) } else { None },
            connect_timeout: millis("socket.connection.setup.timeout.ms", CONNECT_TIMEOUT_MS),
            request_timeout: millis("socket.timeout.ms", REQUEST_TIMEOUT_MS),
            response_bytes_max: config.number("receive.message.max.bytes").unwrap_or_else(|| {
                let fetch = usize::try_from(config.fetching().max_bytes).unwrap_or(0);
                RESPONSE_BYTES_MAX.max(fetch.saturating_add(BATCH_BYTES))
            }),
        })
    }
}

fn servers(text: &str) -> Result<Vec<Address>, AccessError> {
    let named = text.split(',').map(str::trim).filter(|server| !server.is_empty());
    let servers: Result<Vec<Address>, AccessError> = named
        .map(|server| Address::parse(server).ok_or_else(|| AccessError::Server(server.to_owned())))
        .collect();
    match servers {
        Ok(servers) if servers.is_empty() => Err(AccessError::NoServer),
        servers => servers,
    }
}

fn tls(config: &KafkaConfig) -> Result<Client, AccessError> {
    let file = |name: &str| config.properties.get(name).map(|path| Path::new(path.as_str()));
    // `probe` has librdkafka look for the system's, which is done here in any case.
    let ca = file("ssl.ca.location").filter(|path| *path != Path::new("probe"));
    let pair = match (file("ssl.certificate.location"), file("ssl.key.location")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(AccessError::Pair),
    };
    Ok(Client::from_files(ca, pair)?)
}

fn sasl(config: &KafkaConfig) -> Result<Sasl, AccessError> {
    let mechanism = config.sasl_mechanism.as_deref().unwrap_or_default();
    Ok(Sasl::new(mechanism, config.sasl_username.as_deref(), config.sasl_password.as_deref())?)
}

impl Address {
    /// `HOST:PORT` or `HOST`; an IPv6 address with a port stands in brackets.
    fn parse(text: &str) -> Option<Address> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (text, None),
            },
        };
        let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
        let (unscoped, _) = host.split_once('%').unwrap_or((host, ""));
        let is_host = !host.is_empty() && (!host.contains(':') || unscoped.parse::<Ipv6Addr>().is_ok());
        (is_host && port > 0).then(|| Address { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    /// Brokers name each other as they like, and this ends in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host: String = self.host.chars().filter(|c| !c.is_control()).take(HOST_CHARS_MAX).collect();
        match host.contains(':') {
            true => write!(f, "[{host}]:{}", self.port),
            false => write!(f, "{host}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_test_support::certificates::Authority;

    use super::*;

    fn config(properties: &[(&str, &str)]) -> KafkaConfig {
        let mut config = KafkaConfig::new("a:9092, [::1]:9093,b");
        let owned = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        config.properties = owned.collect();
        config
    }

    #[test]
    fn servers_are_read_as_librdkafka_reads_them_and_shown_as_they_are_written() {
        let access = Access::new(&config(&[])).expect("plain");
        let shown: Vec<String> = access.bootstrap.iter().map(Address::to_string).collect();
        assert_eq!(shown, ["a:9092", "[::1]:9093", "b:9092"]);
        assert_eq!(access.bootstrap[1].host, "::1");
        for (bare, shown) in [("::1", "[::1]:9092"), ("fe80::1%lo", "[fe80::1%lo]:9092")] {
            assert_eq!(Access::new(&KafkaConfig::new(bare)).expect(bare).bootstrap[0].to_string(), shown);
        }
        let strange = Address { host: format!("a\n\x1b[2J{}", "b".repeat(70_000)), port: 1 }.to_string();
        assert!(strange.starts_with("a[2Jb") && strange.len() < 300, "{strange}");
        for wrong in
            ["", " , ", "a:", "a:0", "a:70000", ":9092", "a:b:1", "ssl://a:9092", "[::1", "[::1]9092"]
        {
            assert!(Access::new(&KafkaConfig::new(wrong)).is_err(), "`{wrong}`");
        }
    }

    #[test]
    fn bounds_are_the_operators_or_librdkafkas_own() {
        let access = Access::new(&config(&[])).expect("plain");
        assert_eq!(access.request_timeout, Duration::from_secs(60));
        assert_eq!(access.response_bytes_max, RESPONSE_BYTES_MAX);
        let given = config(&[
            ("socket.timeout.ms", "5000"),
            ("socket.connection.setup.timeout.ms", "2000"),
            ("receive.message.max.bytes", "20000000"),
        ]);
        let access = Access::new(&given).expect("plain");
        assert_eq!((access.request_timeout.as_secs(), access.connect_timeout.as_secs()), (5, 2));
        assert_eq!(access.response_bytes_max, 20_000_000);
        let mut large = config(&[]);
        large.limits.fetch_bytes = 200_000_000;
        assert!(Access::new(&large).expect("plain").response_bytes_max > 200_000_000);
    }

    #[test]
    fn what_only_librdkafka_can_do_is_named_as_a_whole() {
        let mut config =
            config(&[("client.rack", "a"), ("ssl.cipher.suites", "x"), ("ssl.key.password", "canary")]);
        config.sasl_mechanism = Some("OAUTHBEARER".to_owned());
        let text = Access::new(&config).expect_err("refused").to_string();
        for part in [
            "kafka.client: librdkafka",
            "kafka.properties.client.rack",
            "kafka.properties.ssl.cipher.suites",
            "kafka.ssl.key_password",
            "kafka.sasl.mechanism",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("canary"), "{text}");
    }

    #[test]
    fn certificates_and_sign_in_are_as_the_protocol_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path(), "ca");
        let pair = authority.issue("client", &["client.test"]);
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let (ca, cert, key) = (path(&authority.ca), path(&pair.cert), path(&pair.key));
        let files: &[(&str, &str)] =
            &[("ssl.ca.location", &ca), ("ssl.certificate.location", &cert), ("ssl.key.location", &key)];
        for (protocol, encrypts, signs_in) in [
            ("PLAINTEXT", false, false),
            ("SSL", true, false),
            ("SASL_PLAINTEXT", false, true),
            ("sasl_ssl", true, true),
        ] {
            let mut config = config(files);
            config.security_protocol = protocol.to_owned();
            config.sasl_mechanism = signs_in.then(|| "PLAIN".to_owned());
            config.sasl_username = Some("me".to_owned());
            config.sasl_password = Some("canary".to_owned());
            let access = Access::new(&config).expect(protocol);
            assert_eq!((access.tls.is_some(), access.sasl.is_some()), (encrypts, signs_in), "{protocol}");
            assert!(!format!("{access:?}").contains("canary"));
        }
        let mut half = config(&files[..2]);
        half.security_protocol = "ssl".to_owned();
        assert!(matches!(Access::new(&half), Err(AccessError::Pair)));
        let mut unread = config(&[("ssl.ca.location", "/nowhere")]);
        unread.security_protocol = "ssl".to_owned();
        let text = Access::new(&unread).expect_err("refused").to_string();
        assert!(text.contains("/nowhere cannot be read"), "{text}");
    }
}
