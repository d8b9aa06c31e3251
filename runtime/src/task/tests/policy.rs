//! What failures do, record by record.

use super::*;
use crate::config::failures::Then;

fn apply(task: &mut Task, batch: Batch) -> Applied {
    task.apply(batch, TakenAt { monotonic: Duration::from_secs(1), wall_ms: 2_000 }).unwrap()
}

fn halted(task: &Task) -> (FailureKind, u64) {
    match task.state() {
        TaskState::Halted(failure) => (failure.kind, failure.offset.0),
        TaskState::Running => panic!("the task is running"),
    }
}

#[test]
fn a_task_halts_exactly_before_the_failed_record_and_keeps_what_came_before() {
    let kinds = [
        ("b!fail", FailureKind::Permanent),
        ("b!retry", FailureKind::Transient),
        ("b!garbled", FailureKind::Decode),
        ("b!odd", FailureKind::Schema),
        ("b!trap", FailureKind::Trap),
        ("b!slow", FailureKind::Timeout),
        ("b!huge", FailureKind::Limit),
        ("b!big", FailureKind::Limit),
        ("b!old", FailureKind::Limit),
    ];
    for (command, kind) in kinds {
        let mut bench = Bench::new();
        let mut task = bench.task(Failures::halt());
        let applied = apply(&mut task, records(10, ["a", command, "a", "c"]));
        assert_eq!((applied.ok, applied.failed, applied.ignored), (1, 1, 2), "{command}");
        assert_eq!(halted(&task), (kind, 11), "{command}");
        assert_eq!(task.next(0), Some(Offset(11)), "{command}");

        let applied = apply(&mut task, records(14, ["d"]));
        assert_eq!((applied.ok, applied.ignored), (0, 1), "a halted task takes nothing");
        let sealed = task.seal(0).unwrap().unwrap();
        assert_eq!(emitted(&sealed), ["a=1"], "{command}");
        assert_eq!(sealed.offsets[0].offset, Offset(11), "{command}");
        commit(&mut task, sealed);
        assert_eq!((read(&task, "a").as_deref(), read(&task, "b")), (Some("1"), None), "{command}");
    }
}

#[test]
fn a_halt_says_what_where_and_why() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    let applied = apply(&mut task, records(7, ["a!fail"]));
    assert_eq!(
        applied.failure.unwrap().to_string(),
        "record words/3 at offset 7 failed (permanent, HandlerError): told to fail"
    );
}

#[test]
fn a_task_halts_before_a_record_that_lies_beyond_a_gap() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    let mut batch = records(0, ["a", "b!fail"]);
    batch.offsets = vec![4, 9];
    apply(&mut task, batch);
    assert_eq!(halted(&task), (FailureKind::Permanent, 9));
    assert_eq!(task.next(0), Some(Offset(9)));
    assert_eq!(task.pending().records, 1);
}

#[test]
fn a_skipped_record_leaves_no_effect_and_the_others_all_of_theirs() {
    for command in ["fail", "retry", "trap", "slow", "huge", "big", "old", "lie"] {
        let mut bench = Bench::new();
        let mut task = bench.task(Failures::skip());
        let bad = format!("a!{command}");
        // A scan hands over writes early; the failed record's must not come along.
        let applied = apply(&mut task, records(0, ["a", &bad, "b!mark", "c!scan", "a"]));
        assert_eq!((applied.ok, applied.failed), (4, 1), "{command}");
        assert!(task.is_running());
        let sealed = task.seal(0).unwrap().unwrap();
        assert_eq!(emitted(&sealed), ["a=1", "b=1", "c=b:x", "a=2"], "{command}");
        assert_eq!(sealed.records, 5);
        commit(&mut task, sealed);
        assert_eq!(read(&task, "a").as_deref(), Some("2"), "{command}");
        assert_eq!(task.stats().failures.iter().sum::<u64>(), 1);
    }
}

#[test]
fn records_below_the_position_are_ignored() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    apply(&mut task, records(0, ["a", "a"]));
    let applied = apply(&mut task, records(0, ["a", "a", "a"]));
    assert_eq!((applied.ok, applied.ignored), (1, 2));
    let applied = apply(&mut task, records(1, ["a"]));
    assert_eq!((applied.ok, applied.ignored), (0, 1));
    assert_eq!(emitted(&task.seal(0).unwrap().unwrap()), ["a=1", "a=2", "a=3"]);
}

#[test]
fn statuses_that_break_the_order_are_not_believed() {
    // With `halt` nothing may run behind a failure. The guest claims it did; run alone, the record fails.
    let mut bench = Bench::new();
    let counter = Counter::default();
    let calls = Arc::clone(&counter.calls);
    let mut task = bench.task_of(config(Failures::halt()), counter);
    let applied = apply(&mut task, records(0, ["a", "b!lie", "c"]));
    assert_eq!((applied.ok, applied.failed), (1, 1));
    assert_eq!(halted(&task), (FailureKind::Permanent, 1));
    assert_eq!(*calls.lock().unwrap(), [1, 1], "a new instance, then one record per call");
    assert_eq!(emitted(&task.seal(0).unwrap().unwrap()), ["a=1"]);
}

#[test]
fn after_a_trap_the_batch_is_run_one_by_one_and_the_suspect_stays_alone() {
    let mut bench = Bench::new();
    let counter = Counter::default();
    let calls = Arc::clone(&counter.calls);
    let mut task = bench.task_of(config(Failures::skip()), counter);
    apply(&mut task, records(0, ["a", "b!trap", "c", "d"]));
    assert_eq!(*calls.lock().unwrap(), [4, 1, 1, 1, 1]);
    // Nothing was committed; the same records come again.
    task.drop_uncommitted(None).unwrap();
    apply(&mut task, records(0, ["a", "b!trap", "c", "d"]));
    assert_eq!(*calls.lock().unwrap(), [1, 1, 2], "before the suspect, the suspect, behind it");
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["a=1", "c=1", "d=1"]);
}

#[test]
fn trouble_with_the_store_is_no_records_fault() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::skip());
    let error = task.apply(records(0, ["a", "b!store"]), TakenAt::default()).unwrap_err();
    assert_eq!(error, TaskError::State("disk on fire".into()));
    assert_eq!(task.next(0), Some(Offset(0)));
}

#[test]
fn a_handler_that_cannot_be_started_is_no_records_fault() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::skip());
    let error = task.apply(records(0, ["a", "b!start"]), TakenAt::default()).unwrap_err();
    assert_eq!(error, TaskError::Handler(Fault::Start("out of memory".into())));
    assert_eq!(task.next(0), Some(Offset(0)));
}

#[test]
fn a_batch_above_the_limits_of_a_call_is_split_and_a_record_above_them_fails_uncalled() {
    let mut bench = Bench::new();
    let counter = Counter::default();
    let calls = Arc::clone(&counter.calls);
    let mut config = config(Failures::skip());
    config.call_records_max = 2;
    config.call_bytes_max = 10;
    let mut task = bench.task_of(config, counter);
    let applied = apply(&mut task, records(0, ["a", "a", "a", "a-key-too-long", "abcdefgh", "abc"]));
    assert_eq!(*calls.lock().unwrap(), [2, 1, 1, 1]);
    assert_eq!((applied.ok, applied.failed), (5, 1));
    let failure = applied.failure.unwrap();
    assert_eq!(failure.kind, FailureKind::Limit);
    assert!(failure.reason.contains("an eighth of limits.memory"), "{failure}");
}

/// A quarter of what a worker's thread has.
const STACK_BYTES: usize = 512 << 10;

#[test]
fn a_batch_of_records_that_are_refused_one_after_the_other_takes_no_more_stack_than_one() {
    // Letters fit their topic, though the largest that a record could have would not: each is looked at by itself.
    let mut buried = parking(Failures::at_once(Then::DeadLetter));
    buried.outputs[1].record_bytes_max = 5_000;
    for (config, record) in [(config(Failures::skip()), "a!old"), (buried, "a!fail")] {
        let mut bench = Bench::new();
        let mut task = bench.task_with(config);
        let batch = records(0, [record; 500]);
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn(move || (apply(&mut task, batch), task));
        let (applied, task) = thread.unwrap().join().unwrap();
        assert_eq!((applied.failed, applied.ignored, task.next(0)), (500, 0, Some(Offset(500))), "{record}");
    }
}

#[test]
fn effects_that_kafka_would_refuse_fail_their_record() {
    let mut bench = Bench::new();
    let mut config = config(Failures::halt());
    config.outputs[0].timestamps = Some(TimestampRule { before_max_ms: 500, after_max_ms: 500 });
    let mut task = bench.task_with(config);
    // The records are dated 1,000 ms, the broker's clock stands at 2,000.
    apply(&mut task, records(0, ["a"]));
    let TaskState::Halted(failure) = task.state() else { panic!("running") };
    assert!(failure.reason.contains("outside what topic counts accepts"), "{failure}");
}

#[test]
fn a_record_without_a_key_does_not_go_to_a_compacted_topic() {
    let mut effects = Effects { statuses: vec![Status::Ok; 2], ..Effects::default() };
    for key in [Some(&b"k"[..]), None] {
        let row = effects.emissions.len() as u32;
        effects.emissions.sources.push(row);
        effects.emissions.outputs.push(0);
        effects.emissions.partitions.push(-1);
        effects.emissions.timestamps.push(-1);
        effects.emissions.keys.push(key);
        effects.emissions.values.push(None);
        effects.emissions.headers.push(None);
    }
    let mut outputs = config(Failures::halt()).outputs;
    let refused = |outputs: &[OutputRule]| {
        let checks = super::super::checks::Checks {
            outputs,
            changelog_bytes_max: 1000,
            prefix_bytes_max: 0,
            wall_ms: 0,
        };
        checks.first_refused(&effects, &[]).map(|refused| refused.row)
    };
    assert_eq!(refused(&outputs), None);
    outputs[0].compacted = true;
    assert_eq!(refused(&outputs), Some(1));
    assert_eq!(refused(&[]), Some(0), "an output that does not exist");
}

#[test]
fn statuses_are_held_against_the_order() {
    use super::super::checks::check_statuses;
    use Status::{Blocked, Ok, Permanent};
    let table = [
        (Order::All, &[Ok, Permanent, Blocked][..], true),
        (Order::All, &[Ok, Permanent, Ok], false),
        (Order::All, &[Ok, Permanent, Permanent], false),
        (Order::All, &[Ok, Blocked, Blocked], false),
        (Order::All, &[Ok, Ok, Ok], true),
        (Order::None, &[Permanent, Ok, Permanent], true),
        (Order::None, &[Permanent, Blocked, Ok], false),
        (Order::Key, &[Permanent, Ok, Blocked], true),
        (Order::Key, &[Blocked, Permanent, Ok], false),
        (Order::None, &[Ok, Ok], false),
    ];
    for (order, statuses, believed) in table {
        assert_eq!(check_statuses(statuses, order, 3).is_ok(), believed, "{order:?} {statuses:?}");
    }
}

#[test]
fn an_idle_position_is_committed_past_transaction_markers() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    apply(&mut task, records(0, ["a"]));
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    task.advance(0, Offset(0));
    assert!(task.seal(0).unwrap().is_none(), "a position never moves back");
    task.advance(0, Offset(2));
    assert!(task.pending().moved);
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!((sealed.records, sealed.offsets[0].offset), (0, Offset(2)));
    assert_eq!(sealed.changelog.as_ref().unwrap().keys.len(), 1, "the position record alone");
    commit(&mut task, sealed);
}

#[test]
fn a_stateless_task_keeps_its_identity_in_the_committed_offset() {
    let mut bench = Bench::new();
    let mut config = config(Failures::halt());
    config.stores = Arc::new(Stores::new(&[]).unwrap());
    let mut task = bench.task_with(config);
    task.advance(0, Offset(5));
    let sealed = task.seal(0).unwrap().unwrap();
    assert!(sealed.changelog.is_none());
    let metadata = super::super::seal::decode_metadata(&sealed.offsets[0].metadata).unwrap();
    assert_eq!((metadata.revision, metadata.incarnation.as_str()), (1, "life"));
    assert_eq!(metadata.topic_id, "words-id");
    commit(&mut task, sealed);
    assert_eq!(task.committed_offset(0), Some(Offset(5)));
}

#[test]
fn the_wrong_seal_does_not_come_home() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    apply(&mut task, records(0, ["a"]));
    let sealed = task.seal(0).unwrap().unwrap();
    assert!(matches!(task.drop_uncommitted(None), Err(TaskError::Misuse(_))));
    let mut other = Bench::new().task_with(config(Failures::halt()));
    assert!(matches!(other.drop_uncommitted(Some(sealed)), Err(TaskError::Misuse(_))));
}

/// A broker that refuses commits whose emissions include `b=...`, driven as a worker drives it.
pub fn commit_against_a_broker_that_refuses_b(task: &mut Task, input: &[&str]) -> (Vec<String>, usize) {
    let (mut kafka, mut refusals, mut at) = (Vec::new(), 0, 0);
    for _ in 0..1000 {
        if at < input.len() {
            task.apply(records(at as i64, input[at..].iter().copied()), TakenAt::default()).unwrap();
            at = input.len();
            // What a source reports once everything was taken; ignored records must not be passed.
            task.advance(0, Offset(input.len() as u64));
        }
        let Some(sealed) = task.seal(0).unwrap() else { break };
        let seek = if emitted(&sealed).iter().any(|emission| emission.starts_with("b=")) {
            refusals += 1;
            Some(task.refuse(sealed, "message too large", true).unwrap())
        } else {
            kafka.extend(emitted(&sealed));
            commit(task, sealed);
            task.rewind()
        };
        if let Some(positions) = seek {
            at = positions[0].1.0 as usize;
        }
    }
    (kafka, refusals)
}

#[test]
fn a_record_that_the_broker_refuses_is_found_and_fails_alone() {
    let input = ["a", "c", "a", "b", "c", "d", "a", "e", "b", "f"];
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::skip());
    let (kafka, refusals) = commit_against_a_broker_that_refuses_b(&mut task, &input);
    assert_eq!(kafka, ["a=1", "c=1", "a=2", "c=2", "d=1", "a=3", "e=1", "f=1"]);
    assert!((2..10).contains(&refusals), "{refusals} refusals");
    assert_eq!((task.committed_offset(0), task.is_careful()), (Some(Offset(10)), false));
    assert_eq!(task.stats().failures[FailureKind::Limit as usize], 2);

    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    let (kafka, _) = commit_against_a_broker_that_refuses_b(&mut task, &input);
    assert_eq!(kafka, ["a=1", "c=1", "a=2"]);
    assert_eq!((halted(&task), task.committed_offset(0)), ((FailureKind::Limit, 3), Some(Offset(3))));
}

#[test]
fn a_record_whose_dead_letter_the_broker_refuses_halts_its_task_and_is_not_sent_again_and_again() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(parking(Failures::at_once(Then::DeadLetter)));
    for _ in 0..2 {
        assert!(task.is_running());
        apply(&mut task, records(0, ["a!fail"]));
        let sealed = task.seal(0).unwrap().unwrap();
        task.refuse(sealed, "message too large", true).unwrap();
    }
    assert_eq!((halted(&task), task.next(0)), ((FailureKind::Limit, 0), Some(Offset(0))));
    assert!(task.pending().is_empty());
}

#[test]
fn a_task_that_shared_a_refused_commit_condemns_nothing_of_its_own() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::skip());
    apply(&mut task, records(0, ["a"]));
    let sealed = task.seal(0).unwrap().unwrap();
    task.refuse(sealed, "another task's record", false).unwrap();
    assert!(task.is_careful());
    apply(&mut task, records(0, ["a"]));
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["a=1"]);
    commit(&mut task, sealed);
    assert_eq!((task.rewind(), task.is_careful()), (None, false));
}
