//! Offset reset: refused while it runs, and then a new life that begins where it is told.

use prost::Message;
use tidemill::kafka::tools::{self, Row};
use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::{ControlError, Node};
use tidemill::record::Offset;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;
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

fn asked(name: &str, to: To) -> proto::ResetRequest {
    proto::ResetRequest { name: name.into(), to: Some(to), ..proto::ResetRequest::default() }
}

fn reset(node: &Node, name: &str, to: To) -> Result<proto::ResetResponse, ControlError> {
    node.handle().reset(asked(name, to))
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
fn when_stopped(node: &Node, request: &proto::ResetRequest) -> Result<proto::ResetResponse, ControlError> {
    let mut answer = None;
    eventually("its group is empty", || {
        answer = match node.handle().reset(request.clone()) {
            Err(ControlError::Precondition(reason)) if reason.contains("still has members") => None,
            answer => Some(answer),
        };
        answer.is_some()
    });
    answer.expect("an answer")
}

fn reset_when_stopped(node: &Node, name: &str, to: To) -> proto::ResetResponse {
    when_stopped(node, &asked(name, to)).unwrap_or_else(|error| panic!("{error}"))
}

fn now_ms() -> i64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as i64
}

fn row(key: &str, timestamp_ms: i64) -> Row {
    Row {
        key: Some(key.as_bytes().to_vec()),
        value: Some(Vec::new()),
        timestamp_ms: Some(timestamp_ms),
        ..Row::default()
    }
}

fn produce(world: &World, rows: impl IntoIterator<Item = Row>) {
    tools::produce(&world.kafka(), "words", rows, None, &mut |_| {}).expect("produced");
}

/// The keys of everything that was copied, in its order.
fn copies(world: &World) -> String {
    let mut keys = Vec::new();
    let log = TopicLog::open(&world.kafka(), "copies").expect("log");
    log.tail(Offset(0))
        .expect("tail")
        .read_to_end(&mut |record| keys.push(String::from_utf8(record.key).expect("text")))
        .expect("read");
    keys.join(" ")
}

/// Names of directories, one for each life that has state here.
fn lives(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.dir.path().join("node-n/stores/word-count"));
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.map(|name| name.into_string().expect("text")).collect()
}

#[test]
fn a_deployment_with_state_goes_back_to_the_beginning_without_it_and_nowhere_else() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));
    world.produce("words", &["a", "b", "a"]);
    eventually("a is counted twice", || count(&node, "a") == Some(2));
    let old = lives(&world);
    assert_eq!(old.len(), 1, "{old:?}");

    let running = reset(&node, "word-count", To::Earliest(true)).expect_err("it runs").to_string();
    assert!(running.contains("tidemill pause word-count"), "{running}");
    pause(&node, "word-count");
    for to in [To::Earliest(false), To::Latest(false)] {
        let nowhere = reset(&node, "word-count", to).expect_err("it says nothing");
        assert!(matches!(nowhere, ControlError::Invalid(_)), "{nowhere}");
    }
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
    eventually("the state of the old life is gone", || !lives(&world).contains(&old[0]));
    node.stop();
    assert_eq!(lives(&world).len(), 1, "that of the new one is there");
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

#[test]
fn a_deployment_without_state_begins_at_a_time_or_at_the_end_and_loses_nothing_unasked() {
    let world = World::new(&[("words", 1), ("copies", 1)]);
    let node = world.node();
    let minute_ms = now_ms() - 60_000;
    produce(
        &world,
        [row("a", minute_ms + 10_000), row("b", minute_ms + 20_000), row("c", minute_ms + 30_000)],
    );
    deploy(&node, &COPY.replace("latest", "earliest"), &build_guest("plugins/filter"));
    eventually("all are copied", || copies(&world) == "a b c");
    pause(&node, "copy");
    let done = reset_when_stopped(&node, "copy", To::TimestampMs(minute_ms + 15_000));
    assert_eq!((done.from[0].offset, done.to[0].offset, done.skipped), (3, 1, 0));
    resume(&node, "copy");
    eventually("it goes on at that time", || copies(&world) == "a b c b c");

    pause(&node, "copy");
    produce(&world, [row("d", minute_ms + 40_000), row("e", minute_ms + 50_000)]);
    let end = asked("copy", To::Latest(true));
    let plan = node.handle().reset(proto::ResetRequest { dry_run: true, ..end.clone() }).expect("a plan");
    assert_eq!((plan.to[0].offset, plan.skipped), (5, 2));
    for to in [To::Latest(true), To::Offset(5), To::TimestampMs(minute_ms + 55_000)] {
        let refused = when_stopped(&node, &asked("copy", to)).expect_err("two are lost").to_string();
        assert!(refused.starts_with("2 records") && refused.contains("--accept-loss"), "{refused}");
    }
    let done = when_stopped(&node, &proto::ResetRequest { accept_loss: true, ..end.clone() });
    let done = done.expect("the loss is accepted");
    assert_eq!((done.from[0].offset, done.to[0].offset, done.skipped), (3, 5, 2));
    // The new life stands at the end and has committed nothing: there is nothing to lose.
    assert_eq!(when_stopped(&node, &end).expect("no loss").skipped, 0);
    resume(&node, "copy");
    produce(&world, [row("f", minute_ms + 60_000)]);
    eventually("it goes on at the end", || copies(&world) == "a b c b c f");
    node.stop();
}

/// The inbox is kept, so going back has no second effect; and no further back than it remembers.
#[test]
fn a_deployment_with_an_inbox_alone_keeps_it_and_goes_back_no_further_than_its_ttl() {
    let world = World::new(&[("words", 1), ("copies", 1)]);
    let node = world.node();
    let now_ms = now_ms();
    // From two hours ago; from so long ago that an inbox whose horizon is a minute ahead may have forgotten it;
    // and from now.
    let (old, edge) = (row("old", now_ms - 7_200_000), row("edge", now_ms - 3_600_000 + 55_000));
    produce(&world, [old, edge, row("a", now_ms), row("b", now_ms)]);
    let inbox = "inbox: { id: key, ttl: 1h }\n";
    deploy(&node, &format!("{}{inbox}", COPY.replace("latest", "earliest")), &build_guest("plugins/filter"));
    eventually("all are copied", || world.latest("copies").len() == 4);
    pause(&node, "copy");
    let refused = reset(&node, "copy", To::Earliest(true)).expect_err("too old").to_string();
    assert!(
        refused.contains("older than the inbox remembers (ttl 1h)") && refused.contains("go back to 2"),
        "{refused}"
    );
    let done = reset_when_stopped(&node, "copy", To::Offset(2));
    assert!(!done.wipes_state && done.from[0].offset > 2);
    // The new life has handled nothing, and the inbox no more of what the old one has.
    let refused = reset(&node, "copy", To::Earliest(true)).expect_err("still too old").to_string();
    assert!(refused.contains("go back to 2"), "{refused}");
    resume(&node, "copy");
    world.produce("words", &["c"]);
    eventually("the new one is copied", || world.latest("copies").contains_key("c"));
    node.stop();
    assert_eq!(copies(&world), "old edge a b c", "each once");
}

/// Its rows go with the changelog of a life, and the inbox would keep their records from being handled again.
#[test]
fn a_deployment_with_an_outbox_beside_its_inbox_goes_back_to_the_beginning_and_nowhere_else() {
    let world = World::new(&[("words", 1)]);
    let node = world.node();
    let hook = COPY.replace("{ topic: copies }", "{ http: { url: 'http://127.0.0.1:1/' } }");
    let document = format!("{hook}inbox: {{ id: key, ttl: 1h }}\n");
    deploy(&node, &document, &build_guest("plugins/filter"));
    for to in [To::Latest(true), To::Offset(0), To::TimestampMs(0)] {
        let refused = reset(&node, "copy", to).expect_err("it has an outbox").to_string();
        assert!(refused.contains("fresh name"), "{refused}");
    }
    let beginning = proto::ResetRequest { dry_run: true, ..asked("copy", To::Earliest(true)) };
    assert!(node.handle().reset(beginning).expect("a plan").wipes_state);
    node.stop();
}

/// What the first version could not deliver lies in the changelog, which goes with the life; the second has no outbox.
#[test]
fn a_deployment_whose_earlier_version_had_an_outbox_goes_back_to_the_beginning_and_nowhere_else() {
    let world = World::new(&[("words", 1), ("copies", 1)]);
    let node = world.node();
    let module = build_guest("plugins/filter");
    let second = COPY.replace("latest", "earliest");
    let first = second.replace("{ topic: copies }", "{ http: { url: 'http://127.0.0.1:1/' } }");
    deploy(&node, &first, &module);
    world.produce("words", &["a"]);
    let listed = proto::ListOutboxRequest {
        deployment: "copy".into(),
        partition: Some(0),
        ..proto::ListOutboxRequest::default()
    };
    eventually("its row waits for a receiver", || {
        node.handle().outbox_list(&listed).is_ok_and(|answer| answer.outboxes.iter().any(|one| one.rows == 1))
    });
    deploy(&node, &second, &module);
    for to in [To::Latest(true), To::Offset(0), To::TimestampMs(0)] {
        let refused = reset(&node, "copy", to).expect_err("a row is undelivered").to_string();
        assert!(
            refused.contains("of an earlier version of copy") && refused.contains("fresh name"),
            "{refused}"
        );
    }
    pause(&node, "copy");
    assert!(reset_when_stopped(&node, "copy", To::Earliest(true)).wipes_state);
    // The row has gone with its life: the next one keeps nothing, and goes anywhere.
    let end = proto::ResetRequest { dry_run: true, ..asked("copy", To::Latest(true)) };
    assert!(!node.handle().reset(end).expect("a plan").wipes_state);
    node.stop();
}

/// Of one whose node ended between its two halves: the new life is in the registry, the old one still in Kafka.
#[test]
fn a_dry_run_says_that_an_interrupted_reset_is_completed_and_leaves_that_to_the_next_one() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));
    world.produce("words", &["a", "a"]);
    eventually("a is counted twice", || count(&node, "a") == Some(2));
    pause(&node, "word-count");
    let reset = proto::ResetEntry {
        name: "word-count".into(),
        expected_revision: node.handle().deployment("word-count").expect("it is deployed").revision,
        incarnation: "interrupted".into(),
        partitions: 1,
        ..proto::ResetEntry::default()
    };
    let entry = proto::ControlEntry { entry: Some(Entry::Reset(reset)), ..proto::ControlEntry::default() };
    let control = TopicLog::open(&world.kafka(), "_test.control").expect("the control topic");
    control.append(None, Some(&entry.encode_to_vec())).expect("appended");

    let admin = world.admin();
    let group = || admin.groups().expect("groups").contains(&"local.default.word-count".to_owned());
    let changelog = || admin.topics().expect("topics").contains_key("test.word-count.changelog");
    let dry_run = proto::ResetRequest { dry_run: true, ..asked("word-count", To::Earliest(true)) };
    let plan = node.handle().reset(dry_run).expect("a plan");
    assert!(plan.completes && plan.wipes_state && plan.from.is_empty(), "{plan:?}");
    assert!(group() && changelog(), "it is a plan");
    let early = proto::ResumeRequest { name: "word-count".into(), ..proto::ResumeRequest::default() };
    assert!(node.handle().resume(early).is_err(), "the old life is still there");

    assert!(reset_when_stopped(&node, "word-count", To::Earliest(true)).completes);
    assert!(!group() && !changelog());
    let plan = proto::ResetRequest { dry_run: true, ..asked("word-count", To::Earliest(true)) };
    assert!(!node.handle().reset(plan).expect("a plan").completes);
    resume(&node, "word-count");
    eventually("a is counted anew", || count(&node, "a") == Some(2));
    node.stop();
}
