//! Versions of one deployment that follow each other while records flow: what each swap costs the output,
//! and whether anything was lost, repeated, or handled by the wrong version.
//!
//! Two modules take turns, both compiled before; what is measured is the swap itself. A gap is the time that
//! one partition of the output stands still for a reader that sees committed records only.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::feed::Feeder;
use super::scenario::SOON;
use super::versions::{began_at, case, document, flows, judge};
use super::watch::Watch;
use crate::check::Verdict;
use crate::cluster::Cluster;
use crate::evidence::Began;
use crate::node::{Node, plain};
use crate::programs::{run, tidemill, workspace};
use crate::wait::until;

const PARTITIONS: i32 = 4;
/// Records a second.
const RATE: u64 = 20_000;
/// A broker that has just started compiles its code while records flow, and stands still for that.
const WARM_UP: Duration = Duration::from_secs(20);
/// Before anything is exchanged the flow is measured so many times, each for about as long as an exchange takes.
const UNDISTURBED: usize = 20;
const EXCHANGE: Duration = Duration::from_secs(1);

/// What a run came to.
pub struct Outcome {
    pub swaps: Gaps,
    /// The same without a swap: what the machine and its broker do by themselves.
    pub undisturbed: Gaps,
    pub verdict: Verdict,
}

/// The longest gap of each measurement.
#[derive(Default)]
pub struct Gaps(Vec<Duration>);

impl Gaps {
    pub fn longest(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }

    /// Each, in milliseconds.
    pub fn ms(&self) -> Vec<f64> {
        self.0.iter().map(|gap| gap.as_secs_f64() * 1e3).collect()
    }

    /// What this part of them does not exceed.
    pub fn percentile(&self, part: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Exchanges so many versions on a node of this cluster, in `directory`.
pub fn play(cluster: &Cluster, deployments: u64, seed: u64, directory: &Path) -> Result<Outcome> {
    let modules = Modules::build(directory)?;
    let mut node = Node::start_with(cluster, &directory.join("node"), &plain(cluster));
    node.until_it_answers(SOON);
    let partitions = PARTITIONS.to_string();
    node.tidemill(&["topics", "create", "chain-in", "chain-out", "--partitions", &partitions]).ok();
    // Both modules are compiled then; the second version is the one that the first record meets.
    modules.deploy(&node, 1)?;
    let mut began = vec![modules.deploy(&node, 2)?];
    let feeder = Feeder::start(cluster.bootstrap(), &case(seed, RATE, PARTITIONS));
    let watch = Watch::start(cluster.bootstrap(), "chain-out", PARTITIONS)?;
    flows(&watch, RATE);
    // What is measured is this time.
    std::thread::sleep(WARM_UP);
    let mut undisturbed = Gaps::default();
    for _ in 0..UNDISTURBED {
        watch.mark();
        std::thread::sleep(EXCHANGE);
        undisturbed.0.push(longest(&watch));
    }
    let before = Membership::of(&node)?;
    let mut swaps = Gaps::default();
    for version in 3..3 + deployments {
        watch.mark();
        began.push(modules.deploy(&node, version)?);
        flows(&watch, RATE / 10);
        swaps.0.push(longest(&watch));
    }
    let after = Membership::of(&node)?;
    let records = feeder.sent();
    until("what was sent by now has come out", SOON, || match watch.records() {
        seen if seen >= records => Ok(()),
        seen => Err((seen, records)),
    });
    watch.finish();
    let acks = feeder.finish()?;

    let mut verdict = judge(cluster, directory, &acks, &began)?;
    if before != after {
        verdict.unexpected(format!("the group was rebalanced: {before:?}, then {after:?}"));
    }
    node.complaints().into_iter().for_each(|line| verdict.unexpected(line));
    ensure!(node.stop().success(), "the node did not drain: {}", node.log());
    Ok(Outcome { swaps, undisturbed, verdict })
}

fn longest(watch: &Watch) -> Duration {
    watch.gaps().into_iter().max().unwrap_or_default()
}

/// Two modules of the same code, with digests of their own.
struct Modules {
    directory: PathBuf,
}

impl Modules {
    fn build(directory: &Path) -> Result<Modules> {
        let (one, other) = (directory.join("chain-1.wasm"), directory.join("chain-0.wasm"));
        let guest = workspace().join("tests/guests/chain");
        run(tidemill(["build"]).arg(guest).arg("--out").arg(&one)).ok();
        let mut bytes = fs::read(&one)?;
        // A custom section, which means nothing: id, size, and a name of one byte.
        bytes.extend([0, 2, 1, b'x']);
        fs::write(other, bytes)?;
        Ok(Modules { directory: directory.to_owned() })
    }

    /// Deploys a version, waits until every task runs it, and answers where each began.
    fn deploy(&self, node: &Node, version: u64) -> Result<Began> {
        let module = format!("chain-{}.wasm", version % 2);
        let document = document(version, &module, "", "commit: { interval: 10ms, min_interval: 5ms }\n");
        let file = self.directory.join("chain.yaml");
        fs::write(&file, document)?;
        let file = file.display().to_string();
        let answer = node.tidemill(&["apply", "-f", &file, "--wait", "--output", "json"]).ok();
        let answer: Value = serde_json::from_str(&answer)?;
        began_at(version, &answer["deployments"][0]["first"], PARTITIONS)
    }
}

/// What a rebalance would change: the node's own counts, and the group's members as Kafka knows them.
#[derive(Debug, PartialEq, Eq)]
struct Membership {
    rebalances: BTreeMap<String, String>,
    /// By the id that a member has from the group: its partitions.
    members: BTreeMap<String, Vec<String>>,
}

impl Membership {
    fn of(node: &Node) -> Result<Membership> {
        let scrape = http_get(&node.http, "/metrics")?;
        let of = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let counts = ["tidemill_rebalances_total", "tidemill_client_restarts_total"];
            counts.iter().any(|name| series.starts_with(name)).then(|| (series.to_owned(), value.to_owned()))
        };
        let rebalances: BTreeMap<_, _> = scrape.lines().filter_map(of).collect();
        ensure!(!rebalances.is_empty(), "no rebalances are counted in\n{scrape}");
        let group = node.tidemill(&["groups", "members", "local.default.chain", "--output", "json"]).ok();
        let group: Value = serde_json::from_str(&group)?;
        let member = |member: &Value| {
            let partitions = member["partitions"].as_array()?.iter();
            let mut partitions: Vec<String> =
                partitions.map(|partition| partition.as_str().map(str::to_owned)).collect::<Option<_>>()?;
            partitions.sort();
            Some((member["member"].as_str()?.to_owned(), partitions))
        };
        let members = group["members"].as_array().context("a group has members")?;
        let members: Option<BTreeMap<_, _>> = members.iter().map(member).collect();
        let members = members.with_context(|| format!("members of a group are not told by {group}"))?;
        let held: usize = members.values().map(Vec::len).sum();
        ensure!(held == PARTITIONS as usize, "the group's members have {held} partitions: {members:?}");
        Ok(Membership { rebalances, members })
    }
}

fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
