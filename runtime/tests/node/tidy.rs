//! What nobody will take up again: directories of state, and uploads of modules.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidemill::config::document::SpecDefaults;
use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::uploads::Uploads;
use tidemill::node::{Node, control_log};
use tidemill::telemetry::Telemetry;
use tidemill_proto::v1::{DeploymentState, StoreDirectory, StoreUse};
use tidemill_test_support::build_guest;

use crate::world::{World, delete, deploy, eventually, status};
use crate::{WORD_COUNT, count};

/// Copies the files of a directory into a new one.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

fn stores(node: &Node) -> Vec<StoreDirectory> {
    node.handle().stores().expect("stores").directories
}

fn find(node: &Node, deployment: &str, incarnation: &str) -> Option<StoreDirectory> {
    let is = |store: &StoreDirectory| store.deployment == deployment && store.incarnation == incarnation;
    stores(node).into_iter().find(is)
}

#[test]
fn state_of_no_use_is_found_told_of_and_deleted_later_and_no_other() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    let root: PathBuf = world.dir.path().join("node-n/stores");
    let node = world.node();
    deploy(&node, WORD_COUNT, &module);
    world.produce("words", &["a", "a"]);
    eventually("a is counted", || count(&node, "a") == Some(2));
    let life = stores(&node)[0].incarnation.clone();
    assert_eq!(stores(&node)[0].r#use(), StoreUse::Open);
    node.stop();

    // Of a deployment that is gone, of an earlier life, and what is none of a node's business.
    let own = root.join("word-count").join(&life).join("0");
    copy(&own, &root.join("gone/another-life/3"));
    copy(&own, &root.join("word-count/another-life/0"));
    copy(&own, &root.join("word-count/another-life/not-a-partition"));
    let node = world.node();
    eventually("its own is open", || {
        find(&node, "word-count", &life).is_some_and(|store| store.r#use() == StoreUse::Open)
    });
    for (deployment, reason) in [("gone", "not deployed any more"), ("word-count", "another life")] {
        let found = find(&node, deployment, "another-life").expect("it is listed");
        assert_eq!(found.r#use(), StoreUse::Unused);
        assert!(found.reason.contains(reason) && found.bytes > 0, "{found:?}");
        let in_a_day = found.collected_at_ms - found.written_at_ms;
        assert!((23 * 3_600_000..25 * 3_600_000).contains(&in_a_day), "{found:?}");
    }
    node.stop();
    assert!(own.exists() && root.join("gone/another-life/3").exists());

    // The wait does not begin anew with a restart.
    let node = world.node_with("state_unused_keep: 0s\n");
    assert_eq!(
        (find(&node, "gone", "another-life"), find(&node, "word-count", "another-life")),
        (None, None)
    );
    assert!(!root.join("gone").exists());
    assert!(root.join("word-count/another-life/not-a-partition/CURRENT").exists(), "what is not ours stays");
    eventually("a is still counted twice", || count(&node, "a") == Some(2));
    world.produce("words", &["a"]);
    eventually("a is counted on", || count(&node, "a") == Some(3));

    // What ends before the node's eyes goes at once, unless it is kept.
    delete(&node, "word-count", true);
    eventually("it is kept", || {
        find(&node, "word-count", &life).is_some_and(|store| store.r#use() == StoreUse::Kept)
    });
    deploy(&node, WORD_COUNT, &module);
    eventually("it goes on", || count(&node, "a") == Some(3));
    delete(&node, "word-count", false);
    eventually("it is gone", || !own.exists());
    node.stop();
}

#[test]
fn a_node_on_the_wrong_cluster_marks_its_state_and_takes_the_mark_back_on_the_right_one() {
    let (right, wrong) = (World::new(&[("words", 1), ("counts", 1)]), World::new(&[("words", 1)]));
    let module = build_guest("plugins/count");
    let node = right.node();
    deploy(&node, WORD_COUNT, &module);
    right.produce("words", &["a"]);
    eventually("a is counted", || count(&node, "a") == Some(1));
    node.stop();

    let node = wrong.node_of(&right);
    let found = stores(&node);
    assert!(found.len() == 1 && found[0].reason.contains("another cluster"), "{found:?}");
    assert_ne!(found[0].collected_at_ms, 0);
    node.stop();

    let mark =
        std::fs::read_dir(right.dir.path().join("node-n/stores/word-count").join(&found[0].incarnation));
    let marks = |entries: std::fs::ReadDir| {
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".unused")).count()
    };
    assert_eq!(mark.map(marks).expect("a directory"), 1);
    let node = right.node_with("state_unused_keep: 0s\n");
    eventually("a is counted still", || count(&node, "a") == Some(1));
    let found = stores(&node);
    assert_eq!((found.len(), found[0].collected_at_ms), (1, 0), "{found:?}");
    node.stop();
}

#[test]
fn uploads_that_no_version_needs_leave_the_topic_after_a_day_and_what_runs_can_still_be_loaded() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    // The same code with a digest of its own: a custom section, which means nothing.
    let other = [&module[..], &[0, 2, 1, b'x']].concat();
    let named = |name: &str| WORD_COUNT.replace("name: word-count", &format!("name: {name}"));
    let node = world.node();
    deploy(&node, &named("gone"), &other);
    eventually("it runs", || status(&node, "gone").0 == DeploymentState::Running);
    delete(&node, "gone", false);
    deploy(&node, &named("again"), &module);
    deploy(&node, WORD_COUNT, &module);
    node.stop();

    let log = |topic: &str| TopicLog::open(&world.kafka(), topic).expect("log");
    let modules = log("_test.modules");
    let opened = control_log::open("n", log("_test.control"), SpecDefaults::default(), Telemetry::new());
    let (registry, _reader) = opened.expect("registry");
    let (mut uploads, began) = (Uploads::default(), Instant::now());
    let mut look = |hours: u64| {
        let now = began + Duration::from_secs(hours * 3600);
        uploads.look(&modules, || registry.catch_up(), || now).expect("looks")
    };
    assert!(look(0).is_empty() && look(23).is_empty());
    let unneeded = look(24);
    assert_eq!(unneeded.len(), 2, "of the deployment that is gone, and the first of two of one module");
    let bytes: u64 = unneeded.iter().map(|upload| upload.bytes).sum();
    assert_eq!(bytes, (other.len() + module.len()) as u64);
    for upload in &unneeded {
        upload.delete(&modules).expect("deleted");
    }
    assert!(look(48).is_empty(), "they are gone");

    std::fs::remove_dir_all(world.dir.path().join("node-n/modules")).expect("removed");
    let node = world.node();
    world.produce("words", &["a"]);
    eventually("a is counted", || count(&node, "a") == Some(1));
    node.stop();
}

#[test]
fn a_module_that_is_lost_comes_back_by_what_is_said_of_it() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let module = build_guest("plugins/count");
    let node = world.node();
    deploy(&node, WORD_COUNT, &module);
    eventually("it runs", || status(&node, "word-count").0 == DeploymentState::Running);
    node.stop();
    world.admin().delete_topics(&["_test.modules".into()]).expect("deleted");
    std::fs::remove_dir_all(world.dir.path().join("node-n/modules")).expect("removed");

    let node = world.node();
    eventually("it says what to do", || status(&node, "word-count").1.contains("a comment will do"));
    deploy(&node, WORD_COUNT, &module);
    let reason = status(&node, "word-count").1;
    assert!(reason.contains("what is the same is not uploaded again"), "{reason}");
    deploy(&node, &format!("{WORD_COUNT}# Once more.\n"), &module);
    world.produce("words", &["a"]);
    eventually("a is counted", || count(&node, "a") == Some(1));
    node.stop();
}
