//! A broker in a process of its own, to be killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tidemill_broker::Config;

/// A broker that can be killed.
pub struct Process {
    /// Where it listens.
    pub address: String,
    child: Child,
}

impl Process {
    /// Starts a broker on a directory and waits until it listens.
    pub fn start(directory: &Path) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_broker-child"))
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut address = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("is piped"));
        stdout.read_line(&mut address).expect("the broker says where it listens");
        Process { address: address.trim_end().to_owned(), child }
    }

    /// SIGKILL: nothing is flushed, nothing is said.
    pub fn kill(mut self) {
        self.child.kill().expect("is killed");
        self.child.wait().expect("is gone");
    }
}

/// As the process has it.
pub fn config(directory: &Path) -> Config {
    Config { data_dir: Some(directory.to_owned()), ..Config::hasty() }
}
