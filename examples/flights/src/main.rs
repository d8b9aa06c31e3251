//! The flights pipeline, from nothing to answers: starts a node (with an embedded broker, or on the
//! Kafka named by `--bootstrap`), deploys two handlers, feeds a month of flights, shows what they
//! find while they find it, and answers queries. Ctrl-C drains the node and exits 0.
//!
//! ```text
//! flights.csv.gz -> topic flights -> [rekey] -> topic flights-by-carrier -> [delays] -> topic delays
//!                                                                               \-> store, queried here
//! ```
//!
//! Everything it starts is a program of its own, used as a user uses it; data is kept between runs.

mod node;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use flights::check;
use flights::client::{self, Client};
use flights::feed::{self, Progress};
use node::{Addresses, Node, Tidemill};
use table::{Snapshot, Table};

/// Between two drawings of the table.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// Without a flight counted for this long, the pipeline is taken to be stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const PARTITIONS: &str = "4";

#[derive(Parser)]
#[command(about = "Runs the flights pipeline and shows what it finds")]
struct Arguments {
    /// Compare every number with what flights-expected computes from the file, then end
    #[arg(long)]
    check: bool,
    /// Kafka to use instead of the embedded broker
    #[arg(long, value_name = "HOST:PORT")]
    bootstrap: Option<String>,
    /// Flights fed per second; 0 = as fast as it goes
    #[arg(long, default_value_t = 3_000)]
    rate: u64,
    /// Where node and broker keep their data between runs
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// This example's directory
    #[arg(long, value_name = "DIR", default_value = "examples/flights")]
    example: PathBuf,
}

/// How the run ended.
enum End {
    Complete,
    Interrupted,
}

#[tokio::main]
async fn main() -> ExitCode {
    match demo(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(arguments: &Arguments) -> Result<()> {
    let tidemill = tidemill(arguments)?;
    let directory = data_directory(arguments)?;
    println!("data in {}", directory.display());
    let mut node = match arguments.bootstrap {
        Some(_) => tidemill.node(&directory)?,
        None => tidemill.dev(&directory)?,
    };
    let result = run(arguments, &tidemill, &mut node).await;
    // A failed run stops its node as well; the first error is the one that matters.
    let stopped = node.stop();
    result?;
    stopped?;
    println!("drained and stopped");
    Ok(())
}

async fn run(arguments: &Arguments, tidemill: &Tidemill, node: &mut Node) -> Result<()> {
    let file = arguments.example.join("data/flights-2013-01.csv.gz");
    let flights = feed::read_flights(&file)?;
    let mut interrupted = Interrupt::new()?;

    let started = Instant::now();
    let client = tokio::select! {
        client = Client::connect(&tidemill.addresses.grpc, || node.expect_running()) => client?,
        () = interrupted.wait() => return Ok(()),
    };
    println!("node and broker ready after {:.1} s", started.elapsed().as_secs_f64());
    tokio::select! {
        deployed = deploy(tidemill, &arguments.example) => deployed?,
        () = interrupted.wait() => return Ok(()),
    }

    let progress = Arc::new(Progress::default());
    let total = flights.len() as u64;
    let feeder = {
        let (progress, kafka, rate) =
            (Arc::clone(&progress), tidemill.addresses.kafka.clone(), arguments.rate);
        tokio::task::spawn_blocking(move || feed::feed(&kafka, &flights, rate, &progress))
    };
    let airlines = airlines(&arguments.example)?;
    let watch = Watch { progress: Arc::clone(&progress), total, airlines, client: client.clone() };
    let end = watch.until_complete(node, &mut interrupted).await;
    progress.stop.store(true, Ordering::Relaxed);
    feeder.await??;
    if let End::Interrupted = end? {
        return Ok(());
    }

    if arguments.check {
        return verify(client, &file).await;
    }
    queries(tidemill).await?;
    println!("\nAsk for more in another terminal; Ctrl-C drains the node and ends.");
    interrupted.wait().await;
    Ok(())
}

/// Makes the topics, builds the handlers and deploys the pipeline, each with the command that a user
/// would type. All of them change nothing the second time.
async fn deploy(tidemill: &Tidemill, example: &Path) -> Result<()> {
    let topics = ["flights", "flights-by-carrier", "delays"];
    let create = ["--partitions", PARTITIONS, "--if-not-exists"];
    tidemill.run(&[&["topics", "create"], &topics[..], &create[..]].concat()).await?;
    let pipeline = example.join("pipeline.yaml").display().to_string();
    println!("building and deploying the handlers (the first time takes about a minute)");
    print!("{}", tidemill.run(&["apply", "-f", &pipeline]).await?);
    Ok(())
}

/// Everything the table needs while the flights are on their way.
struct Watch {
    progress: Arc<Progress>,
    total: u64,
    airlines: BTreeMap<String, String>,
    client: Client,
}

impl Watch {
    /// Draws until every flight is counted and nothing lags, or Ctrl-C.
    async fn until_complete(mut self, node: &mut Node, interrupted: &mut Interrupt) -> Result<End> {
        let mut table = Table::new();
        let mut last_change = (Instant::now(), 0);
        loop {
            node.expect_running()?;
            let lag = self.client.lag().await?;
            // The store is there as soon as its tasks run.
            let groups = self.client.statistics("").await.unwrap_or_default();
            let counted = table::counted(&groups);
            let fed = self.progress.fed.load(Ordering::Relaxed);
            let snapshot =
                Snapshot { fed, total: self.total, lag: &lag, groups: &groups, airlines: &self.airlines };
            let behind: u64 = lag.iter().map(|partition| partition.records).sum();
            if fed == self.total && counted == self.total && behind == 0 {
                table.finish(&snapshot);
                return Ok(End::Complete);
            }
            table.draw(&snapshot);
            if counted != last_change.1 {
                last_change = (Instant::now(), counted);
            }
            if last_change.0.elapsed() > STUCK_AFTER {
                bail!(
                    "counted {counted} of {} flights and no more for {STUCK_AFTER:?}; lag: {lag:?}",
                    self.total
                );
            }
            tokio::select! {
                () = tokio::time::sleep(DRAW_EVERY) => {}
                () = interrupted.wait() => return Ok(End::Interrupted),
            }
        }
    }
}

/// Fails unless every group has the numbers that the separate program finds.
async fn verify(mut client: Client, file: &Path) -> Result<()> {
    let program = std::env::current_exe()?.with_file_name("flights-expected");
    let expected = check::expected(&program, file)?;
    let found = client.statistics("").await?;
    if let Err(differences) = check::compare(&found, &expected) {
        bail!("the node's numbers are not the file's:\n{differences}");
    }
    let carriers = expected.keys().filter(|key| !key.contains('/')).count();
    let days = expected.len() - carriers;
    println!("\nchecked: {carriers} carriers and {days} carrier days equal the file's own numbers");
    Ok(())
}

/// Some questions and their answers, as anybody may ask them from a terminal.
async fn queries(tidemill: &Tidemill) -> Result<()> {
    let questions: [&[&str]; 3] = [
        &["state", "get", client::DEPLOYMENT, client::STORE, "UA"],
        &["state", "scan", client::DEPLOYMENT, client::STORE, "--prefix", "HA/2013/1/", "--limit", "5"],
        &["lag"],
    ];
    for question in questions {
        println!("\n$ tidemill {}\n{}", question.join(" "), tidemill.run(question).await?.trim_end());
    }
    Ok(())
}

/// Ctrl-C or SIGTERM.
struct Interrupt {
    ctrl_c: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupt {
    fn new() -> Result<Interrupt> {
        let ctrl_c = signal(SignalKind::interrupt())?;
        Ok(Interrupt { ctrl_c, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.ctrl_c.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The `tidemill` program beside this one, with the addresses of this run.
fn tidemill(arguments: &Arguments) -> Result<Tidemill> {
    let program = std::env::current_exe()?.with_file_name("tidemill");
    let mut addresses = if arguments.check { Addresses::free()? } else { Addresses::usual() };
    if let Some(bootstrap) = &arguments.bootstrap {
        addresses.kafka.clone_from(bootstrap);
    }
    Ok(Tidemill { program, addresses })
}

/// One directory for the embedded broker's world, one for each Kafka.
fn data_directory(arguments: &Arguments) -> Result<PathBuf> {
    let base = match (&arguments.data_dir, std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(given), _, _) => given.clone(),
        (None, Some(cache), _) => PathBuf::from(cache).join("tidemill/demo"),
        (None, None, Some(home)) => PathBuf::from(home).join(".cache/tidemill/demo"),
        (None, None, None) => bail!("neither HOME nor XDG_CACHE_HOME is set: name a --data-dir"),
    };
    let name = arguments.bootstrap.as_deref().unwrap_or("embedded").replace([':', '/'], "-");
    let directory = base.join(name);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

/// Names of the airlines by carrier code.
fn airlines(example: &Path) -> Result<BTreeMap<String, String>> {
    let path = example.join("data/airlines.csv");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = text.lines().skip(1).filter_map(|line| line.split_once(','));
    Ok(lines.map(|(code, name)| (code.to_owned(), name.to_owned())).collect())
}
