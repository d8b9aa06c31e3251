//! `tidemill dev`: a node with a broker inside, one process, for trying things out.

use std::path::{Path, PathBuf};

use serde_json::json;
use tidemill_broker::Config;

use super::broker;
use super::failure::Failure;
use super::node::serve;
use super::output::View;
use super::settings::{NodeArgs, SettingArgs};
use super::{Global, Outcome};
use crate::config::load::{Effective, Flag, Source};
use crate::telemetry::logging;

const EXAMPLES: &str = "\
Examples:
  tidemill dev
  tidemill dev --ephemeral
  tidemill dev --data-dir /tmp/try --listen-kafka 127.0.0.1:19092";

/// Run a node and a broker in one process
///
/// The broker speaks Kafka's protocol: any Kafka client can use it. What it holds and what the node
/// keeps survive a restart, unless --ephemeral.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Dev {
    /// Where broker and node keep their data
    #[arg(long, default_value = "tidemill-dev", value_name = "DIR")]
    data_dir: PathBuf,
    /// Keep nothing
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
    /// Address of the broker
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "HOST:PORT")]
    listen_kafka: String,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl Dev {
    pub fn run(self, global: &Global) -> Outcome {
        if self.settings.names_brokers() {
            let hint = "`tidemill node --bootstrap-servers ...` uses other brokers";
            return Err(Failure::usage(format!("--bootstrap-servers: dev has a broker of its own; {hint}")));
        }
        // Removed when this function returns, after the node has stopped.
        let temporary = if self.ephemeral { Some(tempfile::tempdir()?) } else { None };
        let data_dir = temporary.as_ref().map_or(self.data_dir.as_path(), |dir| dir.path());
        // Everything wrong with the configuration is said before a directory is made.
        let effective = self.load(data_dir, &self.listen_kafka)?;
        logging::init(&effective.config.log)?;
        let cannot = |error| Failure::failed(format!("{} cannot be created: {error}", data_dir.display()));
        std::fs::create_dir_all(data_dir).map_err(cannot)?;
        let broker = broker::start(
            Config {
                listen: self.listen_kafka.clone(),
                data_dir: (!self.ephemeral).then(|| data_dir.join("broker")),
                ..Config::default()
            },
            "--listen-kafka",
        )?;
        let kafka = broker.address().to_string();
        // With port 0 the address is known only now.
        let config = self.load(data_dir, &kafka)?.config;
        let encrypted = config.listen.tls.is_some();
        let kept =
            if self.ephemeral { "nothing".to_owned() } else { format!("its data in {}", data_dir.display()) };
        let outcome = serve(config, |addresses| {
            let scheme = if encrypted { "https" } else { "http" };
            let text = format!(
                "tidemill dev is ready and keeps {kept}; Ctrl-C drains and ends it\n  \
                 kafka  {kafka}\n  grpc   {}\n  http   {scheme}://{}/metrics",
                addresses.grpc, addresses.http
            );
            let json = json!({
                "bootstrap_servers": kafka, "grpc": addresses.grpc.to_string(), "http": addresses.http.to_string(),
            });
            // Somebody who does not read standard output does not miss it either.
            let _ = View::line(text, json).print(global.output);
        });
        let stopped = broker.shutdown();
        outcome?;
        stopped.map_err(|error| Failure::failed(format!("the broker did not stop cleanly: {error}")))
    }

    /// The node's configuration with what `dev` decides: the brokers, and where state is unless
    /// somebody says so.
    fn load(&self, data_dir: &Path, kafka: &str) -> Result<Effective, Failure> {
        let decided = |key: &str, value: String| Flag { name: "dev".to_owned(), key: key.to_owned(), value };
        let mut flags = self.node.flags();
        // A port to be chosen is none to connect to; the configuration is read again once it is known.
        let servers = if kafka.ends_with(":0") { "127.0.0.1:1" } else { kafka };
        flags.push(decided("kafka.bootstrap_servers", servers.to_owned()));
        let effective = self.settings.load_with(flags.clone())?;
        let chosen =
            |shown: &crate::config::load::Shown| shown.key == "state_dir" && shown.source != Source::Default;
        if effective.shown.iter().any(chosen) {
            return Ok(effective);
        }
        flags.push(decided("state_dir", data_dir.join("state").display().to_string()));
        self.settings.load_with(flags)
    }
}
