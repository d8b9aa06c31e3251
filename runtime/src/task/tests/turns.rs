//! A slow handler has its thread for a turn, then others do; what is left of a batch comes next.

use super::*;

const TAKEN: TakenAt = TakenAt { monotonic: Duration::from_secs(1), wall_ms: 2_000 };

/// Turns that a batch takes, and what they make of it.
fn turns(task: &mut Task, mut batch: Batch) -> usize {
    for turn in 1.. {
        assert!(turn <= 100, "it does not end");
        match task.apply(batch, TAKEN).unwrap().left {
            Some(left) => batch = left,
            None => return turn,
        }
    }
    unreachable!()
}

#[test]
fn slow_batches_take_several_turns_and_have_the_same_effects() {
    let mut bench = Bench::new();
    let counter = Counter::default();
    let calls = Arc::clone(&counter.calls);
    let mut task = bench.task_of(config(Failures::skip()), counter);
    // The first call has no reason to be small; then its records are known to be slow.
    assert_eq!(turns(&mut task, records(0, ["a!tired", "b!tired", "a!tired"])), 1);
    let slow = ["c!tired", "a!tired", "b!tired", "c!tired", "a!tired", "b!tired", "a"];
    assert_eq!(turns(&mut task, records(3, slow)), 2);
    assert_eq!(task.next(0), Some(Offset(10)));
    let sealed = task.seal(0).unwrap().unwrap();
    let expected = ["a=1", "b=1", "a=2", "c=1", "a=3", "b=2", "c=2", "a=4", "b=3", "a=5"];
    assert_eq!(emitted(&sealed), expected);
    assert_eq!(*calls.lock().unwrap(), [3, 2, 2, 2, 1]);
}

#[test]
fn a_call_that_failed_is_replayed_one_by_one_over_as_many_turns_as_it_needs() {
    let mut bench = Bench::new();
    let counter = Counter::default();
    let calls = Arc::clone(&counter.calls);
    let mut task = bench.task_of(config(Failures::skip()), counter);
    let slow = ["a!tired", "b!tired", "c!tired", "a!tired", "b!tired", "a!trap", "c!tired", "a"];
    assert!(turns(&mut task, records(0, slow)) > 1);
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["a=1", "b=1", "c=1", "a=2", "b=2", "c=2", "a=3"]);
    let calls = calls.lock().unwrap();
    assert_eq!((calls[0], calls[1..].iter().max()), (8, Some(&1)), "{calls:?}");
}

#[test]
fn a_fresh_instance_is_a_part_of_the_turn_as_a_call_is() {
    let mut bench = Bench::new();
    let counter = Counter { renewal: Duration::from_millis(60), ..Counter::default() };
    let mut task = bench.task_of(config(Failures::skip()), counter);
    // What the instance remembers of each of them is to be forgotten.
    let refused = ["a!huge", "b!huge", "c!huge", "d!huge"];
    assert_eq!(turns(&mut task, records(0, refused)), 2);
    assert_eq!(task.next(0), Some(Offset(4)));
}

#[test]
fn what_an_interrupted_call_did_not_come_to_is_left_over() {
    let mut bench = Bench::new();
    let mut config = config(Failures::skip());
    config.call_records_max = 1;
    let mut task = bench.task_with(config);
    let applied = task.apply(records(0, ["a", "b!stop", "c"]), TAKEN).unwrap();
    assert!(applied.interrupted);
    assert_eq!((applied.ok, applied.left.map(|left| left.offsets)), (1, Some(vec![1, 2])));
    assert_eq!(task.next(0), Some(Offset(1)));
}

#[test]
fn a_full_overlay_ends_the_turn_and_what_is_left_waits_for_its_commit() {
    let mut bench = Bench::new();
    let mut config = config(Failures::skip());
    (config.overlay_bytes_max, config.call_records_max) = (1, 1);
    let mut task = bench.task_with(config);
    let applied = task.apply(records(0, ["a", "b", "c"]), TAKEN).unwrap();
    assert_eq!((applied.ok, applied.left.map(|left| left.offsets)), (1, Some(vec![1, 2])));
}

#[test]
fn what_is_left_lies_behind_the_position_and_comes_again_after_a_drop() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::skip());
    task.apply(records(0, ["a"]), TAKEN).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    task.apply(records(1, ["a!tired", "b!tired", "c!tired"]), TAKEN).unwrap();
    let slow = ["a!tired", "b!tired", "c!tired", "a!tired", "b!tired", "c!tired"];
    let left = task.apply(records(4, slow), TAKEN).unwrap().left.expect("a part of it");
    assert_eq!(task.next(0), Some(Offset(left.offsets[0] as u64)));
    task.drop_uncommitted(None).unwrap();
    assert_eq!(task.next(0), Some(Offset(1)));
}
