//! What deployments leave behind: many of them one after the other, and many at once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::Offset;
use rdkafka::util::Timeout;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::bare::Clients;
use super::modules;
use super::process::{Ticks, Usage, linear_kib, thread_names};
use super::stage::deploy;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::reading::{assign, reading};
use crate::rig::fleet::build_module;

const INPUT: &str = "churn-in";
/// Of the deployment before many at once, so that it stays idle while they are busy.
const INPUT_OF_FIRST: &str = "churn-first";
const OUTPUT: &str = "churn-out";
const RUNNING_MAX: Duration = Duration::from_secs(60);
/// Until many deployments have handled what they are given.
const HANDLED_MAX: Duration = Duration::from_secs(180);
/// Of each measurement of CPU time, with a record a second or none.
const SECONDS: usize = 10;
/// After the last of many deployments runs, before they count as idle.
const STARTING: Duration = Duration::from_secs(3);

/// What small deployments run; inputs and outputs have the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Handler {
    /// Counts per key: each deployment has a store.
    Count,
    /// Passes records on, without state.
    Pass,
}

impl Handler {
    fn build(self, directory: &Path) -> PathBuf {
        match self {
            Handler::Count => build_module("count", "plugins/count", directory),
            Handler::Pass => build_module("pass", "bench/pass", directory),
        }
    }
}

/// A node to fill.
struct Bench {
    _cluster: Cluster,
    bootstrap: String,
    node: Node,
    runtime: Runtime,
    channel: Channel,
    module: Vec<u8>,
}

impl Bench {
    fn start(cluster: Cluster, directory: &Path, handler: Handler) -> Result<Bench> {
        let mut node = Node::start(&cluster, directory);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(node.client());
        let channel = runtime.block_on(Endpoint::from_shared(format!("http://{}", node.grpc))?.connect())?;
        node.tidemill(&["topics", "create", INPUT, INPUT_OF_FIRST, OUTPUT, "--partitions", "1"]).ok();
        let module = handler.build(directory);
        let (bootstrap, module) = (cluster.bootstrap().to_owned(), std::fs::read(module)?);
        Ok(Bench { _cluster: cluster, bootstrap, node, runtime, channel, module })
    }

    /// A deployment with one task, of this module.
    fn deploy(&self, name: &str, input: &str, module: &[u8]) -> Result<()> {
        let document = format!(
            "name: {name}\nmodule: small.wasm\ninputs: {{ in: {{ topic: {input} }} }}\n\
             outputs: {{ out: {{ topic: {OUTPUT} }} }}\n"
        );
        self.runtime.block_on(deploy(self.channel.clone(), &document, module, false))?;
        Ok(())
    }

    fn until_running(&self, name: &str) -> Result<()> {
        self.until(name, |found| found.state() == proto::DeploymentState::Running && !found.tasks.is_empty())
    }

    /// Commits, stops and closes it.
    fn pause(&self, name: &str) -> Result<()> {
        let request = proto::PauseRequest { name: name.to_owned(), ..Default::default() };
        self.runtime.block_on(DeploymentsClient::new(self.channel.clone()).pause(request))?;
        self.until(name, |found| found.state() == proto::DeploymentState::Paused && found.tasks.is_empty())
    }

    fn until(&self, name: &str, is_so: impl Fn(&proto::Deployment) -> bool) -> Result<()> {
        let until = Instant::now() + RUNNING_MAX;
        loop {
            let request = proto::GetDeploymentRequest { name: name.to_owned() };
            let mut client = DeploymentsClient::new(self.channel.clone());
            let answer = self.runtime.block_on(client.get(request))?.into_inner();
            let found = answer.deployment.context("an answer has a deployment")?;
            if is_so(&found) {
                return Ok(());
            }
            let state = found.state().as_str_name();
            ensure!(Instant::now() < until, "{name} stays {state}: {}", found.reason);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        let request = proto::DeleteDeploymentRequest { name: name.to_owned(), ..Default::default() };
        self.runtime.block_on(DeploymentsClient::new(self.channel.clone()).delete(request))?;
        Ok(())
    }

    fn usage(&self) -> Usage {
        Usage::of(self.node.pid())
    }

    /// How many cores the node keeps busy on average, while something is done every second.
    fn cores(&self, mut every_second: impl FnMut() -> Result<()>) -> Result<f64> {
        let (since, started) = (Ticks::now(&[self.node.pid()]), Instant::now());
        for _ in 0..SECONDS {
            every_second()?;
            std::thread::sleep(Duration::from_secs(1));
        }
        let used = Ticks::now(&[self.node.pid()]).own_seconds(since);
        Ok(used / started.elapsed().as_secs_f64())
    }

    /// Waits until so many records have come out.
    fn until_out(&self, records: usize) -> Result<()> {
        let consumer: BaseConsumer = reading(&self.bootstrap, "churn", true).create()?;
        assign(&consumer, OUTPUT, 0..1, Offset::Beginning)?;
        let (mut seen, until) = (0, Instant::now() + HANDLED_MAX);
        while seen < records {
            ensure!(Instant::now() < until, "{seen} of {records} records came out");
            // An error is a lost connection or the like; librdkafka goes on by itself.
            seen += usize::from(matches!(consumer.poll(Duration::from_millis(100)), Some(Ok(_))));
        }
        Ok(())
    }
}

/// Averages over a stretch of deploys.
#[derive(Debug, Clone, Copy)]
pub struct Average {
    pub rss_mib: f64,
    pub threads: f64,
    pub descriptors: f64,
    pub mappings: f64,
}

impl Average {
    fn of(usages: &[Usage]) -> Average {
        let mean = |of: fn(&Usage) -> u64| usages.iter().map(of).sum::<u64>() as f64 / usages.len() as f64;
        Average {
            rss_mib: mean(|usage| usage.rss_kib) / 1024.0,
            threads: mean(|usage| usage.threads),
            descriptors: mean(|usage| usage.descriptors),
            mappings: mean(|usage| usage.mappings),
        }
    }
}

/// Deploys and deletes so many times in a row, each time a module with a digest of its own, and some are paused
/// in between; averages of the first and the last tenth. What is left behind by each would show many times over.
pub fn in_a_row(cluster: Cluster, directory: &Path, count: usize) -> Result<(Average, Average)> {
    let bench = Bench::start(cluster, directory, Handler::Count)?;
    let mut usages = Vec::with_capacity(count);
    for number in 0..count {
        // Some names come back, others do not.
        let name = if number % 2 == 0 { "again".to_owned() } else { format!("once-{number}") };
        bench.deploy(&name, INPUT, &modules::marked(&bench.module, number as u64))?;
        bench.until_running(&name)?;
        if number % 3 == 0 {
            bench.pause(&name)?;
        }
        bench.delete(&name)?;
        usages.push(bench.usage());
        if (number + 1) % (count / 10).max(1) == 0 {
            println!("  {} deploys: {:?}", number + 1, bench.usage());
        }
    }
    for (name, threads) in thread_names(bench.node.pid()) {
        println!("  {threads:4} x {name}");
    }
    let tenth = (count / 10).max(1);
    Ok((Average::of(&usages[..tenth]), Average::of(&usages[count - tenth..])))
}

/// What has grown between two averages beyond what measuring it twice would show.
pub fn grown(first: &Average, last: &Average) -> Vec<String> {
    let allowed = [
        ("MiB of memory", first.rss_mib, last.rss_mib, 16.0 + first.rss_mib / 10.0),
        ("threads", first.threads, last.threads, 4.0),
        ("descriptors", first.descriptors, last.descriptors, 8.0),
        ("mappings", first.mappings, last.mappings, 64.0),
    ];
    let over = allowed.into_iter().filter(|(_, first, last, allowed)| last - first > *allowed);
    over.map(|(what, first, last, allowed)| {
        format!("{what}: {first:.1} at first, {last:.1} at last; {allowed:.0} more are allowed")
    })
    .collect()
}

/// What many small deployments cost a node.
#[derive(Debug, Clone, Copy)]
pub struct Small {
    /// What a first deployment has added before them, most of which a process has once.
    pub first_mib: f64,
    /// The node with all of them, while they have nothing to do.
    pub node: Usage,
    /// In cores, of the node with the first one alone, with all of them idle, and with all of them busy.
    pub cores: [f64; 3],
    /// What each adds while it has nothing to do.
    pub rss_kib: f64,
    /// Of that, what is its guest's resident linear memory.
    pub linear_kib: f64,
    /// What librdkafka's client of each needs, by itself and in another process.
    pub clients: Clients,
    pub threads: f64,
    pub descriptors: f64,
    pub mappings: f64,
    /// What each adds, idle and busy, in thousandths of a core.
    pub millicores: [f64; 2],
}

impl Small {
    /// What each adds beyond its linear memory and its client of librdkafka: stacks, instances, what its records are read
    /// and written by, what the node knows of it, its share of what the allocator keeps, and its store if it has one.
    pub fn own_kib(&self) -> f64 {
        self.rss_kib - self.linear_kib - self.clients.rss_kib
    }
}

/// So many deployments at once besides a first one, all of which run and handle every record: first none comes, then one
/// a second.
pub fn at_once(cluster: Cluster, directory: &Path, count: usize, handler: Handler) -> Result<Small> {
    let bench = Bench::start(cluster, directory, handler)?;
    let pid = bench.node.pid();
    let empty = bench.usage();
    // Code that runs for the first time becomes resident: that of compiling, of the clients, of RocksDB.
    bench.deploy("first", INPUT_OF_FIRST, &bench.module)?;
    bench.until_running("first")?;
    std::thread::sleep(STARTING);
    let (before, linear_before) = (bench.usage(), linear_kib(pid));
    let alone = bench.cores(|| Ok(()))?;

    let names: Vec<String> = (0..count).map(|number| format!("small-{number}")).collect();
    names.iter().try_for_each(|name| bench.deploy(name, INPUT, &bench.module))?;
    names.iter().try_for_each(|name| bench.until_running(name))?;
    std::thread::sleep(STARTING);
    let (node, linear) = (bench.usage(), linear_kib(pid));
    for (name, threads) in thread_names(pid) {
        println!("  {threads:4} x {name}");
    }
    let idle = bench.cores(|| Ok(()))?;

    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &bench.bootstrap).create()?;
    let busy = bench.cores(|| {
        producer.send(BaseRecord::to(INPUT).key("k").payload("word")).map_err(|(error, _)| error)?;
        Ok(producer.flush(Timeout::Never)?)
    })?;
    bench.until_out(count * SECONDS)?;
    let clients = Clients::measure(&bench.bootstrap, INPUT, count)?;
    let share = |more: f64| more / count as f64;
    let each = |of: fn(&Usage) -> u64| share(of(&node) as f64 - of(&before) as f64);
    Ok(Small {
        first_mib: (before.rss_kib as f64 - empty.rss_kib as f64) / 1_024.0,
        node,
        cores: [alone, idle, busy],
        rss_kib: each(|usage| usage.rss_kib),
        linear_kib: share(linear as f64 - linear_before as f64),
        clients,
        threads: each(|usage| usage.threads),
        descriptors: each(|usage| usage.descriptors),
        mappings: each(|usage| usage.mappings),
        millicores: [idle, busy].map(|cores| 1e3 * share(cores - alone)),
    })
}
