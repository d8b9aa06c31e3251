//! Offset reset: refused while it runs, and then a new life that begins where it is told.

use tidemill::kafka::tools::{self, Row};
use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::{ControlError, Node};
use tidemill::record::Offset;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::reset_request::To;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually};
use crate::{WORD_COUNT, count};

const COPY: &str = "\
name: copy
module: filter.wasm
inputs: { in: { topic: words, start: latest } }
outputs: { out: { topic: copies } }
config: { keep: [{ exists: true }] }
";

fn reset(node: &Node, name: &str, to: To) -> Result<proto::ResetResponse, ControlError> {
    let request = proto::ResetRequest { name: name.into(), to: Some(to), ..proto::ResetRequest::default() };
    node.handle().reset(request)
}

fn pause(node: &Node, name: &str) {
    let request = proto::PauseRequest { name: name.into(), ..proto::PauseRequest::default() };
    node.handle().pause(request).expect("paused");
}

fn resume(node: &Node, name: &str) {
    let request = proto::ResumeRequest { name: name.into(), ..proto::ResumeRequest::default() };
    node.handle().resume(request).expect("resumed");
}

/// As soon as its members have left.
fn reset_when_stopped(node: &Node, name: &str, to: To) -> proto::ResetResponse {
    let mut answer = None;
    eventually("its group is empty", || {
        answer = match reset(node, name, to) {
            Ok(answer) => Some(answer),
            Err(ControlError::Precondition(reason)) if reason.contains("still has members") => None,
            Err(error) => panic!("{error}"),
        };
        answer.is_some()
    });
    answer.expect("an answer")
}

#[test]
fn a_deployment_with_state_goes_back_to_the_beginning_without_it_and_nowhere_else() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));
    world.produce("words", &["a", "b", "a"]);
    eventually("a is counted twice", || count(&node, "a") == Some(2));

    let running = reset(&node, "word-count", To::Earliest(true)).expect_err("it runs").to_string();
    assert!(running.contains("tidemill pause word-count"), "{running}");
    pause(&node, "word-count");
    for to in [To::Latest(true), To::Offset(1), To::TimestampMs(0)] {
        let refused = reset(&node, "word-count", to).expect_err("it has state").to_string();
        assert!(refused.contains("fresh name"), "{refused}");
    }
    let done = reset_when_stopped(&node, "word-count", To::Earliest(true));
    assert!(done.wipes_state);
    assert_eq!((done.from[0].offset, done.to[0].offset), (3, 0));
    resume(&node, "word-count");
    eventually("a is counted anew", || count(&node, "a") == Some(2));
    world.produce("words", &["a"]);
    eventually("and further", || count(&node, "a") == Some(3));
    node.stop();
    let lives = std::fs::read_dir(world.dir.path().join("node-n/stores/word-count")).expect("a directory");
    assert!(lives.count() >= 1);
}

#[test]
fn a_deployment_without_state_begins_at_any_offset_that_is_there() {
    let world = World::new(&[("words", 1), ("copies", 1)]);
    let node = world.node();
    world.produce("words", &["a", "b", "c"]);
    deploy(&node, COPY, &build_guest("plugins/filter"));
    eventually("it runs", || crate::world::status(&node, "copy").0 == proto::DeploymentState::Running);
    assert!(world.latest("copies").is_empty(), "it began at the end");
    pause(&node, "copy");
    let outside = reset(&node, "copy", To::Offset(4)).expect_err("beyond the end").to_string();
    assert!(outside.contains("words/0 holds 0 to 3, not 4"), "{outside}");
    let done = reset_when_stopped(&node, "copy", To::Offset(1));
    assert!(!done.wipes_state && done.to[0].offset == 1);
    resume(&node, "copy");
    eventually("b and c are copied", || world.latest("copies").len() == 2);
    assert!(!world.latest("copies").contains_key("a"));
    node.stop();
}

/// The inbox is kept, so going back has no second effect; and no further back than it remembers.
#[test]
fn a_deployment_with_an_inbox_alone_keeps_it_and_goes_back_no_further_than_its_ttl() {
    let world = World::new(&[("words", 1), ("copies", 1)]);
    let node = world.node();
    let now_ms = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as i64;
    // A clock of two hours ago, and then one of today.
    let row = |key: &str, timestamp_ms: i64| Row {
        key: Some(key.as_bytes().to_vec()),
        value: Some(Vec::new()),
        timestamp_ms: Some(timestamp_ms),
        ..Row::default()
    };
    let rows = [row("old", now_ms - 7_200_000), row("a", now_ms), row("b", now_ms)];
    tools::produce(&world.kafka(), "words", rows, None, &mut |_| {}).expect("produced");
    let inbox = "inbox: { id: key, ttl: 1h }\n";
    deploy(&node, &format!("{}{inbox}", COPY.replace("latest", "earliest")), &build_guest("plugins/filter"));
    eventually("all are copied", || world.latest("copies").len() == 3);
    pause(&node, "copy");
    let refused = reset(&node, "copy", To::Earliest(true)).expect_err("too old").to_string();
    assert!(
        refused.contains("older than the inbox remembers (ttl 1h)") && refused.contains("go back to 1"),
        "{refused}"
    );
    let done = reset_when_stopped(&node, "copy", To::Offset(1));
    assert!(!done.wipes_state && done.from[0].offset > 1);
    resume(&node, "copy");
    world.produce("words", &["c"]);
    eventually("the new one is copied", || world.latest("copies").contains_key("c"));
    node.stop();
    let mut copies = 0;
    let log = TopicLog::open(&world.kafka(), "copies").expect("log");
    log.tail(Offset(0)).expect("tail").read_to_end(&mut |_| copies += 1).expect("read");
    assert_eq!(copies, 4, "old, a, b and c, each once");
}
