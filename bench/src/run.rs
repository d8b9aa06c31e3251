//! One run of one contender, measured in the same way whoever it is.
//!
//! ```text
//!  write W and N records    start, handle W         idle        handle N          kill, delete
//!  (N in an open            (JIT, caches,        ----|------------------|----
//!   transaction)             compilation)          commit            all committed
//!                                                  CPU, clock        CPU, clock, peak RSS
//! ```
//!
//! What is counted lies between the two marks: the contender's process and the broker's. Fetching ahead
//! cannot reach over the first mark, because the records are not to be seen before it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::contender::{Place, Started, Workshop};
use crate::group::GroupProgress;
use crate::latency::{Ends, Pace};
use crate::load::{Backlog, Shape};
use crate::node::{Deployment, Modules, Output};
use crate::outputs::Outputs;
use crate::rounds::Figures;
use crate::segments::Segments;
use crate::streams::Streams;
use crate::terms::{Contender, Jvm, Kind, Load, Workload};
use crate::threads::{ByThread, Threads};
use crate::{module, outputs, process, topics};

/// So many times the records that are measured warm up whoever has state, and at least until each key has come, so that
/// all have the same keys; a JVM without any whose CPU time counts; and everybody else.
const STATE_WARM_UP: u64 = 2;
const JVM_WARM_UP: u64 = 4;
const WARM_UP: u64 = 1;
/// Of the warm-up, and of what is measured.
const HANDLED_MAX: Duration = Duration::from_secs(600);
/// Of what is handled.
const DELIVERED_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Of the module that is deployed where a deploy is measured; it is larger by a part of `bench/pass` at most.
const NEW_MODULE_BYTES: usize = 200 << 10;
/// A process that uses less of a core than this has nothing to do but to wait.
const IDLE_SHARE: f64 = 0.2;
const IDLE_WINDOW: Duration = Duration::from_millis(250);
const IDLE_MAX: Duration = Duration::from_secs(15);

/// What all runs share.
pub struct Stage {
    pub kafka: ApacheKafka,
    broker: u32,
    pub workshop: Workshop,
    /// Every workload has so many times its records.
    scale: f64,
}

/// What a contender and the broker have used at one of two moments.
pub struct Mark {
    at: Instant,
    contender: Duration,
    peak_rss_mib: f64,
    /// The contender's, if they can be told apart.
    threads: Option<Threads>,
    broker: Duration,
}

impl Stage {
    /// Builds the contenders and starts Apache Kafka.
    pub fn prepare(workloads: &[&Workload], scale: f64) -> Result<Stage> {
        println!("building what takes part");
        let mut contenders = workloads.iter().flat_map(|workload| workload.contenders);
        let is_streams = |contender: &Contender| matches!(contender.kind, Kind::Streams(_));
        let streams = if contenders.any(is_streams) { Some(Streams::compile()?) } else { None };
        let workshop = Workshop { modules: Modules::build()?, streams };
        println!("starting Apache Kafka {}", tidemill_kafka_harness::VERSION);
        // Topics are deleted after each run, and their files with them at once.
        let quick = ("log.segment.delete.delay.ms".to_owned(), "1000".to_owned());
        let options = Options { properties: vec![quick], for_load: true, ..Options::default() };
        let kafka = ApacheKafka::start_with(&options)?;
        let broker = kafka.process_id().context("the broker's process is not there")?;
        let stage = Stage { kafka, broker, workshop, scale };
        if workloads.iter().any(|workload| matches!(workload.load, Load::Deploy { .. })) {
            let kib = |bytes: u64| bytes as f64 / 1_024.0;
            println!(
                "the module that is deployed has {:.0} KiB, {:.0} of them the handler's; the rest is code as well",
                kib(stage.new_module()?.len() as u64),
                kib(fs::metadata(&stage.workshop.modules.order)?.len()),
            );
        }
        Ok(stage)
    }

    /// Runs a contender once. `name` is of this run only.
    pub fn run(
        &self,
        workload: &Workload,
        contender: &Contender,
        jvm: Option<Jvm>,
        name: &str,
    ) -> Result<Figures> {
        let bootstrap = &self.kafka.bootstrap;
        let partitions = workload.partitions;
        let [input, output, changelog] = ["in", "out", "changelog"].map(|role| format!("{name}-{role}"));
        for topic in [&input, &output] {
            topics::create(bootstrap, topic, partitions)?;
        }
        if contender.kind == Kind::Loop && workload.work.is_stateful() {
            topics::create(bootstrap, &changelog, partitions)?;
        }
        let place =
            Place { bootstrap, name, input: &input, output: &output, changelog: &changelog, partitions };
        let figures = match workload.load {
            Load::Backlog { records } => {
                self.backlog(workload, contender, jvm, (&place, self.scaled(records)))
            }
            Load::Open(pace) => self.open(workload, contender, jvm, (&place, pace)),
            Load::Deploy { records } => self.deploy(workload, contender, (&place, records)),
        };
        topics::delete_all_of(bootstrap, name)?;
        figures.with_context(|| format!("{}, {}", workload.name, contender.name))
    }

    fn scaled(&self, records: u64) -> u64 {
        // One at least: what a record costs is divided by them.
        ((records as f64 * self.scale) as u64).max(1)
    }

    fn backlog(
        &self,
        workload: &Workload,
        contender: &Contender,
        jvm: Option<Jvm>,
        (place, records): (&Place<'_>, u64),
    ) -> Result<Figures> {
        let bootstrap = &self.kafka.bootstrap;
        let shape = Shape { keys: workload.keys, values: workload.values };
        let warm_up = match contender.kind {
            _ if workload.work.is_stateful() => {
                (records * STATE_WARM_UP).max(self.scaled(workload.keys.until_all()))
            }
            // At default settings it is memory that counts, of as many records as everybody has.
            Kind::Streams(_) if workload.is_tuned => records * JVM_WARM_UP,
            _ => records * WARM_UP,
        };
        let backlog = Backlog::write(bootstrap, (place.input, place.partitions), shape, (warm_up, records))?;
        let mut started = Started::start(&self.workshop, workload, contender, jvm, place)?;
        let progress = GroupProgress::new(bootstrap, &started.group, place.input, place.partitions)?;
        // An outbox's rows are committed first, and delivered later. Each record becomes one.
        let is_outbox = contender.kind == Kind::Outbox;
        progress.wait_for(&backlog.warm, HANDLED_MAX, || started.check()).context("warm-up")?;
        if is_outbox {
            wait_for_output(place, warm_up).context("warm-up")?;
        }
        // What came of the warm-up is all in the topic: nobody commits offsets before.
        let out_before = topics::ends(bootstrap, place.output, place.partitions)?;
        self.settle(&started)?;
        let before = self.mark(&started)?;
        backlog.appear()?;
        progress.wait_for(&backlog.end, HANDLED_MAX, || started.check())?;
        if is_outbox {
            wait_for_output(place, warm_up + records)?;
        }
        let after = self.mark(&started)?;
        let out = outputs::committed_since(bootstrap, place.output, &out_before)?;
        let wanted = contender.out(workload, jvm, (warm_up, records));
        ensure!(wanted.is_met_by(out), "of {records} records came {out}, and not {wanted}");
        let figures = figures(&before, &after, records);
        let threads_ns = workload.has_budget.then(|| by_thread(&started, &before, &after, records)).flatten();
        Ok(Figures { threads_ns, ..figures })
    }

    fn open(
        &self,
        workload: &Workload,
        contender: &Contender,
        jvm: Option<Jvm>,
        (place, pace): (&Place<'_>, Pace),
    ) -> Result<Figures> {
        let mut ends = Ends::open(place.bootstrap, [place.input, place.output], place.partitions)?;
        let mut started = Started::start(&self.workshop, workload, contender, jvm, place)?;
        ends.wait_until_up(|| started.check())?;
        let mut before = None;
        let latency = ends.measure(pace, || {
            before = Some(self.mark(&started)?);
            Ok(())
        })?;
        let (before, after) = (before.context("it never began")?, self.mark(&started)?);
        let segments = started.node().map(|node| Segments::of(&node.scrape()?, latency.mean)).transpose()?;
        let figures = figures(&before, &after, pace.per_second * pace.seconds);
        Ok(Figures { latency_ms: Some(latency), segments, ..figures })
    }

    /// From the start of the command that deploys a module to the first record that comes out of it. The node has
    /// never seen the module, and has handled the same records in a deployment of another one, so that everything but
    /// the new one is up.
    fn deploy(
        &self,
        workload: &Workload,
        contender: &Contender,
        (place, records): (&Place<'_>, u64),
    ) -> Result<Figures> {
        let Place { bootstrap, name, input, partitions, .. } = *place;
        let shape = Shape { keys: workload.keys, values: workload.values };
        // All of them are there from the beginning.
        let backlog = Backlog::write(bootstrap, (input, partitions), shape, (records, 0))?;
        let mut started = Started::start(&self.workshop, workload, contender, None, place)?;
        let progress = GroupProgress::new(bootstrap, &started.group, input, partitions)?;
        progress.wait_for(&backlog.warm, HANDLED_MAX, || started.check()).context("warm-up")?;
        self.settle(&started)?;

        let new = format!("{name}-new");
        topics::create(bootstrap, &new, partitions)?;
        let directory = tempfile::tempdir()?;
        let module = directory.path().join("new.wasm");
        fs::write(&module, self.new_module()?)?;
        let outputs = Outputs::of(bootstrap, &new, partitions)?;
        let deployment = Deployment {
            module: &module,
            input,
            output: Output::Topic(&new),
            guarantee: contender.guarantee.name(),
            more: "",
        };
        let node = started.node().context("only a node is deployed to")?;
        let group = node.group(&new);
        let before = self.mark(&started)?;
        let deployed = thread::scope(|scope| {
            let command = scope.spawn(|| node.deploy(&new, &deployment));
            // Read meanwhile: a record may come out before the command has ended.
            let deployed = outputs.first().map(|_| before.at.elapsed());
            command.join().map_err(|_| anyhow!("the deploy panicked"))??;
            deployed
        })?;
        let progress = GroupProgress::new(bootstrap, &group, input, partitions)?;
        progress.wait_for(&backlog.warm, HANDLED_MAX, || started.check())?;
        let after = self.mark(&started)?;
        let figures = figures(&before, &after, records);
        Ok(Figures { deployed_ms: Some(deployed.as_secs_f64() * 1e3), ..figures })
    }

    fn new_module(&self) -> Result<Vec<u8>> {
        let Modules { order, pass, .. } = &self.workshop.modules;
        module::grown(&fs::read(order)?, &fs::read(pass)?, NEW_MODULE_BYTES)
    }

    /// Waits until neither the contender nor the broker has anything to do, or long enough.
    fn settle(&self, started: &Started) -> Result<()> {
        let deadline = Instant::now() + IDLE_MAX;
        loop {
            let before = self.mark(started)?;
            thread::sleep(IDLE_WINDOW);
            let after = self.mark(started)?;
            let busiest = (after.contender - before.contender).max(after.broker - before.broker);
            let share = busiest.as_secs_f64() / (after.at - before.at).as_secs_f64();
            if share < IDLE_SHARE || Instant::now() > deadline {
                return Ok(());
            }
        }
    }

    pub fn mark(&self, started: &Started) -> Result<Mark> {
        Ok(Mark {
            at: Instant::now(),
            contender: process::cpu_time(started.pid())?,
            peak_rss_mib: process::peak_rss_mib(started.pid())?,
            threads: started.threads.as_ref().map(|_| Threads::now(started.pid())).transpose()?,
            broker: process::cpu_time(self.broker)?,
        })
    }
}

/// Waits until so many records are in the output topic, markers of transactions included.
fn wait_for_output(place: &Place<'_>, least: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let out: i64 = topics::ends(place.bootstrap, place.output, place.partitions)?.iter().sum();
        if out.cast_unsigned() >= least {
            return Ok(());
        }
        ensure!(started.elapsed() < DELIVERED_MAX, "only {out} records came out, and not {least}");
        thread::sleep(LOOK_EVERY);
    }
}

/// `None` if its threads cannot be told apart.
pub fn by_thread(started: &Started, before: &Mark, after: &Mark, records: u64) -> Option<ByThread> {
    let (names, whole) = (started.threads.as_ref()?, after.contender - before.contender);
    Some(after.threads.as_ref()?.since(before.threads.as_ref()?, names, whole, records))
}

/// What so many records have cost between two moments.
pub fn figures(before: &Mark, after: &Mark, records: u64) -> Figures {
    let per_million = |cpu: Duration| cpu.as_secs_f64() * 1e6 / records as f64;
    Figures {
        cpu_seconds_per_million: per_million(after.contender - before.contender),
        records_per_second: records as f64 / (after.at - before.at).as_secs_f64(),
        peak_rss_mib: after.peak_rss_mib,
        broker_cpu_seconds_per_million: per_million(after.broker - before.broker),
        latency_ms: None,
        segments: None,
        deployed_ms: None,
        threads_ns: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_what_was_used_between_the_marks() {
        let start = Instant::now();
        let mark = |seconds, [contender, broker]: [u64; 2], peak_rss_mib| Mark {
            at: start + Duration::from_secs(seconds),
            contender: Duration::from_secs(contender),
            peak_rss_mib,
            threads: None,
            broker: Duration::from_secs(broker),
        };
        let figures = figures(&mark(1, [10, 20], 50.0), &mark(5, [13, 21], 70.0), 2_000_000);
        assert_eq!(figures.cpu_seconds_per_million, 1.5);
        assert_eq!(figures.records_per_second, 500_000.0);
        assert_eq!(figures.peak_rss_mib, 70.0);
        assert_eq!(figures.broker_cpu_seconds_per_million, 0.5);
    }
}
