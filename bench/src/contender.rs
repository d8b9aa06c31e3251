//! Contenders for one run each: started fresh, watched, killed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;
use tempfile::TempDir;

use crate::changes::{Changes, lines};
use crate::native::Produce;
use crate::node::{Deployment, Modules, Node, Output, program};
use crate::process::Running;
use crate::streams::{self, Streams};
use crate::terms::{Contender, Guarantee, Jvm, Kind, Work, Workload};
use crate::threads::Names;

/// What contenders need that is built once for all runs.
pub struct Workshop {
    pub modules: Modules,
    /// Only if a workload has it take part.
    pub streams: Option<Streams>,
}

/// Where a run reads and writes.
pub struct Place<'a> {
    pub bootstrap: &'a str,
    /// Of this run only: part of the name of every topic and group.
    pub name: &'a str,
    pub input: &'a str,
    pub output: &'a str,
    pub changelog: &'a str,
    pub partitions: i32,
}

/// A contender at work.
pub struct Started {
    running: Process,
    /// The consumer group that it commits its progress to.
    pub group: String,
    /// What its threads are called. `None` of a JVM's.
    pub threads: Option<Names>,
}

enum Process {
    Program(Running, #[expect(dead_code, reason = "removed with the run")] Option<TempDir>),
    Node(Box<Node>),
}

impl Started {
    /// Starts a contender. `jvm` is how, if it is Kafka Streams.
    pub fn start(
        workshop: &Workshop,
        workload: &Workload,
        contender: &Contender,
        jvm: Option<Jvm>,
        place: &Place<'_>,
    ) -> Result<Started> {
        let work = contender.work(workload);
        let guarantee = contender.guarantee;
        let terms = (work, guarantee, workload.batch_records);
        let property = |(name, value): &(&str, &str)| format!("kafka.properties.{name}={value}");
        let settings = workload.producer.iter().map(property).collect();
        let changes = Changes { program: other_build(contender)?, settings, ..Changes::default() };
        let node = |output| start_node(&workshop.modules, &changes, terms, output, place);
        match contender.kind {
            Kind::Loop => start_loop((work, guarantee, Produce::Record), workload.producer, place),
            Kind::Tidemill | Kind::NativeHandler | Kind::Doing(_) => node(Output::Topic(place.output)),
            Kind::AtCommit => node(Output::AtCommit(place.output)),
            Kind::Outbox => node(Output::Outbox(place.output)),
            Kind::Streams(_) => {
                let jvm = jvm.context("a JVM to run Kafka Streams in")?;
                let streams = workshop.streams.as_ref().context("Kafka Streams is not built")?;
                start_streams(streams, (work, guarantee, workload.is_tuned), jvm, place)
            }
        }
    }

    pub fn pid(&self) -> u32 {
        match &self.running {
            Process::Program(running, _) => running.0.id(),
            Process::Node(node) => node.pid(),
        }
    }

    /// `None` of a rival.
    pub fn node(&self) -> Option<&Node> {
        match &self.running {
            Process::Program(..) => None,
            Process::Node(node) => Some(node),
        }
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match &mut self.running {
            Process::Program(running, _) => running.check(),
            Process::Node(node) => node.check(),
        }
    }
}

/// The build of a node that a contender is, if it is not the usual one; fails if nobody has built it.
pub fn other_build(contender: &Contender) -> Result<Option<PathBuf>> {
    match contender.kind {
        Kind::NativeHandler => program("tidemill-native").map(Some),
        _ => Ok(None),
    }
}

/// The native loop, with these properties of its producer beside its own; its changelog, if it keeps state, is a topic
/// that is there.
pub fn start_loop(
    (work, guarantee, produce): (Work, Guarantee, Produce),
    producer: &[(&str, &str)],
    place: &Place<'_>,
) -> Result<Started> {
    let value = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned()).context("a value without a name")
    };
    let program = std::env::current_exe()?;
    let threads = program.file_name().map(|name| Names::of_program(&name.to_string_lossy()));
    let mut command = Command::new(program);
    command.arg("loop");
    for (name, value) in [
        ("--bootstrap", place.bootstrap),
        ("--input", place.input),
        ("--output", place.output),
        ("--changelog", place.changelog),
        ("--group", place.name),
        ("--partitions", &place.partitions.to_string()),
        ("--work", &value(work.to_possible_value())?),
        ("--guarantee", &value(guarantee.to_possible_value())?),
        ("--produce", &value(produce.to_possible_value())?),
    ] {
        command.args([name, value]);
    }
    command.args(producer.iter().map(|(name, value)| format!("--producer={name}={value}")));
    let running = Running(command.stdin(Stdio::null()).spawn().context("the loop")?);
    Ok(Started { running: Process::Program(running, None), group: place.name.to_owned(), threads })
}

/// A node with one deployment. Changes of it win over what is said here.
pub fn start_node(
    modules: &Modules,
    changes: &Changes,
    (work, guarantee, batch_records): (Work, Guarantee, u32),
    output: Output<'_>,
    place: &Place<'_>,
) -> Result<Started> {
    let guarantee = changes.guarantee.unwrap_or(guarantee).name();
    let batch_records = batch_records.to_string();
    let mut document = vec![("limits.batch_records", batch_records.as_str())];
    let module = match work {
        Work::Map => &modules.pass,
        Work::Filter => &modules.tenth,
        Work::Json => &modules.order,
        Work::Count => &modules.count,
        Work::Dedupe => {
            document.extend([("inbox.id", "key"), ("inbox.ttl", "24h")]);
            &modules.pass
        }
    };
    document.extend(changes.document.iter().map(|(path, value)| (path.as_str(), value.as_str())));
    let more = &lines(&document);
    let node = Node::start_with(changes, place.bootstrap, place.name)?;
    node.deploy(place.name, &Deployment { module, input: place.input, output, guarantee, more })?;
    let group = node.group(place.name);
    let threads = Some(Names::of_deployment(place.name));
    Ok(Started { running: Process::Node(Box::new(node)), group, threads })
}

fn start_streams(
    streams: &Streams,
    (work, guarantee, is_tuned): (Work, Guarantee, bool),
    jvm: Jvm,
    place: &Place<'_>,
) -> Result<Started> {
    let state = tempfile::tempdir()?;
    let job = streams::Job {
        bootstrap: place.bootstrap,
        application: place.name,
        input: place.input,
        output: place.output,
        work,
        guarantee,
        is_tuned,
        jvm,
        state: state.path(),
    };
    let child = streams.start(&job, Stdio::null())?;
    let running = Process::Program(Running(child), Some(state));
    Ok(Started { running, group: place.name.to_owned(), threads: None })
}
