//! `tidemill broker`: the embedded broker by itself, for anyone who tests a Kafka program.

use std::path::PathBuf;

use serde_json::json;
use tidemill_broker::{Broker as Embedded, Config, Error};

use super::failure::Failure;
use super::output::View;
use super::signals::Signals;
use super::{Global, Outcome, client};
use crate::config::node::{LogConfig, LogFormat};
use crate::telemetry::logging;

const EXAMPLES: &str = "\
Examples:
  tidemill broker
  tidemill broker --listen 127.0.0.1:19092
  tidemill broker --data-dir ./broker-data";

/// Run the embedded Kafka-protocol broker
///
/// For development and tests: one node, no replication, no security. Any Kafka client can use it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Broker {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "HOST:PORT")]
    listen: String,
    /// Where to keep topics and offsets [default: in memory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Host that clients are told to connect to
    #[arg(long, value_name = "HOST")]
    advertised_host: Option<String>,
    /// Create a topic when a client first asks for it
    #[arg(long)]
    auto_create_topics: bool,
    /// A level, or module=level pairs separated by commas
    #[arg(long, default_value = "warn", value_name = "FILTER")]
    log_filter: String,
}

impl Broker {
    pub fn run(self, global: &Global) -> Outcome {
        logging::init(&LogConfig { format: LogFormat::Human, filter: self.log_filter })?;
        let config = Config {
            listen: self.listen,
            data_dir: self.data_dir,
            advertised_host: self.advertised_host,
            auto_create_topics: self.auto_create_topics,
            ..Config::default()
        };
        let kept = config.data_dir.as_ref().map_or("in memory".to_owned(), |dir| dir.display().to_string());
        let broker = start(config, "--listen")?;
        let address = broker.address().to_string();
        let line = format!("broker listens on {address}, keeps its data {kept}; Ctrl-C stops it");
        View::line(line, json!({ "bootstrap_servers": address })).print(global.output)?;
        client::block_on(async {
            Signals::install()?.stop_requested().await;
            Ok(())
        })?;
        broker
            .shutdown()
            .map_err(|error| Failure::failed(format!("the broker did not stop cleanly: {error}")))
    }
}

/// Starts a broker; `flag` is what a user would change if the address is taken.
pub fn start(config: Config, flag: &str) -> Result<Embedded, Failure> {
    Embedded::start(config).map_err(|error| {
        let hint = match error {
            Error::Address { .. } | Error::PortInUse { .. } => format!(" ({flag} HOST:PORT)"),
            _ => String::new(),
        };
        Failure::failed(format!("the embedded broker does not start: {error}{hint}"))
    })
}
