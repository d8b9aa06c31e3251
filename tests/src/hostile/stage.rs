//! One node with its broker and the innocent neighbour: runs one case after the other and judges each.
//!
//! Contained means: the operator is told the reason, in time; memory grows by no more than the limits
//! allow; the neighbour keeps its rate, with at most twice the p99 that it had undisturbed just before.
//!
//! The machine may have other work, which comes and goes, and one measurement cannot tell it from a guest.
//! But what a guest does, it does every time: a neighbour that seems to be harmed is measured again and
//! again, undisturbed and disturbed in turn, and what most pairs of measurements say counts.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::Offset;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deploy_request::Part;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::case::{Act, Case, Records, Value};
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
        let document = format!(
            "name: {}\nmodule: count.wasm\ninputs: {{ in: {{ topic: {} }} }}\noutputs: {{ out: {{ topic: {} }} }}\n",
            neighbour::NAME,
            neighbour::INPUT,
            neighbour::OUTPUT
        );
        stage.deploy(&document, &module, false)?;
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
            Act::Module(bytes) => self.refused(&name, &bytes()),
            Act::Mutants(count) => self.mutants(&name, *count),
            Act::BadVersion => self.bad_version(&name),
            Act::Clients => self.clients(),
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        let during = self.neighbour.window(from, now_ms());
        let grown_mib = peak.kib().saturating_sub(usage.rss_kib) >> 10;
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
        faults.extend(judge(case, &reason, (grown_mib, limit)));
        faults.extend(self.panics());
        let foreign = Ticks::now(&own).foreign(ticks);
        Ok(Outcome { reason, took, grown_mib, before, during, pairs: 1, foreign, faults })
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

    fn deployment(&self, name: &str) -> Result<proto::Deployment> {
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

    /// Floods a guest with the record until the time is up. Told by the first dead letter, or by the halt
    /// if there can be none; a good record leads to neither.
    fn records(&mut self, name: &str, records: &Records, until: Instant) -> Result<Told> {
        let topics = [format!("{name}-in"), format!("{name}-out")];
        create_topics(&self.node, &[&topics[0], &topics[1]], records.workers as i32);
        let module = self.module(records.guest);
        let limits = limits(records.memory_mib, records.store_mib, records.time_ms);
        let document = document(name, records.guest, "dead_letter", &limits)
            + &format!("workers: {}\n", records.workers);
        self.deploy(&document, &module, false)?;
        self.until_running(name)?;
        let began = Instant::now();
        let partitions = records.workers as i32;
        let letters = reader(&self.bootstrap, &format!("tidemill.{name}.dead-letters"), partitions)?;
        let outputs = reader(&self.bootstrap, &topics[1], partitions)?;
        let value = match records.record.1 {
            Value::Null => None,
            Value::Bytes(bytes) => Some(bytes.to_vec()),
            Value::Long(bytes) => Some(vec![b'x'; bytes]),
        };
        let producer = producer(&self.bootstrap)?;
        let (mut sent, mut told) = (0u64, None);
        while Instant::now() < until || told.is_none() {
            ensure!(began.elapsed() < TOLD_MAX, "no reason after {:?}", began.elapsed());
            while sent < 1 + began.elapsed().as_millis() as u64 * records.rate / 1_000 {
                let mut record = BaseRecord::<[u8], [u8]>::to(&topics[0]);
                record.key = records.record.0;
                record.payload = value.as_deref();
                record.partition =
                    (records.workers > 1).then_some((sent % u64::from(records.workers)) as i32);
                flights::feed::send(&producer, record)?;
                sent += 1;
            }
            producer.poll(Duration::from_millis(5));
            if told.is_none() {
                told = letter(&letters, Duration::from_millis(5))?
                    .map(|reason| Told { reason, after: began.elapsed() });
            }
            if told.is_none() && sent % 20 == 0 {
                let found = self.deployment(name)?;
                let halted = found.state() == proto::DeploymentState::Halted;
                told = halted.then(|| Told { reason: found.reason, after: began.elapsed() });
            }
            if records.is_good && told.is_none() && Instant::now() >= until {
                told = Some(Told { reason: String::new(), after: Duration::ZERO });
            }
        }
        producer.flush(TOLD_MAX)?;
        if let Some(output) = outputs.poll(Duration::from_millis(100)) {
            bail!("a failed record has an effect: {:?}", output?.payload().map(<[u8]>::len));
        }
        told.context("nothing was told")
    }

    /// A module that no deploy may accept.
    fn refused(&self, name: &str, module: &[u8]) -> Result<Told> {
        create_topics(&self.node, &[&format!("{name}-in"), &format!("{name}-out")], 1);
        let began = Instant::now();
        match self.deploy(&document(name, "bench/pass", "halt", &standard()), module, false) {
            Ok(_) => bail!("it was accepted"),
            Err(status) if status.code() == Code::InvalidArgument => {
                ensure!(began.elapsed() < COMPILED_MAX, "took {:?}", began.elapsed());
                Ok(Told { reason: status.message().to_owned(), after: began.elapsed() })
            }
            Err(status) => bail!("{status}"),
        }
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
fn limits(memory_mib: u64, store_mib: Option<u64>, time_ms: u64) -> String {
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
        .set("message.max.bytes", "4000000")
        .create()?)
}

pub(super) fn reader(bootstrap: &str, topic: &str, partitions: i32) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = reading(bootstrap, "hostile", true).create()?;
    assign(&consumer, topic, 0..partitions, Offset::Beginning)?;
    Ok(consumer)
}

/// The reason in the next dead letter.
fn letter(letters: &BaseConsumer, wait: Duration) -> Result<Option<String>> {
    let Some(letter) = letters.poll(wait) else { return Ok(None) };
    let letter = letter?;
    let headers = letter.headers().context("a letter has headers")?;
    let reason = headers.iter().find(|header| header.key == "failure_reason").and_then(|header| header.value);
    Ok(Some(String::from_utf8_lossy(reason.context("a letter has a reason")?).into_owned()))
}
