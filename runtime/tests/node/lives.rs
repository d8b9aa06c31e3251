//! Deleting a deployment, and deploying its name again.

use tidemill_test_support::build_guest;

use crate::world::{World, delete, deploy, eventually};
use crate::{WORD_COUNT, count, lag};

const GROUP: &str = "local.default.word-count";

#[test]
fn a_name_can_be_deployed_anew_and_its_state_kept_or_not() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    world.produce("words", &["a", "a"]);
    let node = world.node();
    deploy(&node, WORD_COUNT, &module);
    eventually("a is counted twice", || count(&node, "a") == Some(2));

    // Kept: it goes on where it was.
    delete(&node, "word-count", true);
    world.produce("words", &["a"]);
    deploy(&node, WORD_COUNT, &module);
    eventually("a is counted three times", || count(&node, "a") == Some(3));

    // Not kept: everything is counted again, from the start.
    delete(&node, "word-count", false);
    assert!(!world.admin().groups().expect("groups").contains(&GROUP.into()));
    deploy(&node, WORD_COUNT, &module);
    world.produce("words", &["b"]);
    eventually("b is counted", || count(&node, "b") == Some(1));
    assert_eq!(count(&node, "a"), Some(3));
    eventually("no lag", || lag(&node) == Some(0));
    node.stop();
}
