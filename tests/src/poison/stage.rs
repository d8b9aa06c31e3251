//! What a scene plays on: a broker, nodes, the deployment, and what the nodes tell of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::dead_letters_client::DeadLettersClient;

use super::read::Reader;
use crate::cases::block_on;
use crate::cluster::Cluster;
use crate::node::{Node, plain};
use crate::programs::Finished;
use crate::wait::until;

pub const DEPLOYMENT: &str = "poison";
pub const INPUT: &str = "poison-in";
pub const OUTPUT: &str = "poison-out";
pub const LETTERS: &str = "tidemill.poison.dead-letters";
pub const PARTITIONS: i32 = 4;

const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Until everything is handled, back-offs and a busy machine included.
const SETTLE_MAX: Duration = Duration::from_secs(180);

pub struct Stage {
    pub cluster: Cluster,
    pub nodes: Vec<Node>,
    directory: tempfile::TempDir,
    module: PathBuf,
    /// The deployment's `failures:`.
    failures: String,
}

impl Stage {
    /// Nodes on a broker, of which the first is started. The handler does not forgive.
    pub fn begin(cluster: Cluster, nodes: usize, failures: &str, module: &Path) -> Stage {
        let directory = tempfile::Builder::new().prefix("tidemill-poison-").tempdir().expect("a directory");
        let node = |number| {
            let settings = format!("{}node_id: n{number}\n", plain(&cluster));
            Node::prepare(&cluster, &directory.path().join(format!("n{number}")), &settings)
        };
        let nodes = (0..nodes).map(node).collect();
        let (module, failures) = (module.to_owned(), failures.to_owned());
        let mut stage = Stage { cluster, nodes, directory, module, failures };
        stage.start(0);
        let partitions = PARTITIONS.to_string();
        stage.nodes[0].tidemill(&["topics", "create", INPUT, OUTPUT, "--partitions", &partitions]).ok();
        stage.deploy(0, false);
        stage
    }

    pub fn start(&mut self, node: usize) {
        self.nodes[node].restart();
        self.until_it_answers(node);
    }

    pub fn until_it_answers(&self, node: usize) {
        self.nodes[node].until_it_answers(ANSWER_MAX);
    }

    /// A version that fails what is bad, or one that does not.
    pub fn deploy(&self, node: usize, mended: bool) {
        let file = self.directory.path().join("poison.yaml");
        let document = format!(
            "name: {DEPLOYMENT}\nmodule: {}\ninputs: {{ in: {{ topic: {INPUT} }} }}\noutputs: {{ out: {{ topic: {OUTPUT} }} }}\n\
             config: {{ mended: {mended} }}\nfailures: {}\n",
            self.module.display(),
            self.failures
        );
        std::fs::write(&file, document).expect("the deployment's file");
        self.nodes[node].tidemill(&["apply", "-f", &file.display().to_string(), "--wait"]).ok();
    }

    pub fn run(&self, node: usize, arguments: &[&str]) -> Finished {
        self.nodes[node].tidemill(&[arguments, &["-o", "json"]].concat())
    }

    /// A command that answers JSON; null if it fails.
    pub fn ask(&self, node: usize, arguments: &[&str]) -> Value {
        let finished = self.run(node, arguments);
        serde_json::from_str(&finished.stdout)
            .ok()
            .filter(|_| finished.status.success())
            .unwrap_or(Value::Null)
    }

    /// As [`Stage::ask`], of a command that must succeed.
    #[track_caller]
    pub fn told(&self, node: usize, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(node, arguments).ok()).expect("JSON")
    }

    /// Nothing is behind, nothing is parked, and so many records have come out.
    #[track_caller]
    pub fn until_settled(&self, node: usize, reader: &Reader, count: u64) {
        until("everything is handled", SETTLE_MAX, || {
            let lag = self.ask(node, &["lag", DEPLOYMENT])["total"].as_u64();
            let parked = self.ask(node, &["parked", "list", DEPLOYMENT])["keys"].as_array().map(Vec::len);
            let seen = reader.count();
            if (lag, parked) == (Some(0), Some(0)) && seen >= count {
                Ok(())
            } else {
                Err((lag, parked, seen))
            }
        });
    }

    /// Dead letters that wait, and those that came back too often.
    pub fn letters(&self, node: usize, more: &[&str]) -> (u64, u64) {
        let counts = self.told(node, &[&["dlq", "count", DEPLOYMENT], more].concat());
        (counts["waiting"].as_u64().unwrap_or_default(), counts["over_limit"].as_u64().unwrap_or_default())
    }

    /// How far a redrive is.
    pub fn redrive(&self, node: usize, id: u64) -> Option<Value> {
        let all = self.ask(node, &["dlq", "redrives", DEPLOYMENT]);
        all["redrives"].as_array()?.iter().find(|redrive| redrive["id"] == id).cloned()
    }

    /// How many letters a redrive has given back; none unless every partition says so.
    pub fn given(&self, node: usize, id: u64) -> Option<u64> {
        block_on(async {
            let address = format!("http://{}", self.nodes[node].grpc);
            let mut client = DeadLettersClient::connect(address).await.ok()?;
            let request = proto::RedrivesRequest {
                deployment: DEPLOYMENT.to_owned(),
                id: Some(id),
                ..proto::RedrivesRequest::default()
            };
            let redrive = client.redrives(request).await.ok()?.into_inner().redrives.pop()?;
            redrive.partitions.iter().map(|at| Some(at.progress.as_ref()?.given)).sum()
        })
    }

    /// Asks for a redrive; answers its id.
    pub fn begin_redrive(&self, node: usize, more: &[&str]) -> u64 {
        let answer = self.told(node, &[&["dlq", "redrive", DEPLOYMENT, "--detach"], more].concat());
        answer["id"].as_u64().expect("a redrive has an id")
    }

    /// Waits until a redrive is done and nothing of it is parked.
    #[track_caller]
    pub fn until_done(&self, node: usize, id: u64) -> Value {
        until("the redrive is done", SETTLE_MAX, || {
            let redrive = self.redrive(node, id).ok_or(Value::Null)?;
            if redrive["state"] == "done" && redrive["parked"] == 0 { Ok(redrive) } else { Err(redrive) }
        })
    }
}
