//! A broker for one test: the embedded one as a process of its own, or Apache Kafka.

use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use tidemill_kafka_harness::{ApacheKafka, Options};

use crate::programs::{free_address, tidemill};
use crate::wait::until;

pub enum Cluster {
    Embedded { bootstrap: String, process: Child, _data: tempfile::TempDir },
    Apache(ApacheKafka),
}

impl Cluster {
    /// `tidemill broker`, journaled in a temporary directory.
    pub fn embedded() -> Cluster {
        let data = tempfile::tempdir().expect("a temporary directory");
        let bootstrap = free_address();
        let process = tidemill(["broker", "--listen", &bootstrap, "--data-dir"])
            .arg(data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the broker can be started");
        until("the embedded broker listens", Duration::from_secs(20), || TcpStream::connect(&bootstrap));
        Cluster::Embedded { bootstrap, process, _data: data }
    }

    /// Apache Kafka from its own jars.
    pub fn apache() -> Cluster {
        Cluster::apache_with(&Options::default())
    }

    pub fn apache_with(options: &Options) -> Cluster {
        Cluster::Apache(ApacheKafka::start_with(options).expect("Apache Kafka starts (`make setup`)"))
    }

    /// `host:port` of the plaintext listener.
    pub fn bootstrap(&self) -> &str {
        match self {
            Cluster::Embedded { bootstrap, .. } => bootstrap,
            Cluster::Apache(kafka) => &kafka.bootstrap,
        }
    }
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
