//! A node that drains gives its tasks away and stays; it takes some again when it is told to.

use tidemill::node::Node;
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use crate::world::{World, deploy, eventually};
use crate::{WORD_COUNT, count_in};

fn tasks(node: &Node) -> usize {
    node.handle().deployment("word-count").map_or(0, |deployment| deployment.tasks.len())
}

#[test]
fn the_tasks_of_a_node_that_drains_move_and_it_stays_up() {
    let world = World::new(&[("words", 4), ("counts", 4)]);
    let (a, b) = (world.member("a", "127.0.0.1:1"), world.member("b", "127.0.0.1:2"));
    deploy(&a, WORD_COUNT, &build_guest("plugins/count"));
    eventually("both have tasks", || tasks(&a) == 2 && tasks(&b) == 2);
    for partition in 0..4 {
        world.produce_to("words", partition, &["a", "a"]);
    }
    let counted = |node: &Node, times: u64| {
        (0..4).filter(|partition| count_in(node, "word-count", *partition, "a") == Some(times)).count()
    };
    eventually("all is counted", || counted(&a, 2) + counted(&b, 2) == 4);

    let drain = |undo| a.handle().drain(undo, "somebody").expect("it answers");
    let first = drain(false);
    assert_eq!(first.node, "a");
    // The supervisor may be done before the answer is made.
    let is_asked = matches!(first.state(), proto::DrainState::Draining | proto::DrainState::Drained);
    assert!(is_asked, "{first:?}");
    eventually("it has given all away", || {
        let now = drain(false);
        let is_drained = now.state() == proto::DrainState::Drained;
        assert!(!is_drained || now.tasks == 0, "{now:?}");
        is_drained
    });
    // Its session goes on for seconds, and it is no member any more.
    let members = world.admin().describe_group("local.default.word-count").expect("the group").members;
    assert_eq!(members.len(), 1, "{members:?}");
    eventually("the other has taken all", || tasks(&b) == 4);
    for partition in 0..4 {
        world.produce_to("words", partition, &["a"]);
    }
    eventually("it counts on from where the first stopped", || counted(&b, 3) == 4);
    let state = |id: &str| {
        let nodes = b.handle().nodes("");
        nodes.into_iter().find(|node| node.id == id).map(|node| node.drain())
    };
    eventually("everybody sees it", || state("a") == Some(proto::DrainState::Drained));
    assert_eq!(
        a.handle().deployment("word-count").expect("it answers").state(),
        proto::DeploymentState::Idle
    );

    // What is deployed meanwhile is not started there either.
    deploy(&a, &WORD_COUNT.replace("word-count", "other"), &build_guest("plugins/count"));
    eventually("the other runs it", || {
        b.handle().deployment("other").is_ok_and(|other| other.tasks.len() == 4)
    });
    assert_eq!((tasks(&a), drain(false).tasks), (0, 0));

    assert_eq!(drain(true).state(), proto::DrainState::Active);
    eventually("it takes tasks again", || tasks(&a) == 2 && tasks(&b) == 2);
    a.stop();
    b.stop();
}
