//! The brokers of one test: the embedded one as a process of its own, or Apache Kafka.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Pid;
use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::programs::{free_address, tidemill};
use crate::wait::until;

pub enum Cluster {
    Embedded {
        bootstrap: String,
        process: Child,
        data: tempfile::TempDir,
    },
    Apache(ApacheKafka),
    /// Several brokers, with every topic on all of them.
    Brokers {
        brokers: Vec<ApacheKafka>,
        bootstrap: String,
    },
}

impl Cluster {
    /// As a program's `--broker` names it: `embedded` or `apache`.
    pub fn named(broker: &str) -> Cluster {
        match broker {
            "embedded" => Cluster::embedded(),
            "apache" => Cluster::apache(),
            other => panic!("`{other}` is no broker"),
        }
    }

    /// `tidemill broker`, journaled in a temporary directory.
    pub fn embedded() -> Cluster {
        let data = tempfile::tempdir().expect("a temporary directory");
        let bootstrap = free_address();
        let process = run_embedded(&bootstrap, data.path());
        Cluster::Embedded { bootstrap, process, data }
    }

    /// Apache Kafka from its own jars.
    pub fn apache() -> Cluster {
        Cluster::apache_with(&Options::default())
    }

    pub fn apache_with(options: &Options) -> Cluster {
        Cluster::Apache(ApacheKafka::start_with(options).expect("Apache Kafka starts (`make setup`)"))
    }

    /// Three brokers of Apache Kafka: each topic is written while two of them live.
    pub fn three_brokers() -> Cluster {
        let brokers = ApacheKafka::start_cluster(3).expect("Apache Kafka starts (`make setup`)");
        let bootstrap: Vec<&str> = brokers.iter().map(|broker| broker.bootstrap.as_str()).collect();
        Cluster::Brokers { bootstrap: bootstrap.join(","), brokers }
    }

    /// kill -9 of the only broker.
    pub fn kill(&mut self) {
        match self {
            Cluster::Embedded { process, .. } => {
                process.kill().expect("an own child can be killed");
                process.wait().expect("an own child can be waited for");
            }
            Cluster::Apache(kafka) => kafka.kill(),
            Cluster::Brokers { .. } => panic!("there are several brokers"),
        }
    }

    /// Starts a killed one again, on what it had written, and waits until it serves.
    pub fn restart(&mut self) {
        match self {
            Cluster::Embedded { bootstrap, process, data } => *process = run_embedded(bootstrap, data.path()),
            Cluster::Apache(kafka) => kafka.restart().expect("a killed broker starts again"),
            Cluster::Brokers { .. } => panic!("there are several brokers"),
        }
    }

    /// Of a topic that is to survive the loss of a broker, if it can.
    pub fn replication_factor(&self) -> usize {
        match self {
            Cluster::Embedded { .. } | Cluster::Apache(_) => 1,
            Cluster::Brokers { brokers, .. } => brokers.len(),
        }
    }

    /// kill -9 of one broker of several.
    pub fn kill_broker(&mut self, broker: usize) {
        self.one_of_several(broker).kill();
    }

    /// Waits until it serves again.
    pub fn restart_broker(&mut self, broker: usize) {
        self.one_of_several(broker).restart().expect("a killed broker starts again");
    }

    fn one_of_several(&mut self, broker: usize) -> &mut ApacheKafka {
        match self {
            Cluster::Brokers { brokers, .. } => &mut brokers[broker],
            Cluster::Embedded { .. } | Cluster::Apache(_) => panic!("there is only one broker"),
        }
    }

    /// Of the one process that it is, if it is one of ours.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Cluster::Embedded { process, .. } => Some(process.id()),
            Cluster::Apache(_) | Cluster::Brokers { .. } => None,
        }
    }

    /// The process of the only broker, while it runs.
    pub fn only_broker(&self) -> Pid {
        match self {
            Cluster::Embedded { process, .. } => Pid::from_child(process),
            Cluster::Apache(kafka) => {
                let id = kafka.process_id().and_then(|id| Pid::from_raw(id.cast_signed()));
                id.expect("the broker runs")
            }
            Cluster::Brokers { .. } => panic!("there are several brokers"),
        }
    }

    /// `host:port` of the plaintext listeners.
    pub fn bootstrap(&self) -> &str {
        match self {
            Cluster::Embedded { bootstrap, .. } | Cluster::Brokers { bootstrap, .. } => bootstrap,
            Cluster::Apache(kafka) => &kafka.bootstrap,
        }
    }
}

/// Starts the broker and waits until it listens.
fn run_embedded(bootstrap: &str, data: &Path) -> Child {
    let process = tidemill(["broker", "--listen", bootstrap, "--data-dir"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the broker can be started");
    until("the embedded broker listens", Duration::from_secs(20), || TcpStream::connect(bootstrap));
    process
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Cluster::Embedded { process, .. } = self {
            // Fails only if it is gone already, and then the test has said so.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
