//! Runs `tidemill` as a user would: one process for the node, one short-lived process per command.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A stop that takes longer than this has failed; the node's own limit is 25 s.
const STOP_MAX: Duration = Duration::from_secs(40);

/// Where the node and its broker answer.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub kafka: String,
    pub grpc: String,
    pub http: String,
}

impl Addresses {
    /// The ports that every command of `tidemill` uses when it is not told otherwise.
    pub fn usual() -> Addresses {
        let address = |port: u16| format!("127.0.0.1:{port}");
        Addresses { kafka: address(9092), grpc: address(7600), http: address(7601) }
    }

    /// Ports that were free a moment ago, so that a check disturbs nobody and is not disturbed.
    pub fn free() -> Result<Addresses> {
        let listeners: Vec<TcpListener> =
            (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let address = |index: usize| listeners[index].local_addr().map(|address| address.to_string());
        Ok(Addresses { kafka: address(0)?, grpc: address(1)?, http: address(2)? })
    }
}

/// How to call the `tidemill` program.
#[derive(Debug, Clone)]
pub struct Tidemill {
    pub program: PathBuf,
    pub addresses: Addresses,
}

impl Tidemill {
    /// Runs a command to its end and answers what it printed. Dropping the future ends the command.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(arguments);
        // A process group of its own, with whatever it starts (apply runs cargo), so that it ends as one.
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| self.program.display().to_string())?;
        let mut group = Group(Some(Pid::from_child(&child)));
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
        group.0 = None;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tidemill {}: {errors}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null());
        // Every command finds the node and the brokers through the variables of the configuration.
        command.env("TIDEMILL_ADDRESS", &self.addresses.grpc);
        command.env("TIDEMILL_LISTEN_GRPC", &self.addresses.grpc);
        command.env("TIDEMILL_LISTEN_HTTP", &self.addresses.http);
        command.env("TIDEMILL_KAFKA_BOOTSTRAP_SERVERS", &self.addresses.kafka);
        command
    }

    /// Starts the node with an embedded broker, everything it keeps below `directory`.
    pub fn dev(&self, directory: &Path) -> Result<Node> {
        let data = directory.join("dev").display().to_string();
        self.start(&["dev", "--data-dir", &data, "--listen-kafka", &self.addresses.kafka], directory)
    }

    /// Starts the node on brokers that run already, configured by a YAML file.
    pub fn node(&self, directory: &Path) -> Result<Node> {
        let state = directory.join("state");
        let Addresses { kafka, grpc, http } = &self.addresses;
        let yaml = format!(
            "kafka: {{ bootstrap_servers: '{kafka}' }}\nstate_dir: {}\nlisten: {{ grpc: '{grpc}', http: '{http}' }}\n",
            state.display()
        );
        let file = directory.join("node.yaml");
        fs::write(&file, yaml).with_context(|| file.display().to_string())?;
        self.start(&["node", "--config", &file.display().to_string()], directory)
    }

    fn start(&self, arguments: &[&str], directory: &Path) -> Result<Node> {
        let log = directory.join("node.log");
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = self.command(arguments);
        // A process group of its own: Ctrl-C reaches the demo only, which then stops the node.
        command.process_group(0).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| self.program.display().to_string())?;
        Ok(Node { child, log })
    }
}

/// A process group that ends with this value, unless it was emptied.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Fails only if it has ended already.
            let _ = kill_process_group(group, Signal::TERM);
        }
    }
}

/// A running node. Dropping it kills it; `stop` is the polite way.
pub struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Fails, with the end of its log, if the node has ended.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the node ended with {status}:\n{}", self.log_tail()),
        }
    }

    /// SIGTERM, which drains, then waits for the end.
    pub fn stop(mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let started = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(started.elapsed() < STOP_MAX, "the node did not stop:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "the node ended with {status}:\n{}", self.log_tail());
        Ok(())
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails only if the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
