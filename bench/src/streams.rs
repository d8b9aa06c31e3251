//! Kafka Streams as a contender: `streams/Contender.java`, compiled once per suite, in a JVM of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;
use tempfile::TempDir;

use crate::process;
use crate::terms::{Collector, Guarantee, Jvm, Work};

/// The compiled program.
pub struct Streams {
    classes: TempDir,
    libraries: String,
}

/// What one run does.
pub struct Job<'a> {
    pub bootstrap: &'a str,
    /// Also the consumer group.
    pub application: &'a str,
    pub input: &'a str,
    pub output: &'a str,
    pub work: Work,
    pub guarantee: Guarantee,
    /// For throughput, instead of all defaults.
    pub is_tuned: bool,
    pub jvm: Jvm,
    pub state: &'a Path,
}

impl Streams {
    /// Fetches the jars on first use, and compiles.
    pub fn compile() -> Result<Streams> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("streams");
        let cache = format!("kafka-streams-{}", tidemill_kafka_harness::VERSION);
        let libraries = tidemill_kafka_harness::class_path_of(&sources.join("pom.xml"), &cache)?;
        let classes = tempfile::tempdir()?;
        let mut javac = Command::new("javac");
        javac.args(["-cp", &libraries, "-sourcepath"]).arg(&sources);
        javac.arg("-d").arg(classes.path()).arg(sources.join("Contender.java"));
        process::run(&mut javac).context("javac (is a JDK installed? `make setup` says)")?;
        Ok(Streams { classes, libraries })
    }

    /// What it says of its restores goes to `says`.
    pub fn start(&self, job: &Job<'_>, says: Stdio) -> Result<Child> {
        let mut java = Command::new("java");
        if let Some(heap) = job.jvm.heap_mib {
            java.arg(format!("-Xmx{heap}m"));
            if job.is_tuned {
                // As Kafka's own scripts do: a heap that grows costs CPU time while it is measured.
                java.arg(format!("-Xms{heap}m"));
            }
        }
        // RocksDB's memory comes from the C library; the node bounds its own in the same way.
        java.env("MALLOC_ARENA_MAX", "2");
        java.arg(match job.jvm.collector {
            Collector::G1 => "-XX:+UseG1GC",
            Collector::Parallel => "-XX:+UseParallelGC",
        });
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error");
        java.arg("-cp").arg(format!("{}:{}", self.classes.path().display(), self.libraries));
        java.arg("Contender");
        let guarantee = match job.guarantee {
            Guarantee::ExactlyOnce => "exactly_once_v2",
            Guarantee::AtLeastOnce => "at_least_once",
        };
        let work = job.work.to_possible_value().context("a work without a name")?;
        let tuning = if job.is_tuned { "throughput" } else { "none" };
        let cache = u64::from(job.jvm.cache_mib) << 20;
        for (name, value) in [
            ("bootstrap", job.bootstrap),
            ("application", job.application),
            ("input", job.input),
            ("output", job.output),
            ("work", work.get_name()),
            ("guarantee", guarantee),
            ("threads", &job.jvm.threads.to_string()),
            ("cache", &cache.to_string()),
            ("rocksdb", if job.jvm.has_tuned_rocksdb { "tuned" } else { "default" }),
            ("state", &job.state.display().to_string()),
            ("tuning", tuning),
        ] {
            java.arg(format!("{name}={value}"));
        }
        java.stdin(Stdio::null()).stdout(says).spawn().context("java")
    }
}
