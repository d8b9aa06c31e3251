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

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::contender::{Place, Started, Workshop};
use crate::group::GroupProgress;
use crate::latency::{Ends, Pace};
use crate::load::{Backlog, Shape};
use crate::node::Modules;
use crate::rounds::Figures;
use crate::streams::Streams;
use crate::terms::{Contender, Jvm, Kind, Load, Workload};
use crate::{process, topics};

/// So many times the records that are measured warm up whoever has state, so that all have the same keys; a JVM
/// without any; and everybody else.
const STATE_WARM_UP: u64 = 2;
const JVM_WARM_UP: u64 = 4;
const WARM_UP: u64 = 1;
/// Of the warm-up, and of what is measured.
const HANDLED_MAX: Duration = Duration::from_secs(600);
/// Of what is handled.
const DELIVERED_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A process that uses less of a core than this has nothing to do but to wait.
const IDLE_SHARE: f64 = 0.2;
const IDLE_WINDOW: Duration = Duration::from_millis(250);
const IDLE_MAX: Duration = Duration::from_secs(15);

/// What all runs share.
pub struct Stage {
    kafka: ApacheKafka,
    broker: u32,
    workshop: Workshop,
    /// Every workload has so many times its records.
    scale: f64,
}

/// Two moments of a run.
struct Mark {
    at: Instant,
    contender: Duration,
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
        Ok(Stage { kafka, broker, workshop, scale })
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
                let records = (records as f64 * self.scale) as u64;
                self.backlog(workload, contender, jvm, (&place, records))
            }
            Load::Open(pace) => self.open(workload, contender, jvm, (&place, pace)),
        };
        topics::delete_all_of(bootstrap, name)?;
        figures.with_context(|| format!("{}, {}", workload.name, contender.name))
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
        let warm_up = records
            * match contender.kind {
                _ if workload.work.is_stateful() => STATE_WARM_UP,
                Kind::Streams(_) => JVM_WARM_UP,
                _ => WARM_UP,
            };
        let backlog = Backlog::write(bootstrap, (place.input, place.partitions), shape, (warm_up, records))?;
        let mut started = Started::start(&self.workshop, workload, contender, jvm, place)?;
        let progress = GroupProgress::new(bootstrap, &started.group, place.input, place.partitions)?;
        // An outbox's rows are committed first, and delivered later.
        let is_outbox = contender.kind == Kind::Outbox;
        let [warm, all] = [warm_up, warm_up + records].map(|records| workload.work.least_out(records));
        progress.wait_for(&backlog.warm, HANDLED_MAX, || started.check()).context("warm-up")?;
        if is_outbox {
            wait_for_output(place, warm).context("warm-up")?;
        }
        self.settle(&started)?;
        let before = self.mark(&started)?;
        backlog.appear()?;
        progress.wait_for(&backlog.end, HANDLED_MAX, || started.check())?;
        if is_outbox {
            wait_for_output(place, all)?;
        }
        let after = self.mark(&started)?;
        wait_for_output(place, all)?;
        figures(&started, &before, &after, records)
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
        let figures = figures(&started, &before, &after, pace.per_second * pace.seconds)?;
        Ok(Figures { latency_ms: Some(latency), ..figures })
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

    fn mark(&self, started: &Started) -> Result<Mark> {
        Ok(Mark {
            at: Instant::now(),
            contender: process::cpu_time(started.pid())?,
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

fn figures(started: &Started, before: &Mark, after: &Mark, records: u64) -> Result<Figures> {
    let per_million = |cpu: Duration| cpu.as_secs_f64() * 1e6 / records as f64;
    Ok(Figures {
        cpu_seconds_per_million: per_million(after.contender - before.contender),
        records_per_second: records as f64 / (after.at - before.at).as_secs_f64(),
        peak_rss_mib: process::peak_rss_mib(started.pid())?,
        broker_cpu_seconds_per_million: per_million(after.broker - before.broker),
        latency_ms: None,
    })
}
