//! A restore that waits, and what becomes of it when nobody wants its task any more.

use std::time::Duration;

use tidemill::kafka::epochs::Epochs;
use tidemill::kafka::sink::{SinkSpec, transactional};
use tidemill::node::Node;
use tidemill::ports::{ChangelogRows, End, Membership, Produce, Sink};
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually};
use crate::{WORD_COUNT, count};

/// The transaction outlasts every wait: it is not its end that ends a restore.
const FOR_EVER: Duration = Duration::from_secs(120);

/// A stranger's transaction at the end of the changelog, which stays open.
fn open_transaction(world: &World) -> Box<dyn Sink> {
    let mut kafka = world.kafka();
    kafka.limits.transaction_timeout = FOR_EVER;
    let spec = SinkSpec {
        outputs: Vec::new(),
        changelog: Some("test.word-count.changelog".into()),
        inbox: None,
        inputs: vec!["words".into()],
        batch_bytes: 1 << 20,
    };
    let mut sink = transactional(&kafka, "a-stranger", spec, Epochs::default()).expect("sink");
    let mut rows = ChangelogRows::default();
    rows.keys.push(Some("key".as_bytes()));
    rows.values.push(Some("value".as_bytes()));
    sink.begin().expect("begins");
    sink.produce(Produce::Changelog(&rows)).expect("produces");
    // Flushes, then refuses: the transaction stays open.
    sink.send_offsets(&[], &Membership::default()).expect_err("no membership");
    sink
}

fn pause(node: &Node) {
    let request = proto::PauseRequest { name: "word-count".into(), ..proto::PauseRequest::default() };
    node.handle().pause(request).expect("paused");
}

fn resume(node: &Node) {
    let request = proto::ResumeRequest { name: "word-count".into(), ..proto::ResumeRequest::default() };
    node.handle().resume(request).expect("resumed");
}

/// Of the one directory of state.
fn store_use(node: &Node) -> proto::StoreUse {
    node.handle().stores().expect("stores").directories[0].r#use()
}

#[test]
fn a_restore_that_waits_for_a_transaction_lets_go_of_the_store_when_its_deployment_stops() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));
    world.produce("words", &["a", "a"]);
    eventually("a is counted twice", || count(&node, "a") == Some(2));
    pause(&node);
    eventually("the task lets go of its store", || store_use(&node) == proto::StoreUse::Kept);

    let mut open = open_transaction(&world);
    resume(&node);
    eventually("a restore has the store", || store_use(&node) == proto::StoreUse::Open);
    pause(&node);
    eventually("it lets go of it", || store_use(&node) == proto::StoreUse::Kept);
    open.end(End::Abort).expect("it was open until now");

    resume(&node);
    world.produce("words", &["a"]);
    eventually("it counts on", || count(&node, "a") == Some(3));
    node.stop();
}
