//! `tidemill doctor`: what works and what does not between here, the node and Kafka, in one command.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::failure::{Failure, Kind};
use super::kafka::kafka_config;
use super::output::View;
use super::settings::{NodeArgs, SettingArgs};
use super::table::{Cell, Table, Tone};
use super::{Global, Outcome, client};
use crate::config::load::Effective;
use crate::config::node::KafkaClient;
use crate::config::state_dir;
use crate::kafka::admin::Admin;
use crate::kafka::config::KafkaConfig;
use crate::kafka::probe::{probe, probe_own_client};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A round trip above this is worth a word.
const LATENCY_GUIDE: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  tidemill doctor
  tidemill doctor --bootstrap-servers broker-1:9093 --config staging.yaml
  tidemill doctor -o json";

/// Check configuration, name resolution, brokers, state directory and node
///
/// Exit code 3 if Kafka cannot be reached; a node that does not run is only noted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    pub detail: String,
}

impl Check {
    pub fn new(name: impl Into<String>, verdict: Verdict, detail: impl Into<String>) -> Check {
        Check { name: name.into(), verdict, detail: detail.into() }
    }
}

impl Doctor {
    pub fn run(self, global: &Global) -> Outcome {
        let effective = self.settings.load_with(self.node.flags())?;
        let mut checks = vec![Check::new("configuration", Verdict::Ok, "valid")];
        checks.extend(
            effective.config.notes.iter().map(|note| Check::new("configuration", Verdict::Warning, note)),
        );
        for server in &effective.config.kafka.bootstrap_servers {
            checks.extend(broker(server));
        }
        checks.extend(cluster(&effective));
        checks.push(state(&effective));
        checks.push(node(global));
        report(&checks).print(global.output)?;
        let failed = checks.iter().find(|check| check.verdict == Verdict::Failed);
        match failed {
            None => Ok(()),
            Some(check) if check.name == "state directory" => Err(Failure::refused(&check.detail)),
            Some(check) => Err(Failure::unreachable(&check.detail)),
        }
    }
}

/// Name resolution and a plain connection, so that a firewall is told apart from a wrong name.
fn broker(server: &str) -> Vec<Check> {
    let addresses = match server.to_socket_addrs() {
        Ok(addresses) => addresses.collect::<Vec<_>>(),
        Err(error) => {
            let detail =
                format!("{server} cannot be resolved: {error}; check the spelling, or the DNS with nslookup");
            return vec![Check::new(format!("resolve {server}"), Verdict::Failed, detail)];
        }
    };
    let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let mut checks = vec![Check::new(format!("resolve {server}"), Verdict::Ok, shown.join(", "))];
    let started = Instant::now();
    let outcome: Vec<_> =
        addresses.iter().map(|address| TcpStream::connect_timeout(address, CONNECT_TIMEOUT)).collect();
    let name = format!("connect {server}");
    checks.push(if outcome.iter().any(Result::is_ok) {
        Check::new(name, Verdict::Ok, format!("{:.1} ms", started.elapsed().as_secs_f64() * 1e3))
    } else {
        let causes: Vec<String> =
            outcome.iter().filter_map(|outcome| Some(outcome.as_ref().err()?.to_string())).collect();
        let detail =
            format!("{server}: {}; is the broker running, is a firewall in between?", causes.join(", "));
        Check::new(name, Verdict::Failed, detail)
    });
    checks
}

/// The protocol itself: security, metadata, latency.
fn cluster(effective: &Effective) -> Vec<Check> {
    let failed = |detail: String| vec![Check::new("kafka", Verdict::Failed, detail)];
    let config = match kafka_config(effective) {
        Ok(config) => config,
        Err(failure) => return failed(failure.message),
    };
    if let Err(error) = probe(&config, effective.config.kafka.connect_timeout) {
        return failed(error.to_string());
    }
    let admin = match Admin::new(&config) {
        Ok(admin) => admin,
        Err(error) => return failed(error.to_string()),
    };
    let id = admin.cluster_id().unwrap_or_else(|_| "unknown".to_owned());
    // The first request pays for connections; the next one shows the network.
    let started = Instant::now();
    let topics = match admin.topics() {
        Ok(topics) => topics.len(),
        Err(error) => return failed(error.to_string()),
    };
    let took = started.elapsed();
    let verdict = if took > LATENCY_GUIDE { Verdict::Warning } else { Verdict::Ok };
    let mut latency = format!("{:.1} ms for a request", took.as_secs_f64() * 1e3);
    if verdict == Verdict::Warning {
        latency.push_str(", recommended is below 50 ms: every commit waits for several");
    }
    let mut checks = vec![
        Check::new("kafka", Verdict::Ok, format!("cluster {id}, {topics} topics")),
        Check::new("latency", verdict, latency),
    ];
    checks.extend(own_client(&config, effective.config.kafka.connect_timeout));
    checks
}

/// What keeps a node from reading and writing records by itself, if it should.
fn own_client(config: &KafkaConfig, limit: Duration) -> Option<Check> {
    if config.client() == KafkaClient::Librdkafka {
        return None;
    }
    let why = probe_own_client(config, limit).err()?;
    // A node that is told to do without librdkafka there does not start.
    let verdict = if config.client.is_some() { Verdict::Failed } else { Verdict::Warning };
    Some(Check::new("own client", verdict, format!("the node itself does not get through to Kafka: {why}")))
}

fn state(effective: &Effective) -> Check {
    let config = &effective.config;
    if !config.state_dir.exists() {
        let detail = format!("{} does not exist yet; a node makes it", config.state_dir.display());
        return Check::new("state directory", Verdict::Warning, detail);
    }
    match state_dir::check(&config.state_dir, config.state_free_min_bytes) {
        Ok(()) => Check::new("state directory", Verdict::Ok, config.state_dir.display().to_string()),
        Err(problems) => Check::new("state directory", Verdict::Failed, problems.to_string()),
    }
}

fn node(global: &Global) -> Check {
    match client::block_on(async { client::connect(global).await.map(|_| ()) }) {
        Ok(()) => Check::new("node", Verdict::Ok, format!("answers at {}", global.address)),
        Err(failure) if failure.kind == Kind::Usage => Check::new("node", Verdict::Failed, failure.message),
        Err(failure) => Check::new("node", Verdict::Warning, failure.message),
    }
}

/// Rows of checks, for people and programs.
pub fn report(checks: &[Check]) -> View {
    let mut table = Table::new(&["CHECK", "RESULT", "DETAIL"], "");
    for check in checks {
        let (word, tone) = check.verdict.shown();
        table.row([check.name.clone().into(), Cell::toned(word, tone), check.detail.clone().into()]);
    }
    let row = |check: &Check| json!({ "check": check.name, "result": check.verdict.shown().0, "detail": check.detail });
    let rows: Vec<Value> = checks.iter().map(row).collect();
    View::table(table, json!({ "checks": rows }))
}

impl Verdict {
    fn shown(self) -> (&'static str, Tone) {
        match self {
            Verdict::Ok => ("ok", Tone::Good),
            Verdict::Warning => ("note", Tone::Warning),
            Verdict::Failed => ("failed", Tone::Bad),
        }
    }
}
