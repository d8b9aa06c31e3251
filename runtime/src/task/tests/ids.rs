//! The inbox: repetitions, what is no repetition, how ids are forgotten, and how they are restored.

use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message;

use super::super::recovery::*;
use super::*;
use crate::config::deployment::{IdSource, InboxSpec, Place, join_id};
use crate::config::failures::{Backoff, Policy, Then};
use crate::ports::{LogRecord, SourceError};
use crate::store::{POSITION, Position, Progress, unpack};

const TTL_MS: i64 = 3_600_000;

fn inbox(failures: Failures) -> TaskConfig {
    let ttl = Duration::from_millis(TTL_MS as u64);
    let id = Some(vec![IdSource::In(Place::Header("id".into()))]);
    TaskConfig { inbox: Some(InboxSpec { id, sequence: None, ttl }), ..parking(failures) }
}

/// Records whose ids stand behind a colon: `key!command:id`. Without one there is no id.
fn with_ids(from: i64, records_with_ids: &[&str]) -> Batch {
    let split =
        |text: &&str| text.rsplit_once(':').map(|(record, id)| (record.to_owned(), Some(id.to_owned())));
    let parts: Vec<(String, Option<String>)> =
        records_with_ids.iter().map(|text| split(text).unwrap_or(((*text).to_owned(), None))).collect();
    let batch = records(from, parts.iter().map(|(record, _)| record.as_str()));
    with_header(batch, "id", parts.iter().map(|(_, id)| id.as_deref()))
}

pub(super) fn at(ms: i64) -> TakenAt {
    TakenAt { monotonic: Duration::from_millis(ms as u64), wall_ms: ms }
}

/// Sets the time of every record.
fn timed(mut batch: Batch, ms: i64) -> Batch {
    batch.timestamps.fill(ms);
    batch
}

fn seal_and_commit(task: &mut Task) -> (Vec<String>, Position) {
    let sealed = task.seal(0).unwrap().expect("something to commit");
    let seen = emitted(&sealed);
    let rows = sealed.changelog.as_ref().unwrap();
    let position = rows.keys.iter().position(|key| key == Some(POSITION)).unwrap();
    let position = Position::decode(rows.values.row(position).unwrap()).unwrap();
    commit(task, sealed);
    (seen, position)
}

#[test]
fn a_repetition_has_no_effect_in_its_batch_in_its_overlay_and_after_the_commit() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(inbox(Failures::halt()));
    let applied = task.apply(with_ids(0, &["a:1", "b:2", "a:1", "a:3", "b:3"]), at(1)).unwrap();
    assert_eq!((applied.ok, applied.duplicates, applied.ignored), (3, 2, 0));
    let applied = task.apply(with_ids(5, &["c:2", "c:4"]), at(1)).unwrap();
    assert_eq!((applied.ok, applied.duplicates), (1, 1));
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(inbox_keys(&sealed), [b"\x021", b"\x022", b"\x023", b"\x024"]);
    assert_eq!(sealed.inbox.as_ref().unwrap().keys.len(), 1, "in one record");
    let others = sealed.changelog.as_ref().unwrap();
    assert_eq!(others.keys.len(), 4, "three keys and the position: ids are in a topic of their own");
    assert_eq!(emitted(&sealed), ["a=1", "b=1", "a=2", "c=1"]);
    commit(&mut task, sealed);

    let applied = task.apply(with_ids(7, &["a:1", "a:4"]), at(1)).unwrap();
    assert_eq!((applied.ok, applied.duplicates), (0, 2));
    assert_eq!(task.next(0), Some(Offset(9)));
    let (seen, _) = seal_and_commit(&mut task);
    assert_eq!(seen, [""; 0]);
}

#[test]
fn a_record_that_failed_does_not_count_as_seen() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(inbox(Failures::skip()));
    let applied = task.apply(with_ids(0, &["a!fail:1", "a:1", "a!trap:2", "a:2", "a:2"]), at(1)).unwrap();
    assert_eq!((applied.ok, applied.failed, applied.duplicates), (2, 2, 1));
    assert_eq!(seal_and_commit(&mut task).0, ["a=1", "a=2"]);
}

#[test]
fn an_id_is_dropped_with_the_effects_of_its_record() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(inbox(Failures::halt()));
    task.apply(timed(with_ids(0, &["a:1"]), 50), at(100)).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    task.apply(timed(with_ids(1, &["a:2"]), 90), at(100)).unwrap();
    task.drop_uncommitted(Some(refused)).unwrap();
    let applied = task.apply(timed(with_ids(0, &["a:1", "a:2"]), 20), at(100)).unwrap();
    assert_eq!((applied.ok, applied.duplicates), (2, 0));
    let (seen, position) = seal_and_commit(&mut task);
    assert_eq!(
        (seen, position.inbox_horizon_ms),
        (vec!["a=1".into(), "a=2".into()], 20),
        "the horizon as well"
    );
}

#[test]
fn a_record_without_an_id_follows_the_failure_policy() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(inbox(Failures::at_once(Then::DeadLetter)));
    let applied = task.apply(with_ids(0, &["a:1", "a", "a:2", "a:"]), at(1)).unwrap();
    assert_eq!((applied.ok, applied.failed), (2, 2));
    let failure = applied.failure.unwrap();
    assert_eq!((failure.kind, failure.offset), (FailureKind::Decode, Offset(1)));
    assert!(failure.reason.contains("header:id"), "{failure}");
}

#[test]
fn a_repetition_of_a_parked_record_waits_behind_it_and_then_has_no_effect() {
    let backoff = Backoff { min: Duration::from_millis(10), max: Duration::from_millis(10) };
    let failures =
        Failures::by_kind(|kind| Policy { attempts: 9, backoff, ..Policy::default_for(kind, Then::Halt) });
    let healed = Arc::new(AtomicBool::new(false));
    let mut bench = Bench::new();
    let counter = Counter { healed: Arc::clone(&healed), ..Counter::default() };
    let mut task = bench.task_of(inbox(failures), counter);
    let applied = task.apply(with_ids(0, &["a!flaky:1", "a!flaky:1", "a:2"]), at(1)).unwrap();
    assert_eq!((applied.failed, applied.waiting, applied.duplicates), (1, 2, 0));
    healed.store(true, Ordering::Relaxed);
    task.retry(at(100)).unwrap();
    assert_eq!(task.parked(), (0, 0));
    assert_eq!(seal_and_commit(&mut task).0, ["a=1", "a=2"]);
}

#[test]
fn ids_are_forgotten_in_the_time_of_the_records_and_no_clock_empties_the_inbox() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(inbox(Failures::halt()));
    let now = 10 * TTL_MS;
    task.apply(timed(with_ids(0, &["a:1"]), now), at(now)).unwrap();
    // A time stamp from the far future counts as little more than now.
    task.apply(timed(with_ids(1, &["a:2"]), 1_000 * TTL_MS), at(now)).unwrap();
    let applied = task.apply(timed(with_ids(2, &["a:1"]), now), at(now)).unwrap();
    assert_eq!(applied.duplicates, 1, "the first id is still there");
    // A clock ten years ahead changes nothing, for the records' own times count.
    let applied = task.apply(timed(with_ids(3, &["a:1"]), now + 1), at(now + 90_000 * TTL_MS)).unwrap();
    assert_eq!(applied.duplicates, 1);
    // A late record does not move the horizon back.
    task.apply(timed(with_ids(4, &["a:3"]), 5), at(now)).unwrap();
    let (_, position) = seal_and_commit(&mut task);
    assert!(position.inbox_horizon_ms > now && position.inbox_horizon_ms < now + TTL_MS / 2);

    let later = now + 2 * TTL_MS;
    let applied = task.apply(timed(with_ids(5, &["b:9", "a:1"]), later), at(later)).unwrap();
    assert_eq!((applied.ok, applied.duplicates), (2, 0), "a TTL has passed");
}

/// Whichever records share its batch: a late one is judged by the horizon that those before it have made.
#[test]
fn a_late_record_is_judged_alike_in_one_batch_and_in_many() {
    let ids = ["a:1", "b:2", "a:1", "c:3"];
    let times = [TTL_MS, 2 * TTL_MS + 10, 2 * TTL_MS - 10, 2 * TTL_MS - 20];
    let mut outcomes = Vec::new();
    for size in [1, 4] {
        let mut bench = Bench::new();
        let mut task = bench.task_with(inbox(Failures::halt()));
        let mut all = with_ids(0, &ids);
        all.timestamps.copy_from_slice(&times);
        let mut sum = (0, 0);
        for start in (0..ids.len()).step_by(size) {
            let applied = task.apply(all.slice(start..start + size), at(3 * TTL_MS)).unwrap();
            sum = (sum.0 + applied.ok, sum.1 + applied.duplicates);
        }
        outcomes.push((sum, seal_and_commit(&mut task).0));
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(outcomes[0].0, (4, 0), "b has moved the horizon a TTL beyond the first a");
}

#[test]
fn a_clock_that_stands_still_does_not_freeze_the_inbox() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(inbox(Failures::halt()));
    let frozen = |ms: i64| TakenAt { monotonic: Duration::from_millis(ms as u64), wall_ms: 1_000 };
    task.apply(timed(with_ids(0, &["a:1"]), 1_000), frozen(0)).unwrap();
    task.apply(timed(with_ids(1, &["a:2"]), 1_000 + 2 * TTL_MS), frozen(2 * TTL_MS)).unwrap();
    let applied = task.apply(timed(with_ids(2, &["a:1"]), 1_000 + 2 * TTL_MS), frozen(2 * TTL_MS)).unwrap();
    assert_eq!(applied.ok, 1, "forgotten after a TTL, as it should be");
}

#[test]
fn a_clock_that_was_set_back_before_the_start_neither_freezes_nor_empties_the_inbox() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let now = 10 * TTL_MS;
    let mut task = started(&bench, &mut kafka);
    task.apply(timed(with_ids(0, &["a:1"]), now), at(now)).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    kafka.commit(&sealed);
    commit(&mut task, sealed);
    task.close(None).store.unwrap().close().unwrap();

    let mut task = started(&bench, &mut kafka);
    let set_back = |ms: i64| TakenAt { monotonic: Duration::from_millis(ms as u64), wall_ms: ms };
    task.apply(timed(with_ids(1, &["a:2"]), 1_000 * TTL_MS), set_back(0)).unwrap();
    let applied = task.apply(timed(with_ids(2, &["a:1"]), now), set_back(0)).unwrap();
    assert_eq!(applied.duplicates, 1, "a time stamp from the far future counts as the horizon");
    let later = 2 * TTL_MS;
    task.apply(timed(with_ids(3, &["a:3"]), now + later), set_back(later)).unwrap();
    let applied = task.apply(timed(with_ids(4, &["a:1"]), now + later), set_back(later)).unwrap();
    assert_eq!(applied.ok, 1, "forgotten after a TTL, as it should be");
}

fn recovered(bench: &Bench, kafka: &mut FakeKafka) -> Outcome {
    try_recover(bench, kafka).unwrap()
}

fn try_recover(bench: &Bench, kafka: &mut FakeKafka) -> Result<Outcome, RecoveryError> {
    let config = inbox(Failures::halt());
    let started = vec![Some(Started { topic_id: "words-id".into(), offset: Offset(0) })];
    let dir = bench.dir.path().join("0");
    let job = Job {
        config: &config,
        partition: PARTITION,
        known: Known { started, first_commit: Vec::new() },
        cluster_id: "cluster",
        disk: Disk { budget: &bench.budget, dir: &dir, open: None },
        rules: Rules {
            delete_retention: Duration::from_secs(86_400),
            min_compaction_lag: Duration::ZERO,
            old_tail: OldTail::Halt,
            wall_ms: kafka.now_ms,
        },
    };
    let mut hooks = Hooks { progress: &mut |_| true, pause: &mut |_| true };
    recover(job, kafka, &mut hooks)
}

fn started(bench: &Bench, kafka: &mut FakeKafka) -> Task {
    match recovered(bench, kafka) {
        Outcome::Start(start, _) => {
            let config = Arc::new(inbox(Failures::halt()));
            Task::new(config, PARTITION, Box::new(Counter::default()), adopted(start)).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

const HOURS: i64 = 12;

/// A commit with an id for each half of a TTL, and then the store is gone. Answers up to where the topic is trimmed.
fn commit_ids_and_lose_the_store(bench: &Bench, kafka: &mut FakeKafka) -> Offset {
    let mut task = started(bench, kafka);
    let mut trimmed = None;
    for hour in 0..HOURS {
        let now = (100 + hour) * TTL_MS / 2;
        let id = format!("a:{hour}");
        task.apply(timed(with_ids(hour, &[&id]), now), at(now)).unwrap();
        let sealed = task.seal(0).unwrap().unwrap();
        kafka.commit(&sealed);
        commit(&mut task, sealed);
        trimmed = task.trim().or(trimmed);
    }
    lose_the_store(bench, task);
    trimmed.expect("most of the ids have expired")
}

fn lose_the_store(bench: &Bench, task: Task) {
    drop(task.close(None).store);
    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
}

/// How many of the last two ids and the first one count, and how many are repetitions.
fn repeat_ids(task: &mut Task) -> (usize, usize) {
    let now = (100 + HOURS) * TTL_MS / 2 - 1;
    let (last, before, first) = (format!("a:{}", HOURS - 1), format!("a:{}", HOURS - 2), "a:0".to_owned());
    let applied = task.apply(timed(with_ids(HOURS, &[&last, &before, &first]), now), at(now)).unwrap();
    (applied.ok, applied.duplicates)
}

#[test]
fn ids_are_restored_from_their_topic_which_is_trimmed_only_of_what_has_expired() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let trimmed = commit_ids_and_lose_the_store(&bench, &mut kafka);
    // A record and a marker for each commit; the last two halves of a TTL and the commit before are kept.
    assert!(trimmed.0 >= 2 * (HOURS as u64 - 5) && trimmed.0 <= 2 * (HOURS as u64 - 2), "{trimmed}");
    kafka.ids_start = trimmed.0;

    let mut task = started(&bench, &mut kafka);
    assert_eq!(repeat_ids(&mut task), (1, 2), "what was remembered still is");
    lose_the_store(&bench, task);

    // Somebody else deletes what had not expired.
    kafka.ids_start = trimmed.0 + 4;
    match recovered(&bench, &mut kafka) {
        Outcome::Halt(reason) => assert!(reason.contains("had not expired"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// After a reset changelog and group are gone, and the ids stay.
#[test]
fn a_life_that_begins_with_the_ids_of_another_is_restored_although_what_had_expired_is_trimmed() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    commit_ids_and_lose_the_store(&bench, &mut kafka);
    // A record and a marker for each: the last two have not expired.
    let ids_start = 2 * (HOURS as u64 - 2);
    let mut kafka = FakeKafka { ids: kafka.ids, ids_start, ..FakeKafka::default() };
    let mut task = started(&bench, &mut kafka);
    let now = (100 + HOURS) * TTL_MS / 2 - 1;
    task.apply(timed(with_ids(0, &["b:new"]), now), at(now)).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    kafka.commit(&sealed);
    commit(&mut task, sealed);
    lose_the_store(&bench, task);

    let mut task = started(&bench, &mut kafka);
    assert_eq!(repeat_ids(&mut task), (1, 2), "what was remembered still is");
}

/// The owner before asks for it with its last commit, and does not wait.
#[test]
fn a_topic_of_ids_that_is_trimmed_while_it_is_read_is_judged_anew() {
    for read in [0, 1, 3] {
        let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
        let trimmed = commit_ids_and_lose_the_store(&bench, &mut kafka);
        kafka.late_trim = Some((read, trimmed.0));
        let mut task = started(&bench, &mut kafka);
        assert_eq!(kafka.ids_start, trimmed.0);
        assert_eq!(repeat_ids(&mut task), (1, 2), "after {read} records");
        lose_the_store(&bench, task);

        kafka.ids_start = 0;
        kafka.late_trim = Some((read, trimmed.0 + 4));
        match recovered(&bench, &mut kafka) {
            Outcome::Halt(reason) => assert!(reason.contains("had not expired"), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(kafka.ids_start, trimmed.0 + 4);
    }
}

#[test]
fn ids_whose_restore_was_stopped_anywhere_are_all_there_with_the_next_one() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    commit_ids_and_lose_the_store(&bench, &mut kafka);
    let whole = started(&bench, &mut kafka);
    let ids = whole.close(None).store.unwrap().progress().inbox_ids;
    // The group's offsets, the changelog's bounds, the changelog; then the bounds of the ids.
    let changelog = 2 + kafka.log.iter().flatten().count();
    let all = changelog + 1 + kafka.ids.iter().flatten().count();
    for stops_after in changelog..all {
        std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
        kafka.stops_after = Some(stops_after);
        assert!(matches!(recovered(&bench, &mut kafka), Outcome::Stopped), "after {stops_after}");
        kafka.stops_after = None;
        let mut task = started(&bench, &mut kafka);
        assert_eq!(repeat_ids(&mut task), (1, 2), "stopped after {stops_after}");
        let progress = task.close(None).store.unwrap().progress();
        assert_eq!((progress.inbox_next.0, progress.inbox_ids), (kafka.ids.len() as u64, ids));
    }
    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
    kafka.stops_after = Some(all);
    assert!(matches!(recovered(&bench, &mut kafka), Outcome::Start(..)), "there is no more to stop");
}

#[test]
fn what_cannot_be_read_of_a_topic_of_ids_that_begins_where_it_did_is_an_error() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    commit_ids_and_lose_the_store(&bench, &mut kafka);
    kafka.late_trim = Some((3, 0));
    let error = try_recover(&bench, &mut kafka).unwrap_err();
    assert!(matches!(error, RecoveryError::Kafka(SourceError::Refused(_))), "{error}");
    let mut task = started(&bench, &mut kafka);
    assert_eq!(repeat_ids(&mut task), (1, 2), "and goes on behind what was read");
}

#[test]
fn records_of_one_id_each_are_restored_as_well_and_one_that_cannot_be_read_halts() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut task = started(&bench, &mut kafka);
    task.apply(with_ids(0, &["a:1", "a:2"]), at(1_000)).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    kafka.commit(&sealed);
    commit(&mut task, sealed);
    drop(task.close(None).store);
    // As they were written before they were packed.
    let packed = kafka.ids[0].take().unwrap();
    let alone = |(key, value): (&[u8], Option<&[u8]>)| {
        Some(LogRecord { key: key.to_vec(), value: value.map(<[u8]>::to_vec), ..packed.clone() })
    };
    kafka.ids = unpack(&packed.key, packed.value.as_deref()).unwrap().map(alone).chain([None]).collect();
    for (offset, record) in kafka.ids.iter_mut().enumerate() {
        record.iter_mut().for_each(|record| record.offset = Offset(offset as u64));
    }
    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
    let mut task = started(&bench, &mut kafka);
    let applied = task.apply(with_ids(2, &["a:1", "a:2", "a:3"]), at(1_000)).unwrap();
    assert_eq!((applied.ok, applied.duplicates), (1, 2));
    drop(task.close(None).store);

    let damaged = packed.value.as_ref().map(|value| value[..value.len() - 1].to_vec());
    let offset = Offset(kafka.ids.len() as u64);
    kafka.ids.push(Some(LogRecord { offset, value: damaged, ..packed }));
    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
    let error = try_recover(&bench, &mut kafka).unwrap_err().to_string();
    assert!(error.contains("offset 3 of the inbox's topic (partition 3) cannot be read"), "{error}");
}

#[test]
fn a_revision_without_an_inbox_does_not_forget_what_was_trimmed_before_it() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut task = started(&bench, &mut kafka);
    let mut trimmed = None;
    for number in 0..6 {
        let now = (100 + number) * TTL_MS;
        let id = format!("a:{number}");
        task.apply(timed(with_ids(number, &[&id]), now), at(now)).unwrap();
        let sealed = task.seal(0).unwrap().unwrap();
        kafka.commit(&sealed);
        commit(&mut task, sealed);
        trimmed = task.trim().or(trimmed);
    }
    kafka.ids_start = trimmed.expect("most of the ids have expired").0;
    task.close(None).store.unwrap().close().unwrap();

    let Outcome::Start(start, _) = recovered(&bench, &mut kafka) else { panic!("it does not start") };
    let config = Arc::new(TaskConfig { inbox: None, ..inbox(Failures::halt()) });
    let mut task = Task::new(config, PARTITION, Box::new(Counter::default()), adopted(start)).unwrap();
    let now = 105 * TTL_MS + 1;
    task.apply(timed(records(6, ["a"]), now), at(now)).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    kafka.commit(&sealed);
    commit(&mut task, sealed);
    drop(task.close(None).store);

    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
    let mut task = started(&bench, &mut kafka);
    let applied = task.apply(timed(with_ids(7, &["a:5", "a:6"]), now), at(now)).unwrap();
    assert_eq!((applied.ok, applied.duplicates), (1, 1));
}

/// Ids that rise with time are the worst case: RocksDB itself never rewrites their tables.
#[test]
fn store_and_topic_stay_as_small_over_ten_ttls_as_after_one_also_if_restarts_are_more_frequent() {
    const A_TTL: i64 = 20_000;
    const BATCH: i64 = 500;
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut task = started(&bench, &mut kafka);
    let (mut sizes, mut trimmed) = (Vec::new(), 0);
    for number in 0..10 * A_TTL / BATCH {
        let now = 100 * TTL_MS + number * BATCH * TTL_MS / A_TTL;
        let ids: Vec<String> =
            (number * BATCH..(number + 1) * BATCH).map(|id| format!("a:order-{id:09}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let applied = task.apply(timed(with_ids(number * BATCH, &ids), now), at(now)).unwrap();
        assert_eq!(applied.ok as i64, BATCH);
        let sealed = task.seal(0).unwrap().unwrap();
        kafka.commit(&sealed);
        commit(&mut task, sealed);
        if let Some(trim) = task.trim() {
            (kafka.ids_start, trimmed) = (trim.0, trim.0);
        }
        if number % 4 == 0 {
            let readers = [task.reader().unwrap().clone()];
            readers[0].flush().unwrap();
            crate::store::sweep_due(&readers).unwrap();
            readers[0].settle().unwrap();
            sizes.push((number * BATCH / A_TTL, readers[0].sizes().unwrap().disk_bytes));
        }
        // Three times a TTL.
        if number % (A_TTL / BATCH / 3) == 0 {
            task.close(None).store.unwrap().close().unwrap();
            task = started(&bench, &mut kafka);
        }
    }
    let kept = kafka.ids[trimmed as usize..].iter().flatten();
    let rows = kept.flat_map(|record| unpack(&record.key, record.value.as_deref()).unwrap()).count();
    assert!((A_TTL as usize..2 * A_TTL as usize).contains(&rows), "{rows} rows are in the topic");
    let most = |ttls: std::ops::Range<i64>| {
        sizes.iter().filter(|(ttl, _)| ttls.contains(ttl)).map(|(_, bytes)| *bytes).max().unwrap()
    };
    let (early, late) = (most(1..4), most(4..10));
    assert!(late < early * 5 / 4, "{early} bytes after a few TTLs, {late} after ten: {sizes:?}");
}

/// As after a backup of the state directory was put back.
#[test]
fn ids_that_a_store_has_and_its_topic_does_not_any_more_are_swept_after_the_first_commit() {
    const IDS: i64 = 20_000;
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let [dir, aside] = ["0", "aside"].map(|name| bench.dir.path().join(name));
    let commit_at = |task: &mut Task, kafka: &mut FakeKafka, batch: Batch, now: i64| {
        task.apply(timed(batch, now), at(now)).unwrap();
        let sealed = task.seal(0).unwrap().unwrap();
        kafka.commit(&sealed);
        commit(task, sealed);
        task.trim()
    };
    let mut task = started(&bench, &mut kafka);
    let mut now = 100 * TTL_MS;
    for from in (0..IDS).step_by(500) {
        let ids: Vec<String> = (from..from + 500).map(|id| format!("a:{id}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        commit_at(&mut task, &mut kafka, with_ids(from, &ids), now);
    }
    task.close(None).store.unwrap().close().unwrap();
    std::fs::create_dir(&aside).unwrap();
    for file in std::fs::read_dir(&dir).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), aside.join(file.file_name())).unwrap();
    }

    let mut task = started(&bench, &mut kafka);
    for later in 0..4 {
        now += 2 * TTL_MS;
        let id = format!("a:later-{later}");
        let trim = commit_at(&mut task, &mut kafka, with_ids(IDS + later, &[&id]), now);
        kafka.ids_start = trim.map_or(kafka.ids_start, |trim| trim.0);
    }
    let reader = task.reader().unwrap().clone();
    assert_eq!(crate::store::sweep_due(&[reader]).unwrap(), 1, "while it runs");
    task.close(None).store.unwrap().close().unwrap();

    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&aside, &dir).unwrap();
    let mut task = started(&bench, &mut kafka);
    let readers = [task.reader().unwrap().clone()];
    assert_eq!(crate::store::sweep_due(&readers).unwrap(), 0, "no commit says yet what has expired");
    commit_at(&mut task, &mut kafka, with_ids(IDS + 4, &["a:last"]), now);
    assert_eq!(crate::store::sweep_due(&readers).unwrap(), 1);
}

/// Such a program says how far a store is by offsets alone, and may die before it has written ages of its own.
#[test]
fn ids_are_counted_on_from_their_ages_after_a_program_that_does_not_count_them() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut task = started(&bench, &mut kafka);
    let ids: Vec<String> = (0..100).map(|id| format!("a:{id}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    // How old the ids of a commit are is written with the next one.
    for (from, ids) in [(0, &ids[..]), (100, &["a:last"][..])] {
        task.apply(timed(with_ids(from, ids), 1_000), at(1_000)).unwrap();
        let sealed = task.seal(0).unwrap().unwrap();
        kafka.commit(&sealed);
        commit(&mut task, sealed);
    }
    let mut store = task.close(None).store.unwrap();
    let progress = store.progress();
    assert_eq!((progress.inbox_ids, progress.inbox_next), (101, Offset(4)), "two records and two markers");
    store.write(std::iter::empty(), Progress { inbox_ids: progress.inbox_next.0, ..progress }).unwrap();
    store.close().unwrap();
    let Outcome::Start(start, _) = recovered(&bench, &mut kafka) else { panic!("it does not start") };
    assert_eq!(start.store.unwrap().progress().inbox_ids, 100);
}

#[test]
fn ids_are_found_where_the_deployment_says() {
    let mut batch = records(7, ["key"]);
    batch.values = crate::record::Column::default();
    batch.values.push(Some(br#"{"order":{"id":17},"name":"n"}"#));
    let mut id = |sources: &[IdSource]| {
        let spec = InboxSpec { id: Some(sources.to_vec()), sequence: None, ttl: Duration::from_secs(1) };
        super::super::inbox::Inbox::new(spec, None).fill(&mut batch, 2);
        batch.ids.row(0).map(|id| String::from_utf8_lossy(id).into_owned())
    };
    let json = |pointer: &str| IdSource::In(Place::Json(pointer.into()));
    assert_eq!(id(&[IdSource::Key]).as_deref(), Some("key"));
    assert_eq!(id(&[json("/order/id")]).as_deref(), Some("17"));
    assert_eq!(id(&[json("/name")]).as_deref(), Some("n"));
    assert_eq!(id(&[json("/order")]), None);
    assert_eq!(id(&[IdSource::In(Place::Header("id".into()))]), None);
    assert_eq!(id(&[IdSource::Offset]).as_deref(), Some("\0\u{2}\0\0\0\0\0\0\0\u{7}"));
    let sha256 = "896eb15b4fc3b075129da6a2a6496787a3ecede9601026580f1a710231679129";
    assert_eq!(id(&[IdSource::Hash]).as_deref(), Some(sha256));
    assert_eq!(id(&[IdSource::Key, json("/order/id")]).as_deref(), Some("3:key,2:17"));
    assert_eq!(id(&[IdSource::Key, json("/order")]), None, "one of its parts is missing");
}

#[test]
fn a_number_that_is_not_told_from_those_near_it_is_no_id() {
    let id = Some(vec![IdSource::In(Place::Json("/id".into()))]);
    let inbox =
        super::super::inbox::Inbox::new(InboxSpec { id, sequence: None, ttl: Duration::from_secs(1) }, None);
    for (number, expected) in [
        ("18446744073709551615", Some("18446744073709551615")),
        ("-9223372036854775808", Some("-9223372036854775808")),
        ("1.5", Some("1.5")),
        ("18446744073709551616", None),
        ("18446744073709551617", None),
        ("1e300", None),
    ] {
        let mut batch = records(7, ["key"]);
        batch.values = crate::record::Column::default();
        batch.values.push(Some(format!("{{\"id\":{number}}}").as_bytes()));
        inbox.fill(&mut batch, 0);
        assert_eq!(batch.ids.row(0), expected.map(str::as_bytes), "{number}");
    }
}

#[test]
fn different_parts_never_make_the_same_id() {
    let lists = [["a", "bc"], ["ab", "c"], ["a,1:b", "c"], ["a", "b,1:c"]];
    let ids: std::collections::HashSet<Vec<u8>> = lists.iter().map(|parts| join_id(parts)).collect();
    assert_eq!(ids.len(), lists.len());
}
