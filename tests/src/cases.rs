//! What must hold on either broker. Each case gets a fresh cluster.

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::message::Message;
use tidemill_kafka_harness::run_tool;

use crate::cluster::Cluster;
use crate::node::{Node, NodeFile, plain};
use crate::pipeline::{self, FLIGHTS, Feeder, Reader};
use crate::programs::workspace;
use crate::security::secrets_stay_secret;
use crate::wait::until;

/// A mistake that the first connection shows: half of what a node waits for one that only does not come.
const GIVE_UP_MAX: Duration = Duration::from_secs(30);

/// From the restart of a killed node to its first new output: less than a member's session of 10 s, which its partitions
/// would wait for if it came back as somebody else. It is a second with nothing wrong; the rest is for a busy machine, and
/// how long it takes is for `make recovery` to say.
const FIRST_OUTPUT_MAX: Duration = Duration::from_secs(8);
/// Until a tool of Kafka's has read all that there is, in a JVM that begins cold.
const READ_MAX: Duration = Duration::from_secs(120);
/// Enough to have the node in full flight.
const IN_FLIGHT: u64 = 8_000;
/// Flights a second: the feed then lasts longer than what happens to the nodes.
const FEED_RATE: u64 = 3_000;

/// Runs one case's conversation.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// The pipeline finds the file's own numbers, and the output topics hold every effect once.
pub fn the_flights_pipeline_is_right(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(cluster, directory.path());
    run_to_the_end(cluster, &mut node);
    let rekeyed = Reader::from_beginning(cluster, "flights-by-carrier").exactly(FLIGHTS);
    assert!(rekeyed.iter().all(|record| record.key().is_some_and(|key| key.len() == 2)));
    let answer = node.tidemill(&["state", "get", "delays", "groups", "UA"]).ok();
    assert!(answer.contains("4605"), "{answer}");
    the_node_tells_of_itself(&node);
    assert!(node.stop().success());
}

/// The commands that look at a node, after the pipeline has come to rest.
fn the_node_tells_of_itself(node: &Node) {
    let json = |arguments: &[&str]| -> serde_json::Value {
        let text = node.tidemill(&[arguments, &["--output", "json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    };
    let explained = node.tidemill(&["lag", "delays", "--explain"]).ok();
    assert!(explained.contains("HANDLER") && explained.contains("total 0 records behind"), "{explained}");
    let lag = json(&["lag", "delays"]);
    let spent = &lag["partitions"][0]["spent"];
    assert!(spent["window_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{lag}");

    let nodes = json(&["nodes"]);
    assert_eq!(nodes["nodes"][0]["answered"], true, "{nodes}");
    let tasks = nodes["nodes"][0]["tasks"].as_array().expect("tasks");
    assert_eq!(tasks.len(), 2 * pipeline::PARTITIONS as usize, "{nodes}");
    assert!(tasks.iter().all(|task| task["positions"][0]["offset"].as_u64() > Some(0)), "{nodes}");

    let stores = json(&["stores"]);
    let stores = stores["stores"].as_array().expect("stores");
    assert!(stores.len() == 4 && stores.iter().all(|store| store["use"] == "open"), "{stores:?}");
    let unused = node.tidemill(&["stores", "--unused"]).ok();
    assert_eq!(unused, "no such directory on any node\n");

    assert_eq!(node.tidemill(&["logs", "delays", "--since", "5m", "--level", "error"]).ok(), "");
    let nobody = node.tidemill(&["logs", "dealys", "--follow"]);
    assert_eq!(nobody.status.code(), Some(5), "{nobody:#?}");
}

/// A deployment that was deleted and is deployed again knows nothing of its former life: it finds the
/// same numbers from the beginning of its input.
pub fn a_deleted_deployment_begins_anew(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(cluster, directory.path());
    run_to_the_end(cluster, &mut node);
    node.tidemill(&["delete", "delays", "--yes"]).ok();
    let groups = node.tidemill(&["groups", "list"]).ok();
    assert!(groups.contains("local.default.rekey") && !groups.contains("local.default.delays"), "{groups}");
    let topics = node.tidemill(&["topics", "list", "--all"]).ok();
    assert!(
        topics.contains("_tidemill.control") && !topics.contains("tidemill.delays.changelog"),
        "{topics}"
    );

    pipeline::apply(&node);
    block_on(async {
        let mut client = node.client().await;
        pipeline::expect_right_numbers(&mut client).await;
    });
    assert!(node.stop().success());
    let log = node.whole_log();
    let audited = |words: &[&str]| {
        log.lines().any(|line| line.contains("outcome=Ok") && words.iter().all(|word| line.contains(word)))
    };
    assert!(audited(&["action=\"Deployments.Delete\"", "name=\"delays\""]), "{log}");
    assert!(audited(&["action=\"State.Collect\"", "name=\"delays\""]), "{log}");
    assert!(audited(&["action=\"Topics.Apply\"", "name=\"tidemill.delays.changelog\""]), "{log}");
}

/// The pipeline on a node whose file has this `kafka:` block, which tells nobody these secrets.
pub fn a_configured_node_is_right(cluster: &Cluster, kafka: &str, secrets: &[&str]) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start_with(cluster, directory.path(), kafka);
    run_to_the_end(cluster, &mut node);
    assert!(node.stop().success());
    // With connections of its own, which are encrypted and signed in, too.
    assert!(!node.log().contains("librdkafka reads and writes records"), "{}", node.log());
    secrets_stay_secret(cluster, &node, secrets);
}

/// A node whose file has this `kafka:` block ends within seconds; answers what it says.
pub fn a_configured_node_gives_up(kafka: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let ended = NodeFile::write(directory.path(), kafka).run();
    assert!(!ended.status.success() && ended.took < GIVE_UP_MAX, "{ended:#?}");
    ended.stderr
}

fn run_to_the_end(cluster: &Cluster, node: &mut Node) {
    block_on(async {
        let mut client = node.client().await;
        pipeline::deploy(node);
        Feeder::start(cluster, 0).finish();
        pipeline::expect_right_numbers(&mut client).await;
    });
}

/// kill -9 in the middle of the feed: nothing lost, nothing twice, stores taken up again.
pub fn a_killed_node_goes_on_where_it_was(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(cluster, directory.path());
    block_on(async {
        let mut client = node.client().await;
        pipeline::deploy(&node);
        let feeder = Feeder::start(cluster, FEED_RATE);
        pipeline::until_counted(&mut client, IN_FLIGHT).await;
        node.kill();

        let mut output = Reader::from_end(cluster, "delays");
        let started = Instant::now();
        node.restart();
        until("the restarted node emits", Duration::from_secs(30), || {
            output.next(Duration::from_millis(10)).ok_or(())
        });
        let first = started.elapsed();
        println!("first new output {first:?} after the restart");
        assert!(first < FIRST_OUTPUT_MAX, "first new output after {first:?}\n{}", node.log());

        let mut client = node.client().await;
        feeder.finish();
        pipeline::expect_right_numbers(&mut client).await;
    });
    let restored: Vec<String> =
        node.log().lines().filter(|line| line.contains("restored")).map(Into::into).collect();
    println!("{}", restored.join("\n"));
    assert!(!restored.is_empty(), "the node did not say what it restored:\n{}", node.log());
    Reader::from_beginning(cluster, "flights-by-carrier").exactly(FLIGHTS);
}

/// Two nodes share the tasks; one stops in the middle, drains, and the other takes over its state.
pub fn two_nodes_share_the_work_and_one_takes_over(cluster: &Cluster) {
    configured_nodes_share_the_work(cluster, &plain(cluster));
}

/// The same on nodes whose files have this `kafka:` block.
pub fn configured_nodes_share_the_work(cluster: &Cluster, kafka: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut first = Node::start_with(cluster, &directory.path().join("first"), kafka);
    let mut second = Node::start_with(cluster, &directory.path().join("second"), kafka);
    block_on(async {
        first.client().await;
        let mut client = second.client().await;
        pipeline::deploy(&first);
        until_shared(&first, &[4, 4]);
        let feeder = Feeder::start(cluster, FEED_RATE);
        pipeline::until_counted(&mut client, IN_FLIGHT).await;
        let stopping = Instant::now();
        assert!(first.stop().success(), "{}", first.log());
        println!("drained in {:?}", stopping.elapsed());
        feeder.finish();
        pipeline::expect_right_numbers(&mut client).await;
    });
    Reader::from_beginning(cluster, "flights-by-carrier").exactly(FLIGHTS);
    assert!(second.stop().success(), "{}", second.log());
}

/// Waits until the nodes hold so many tasks each.
pub(crate) fn until_shared(node: &Node, tasks: &[usize]) {
    until(&format!("the nodes share {tasks:?} tasks"), Duration::from_secs(60), || {
        let nodes = node.tidemill(&["nodes", "--output", "json"]).ok();
        if shares(&nodes) == tasks { Ok(()) } else { Err(nodes) }
    });
}

/// Tasks of each node, from `tidemill nodes --output json`.
fn shares(json: &str) -> Vec<usize> {
    let value: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let nodes = value["nodes"].as_array().expect("a list of nodes");
    nodes.iter().map(|node| node["tasks"].as_array().map_or(0, Vec::len)).collect()
}

/// Kafka's own tools agree: the group's lag is what `tidemill lag` says, in motion and at rest, and
/// a read_committed Java consumer reads the output, and a dead letter with its headers.
pub fn kafkas_own_tools_see_the_same(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(cluster, directory.path());
    block_on(async {
        let mut client = node.client().await;
        pipeline::deploy(&node);
        Feeder::start(cluster, 0).finish();
        pipeline::expect_right_numbers(&mut client).await;

        // At rest: nothing behind, although the intermediate topic ends in transaction markers.
        for deployment in ["rekey", "delays"] {
            let lag = lag_by_kafka(cluster, deployment);
            assert_eq!(lag, [(0, 0), (1, 0), (2, 0), (3, 0)], "{deployment}");
        }

        // Held up: a line that is no flight halts its task, three good ones wait behind it.
        let lines =
            "not a flight\n".to_owned() + &"2013,1,1,1,1,1,1,1,1,ZZ,1,N1,EWR,IAH,1,1,1,1,x\n".repeat(3);
        let file = directory.path().join("lines.txt");
        std::fs::write(&file, lines).expect("a file");
        node.tidemill(&["produce", "flights", "--partition", "2", "--file", &file.display().to_string()])
            .ok();
        until("the task has halted", Duration::from_secs(30), || {
            let lag = node.tidemill(&["lag", "--output", "json"]).ok();
            if lag.contains("halted") { Ok(()) } else { Err(lag) }
        });
        let lag: Vec<(i32, u64)> = client
            .lag()
            .await
            .expect("lag answers")
            .iter()
            .filter(|partition| partition.deployment == "rekey")
            .map(|partition| (partition.partition, partition.records))
            .collect();
        assert_eq!(lag, [(0, 0), (1, 0), (2, 4), (3, 0)]);
        assert_eq!(lag_by_kafka(cluster, "rekey"), lag);
    });
    let lines = until("Kafka's consumer has read all of them", READ_MAX, || {
        // It ends when nothing has come for so long, which on a busy machine may be before the last one.
        let read = read_by_kafka(cluster, "flights-by-carrier", &["--timeout-ms", "8000"]);
        let lines = read.stdout.lines().count() as u64;
        if lines >= FLIGHTS { Ok(lines) } else { Err((lines, read.stderr)) }
    });
    assert_eq!(lines, FLIGHTS);
    a_dead_letter_is_read_by_kafka(cluster, &node, directory.path());
}

/// The line that holds up the pipeline becomes a dead letter, which any client reads, headers and all.
fn a_dead_letter_is_read_by_kafka(cluster: &Cluster, node: &Node, directory: &Path) {
    let examples = workspace().join("examples/flights");
    let pipeline = std::fs::read_to_string(examples.join("pipeline.yaml")).expect("the pipeline");
    let (rekey, _) = pipeline.split_once("\n---\n").expect("two documents");
    let module = format!("module: {}", workspace().join("plugins/rekey").display());
    let buries =
        rekey.replace("module: ../../plugins/rekey", &module) + "\nfailures: { then: dead_letter }\n";
    let file = directory.join("buries.yaml");
    std::fs::write(&file, buries).expect("a file");
    node.tidemill(&["apply", "-f", &file.display().to_string()]).ok();
    until("the line is buried", Duration::from_secs(30), || {
        let count = node.tidemill(&["dlq", "count", "rekey", "--output", "json"]);
        let letters: serde_json::Value = serde_json::from_str(&count.stdout).unwrap_or_default();
        if letters["waiting"] == 1 { Ok(()) } else { Err(count) }
    });
    let shown =
        ["--max-messages", "1", "--timeout-ms", "30000", "--formatter-property", "print.headers=true"];
    let read = read_by_kafka(cluster, "tidemill.rekey.dead-letters", &shown);
    let letter = read.stdout;
    assert!(letter.contains("not a flight"), "{letter}: {}", read.stderr);
    for header in [
        "original_topic:flights,",
        "original_partition:2,",
        "original_offset:",
        "original_timestamp:",
        "failure_reason:",
        "failure_timestamp:",
        "error_type:",
        "error_class:",
        "attempts:",
        "retry_count:0,",
        "correlation_id:",
        "deployment:rekey,",
        "deployment_version:",
        "deployment_incarnation:",
        "format:raw,",
        "schema_version:",
        "tidemill-dead-letter:16",
    ] {
        assert!(letter.contains(header), "{header} is not in {letter}");
    }
}

/// What a tool of Kafka's has said.
struct Said {
    stdout: String,
    stderr: String,
}

/// Committed records of a topic, from its beginning, as `kafka-console-consumer` prints them.
fn read_by_kafka(cluster: &Cluster, topic: &str, more: &[&str]) -> Said {
    let arguments = ["--bootstrap-server", cluster.bootstrap(), "--topic", topic, "--from-beginning"];
    let reading = ["--isolation-level", "read_committed"];
    let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    let read = run_tool(class, &[&arguments[..], &reading[..], more].concat()).expect("the tool runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { stdout: text(&read.stdout), stderr: text(&read.stderr) }
}

/// Partition and lag of a deployment's group as `kafka-consumer-groups` prints them.
fn lag_by_kafka(cluster: &Cluster, deployment: &str) -> Vec<(i32, u64)> {
    let group = format!("local.default.{deployment}");
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let output =
        run_tool(class, &["--bootstrap-server", cluster.bootstrap(), "--describe", "--group", &group])
            .expect("the tool runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows = text.lines().filter(|line| line.starts_with(&group));
    // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG ...
    let mut lag: Vec<(i32, u64)> = rows
        .map(|row| {
            let columns: Vec<&str> = row.split_ascii_whitespace().collect();
            (columns[2].parse().expect("a partition"), columns[5].parse().expect("a lag"))
        })
        .collect();
    assert_eq!(lag.len(), 4, "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    lag.sort();
    lag
}
