//! A tidemill node for one run: started fresh, given one deployment, stopped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::{Running, run};

const START_MAX: Duration = Duration::from_secs(60);

pub struct Node {
    process: Running,
    bootstrap: String,
    fleet: String,
    grpc: String,
    http: String,
    directory: tempfile::TempDir,
}

/// A program of the workspace, beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    ensure!(program.exists(), "{} is not there: run `make build`", program.display());
    Ok(program)
}

impl Node {
    /// Starts a node on these brokers, with default settings, and waits until it answers. It is a
    /// fleet of its own, so that nothing of an earlier run is deployed on it.
    pub fn start(bootstrap: &str, fleet: &str) -> Result<Node> {
        let directory = tempfile::tempdir()?;
        let (grpc, http) = (free_address()?, free_address()?);
        let process = Running(launch(&[bootstrap, fleet, &grpc, &http], directory.path())?);
        let (bootstrap, fleet) = (bootstrap.to_owned(), fleet.to_owned());
        let mut node = Node { process, bootstrap, fleet, grpc, http, directory };
        let started = Instant::now();
        while node.tidemill(&["deployments"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.code()
            != Some(0)
        {
            ensure!(node.process.0.try_wait()?.is_none(), "the node ended");
            ensure!(started.elapsed() < START_MAX, "the node does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(node)
    }

    /// SIGKILL, then a new process at once, on the same directory and ports.
    pub fn kill_and_restart(&mut self, state: State) -> Result<()> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        if state == State::Deleted {
            std::fs::remove_dir_all(self.directory.path().join("state/stores"))?;
        }
        let names = [&self.bootstrap[..], &self.fleet, &self.grpc, &self.http];
        self.process = Running(launch(&names, self.directory.path())?);
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Deploys a module between two topics.
    pub fn deploy(&self, name: &str, module: &Path, topics: [&str; 2], guarantee: &str) -> Result<()> {
        let [input, output] = topics;
        let document = format!(
            "name: {name}\nmodule: {}\ninputs: {{ in: {{ topic: {input}, start: earliest }} }}\n\
             outputs: {{ out: {{ topic: {output} }} }}\nguarantee: {guarantee}\n",
            module.display()
        );
        self.apply(&document)
    }

    /// Deploys what a document says.
    pub fn apply(&self, document: &str) -> Result<()> {
        let file = self.directory.path().join("deployment.yaml");
        std::fs::write(&file, document)?;
        let mut apply = self.tidemill(&["apply", "-f"]);
        run(apply.arg(&file).stdout(Stdio::null())).context("deploy")?;
        Ok(())
    }

    fn tidemill(&self, arguments: &[&str]) -> Command {
        let name = program("tidemill").unwrap_or_else(|_| "tidemill".into());
        let mut command = Command::new(name);
        command.args(arguments).env("TIDEMILL_ADDRESS", &self.grpc);
        command
    }
}

/// What becomes of the stores between a kill and the restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Kept,
    Deleted,
}

fn launch([bootstrap, fleet, grpc, http]: &[&str; 4], directory: &Path) -> Result<Child> {
    let child = Command::new(program("tidemill")?)
        .arg("node")
        .env("TIDEMILL_KAFKA_BOOTSTRAP_SERVERS", bootstrap)
        .env("TIDEMILL_FLEET", fleet)
        .env("TIDEMILL_STATE_DIR", directory.join("state"))
        .env("TIDEMILL_LISTEN_GRPC", grpc)
        .env("TIDEMILL_LISTEN_HTTP", http)
        .env("TIDEMILL_LOG_FILTER", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    Ok(child)
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
