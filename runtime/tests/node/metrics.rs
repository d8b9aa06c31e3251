//! What a scrape of a running node shows.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill::control::run::run;
use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::Node;
use tidemill::telemetry::Telemetry;
use tidemill::telemetry::table::names;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::deployments_client::DeploymentsClient;
use tidemill_test_support::build_guest;

use crate::world::{PROGRAM, World, deploy, eventually};
use crate::{WORD_COUNT, count, lag};

/// The samples of a family: labels and value.
fn samples<'a>(scrape: &'a str, name: &str) -> Vec<(&'a str, f64)> {
    let of = |line: &'a str| {
        let (series, value) = line.rsplit_once(' ')?;
        let (sample, labels) = series.split_once('{').unwrap_or((series, ""));
        let suffix = sample.strip_prefix(name)?;
        let counts = ["", "_total", "_count", "_info"].contains(&suffix);
        counts.then(|| Some((labels, value.parse().ok()?)))?
    };
    scrape.lines().filter(|line| !line.starts_with('#')).filter_map(of).collect()
}

/// What a scrape must show at the end of the run below: family, part of the labels, least, most.
#[rustfmt::skip]
const EXPECTED: &[(&str, &str, f64, f64)] = &[
    ("tidemill_records_in", "partition=\"0\"", 2.0, 2.0),
    ("tidemill_bytes_in", "", 2.0, 100.0),
    ("tidemill_records_out", "", 1.0, 1.0),
    ("tidemill_bytes_out", "", 2.0, 100.0),
    ("tidemill_records_skipped", "", 1.0, 1.0),
    ("tidemill_records_failed", "decode", 1.0, 1.0),
    ("tidemill_records_failed", "trap", 0.0, 0.0),
    ("tidemill_duplicates", "", 0.0, 0.0),
    ("tidemill_sequence_breaks", "loss", 0.0, 0.0),
    ("tidemill_retries", "", 0.0, 0.0),
    ("tidemill_dead_letters", "", 0.0, 0.0),
    ("tidemill_redriven", "", 0.0, 0.0),
    ("tidemill_dead_letters_over_limit", "", 0.0, 0.0),
    ("tidemill_parked_records", "", 0.0, 0.0),
    ("tidemill_parked_bytes", "", 0.0, 0.0),
    ("tidemill_parked_full", "", 0.0, 0.0),
    ("tidemill_handler_calls", "", 1.0, 4.0),
    ("tidemill_handler_seconds", "", 1e-6, 10.0),
    ("tidemill_handler_duration_seconds", "", 1.0, 4.0),
    // The two words and the position of the commits before the store was lost.
    ("tidemill_restored_records", "", 2.0, 10.0),
    ("tidemill_restored_bytes", "", 10.0, 10_000.0),
    ("tidemill_restore_seconds", "", 1e-6, 30.0),
    ("tidemill_restore_remaining_records", "", 0.0, 0.0),
    ("tidemill_store_rebuilds", "", 0.0, 0.0),
    ("tidemill_store_bytes", "", 1.0, 1e8),
    ("tidemill_log_lines_dropped", "", 0.0, 0.0),
    ("tidemill_overlay_bytes", "", 0.0, 0.0),
    ("tidemill_lag_records", "", 0.0, 0.0),
    ("tidemill_lag_seconds", "", 0.0, 0.0),
    ("kafka_consumer_lag", "topic=\"words\"", 0.0, 0.0),
    ("consumer_lag", "group=\"local.default.word-count\"", 0.0, 0.0),
    ("kafka_consumergroup_lag", "partition=\"0\"", 0.0, 0.0),
    ("lag_seconds", "topic=\"words\"", 0.0, 0.0),
    ("tidemill_unassigned_partitions", "deployment=\"word-count\"", 0.0, 0.0),
    ("tidemill_task_seconds", "fetch", 1e-6, 100.0),
    ("tidemill_task_state", "running", 1.0, 1.0),
    ("tidemill_task_state", "halted", 0.0, 0.0),
    ("tidemill_commits", "worker=\"0\"", 1.0, 4.0),
    ("tidemill_commit_records", "", 2.0, 2.0),
    ("tidemill_commit_latency_seconds", "", 1.0, 4.0),
    ("tidemill_commit_failures", "", 0.0, 0.0),
    ("tidemill_rebalances", "assigned", 1.0, 4.0),
    ("tidemill_client_restarts", "", 0.0, 0.0),
    ("tidemill_worker_partitions", "", 1.0, 1.0),
    ("tidemill_deployments", "", 1.0, 1.0),
    ("tidemill_deployments_hanging", "", 0.0, 0.0),
    ("tidemill_nodes", "", 1.0, 1.0),
    ("tidemill_registry_offset", "", 4.0, 10.0),
    ("tidemill_registry_errors", "", 1.0, 1.0),
    ("tidemill_modules_compiled", "", 1.0, 1.0),
    ("tidemill_compile_seconds", "", 1e-6, 60.0),
    ("tidemill_block_cache_bytes", "", 0.0, 1e9),
    ("tidemill_write_buffer_bytes", "", 1.0, 1e9),
    ("tidemill_state_free_bytes", "", 1.0, 1e18),
    ("tidemill_state_unused_bytes", "", 0.0, 0.0),
    ("tidemill_state_collected", "", 0.0, 0.0),
    ("tidemill_modules_collected", "", 0.0, 0.0),
    ("tidemill_broker_latency_seconds", "", 1.0, 100.0),
    ("tidemill_rollbacks", "cause=\"failures\"", 0.0, 0.0),
    ("tidemill_control_calls", "", 1.0, 1.0),
    ("tidemill_control_errors", "", 1.0, 1.0),
    ("tidemill_control_refused", "", 0.0, 0.0),
    ("tidemill_connections_refused", "", 0.0, 0.0),
    ("tidemill_build", "version", 1.0, 1.0),
];

/// How families begin that only a deployment with an outbox has samples of.
const OF_OUTBOXES: [&str; 3] = ["tidemill_outbox_", "tidemill_deliver", "tidemill_breaker_"];

#[test]
fn every_metric_of_a_running_pipeline_has_a_sensible_value() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    world.produce("words", &["a", "b"]);
    let node = world.node();
    deploy(&node, &format!("{WORD_COUNT}failures: skip\n"), &build_guest("plugins/count"));
    eventually("b is counted", || count(&node, "b") == Some(1));
    eventually("no lag", || lag(&node) == Some(0));
    node.stop();
    for lost in ["stores", "compiled"] {
        std::fs::remove_dir_all(world.dir.path().join("node-n").join(lost)).expect("lost");
    }
    let log = |topic: &str| TopicLog::open(&world.kafka(), topic).expect("log");
    log("_test.control").append(None, Some(b"\xff no entry")).expect("appended");
    world.produce("words", &["a"]);
    log("words").append(None, Some(b"without a key, which this handler refuses")).expect("appended");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("runtime");
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let config = world.config("");
    let ran = runtime.spawn(run(
        config,
        PROGRAM.into(),
        move |addresses| tell.send(addresses).expect("awaited"),
        async {
            let _ = stopped.await;
        },
    ));
    let addresses = told.recv_timeout(Duration::from_secs(30)).expect("the node answers");
    let missing = runtime.block_on(async {
        let mut client =
            DeploymentsClient::connect(format!("http://{}", addresses.grpc)).await.expect("gRPC");
        client.get(proto::GetDeploymentRequest { name: "nobody".into() }).await
    });
    assert!(missing.is_err());

    let scrape = || http_get(addresses.http, "/metrics");
    let unmet = || {
        let scrape = scrape();
        let unmet = EXPECTED.iter().filter(|(name, labels, least, most)| {
            let found = samples(&scrape, name);
            let mut found = found.iter().filter(|(found, _)| found.contains(labels)).peekable();
            found.peek().is_none() || found.any(|(_, value)| !(least..=most).contains(&value))
        });
        let shown = |name: &str| format!("{name} {:?}", samples(&scrape, name));
        unmet.map(|(name, ..)| shown(name)).collect::<Vec<String>>()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !unmet().is_empty() {
        assert!(Instant::now() < deadline, "{:#?}", unmet());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let last = scrape();
    for name in names() {
        let is_expected = EXPECTED.iter().any(|(expected, ..)| *expected == name);
        // Without an outbox there is nothing to tell of one.
        let is_of_outboxes = OF_OUTBOXES.iter().any(|prefix| name.starts_with(prefix));
        assert!(is_expected != is_of_outboxes, "{name} is not looked at");
        assert!(is_expected || samples(&last, name).is_empty(), "{name}");
    }
    let ready = http_get(addresses.http, "/health/ready");
    assert!(ready.ends_with("{\"status\":\"ready\"}"), "{ready}");
    stop.send(()).expect("the node runs");
    runtime.block_on(ran).expect("no panic").expect("a clean end");
}

/// A dead deployment looks like one without a lag to whoever asks only those who run it.
#[test]
fn partitions_that_no_node_has_are_counted_and_so_is_their_lag() {
    let world = World::new(&[("words", 2), ("counts", 2)]);
    let telemetry = Telemetry::new();
    let node = Node::start(world.config(""), "127.0.0.1:0".into(), PROGRAM.into(), Arc::clone(&telemetry));
    let node = node.expect("node");
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));
    let shown = |name: &str, label: &str| {
        let scrape = telemetry.render();
        let found = samples(&scrape, name);
        found.iter().find(|(labels, _)| labels.contains(label)).map(|(_, value)| *value)
    };
    let unassigned = || shown("tidemill_unassigned_partitions", "deployment=\"word-count\"");
    let lag_of = |partition| shown("kafka_consumer_lag", &format!("partition=\"{partition}\""));
    let told = || (unassigned(), lag_of(0), lag_of(1));
    eventually("all have somebody", || told() == (Some(0.0), Some(0.0), Some(0.0)));

    eventually("it has given all away", || {
        let drain = node.handle().drain(false, "somebody").expect("it answers");
        drain.state() == proto::DrainState::Drained
    });
    world.produce_to("words", 1, &["a", "b"]);
    eventually("nobody has them", || told() == (Some(2.0), Some(0.0), Some(2.0)));
    assert_eq!(shown("tidemill_lag_records", "partition=\"1\""), Some(2.0));

    let pause = proto::PauseRequest { name: "word-count".into(), ..proto::PauseRequest::default() };
    node.handle().pause(pause).expect("paused");
    eventually("nobody is to have them", || unassigned().is_none() && lag_of(1).is_none());
    node.stop();
}

/// Head and body of an answer.
fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("HTTP");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}
