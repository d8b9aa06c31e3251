//! Parked records: retries, order, room, dead letters, and what a drop, a crash and a new version do.

use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message;

use super::*;
use crate::config::failures::{Backoff, ParkOrder, Policy, Then};
use crate::record::headers;
use crate::store::{ParkedRecord, Table};

pub const SECOND_MS: i64 = 1_000;

pub fn failures(then: Then, attempts: u32) -> Failures {
    let backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(8) };
    Failures::by_kind(|kind| Policy {
        attempts: if kind == FailureKind::Transient { attempts } else { 0 },
        backoff,
        ..Policy::default_for(kind, then)
    })
}

/// A task whose handler can be healed, and whose clock is the test's.
pub struct Patient {
    pub task: Task,
    pub healed: Arc<AtomicBool>,
    pub now_ms: i64,
}

impl Patient {
    pub fn new(bench: &mut Bench, config: TaskConfig) -> Patient {
        let counter = Counter::default();
        let healed = Arc::clone(&counter.healed);
        Patient { task: bench.task_of(config, counter), healed, now_ms: 1_000_000 }
    }

    pub fn taken(&self) -> TakenAt {
        TakenAt { monotonic: Duration::from_secs(1), wall_ms: self.now_ms }
    }

    pub fn apply(&mut self, from: i64, keys: &[&str]) -> Applied {
        self.task.apply(records(from, keys.iter().copied()), self.taken()).unwrap()
    }

    /// Lets time pass, then tries what is due. Answers how many were tried.
    pub fn retry_after(&mut self, ms: i64) -> usize {
        self.now_ms += ms;
        let applied = self.task.retry(self.taken()).unwrap();
        applied.ok + applied.failed
    }

    pub fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
    }

    /// Commits what there is; what it emitted.
    pub fn commit(&mut self) -> Vec<String> {
        let Some(sealed) = self.task.seal(0).unwrap() else { return Vec::new() };
        let seen = emitted(&sealed);
        commit(&mut self.task, sealed);
        seen
    }

    /// Rows of the store, in their order: `key@offset attempts`.
    pub fn rows(&self) -> Vec<String> {
        let page = self.task.reader().unwrap().rows(Table::Parked, b"", 100).unwrap();
        let record = |value: Option<&[u8]>| ParkedRecord::decode(value.unwrap()).unwrap();
        let show = |record: ParkedRecord| {
            let key = record.key.map_or("-".into(), |key| String::from_utf8(key).unwrap());
            format!("{key}@{} {}", record.offset, record.attempts)
        };
        page.values.iter().map(|value| show(record(value))).collect()
    }
}

#[test]
fn later_records_of_a_parked_key_wait_in_their_order_and_other_keys_go_on() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 3)));
    let applied = patient.apply(0, &["a", "b!flaky", "b", "c"]);
    assert_eq!((applied.ok, applied.failed, applied.waiting), (2, 1, 1));
    let applied = patient.apply(4, &["b", "a", "b!flaky"]);
    assert_eq!((applied.ok, applied.failed, applied.waiting), (1, 0, 2));
    assert_eq!(patient.task.next(0), Some(Offset(7)), "what is parked has been passed");
    assert_eq!(patient.commit(), ["a=1", "c=1", "a=2"]);
    assert_eq!(patient.rows(), ["b@1 1", "b@2 0", "b@4 0", "b@6 0"]);

    assert_eq!(patient.retry_after(0), 0, "not before its time");
    assert_eq!(patient.retry_after(SECOND_MS), 1, "only the head is tried");
    assert_eq!(patient.commit(), [""; 0]);
    assert_eq!(patient.rows()[0], "b@1 2");
    patient.heal();
    assert_eq!(patient.retry_after(2 * SECOND_MS), 4, "success releases the queue");
    assert_eq!(patient.commit(), ["b=1", "b=2", "b=3", "b=4"]);
    assert_eq!((patient.rows().len(), patient.task.parked()), (0, (0, 0)));
    patient.apply(7, &["b"]);
    assert_eq!(patient.commit(), ["b=5"]);
}

#[test]
fn deployments_and_inputs_whose_records_fail_together_do_not_try_them_together() {
    let at_ms = |incarnation: &str, input: u16| {
        let mut bench = Bench::in_memory();
        let other = TaskInput { topic: "others".into(), topic_id: "others-id".into() };
        let mut config = TaskConfig { incarnation: incarnation.into(), ..parking(failures(Then::Park, 3)) };
        config.inputs.push(other);
        let mut patient = Patient::new(&mut bench, config);
        let taken = patient.taken();
        patient.task.apply(Batch { input, ..records(5, ["b!flaky"]) }, taken).unwrap();
        patient.commit();
        let page = patient.task.reader().unwrap().rows(Table::Parked, b"", 1).unwrap();
        ParkedRecord::decode(page.values.row(0).unwrap()).unwrap().next_attempt_ms - taken.wall_ms
    };
    let (one, input, deployment) = (at_ms("life", 0), at_ms("life", 1), at_ms("another", 0));
    assert!(one != input && one != deployment && input != deployment, "{one}, {input}, {deployment}");
    assert_eq!(at_ms("life", 0), one, "a simulated run repeats itself");
}

#[test]
fn a_retry_is_a_commit_with_every_offset_although_no_record_came() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 3)));
    patient.apply(0, &["b!flaky"]);
    patient.commit();
    assert!(patient.task.pending().is_empty());
    patient.heal();
    patient.retry_after(SECOND_MS);
    let sealed = patient.task.seal(0).unwrap().expect("there is something to commit");
    let offsets: Vec<u64> = sealed.offsets.iter().map(|offset| offset.offset.0).collect();
    assert_eq!(offsets, [1], "unmoved, but sent: they are what fences a zombie");
    commit(&mut patient.task, sealed);
}

#[test]
fn the_last_attempt_ends_in_a_dead_letter_and_frees_the_key() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 2)));
    let mut batch = records(5, ["b!flaky", "b"]);
    let own = headers::encode([("ce-id", Some(&b"7"[..])), ("correlation-id", Some(b"c"))].into_iter());
    batch.headers.push(Some(&own));
    batch.headers.push(None);
    patient.task.apply(batch, patient.taken()).unwrap();
    assert_eq!(patient.retry_after(SECOND_MS), 1);
    assert_eq!(patient.retry_after(2 * SECOND_MS - 1_001), 0, "half of the second pause has not passed");
    assert_eq!(patient.retry_after(1_001), 2, "the last attempt, and the one that waited");
    let buried_ms = patient.now_ms;
    assert_eq!(patient.retry_after(SECOND_MS), 0, "nothing is left to try");
    let sealed = patient.task.seal(0).unwrap().unwrap();
    let mut rows = sealed.emissions.iter().flat_map(|emissions| emissions.rows());
    let letter = rows.find(|row| row.output == 1).expect("a letter");
    assert_eq!((letter.partition, letter.timestamp), (PARTITION, buried_ms));
    assert_eq!((letter.key, letter.value), (Some(&b"b"[..]), Some(&b"flaky"[..])));
    let all = headers::decode(letter.headers.unwrap()).unwrap();
    assert_eq!(all[..2], headers::decode(&own).unwrap()[..], "its own headers are untouched");
    let text = |name: &str| {
        let value = all.iter().find(|(found, _)| *found == name).and_then(|(_, value)| *value).unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    let expected = [
        ("original_topic", "words"),
        ("original_partition", "3"),
        ("original_offset", "5"),
        ("original_timestamp", "1000"),
        ("failure_reason", "not healed"),
        ("error_class", "transient"),
        ("attempts", "3"),
        ("retry_count", "0"),
        ("correlation_id", "c"),
        ("format", "raw"),
    ];
    for (name, value) in expected {
        assert_eq!(text(name), value, "{name}");
    }
    assert_eq!(emitted(&sealed).last().map(String::as_str), Some("b=1"), "the key's next record went on");
}

#[test]
fn without_attempts_a_dead_letter_is_written_at_once_and_nothing_waits() {
    let mut bench = Bench::new();
    let mut config = parking(Failures::at_once(Then::DeadLetter));
    config.keeps_rows = false;
    let mut patient = Patient::new(&mut bench, config);
    let applied = patient.apply(0, &["a", "b!garbled", "b", "b!trap", "b"]);
    assert_eq!((applied.ok, applied.failed, applied.waiting), (3, 2, 0));
    assert_eq!(patient.commit(), ["a=1", "b=garbled", "b=1", "b=trap", "b=2"]);
}

#[test]
fn of_a_sample_some_become_letters_and_the_others_are_skipped_the_same_ones_every_time() {
    let run = || {
        let mut bench = Bench::new();
        let sampled =
            |kind| Policy { sample_ppm: 100_000, attempts: 0, ..Policy::default_for(kind, Then::DeadLetter) };
        let mut patient = Patient::new(&mut bench, parking(Failures::by_kind(sampled)));
        let applied = patient.apply(0, &["b!garbled"; 400]);
        assert_eq!((applied.ok, applied.failed, applied.waiting), (0, 400, 0));
        let letters = patient.commit();
        let skipped = patient.task.metrics.skipped.get();
        assert_eq!(letters.len() as u64 + skipped, 400);
        skipped
    };
    let skipped = run();
    assert!((320..390).contains(&skipped), "one in ten of 400 was to be kept, {skipped} were not");
    assert_eq!(run(), skipped);
}

#[test]
fn a_task_without_room_to_park_stops_exactly_before_the_record_and_goes_on_later() {
    let mut bench = Bench::new();
    let mut config = parking(failures(Then::DeadLetter, 9));
    config.failures.parked.records = 2;
    let mut patient = Patient::new(&mut bench, config);
    let applied = patient.apply(0, &["b!flaky", "a", "b", "a", "b", "a", "c"]);
    assert_eq!((applied.ok, applied.failed, applied.waiting, applied.ignored), (2, 1, 1, 3));
    assert!(patient.task.is_running() && patient.task.is_blocked());
    assert_eq!(patient.task.next(0), Some(Offset(4)));
    assert_eq!(patient.apply(4, &["x"]).ignored, 1, "a blocked task takes nothing");
    patient.task.advance(0, Offset(9));
    assert_eq!(patient.task.next(0), Some(Offset(4)));
    assert_eq!(patient.commit(), ["a=1", "a=2"]);
    assert!(patient.task.unblock().is_none(), "nothing has changed");

    patient.heal();
    patient.retry_after(SECOND_MS);
    let positions = patient.task.unblock().expect("there is room");
    assert_eq!(positions[0].1, Offset(4));
    patient.apply(4, &["b", "a", "c"]);
    assert_eq!(patient.commit(), ["b=1", "b=2", "b=3", "a=3", "c=1"]);
}

#[test]
fn a_large_record_without_room_waits_until_it_fits_though_a_tenth_is_free() {
    let mut bench = Bench::new();
    let mut config = parking(failures(Then::DeadLetter, 9));
    // Each takes 743 bytes.
    config.failures.parked.bytes = 1_700;
    let mut patient = Patient::new(&mut bench, config);
    let large = ["a", "b", "c"].map(|key| format!("{}!flaky", key.repeat(600)));
    let applied = patient.apply(0, &[&large[0], &large[1], &large[2]]);
    assert_eq!((applied.failed, applied.ignored), (2, 1));
    assert!(patient.task.is_blocked());
    assert!(patient.task.unblock().is_none(), "it would only be read again, and fail");

    patient.heal();
    assert_eq!(patient.retry_after(SECOND_MS), 2);
    assert_eq!(patient.task.unblock().expect("there is room")[0].1, Offset(2));
}

#[test]
fn what_a_drop_takes_back_was_never_parked() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 9)));
    patient.apply(0, &["b!flaky", "b"]);
    patient.commit();
    patient.apply(2, &["b", "c!flaky"]);
    patient.heal();
    assert_eq!(patient.retry_after(2 * SECOND_MS), 4);
    let refused = patient.task.seal(0).unwrap().unwrap();
    patient.task.drop_uncommitted(Some(refused)).unwrap();
    assert_eq!(patient.task.parked().0, 2, "as committed");
    assert_eq!(patient.task.next(0), Some(Offset(2)));
    patient.apply(2, &["b", "c!flaky"]);
    patient.retry_after(0);
    assert_eq!(patient.commit(), ["c=1", "b=1", "b=2", "b=3"]);
}

#[test]
fn parked_records_outlive_their_task() {
    let mut bench = Bench::new();
    let config = parking(failures(Then::DeadLetter, 9));
    let mut patient = Patient::new(&mut bench, config.clone());
    patient.apply(0, &["b!flaky", "b"]);
    patient.commit();
    let now_ms = patient.now_ms;
    let store = patient.task.close(None).store;
    let start = adopted(start(store, vec![Offset(2)], 2));
    let counter = Counter::default();
    let healed = Arc::clone(&counter.healed);
    let task = Task::new(Arc::new(config), PARTITION, Box::new(counter), start).unwrap();
    let mut patient = Patient { task, healed, now_ms };
    patient.heal();
    assert_eq!(patient.apply(2, &["b"]).waiting, 1);
    assert_eq!(patient.retry_after(SECOND_MS), 3);
    assert_eq!(patient.commit(), ["b=1", "b=2", "b=3"]);
}

#[test]
fn a_held_key_stays_until_another_revision_tries_it_again() {
    let mut bench = Bench::new();
    let config = parking(failures(Then::Park, 0));
    let mut patient = Patient::new(&mut bench, config.clone());
    patient.apply(0, &["b!flaky", "b", "a"]);
    assert_eq!(patient.commit(), ["a=1"]);
    assert_eq!(patient.retry_after(3_600 * SECOND_MS), 0, "it waits for a person");
    let now_ms = patient.now_ms;
    let start = adopted(start(patient.task.close(None).store, vec![Offset(3)], 2));
    let counter = Counter::default();
    let healed = Arc::clone(&counter.healed);
    let config = TaskConfig { revision: 2, ..config };
    let task = Task::new(Arc::new(config), PARTITION, Box::new(counter), start).unwrap();
    let mut patient = Patient { task, healed, now_ms };
    patient.heal();
    assert_eq!(patient.retry_after(0), 2);
    assert_eq!(patient.commit(), ["b=1", "b=2"]);
}

#[test]
fn without_order_later_records_overtake_a_parked_one() {
    let mut bench = Bench::new();
    let mut config = parking(failures(Then::DeadLetter, 9));
    config.failures.order = ParkOrder::None;
    let mut patient = Patient::new(&mut bench, config);
    let applied = patient.apply(0, &["b!flaky", "b", "b"]);
    assert_eq!((applied.ok, applied.failed, applied.waiting), (2, 1, 0));
    patient.heal();
    patient.retry_after(SECOND_MS);
    assert_eq!(patient.commit(), ["b=1", "b=2", "b=3"]);
}

#[test]
fn a_kind_that_halts_stops_exactly_there_though_others_are_parked() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::Halt, 9)));
    let applied = patient.apply(0, &["a", "b!flaky", "c!fail", "a", "d"]);
    assert_eq!((applied.ok, applied.failed, applied.ignored), (1, 2, 2));
    assert!(!patient.task.is_running());
    assert_eq!(patient.task.next(0), Some(Offset(2)));
    assert_eq!(patient.commit(), ["a=1"], "nothing of what ran behind it");
}

#[test]
fn a_clock_that_is_set_back_does_not_put_a_retry_off() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 9)));
    patient.now_ms = 315_360_000_000 + 1_000_000;
    patient.apply(0, &["b!flaky"]);
    patient.heal();
    assert_eq!(patient.retry_after(-315_360_000_000), 1, "ten years back");
}

#[test]
fn a_record_too_large_to_park_or_to_bury_halts_the_task() {
    for (then, attempts) in [(Then::Park, 0), (Then::DeadLetter, 0)] {
        let mut bench = Bench::new();
        let mut config = parking(failures(then, attempts));
        config.changelog.record_bytes_max = 1_600;
        config.outputs[1].record_bytes_max = 600;
        let mut patient = Patient::new(&mut bench, config);
        let long = format!("{}!fail", "k".repeat(200));
        patient.apply(0, &["a", &long, "a"]);
        assert_eq!(patient.task.next(0), Some(Offset(1)), "{then:?}");
        let TaskState::Halted(failure) = patient.task.state() else { panic!("{then:?}: it runs") };
        assert!(
            failure.reason.contains("too large") || failure.reason.contains("above the max"),
            "{failure}"
        );
        assert_eq!(patient.commit(), ["a=1"]);
    }
}

#[test]
fn nothing_that_ran_behind_a_record_which_halts_the_task_is_kept_however_near_to_a_bound_that_is() {
    // Its correlation id takes three times its bytes in a letter.
    let (correlation, schema) = ([0xffu8; 1024], [b's'; 1024]);
    let own = [("correlation-id", Some(&correlation[..])), ("schema-version", Some(&schema[..]))];
    let own = headers::encode(own.into_iter());
    let run = |config: TaskConfig, key: &str, own: Option<&[u8]>| {
        let mut bench = Bench::in_memory();
        let mut patient = Patient::new(&mut bench, config);
        let mut batch = records(0, ["a", key, "a"]);
        [None, own, None].into_iter().for_each(|own| batch.headers.push(own));
        patient.task.apply(batch, patient.taken()).unwrap();
        let (runs, emitted) = (patient.task.is_running(), patient.commit());
        let has = |wanted: &str| emitted.iter().any(|row| row == wanted);
        assert!(has("a=1") && has("a=2") == runs, "it runs: {runs}, {emitted:?}");
        runs
    };
    let parks = (20..60).map(|length| {
        let mut config = parking(failures(Then::Park, 0));
        config.changelog.record_bytes_max = 1_600;
        run(config, &format!("{}!fail", "k".repeat(length)), None)
    });
    let parks: Vec<bool> = parks.collect();
    assert!(parks.contains(&true) && parks.contains(&false), "on both sides of the bound");
    let buries = (6_000..8_000).step_by(100).map(|bytes| {
        let mut config = parking(failures(Then::DeadLetter, 0));
        config.outputs[1].record_bytes_max = bytes;
        run(config, "b!fail", Some(&own))
    });
    let buries: Vec<bool> = buries.collect();
    assert!(buries.contains(&true) && buries.contains(&false), "on both sides of the bound");
}
