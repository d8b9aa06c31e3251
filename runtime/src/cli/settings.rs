//! A node's configuration from flags, variables and file, for every command that needs one.

use std::path::{Path, PathBuf};

use super::failure::{Failure, in_file};
use crate::config::NodeConfig;
use crate::config::load::{Effective, Flag, Sources};

/// Read when it is there and no other file is named.
const USUAL_FILE: &str = "tidemill.yaml";

/// Where configuration comes from.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct SettingArgs {
    /// Configuration file [default: tidemill.yaml, if it is there]
    #[arg(long, env = "TIDEMILL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kafka brokers, host:port separated by commas
    #[arg(long, value_name = "SERVERS")]
    bootstrap_servers: Option<String>,
    /// Any other setting; `tidemill config explain` lists them
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    set: Vec<(String, String)>,
}

/// The settings of a node that are worth a flag of their own.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// Nodes of one fleet share their work
    #[arg(long, value_name = "NAME")]
    fleet: Option<String>,
    /// Name of this node within its fleet
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
    /// Where stores are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Address of the control plane
    #[arg(long, value_name = "IP:PORT")]
    listen_grpc: Option<String>,
    /// Address of /metrics and /health
    #[arg(long, value_name = "IP:PORT")]
    listen_http: Option<String>,
    /// Allow plaintext listeners that other machines can reach
    #[arg(long)]
    insecure: bool,
    /// human or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// A level, or module=level pairs separated by commas
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, for example kafka.acks=all")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl SettingArgs {
    /// Brokers are named on the command line.
    pub fn names_brokers(&self) -> bool {
        self.bootstrap_servers.is_some()
    }

    pub fn load(&self) -> Result<Effective, Failure> {
        self.load_with(Vec::new())
    }

    /// Reads and checks everything; `flags` are those of the command itself.
    pub fn load_with(&self, flags: Vec<Flag>) -> Result<Effective, Failure> {
        let sources = self.sources(flags)?;
        let file = sources.file.as_ref().map(|(name, _)| name.clone());
        NodeConfig::load(&sources).map_err(|problems| match &file {
            Some(file) => in_file(&problems, file),
            None => problems.into(),
        })
    }

    fn sources(&self, mut flags: Vec<Flag>) -> Result<Sources, Failure> {
        let file = match &self.config {
            Some(path) => Some(path.as_path()),
            None => Some(Path::new(USUAL_FILE)).filter(|path| path.is_file()),
        };
        let file = match file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Failure::usage(format!("--config {}: {error}", path.display())))?;
                Some((path.display().to_string(), text))
            }
        };
        if let Some(servers) = &self.bootstrap_servers {
            flags.push(flag("--bootstrap-servers", "kafka.bootstrap_servers", servers));
        }
        for (key, value) in &self.set {
            flags.push(flag(&format!("--set {key}"), key, value));
        }
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Ok(Sources { file, variables, flags })
    }
}

fn flag(name: &str, key: &str, value: &str) -> Flag {
    Flag { name: name.to_owned(), key: key.to_owned(), value: value.to_owned() }
}

impl NodeArgs {
    pub fn flags(&self) -> Vec<Flag> {
        let texts = [
            ("--fleet", "fleet", &self.fleet),
            ("--node-id", "node_id", &self.node_id),
            ("--state-dir", "state_dir", &self.state_dir),
            ("--listen-grpc", "listen.grpc", &self.listen_grpc),
            ("--listen-http", "listen.http", &self.listen_http),
            ("--log-format", "log.format", &self.log_format),
            ("--log-filter", "log.filter", &self.log_filter),
        ];
        let mut flags: Vec<Flag> =
            texts.iter().filter_map(|(name, key, value)| Some(flag(name, key, value.as_deref()?))).collect();
        if self.insecure {
            flags.push(flag("--insecure", "insecure", "true"));
        }
        flags
    }
}
