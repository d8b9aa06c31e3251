//! A broker in a process of its own, to be killed.
//!
//! The process is this very test binary, asked to run one ignored "test" that serves until its
//! standard input closes. So a test that dies leaves nothing behind.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidemill_broker::{Broker, Config};

const DIRECTORY: &str = "TIDEMILL_TEST_DATA_DIR";
const GREETING: &str = "listening on ";

/// A broker that can be killed.
pub struct Process {
    /// Where it listens.
    pub address: String,
    child: Child,
}

impl Process {
    /// Starts a broker on a directory and waits until it listens.
    pub fn start(directory: &Path) -> Process {
        let mut child = Command::new(std::env::current_exe().expect("is known"))
            .args(["--exact", "child::serve_for_another_test", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("is text");
            line.split_once(GREETING).map(|(_, address)| address.to_owned())
        });
        Process { address: address.expect("the broker says where it listens"), child }
    }

    /// SIGKILL: nothing is flushed, nothing is said.
    pub fn kill(mut self) {
        self.child.kill().expect("is killed");
        self.child.wait().expect("is gone");
    }
}

/// Short intervals, as in the conformance suite.
pub fn config(directory: &Path) -> Config {
    Config {
        data_dir: Some(directory.to_owned()),
        session_timeout_min: Duration::from_millis(100),
        transaction_abort_interval: Duration::from_millis(100),
        maintenance_interval: Duration::from_millis(100),
        ..Config::default()
    }
}

#[test]
#[ignore = "run by other tests in a process of its own"]
fn serve_for_another_test() {
    let directory = std::env::var_os(DIRECTORY).expect("is set by the other test");
    let broker = Broker::start(config(Path::new(&directory))).expect("starts");
    println!("{GREETING}{}", broker.address());
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).expect("ends with the other test");
}
