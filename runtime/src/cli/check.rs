//! `tidemill check`: the checklist before a deploy, and the one after it.
//!
//! Before: what a file of documents needs is there, and whoever is to run it is well. After: every task runs
//! the version, keeps up, and fails nothing. A row is `ok`, a `note` that somebody should read, or `failed`.

mod after;
mod before;
mod metrics;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;
use tonic::transport::Channel;

use super::client::ANSWER_BYTES_MAX;
use super::dlq::timed;
use super::doctor::{Check, Verdict, report};
use super::failure::Failure;
use super::nodes::is_silent;
use super::table::printable;
use super::watch::interval;
use super::{Global, Outcome, client};
use crate::config::units;

const EXAMPLES: &str = "\
Examples:
  tidemill check -f pipeline.yaml
  tidemill check word-count --for 15m
  tidemill check --wait
  tidemill check --node n1 --wait 300s --poll 10s";

/// For what one node has at hand, and for logs and lag of the whole fleet.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Go through the checklist before a deploy, or after one
///
/// With a file: environment, cluster, topics, dead letters, health, alerts, limits and shutdown, and nothing is
/// changed. With names, or for every deployment: tasks, state, rollout, failures, errors, lag and nodes. A note
/// is for a person; exit code 1 if a row failed. What a version did wrong fails the check of a deployment that
/// is named, and is a note where all are looked at.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Checklist {
    /// Deployments that run; all if none is named
    names: Vec<String>,
    /// File of documents that are about to be deployed; - is standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "names")]
    file: Option<PathBuf>,
    /// Where the node's /metrics is [default: port 7601 of the host in --address]
    #[arg(long, value_name = "HOST:PORT", requires = "file")]
    http: Option<String>,
    /// Node that has to answer and to take tasks, by its id; may be given several times
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    node: Vec<String>,
    /// Look again until nothing fails, at most this long [300s if no time is given]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = units::parse_duration,
        num_args = 0..=1,
        default_missing_value = "300s",
        conflicts_with_all = ["file", "stay"],
        group = "again"
    )]
    wait: Option<Duration>,
    /// Look again for this long, and end at the first row that fails
    #[arg(long = "for", id = "stay", value_name = "DURATION", value_parser = units::parse_duration, conflicts_with = "file")]
    #[arg(group = "again")]
    stay: Option<Duration>,
    /// Time between two looks
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "10s", requires = "again")]
    poll: Duration,
}

impl Checklist {
    pub fn run(self, global: &Global) -> Outcome {
        client::block_on(async {
            let checks = match &self.file {
                Some(file) => before::look(global, file, self.http.as_deref()).await?,
                None => self.after(global).await?,
            };
            report(&checks).print(global.output)?;
            match with(&checks, Verdict::Failed) {
                None => Ok(()),
                Some(check) => Err(Failure::failed(format!("{}: {}", check.name, check.detail))),
            }
        })
    }

    /// Looks until the time is over, or until what is waited for has come.
    async fn after(&self, global: &Global) -> Result<Vec<Check>, Failure> {
        let began = Instant::now();
        loop {
            let looked = after::look(global, &self.names, &self.node).await;
            let is_good = looked.as_ref().is_ok_and(|checks| with(checks, Verdict::Failed).is_none());
            let goes_on = match (self.wait, self.stay) {
                (Some(wait), _) => !is_good && began.elapsed() < wait,
                (None, Some(stay)) => is_good && began.elapsed() < stay,
                (None, None) => false,
            };
            if !goes_on {
                return looked;
            }
            match &looked {
                Ok(checks) => {
                    let worst = with(checks, Verdict::Failed).or_else(|| with(checks, Verdict::Warning));
                    let said = worst.map(|check| format!("{}: {}", check.name, printable(&check.detail)));
                    eprintln!("{}", said.unwrap_or_else(|| "all is well".to_owned()));
                }
                Err(failure) => eprintln!("{failure}"),
            }
            tokio::time::sleep(self.poll).await;
        }
    }
}

/// The first row of this verdict.
fn with(checks: &[Check], verdict: Verdict) -> Option<&Check> {
    checks.iter().find(|check| check.verdict == verdict)
}

fn row(name: impl Into<String>, verdict: Verdict, detail: impl Into<String>) -> Check {
    Check::new(name, verdict, detail)
}

async fn nodes(channel: &Channel, local: bool) -> Result<Vec<proto::Node>, Failure> {
    let mut client = FleetClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let request = proto::NodesRequest { local, ..proto::NodesRequest::default() };
    Ok(client.nodes(timed(request, ANSWER_WAIT)).await?.into_inner().nodes)
}

fn cluster(nodes: &[proto::Node]) -> Check {
    let silent: Vec<&str> =
        nodes.iter().filter(|node| is_silent(node)).map(|node| node.id.as_str()).collect();
    let alive = nodes.len() - silent.len();
    match silent.as_slice() {
        [] => row("cluster", Verdict::Ok, format!("Kafka answers, and so do all nodes ({alive})")),
        silent => {
            row("cluster", Verdict::Warning, format!("{alive} nodes answer, {} do not", silent.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        checklist: Checklist,
    }

    #[test]
    fn who_waits_without_a_time_waits_five_minutes_and_looks_every_ten_seconds() {
        let parse = |words: &[&str]| Command::try_parse_from(words).map(|command| command.checklist);
        let waiting = parse(&["check", "--wait"]).expect("it needs no time");
        assert_eq!((waiting.wait, waiting.poll), (Some(Duration::from_secs(300)), Duration::from_secs(10)));
        let told = parse(&["check", "--wait", "20s", "--poll", "1s"]).expect("it may have one");
        assert_eq!((told.wait, told.poll), (Some(Duration::from_secs(20)), Duration::from_secs(1)));
        assert_eq!(parse(&["check"]).expect("nobody waits").wait, None);
        assert!(parse(&["check", "--wait", "--poll", "0s"]).is_err(), "it would never rest");
    }
}
