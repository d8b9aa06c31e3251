//! One node process, with its own state directory, ports and log.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use flights::client::Client;
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;
use crate::programs::{Finished, command, free_address, run, tidemill};
use crate::wait::until;

/// Longest wait for a stop; the node gives up by itself before that.
const STOP_MAX: Duration = Duration::from_secs(40);

pub struct Node {
    pub grpc: String,
    pub http: String,
    bootstrap: String,
    directory: PathBuf,
    process: Option<Child>,
    /// Starts so far; each has a log of its own.
    starts: u32,
}

/// A node's file, written, and where that node listens.
pub struct NodeFile {
    pub path: PathBuf,
    pub grpc: String,
    pub http: String,
}

impl NodeFile {
    /// Writes `node.yaml` into `directory` (made if needed): the settings as given, the state beside
    /// it, and free ports unless the settings say where to listen.
    pub fn write(directory: &Path, settings: &str) -> NodeFile {
        fs::create_dir_all(directory).expect("the node's directory");
        let (grpc, http) = (free_address(), free_address());
        let listen = match settings.contains("listen:") {
            true => String::new(),
            false => format!("listen: {{ grpc: '{grpc}', http: '{http}' }}\n"),
        };
        let path = directory.join("node.yaml");
        let state = directory.join("state");
        fs::write(&path, format!("{settings}\nstate_dir: {}\n{listen}", state.display()))
            .expect("the node's file");
        NodeFile { path, grpc, http }
    }

    /// Runs a node of this file that must end by itself.
    pub fn run(&self) -> Finished {
        run(tidemill(["node", "--config"]).arg(&self.path))
    }
}

/// A `kafka:` block that names the brokers and nothing else.
pub fn plain(cluster: &Cluster) -> String {
    format!("kafka:\n  bootstrap_servers: '{}'\n", cluster.bootstrap())
}

impl Node {
    /// Writes the node's file into `directory` (made if needed) and starts it.
    pub fn start(cluster: &Cluster, directory: &Path) -> Node {
        Node::start_with(cluster, directory, &plain(cluster))
    }

    /// As `start`, with the file's `kafka:` block as given.
    pub fn start_with(cluster: &Cluster, directory: &Path, kafka: &str) -> Node {
        let mut node = Node::prepare(cluster, directory, kafka);
        node.restart();
        node
    }

    /// As `start_with`, but leaves the start to the caller. More than the `kafka:` block may be given.
    pub fn prepare(cluster: &Cluster, directory: &Path, kafka: &str) -> Node {
        let NodeFile { grpc, http, .. } = NodeFile::write(directory, kafka);
        let bootstrap = cluster.bootstrap().to_owned();
        Node { grpc, http, bootstrap, directory: directory.into(), process: None, starts: 0 }
    }

    /// Starts the process again on the same state directory and ports.
    pub fn restart(&mut self) {
        self.restart_as("tidemill", &[]);
    }

    /// As `restart`, with another build of the node and variables of its environment.
    pub fn restart_as(&mut self, program: &str, variables: &[(&str, &str)]) {
        assert!(self.process.is_none(), "the node runs already");
        self.starts += 1;
        let log = File::create(self.log_path()).expect("the node's log");
        let child = command(program, ["node", "--config"])
            .envs(variables.iter().copied())
            .arg(self.directory.join("node.yaml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the node's log"))
            .stderr(log)
            .spawn()
            .expect("the node can be started");
        self.process = Some(child);
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) {
        let mut child = self.process.take().expect("the node runs");
        child.kill().expect("an own child can be killed");
        child.wait().expect("an own child can be waited for");
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self.process.as_ref().expect("the node runs");
        kill_process(Pid::from_child(child), signal).expect("an own child can be signalled");
    }

    /// How the process has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().expect("an own child can be waited for")?;
        self.process = None;
        Some(status)
    }

    /// Of the process, which runs.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the node runs").id()
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// SIGTERM, then waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.process.take().expect("the node runs");
        let started = Instant::now();
        until("the node has stopped", STOP_MAX, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err((other, started.elapsed())),
        })
    }

    /// A command of the CLI against this node and its Kafka.
    pub fn tidemill(&self, arguments: &[&str]) -> Finished {
        let mut command = tidemill(arguments);
        command.env("TIDEMILL_ADDRESS", &self.grpc);
        command.env("TIDEMILL_KAFKA_BOOTSTRAP_SERVERS", &self.bootstrap);
        run(&mut command)
    }

    /// Waits until the node answers.
    pub async fn client(&mut self) -> Client {
        let log = self.log_path();
        let process = self.process.as_mut().expect("the node runs");
        let alive = || match process.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{status}: {}", fs::read_to_string(&log)?),
        };
        Client::connect(&self.grpc, alive).await.expect("the node answers")
    }

    /// What the node has logged since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).expect("the node's log")
    }

    /// Starts so far.
    pub fn lives(&self) -> u32 {
        self.starts
    }

    /// What the node has logged since its first start.
    pub fn whole_log(&self) -> String {
        let read = |start| fs::read_to_string(self.directory.join(format!("node-{start}.log")));
        (1..=self.starts).map(|start| read(start).expect("the node's log")).collect()
    }

    /// Lines of halts and panics since its first start.
    pub fn complaints(&self) -> Vec<String> {
        let is_bad = |line: &&str| line.contains(" halted ") || line.contains("panicked at");
        self.whole_log().lines().filter(is_bad).map(str::to_owned).collect()
    }

    /// Waits until a command gets an answer.
    pub fn until_it_answers(&self, most: Duration) {
        until("the node answers", most, || {
            let answer = self.tidemill(&["deployments"]);
            if answer.status.success() { Ok(()) } else { Err(answer.stderr) }
        });
    }

    /// Holds the node's file, logs and state.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of the node's stores.
    pub fn stores(&self) -> PathBuf {
        self.directory.join("state/stores")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join(format!("node-{}.log", self.starts))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.process {
            // Fails only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() && self.starts > 0 {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- {}, the last lines\n{tail}", self.log_path().display());
        }
    }
}
