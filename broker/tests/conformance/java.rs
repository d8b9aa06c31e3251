//! Apache Kafka's own Java clients and tools, against whichever broker is under test.

use tidemill_kafka_harness::run_tool;

use crate::cluster::{PATIENCE, cluster, produce, producer, read, topic, transactional, unique, wait_until};
use rdkafka::producer::Producer;

/// Runs a tool and returns what it printed; a failure shows everything.
fn tool(class: &str, arguments: &[&str]) -> String {
    let output = run_tool(class, arguments).expect("the tool runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{class} {arguments:?} failed:\n{text}\n{errors}");
    text
}

fn console_consumer(topic: &str, group: &str, isolation: &str, count: usize) -> Vec<String> {
    let count = count.to_string();
    let isolation = format!("isolation.level={isolation}");
    let group = format!("group.id={group}");
    let text = tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        &[
            "--bootstrap-server",
            &cluster().bootstrap,
            "--topic",
            topic,
            "--from-beginning",
            "--max-messages",
            &count,
            "--timeout-ms",
            "60000",
            "--command-property",
            &isolation,
            "--command-property",
            &group,
        ],
    );
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_java_consumer_reads_what_is_committed_and_the_groups_tool_shows_its_lag() {
    let topic = topic("java-read", 1, &[]);
    let producer = transactional(&unique("java-read"));
    for (value, commit) in [("a", true), ("b", false), ("c", true)] {
        producer.begin_transaction().expect("begins");
        produce(&producer, &topic, 0, &[("k", value)]);
        match commit {
            true => producer.commit_transaction(PATIENCE).expect("commits"),
            false => producer.abort_transaction(PATIENCE).expect("aborts"),
        }
    }
    let group = unique("java-read");
    assert_eq!(console_consumer(&topic, &group, "read_committed", 2), ["a", "c"]);

    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let bootstrap = &cluster().bootstrap;
    let shown = tool(class, &["--bootstrap-server", bootstrap, "--describe", "--group", &group]);
    let row = shown.lines().find(|line| line.contains(&topic)).unwrap_or_default();
    let columns: Vec<&str> = row.split_whitespace().collect();
    // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG ...
    assert_eq!(columns.get(4), Some(&"6"), "{shown}");
    let reset = [
        "--bootstrap-server",
        bootstrap,
        "--group",
        &group,
        "--topic",
        &topic,
        "--reset-offsets",
        "--to-earliest",
        "--execute",
    ];
    assert!(tool(class, &reset).contains(&topic));
    let shown = tool(class, &["--bootstrap-server", bootstrap, "--describe", "--group", &group]);
    let row = shown.lines().find(|line| line.contains(&topic)).unwrap_or_default();
    assert_eq!(row.split_whitespace().nth(5), Some("6"), "{shown}");
}

#[test]
fn the_java_producer_writes_transactions() {
    let topic = topic("java-write", 2, &[]);
    tool(
        "org.apache.kafka.tools.ProducerPerformance",
        &[
            "--topic",
            &topic,
            "--num-records",
            "2000",
            "--record-size",
            "100",
            "--throughput",
            "-1",
            "--transactional-id",
            &unique("java-write"),
            "--transaction-duration-ms",
            "50",
            "--bootstrap-server",
            &cluster().bootstrap,
            "--command-property",
            "compression.type=lz4",
        ],
    );
    wait_until("all records are there", || {
        read(&topic, 0, 0, "read_committed").len() + read(&topic, 1, 0, "read_committed").len() == 2000
    });
}

#[test]
fn the_topics_and_configs_tools_work() {
    let name = unique("java-topic");
    let bootstrap = &cluster().bootstrap;
    let topics = "org.apache.kafka.tools.TopicCommand";
    let create = [
        "--bootstrap-server",
        bootstrap,
        "--create",
        "--topic",
        &name,
        "--partitions",
        "3",
        "--config",
        "retention.ms=5000000",
    ];
    tool(topics, &create);
    let shown = tool(topics, &["--bootstrap-server", bootstrap, "--describe", "--topic", &name]);
    assert!(shown.contains("PartitionCount: 3") && shown.contains("retention.ms=5000000"), "{shown}");
    produce(&producer(&[]), &name, 0, &[("k", "v")]);
    let shown = tool(
        "org.apache.kafka.tools.GetOffsetShell",
        &["--bootstrap-server", bootstrap, "--topic", &name, "--time", "-1"],
    );
    assert!(shown.contains(&format!("{name}:0:1")), "{shown}");
}
