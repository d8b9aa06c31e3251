//! A real RabbitMQ (Debian's `rabbitmq-server`) in a directory of its own, on free ports, with a name and a port mapper
//! of its own, and its management API, by which the judge empties a queue.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::receiver::Arrival;
use crate::programs::free_address;
use crate::wait::{until, within};

/// Where Debian puts the program that does not change its user.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// An Erlang machine starts slowly on a busy one.
const START_MAX: Duration = Duration::from_secs(240);
/// Until the port mapper has noticed that a machine is gone.
const UNNAMED_MAX: Duration = Duration::from_secs(5);
/// Of one answer.
const MESSAGES_MAX: usize = 2_000;

pub struct Rabbit {
    directory: tempfile::TempDir,
    amqp: u16,
    dist: u16,
    epmd: u16,
    management: String,
    process: Option<Child>,
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("an address has a port")
}

impl Rabbit {
    /// False where there is none, with what to install.
    pub fn is_installed() -> Result<(), String> {
        match Path::new(PROGRAM).exists() {
            true => Ok(()),
            false => Err(format!("{PROGRAM} is not there: apt-get install rabbitmq-server (make setup)")),
        }
    }

    pub fn start() -> Rabbit {
        let directory = tempfile::Builder::new().prefix("tidemill-rabbit-").tempdir().expect("a directory");
        let mut rabbit = Rabbit {
            directory,
            amqp: port(&free_address()),
            dist: port(&free_address()),
            epmd: port(&free_address()),
            management: free_address(),
            process: None,
        };
        let (_, management) = rabbit.management.rsplit_once(':').expect("an address has a port");
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n",
            rabbit.amqp
        );
        std::fs::write(rabbit.path("rabbitmq.conf"), settings).expect("its settings");
        std::fs::write(rabbit.path("enabled_plugins"), "[rabbitmq_management].").expect("its plugins");
        rabbit.run();
        rabbit
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// As a node of Erlang.
    fn name(&self) -> String {
        format!("w7-{}@localhost", self.amqp)
    }

    /// Starts it, again on the same directory and ports.
    pub fn run(&mut self) {
        let mut command = Command::new(PROGRAM);
        command
            .env("HOME", self.directory.path())
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_NODE_PORT", self.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist.to_string())
            .env("ERL_EPMD_PORT", self.epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", self.path("data"))
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_PID_FILE", self.path("pid"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", self.path("generated"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Shell and Erlang machine end together; the port mapper is for `drop`.
            .process_group(0);
        self.process = Some(command.spawn().expect("rabbitmq-server can be started"));
        until("RabbitMQ answers", START_MAX, || {
            let overview = self.api("GET", "/api/overview", None);
            let listens = TcpStream::connect(("127.0.0.1", self.amqp)).is_ok();
            if overview.is_some() && listens { Ok(()) } else { Err((overview, listens)) }
        });
    }

    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.amqp)
    }

    /// Where it speaks AMQP.
    pub fn port(&self) -> u16 {
        self.amqp
    }

    /// Of all processes that it is, while it runs.
    pub fn group(&self) -> Pid {
        Pid::from_child(self.process.as_ref().expect("RabbitMQ runs"))
    }

    /// As a crash of everything it is.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut process) = self.process.take() {
            // It was killed a moment ago.
            let _ = process.wait();
        }
    }

    /// Stops or continues everything it is.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // Gone already is as good.
            let _ = kill_process_group(Pid::from_child(process), signal);
        }
    }

    /// A user who may do everything; answers the URL to log in with.
    pub fn make_user(&self, name: &str, password: &str) -> String {
        let user = json!({ "password": password, "tags": "" });
        let rights = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        self.told("PUT", &format!("users/{name}"), Some(&user));
        self.told("PUT", &format!("permissions/%2F/{name}"), Some(&rights));
        format!("amqp://{name}:{password}@127.0.0.1:{}", self.amqp)
    }

    pub fn make_queue(&self, name: &str) {
        let queue = json!({ "durable": true, "auto_delete": false });
        self.told("PUT", &format!("queues/%2F/{name}"), Some(&queue));
    }

    /// A queue that refuses what it has no room for. One that does not would make room, even for what is older.
    pub fn make_refusing_queue(&self, name: &str) {
        let refuses = json!({ "x-overflow": "reject-publish" });
        let queue = json!({ "durable": true, "auto_delete": false, "arguments": refuses });
        self.told("PUT", &format!("queues/%2F/{name}"), Some(&queue));
    }

    /// How many messages such a queue has room for; none = as many as come.
    pub fn allow(&self, name: &str, messages: Option<u64>) {
        let path = format!("policies/%2F/{name}");
        let limit = messages.map(|messages| {
            let definition = json!({ "max-length": messages });
            json!({ "pattern": format!("^{name}$"), "definition": definition, "apply-to": "queues" })
        });
        self.told(if limit.is_some() { "PUT" } else { "DELETE" }, &path, limit.as_ref());
    }

    pub fn make_exchange(&self, name: &str) {
        let exchange = json!({ "type": "direct", "durable": true });
        self.told("PUT", &format!("exchanges/%2F/{name}"), Some(&exchange));
    }

    /// Binds a queue to the exchange of its name, by a routing key of its name.
    pub fn bind(&self, name: &str) {
        let binding = json!({ "routing_key": name });
        self.told("POST", &format!("bindings/%2F/e/{name}/q/{name}"), Some(&binding));
    }

    pub fn unbind(&self, name: &str) {
        self.told("DELETE", &format!("bindings/%2F/e/{name}/q/{name}/{name}"), None);
    }

    /// Does what must succeed.
    #[track_caller]
    fn told(&self, method: &str, path: &str, body: Option<&Value>) {
        assert!(self.api(method, &format!("/api/{path}"), body).is_some(), "{method} {path} {body:?} failed");
    }

    /// Takes everything out of a queue, in order.
    pub fn empty(&self, name: &str) -> Vec<Arrival> {
        let mut all = Vec::new();
        let ask = json!({ "count": MESSAGES_MAX, "ackmode": "ack_requeue_false", "encoding": "auto" });
        loop {
            let answer = self.api("POST", &format!("/api/queues/%2F/{name}/get"), Some(&ask));
            let messages = answer.as_ref().and_then(Value::as_array).expect("the queue answers");
            all.extend(messages.iter().map(arrival));
            // There were no more at that moment, whatever comes meanwhile.
            if messages.len() < MESSAGES_MAX {
                return all;
            }
        }
    }

    /// Nobody has a connection any more, nor a channel: what one had read is in its queue, or is gone with it. Told by the
    /// memory that these take, which is looked at when it is asked for; its lists of them are seconds old.
    pub fn is_alone(&self) -> bool {
        let answer = self.api("GET", &format!("/api/nodes/{}/memory", self.name()), None);
        let taken = |what: &str| answer.as_ref()?["memory"][what].as_u64();
        ["connection_readers", "connection_channels"].into_iter().all(|what| taken(what) == Some(0))
    }

    /// The body of an answer that is no error; `null` for an empty one.
    fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
        let mut stream = TcpStream::connect(&self.management).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        let body = body.map(Value::to_string).unwrap_or_default();
        // guest:guest, which only loopback may use.
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            self.management,
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        if !head.starts_with("HTTP/1.1 2") {
            return None;
        }
        let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_owned(),
        };
        if body.is_empty() { Some(Value::Null) } else { serde_json::from_str(&body).ok() }
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.kill();
        // The port mapper detaches itself from whoever starts it; this one is ours, by its port. It does not end while
        // it believes that the machine lives.
        let _ = within(UNNAMED_MAX, || {
            let end = Command::new("epmd").env("ERL_EPMD_PORT", self.epmd.to_string()).arg("-kill").output();
            end.is_ok_and(|end| end.status.success()).then_some(())
        });
    }
}

fn unchunked(body: &str) -> String {
    let (mut out, mut rest) = (String::new(), body);
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let Ok(size @ 1..) = usize::from_str_radix(size.trim(), 16) else { break };
        let Some((part, next)) = tail.split_at_checked(size) else { break };
        out.push_str(part);
        rest = next.trim_start_matches("\r\n");
    }
    out
}

fn arrival(message: &Value) -> Arrival {
    let properties = &message["properties"];
    let headers = &properties["headers"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Arrival {
        id: text(&properties["message_id"]),
        sequence: headers["tidemill-sequence"].as_u64().unwrap_or_default(),
        key: text(&headers["tidemill-key"]),
        body: text(&message["payload"]).into_bytes(),
        correlation: text(&properties["correlation_id"]),
        at_ms: None,
    }
}
