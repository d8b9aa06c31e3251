//! Stores over versions: what would lose or misread them is refused, and what is dropped is gone.

use std::collections::BTreeMap;

use tidemill::kafka::topic_log::TopicLog;
use tidemill::node::{ControlError, Node};
use tidemill::record::Offset;
use tidemill_proto::v1 as proto;
use tidemill_test_support::build_guest;

use crate::world::{World, delete, eventually, is_adopted};
use crate::{WORD_COUNT, count};

/// A counting module that declares its store so: schema, another that it reads, type, store.
fn forms(form: &[u8; 4]) -> Vec<u8> {
    let mut module = build_guest("tests/guests/forms").to_vec();
    let at = module.windows(8).position(|window| window == b"FORM1-uc").expect("the form is in the module");
    module[at + 4..at + 8].copy_from_slice(form);
    module
}

fn deploy(node: &Node, form: &[u8; 4], drops: &[&str]) -> Result<proto::DeployResponse, ControlError> {
    let header = proto::DeployHeader {
        document: WORD_COUNT.into(),
        drop_stores: drops.iter().map(ToString::to_string).collect(),
        ..proto::DeployHeader::default()
    };
    node.handle().deploy(header, forms(form))
}

fn rollback(node: &Node, to: u64, drops: &[&str]) -> Result<proto::RollbackResponse, ControlError> {
    node.handle().rollback(proto::RollbackRequest {
        name: "word-count".into(),
        to,
        drop_stores: drops.iter().map(ToString::to_string).collect(),
        ..proto::RollbackRequest::default()
    })
}

/// What a refusal says, which is that the world, not the request, is at fault.
#[track_caller]
fn unmet<T: std::fmt::Debug>(answer: Result<T, ControlError>, parts: &[&str]) {
    let error = answer.expect_err("refused");
    assert!(matches!(error, ControlError::Unmet(_)), "{error:?}");
    for part in parts {
        assert!(error.to_string().contains(part), "does not say {part:?}: {error}");
    }
}

fn counted(world: &World, key: &str) -> Option<String> {
    world.latest("counts").get(key).cloned()
}

/// Keys of state that the changelog still gives a value, each with its prefix.
fn in_changelog(world: &World) -> Vec<Vec<u8>> {
    let mut rows = BTreeMap::new();
    let log = TopicLog::open(&world.kafka(), "test.word-count.changelog").expect("log");
    let mut tail = log.tail(Offset(0)).expect("tail");
    let mut read = |record: tidemill::ports::LogRecord| {
        rows.insert(record.key, record.value);
    };
    tail.read_to_end(&mut read).expect("read");
    rows.into_iter()
        .filter(|(key, value)| key.first() == Some(&1) && value.is_some())
        .map(|(key, _)| key)
        .collect()
}

#[test]
fn a_version_that_would_lose_or_misread_a_store_is_refused_and_what_runs_goes_on() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    deploy(&node, b"1-uc", &[]).expect("the first");
    world.produce("words", &["a", "a"]);
    eventually("a is counted twice", || count(&node, "a") == Some(2));

    let versions = ["stores.counts", "schema 1", "schema 2", "reads: [1]", "--drop-store counts"];
    unmet(deploy(&node, b"2-tc", &[]), &versions);
    unmet(deploy(&node, b"1-tc", &[]), &["1 is u64", "schema 1 is utf8", "--drop-store counts"]);
    unmet(deploy(&node, b"1-uo", &[]), &["stores.counts", "no such store", "--drop-store counts"]);
    unmet(deploy(&node, b"1-u-", &[]), &["stores.counts", "no such store"]);
    let unknown = deploy(&node, b"1-uc", &["count"]).expect_err("a drop of nothing").to_string();
    assert!(unknown.contains("there is no store count to drop; there are counts"), "{unknown}");

    // One that reads the old form goes on from it, value by value.
    deploy(&node, b"21tc", &[]).expect("it reads the first one's");
    world.produce("words", &["a"]);
    eventually("the old form was read", || counted(&world, "a").as_deref() == Some("3"));
    world.produce("words", &["a"]);
    eventually("and the new one", || counted(&world, "a").as_deref() == Some("4"));

    // Back is refused: the first version knows nothing of the second's form. One that does may come.
    unmet(rollback(&node, 1, &[]), &["schema 1, 2", "does not read 2", "--drop-store counts"]);
    delete(&node, "word-count", true);
    unmet(deploy(&node, b"1-uc", &[]), &["schema 1, 2", "does not read 2"]);
    deploy(&node, b"12uc", &[]).expect("it reads both");
    world.produce("words", &["a"]);
    eventually("it goes on", || counted(&world, "a").as_deref() == Some("5"));
    let deployment = node.handle().deployment("word-count").expect("deployed");
    let store = &deployment.stores[0];
    assert_eq!((store.schema, store.reads.as_slice(), store.holds.as_slice()), (1, &[2][..], &[1, 2][..]));
    let history = node.handle().history("word-count").expect("history").versions;
    assert_eq!(history.iter().map(|version| version.stores[0].schema).collect::<Vec<_>>(), [1, 2, 1]);
    node.stop();
}

#[test]
fn a_dropped_store_begins_empty_and_its_data_is_gone_for_good() {
    let world = World::new(&[("words", 1), ("counts", 1)]);
    let node = world.node();
    deploy(&node, b"1-uc", &[]).expect("the first");
    world.produce("words", &["a", "a", "b"]);
    eventually("a is counted twice", || count(&node, "a") == Some(2));

    let planned = proto::DeployHeader {
        document: WORD_COUNT.into(),
        drop_stores: vec!["counts".into()],
        dry_run: true,
        ..proto::DeployHeader::default()
    };
    let planned = node.handle().deploy(planned, forms(b"2-tc")).expect("planned");
    assert!(planned.changes.iter().any(|change| change.field == "state.counts" && change.after == "dropped"));
    assert!(!deploy(&node, b"2-tc", &["counts"]).expect("dropped").unchanged);
    eventually("the second is adopted", || is_adopted(&node.handle(), "word-count"));
    world.produce("words", &["a"]);
    eventually("a is counted anew", || counted(&world, "a").as_deref() == Some("1"));
    // Whoever repeats it, because he did not hear the answer, loses nothing more.
    assert!(deploy(&node, b"2-tc", &["counts"]).expect("the same again").unchanged);
    world.produce("words", &["a"]);
    eventually("a is counted further", || counted(&world, "a").as_deref() == Some("2"));

    // The old rows leave the changelog, so that no store that is rebuilt from it has them.
    let new = [b"\x01\x08counts#1".as_slice(), b"a"].concat();
    eventually("the old rows are deleted", || in_changelog(&world) == [new.clone()]);
    node.stop();
    std::fs::remove_dir_all(world.dir.path().join("node-n/stores")).expect("the stores");
    let node = world.node();
    world.produce("words", &["a"]);
    eventually("it was rebuilt without them", || counted(&world, "a").as_deref() == Some("3"));

    // Nor do they come back with the version that wrote them.
    unmet(rollback(&node, 1, &[]), &["schema 2", "--drop-store counts"]);
    rollback(&node, 1, &["counts"]).expect("rolled back");
    eventually("the rollback is adopted", || is_adopted(&node.handle(), "word-count"));
    world.produce("words", &["b"]);
    eventually("b, too, begins anew", || counted(&world, "b").as_deref() == Some("1"));
    eventually("queries see the new generation", || {
        count(&node, "b") == Some(1) && count(&node, "a").is_none()
    });

    // Without a store at all, what it held is collected all the same.
    deploy(&node, b"1-u-", &["counts"]).expect("it has no store");
    eventually("nothing is left", || in_changelog(&world).is_empty());
    let versions = node.handle().history("word-count").expect("history").versions;
    let dropped: Vec<usize> = versions.iter().map(|version| version.dropped_stores.len()).collect();
    assert_eq!(dropped, [1, 1, 1, 0]);
    node.stop();
}
