//! What an inbox has seen, asked of any node, across versions and moves, and what it reports by itself.

use std::time::Duration;

use tidemill::kafka::tools::{self, Row};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::inbox_client::InboxClient;
use tidemill_test_support::build_guest;
use tokio::runtime::Runtime;
use tonic::Code;

use crate::queries::{Served, at_least};
use crate::world::{World, deploy, eventually, is_adopted};
use crate::{WORD_COUNT, count};

const INBOX: &str = "inbox: { id: key, ttl: 1h }\n";

fn seen(id: &str, at_least: Vec<proto::InputPosition>) -> tonic::Request<proto::GetInboxRequest> {
    let mut request = tonic::Request::new(proto::GetInboxRequest {
        deployment: "word-count".into(),
        id: id.into(),
        at_least,
        ..proto::GetInboxRequest::default()
    });
    request.set_timeout(Duration::from_secs(20));
    request
}

#[test]
fn an_inbox_says_which_record_it_saw_and_by_which_version_and_is_never_silently_empty() {
    let world = World::new(&[("words", 2), ("counts", 1)]);
    let runtime = Runtime::new().expect("a runtime");
    let (a, b) = (Served::start(&world, &runtime, "a"), Served::start(&world, &runtime, "b"));
    let module = build_guest("plugins/count");
    deploy(a.node(), WORD_COUNT, &module);
    let mut client = InboxClient::new(a.channel.clone());
    // A position that everybody is at: the call waits until the tasks are somebody's.
    let none = runtime.block_on(client.get(seen("k1", at_least(0, 0)))).expect_err("it has no inbox");
    assert_eq!(none.code(), Code::FailedPrecondition, "{none}");

    deploy(a.node(), &format!("{WORD_COUNT}{INBOX}"), &module);
    let adopted = || is_adopted(&a.node().handle(), "word-count");
    eventually("the second is adopted", adopted);
    let ask = |served: &Served<'_>, id: &str, next: u64| {
        let mut client = InboxClient::new(served.channel.clone());
        let answer = runtime.block_on(client.get(seen(id, at_least(1, next)))).expect("answers").into_inner();
        assert_eq!(answer.read_at.len(), 2, "both partitions were asked");
        answer.entries
    };
    let next = world.produce_to("words", 1, &["k1", "k2", "k1"]);
    // Through either node: one of them has the partition.
    for served in [&a, &b] {
        let [entry] = &ask(served, "k2", next)[..] else { panic!("one entry") };
        assert_eq!((entry.partition, entry.topic.as_str(), entry.offset), (1, "words", 1));
        assert_eq!((entry.version, entry.expired), (2, false));
        assert_eq!(entry.expires_at_ms, entry.seen_at_ms + 3_600_000);
        assert_eq!(ask(served, "k1", next)[0].offset, 0, "the first of the two");
        assert_eq!(ask(served, "k3", next), []);
    }
    deploy(b.node(), &format!("{WORD_COUNT}{INBOX}limits: {{ batch_records: 7 }}\n"), &module);
    eventually("the third is adopted", adopted);
    let next = world.produce_to("words", 1, &["k3", "k2"]);
    assert_eq!((ask(&a, "k3", next)[0].version, ask(&a, "k2", next)[0].version), (3, 2));

    // Refused naming the owner, not answered with nothing.
    let owner = {
        let mut client = InboxClient::new(a.channel.clone());
        let answer = runtime.block_on(client.get(seen("k3", at_least(1, next)))).expect("answers");
        answer.into_inner().read_at.iter().find(|at| at.partition == 1).expect("read").node.clone()
    };
    let mut other = InboxClient::new(if owner == "a" { b.channel.clone() } else { a.channel.clone() });
    let mut local = seen("k3", Vec::new());
    (local.get_mut().partition, local.get_mut().local) = (Some(1), true);
    let status = runtime.block_on(other.get(local)).expect_err("not here");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let status = runtime.block_on(other.get(seen("", Vec::new()))).expect_err("no id");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    a.stop();
    b.stop();
}

#[test]
fn whoever_deploys_an_inbox_that_forgets_before_its_input_does_is_told_however_often_they_ask() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    let (handle, module) = (node.handle(), build_guest("plugins/count").to_vec());
    let ask = |document: &str, dry_run: bool| {
        let header =
            proto::DeployHeader { document: document.into(), dry_run, ..proto::DeployHeader::default() };
        handle.deploy(header, module.clone()).expect("deployed")
    };
    let tells = |warnings: &[String]| {
        let said = "inbox.ttl: words keeps records 168h, the inbox their ids 1h: ";
        warnings.len() == 1 && warnings[0].starts_with(said)
    };
    assert!(ask(WORD_COUNT, false).warnings.is_empty());
    let forgets = format!("{WORD_COUNT}{INBOX}");
    for (dry_run, unchanged) in [(true, false), (false, false), (false, true)] {
        let answer = ask(&forgets, dry_run);
        assert!(answer.unchanged == unchanged && tells(&answer.warnings), "{answer:?}");
    }
    ask(&format!("{forgets}limits: {{ batch_records: 7 }}\n"), false);
    let back = proto::RollbackRequest {
        name: "word-count".into(),
        dry_run: true,
        ..proto::RollbackRequest::default()
    };
    let back = handle.rollback(back).expect("planned");
    assert!(tells(&back.warnings), "{back:?}");
    node.stop();
}

/// Of one key: its records have these numbers.
fn number(world: &World, numbers: &[&str]) {
    let rows = numbers.iter().map(|number| Row {
        key: Some(b"k".to_vec()),
        value: Some(Vec::new()),
        headers: vec![("n".into(), Some(number.as_bytes().to_vec()))],
        ..Row::default()
    });
    tools::produce(&world.kafka(), "words", rows, None, &mut |_| {}).expect("produced");
}

#[test]
fn a_gap_in_a_sequence_is_reported_where_operators_look_also_when_it_spans_a_restart() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    let document = format!("{WORD_COUNT}inbox: {{ sequence: \"header:n\", ttl: 1h }}\n");
    deploy(&node, &document, &build_guest("plugins/count"));
    number(&world, &["1", "2"]);
    eventually("both are handled", || count(&node, "k") == Some(2));
    node.stop();

    let node = world.node();
    number(&world, &["5", "4"]);
    eventually("they are handled like any others", || count(&node, "k") == Some(4));
    let (lines, _) = node.handle().handler_log("word-count").expect("deployed").kept(10, |_| true);
    let [line] = &lines[..] else { panic!("one line, and the other is held back: {lines:?}") };
    assert!(line.text.starts_with("record words/0 at offset "), "{line:?}");
    assert!(line.text.contains("its key k: numbers are missing before it; expected 3, found 5"), "{line:?}");
    node.stop();
}
