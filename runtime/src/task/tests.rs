//! Tasks over a real temporary RocksDB, with fakes at every other edge and no threads.

use super::*;
use crate::config::deployment::{Failures, Guarantee};
use crate::config::manifest::{StoreKind, StoreManifest};
use crate::effects::{Effects, Order, Prefetched, Status};
use crate::record::Batch;
use crate::store::{BudgetConfig, CacheBudget, Identity, StoreBudget, Stores, View};

mod decisions;
mod events;
mod fakes;
mod ids;
mod inputs;
mod latest;
mod model;
mod outbox;
mod parking;
mod policy;
mod redrive;
mod restore;
mod sequences;
mod stores;
mod turns;
mod unpark;

use fakes::*;

#[test]
fn effects_are_visible_to_the_next_batch_and_durable_after_the_commit() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());

    task.apply(records(0, ["a", "b", "a"]), TakenAt::default()).unwrap();
    task.apply(records(3, ["a"]), TakenAt::default()).unwrap();
    assert_eq!(task.next(0), Some(Offset(4)));
    assert_eq!(task.pending().records, 4);
    assert_eq!(read(&task, "a"), None, "nothing uncommitted is in the store");

    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["a=1", "b=1", "a=2", "a=3"]);
    let rows = sealed.changelog.as_ref().unwrap();
    assert_eq!(rows.keys.len(), 3, "two distinct keys and the position record");
    commit(&mut task, sealed);

    assert_eq!(read(&task, "a").as_deref(), Some("3"));
    assert_eq!(read(&task, "b").as_deref(), Some("1"));
    assert_eq!(task.committed_offset(0), Some(Offset(4)));
    assert!(task.seal(0).unwrap().is_none(), "nothing is left to commit");
}

#[test]
fn the_next_overlay_fills_while_a_commit_is_under_way() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    task.apply(records(0, ["a"]), TakenAt::default()).unwrap();
    let first = task.seal(0).unwrap().unwrap();
    task.apply(records(1, ["a"]), TakenAt::default()).unwrap();
    assert!(task.seal(0).unwrap().is_none(), "at most one seal is out");
    assert_eq!(task.pending().records, 1);
    commit(&mut task, first);
    assert_eq!(read(&task, "a").as_deref(), Some("1"));
    let second = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&second), ["a=2"]);
    commit(&mut task, second);
    assert_eq!(read(&task, "a").as_deref(), Some("2"));
}

#[test]
fn dropping_goes_back_to_the_last_commit() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    task.apply(records(0, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    task.apply(records(1, ["a"]), TakenAt::default()).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    task.apply(records(2, ["a"]), TakenAt::default()).unwrap();

    let seek = task.drop_uncommitted(Some(refused)).unwrap();
    assert_eq!(seek, [(crate::record::InputPartition { input: 0, partition: 3 }, Offset(1))]);
    assert!(task.pending().is_empty());
    task.apply(records(1, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["a=2"]);
    assert_eq!(sealed.stamp().1, 3, "commit numbers are never used twice");
}

#[test]
fn what_could_not_be_dropped_to_its_end_is_not_committed() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    task.apply(records(0, ["a"]), TakenAt::default()).unwrap();
    drop(task.store.take());
    assert!(matches!(task.drop_uncommitted(None), Err(TaskError::Store(_))));
    assert!(task.seal(0).unwrap().is_none(), "the record is passed, and its effects are gone");
}

fn edit(key: &str, value: Option<&str>) -> Edit {
    let value = value.map(|value| value.as_bytes().to_vec());
    Edit { store: "counts".into(), key: key.into(), value }
}

#[test]
fn an_edit_is_a_commit_of_its_own_with_the_tasks_offsets_and_the_handler_goes_on_from_it() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    task.apply(records(0, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);

    let edited = task.edit(&edit("a", Some("40"))).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(sealed.stamp(), (edited.writer, edited.commit));
    assert_eq!(sealed.offsets[0].offset, Offset(1), "offsets that did not move fence it all the same");
    assert_eq!(sealed.records, 0);
    commit(&mut task, sealed);
    assert_eq!(read(&task, "a").as_deref(), Some("40"));
    task.apply(records(1, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["a=41"]);
    commit(&mut task, sealed);

    task.edit(&edit("a", None)).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    assert_eq!(read(&task, "a"), None);
}

#[test]
fn an_edit_that_the_broker_refuses_blames_no_record_and_halts_nothing() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    let edited = task.edit(&edit("a", Some("40"))).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    task.refuse(sealed, "too large", true).unwrap();
    assert!(task.is_running() && !task.still_holds(edited));

    task.apply(records(0, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    task.rewind();
    task.edit(&edit("b", Some("1"))).unwrap();
    task.apply(records(1, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    task.refuse(sealed, "too large", true).unwrap();
    assert!(
        matches!(task.edit(&edit("b", Some("1"))), Err(EditError::Busy(_))),
        "while it looks for the fault"
    );
    task.apply(records(1, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["a=2"], "the record beside the edit is tried again");
    commit(&mut task, sealed);
}

#[test]
fn an_edit_that_cannot_be_is_refused_before_it_is_tried() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    let large = "x".repeat(5000);
    assert!(matches!(task.edit(&edit("a", Some(&large))), Err(EditError::Refused(_))));
    let elsewhere = Edit { store: "cuonts".into(), ..edit("a", None) };
    assert!(matches!(task.edit(&elsewhere), Err(EditError::Refused(_))));
    assert!(task.pending().is_empty());
    task.apply(records(0, ["a!fail"]), TakenAt::default()).unwrap();
    assert!(matches!(task.edit(&edit("a", None)), Err(EditError::Busy(_))), "a halted task");
}

#[test]
fn an_overlay_at_its_bound_says_so() {
    let mut bench = Bench::new();
    let mut config = config(Failures::halt());
    config.overlay_bytes_max = 4096;
    let mut task = bench.task_with(config);
    let mut next = 0;
    while !task.is_full() {
        task.apply(records(next, [format!("key-{next}").as_str()]), TakenAt::default()).unwrap();
        next += 1;
    }
    assert!((8..30).contains(&next), "{next} calls of a record, each of about 370 bytes");
    let sealed = task.seal(0).unwrap().unwrap();
    assert!(!task.is_full());
    commit(&mut task, sealed);
}

/// A bench's task takes its revision as adopted; this one finds a position of another revision.
#[test]
fn a_revision_is_committed_before_its_first_record_is_handled() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    task.apply(records(0, ["a", "a"]), TakenAt::default()).unwrap();
    let next = Arc::new(TaskConfig { revision: 2, ..config(Failures::halt()) });
    assert!(!task.can_adopt(&next), "what an older revision has handled is committed first");
    let sealed = task.seal(0).unwrap().unwrap();
    assert!(!task.can_adopt(&next));
    commit(&mut task, sealed);

    task.adopt(Arc::clone(&next), Box::new(Counter::default())).unwrap();
    let applied = task.apply(records(2, ["a"]), TakenAt::default()).unwrap();
    assert_eq!((applied.ok, applied.ignored), (0, 1));
    assert_eq!(task.first_offsets(), None);
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(sealed.changelog.as_ref().unwrap().keys.len(), 1, "the position record alone");
    // Refused and dropped, it begins again; committed, records are handled.
    task.drop_uncommitted(Some(sealed)).unwrap();
    assert!(task.is_adopting());
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    assert_eq!(task.first_offsets(), Some(&[Offset(2)][..]));
    let position = task.store.as_ref().unwrap().position().unwrap();
    assert_eq!((position.revision, position.inputs[0].first), (2, Some(2)));
    task.apply(records(2, ["a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    assert_eq!(read(&task, "a").as_deref(), Some("3"));
    assert_eq!(task.store.as_ref().unwrap().position().unwrap().inputs[0].first, Some(2));
}
