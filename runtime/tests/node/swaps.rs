//! New versions of a running deployment: in place, at an offset that is known, each record by one version.

use std::sync::Arc;
use std::time::Duration;

use tidemill::kafka::admin::At;
use tidemill::kafka::tools::{self, Consumed, Row};
use tidemill::node::{Handle, Node};
use tidemill::telemetry::{Activity, Telemetry};
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use crate::world::{PROGRAM, World, deploy, eventually};
use crate::{WORD_COUNT, count_in};

/// Where each partition's revision began, once all have adopted the current one.
fn began(handle: &Handle) -> Option<Vec<u64>> {
    let rollout = handle.rollout("word-count").ok()?;
    let first = |task: &proto::TaskRollout| {
        let runs = task.revision == rollout.revision && task.state() == proto::TaskState::Running;
        task.first.first().filter(|_| runs).map(|at| at.offset)
    };
    rollout.tasks.iter().map(first).collect()
}

#[test]
fn a_version_is_swapped_in_place_and_says_where_it_began() {
    let mut world = World::new(&[("words", 2), ("counts", 2), ("others", 2)]);
    // Outlasts the test: whoever leaves the group and comes back would be seen as such.
    world.session = std::time::Duration::from_secs(120);
    let module = build_guest("plugins/count");
    let node = world.node();
    let handle = node.handle();
    deploy(&node, WORD_COUNT, &module);
    eventually("the first version is adopted", || began(&handle) == Some(vec![0, 0]));
    let generation = || world.admin().describe_group("local.default.word-count").expect("the group").members;
    let members = generation();
    world.produce_to("words", 0, &["a", "a"]);
    world.produce_to("words", 1, &["b"]);
    let counted = |a, b| {
        count_in(&node, "word-count", 0, "a") == Some(a) && count_in(&node, "word-count", 1, "b") == Some(b)
    };
    eventually("the first version counts", || counted(2, 1));

    // Other limits: the same producer. Other outputs: another one. Another deploy right behind: the last counts.
    deploy(&node, &format!("{WORD_COUNT}limits: {{ memory: 32MiB }}\n"), &module);
    eventually("the second is adopted", || began(&handle) == Some(vec![2, 1]));
    let elsewhere = WORD_COUNT.replace("counts", "others");
    deploy(&node, &elsewhere, &module);
    world.produce_to("words", 0, &["a"]);
    deploy(&node, &format!("{elsewhere}failures: skip\n"), &module);
    eventually("it counts on", || counted(3, 1));
    eventually("the fourth is adopted", || {
        began(&handle).is_some_and(|first| (first[0] == 2 || first[0] == 3) && first[1] == 1)
    });
    world.produce_to("words", 1, &["b"]);
    eventually("and goes on", || counted(3, 2));
    assert_eq!(generation(), members, "nobody left the group");
    node.stop();
    let ends = |topic: &str| -> u64 {
        let at = tidemill::kafka::admin::At::StableEnd;
        let offsets = world.admin().offsets(&[(topic.to_owned(), 0), (topic.to_owned(), 1)], at);
        offsets.expect("ends").iter().map(|end| end.0).sum()
    };
    assert!(ends("others") > 0, "the new output is written");

    // Killed and back, it still says where it began.
    let node = world.node();
    eventually("the fourth runs again", || {
        began(&node.handle()).is_some_and(|first| (first[0] == 2 || first[0] == 3) && first[1] == 1)
    });
    node.stop();
}

#[test]
fn a_version_may_send_the_last_count_of_each_commit_and_the_next_one_every_count() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    world.produce_to("words", 0, &["a"; 300]);
    let counts = || -> Vec<u64> {
        let text = |record: Consumed| String::from_utf8(record.value.unwrap_or_default()).expect("text");
        let records = world.committed("counts").expect("counts").into_iter();
        records.map(|record| text(record).parse().expect("a count")).collect()
    };
    let node = world.node();
    deploy(&node, &WORD_COUNT.replace("topic: counts", "topic: counts, emit: commit"), &module);
    eventually("the last count is sent", || counts().last() == Some(&300));
    let sent = counts();
    assert!(sent.len() < 300 && sent.is_sorted(), "{sent:?}");

    deploy(&node, WORD_COUNT, &module);
    eventually("the next version is adopted", || began(&node.handle()) == Some(vec![300]));
    world.produce_to("words", 0, &["a"; 300]);
    eventually("the last count is sent again", || counts().last() == Some(&600));
    assert_eq!(counts()[sent.len()..], (301..=600).collect::<Vec<u64>>());
    node.stop();
}

#[test]
fn a_handler_that_does_not_end_is_swapped_out_before_its_time_is_over() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let module = build_guest("tests/guests/hostile");
    // So much CPU time for a record that nobody waits for it here.
    let (config, telemetry) = (world.config("policy: { batch_time: 4m }\n"), Telemetry::new());
    let node =
        Node::start(config, "127.0.0.1:0".into(), PROGRAM.into(), Arc::clone(&telemetry)).expect("node");
    let document = "name: loops\nmodule: hostile.wasm\ninputs: { in: { topic: in } }\noutputs: { out: { topic: out } }\n\
                    limits: { batch_time: 4m }\n";
    deploy(&node, document, &module);
    let rows = ["ok", "loop", "ok"].map(|value| Row {
        key: Some(b"k".to_vec()),
        value: Some(value.into()),
        ..Row::default()
    });
    tools::produce(&world.kafka(), "in", rows, None, &mut |_| {}).expect("produced");
    let task = telemetry.task("loops", 0);
    task.spent.sample();
    eventually("the handler is in its loop", || {
        let parts = task.spent.recent().expect("a sample");
        parts.get(Activity::Handler) > Duration::from_secs(1)
    });
    deploy(&node, &format!("{document}config: {{ always: ok }}\n"), &module);
    let end = || world.admin().offsets(&[("out".to_owned(), 0)], At::StableEnd).expect("an end")[0].0;
    // Three records and, behind each transaction, its marker.
    eventually("the next version handles all three", || {
        node.handle().lag(Some("loops")).is_ok_and(|lags| lags.iter().all(|lag| lag.records == 0))
    });
    assert!(end() >= 3, "{} at the end", end());
    node.stop();
}
