//! A deployment that is given fewer workers: what the surplus ones held is free at once.

use std::time::{Duration, Instant};

use tidemill::effects::Emissions;
use tidemill::kafka::admin::At;
use tidemill::kafka::consumer::{Consumer, ConsumerSpec};
use tidemill::kafka::epochs::Epochs;
use tidemill::kafka::sink::{SinkSpec, transactional};
use tidemill::ports::{Group, Membership, Produce, Source};
use tidemill::record::Column;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually};
use crate::{WORD_COUNT, count_in};

/// Sessions and transactions outlast every wait: what ends them is not time.
const FOR_EVER: Duration = Duration::from_secs(120);
const GROUP: &str = "local.default.word-count";

fn members(world: &World) -> Vec<String> {
    let group = world.admin().describe_group(GROUP).expect("the group");
    let mut members: Vec<_> = group.members.into_iter().filter_map(|member| member.instance_id).collect();
    members.sort();
    members
}

#[test]
fn workers_that_a_new_revision_does_without_leave_their_partitions_at_once() {
    let mut world = World::new(&[("words", 2), ("counts", 1)]);
    world.session = FOR_EVER;
    let module = build_guest("plugins/count");
    let node = world.node();
    deploy(&node, &format!("{WORD_COUNT}workers: 2\n"), &module);
    eventually("both are members", || members(&world) == ["n-0", "n-1"]);
    deploy(&node, &format!("{WORD_COUNT}workers: 1\n"), &module);
    world.produce_to("words", 0, &["a"]);
    world.produce_to("words", 1, &["b"]);
    eventually("one counts for both", || {
        count_in(&node, "word-count", 0, "a") == Some(1) && count_in(&node, "word-count", 1, "b") == Some(1)
    });
    assert_eq!(members(&world), ["n-0"]);
    node.stop();
}

#[test]
fn what_a_killed_surplus_worker_left_open_ends_with_the_next_start() {
    let mut world = World::new(&[("words", 2), ("counts", 1)]);
    world.session = FOR_EVER;
    let node = world.node_with("defaults: { workers: 2 }\n");
    deploy(&node, WORD_COUNT, &build_guest("plugins/count"));
    eventually("both are members", || members(&world) == ["n-0", "n-1"]);
    node.stop();
    leave_as_if_killed(&world);
    assert_eq!(members(&world), ["n-1"]);

    let node = world.node_with("defaults: { workers: 1 }\n");
    world.produce_to("words", 0, &["a"]);
    world.produce_to("words", 1, &["b"]);
    eventually("one counts for both", || {
        count_in(&node, "word-count", 0, "a") == Some(1) && count_in(&node, "word-count", 1, "b") == Some(1)
    });
    assert_eq!(members(&world), ["n-0"]);
    eventually("no open transaction holds readers back", || {
        let end = |at| world.admin().offsets(&[("counts".into(), 0)], at).ok();
        end(At::StableEnd) == end(At::End)
    });
    node.stop();
}

/// A member with partitions, and an open transaction, of a worker 1 that is no more.
fn leave_as_if_killed(world: &World) {
    let mut kafka = world.kafka();
    kafka.limits.session_timeout = FOR_EVER;
    kafka.limits.transaction_timeout = FOR_EVER;
    let mut spec = ConsumerSpec::new(GROUP, vec!["words".into()]);
    spec.instance_id = Some("n-1".into());
    let mut consumer = Consumer::new(&kafka, spec).expect("consumer");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !consumer.membership().is_valid() {
        assert!(Instant::now() < deadline, "never a member");
        consumer.take(Duration::from_millis(50), &mut Vec::new()).expect("takes");
    }
    drop(consumer); // Only closes: the place is kept.

    let spec = SinkSpec {
        outputs: vec![Some("counts".into())],
        changelog: None,
        inbox: None,
        inputs: vec!["words".into()],
        batch_bytes: 1 << 20,
    };
    let mut sink = transactional(&kafka, "test.word-count.n.1", spec, Epochs::default()).expect("sink");
    let column = |text: &str| {
        let mut column = Column::default();
        column.push(Some(text.as_bytes()));
        column
    };
    let emissions = Emissions {
        sources: vec![0],
        outputs: vec![0],
        partitions: vec![-1],
        timestamps: vec![0],
        keys: column("ghost"),
        values: column("1"),
        headers: {
            let mut none = Column::default();
            none.push(None);
            none
        },
    };
    sink.begin().expect("begins");
    sink.produce(Produce::Emissions(&emissions.into())).expect("produces");
    // Flushes, then refuses: the transaction stays open.
    sink.send_offsets(&[], &Membership::default()).expect_err("no membership");
}
