//! Where Apache Kafka's jars are, and how a Java program is run with them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use crate::Error;

/// The version every test runs against.
pub const VERSION: &str = "4.3.1";

/// Two tests of one process must not run Maven into the same directory at once.
static FETCHING: Mutex<()> = Mutex::new(());

/// The broker's Java class path (`<cache>/*`), fetched with Maven on first use.
///
/// The cache is `$TIDEMILL_KAFKA_LIBS`, or `~/.cache/tidemill/kafka-4.3.1/libs`.
pub fn class_path() -> Result<String, Error> {
    let libs = std::env::var_os("TIDEMILL_KAFKA_LIBS");
    let libs = libs.map_or_else(|| cache_directory(&format!("kafka-{VERSION}")), PathBuf::from);
    fetched(&libs, &Path::new(env!("CARGO_MANIFEST_DIR")).join("pom.xml"))
}

/// The class path of what a POM depends on, fetched into a cache of this name on first use.
pub fn class_path_of(pom: &Path, cache: &str) -> Result<String, Error> {
    fetched(&cache_directory(cache), pom)
}

/// Maven's own files are complete before the marker is written, so an interrupted first run is simply
/// repeated.
fn fetched(libs: &Path, pom: &Path) -> Result<String, Error> {
    let marker = libs.join(".complete");
    let _one_at_a_time = FETCHING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !marker.exists() {
        fetch(libs, pom)?;
        std::fs::write(&marker, VERSION).map_err(Error::file(&marker))?;
    }
    Ok(format!("{}/*", libs.display()))
}

/// Runs one of Kafka's own Java tools to its end and returns its output, whatever its exit code.
///
/// `class` is a main class, such as `org.apache.kafka.tools.consumer.group.ConsumerGroupCommand`.
pub fn run_tool(class: &str, arguments: &[&str]) -> Result<Output, Error> {
    java(class)?
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Missing { program: "java".into(), source })
}

/// Small, and quick to start.
const FOR_TESTS: &[&str] = &["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"];
/// Fast once it is warm.
const FOR_LOAD: &[&str] = &["-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-Xshare:auto"];

/// A `java` command with the class path, ready for arguments.
pub(crate) fn java(class: &str) -> Result<Command, Error> {
    java_with(FOR_TESTS, class)
}

/// The same with a JVM for benchmarks.
pub(crate) fn java_for_load(class: &str) -> Result<Command, Error> {
    java_with(FOR_LOAD, class)
}

fn java_with(flags: &[&str], class: &str) -> Result<Command, Error> {
    let mut command = Command::new("java");
    command
        .args(flags)
        .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-cp"])
        .arg(class_path()?)
        .arg(class);
    Ok(command)
}

/// Runs a program to its end; a non-zero exit code is an error that carries the output.
pub(crate) fn run(command: &mut Command, program: &str) -> Result<(), Error> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Missing { program: program.into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(Error::Failed { program: program.into(), output: tail(&text) })
}

/// The last 30 lines, which is where Java puts the reason.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn cache_directory(name: &str) -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    home.join(format!(".cache/tidemill/{name}/libs"))
}

fn fetch(libs: &Path, pom: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(libs).map_err(Error::file(libs))?;
    let mut maven = Command::new("mvn");
    maven
        .args(["-q", "-B", "-f"])
        .arg(pom)
        .arg("dependency:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", libs.display()));
    run(&mut maven, "mvn")
}
