//! The programs under test, as `make build` left them, and how they are run.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidemill_kafka_harness::free_port;

/// The workspace's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// A program of the workspace, from the directory that this test, or program, was built into.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test is a file");
    let beside = own.parent().expect("target/release/deps/test, or target/release/program");
    let profile = match beside.ends_with("deps") {
        true => beside.parent().expect("target/release"),
        false => beside,
    };
    let program = profile.join(name);
    assert!(program.exists(), "{} is not there: run `make build`", program.display());
    program
}

/// What a finished program left behind.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    /// Standard output of a program that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("the program can be started");
    Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: started.elapsed(),
    }
}

/// `tidemill` with arguments and nothing of this process's own configuration.
pub fn tidemill<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    command("tidemill", arguments)
}

/// As [`tidemill`], for another build of it.
pub fn command<S: AsRef<std::ffi::OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program(name));
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("TIDEMILL_") || name.starts_with("KAFKA_"))
    {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// Has figures judged by the table of the benchmarks, as the workload that it has for them, and kept beside the others.
/// `beside` is what was measured with them, by name. True if they meet its bar.
pub fn record(workload: &str, measured_by: &str, figures: &[f64], beside: &[(&str, f64)]) -> bool {
    let figures: Vec<String> = figures.iter().map(|figure| format!("{figure:.1}")).collect();
    let mut recording = Command::new(program("tidemill-bench"));
    recording.args(["record", workload, "--command", measured_by]);
    recording.arg(format!("--figures={}", figures.join(",")));
    recording.args(beside.iter().map(|(name, figure)| format!("--beside={name}={figure:.3}")));
    recording.arg("--out").arg(workspace().join("bench/results/latest.json"));
    recording.arg("--charts").arg(workspace().join("docs/charts"));
    let finished = run(&mut recording);
    print!("{}{}", finished.stdout, finished.stderr);
    finished.status.success()
}

/// A loopback address that nobody listens at, nor will unless told to.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_port().expect("loopback has a free port"))
}

static ON_EMBEDDED: Mutex<()> = Mutex::new(());
static ON_APACHE: Mutex<()> = Mutex::new(());

/// Held by a test whose nodes run on the embedded broker: one at a time.
pub fn turn_on_embedded() -> MutexGuard<'static, ()> {
    ON_EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same on Apache Kafka.
pub fn turn_on_apache() -> MutexGuard<'static, ()> {
    ON_APACHE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test with deadlines of its own, which are for a machine of two cores: it has both.
pub fn alone() -> (MutexGuard<'static, ()>, MutexGuard<'static, ()>) {
    (turn_on_embedded(), turn_on_apache())
}
