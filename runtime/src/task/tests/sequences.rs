//! Sequences: what breaks one and what does not, and what is remembered of it through drops, restarts and
//! resets. Kills and lost stores are played in `model`.

use super::ids::at;
use super::parking::{Patient, SECOND_MS, failures};
use super::*;
use crate::config::deployment::{Gaps, IdSource, InboxSpec, Place, SequenceSpec};
use crate::config::failures::Then;

const TTL_MS: i64 = 3_600_000;

pub fn sequences(gaps: Gaps) -> InboxSpec {
    let sequence = SequenceSpec { number: Place::Header("number".into()), gaps };
    InboxSpec { id: None, sequence: Some(sequence), ttl: Duration::from_millis(TTL_MS as u64) }
}

fn config(failures: Failures) -> TaskConfig {
    TaskConfig { inbox: Some(sequences(Gaps::Report)), ..parking(failures) }
}

/// Records whose numbers stand behind a colon: `key!command:number`. Without one there is no number.
fn numbered(from: i64, records_with_numbers: &[&str]) -> Batch {
    let parts = records_with_numbers.iter().map(|text| text.rsplit_once(':').unwrap_or((*text, "none")));
    let (keys, numbers): (Vec<&str>, Vec<&str>) = parts.unzip();
    let numbers = numbers.into_iter().map(|number| (number != "none").then_some(number));
    with_header(records(from, keys), "number", numbers)
}

/// Losses, reorderings and repetitions that have been counted.
fn breaks(task: &Task) -> (u64, u64, u64) {
    let metrics = &task.metrics;
    (metrics.sequence_losses.get(), metrics.sequence_reorderings.get(), metrics.sequence_repetitions.get())
}

fn seal_and_commit(task: &mut Task) -> Vec<String> {
    let sealed = task.seal(0).unwrap().expect("something to commit");
    let seen = emitted(&sealed);
    commit(task, sealed);
    seen
}

#[test]
fn effects_of_a_record_whose_number_could_not_be_looked_up_are_not_committed_without_it() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(config(Failures::halt()));
    // What the handler asks for is in memory, and what is known of the key's numbers is not.
    task.edit(&Edit { store: "counts".into(), key: b"a".into(), value: Some(b"1".into()) }).unwrap();
    drop(task.store.take());
    assert!(matches!(task.apply(numbered(0, &["a:1"]), at(1)), Err(TaskError::Store(_))));
    assert_eq!(task.next(0), Some(Offset(0)));
    assert!(task.seal(0).unwrap().is_none(), "it will be handled again");
}

#[test]
fn what_breaks_a_sequence_is_counted_and_handled_in_its_batch_in_its_overlay_and_after_the_commit() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(config(Failures::halt()));
    task.apply(numbered(0, &["a:1", "b:7", "a:2", "a:5", "b:8"]), at(1)).unwrap();
    assert_eq!(breaks(&task), (1, 0, 0), "3 and 4 are missing");
    task.apply(numbered(5, &["a:4", "b:9"]), at(1)).unwrap();
    assert_eq!(breaks(&task), (1, 1, 0));
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(inbox_keys(&sealed), [b"\x07\0\0a", b"\x07\0\0b"], "one row a key, in the inbox's topic");
    assert_eq!(emitted(&sealed), ["a=1", "b=1", "a=2", "a=3", "b=2", "a=4", "b=3"]);
    commit(&mut task, sealed);

    task.apply(numbered(7, &["a:4", "a:3", "a:6", "b:10"]), at(1)).unwrap();
    assert_eq!(breaks(&task), (1, 2, 1));
    assert_eq!(seal_and_commit(&mut task), ["a=5", "a=6", "a=7", "b=4"]);
}

#[test]
fn where_numbers_only_rise_a_gap_means_nothing() {
    let mut bench = Bench::new();
    let mut task =
        bench.task_with(TaskConfig { inbox: Some(sequences(Gaps::Ignore)), ..parking(Failures::halt()) });
    task.apply(numbered(0, &["a:00000000000000000010", "a:30", "a:20", "a:30"]), at(1)).unwrap();
    assert_eq!(breaks(&task), (0, 1, 1));
}

#[test]
fn a_record_without_a_number_follows_the_failure_policy_and_one_without_a_key_needs_none() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(config(Failures::at_once(Then::DeadLetter)));
    let applied =
        task.apply(numbered(0, &["a:1", "a", "a:+2", "a:", "a:18446744073709551616", "a:2"]), at(1));
    let applied = applied.unwrap();
    assert_eq!((applied.ok, applied.failed), (2, 4));
    let failure = applied.failure.unwrap();
    assert_eq!((failure.kind, failure.offset), (FailureKind::Decode, Offset(1)));
    assert!(failure.reason.contains("header:number (inbox.sequence)"), "{failure}");
    assert_eq!(breaks(&task), (0, 0, 0));

    let long = "k".repeat(2000);
    let applied = task.apply(numbered(6, &[&format!("{long}:1")]), at(1)).unwrap();
    assert!(applied.failure.unwrap().reason.contains("longer than the 1024 bytes"));

    let mut keyless = numbered(7, &["a"]);
    keyless.keys = crate::record::Column::default();
    keyless.keys.push(None);
    assert_eq!(task.apply(keyless, at(1)).unwrap().ok, 1);
}

/// One that waits, is tried again or has been buried is not lost, and is heard once.
#[test]
fn a_record_has_come_in_whatever_becomes_of_it() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, config(failures(Then::DeadLetter, 3)));
    let taken = patient.taken();
    let applied =
        patient.task.apply(numbered(0, &["a:1", "a!flaky:2", "a:3", "b!fail:1", "b:2"]), taken).unwrap();
    assert_eq!((applied.failed, applied.waiting), (2, 2), "b is tried on once its first is buried");
    patient.heal();
    while patient.retry_after(10 * SECOND_MS) > 0 {}
    assert_eq!(patient.task.parked(), (0, 0));
    patient.task.apply(numbered(5, &["a:4", "b:3"]), taken).unwrap();
    assert_eq!(breaks(&patient.task), (0, 0, 0));
    patient.task.apply(numbered(7, &["b:1"]), taken).unwrap();
    assert_eq!(breaks(&patient.task), (0, 0, 1), "also what failed has come before");
}

#[test]
fn a_repetition_that_the_inbox_refuses_breaks_nothing() {
    let mut bench = Bench::new();
    let id = Some(vec![IdSource::In(Place::Json("/id".into()))]);
    let number = Place::Json("/number".into());
    let sequence = Some(SequenceSpec { number, gaps: Gaps::Report });
    let inbox = InboxSpec { id, sequence, ttl: Duration::from_secs(3600) };
    let mut task = bench.task_with(TaskConfig { inbox: Some(inbox), ..parking(Failures::halt()) });
    let ids_and_numbers = [(1, 1), (1, 1), (2, 2), (2, 2), (1, 1), (3, 3), (4, 3)];
    let mut batch = records(0, ids_and_numbers.map(|_| "a"));
    batch.values = crate::record::Column::default();
    for (id, number) in ids_and_numbers {
        batch.values.push(Some(format!("{{\"id\":\"{id}\",\"number\":{number}}}").as_bytes()));
    }
    let applied = task.apply(batch, at(1)).unwrap();
    assert_eq!((applied.ok, applied.duplicates), (4, 3));
    assert_eq!(breaks(&task), (0, 0, 1), "the last one has an id of its own");
    assert_eq!(task.next(0), Some(Offset(7)));
}

#[test]
fn what_was_heard_is_dropped_with_the_effects_of_its_record() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(config(Failures::halt()));
    task.apply(numbered(0, &["a:1", "a:2"]), at(1)).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    task.apply(numbered(2, &["a:3"]), at(1)).unwrap();
    task.drop_uncommitted(Some(refused)).unwrap();
    task.apply(numbered(0, &["a:1", "a:2", "a:3", "a:4"]), at(1)).unwrap();
    assert_eq!(breaks(&task), (0, 0, 0));
    assert_eq!(seal_and_commit(&mut task), ["a=1", "a=2", "a=3", "a=4"]);
}

#[test]
fn a_key_is_forgotten_after_the_ttl_also_where_all_records_fail() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(config(Failures::skip()));
    let timed = |mut batch: Batch, ms: i64| {
        batch.timestamps.fill(ms);
        batch
    };
    let now = 10 * TTL_MS;
    task.apply(timed(numbered(0, &["a!fail:1", "b!fail:1"]), now), at(now)).unwrap();
    let later = now + TTL_MS - 1;
    task.apply(timed(numbered(2, &["a!fail:9"]), later), at(later)).unwrap();
    assert_eq!(breaks(&task), (1, 0, 0));
    let later = now + TTL_MS;
    task.apply(timed(numbered(3, &["b!fail:9", "a!fail:10"]), later), at(later)).unwrap();
    assert_eq!(breaks(&task), (1, 0, 0), "b starts anew, a goes on");
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(inbox_keys(&sealed).len(), 2);
    commit(&mut task, sealed);
    for step in 1..200 {
        let now = later + step * TTL_MS / 64;
        task.apply(timed(numbered(4 + step, &[&format!("key-{step}!fail:1")]), now), at(now)).unwrap();
        let sealed = task.seal(0).unwrap().unwrap();
        commit(&mut task, sealed);
    }
    assert!(task.trim().is_some(), "what has been forgotten leaves the topic");
}

/// A deployment that keeps nothing but its inbox may be set back.
#[test]
fn a_record_that_is_read_again_after_a_reset_is_no_repetition_of_itself() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(config(Failures::halt()));
    task.apply(numbered(0, &["a:1", "a:2", "a:3"]), at(1)).unwrap();
    seal_and_commit(&mut task);
    let config = Arc::clone(task.config());
    let store = task.close(None).store;
    let next = vec![Offset(1)];
    let start = adopted(start(store, next, 2));
    let mut task = Task::new(config, PARTITION, Box::new(Counter::default()), start).unwrap();
    task.apply(numbered(1, &["a:2", "a:3", "a:4", "a:6"]), at(1)).unwrap();
    assert_eq!(breaks(&task), (1, 0, 0));
}
