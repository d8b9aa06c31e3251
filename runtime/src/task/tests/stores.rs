//! What a task's stores may hold, and what becomes of those that were dropped.

use prost::Message;

use super::*;
use crate::store::{Position, Stores};

/// Ends a task and begins one of another configuration on its store.
fn restart(task: Task, config: TaskConfig) -> Task {
    let next = vec![task.next(0).unwrap()];
    let store = task.close(None).store;
    let start = adopted(start(store, next, 2));
    Task::new(Arc::new(config), PARTITION, Box::new(Counter::default()), start).unwrap()
}

fn with_room(bytes: Option<u64>) -> TaskConfig {
    TaskConfig { store_bytes_max: bytes, ..config(Failures::skip()) }
}

/// Applies and commits; answers how many records were ok, and what the position record says of the stores.
fn run<'a>(task: &mut Task, keys: impl IntoIterator<Item = &'a str>) -> (usize, Vec<(String, u64)>) {
    let from = task.next(0).unwrap().0 as i64;
    let applied = task.apply(records(from, keys), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    let position = sealed.changelog.as_ref().unwrap().values.iter().last().unwrap().unwrap();
    let sizes = Position::decode(position).unwrap().stores;
    commit(task, sealed);
    (applied.ok, sizes.into_iter().map(|size| (size.store, size.bytes)).collect())
}

fn sizes(counts: u64, sorted: u64) -> Vec<(String, u64)> {
    vec![("counts".into(), counts), ("sorted".into(), sorted)]
}

#[test]
fn a_record_that_would_go_beyond_the_stores_room_fails_as_limit_and_the_others_go_on() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(with_room(Some(8)));
    // A key and a digit are two bytes: there is room for four, and a digit may replace another.
    assert_eq!(run(&mut task, ["a", "b", "c", "d", "e", "a", "f!mark"]), (5, sizes(8, 0)));
    assert_eq!(task.stats().failures.iter().sum::<u64>(), 2);
    assert_eq!(read(&task, "e"), None);
    let edit = Edit { store: "counts".into(), key: b"x".into(), value: Some(b"1".into()) };
    assert!(
        matches!(task.edit(&edit), Err(EditError::Refused(reason)) if reason.contains("limits.store_bytes"))
    );

    // The position record knows, so that nobody counts again; and a room that has become too small keeps
    // what is there and takes what does not grow it.
    let mut task = restart(task, with_room(Some(4)));
    assert_eq!(run(&mut task, ["a", "b", "g"]), (2, sizes(8, 0)));
    // Twelve: a second digit is more.
    assert_eq!(run(&mut task, ["b"; 8]).0, 7);
    let delete = Edit { value: None, key: b"c".into(), ..edit };
    task.edit(&delete).unwrap();
    assert_eq!(run(&mut task, ["a"]), (1, sizes(6, 0)));

    // A version that does not count leaves no sizes; the next that does counts all of it.
    let mut task = restart(task, with_room(None));
    assert_eq!(run(&mut task, ["h", "i!mark"]), (2, Vec::new()));
    let mut task = restart(task, with_room(Some(12)));
    assert_eq!(run(&mut task, ["j", "a"]), (1, sizes(10, 2)));
}

#[test]
fn what_cannot_be_counted_fails_once_and_is_not_sealed_again_and_again() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(with_room(Some(1 << 20)));
    task.apply(records(0, ["a!mark"]), TakenAt::default()).unwrap();
    drop(task.store.take());
    assert!(matches!(task.seal(0), Err(TaskError::Store(_))));
    assert!(task.seal(0).unwrap().is_none(), "who halts it for that commits what there is first");
}

#[test]
fn what_is_dropped_uncommitted_is_not_counted() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(with_room(Some(4)));
    run(&mut task, ["a"]);
    task.apply(records(1, ["b"]), TakenAt::default()).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    task.apply(records(2, ["c"]), TakenAt::default()).unwrap();
    task.drop_uncommitted(Some(refused)).unwrap();
    assert_eq!(run(&mut task, ["d"]), (1, sizes(4, 0)));
}

#[test]
fn rows_of_a_dropped_generation_are_not_seen_and_go_with_the_next_commits() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    let keys: Vec<String> = (0..4_500).map(|key| key.to_string()).collect();
    run(&mut task, keys.iter().map(String::as_str));
    let stores = Stores::with_generations(
        &manifest(),
        |name| u32::from(name == "counts"),
        ["counts".to_owned()].into_iter(),
    );
    let next = TaskConfig { stores: Arc::new(stores.unwrap()), ..with_room(Some(1 << 20)) };
    let mut task = restart(task, next);
    let rows = |task: &Task, store: &str| {
        let page = task.reader().unwrap().snapshot(|snapshot| snapshot.scan(store, b"", None, 10_000));
        page.unwrap().keys.len()
    };
    assert!(task.pending().moved && !task.pending().is_empty(), "it does not wait for a record");
    let refused = task.seal(0).unwrap().unwrap();
    assert_eq!(refused.changelog.as_ref().unwrap().keys.len(), 4_001, "the rows, and a position");
    task.drop_uncommitted(Some(refused)).unwrap();

    let (ok, sizes) = run(&mut task, ["7"]);
    assert_eq!((ok, sizes), (1, vec![("counts#1".into(), 2), ("sorted".into(), 0)]));
    assert_eq!((rows(&task, "counts"), rows(&task, "counts#1")), (500, 1));
    let rest = task.seal(0).unwrap().unwrap();
    assert_eq!((rest.records, rest.changelog.as_ref().unwrap().keys.len()), (0, 501));
    commit(&mut task, rest);
    assert_eq!((rows(&task, "counts"), rows(&task, "counts#1")), (0, 1));
    assert!(task.pending().is_empty() && task.seal(0).unwrap().is_none(), "that was all");
}
