//! Runs the README's ten minutes: every command, in order, and looks for what the README shows.
//!
//! In a `console` block a line `$ command` is run, and each line below it must occur in what the
//! command prints (spaces do not count). `tidemill dev` runs in the background, as it does in the
//! reader's first terminal; `make` and `export` are what this test's surroundings have done already.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidemill_tests::programs::{alone, free_address, program, run, tidemill, workspace};
use tidemill_tests::wait::until;

struct Step {
    command: String,
    shows: Vec<String>,
}

/// The commands of the README's section.
fn steps() -> Vec<Step> {
    let readme = fs::read_to_string(workspace().join("README.md")).expect("the README");
    let (_, section) = readme.split_once("\n## Ten minutes\n").expect("the tutorial");
    let section = section.split("\n## ").next().expect("a section");
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in section.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = line == "```console",
            Some(command) if inside => steps.push(Step { command: command.into(), shows: Vec::new() }),
            None if inside => steps.last_mut().expect("output follows a command").shows.push(line.into()),
            _ => {}
        }
    }
    steps
}

/// The node of the first terminal; killed if the test ends early.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // Fails only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The variables that stand for the default ports, which may be taken on a machine that runs tests.
fn ports() -> Vec<(&'static str, String)> {
    let (grpc, kafka) = (free_address(), free_address());
    vec![
        ("TIDEMILL_ADDRESS", grpc.clone()),
        ("TIDEMILL_LISTEN_GRPC", grpc),
        ("TIDEMILL_LISTEN_HTTP", free_address()),
        ("TIDEMILL_KAFKA_BOOTSTRAP_SERVERS", kafka),
    ]
}

fn start_dev(directory: &Path, ports: &[(&str, String)]) -> Dev {
    let log = File::create(directory.join("dev.log")).expect("a log");
    let kafka = &ports.last().expect("four variables").1;
    let child = tidemill(["dev", "--listen-kafka", kafka])
        .current_dir(directory)
        .envs(ports.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("tidemill can be started");
    let dev = Dev(child);
    until("tidemill dev answers", Duration::from_secs(60), || {
        let asked = run(tidemill(["deployments"]).envs(ports.iter().map(|(name, value)| (*name, value))));
        if asked.status.success() { Ok(()) } else { Err(asked.stderr) }
    });
    dev
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let ports = ports();
    let binaries = program("tidemill").parent().expect("a directory").display().to_string();
    let path = format!("{binaries}:{}", std::env::var("PATH").expect("a path"));
    let mut dev = None;
    let mut current = directory.path().to_owned();
    let steps = steps();
    assert!(steps.len() > 15, "found only {} commands", steps.len());
    for Step { command, shows } in steps {
        println!("$ {command}");
        if command.starts_with("make ") || command.starts_with("export ") {
            continue;
        }
        if command == "tidemill dev" {
            dev = Some(start_dev(directory.path(), &ports));
            continue;
        }
        if let Some(into) = command.strip_prefix("cd ") {
            current.push(into);
            continue;
        }
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &command]).current_dir(&current).env("PATH", &path);
        shell.envs(ports.iter().map(|(name, value)| (*name, value)));
        let finished = run(&mut shell);
        let printed = format!("{}{}", finished.stdout, finished.stderr);
        println!("{printed}");
        assert!(finished.status.success(), "{command}: {printed}");
        for wanted in shows {
            let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(squeeze(&printed).contains(&squeeze(&wanted)), "{command} does not print {wanted:?}");
        }
    }
    assert!(dev.is_some(), "the tutorial starts a node");
}
