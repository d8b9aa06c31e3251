//! What deployments leave behind: many of them one after the other, and many at once.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::BaseConsumer;
use rdkafka::topic_partition_list::Offset;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::process::{Usage, thread_names};
use super::stage::deploy;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::reading::{assign, reading};
use crate::rig::fleet::build_module;

const INPUT: &str = "churn-in";
const OUTPUT: &str = "churn-out";
const RUNNING_MAX: Duration = Duration::from_secs(60);
/// Until many deployments have handled what they are given.
const HANDLED_MAX: Duration = Duration::from_secs(180);
/// Records that each of many deployments handles.
const RECORDS: usize = 10;

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
    fn start(cluster: Cluster, directory: &Path) -> Result<Bench> {
        let mut node = Node::start(&cluster, directory);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(node.client());
        let channel = runtime.block_on(Endpoint::from_shared(format!("http://{}", node.grpc))?.connect())?;
        node.tidemill(&["topics", "create", INPUT, OUTPUT, "--partitions", "1"]).ok();
        let module = build_module("count", "plugins/count", directory);
        let (bootstrap, module) = (cluster.bootstrap().to_owned(), std::fs::read(module)?);
        Ok(Bench { _cluster: cluster, bootstrap, node, runtime, channel, module })
    }

    /// A stateful deployment with one task.
    fn deploy(&self, name: &str) -> Result<()> {
        let document = format!(
            "name: {name}\nmodule: count.wasm\ninputs: {{ in: {{ topic: {INPUT} }} }}\n\
             outputs: {{ out: {{ topic: {OUTPUT} }} }}\n"
        );
        self.runtime.block_on(deploy(self.channel.clone(), &document, &self.module, false))?;
        Ok(())
    }

    fn until_running(&self, name: &str) -> Result<()> {
        let until = Instant::now() + RUNNING_MAX;
        loop {
            let request = proto::GetDeploymentRequest { name: name.to_owned() };
            let mut client = DeploymentsClient::new(self.channel.clone());
            let answer = self.runtime.block_on(client.get(request))?.into_inner();
            let found = answer.deployment.context("an answer has a deployment")?;
            if found.state() == proto::DeploymentState::Running && !found.tasks.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{name} does not run: {}", found.reason);
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

/// Deploys and deletes so many times in a row; averages of the first and the last tenth. What is left
/// behind by each would show many times over.
pub fn in_a_row(cluster: Cluster, directory: &Path, count: usize) -> Result<(Average, Average)> {
    let bench = Bench::start(cluster, directory)?;
    let mut usages = Vec::with_capacity(count);
    for number in 0..count {
        // Some names come back, others do not.
        let name = if number % 2 == 0 { "again".to_owned() } else { format!("once-{number}") };
        bench.deploy(&name)?;
        bench.until_running(&name)?;
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

/// What one of many small deployments costs while it has nothing to do.
#[derive(Debug, Clone, Copy)]
pub struct Each {
    pub rss_kib: f64,
    pub threads: f64,
    pub descriptors: f64,
    pub mappings: f64,
}

/// So many deployments at once, all of which run and handle every record.
pub fn at_once(cluster: Cluster, directory: &Path, count: usize) -> Result<Each> {
    let bench = Bench::start(cluster, directory)?;
    let before = bench.usage();
    let names: Vec<String> = (0..count).map(|number| format!("small-{number}")).collect();
    names.iter().try_for_each(|name| bench.deploy(name))?;
    names.iter().try_for_each(|name| bench.until_running(name))?;
    let after = bench.usage();
    for (name, threads) in thread_names(bench.node.pid()) {
        println!("  {threads:4} x {name}");
    }

    let lines = directory.join("lines.txt");
    std::fs::write(&lines, "word\n".repeat(RECORDS))?;
    let keyed = ["produce", INPUT, "--key", "k", "--file", &lines.display().to_string()];
    bench.node.tidemill(&keyed).ok();
    let consumer: BaseConsumer = reading(&bench.bootstrap, "churn", true).create()?;
    assign(&consumer, OUTPUT, 0..1, Offset::Beginning)?;
    let (mut seen, until) = (0, Instant::now() + HANDLED_MAX);
    while seen < count * RECORDS {
        ensure!(Instant::now() < until, "{seen} of {} records came out", count * RECORDS);
        if let Some(record) = consumer.poll(Duration::from_millis(100)) {
            record?;
            seen += 1;
        }
    }
    let each = |of: fn(&Usage) -> u64| (of(&after) as f64 - of(&before) as f64) / count as f64;
    Ok(Each {
        rss_kib: each(|usage| usage.rss_kib),
        threads: each(|usage| usage.threads),
        descriptors: each(|usage| usage.descriptors),
        mappings: each(|usage| usage.mappings),
    })
}
