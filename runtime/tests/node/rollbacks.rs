//! Versions that fail: taken back by the nodes themselves, with every record handled once and in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tidemill::kafka::tools::{self, Row};
use tidemill::node::{Handle, Node};
use tidemill_proto::v1 as proto;
use tidemill_sink::{HttpSink, Mode};
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually, is_adopted};

const KEYS: u64 = 100;
/// Records a second of a [`Feed`]: many times what the version handles that does not keep up with it.
const FEED_RATE: f64 = 800.0;
/// As many as come in two minutes. Whoever waits for longer has failed.
const FEED_MAX: u64 = 96_000;

/// A chain of every key's records, which fails so many of a hundred.
fn document(fails: u64, then: &str) -> String {
    format!(
        "name: chain\nmodule: chain.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs: {{ out: {{ topic: out }} }}\n\
         config: {{ fails: {fails} }}\nfailures: {{ then: {then} }}\n"
    )
}

/// The record with this number, round the keys: the value says which of its key it is.
fn row(number: u64) -> Row {
    let (key, sequence) = (number % KEYS, number / KEYS);
    Row {
        key: Some(format!("k{key}").into_bytes()),
        value: Some(format!("k{key},{sequence}").into_bytes()),
        ..Row::default()
    }
}

/// Records `from..to` of all.
fn produce(world: &World, from: u64, to: u64) {
    tools::produce(&world.kafka(), "in", (from..to).map(row), None, &mut |_| {}).expect("produced");
}

/// Records that go on coming until it is ended, by one producer: a new one sends nothing for half a second, and longer
/// on a busy machine, so that not every look at a lag would find more of them.
struct Feed {
    over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Feed {
    fn start(world: &World, from: u64) -> Feed {
        let (kafka, over) = (world.kafka(), Arc::new(AtomicBool::new(false)));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let rows = (from..from + FEED_MAX).take_while(|_| !ends.load(Ordering::Relaxed)).map(row);
            let produced = tools::produce(&kafka, "in", rows, Some(FEED_RATE), &mut |_| {});
            from + produced.expect("produced").count
        });
        Feed { over, thread }
    }

    /// Answers the number of the next record.
    fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the feed does not panic")
    }
}

/// Every key's sequences, in the order that they came out.
fn handled(world: &World) -> BTreeMap<String, Vec<u64>> {
    let mut handled: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for value in world.committed("out").expect("read").into_iter().filter_map(|record| record.value) {
        let value = String::from_utf8(value).expect("text");
        let parts: Vec<&str> = value.split(',').collect();
        let (sequence, count) = (parts[1].parse().expect("a number"), parts[2].parse::<u64>());
        assert_eq!(count.ok(), Some(sequence + 1), "{value} was handled upon another state");
        handled.entry(parts[0].to_owned()).or_default().push(sequence);
    }
    handled
}

fn records(world: &World) -> usize {
    handled(world).values().map(Vec::len).sum()
}

/// Of each version, the newest first: what it took up, whether by itself.
fn versions(handle: &Handle) -> Vec<(u64, bool)> {
    let versions = handle.history("chain").expect("history").versions;
    versions.iter().map(|version| (version.rollback_to, version.automatic)).collect()
}

fn in_order_and_once(world: &World, of_each: u64) {
    let handled = handled(world);
    assert_eq!(handled.len() as u64, KEYS);
    for (key, sequences) in handled {
        assert!(sequences.iter().copied().eq(0..of_each), "{key}: {sequences:?}");
    }
}

#[test]
fn a_version_that_fails_six_of_a_hundred_is_taken_back_by_one_of_two_nodes() {
    let world = World::new(&[("in", 2), ("out", 2)]);
    let module = build_guest("tests/guests/chain");
    let nodes = [world.member("a", "127.0.0.1:1"), world.member("b", "127.0.0.1:2")];
    let handle = nodes[0].handle();
    deploy(&nodes[0], &document(0, "park"), &module);
    produce(&world, 0, 2_000);
    eventually("the first version handles all", || records(&world) == 2_000);
    eventually("both nodes have a task", || {
        nodes.iter().all(|node| node.handle().deployment("chain").is_ok_and(|chain| chain.tasks.len() == 1))
    });

    deploy(&nodes[0], &document(6, "park"), &module);
    eventually("the second is adopted", || is_adopted(&handle, "chain"));
    let began = Instant::now();
    produce(&world, 2_000, 6_000);
    eventually("it is rolled back", || versions(&handle).len() == 3);
    println!("rolled back {:.1?} after its first record was sent", began.elapsed());
    produce(&world, 6_000, 8_000);
    eventually("every record is handled, what had failed included", || records(&world) == 8_000);
    in_order_and_once(&world, 8_000 / KEYS);

    assert_eq!(versions(&handle), [(1, true), (0, false), (0, false)], "by one of them, once");
    let taken_back = &handle.history("chain").expect("history").versions[0];
    assert!(["a", "b"].contains(&taken_back.author.as_str()), "{taken_back:?}");
    assert!(taken_back.reason.contains("records failed (") && taken_back.reason.contains("allowed are 5%"));
    let shown = handle.deployment("chain").expect("deployed").rolled_back;
    assert!(shown.starts_with("version 2 failed and was rolled back: "), "{shown}");
    nodes.into_iter().for_each(Node::stop);
}

#[test]
fn a_record_that_halts_a_version_is_tried_again_by_the_one_before() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let module = build_guest("tests/guests/chain");
    let node = world.node();
    let handle = node.handle();
    deploy(&node, &document(0, "halt"), &module);
    produce(&world, 0, 500);
    eventually("the first version handles all", || records(&world) == 500);
    deploy(&node, &document(1, "halt"), &module);
    eventually("the second is adopted", || is_adopted(&handle, "chain"));
    let began = Instant::now();
    produce(&world, 500, 1_000);
    eventually("it is rolled back", || versions(&handle).len() == 3);
    println!("rolled back {:.1?} after its first record was sent", began.elapsed());
    eventually("the record that halted it is handled", || records(&world) == 1_000);
    in_order_and_once(&world, 1_000 / KEYS);
    let reason = handle.history("chain").expect("history").versions.remove(0).reason;
    assert!(reason.starts_with("task 0 halted: record in/0 at offset "), "{reason}");
    eventually("the rollback runs, and is not on trial", || {
        handle.rollout("chain").is_ok_and(|rollout| {
            let state = rollout.deployment.map(|deployment| deployment.state());
            state == Some(proto::DeploymentState::Running) && rollout.trial.is_some_and(|trial| !trial.open)
        })
    });
    node.stop();
}

/// Its lag grows continuously.
#[test]
fn a_version_that_does_not_keep_up_is_taken_back_and_the_one_before_catches_up() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let module = build_guest("tests/guests/chain");
    let node = world.node();
    let handle = node.handle();
    // So many million steps take it some 50 ms a record. The watch begins with the end of its first call: one with all
    // that came while it was adopted would last a second or more, and leave it further behind than it may begin, which is
    // a tenth of where it ends, and so what comes in two seconds.
    let document = |spin: u64| {
        format!(
            "name: chain\nmodule: chain.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs: {{ out: {{ topic: out }} }}\n\
             config: {{ spin: {spin} }}\nlimits: {{ batch_records: 2 }}\nrollout: {{ watch: 20s, lag: true }}\n"
        )
    };
    deploy(&node, &document(0), &module);
    produce(&world, 0, KEYS);
    eventually("the first version handles all", || records(&world) as u64 == KEYS);

    // They come before its watch begins, so that from the first look on each finds it further behind; and not with
    // what a producer has gathered before it sends at all, which the version before would leave it.
    let feed = Feed::start(&world, KEYS);
    eventually("the first handles more of them", || records(&world) as u64 > KEYS);
    deploy(&node, &document(50), &module);
    eventually("the second is adopted", || is_adopted(&handle, "chain"));
    eventually("it is rolled back, while records go on coming", || versions(&handle).len() == 3);
    let sent = feed.end();
    let all = sent.next_multiple_of(KEYS);
    produce(&world, sent, all);
    eventually("the version before has caught up", || records(&world) as u64 == all);
    in_order_and_once(&world, all / KEYS);

    assert_eq!(versions(&handle), [(1, true), (0, false), (0, false)]);
    let reason = handle.history("chain").expect("history").versions.remove(0).reason;
    let grew = "its lag grew throughout the 20s that it was watched, from ";
    assert!(reason.starts_with(grew) && reason.ends_with(" records"), "{reason}");
    let shown = handle.deployment("chain").expect("deployed").rolled_back;
    assert_eq!(shown, format!("version 2 failed and was rolled back: {reason}"));
    node.stop();
}

/// A handler that is told the same with every record, and what it may have of memory.
fn hog(command: &str) -> String {
    format!(
        "name: chain\nmodule: hostile.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs: {{ out: {{ topic: out }} }}\n\
         config: {{ always: {command} }}\nlimits: {{ memory: 16MiB }}\nfailures: {{ then: park }}\n"
    )
}

/// That needs no rule of its own, because whoever dies of the limit fails the record.
#[test]
fn a_version_that_needs_more_memory_than_its_limit_is_taken_back() {
    let world = World::new(&[("in", 1), ("out", 1)]);
    let module = build_guest("tests/guests/hostile");
    let node = world.node();
    let handle = node.handle();
    let came_out = |count: usize| {
        let records = world.committed("out").expect("read");
        records.len() == count && records.iter().all(|record| record.value.as_deref() == Some(&b"ok"[..]))
    };
    deploy(&node, &hog("ok"), &module);
    produce(&world, 0, 10);
    eventually("the first version handles all", || came_out(10));

    deploy(&node, &hog("bomb"), &module);
    eventually("the second is adopted", || is_adopted(&handle, "chain"));
    produce(&world, 10, 20);
    eventually("it is rolled back", || versions(&handle).len() == 3);
    let reason = handle.history("chain").expect("history").versions.remove(0).reason;
    assert!(reason.starts_with("every one of the first 10 records failed, such as record in/0"), "{reason}");
    assert!(reason.contains("limit: memory: ") && reason.contains("16777216 allowed"), "{reason}");
    eventually("the version before handles what had failed", || came_out(20));
    node.stop();
}

/// A webhook with this address, whose breaker opens at the third failure in a row.
fn hook(url: &str) -> String {
    format!(
        "name: hook\nmodule: hostile.wasm\ninputs: {{ in: {{ topic: in }} }}\noutputs:\n  out:\n    http: {{ url: '{url}' }}\n    \
         timeout: 1s\n    retry: 20ms..100ms\n    breaker: {{ failures: 3, open: 200ms }}\n"
    )
}

fn produce_hooks(world: &World, count: usize) {
    let row = || Row { key: Some(b"k".to_vec()), value: Some(b"ok".to_vec()), ..Row::default() };
    tools::produce(&world.kafka(), "in", (0..count).map(|_| row()), None, &mut |_| {}).expect("produced");
}

#[test]
fn a_version_that_sends_to_a_wrong_address_is_taken_back_and_its_rows_go_to_the_right_one() {
    let world = World::new(&[("in", 1)]);
    let module = build_guest("tests/guests/hostile");
    let sink = HttpSink::start();
    let node = world.node();
    let history = || node.handle().history("hook").expect("history").versions;
    // The first version: whatever becomes of what it sends, there is nothing to go back to.
    deploy(&node, &hook(&sink.url()), &module);
    produce_hooks(&world, 1);
    eventually("it is delivered", || sink.count() > 0);

    deploy(&node, &hook("http://127.0.0.1:1/nobody"), &module);
    eventually("the second is adopted", || is_adopted(&node.handle(), "hook"));
    produce_hooks(&world, 3);
    eventually("it is rolled back", || history().len() == 3);
    let reason = history().remove(0).reason;
    assert!(reason.starts_with("the circuit breaker of output out opened: "), "{reason}");
    eventually("its rows are delivered by the version before", || sink.applied_once().len() == 4);

    // A receiver that was in trouble before a version is not that version's fault.
    sink.set(Mode::Status(503));
    produce_hooks(&world, 1);
    let is_open = || {
        let request = proto::ListOutboxRequest { deployment: "hook".into(), ..Default::default() };
        let answer = node.handle().outbox_list(&request);
        answer
            .is_ok_and(|answer| answer.outboxes.iter().any(|one| one.breaker() == proto::BreakerState::Open))
    };
    eventually("the breaker opens", is_open);
    deploy(&node, &format!("{}limits: {{ memory: 32MiB }}\n", hook(&sink.url())), &module);
    let before = sink.count();
    produce_hooks(&world, 1);
    eventually("the next version tries again and again", || sink.count() > before + 6);
    assert_eq!(history().len(), 4, "{:?}", history().first());
    sink.set(Mode::Accept);
    eventually("all of it is delivered", || sink.applied_once().len() == 6);
    node.stop();
}
