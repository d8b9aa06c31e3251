//! Faults of the brokers: they restart, die, and are gone.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tidemill_kafka_harness::ApacheKafka;
use tidemill_tests::cluster::Cluster;
use tidemill_tests::node::Node;
use tidemill_tests::programs::alone;
use tidemill_tests::rig::case::{BROKERS, Broker, Case};
use tidemill_tests::rig::fleet::build_modules;
use tidemill_tests::rig::round::Stage;
use tidemill_tests::rig::scenario::{SOON, cluster_of, play, until_commits};
use tidemill_tests::wait::{until, within};

use crate::SESSION;

/// For so long F09 leaves a node alone.
const OUTAGE: Duration = Duration::from_secs(60);

/// F07: the broker, which leads every partition and coordinates every group and transaction, is
/// restarted in order, twice. Nobody's handler hears of it.
#[test]
fn f07_a_restarted_broker_is_waited_for() {
    let _alone = alone();
    let case = Case::plain(1, 10_000);
    play("F07", &case, cluster_of(&case), |stage| {
        for _ in 0..2 {
            stage.watch.fault();
            broker(stage).stop();
            broker(stage).restart().expect("the broker comes back");
            until_commits(stage);
            stage.watch.healed();
        }
    });
}

/// F08: each of three brokers is killed in full flight and comes back with what it had. (Of a broker that is the only
/// one Apache Kafka 4.x loses ends of transactions: docs/operations.md, "A transaction that hangs".)
#[test]
fn f08_a_killed_broker_is_waited_for() {
    let _alone = alone();
    let case = Case { broker: Broker::ThreeOfApache, ..Case::plain(2, 10_000) };
    play("F08", &case, cluster_of(&case), |stage| {
        for broker in 0..BROKERS {
            stage.watch.fault();
            stage.cluster.kill_broker(broker);
            stage.cluster.restart_broker(broker);
            until_commits(stage);
            stage.watch.healed();
        }
    });
}

/// F09: all brokers die under a running node, which stays up, says that it is not ready, and goes on
/// when they are back. A node that is started meanwhile ends and says why, for its supervisor to try
/// again.
#[test]
fn f09_a_node_outlives_its_brokers_and_does_not_start_without_them() {
    let _alone = alone();
    let case = Case::plain(1, 10_000);
    play("F09", &case, cluster_of(&case), |stage| {
        stage.watch.fault();
        broker(stage).kill();
        until("the node is not ready", SOON, || match ready(stage) {
            Some(200) => Err("ready"),
            _ => Ok(()),
        });
        // Longer than a session and than a transaction may last, and than any request of the node's waits.
        let ended = within(OUTAGE, || stage.fleet.node(0).ended());
        assert!(ended.is_none(), "the node ended: {}", stage.fleet.node(0).log());
        broker(stage).restart().expect("the broker comes back");
        until("the node is ready again", SOON, || match ready(stage) {
            Some(200) => Ok(()),
            other => Err(other),
        });
        until_commits(stage);

        broker(stage).kill();
        assert!(stage.fleet.kill(0), "the node ended by itself");
        stage.fleet.restart(0, None);
        let refused = within(SOON, || stage.fleet.node(0).ended()).expect("the node ends");
        let log = stage.fleet.node(0).log();
        assert!(refused.code() == Some(3) && log.contains("Failed to connect to Kafka"), "{refused}: {log}");
        broker(stage).restart().expect("the broker comes back");
        stage.fleet.restart(0, None);
        until_commits(stage);
        stage.watch.healed();
    });
}

/// F08: the leader of a partition dies alone in its in-sync set, and a replica that lacks its last records is
/// elected all the same. Others take their place, at the same offsets. Readers halt and say so: one that ran
/// through it, and one that comes back when the log has grown past its position again.
#[test]
fn f08_records_that_an_unclean_election_replaced_halt_their_readers() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    build_modules(directory.path());
    let mut cluster = Cluster::three_brokers();
    on_the_first_two_brokers(&cluster, "words");
    let reader = |fleet: &str, place: &Path| {
        let kafka = format!(
            "kafka:\n  bootstrap_servers: '{}'\nfleet: {fleet}\nreplication_factor: 3\n",
            cluster.bootstrap()
        );
        let node = Node::start_with(&cluster, &place.join(fleet), &kafka);
        until("the node answers", SOON, || ok(&node, &["deployments"]));
        let out = format!("{fleet}-out");
        node.tidemill(&["topics", "create", &out, "--partitions", "1", "--replication-factor", "3"]).ok();
        let file = place.join(format!("{fleet}.yaml"));
        let document = format!(
            "name: {fleet}\nmodule: rekey.wasm\ninputs: {{ in: {{ topic: words }} }}\n\
             outputs: {{ out: {{ topic: {fleet}-out }} }}\nconfig: {{ key: 1 }}\n"
        );
        fs::write(&file, document).expect("a document");
        node.tidemill(&["apply", "-f", &file.display().to_string(), "--wait"]).ok();
        node
    };
    let running = reader("running", directory.path());
    let mut absent = reader("absent", directory.path());

    let words = |node: &Node, word: &str, count: usize| {
        let file = directory.path().join("words.txt");
        fs::write(&file, format!("{word},x\n").repeat(count)).expect("words");
        until("the words are taken", SOON, || {
            ok(node, &["produce", "words", "--file", &file.display().to_string()])
        });
    };
    words(&running, "both", 100);
    cluster.kill_broker(1);
    words(&running, "lost", 50);
    for node in [&running, &absent] {
        until("every word is handled", SOON, || match lag(node) {
            Some(0) => Ok(()),
            other => Err(other),
        });
    }
    assert!(absent.stop().success());
    cluster.kill_broker(0);
    cluster.restart_broker(1);
    words(&running, "other", 200);

    absent.restart();
    for node in [&running, &absent] {
        until("the reader halts and says why", SOON, || {
            let log = node.log();
            let told =
                log.lines().any(|line| line.contains("halted") && line.contains("an unclean election"));
            if told { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
        });
    }
}

/// A topic of one partition, led by the first broker, that prefers an unclean leader to none.
fn on_the_first_two_brokers(cluster: &Cluster, topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap()).create().expect("an admin client");
    let topic = NewTopic::new(topic, 1, TopicReplication::Variable(&[&[1, 2]]))
        .set("unclean.leader.election.enable", "true")
        .set("min.insync.replicas", "1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let made = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).expect("an answer");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

fn ok(node: &Node, arguments: &[&str]) -> Result<(), String> {
    let done = node.tidemill(arguments);
    if done.status.success() { Ok(()) } else { Err(done.stderr) }
}

/// Records that the node's deployments have not committed; none without an answer.
fn lag(node: &Node) -> Option<u64> {
    let lag = node.tidemill(&["lag", "--output", "json"]);
    let lag: serde_json::Value = serde_json::from_str(&lag.stdout).ok()?;
    lag["total"].as_u64()
}

fn broker(stage: &mut Stage) -> &mut ApacheKafka {
    match &mut stage.cluster {
        Cluster::Apache(kafka) => kafka,
        _ => unreachable!("the case asks for one broker of Apache Kafka"),
    }
}

/// The status of `/health/ready`; none without an answer.
fn ready(stage: &mut Stage) -> Option<u16> {
    let address = stage.fleet.node(0).http.clone();
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SESSION)).ok()?;
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_ascii_whitespace().nth(1)?.parse().ok()
}
