//! A tidemill node for one run: started fresh, given one deployment, stopped.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tidemill_kafka_harness::free_port;

use crate::changes::Changes;
use crate::process::{Running, run};

const START_MAX: Duration = Duration::from_secs(60);
/// Of a node that failed.
const LOG_LINES: usize = 30;

pub struct Node {
    process: Running,
    /// This and what follows `--set`, for every start of it.
    program: PathBuf,
    settings: Vec<String>,
    bootstrap: String,
    fleet: String,
    grpc: String,
    http: String,
    directory: tempfile::TempDir,
}

/// A program of the workspace, beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    let how = "run `make build`, or `make native-node` for a native handler";
    ensure!(program.exists(), "{} is not there: {how}", program.display());
    Ok(program)
}

impl Node {
    /// Starts a node on these brokers, with default settings, and waits until it answers. It is a
    /// fleet of its own, so that nothing of an earlier run is deployed on it.
    pub fn start(bootstrap: &str, fleet: &str) -> Result<Node> {
        Node::start_with(&Changes::default(), bootstrap, fleet)
    }

    /// As `start`, of another build or with other settings. Changes of a document are not for the node.
    pub fn start_with(changes: &Changes, bootstrap: &str, fleet: &str) -> Result<Node> {
        let directory = tempfile::tempdir()?;
        let (grpc, http) = (free_address()?, free_address()?);
        let program = changes.program.clone().map_or_else(|| program("tidemill"), Ok)?;
        let settings = changes.settings.clone();
        let names = [bootstrap, fleet, &grpc, &http];
        let process = Running(launch((&program, &settings), &names, directory.path())?);
        let (bootstrap, fleet) = (bootstrap.to_owned(), fleet.to_owned());
        let mut node = Node { process, program, settings, bootstrap, fleet, grpc, http, directory };
        let started = Instant::now();
        while node.tidemill(&["deployments"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.code()
            != Some(0)
        {
            node.check()?;
            ensure!(started.elapsed() < START_MAX, "the node does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(node)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Of a killed one.
    pub fn delete_stores(&self) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.directory.path().join("state/stores"))?)
    }

    /// A new process on the directory and the ports of the killed one.
    pub fn start_again(&mut self) -> Result<()> {
        let names = [&self.bootstrap[..], &self.fleet, &self.grpc, &self.http];
        self.process = Running(launch((&self.program, &self.settings), &names, self.directory.path())?);
        Ok(())
    }

    /// What it says in `/metrics`.
    pub fn scrape(&self) -> Result<String> {
        let mut connection = TcpStream::connect(&self.http)?;
        write!(connection, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The values of a metric, one for each set of labels.
    pub fn metric(&self, name: &str) -> Result<Vec<f64>> {
        let scrape = self.scrape()?;
        Ok(samples(&scrape, name)?.into_iter().map(|(_, value)| value).collect())
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Fails with the end of its log if it has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.process.0.try_wait()? else { return Ok(()) };
        let log = std::fs::read_to_string(self.directory.path().join("node.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        bail!("the node ended with {status}; its log ends:\n{end}");
    }

    /// The consumer group of a deployment.
    pub fn group(&self, deployment: &str) -> String {
        format!("local.default.{deployment}")
    }

    /// Deploys a module that reads a topic from its beginning.
    pub fn deploy(&self, name: &str, deployment: &Deployment<'_>) -> Result<()> {
        let Deployment { module, input, output, guarantee, more } = deployment;
        let output = match output {
            Output::Topic(topic) => format!("{{ topic: {topic} }}"),
            Output::AtCommit(topic) => format!("{{ topic: {topic}, emit: commit }}"),
            Output::Outbox(topic) => {
                format!("{{ kafka: {{ bootstrap_servers: '{}', topic: {topic} }} }}", self.bootstrap)
            }
        };
        let document = format!(
            "name: {name}\nmodule: {}\ninputs: {{ in: {{ topic: {input}, start: earliest }} }}\n\
             outputs: {{ out: {output} }}\nguarantee: {guarantee}\n{more}",
            module.display()
        );
        let file = self.directory.path().join("deployment.yaml");
        std::fs::write(&file, &document)?;
        let mut apply = self.tidemill(&["apply", "-f"]);
        run(apply.arg(&file)).context("deploy")
    }

    fn tidemill(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("TIDEMILL_ADDRESS", &self.grpc);
        command
    }
}

/// The samples of a metric, by the name that they have in a scrape: their labels, as they stand there, and values.
pub fn samples<'a>(scrape: &'a str, name: &str) -> Result<Vec<(&'a str, f64)>> {
    let samples = scrape.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    let parts = samples.map(|sample| {
        let (labels, value) = sample.rsplit_once("} ").context("a sample without a value")?;
        let value: f64 = value.parse().with_context(|| format!("{name}: {value}"))?;
        Ok((labels, value))
    });
    parts.collect()
}

/// What a node is given to do.
pub struct Deployment<'a> {
    pub module: &'a Path,
    pub input: &'a str,
    pub output: Output<'a>,
    pub guarantee: &'a str,
    /// Further lines of its document.
    pub more: &'a str,
}

/// How records get to a topic.
#[derive(Debug, Clone, Copy)]
pub enum Output<'a> {
    /// In the transaction.
    Topic(&'a str),
    /// In the transaction, of each key the last.
    AtCommit(&'a str),
    /// From an outbox, as if the topic was another cluster's.
    Outbox(&'a str),
}

/// The handlers, built.
pub struct Modules {
    /// Passes every record on.
    pub pass: PathBuf,
    /// Passes a tenth of them on.
    pub tenth: PathBuf,
    /// Parses, changes and writes JSON.
    pub order: PathBuf,
    /// Counts records per key.
    pub count: PathBuf,
    _directory: tempfile::TempDir,
}

impl Modules {
    pub fn build() -> Result<Modules> {
        let directory = tempfile::tempdir()?;
        let build = |name: &str, source: &str| -> Result<PathBuf> {
            let out = directory.path().join(name);
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            run(Command::new(program("tidemill")?)
                .arg("build")
                .arg(workspace.join(source))
                .arg("--out")
                .arg(&out))?;
            Ok(out)
        };
        Ok(Modules {
            pass: build("pass.wasm", "bench/pass")?,
            tenth: build("tenth.wasm", "bench/tenth")?,
            order: build("order.wasm", "bench/order")?,
            count: build("count.wasm", "plugins/count")?,
            _directory: directory,
        })
    }
}

fn launch(
    (program, settings): (&Path, &[String]),
    [bootstrap, fleet, grpc, http]: &[&str; 4],
    directory: &Path,
) -> Result<Child> {
    let child = Command::new(program)
        .arg("node")
        .args(settings.iter().map(|setting| format!("--set={setting}")))
        .env("TIDEMILL_KAFKA_BOOTSTRAP_SERVERS", bootstrap)
        .env("TIDEMILL_FLEET", fleet)
        .env("TIDEMILL_STATE_DIR", directory.join("state"))
        .env("TIDEMILL_LISTEN_GRPC", grpc)
        .env("TIDEMILL_LISTEN_HTTP", http)
        .env("TIDEMILL_LOG_FILTER", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::options().create(true).append(true).open(directory.join("node.log"))?)
        .spawn()
        .with_context(|| program.display().to_string())?;
    Ok(child)
}

fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}
