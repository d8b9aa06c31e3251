//! One node with its broker and the innocent neighbour: runs one case after the other and judges each.
//!
//! Contained means: the operator is told the reason, in time; memory grows by no more than the limits
//! allow; the neighbour keeps its rate, with at most twice the p99 that it had undisturbed just before; and what
//! failed has left nothing behind.
//!
//! The machine may have other work, which comes and goes, and one measurement cannot tell it from a guest.
//! But what a guest does, it does every time: a neighbour that seems to be harmed is measured again and
//! again, undisturbed and disturbed in turn, and what most pairs of measurements say counts.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::BaseProducer;
use rdkafka::topic_partition_list::Offset;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deploy_request::Part;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::case::{self, Act, Case};
use super::modules;
use super::neighbour::{self, Neighbour, RATE, Window, now_ms};
use super::process::{Peak, Ticks, Usage};
use crate::cluster::Cluster;
use crate::node::Node;
use crate::programs::{run, tidemill, workspace};
use crate::reading::{assign, reading};

/// Memory of a guest, unless its case says otherwise.
const GUEST_MIB: u64 = 64;
/// How long a call may take unless its case says more, milliseconds.
pub(super) const TIME_MS: u64 = 100;
/// What a node may grow beyond that: Kafka clients of one more deployment, threads, allocators.
const SLACK_MIB: u64 = 64;
/// What hostile clients may make it grow.
const CLIENTS_MIB: u64 = 50;
/// A delay below this is as good as none: two commits' worth, whatever the neighbour had before.
pub const FLOOR_MS: f64 = 50.0;
/// Until an operator is told, the module's compilation included.
pub(super) const TOLD_MAX: Duration = Duration::from_secs(45);
/// Modules are given up within 10 s of CPU time of a process that comes last; beside a busy neighbour
/// that may be several times as much.
const COMPILED_MAX: Duration = Duration::from_secs(60);
const RUNNING_MAX: Duration = Duration::from_secs(60);

/// An operator who was told too late, or the wrong limit, while others used more of the machine than this
/// proves nothing: the case is tried again.
const FOREIGN_MAX: f64 = 0.25;
const TRIES: usize = 3;
/// A neighbour that does not have this much of its rate undisturbed has none to lose.
const PROVES_RATE: f64 = 0.9;
/// Pairs of measurements of a neighbour that seems to be harmed; an odd number, so that one is in the middle.
const PAIRS: usize = 5;

/// How long each of the two measurements lasts.
#[derive(Debug, Clone, Copy)]
pub struct Spans {
    pub undisturbed: Duration,
    pub disturbed: Duration,
}

pub struct Stage {
    cluster: Cluster,
    pub(super) bootstrap: String,
    pub(super) node: Node,
    neighbour: Neighbour,
    pub(super) runtime: Runtime,
    pub(super) channel: Channel,
    pub(super) spans: Spans,
    pub(super) rng: fastrand::Rng,
    modules: std::collections::HashMap<&'static str, Vec<u8>>,
    cases: usize,
}

/// What came of a case.
pub struct Outcome {
    pub reason: String,
    pub took: Duration,
    pub grown_mib: u64,
    /// The pair of measurements that counts, and of how many it is the middle one.
    pub before: Window,
    pub during: Window,
    pub pairs: usize,
    /// The share of the machine that others used meanwhile, of 1.
    pub foreign: f64,
    /// Why it is not contained; empty if it is.
    pub faults: Vec<String>,
}

/// What an operator has been told.
pub(super) struct Told {
    pub reason: String,
    pub after: Duration,
}

impl Stage {
    /// Starts everything and waits until the neighbour is in its stride.
    pub fn start(cluster: Cluster, directory: &Path, spans: Spans, seed: u64) -> Result<Stage> {
        let mut node = Node::start(&cluster, directory);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(node.client());
        let endpoint = Endpoint::from_shared(format!("http://{}", node.grpc))?;
        let channel = runtime.block_on(endpoint.connect())?;
        let bootstrap = cluster.bootstrap().to_owned();
        create_topics(&node, &[neighbour::INPUT, neighbour::OUTPUT], neighbour::PARTITIONS);
        let neighbour = Neighbour::start(&bootstrap);
        let mut stage = Stage {
            cluster,
            bootstrap,
            node,
            neighbour,
            runtime,
            channel,
            spans,
            rng: fastrand::Rng::with_seed(seed),
            modules: Default::default(),
            cases: 0,
        };
        let module = stage.module("plugins/count");
        stage.deploy(&neighbour::document(), &module, false)?;
        stage.until_running(neighbour::NAME)?;
        stage.measure(Duration::from_secs(3));
        Ok(stage)
    }

    /// Records that went into the neighbour and came out of it.
    pub fn finish(self) -> Result<(u64, u64)> {
        self.neighbour.finish()
    }

    /// The node's threads that panicked, by its log.
    pub fn panics(&self) -> Vec<String> {
        // A guest's panic is a log line of the guest's, with its deployment.
        let is_bad = |line: &&str| line.contains("thread '") && line.contains("panicked");
        self.node.log().lines().filter(is_bad).map(str::to_owned).collect()
    }

    /// Runs one case, and more often if the neighbour seems to be harmed.
    pub fn run(&mut self, case: &Case) -> Result<Outcome> {
        let mut outcome = self.measured(case)?;
        if outcome.faults.is_empty() && harm(&outcome.before, &outcome.during) > 1.0 {
            let mut pairs = vec![outcome];
            while pairs.len() < PAIRS {
                pairs.push(self.measured(case)?);
            }
            outcome = middle(pairs);
        }
        outcome.faults.extend(harmed(&outcome.before, &outcome.during));
        Ok(outcome)
    }

    /// One pair of measurements, again if what went wrong proves nothing.
    fn measured(&mut self, case: &Case) -> Result<Outcome> {
        let mut outcome = self.try_once(case)?;
        for _ in 1..TRIES {
            if outcome.faults.is_empty() || outcome.foreign <= FOREIGN_MAX {
                break;
            }
            outcome = self.try_once(case)?;
        }
        Ok(outcome)
    }

    fn try_once(&mut self, case: &Case) -> Result<Outcome> {
        self.cases += 1;
        let name = format!("hostile-{}", self.cases);
        if matches!(case.act, Act::Traffic) {
            self.fill(&name)?;
        }
        self.neighbour.forget();
        let own = [std::process::id(), self.node.pid(), self.cluster.pid().unwrap_or(0)];
        let ticks = Ticks::now(&own);
        let before = self.measure(self.spans.undisturbed);
        let usage = Usage::of(self.node.pid());
        let peak = Peak::watch(self.node.pid());
        let (from, until) = (now_ms(), Instant::now() + self.spans.disturbed);
        let told = match &case.act {
            Act::Records(records) => self.records(&name, records, until),
            Act::Traffic => self.traffic(&name, until),
            Act::Module(bytes) => self.refused(&bytes()),
            Act::Mutants(count) => self.mutants(&name, *count),
            Act::BadVersion => self.bad_version(&name),
            Act::Clients => self.clients(),
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        let during = self.neighbour.window(from, now_ms());
        let grown_mib = peak.kib().saturating_sub(usage.rss_kib) >> 10;
        let left = if told.is_ok() { self.aftermath(&name, &case.act) } else { Ok(()) };
        self.delete(&name)?;
        if matches!(case.act, Act::Traffic) {
            self.empty(&name);
        }
        let (reason, took, mut faults) = match told {
            Ok(told) => (told.reason, told.after, Vec::new()),
            Err(error) => (String::new(), Duration::ZERO, vec![format!("{error:#}")]),
        };
        let limit = match &case.act {
            Act::Clients => CLIENTS_MIB,
            Act::Records(records) => records.memory_mib + SLACK_MIB,
            _ => GUEST_MIB + SLACK_MIB,
        };
        faults.extend(left.err().map(|error| format!("{error:#}")));
        faults.extend(judge(case, &reason, (grown_mib, limit)));
        faults.extend(self.panics());
        let foreign = Ticks::now(&own).foreign(ticks);
        Ok(Outcome { reason, took, grown_mib, before, during, pairs: 1, foreign, faults })
    }

    /// What has become of all its records, once they disturb nobody any more.
    fn aftermath(&self, name: &str, act: &Act) -> Result<()> {
        match act {
            Act::Records(records) => self.account(name, records),
            Act::BadVersion => self.account(name, &case::mended()),
            Act::Traffic | Act::Module(_) | Act::Mutants(_) | Act::Clients => Ok(()),
        }
    }

    /// The neighbour for so long from now.
    fn measure(&self, span: Duration) -> Window {
        let from = now_ms();
        std::thread::sleep(span);
        self.neighbour.window(from, now_ms())
    }

    /// The component of a guest, built once.
    pub(super) fn module(&mut self, guest: &'static str) -> Vec<u8> {
        let build = || {
            let out = tempfile::NamedTempFile::new().expect("a file");
            run(tidemill(["build"]).arg(workspace().join(guest)).arg("--out").arg(out.path())).ok();
            std::fs::read(out.path()).expect("what was built")
        };
        self.modules.entry(guest).or_insert_with(build).clone()
    }

    pub(super) fn deploy(
        &self,
        document: &str,
        module: &[u8],
        dry_run: bool,
    ) -> Result<proto::DeployResponse, Status> {
        self.runtime.block_on(deploy(self.channel.clone(), document, module, dry_run))
    }

    pub(super) fn deployment(&self, name: &str) -> Result<proto::Deployment> {
        let mut client = DeploymentsClient::new(self.channel.clone());
        let request = proto::GetDeploymentRequest { name: name.to_owned() };
        let answer = self.runtime.block_on(client.get(request))?.into_inner();
        answer.deployment.context("an answer has a deployment")
    }

    pub(super) fn until_running(&self, name: &str) -> Result<()> {
        let until = Instant::now() + RUNNING_MAX;
        loop {
            let found = self.deployment(name)?;
            if found.state() == proto::DeploymentState::Running && !found.tasks.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{name} does not run: {} {}",
                found.state().as_str_name(),
                found.reason
            );
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        let mut client = DeploymentsClient::new(self.channel.clone());
        let request = proto::DeleteDeploymentRequest { name: name.to_owned(), ..Default::default() };
        match self.runtime.block_on(client.delete(request)) {
            Err(status) if status.code() != Code::NotFound => bail!("delete: {status}"),
            _ => Ok(()),
        }
    }

    /// A module that no deploy may accept, as the next version of the neighbour, which goes on as it is.
    fn refused(&mut self, module: &[u8]) -> Result<Told> {
        let before = self.deployment(neighbour::NAME)?.revision;
        let began = Instant::now();
        let told = match self.deploy(&neighbour::document(), module, false) {
            Ok(_) => {
                let good = self.module("plugins/count");
                self.deploy(&neighbour::document(), &good, false)?;
                bail!("it was accepted")
            }
            Err(status) if status.code() == Code::InvalidArgument => {
                ensure!(began.elapsed() < COMPILED_MAX, "took {:?}", began.elapsed());
                Told { reason: status.message().to_owned(), after: began.elapsed() }
            }
            Err(status) => bail!("{status}"),
        };
        let after = self.deployment(neighbour::NAME)?.revision;
        ensure!(before == after, "the neighbour was at revision {before} and is at {after}");
        Ok(told)
    }

    /// Changed modules: each is refused with a reason or, if it is still sound, passes the check.
    fn mutants(&mut self, name: &str, count: usize) -> Result<Told> {
        create_topics(&self.node, &[&format!("{name}-in"), &format!("{name}-out")], 1);
        let sound = self.module("bench/pass");
        let document = document(name, "bench/pass", "halt", &standard());
        let began = Instant::now();
        let mut refused = 0;
        for _ in 0..count {
            let mutant = modules::mutant(&sound, &mut self.rng);
            match self.deploy(&document, &mutant, true) {
                Ok(_) => {}
                Err(status) if status.code() == Code::InvalidArgument => {
                    ensure!(!status.message().is_empty(), "refused without a reason");
                    refused += 1;
                }
                Err(status) => bail!("{status}"),
            }
        }
        let each = began.elapsed() / u32::try_from(count)?.max(1);
        Ok(Told { reason: format!("{refused} of {count} refused, the others are sound"), after: each })
    }
}

/// How the neighbour fared, of what it may: above 1 it is harmed.
fn harm(before: &Window, during: &Window) -> f64 {
    let slowed = during.p99_ms / allowed_p99_ms(before);
    let starved = owed_rate(before) / during.rate.max(1.0);
    slowed.max(starved)
}

/// Twice what it had undisturbed.
fn allowed_p99_ms(before: &Window) -> f64 {
    2.0 * before.p99_ms.max(FLOOR_MS / 2.0)
}

/// What it had undisturbed: the machine may not have had more for it.
fn owed_rate(before: &Window) -> f64 {
    0.98 * before.rate.min(RATE as f64)
}

/// Why the neighbour is harmed, if it is, or why that cannot be told.
fn harmed(before: &Window, during: &Window) -> Vec<String> {
    let mut faults = Vec::new();
    if before.rate < PROVES_RATE * RATE as f64 {
        faults.push(format!(
            "it proves nothing: undisturbed the neighbour had {:.0} records/s, the machine has other work",
            before.rate
        ));
    }
    if during.rate < owed_rate(before) {
        faults.push(format!("the neighbour fell from {:.0} to {:.0} records/s", before.rate, during.rate));
    }
    let allowed = allowed_p99_ms(before);
    if during.p99_ms > allowed {
        faults.push(format!("the neighbour's p99 rose to {:.0} ms, {allowed:.0} are allowed", during.p99_ms));
    }
    faults
}

/// Of several pairs: the one in the middle by the neighbour's harm, with whatever else went wrong in any.
fn middle(mut tried: Vec<Outcome>) -> Outcome {
    tried.sort_by(|a, b| harm(&a.before, &a.during).total_cmp(&harm(&b.before, &b.during)));
    let pairs = tried.len();
    let faults = tried.iter_mut().flat_map(|outcome| std::mem::take(&mut outcome.faults)).collect();
    Outcome { pairs, faults, ..tried.swap_remove(pairs / 2) }
}

/// What is wrong whatever the neighbour had of it.
fn judge(case: &Case, reason: &str, (grown_mib, limit_mib): (u64, u64)) -> Vec<String> {
    let mut faults = Vec::new();
    for word in case.says {
        if !reason.contains(word) {
            faults.push(format!("the reason does not say {word:?}"));
        }
    }
    if grown_mib > limit_mib {
        faults.push(format!("memory grew by {grown_mib} MiB, {limit_mib} are allowed"));
    }
    faults
}

pub(super) fn document(name: &str, guest: &str, then: &str, limits: &str) -> String {
    let module = guest.rsplit('/').next().unwrap_or(guest);
    let failures = if then == "halt" { "halt".to_owned() } else { format!("{{ then: {then} }}") };
    format!(
        "name: {name}\nmodule: {module}.wasm\ninputs: {{ in: {{ topic: {name}-in }} }}\n\
         outputs: {{ out: {{ topic: {name}-out }} }}\nfailures: {failures}\nlimits: {{ {limits} }}\n"
    )
}

/// As in a document.
pub(super) fn limits(memory_mib: u64, store_mib: Option<u64>, time_ms: u64) -> String {
    let store = store_mib.map(|mib| format!(", store_bytes: {mib}MiB"));
    format!("memory: {memory_mib}MiB, batch_time: {time_ms}ms{}", store.unwrap_or_default())
}

/// The limits of a guest whose case does not say.
pub(super) fn standard() -> String {
    limits(GUEST_MIB, None, TIME_MS)
}

/// Sends one deployment.
pub async fn deploy(
    channel: Channel,
    document: &str,
    module: &[u8],
    dry_run: bool,
) -> Result<proto::DeployResponse, Status> {
    let header = proto::DeployHeader { document: document.to_owned(), dry_run, ..Default::default() };
    let chunks: Vec<Part> = module.chunks(512 << 10).map(|chunk| Part::Chunk(chunk.to_vec())).collect();
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    let requests = tokio_stream::iter(parts.map(|part| proto::DeployRequest { part: Some(part) }));
    Ok(DeploymentsClient::new(channel).deploy(requests).await?.into_inner())
}

pub(super) fn create_topics(node: &Node, topics: &[&str], partitions: i32) {
    let partitions = partitions.to_string();
    node.tidemill(&[&["topics", "create"], topics, &["--partitions", partitions.as_str()]].concat()).ok();
}

pub(super) fn producer(bootstrap: &str) -> Result<BaseProducer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", "1")
        .set("enable.idempotence", "true")
        .set("message.max.bytes", "4000000")
        .create()?)
}

pub(super) fn reader(bootstrap: &str, topic: &str, partitions: i32) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = reading(bootstrap, "hostile", true).create()?;
    assign(&consumer, topic, 0..partitions, Offset::Beginning)?;
    Ok(consumer)
}
