//! Apache Kafka processes: configuration, start, kill, restart.
//!
//! ```text
//!  start ---> running ---kill---> dead ---restart---> running (same data, same ports)
//!                 \________________drop: killed, data removed
//! ```
//!
//! Several started together are one cluster: each is broker and controller, every topic is on all of
//! them, and a write needs a majority.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Error, free_port, jars, tls};

/// Longest wait for a start. A cold JVM on a busy two-core machine takes about ten seconds.
const START_MAX: Duration = Duration::from_secs(90);

/// How long an orderly stop may take before it becomes a kill.
const STOP_MAX: Duration = Duration::from_secs(60);

/// Runs the JVM and ends it, gently or not, when a line comes on standard input. When that is closed
/// without a line, the test process is gone, perhaps suddenly: then the data goes too, and nothing is
/// left.
const GUARDED: &str = r#"
directory=$1; shift
exec 3<&0
"$@" </dev/null &
jvm=$!
end() {
    if ! read -r how <&3; then kill -9 $jvm; rm -rf "$directory"
    elif [ "$how" = stop ]; then kill $jvm; end
    else kill -9 $jvm; fi
}
end 2>/dev/null &
guard=$!
wait $jvm
status=$?
# Ended by the guard, which may still be at work, or by itself.
[ $status -eq 137 ] || kill $guard 2>/dev/null
exit $status
"#;

/// What a test wants to differ from the harness's defaults.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Extra broker properties; they win over the harness's own.
    pub properties: Vec<(String, String)>,
    /// User and password of a second listener with TLS and SCRAM-SHA-512.
    pub sasl_ssl: Option<(String, String)>,
    /// `host:port` that a further plaintext listener tells its clients to connect to: a proxy's.
    pub detour: Option<String>,
    /// Runs in a JVM for load: it starts slower and takes a gibibyte. For benchmarks.
    pub for_load: bool,
}

/// How to reach the secured listener.
#[derive(Debug, Clone)]
pub struct Secured {
    /// `localhost:port` of the SASL_SSL listener.
    pub bootstrap: String,
    /// PEM file to trust (`ssl.ca.location`).
    pub ca_pem: PathBuf,
}

/// A running (or killed) broker. Dropping it kills the process and removes its data.
#[derive(Debug)]
pub struct ApacheKafka {
    /// `127.0.0.1:port` of the plaintext listener; stays the same over restarts.
    pub bootstrap: String,
    /// Present if `Options::sasl_ssl` was given.
    pub secured: Option<Secured>,
    /// Where the proxy of `Options::detour` finds the broker.
    pub detour: Option<String>,
    directory: tempfile::TempDir,
    for_load: bool,
    child: Option<Child>,
}

impl ApacheKafka {
    /// Starts a broker with the harness's defaults and waits until it serves.
    pub fn start() -> Result<ApacheKafka, Error> {
        Self::start_with(&Options::default())
    }

    /// Starts a broker and waits until it serves.
    pub fn start_with(options: &Options) -> Result<ApacheKafka, Error> {
        let mut kafka = ApacheKafka::prepare(&Seat::reserve(1)?, options)?.remove(0);
        kafka.restart()?;
        Ok(kafka)
    }

    /// Starts a cluster of `count` brokers and waits until all of them serve.
    pub fn start_cluster(count: usize) -> Result<Vec<ApacheKafka>, Error> {
        let mut brokers = ApacheKafka::prepare(&Seat::reserve(count)?, &Options::default())?;
        // A controller alone is no quorum: none is up before most of them run.
        for broker in &mut brokers {
            broker.spawn()?;
        }
        for broker in &mut brokers {
            broker.wait_until_started()?;
        }
        Ok(brokers)
    }

    /// Where the broker keeps its logs, a directory for each partition.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Formats the data of every seat; nothing runs yet.
    fn prepare(seats: &[Seat], options: &Options) -> Result<Vec<ApacheKafka>, Error> {
        let cluster = random_id();
        let broker = |seat: &Seat| {
            let directory = tempfile::Builder::new()
                .prefix("tidemill-kafka-")
                .tempdir()
                .map_err(Error::file(std::env::temp_dir()))?;
            let [plain, _, secure, detour] = seat.ports;
            let mut properties = defaults(seat, seats, directory.path().join("data"));
            let mut secured = None;
            if options.sasl_ssl.is_some() {
                let certificate = tls::generate(directory.path())?;
                let bootstrap = format!("localhost:{secure}");
                add_listener(&mut properties, "SASL_SSL", secure, &bootstrap, "SASL_SSL");
                add_security(&mut properties, &certificate);
                secured = Some(Secured { bootstrap, ca_pem: certificate.ca_pem });
            }
            if let Some(advertised) = &options.detour {
                add_listener(&mut properties, "DETOUR", detour, advertised, "PLAINTEXT");
            }
            properties.extend(options.properties.iter().cloned());
            // A later line of a properties file replaces an earlier one, so the test's values win.
            let text: String = properties.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            let file = directory.path().join("server.properties");
            std::fs::write(&file, text).map_err(Error::file(&file))?;
            let bootstrap = format!("127.0.0.1:{plain}");
            let detour = options.detour.as_ref().map(|_| format!("127.0.0.1:{detour}"));
            let for_load = options.for_load;
            let kafka = ApacheKafka { bootstrap, secured, detour, directory, for_load, child: None };
            kafka.format(&cluster, seats, options)?;
            Ok(kafka)
        };
        seats.iter().map(broker).collect()
    }

    /// SIGKILL, as a crash would. Does nothing if the broker is not running.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The guard kills the JVM with SIGKILL and ends with it. Waiting fails only if it is
            // gone already, which is what is wanted.
            if let Some(mut stdin) = child.stdin.take() {
                let _ = stdin.write_all(b"kill\n");
            }
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end: the broker closes its logs. Does nothing if it is not running.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(stdin) = &mut child.stdin {
            // Fails if the JVM is gone already.
            let _ = stdin.write_all(b"stop\n");
        }
        let deadline = Instant::now() + STOP_MAX;
        while !matches!(child.try_wait(), Ok(Some(_))) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        self.child = Some(child);
        self.kill();
    }

    /// Starts the broker again on the same data and ports, killing it first if it runs.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.spawn()?;
        self.wait_until_started()
    }

    fn spawn(&mut self) -> Result<(), Error> {
        self.kill();
        let log_path = self.log_path();
        let log = File::create(&log_path).map_err(Error::file(&log_path))?;
        let errors = log.try_clone().map_err(Error::file(&log_path))?;
        let java = if self.for_load { jars::java_for_load } else { jars::java };
        let java = java("kafka.Kafka")?;
        let child = Command::new("sh")
            .args(["-c", GUARDED, "sh"])
            .arg(self.directory.path())
            .arg(java.get_program())
            .args(java.get_args())
            .arg(self.directory.path().join("server.properties"))
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|source| Error::Missing { program: "java".into(), source })?;
        self.child = Some(child);
        Ok(())
    }

    /// The id of the broker's process, as long as it runs: of the JVM, not of its guard.
    pub fn process_id(&self) -> Option<u32> {
        let guard = self.child.as_ref()?.id();
        let children = std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children")).ok()?;
        let is_jvm = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "java")
        };
        children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).find(is_jvm)
    }

    /// The broker's log, for a test that failed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("kafka.log")
    }

    fn format(&self, cluster: &str, seats: &[Seat], options: &Options) -> Result<(), Error> {
        let mut format = jars::java("kafka.tools.StorageTool")?;
        format
            .args(["format", "--cluster-id", cluster, "--config"])
            .arg(self.directory.path().join("server.properties"));
        match seats {
            [_] => format.arg("--standalone"),
            _ => format.arg("--initial-controllers").arg(join(seats, Seat::voter)),
        };
        if let Some((user, password)) = &options.sasl_ssl {
            format.arg("--add-scram");
            format.arg(format!("SCRAM-SHA-512=[name={user},password={password}]"));
        }
        jars::run(&mut format, "kafka.tools.StorageTool")
    }

    /// The start is over when the broker says so in its log: its port opens earlier.
    fn wait_until_started(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let log = self.log();
            if log.contains("Kafka Server started") {
                return Ok(());
            }
            let dead = match &mut self.child {
                Some(child) => child.try_wait().ok().flatten().is_some(),
                None => true,
            };
            if dead || started.elapsed() > START_MAX {
                self.kill();
                return Err(Error::NotStarted { waited: started.elapsed(), log: jars::tail(&log) });
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

impl Drop for ApacheKafka {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports of one broker.
const PORTS: usize = 4;

/// Who and where one broker of a cluster is.
struct Seat {
    id: usize,
    /// Of the plaintext listener, the controller's, the secured one, and the detour.
    ports: [u16; PORTS],
    /// Of its data, which a quorum knows its members by.
    directory_id: String,
}

impl Seat {
    fn reserve(count: usize) -> Result<Vec<Seat>, Error> {
        let ports = (0..PORTS * count).map(|_| free_port()).collect::<Result<Vec<_>, _>>()?;
        let seat =
            |(id, ports): (usize, &[u16; PORTS])| Seat { id, ports: *ports, directory_id: random_id() };
        Ok((1..).zip(ports.as_chunks().0).map(seat).collect())
    }

    fn controller(&self) -> String {
        format!("127.0.0.1:{}", self.ports[1])
    }

    fn voter(&self) -> String {
        format!("{}@{}:{}", self.id, self.controller(), self.directory_id)
    }
}

fn join(seats: &[Seat], part: impl Fn(&Seat) -> String) -> String {
    seats.iter().map(part).collect::<Vec<_>>().join(",")
}

/// Everything that makes combined nodes start quickly and keep to loopback.
fn defaults(seat: &Seat, seats: &[Seat], data: PathBuf) -> Vec<(String, String)> {
    let [plain, controller, ..] = seat.ports;
    let listeners = format!("PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}");
    let (copies, majority) = (seats.len().to_string(), (seats.len() / 2 + 1).to_string());
    let pairs = [
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", seat.id.to_string()),
        ("controller.quorum.bootstrap.servers", join(seats, Seat::controller)),
        ("default.replication.factor", copies.clone()),
        ("min.insync.replicas", majority.clone()),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("listeners", listeners),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{plain}")),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned()),
        ("log.dirs", data.display().to_string()),
        ("auto.create.topics.enable", "false".to_owned()),
        ("num.partitions", "1".to_owned()),
        ("offsets.topic.replication.factor", copies.clone()),
        // Fewer internal partitions: the first use of a group or transaction creates them all.
        ("offsets.topic.num.partitions", "4".to_owned()),
        ("transaction.state.log.num.partitions", "4".to_owned()),
        ("transaction.state.log.replication.factor", copies.clone()),
        ("transaction.state.log.min.isr", majority.clone()),
        ("share.coordinator.state.topic.replication.factor", copies),
        ("share.coordinator.state.topic.min.isr", majority),
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Adds a listener to those that are there.
fn add_listener(
    properties: &mut [(String, String)],
    name: &str,
    port: u16,
    advertised: &str,
    protocol: &str,
) {
    for (key, value) in properties {
        match key.as_str() {
            "listeners" => value.push_str(&format!(",{name}://127.0.0.1:{port}")),
            "advertised.listeners" => value.push_str(&format!(",{name}://{advertised}")),
            "listener.security.protocol.map" => value.push_str(&format!(",{name}:{protocol}")),
            _ => {}
        }
    }
}

/// Adds what the SASL_SSL listener needs.
fn add_security(properties: &mut Vec<(String, String)>, certificate: &tls::Certificate) {
    let jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required;".to_owned();
    let keystore = certificate.keystore.display().to_string();
    let pairs = [
        ("sasl.enabled.mechanisms", "SCRAM-SHA-512".to_owned()),
        ("listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config", jaas),
        ("ssl.keystore.type", "PKCS12".to_owned()),
        ("ssl.keystore.location", keystore),
        ("ssl.keystore.password", tls::PASSWORD.to_owned()),
        ("ssl.key.password", tls::PASSWORD.to_owned()),
    ];
    properties.extend(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)));
}

/// A random id in Kafka's form: 22 characters that decode to 16 bytes.
fn random_id() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let random = || RandomState::new().build_hasher().finish();
    let letter = |_| char::from(ALPHABET[(random() % ALPHABET.len() as u64) as usize]);
    let mut id: String = (0..21).map(letter).collect();
    // The last character carries two bits only; 'A' is always valid there.
    id.push('A');
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_survives_a_kill_and_restarts_on_the_same_port() {
        let sasl_ssl = Some(("tidemill".to_owned(), "secret".to_owned()));
        let options = Options { sasl_ssl, ..Options::default() };
        let mut kafka = ApacheKafka::start_with(&options).expect("starts");
        let bootstrap = kafka.bootstrap.clone();
        std::net::TcpStream::connect(&bootstrap).expect("listens");
        kafka.kill();
        std::net::TcpStream::connect(&bootstrap).expect_err("is dead");
        kafka.restart().expect("restarts");
        std::net::TcpStream::connect(&bootstrap).expect("listens again");
        kafka.stop();
        std::net::TcpStream::connect(&bootstrap).expect_err("has stopped");
        assert!(kafka.secured.as_ref().is_some_and(|secured| secured.ca_pem.exists()));
    }
}
