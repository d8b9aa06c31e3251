//! What a node tells of itself: lag and where the time goes, handler logs, nodes and positions, parked keys.

use std::time::{Duration, Instant};

use tidemill::kafka::tools::{self, Row};
use tidemill::node::wall_ms;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::fleet_client::FleetClient;
use tidemill_proto::v1::lag_client::LagClient;
use tidemill_proto::v1::logs_client::LogsClient;
use tidemill_proto::v1::state_client::StateClient;
use tidemill_test_support::build_guest;
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::Channel;

use crate::queries::Served;
use crate::world::{World, deploy, eventually};

const HOSTILE: &str = "\
name: hostile
module: hostile.wasm
inputs: { in: { topic: in } }
outputs: { out: { topic: out } }
failures: { transient: { attempts: 1, backoff: 20ms..40ms }, then: park }
";

/// Records of this moment.
fn produce(world: &World, partition: i32, rows: &[(&str, &str)]) {
    let now = wall_ms();
    let rows = rows.iter().map(|(key, value)| Row {
        key: Some(key.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
        partition: Some(partition),
        timestamp_ms: Some(now),
        ..Row::default()
    });
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");
}

fn lag(runtime: &Runtime, channel: &Channel) -> proto::PartitionLag {
    let request = proto::GetLagRequest { deployment: "hostile".into() };
    let answer = runtime.block_on(LagClient::new(channel.clone()).get(request)).expect("lag").into_inner();
    answer.partitions.into_iter().find(|lag| lag.partition == 0).expect("partition 0")
}

#[test]
fn the_lag_of_a_slow_handler_is_as_old_as_a_stopwatch_says_and_is_explained() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let node = Served::start(&world, &runtime, "a");
    deploy(node.node(), HOSTILE, &build_guest("tests/guests/hostile"));
    eventually("its time is looked at", || {
        lag(&runtime, &node.channel).spent.is_some_and(|spent| spent.fetch_seconds > 0.0)
    });
    // What it takes to come up is not the handler's.
    produce(&world, 0, &[("k", "spin 1")]);
    eventually("a record is handled", || {
        let lag = lag(&runtime, &node.channel);
        lag.records == 0 && lag.spent.is_some_and(|spent| spent.handler_seconds > 0.0)
    });

    // They are given their time between the two, however long it takes to write them.
    let began = Instant::now();
    produce(&world, 0, &vec![("k", "spin 120"); 100]);
    let produced = Instant::now();
    let mut seen = 0;
    let explained = loop {
        let before = produced.elapsed().as_secs_f64();
        let now = lag(&runtime, &node.channel);
        let after = began.elapsed().as_secs_f64();
        if now.records == 0 {
            break now.spent.expect("it runs");
        }
        assert!(before < 180.0, "100 records should not take three minutes: {now:?}");
        // A look at the oldest record that takes long is given up, and then it is not said.
        if let Some(seconds) = now.seconds {
            // Of two clocks, one of which counts milliseconds.
            assert!(
                0.99 * before - 0.01 <= seconds && seconds <= 1.01 * after + 0.01,
                "{seconds} s, not {before} to {after} s"
            );
            seen += 1;
        }
    };
    assert!(seen > 0, "the handler was not slow enough to see anything");
    let took = produced.elapsed().as_secs_f64().min(29.0);
    println!("{took:.1} s behind, {explained:?}");
    assert!(explained.handler_seconds > 0.7 * took, "{explained:?} in {took} s");
    let parts = [
        explained.fetch_seconds,
        explained.handler_seconds,
        explained.state_seconds,
        explained.commit_seconds,
        explained.others_seconds,
        explained.restore_seconds,
        explained.halted_seconds,
        explained.paused_seconds,
    ];
    assert!((parts.iter().sum::<f64>() - explained.window_seconds).abs() < 1e-6, "{explained:?}");

    // Nobody produces any more: it stays at nothing, and a watcher is told so until its deadline.
    let mut request =
        tonic::Request::new(proto::WatchLagRequest { deployment: "hostile".into(), interval_ms: 100 });
    request.set_timeout(Duration::from_secs(5));
    let watched = runtime.block_on(async {
        let mut answers =
            LagClient::new(node.channel.clone()).watch(request).await.expect("watches").into_inner();
        let mut watched = Vec::new();
        while let Some(answer) = answers.message().await.expect("it ends without an error") {
            watched.extend(answer.partitions.into_iter().map(|lag| (lag.records, lag.seconds)));
        }
        watched
    });
    assert!(watched.len() >= 3, "{watched:?}");
    assert!(watched.iter().all(|lag| *lag == (0, Some(0.0))), "{watched:?}");
    let wrong = proto::WatchLagRequest { deployment: "hotsile".into(), interval_ms: 0 };
    let status = runtime.block_on(async {
        let mut answers =
            LagClient::new(node.channel.clone()).watch(wrong).await.expect("opens").into_inner();
        answers.message().await.expect_err("there is no such deployment")
    });
    assert_eq!(status.code(), Code::NotFound);
    let hasty = proto::WatchLagRequest { deployment: "hostile".into(), interval_ms: 1 };
    let status = runtime.block_on(LagClient::new(node.channel.clone()).watch(hasty)).expect_err("too often");
    assert_eq!(status.code(), Code::InvalidArgument);
    node.stop();
}

/// Texts by partition, of everything that a node gathers.
fn logs(runtime: &Runtime, channel: &Channel, level: proto::LogLevel) -> Vec<(i32, String)> {
    let request = proto::TailLogsRequest {
        deployment: "hostile".into(),
        level: level.into(),
        ..proto::TailLogsRequest::default()
    };
    runtime.block_on(async {
        let mut answers = LogsClient::new(channel.clone()).tail(request).await.expect("answers").into_inner();
        let mut found = Vec::new();
        while let Some(message) = answers.message().await.expect("it ends without an error") {
            assert_eq!(message.trouble, "");
            found.extend(message.lines.into_iter().map(|line| (line.partition, line.text)));
        }
        found.sort();
        found
    })
}

#[test]
fn what_handlers_log_is_gathered_from_every_node_and_followed() {
    let world = World::new(&[("in", 2), ("out", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let (a, b) = (Served::start(&world, &runtime, "a"), Served::start(&world, &runtime, "b"));
    deploy(a.node(), HOSTILE, &build_guest("tests/guests/hostile"));
    eventually("each node has a partition", || {
        let nodes =
            runtime.block_on(FleetClient::new(b.channel.clone()).nodes(proto::NodesRequest::default()));
        let nodes = nodes.expect("nodes").into_inner().nodes;
        nodes.len() == 2 && nodes.iter().all(|node| node.answered && node.tasks.len() == 1)
    });
    for partition in [0, 1] {
        produce(&world, partition, &[("k", "log 2")]);
    }
    let info = |partition, text: &str| (partition, text.to_owned());
    for node in [&a, &b] {
        eventually("the lines of both partitions", || {
            let found = logs(&runtime, &node.channel, proto::LogLevel::Unspecified);
            found == [info(0, "0"), info(0, "1"), info(1, "0"), info(1, "1")]
        });
    }
    produce(&world, 0, &[("p", "panic")]);
    eventually("what a panic says", || {
        let errors = logs(&runtime, &b.channel, proto::LogLevel::Error);
        errors.iter().any(|(partition, text)| *partition == 0 && text.contains("as told"))
    });

    let follow = proto::TailLogsRequest {
        deployment: "hostile".into(),
        level: proto::LogLevel::Info.into(),
        age_ms: 1,
        follow: true,
        ..proto::TailLogsRequest::default()
    };
    let (mut lines, mut dropped) = (vec![0; 2], 0);
    runtime.block_on(async {
        let mut answers =
            LogsClient::new(a.channel.clone()).tail(follow).await.expect("answers").into_inner();
        // A thousand lines in one call: all but a hundred are too many.
        for partition in [0, 1] {
            produce(&world, partition, &[("k", "log 1000")]);
        }
        let all = async {
            while lines.iter().sum::<usize>() + (dropped as usize) < 2_000 || lines.contains(&0) {
                let message = answers.message().await.expect("no error").expect("it goes on");
                dropped += message.dropped;
                message.lines.iter().for_each(|line| lines[line.partition as usize] += 1);
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("every line is given or counted");
    });
    assert!(lines.iter().all(|&lines| lines <= 200) && dropped >= 1_600, "{lines:?}, {dropped} dropped");

    let unknown =
        proto::TailLogsRequest { deployment: "hotsile".into(), ..proto::TailLogsRequest::default() };
    let status = runtime.block_on(LogsClient::new(a.channel.clone()).tail(unknown)).expect_err("no such");
    assert_eq!(status.code(), Code::NotFound);
    let third = proto::TailLogsRequest {
        deployment: "hostile".into(),
        partition: Some(2),
        ..proto::TailLogsRequest::default()
    };
    let status = runtime.block_on(LogsClient::new(a.channel.clone()).tail(third)).expect_err("there are two");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    let unknown = proto::NodesRequest { deployment: "hotsile".into(), local: false };
    let status = runtime.block_on(FleetClient::new(b.channel.clone()).nodes(unknown)).expect_err("no such");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    a.stop();
    b.stop();
}

#[test]
fn nodes_tell_of_positions_and_parked_keys_are_marked_in_every_answer() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let (a, b) = (Served::start(&world, &runtime, "a"), Served::start(&world, &runtime, "b"));
    deploy(a.node(), HOSTILE, &build_guest("tests/guests/hostile"));
    let rows = [("k", "put k"), ("k", "transient"), ("k", "ok"), ("m", "put m"), ("z", "transient")];
    produce(&world, 0, &rows);

    // Asked of either node; one of them has no task.
    for node in [&a, &b] {
        eventually("the nodes tell of the task, its position and what is parked", || {
            let request = proto::NodesRequest { deployment: "hostile".into(), local: false };
            let nodes = runtime.block_on(FleetClient::new(node.channel.clone()).nodes(request));
            let nodes = nodes.expect("nodes").into_inner().nodes;
            let tasks: Vec<_> = nodes.iter().flat_map(|node| &node.tasks).collect();
            let at_5 = |task: &&proto::NodeTask| task.positions.iter().any(|at| at.offset == 5);
            nodes.len() == 2
                && tasks.len() == 1
                && tasks.iter().all(|task| at_5(task) && task.parked_records == 3)
        });
        let lag = lag(&runtime, &node.channel);
        assert_eq!((lag.parked_records, lag.state()), (3, proto::TaskState::Running));
    }

    // Also while the partition moves to the node that has come last.
    let at_least = vec![proto::InputPosition { topic: "in".into(), partition: 0, offset: 5 }];
    let many = proto::GetManyStateRequest {
        deployment: "hostile".into(),
        store: "state".into(),
        keys: ["k", "m", "z", "nobody"].map(|key| key.as_bytes().to_vec()).to_vec(),
        at_least: at_least.clone(),
        ..proto::GetManyStateRequest::default()
    };
    let held = |parked: &proto::ParkedKey| {
        (parked.records, parked.offset, parked.topic.clone(), parked.kind.clone())
    };
    eventually("the attempts are used up", || {
        let mut client = StateClient::new(b.channel.clone());
        let answer = runtime.block_on(client.get_many(many.clone())).expect("answers").into_inner();
        let parked = |key: &[u8]| {
            answer.entries.iter().find(|entry| entry.key == key).expect("a value").parked.clone()
        };
        let k = parked(b"k").expect("parked");
        assert_eq!(held(&k), (2, 1, "in".into(), "transient".into()));
        assert_eq!(parked(b"m"), None);
        assert_eq!(answer.missing, [b"z".to_vec(), b"nobody".to_vec()]);
        let bare: Vec<_> = answer.parked.iter().map(|parked| (parked.key.as_slice(), held(parked))).collect();
        assert_eq!(bare, [(&b"z"[..], (1, 4, "in".into(), "transient".into()))]);
        k.held && k.attempts == 2
    });
    let twice = proto::GetManyStateRequest { keys: vec![b"k".to_vec(); 2], ..many };
    let answer =
        runtime.block_on(StateClient::new(a.channel.clone()).get_many(twice)).expect("answers").into_inner();
    assert_eq!(answer.entries.iter().map(|entry| entry.parked.is_some()).collect::<Vec<_>>(), [true, true]);
    let one = proto::GetStateRequest {
        deployment: "hostile".into(),
        store: "state".into(),
        key: b"z".to_vec(),
        at_least: at_least.clone(),
        ..proto::GetStateRequest::default()
    };
    let answer =
        runtime.block_on(StateClient::new(a.channel.clone()).get(one)).expect("answers").into_inner();
    assert_eq!((answer.entries.len(), answer.parked.len()), (0, 1));

    // A page at a time, with the key that holds nothing in its place.
    let mut scan = proto::ScanStateRequest {
        deployment: "hostile".into(),
        store: "state".into(),
        limit: 1,
        at_least,
        ..proto::ScanStateRequest::default()
    };
    let mut found = Vec::new();
    loop {
        let mut client = StateClient::new(a.channel.clone());
        let page = runtime.block_on(client.scan(scan.clone())).expect("a page").into_inner();
        let entries = page.entries.into_iter().map(|entry| (entry.key, true, entry.parked.is_some()));
        found.extend(entries.chain(page.parked.into_iter().map(|parked| (parked.key, false, true))));
        scan.page_token = page.next_page_token;
        if scan.page_token.is_empty() {
            break;
        }
    }
    let row = |key: &str, has_value, is_parked| (key.as_bytes().to_vec(), has_value, is_parked);
    assert_eq!(found, [row("k", true, true), row("m", true, false), row("z", false, true)]);
    a.stop();
    b.stop();
}
