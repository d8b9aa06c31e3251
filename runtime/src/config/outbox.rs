//! Outputs that are no topic: where an outbox delivers, how often it tries, and what it may hold.
//!
//! ```yaml
//! outputs:
//!   confirmations:
//!     http: { url: "https://shop.example/hooks", format: structured, secret_file: /run/secrets/hook }
//!     timeout: 10s
//!     retry: 100ms..30s
//!     breaker: { failures: 5, open: 10s }
//! ```
//!
//! Secrets are never in a document, because documents are kept in the registry: a document says where a
//! node finds them. `docs/outbox.md` is the reference; a test holds it to the names and defaults here.

use std::path::PathBuf;
use std::time::Duration;

use super::document::{SpecDefaults, topic};
use super::failures::{Backoff, read_backoff};
use super::section::{Field, Section};

/// What a variable with a secret begins with, so that no document can ask for any other of a node's.
pub const VARIABLE_PREFIX: &str = "OUTBOX_";

/// Where rows of an output are delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub way: Way,
    /// Longest time of one attempt.
    pub timeout: Duration,
    /// Pauses between attempts.
    pub retry: Backoff,
    /// How often a row is tried again after its first failure, before it goes to the dead letters; none = until
    /// it is delivered.
    pub attempts: Option<u32>,
    pub breaker: BreakerSpec,
    /// Rows and bytes that one task keeps at most; at a bound its input pauses.
    pub rows: u64,
    pub bytes: u64,
    /// Deliveries of one task under way at once, each of another key.
    pub in_flight: u32,
}

impl Destination {
    /// The `type` of what is delivered, unless a row says otherwise.
    pub fn event_type(&self, deployment: &str, output: &str) -> String {
        let given = match &self.way {
            Way::Http(http) => http.event_type.clone(),
            Way::Amqp(_) | Way::Kafka(_) => None,
        };
        given.unwrap_or_else(|| format!("{deployment}.{output}"))
    }

    /// Every file and variable that a node reads for it, behind the key that names it.
    pub fn secrets(&self) -> Vec<(String, String)> {
        let (sources, ca) = match &self.way {
            Way::Http(HttpSpec { url, secret, authorization, ca, .. }) => {
                let optional = [("secret", secret.as_ref()), ("authorization", authorization.as_ref())];
                (Vec::from_iter([("url", Some(url))].into_iter().chain(optional)), ca)
            }
            Way::Amqp(AmqpSpec { url, ca, .. }) => (vec![("url", Some(url))], ca),
            Way::Kafka(KafkaSpec { sasl, ca, .. }) => {
                (vec![("sasl.password", sasl.as_ref().map(|sasl| &sasl.password))], ca)
            }
        };
        let way = self.way.as_str();
        let named = |(what, source): (&str, Option<&Source>)| match source? {
            Source::Plain(_) => None,
            Source::File(path) => Some((format!("{way}.{what}_file"), path.display().to_string())),
            Source::Variable(name) => Some((format!("{way}.{what}_env"), name.clone())),
        };
        let ca = ca.iter().map(|ca| (format!("{way}.ca_file"), ca.display().to_string()));
        sources.into_iter().filter_map(named).chain(ca).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    Http(HttpSpec),
    Amqp(AmqpSpec),
    Kafka(KafkaSpec),
}

impl Way {
    pub fn as_str(&self) -> &'static str {
        match self {
            Way::Http(_) => "http",
            Way::Amqp(_) => "amqp",
            Way::Kafka(_) => "kafka",
        }
    }
}

/// When a destination counts as out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSpec {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open at most before one delivery is let through.
    pub open: Duration,
}

/// A text that a node finds somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In the document itself; never a secret.
    Plain(String),
    File(PathBuf),
    Variable(String),
}

/// How a delivery becomes a CloudEvent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpFormat {
    /// Attributes and data are one JSON document.
    #[default]
    Structured,
    /// Attributes are headers, the body is the value.
    Binary,
}

impl HttpFormat {
    pub const ALL: [(&'static str, HttpFormat); 2] =
        [("structured", HttpFormat::Structured), ("binary", HttpFormat::Binary)];
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSpec {
    pub url: Source,
    pub format: HttpFormat,
    /// Of the signature; none = deliveries are not signed.
    pub secret: Option<Source>,
    /// Value of the `Authorization` header.
    pub authorization: Option<Source>,
    /// The event's `type`; none = `DEPLOYMENT.OUTPUT`.
    pub event_type: Option<String>,
    /// Certificates that the server's is checked with; none = the system's.
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpSpec {
    pub url: Source,
    /// Empty = the default exchange, which routes to the queue that `routing_key` names.
    pub exchange: String,
    pub routing_key: String,
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaSpec {
    pub bootstrap_servers: String,
    pub topic: String,
    pub security_protocol: SecurityProtocol,
    pub sasl: Option<SaslSpec>,
    /// Certificates that the brokers' are checked with; none = the system's.
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslSpec {
    pub mechanism: String,
    pub username: String,
    pub password: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecurityProtocol {
    #[default]
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

impl SecurityProtocol {
    pub const ALL: [(&'static str, SecurityProtocol); 4] = [
        ("PLAINTEXT", SecurityProtocol::Plaintext),
        ("SSL", SecurityProtocol::Ssl),
        ("SASL_PLAINTEXT", SecurityProtocol::SaslPlaintext),
        ("SASL_SSL", SecurityProtocol::SaslSsl),
    ];

    pub fn as_str(self) -> &'static str {
        SecurityProtocol::ALL.iter().find(|(_, protocol)| *protocol == self).map_or("", |(name, _)| name)
    }

    fn has_sasl(self) -> bool {
        matches!(self, SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl)
    }
}

/// What a document that does not say gets.
pub const TIMEOUT: Duration = Duration::from_secs(10);
pub const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
pub const BREAKER: BreakerSpec = BreakerSpec { failures: 5, open: Duration::from_secs(30) };
pub const ROWS: u64 = 10_000;
pub const BYTES: u64 = 64 << 20;
pub const IN_FLIGHT: u64 = 32;
/// Of a Kafka topic, which takes many at once.
pub const KAFKA_IN_FLIGHT: u64 = 500;

const SECOND: Duration = Duration::from_secs(1);

/// Reads an output that names no topic. `None` only if something was reported.
pub(super) fn read(
    output: &mut Section<'_>,
    field: &Field<'_>,
    defaults: &SpecDefaults,
) -> Option<Destination> {
    let ways =
        [("http", output.take("http")), ("amqp", output.take("amqp")), ("kafka", output.take("kafka"))];
    let given: Vec<&str> = ways.iter().filter(|(_, way)| way.is_some()).map(|(name, _)| *name).collect();
    if given.len() > 1 {
        field.refuse(format!("has {}: an output has one destination", given.join(" and ")));
    }
    let mut found = Vec::new();
    for (name, way) in ways {
        let Some(mut section) = way.and_then(|way| way.section()) else { continue };
        found.push(match name {
            "http" => http(&mut section).map(Way::Http),
            "amqp" => amqp(&mut section).map(Way::Amqp),
            _ => kafka(&mut section).map(Way::Kafka),
        });
        section.finish();
    }
    let timeout = output.duration("timeout", TIMEOUT, Duration::from_millis(10)..=SECOND * 300);
    let retry = output.take("retry").as_ref().and_then(read_backoff).unwrap_or(RETRY);
    let attempts = output.integer("attempts", u64::MAX, 0..=1_000_000);
    let breaker = breaker(output, defaults.breaker);
    let rows = output.integer("rows", ROWS, 1..=1_000_000);
    let bytes = output.bytes("bytes", BYTES, 64 << 10..=16 << 30);
    let in_flight = if given == ["kafka"] { KAFKA_IN_FLIGHT } else { IN_FLIGHT };
    let in_flight = output.integer("in_flight", in_flight, 1..=1_000) as u32;
    let way = found.pop().flatten().filter(|_| given.len() == 1)?;
    let attempts = u32::try_from(attempts).ok();
    Some(Destination { way, timeout, retry, attempts, breaker, rows, bytes, in_flight })
}

/// True for an output that says where it is delivered outside the transaction.
pub(super) fn is_destination(output: &mut Section<'_>) -> bool {
    ["http", "amqp", "kafka"].into_iter().any(|way| output.take(way).is_some())
}

fn breaker(output: &mut Section<'_>, standard: BreakerSpec) -> BreakerSpec {
    let Some(mut section) = output.section("breaker") else { return standard };
    let breaker = BreakerSpec {
        failures: section.integer("failures", standard.failures.into(), 1..=1_000) as u32,
        open: section.duration("open", standard.open, Duration::from_millis(100)..=SECOND * 3600),
    };
    section.finish();
    breaker
}

fn http(section: &mut Section<'_>) -> Option<HttpSpec> {
    let url = url(section, &["http://", "https://"], "url: https://HOST/PATH");
    let secret = secret_of(section, ("secret", "secret_file", "secret_env"));
    let authorization = secret_of(section, ("authorization", "authorization_file", "authorization_env"));
    let format = section.choice("format", HttpFormat::default(), &HttpFormat::ALL);
    let event_type = section.text("type");
    let ca = section.text("ca_file").map(PathBuf::from);
    Some(HttpSpec { url: url?, format, secret, authorization, event_type, ca })
}

fn amqp(section: &mut Section<'_>) -> Option<AmqpSpec> {
    let url = url(section, &["amqp://", "amqps://"], "url: amqp://HOST:5672/VHOST");
    let exchange = section.text("exchange").unwrap_or_default();
    let routing_key = section.text("routing_key");
    if routing_key.is_none() && exchange.is_empty() {
        section.missing("routing_key", "write the routing key; without an exchange it is the queue's name");
    }
    let ca = section.text("ca_file").map(PathBuf::from);
    Some(AmqpSpec { url: url?, exchange, routing_key: routing_key.unwrap_or_default(), ca })
}

fn kafka(section: &mut Section<'_>) -> Option<KafkaSpec> {
    let bootstrap_servers = section.text("bootstrap_servers");
    if bootstrap_servers.is_none() {
        section.missing("bootstrap_servers", "write HOST:PORT of at least one broker");
    }
    let topic = topic(section);
    let protocol = section.take("security_protocol");
    let security_protocol =
        section.choice("security_protocol", SecurityProtocol::default(), &SecurityProtocol::ALL);
    let sasl = section.take("sasl");
    match (&sasl, security_protocol.has_sasl()) {
        (Some(field), false) => {
            field.refuse("has no effect without security_protocol: SASL_SSL (or SASL_PLAINTEXT)");
        }
        (None, true) => {
            if let Some(field) = protocol {
                field.refuse("needs sasl: { mechanism, username, password_file }");
            }
        }
        _ => {}
    }
    let sasl = sasl.and_then(|field| read_sasl(&field));
    let ca = section.text("ca_file").map(PathBuf::from);
    Some(KafkaSpec { bootstrap_servers: bootstrap_servers?, topic: topic?, security_protocol, sasl, ca })
}

fn read_sasl(field: &Field<'_>) -> Option<SaslSpec> {
    const MECHANISMS: [(&str, &str); 3] =
        [("PLAIN", "PLAIN"), ("SCRAM-SHA-256", "SCRAM-SHA-256"), ("SCRAM-SHA-512", "SCRAM-SHA-512")];
    let mut section = field.section()?;
    let mechanism = section.choice("mechanism", "PLAIN", &MECHANISMS);
    let username = section.text("username");
    if username.is_none() {
        section.missing("username", "write the user's name");
    }
    let password = secret_of(&mut section, ("password", "password_file", "password_env"));
    if password.is_none() {
        section.missing("password_file", "name a file, or a variable with password_env");
    }
    section.finish();
    Some(SaslSpec { mechanism: mechanism.to_owned(), username: username?, password: password? })
}

/// `url`, `url_file` or `url_env`: exactly one.
fn url(section: &mut Section<'_>, schemes: &[&str], hint: &'static str) -> Option<Source> {
    let plain = section.take("url");
    let elsewhere = source(section, "url_file", "url_env");
    let Some(field) = plain else {
        if elsewhere.is_none() {
            section.missing("url", hint);
        }
        return elsewhere;
    };
    if elsewhere.is_some() {
        field.refuse("is given twice: keep one of url, url_file and url_env");
    }
    let text = field.text()?;
    match check_url(&text, schemes) {
        Ok(()) => Some(Source::Plain(text)),
        Err(message) => {
            field.refuse(message);
            None
        }
    }
}

/// Says nothing of the URL itself, which may hold a password.
pub fn check_url(text: &str, schemes: &[&str]) -> Result<(), String> {
    let Some(rest) = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)) else {
        return Err(format!("is no URL of this kind: it begins with {}", schemes.join(" or ")));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("holds a user or a password in plain text, and documents are kept in the registry: name a file with \
                    url_file, or a variable with url_env"
            .to_owned());
    }
    if authority.is_empty() || text.chars().any(char::is_whitespace) {
        return Err("is no URL: it has no host, or a blank in it".to_owned());
    }
    Ok(())
}

fn secret_of(
    section: &mut Section<'_>,
    (plain, file, variable): (&'static str, &'static str, &'static str),
) -> Option<Source> {
    if let Some(field) = section.take(plain) {
        field.refuse(format!(
            "is a secret in plain text, and documents are kept in the registry: name a file with {file}, or a variable with \
             {variable}"
        ));
    }
    source(section, file, variable)
}

fn source(section: &mut Section<'_>, file: &'static str, variable: &'static str) -> Option<Source> {
    let (by_file, by_variable) = (section.take(file), section.take(variable));
    if let (Some(_), Some(field)) = (&by_file, &by_variable) {
        field.refuse(format!("and {file} are both given: keep one"));
    }
    if let Some(field) = by_file {
        let path = PathBuf::from(field.text()?);
        if !path.is_absolute() {
            field.refuse("must be an absolute path: each node of the fleet reads it for itself");
        }
        return Some(Source::File(path));
    }
    let field = by_variable?;
    let name = field.text()?;
    let rest = name.strip_prefix(VARIABLE_PREFIX).unwrap_or_default();
    let valid =
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if !valid {
        field.refuse(format!(
            "`{name}` is no variable for secrets of an outbox: their names are {VARIABLE_PREFIX} and A-Z, 0-9, _"
        ));
    }
    Some(Source::Variable(name))
}

#[cfg(test)]
mod tests {
    use super::super::deployment::{DeploymentSpec, OutputSpec};
    use super::super::units;
    use super::*;

    fn parse(output: &str) -> Result<Destination, Vec<String>> {
        let text = format!(
            "name: a\nmodule: a.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs:\n  hook: {output}\n"
        );
        let spec = DeploymentSpec::parse(&text)
            .map_err(|problems| problems.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        match spec.outputs.get("hook") {
            Some(OutputSpec::Destination(destination)) => Ok((**destination).clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_destination_has_defaults_for_everything_but_its_place() {
        let hook = parse("{ http: { url: 'https://shop.example/hook' } }").expect("valid");
        let Way::Http(http) = &hook.way else { panic!("{hook:?}") };
        assert_eq!(http.url, Source::Plain("https://shop.example/hook".into()));
        assert_eq!((http.format, &http.secret), (HttpFormat::Structured, &None));
        assert_eq!((hook.timeout, hook.retry, hook.attempts), (TIMEOUT, RETRY, None));
        assert_eq!((hook.breaker, hook.rows, hook.bytes, hook.in_flight), (BREAKER, ROWS, BYTES, 32));

        let queue = "{ amqp: { url_env: OUTBOX_RABBIT, exchange: orders, routing_key: paid }, attempts: 3, retry: 1s..2s, rows: 7 }";
        let queue = parse(queue).expect("valid");
        assert_eq!((queue.attempts, queue.retry.min, queue.rows), (Some(3), SECOND, 7));
        let mirror = "{ kafka: { bootstrap_servers: 'b:9092', topic: t, security_protocol: SASL_SSL, \
                      sasl: { mechanism: PLAIN, username: u, password_file: /run/p } } }";
        let mirror = parse(mirror).expect("valid");
        assert_eq!((mirror.in_flight, queue.in_flight), (500, 32), "a topic takes many at once");
        let Way::Kafka(kafka) = mirror.way else { panic!("kafka") };
        assert_eq!(kafka.sasl.map(|sasl| sasl.password), Some(Source::File("/run/p".into())));
    }

    #[test]
    fn what_cannot_be_is_refused_all_at_once_and_secrets_are_not_repeated() {
        let cases = [
            ("{ topic: t, http: { url: 'http://h/' } }", &["topic and http"][..]),
            ("{ http: { url: 'http://h/' }, amqp: { url: 'amqp://h', routing_key: q } }", &["http and amqp"]),
            ("{ http: { format: structured } }", &["hook.http.url: is missing"]),
            (
                "{ http: { url: 'http://joe:canary@h/', secret: canary } }",
                &["a password in plain text", "secret in plain text"],
            ),
            (
                "{ amqp: { url: 'amqp://joe:canary@h' } }",
                &["a password in plain text", "routing_key: is missing"],
            ),
            (
                "{ http: { url: 'ftp://h/' }, retry: 2s..1s, rows: 0 }",
                &["begins with http://", "must rise", "outside 1"],
            ),
            (
                "{ http: { url: 'http://h/', secret_file: key, secret_env: PATH } }",
                &["both given", "absolute path"],
            ),
            ("{ http: { url: 'http://h/', secret_env: KAFKA_SASL_PASSWORD } }", &["OUTBOX_"]),
            (
                "{ kafka: { topic: t, sasl: { username: u, password: canary } } }",
                &["bootstrap_servers: is missing", "has no effect without", "secret in plain text"],
            ),
            ("{ http: { url: 'http://h/' }, braker: { failures: 1 } }", &["did you mean `breaker`"]),
        ];
        for (output, expected) in cases {
            let problems = parse(output).expect_err(output).join("\n");
            for part in expected {
                assert!(problems.contains(part), "{part} is not in, for {output}:\n{problems}");
            }
            assert!(!problems.contains("canary"), "{problems}");
        }
    }

    #[test]
    fn breakers_can_be_what_the_operations_handbook_has_for_each_use() {
        let text = include_str!("../../../docs/outbox.md");
        for (breaker, failures, open_s) in [
            ("{ failures: 3, open: 60s }", 3, 60),
            ("{ failures: 10, open: 30s }", 10, 30),
            ("{ failures: 5, open: 45s }", 5, 45),
            ("{ failures: 15, open: 120s }", 15, 120),
        ] {
            assert!(text.contains(&format!("| `{breaker}` |")), "{breaker} is not in docs/outbox.md");
            let hook = parse(&format!("{{ http: {{ url: 'http://h/' }}, breaker: {breaker} }}"));
            let open = Duration::from_secs(open_s);
            assert_eq!(hook.map(|hook| hook.breaker), Ok(BreakerSpec { failures, open }));
        }
    }

    #[test]
    fn the_documentation_names_every_setting_with_its_default() {
        let text = include_str!("../../../docs/outbox.md");
        let defaults = [
            ("timeout", units::show_duration(TIMEOUT)),
            ("retry", format!("{}..{}", units::show_duration(RETRY.min), units::show_duration(RETRY.max))),
            ("rows", ROWS.to_string()),
            ("bytes", units::show_bytes(BYTES)),
            ("in_flight", IN_FLIGHT.to_string()),
            ("breaker.failures", BREAKER.failures.to_string()),
            ("breaker.open", units::show_duration(BREAKER.open)),
        ];
        for (name, default) in defaults {
            let row = text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            assert!(
                row.is_some_and(|row| row.contains(&format!("| {default} |"))),
                "{name}: {default}: {row:?}"
            );
        }
        let of_kafka = format!("{KAFKA_IN_FLIGHT} to a `kafka` topic");
        assert!(text.contains(&of_kafka), "{of_kafka} is not in docs/outbox.md");
        for name in [
            "secret_file",
            "secret_env",
            "authorization_file",
            "url_file",
            "url_env",
            "exchange",
            "routing_key",
            "bootstrap_servers",
            "security_protocol",
            "password_file",
            "ca_file",
            "format",
            "type",
            "attempts",
        ] {
            assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/outbox.md");
        }
    }
}
