//! Inputs that change under a running deployment: more partitions, deleted, made again.

use tidemill::kafka::admin::NewTopic;
use tidemill_proto::v1::DeploymentState;
use tidemill_test_support::build_guest;

use crate::world::{World, delete, deploy, eventually, status};
use crate::{WORD_COUNT, count, count_in};

const FILTER: &str = "\
name: keep
module: filter.wasm
inputs: { in: { topic: words, start: latest } }
outputs: { out: { topic: kept } }
config: { keep: [{ exists: true }] }
";

#[test]
fn added_partitions_are_taken_up_from_their_beginning() {
    let world = World::new(&[("words", 1), ("kept", 1)]);
    world.produce("words", &["before"]);
    let module = build_guest("plugins/filter");
    let node = world.node();
    deploy(&node, FILTER, &module);
    eventually("it runs", || status(&node, "keep").0 == DeploymentState::Running);
    world.produce("words", &["first"]);
    eventually("the first is kept", || world.latest("kept").contains_key("first"));

    world.admin().add_partitions("words", 2).expect("added");
    world.produce_to("words", 1, &["second"]);
    eventually("the second is kept", || world.latest("kept").contains_key("second"));

    assert!(!world.latest("kept").contains_key("before"), "`latest` holds where nothing was added");
    node.stop();
}

#[test]
fn state_grows_only_with_its_changelog_and_nobody_else_stops() {
    let world = World::new(&[("words", 1), ("counts", 1), ("other", 1)]);
    let module = build_guest("plugins/count");
    let node = world.node();
    deploy(&node, WORD_COUNT, &module);
    let other = WORD_COUNT.replace("topic: words", "topic: other").replace("word-count", "others");
    deploy(&node, &other, &module);
    world.produce("words", &["a"]);
    eventually("a is counted", || count(&node, "a") == Some(1));

    world.admin().add_partitions("words", 2).expect("added");
    world.produce_to("words", 1, &["b"]);
    eventually("it stops and says how to go on", || {
        let (state, reason) = status(&node, "word-count");
        state == DeploymentState::Halted
            && reason.contains("kafka-topics --alter --topic test.word-count.changelog --partitions 2")
    });
    world.produce("other", &["o"]);
    eventually("the other goes on", || count_in(&node, "others", 0, "o") == Some(1));

    world.admin().add_partitions("test.word-count.changelog", 2).expect("added");
    eventually("the new partition is counted", || count_in(&node, "word-count", 1, "b") == Some(1));
    assert_eq!(count(&node, "a"), Some(1));
    node.stop();
}

#[test]
fn an_input_made_again_halts_its_deployment_until_that_is_made_again() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    let node = world.node();
    deploy(&node, WORD_COUNT, &module);
    world.produce("words", &["a", "a"]);
    eventually("a is counted twice", || count(&node, "a") == Some(2));

    let admin = world.admin();
    admin.delete_topics(&["words".into()]).expect("deleted");
    eventually("it stops: deleted", || {
        status(&node, "word-count").1.contains("topic words has been deleted")
    });
    assert_eq!(
        node.handle().lag(None).map(|lags| lags.len()).ok(),
        Some(1),
        "one topic's end is not everybody's"
    );
    admin.create_topic(&NewTopic::new("words", 1)).expect("made again");
    world.produce("words", &["a"]);
    eventually("it stays stopped: made again", || status(&node, "word-count").1.contains("made again"));
    node.stop();

    let node = world.node();
    eventually("so it does over a restart", || status(&node, "word-count").1.contains("made again"));
    delete(&node, "word-count", false);
    deploy(&node, WORD_COUNT, &module);
    eventually("it begins anew", || count(&node, "a") == Some(1));
    delete(&node, "word-count", true);
    deploy(&node, WORD_COUNT, &module);
    world.produce("words", &["a"]);
    eventually("it goes on with the state that was kept", || count(&node, "a") == Some(2));
    node.stop();
}
