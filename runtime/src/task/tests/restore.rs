//! Recovery as a whole: fake Kafka, real stores.

use super::super::recovery::*;
use super::*;
use crate::ports::CommittedOffset;

const SECOND: i64 = 1000;

/// How a test calls recovery.
struct Run<'a> {
    bench: &'a Bench,
    config: TaskConfig,
    known: Known,
    rules: Rules,
    open: Option<Store>,
}

impl<'a> Run<'a> {
    fn new(bench: &'a Bench, kafka: &FakeKafka) -> Run<'a> {
        let rules = Rules {
            delete_retention: Duration::from_secs(86_400),
            min_compaction_lag: Duration::from_secs(86_400),
            old_tail: OldTail::Halt,
            wall_ms: kafka.now_ms,
        };
        let started = vec![Some(Started { topic_id: "words-id".into(), offset: Offset(0) })];
        let known = Known { started, first_commit: Vec::new() };
        Run { bench, config: config(Failures::halt()), known, rules, open: None }
    }

    fn go(self, kafka: &mut FakeKafka) -> Outcome {
        let dir = self.bench.dir.path().join("0");
        let job = Job {
            config: &self.config,
            partition: PARTITION,
            known: self.known,
            cluster_id: "cluster",
            disk: Disk { budget: &self.bench.budget, dir: &dir, open: self.open },
            rules: self.rules,
        };
        let mut hooks = Hooks { progress: &mut |_| true, pause: &mut |_| true };
        recover(job, kafka, &mut hooks).unwrap()
    }

    fn start(self, kafka: &mut FakeKafka) -> (Start, Report) {
        match self.go(kafka) {
            Outcome::Start(start, report) => (start, report),
            other => panic!("{other:?}"),
        }
    }

    fn halt(self, kafka: &mut FakeKafka) -> String {
        match self.go(kafka) {
            Outcome::Halt(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn task(config: TaskConfig, start: Start) -> Task {
    Task::new(Arc::new(config), PARTITION, Box::new(Counter::default()), adopted(start)).unwrap()
}

/// A committed count of three words, in the log and in a store; the store is closed.
fn three_words(bench: &Bench, kafka: &mut FakeKafka) {
    let (start, _) = Run::new(bench, kafka).start(kafka);
    let mut task = task(config(Failures::halt()), start);
    for (offset, key) in ["a", "b", "a"].into_iter().enumerate() {
        task.apply(records(offset as i64, [key]), TakenAt::default()).unwrap();
        let sealed = task.seal(kafka.now_ms).unwrap().unwrap();
        kafka.commit(&sealed);
        commit(&mut task, sealed);
    }
    task.close(None).store.unwrap().close().unwrap();
}

fn value(start: &Start, key: &str) -> Option<String> {
    let reader = start.store.as_ref().unwrap().reader();
    let value = reader.snapshot(|snapshot| snapshot.get("counts", key.as_bytes())).unwrap();
    value.map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn a_store_that_was_closed_restores_nothing() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
    assert_eq!((report.replayed.records, report.rebuilt), (0, None));
    assert_eq!((start.next[0], start.writer), (Offset(3), 2));
    assert_eq!(value(&start, "a").as_deref(), Some("2"));
}

#[test]
fn a_store_that_is_gone_is_rebuilt_from_the_changelog() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
    kafka.compact(4);
    let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
    assert!(report.replayed.records > 0);
    assert_eq!(start.next[0], Offset(3));
    assert_eq!((value(&start, "a").as_deref(), value(&start, "b").as_deref()), (Some("2"), Some("1")));
}

#[test]
fn a_commit_that_kafka_has_and_the_store_has_not_is_restored() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    let (start, _) = Run::new(&bench, &kafka).start(&mut kafka);
    let mut task = task(config(Failures::halt()), start);
    task.apply(records(3, ["b"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    kafka.commit(&sealed);
    drop(task.close(Some(sealed)));

    let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
    assert_eq!(report.rebuilt, None, "only the tail is read");
    assert_eq!(start.next[0], Offset(4));
    assert_eq!(value(&start, "b").as_deref(), Some("2"));
}

#[test]
fn a_store_that_cannot_be_trusted_is_deleted_and_rebuilt() {
    type Spoil = fn(&Bench);
    let cases: [(&str, Spoil); 3] = [
        ("corrupt", |bench| {
            let dir = bench.dir.path().join("0");
            std::fs::write(dir.join("CURRENT"), b"nonsense").unwrap();
        }),
        ("No such file", |bench| {
            let dir = std::fs::read_dir(bench.dir.path().join("0")).unwrap();
            let tables = dir.filter_map(|entry| Some(entry.ok()?.path()));
            for table in tables.filter(|path| path.extension().is_some_and(|extension| extension == "sst")) {
                std::fs::remove_file(table).unwrap();
            }
        }),
        ("incarnation", |bench| {
            let dir = bench.dir.path().join("0");
            Store::destroy(&bench.budget, &dir).unwrap();
            let other = Identity { incarnation: "former".into(), ..identity() };
            Store::create(&bench.budget, &dir, &other).unwrap().close().unwrap();
        }),
    ];
    for (word, spoil) in cases {
        let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
        three_words(&bench, &mut kafka);
        spoil(&bench);
        let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
        let rebuilt = report.rebuilt.unwrap();
        assert!(rebuilt.contains(word), "{word}: {rebuilt}");
        assert_eq!(value(&start, "a").as_deref(), Some("2"), "{word}");
    }
}

#[test]
fn a_store_older_than_its_logs_deletions_is_rebuilt_unless_the_log_is_cut_off() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    let position = kafka.log.iter().rev().flatten().next().unwrap().clone();
    // Something the store has not seen, a long time later.
    kafka.now_ms = 50_000 * SECOND;
    kafka.append(&position.key, position.value.as_deref(), None);
    kafka.gap();
    let (_, report) = Run::new(&bench, &kafka).start(&mut kafka);
    assert!(report.rebuilt.unwrap().contains("delete.retention.ms"));

    kafka.log_start = kafka.log.len() as u64 - 1;
    // Dropped without being closed, the store is behind, and what it lacks is gone.
    let reason = Run::new(&bench, &kafka).halt(&mut kafka);
    assert!(reason.contains("has been deleted") && reason.contains("begin anew"), "{reason}");
}

#[test]
fn a_changelog_that_lost_records_halts() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    kafka.log.truncate(2);
    let reason = Run::new(&bench, &kafka).halt(&mut kafka);
    assert!(reason.contains("ends at 2") && reason.contains("fleet.count.changelog/3"), "{reason}");
}

#[test]
fn a_marker_that_is_on_its_way_is_no_lost_record() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    // Kafka answers a commit before its markers are written.
    kafka.late_marker = 3;
    let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
    assert_eq!((start.next[0], report.rebuilt, kafka.late_marker), (Offset(3), None, 0));
}

#[test]
fn a_missing_offset_is_fetched_again_before_it_is_believed() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    let offsets = std::mem::take(&mut kafka.offsets);
    kafka.fetches = 0;
    kafka.appears = Some((3, offsets));
    let (start, _) = Run::new(&bench, &kafka).start(&mut kafka);
    assert_eq!((start.next[0], kafka.fetches, kafka.look_ups), (Offset(3), 4, 3));
    drop(start);

    kafka.offsets.clear();
    kafka.fetches = 0;
    let reason = Run::new(&bench, &kafka).halt(&mut kafka);
    assert!(reason.contains("--to-offset 3"), "{reason}");
    assert_eq!(kafka.fetches, 6);
}

#[test]
fn an_unresolved_start_keeps_the_store_open() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut run = Run::new(&bench, &kafka);
    run.known.started = vec![None];
    let Outcome::Unresolved(inputs, store) = run.go(&mut kafka) else { panic!("resolved") };
    assert_eq!(inputs, [0]);
    let mut run = Run::new(&bench, &kafka);
    run.open = store;
    assert_eq!(run.start(&mut kafka).0.next, [Offset(0)]);
}

#[test]
fn a_restore_can_be_stopped_and_goes_on_where_it_was() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
    let position = kafka.log.iter().rev().flatten().next().unwrap().clone();
    for number in 0..25_000u32 {
        kafka.append(&[b"\x01\x06counts", &number.to_be_bytes()[..]].concat(), Some(b"1"), None);
    }
    kafka.append(&position.key, position.value.as_deref(), None);

    let dir = bench.dir.path().join("0");
    let config = config(Failures::halt());
    let run = Run::new(&bench, &kafka);
    let job = Job {
        config: &config,
        partition: PARTITION,
        known: run.known,
        cluster_id: "cluster",
        disk: Disk { budget: &bench.budget, dir: &dir, open: None },
        rules: run.rules,
    };
    let mut seen = Vec::new();
    let mut progress = |progress: RestoreProgress| {
        seen.push(progress.remaining);
        false
    };
    let mut hooks = Hooks { progress: &mut progress, pause: &mut |_| true };
    assert!(matches!(recover(job, &mut kafka, &mut hooks).unwrap(), Outcome::Stopped));
    assert_eq!(seen.len(), 1);

    let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
    assert_eq!((report.from, report.rebuilt), (Offset(10_000 + 3), None));
    assert_eq!(value(&start, "a").as_deref(), Some("2"));
}

/// Rows, the progress of their store, and where the task goes on, as which writer.
type Restored = (Vec<(Vec<u8>, Vec<u8>)>, crate::store::Progress, Vec<Offset>, u64);

fn all_of(start: Start) -> Restored {
    let store = start.store.unwrap();
    let page = store.reader().snapshot(|snapshot| snapshot.scan("counts", b"", None, 1000)).unwrap();
    let rows = page.keys.iter().zip(page.values.iter());
    let rows = rows.map(|(key, value)| (key.unwrap().to_vec(), value.unwrap().to_vec())).collect();
    (rows, store.progress(), start.next, start.writer)
}

/// Restores what `write` leaves behind, whole, and stopped after each answer and each record, and then once more.
fn restore_in_parts(what: &str, write: impl Fn(&Bench, &mut FakeKafka)) {
    let world = || {
        let (bench, mut kafka) = (Bench::in_memory(), FakeKafka::default());
        write(&bench, &mut kafka);
        (bench, kafka)
    };
    let (bench, mut kafka) = world();
    let whole = all_of(Run::new(&bench, &kafka).start(&mut kafka).0);
    for stops_after in 0.. {
        let (bench, mut kafka) = world();
        kafka.stops_after = Some(stops_after);
        match Run::new(&bench, &kafka).go(&mut kafka) {
            Outcome::Stopped => kafka.stops_after = None,
            Outcome::Start(start, _) => {
                assert_eq!(all_of(start), whole, "{what}, in one piece");
                assert!(stops_after > 3, "{what}: there was nothing to stop");
                return;
            }
            other => panic!("{what}: {other:?}"),
        }
        let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
        assert_eq!(report.rebuilt, None, "{what}, stopped after {stops_after}");
        assert_eq!(all_of(start), whole, "{what}, stopped after {stops_after}");
    }
}

#[test]
fn a_restore_that_is_stopped_anywhere_comes_to_the_same_with_the_next_one() {
    restore_in_parts("exactly once", |bench, kafka| {
        three_words(bench, kafka);
        Store::destroy(&bench.budget, &bench.dir.path().join("0")).unwrap();
    });
    restore_in_parts("compacted", |bench, kafka| {
        three_words(bench, kafka);
        Store::destroy(&bench.budget, &bench.dir.path().join("0")).unwrap();
        kafka.compact(usize::MAX);
    });
    let zombie = ["1.1 a=1", "1.1 @1", "2.1 a=2", "1.2 b=9", "2.1 @2", "1.2 @9"];
    let never_closed = ["1.1 a=1", "1.1 b=1", "1.1 @2", "1.2 a=9", "1.2 b=9", "1.3 a=3", "1.3 @3", "5.1 b=9"];
    let without_positions = ["1.1 a=1", "-", "1.2 b=2", "-", "-", "1.4 a=9", "1.5 b=3", "1.5 @5"];
    for lines in [&zombie[..], &never_closed[..], &without_positions[..]] {
        restore_in_parts(&lines.join(", "), |_, kafka| stamped(kafka, lines));
    }
}

#[test]
fn a_restore_that_is_stopped_again_and_again_comes_to_its_end() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    three_words(&bench, &mut kafka);
    std::fs::remove_dir_all(bench.dir.path().join("0")).unwrap();
    let records = kafka.log.iter().flatten().count();
    for stop in 0.. {
        // Its offsets, its bounds, and one record.
        kafka.stops_after = Some(3);
        match Run::new(&bench, &kafka).go(&mut kafka) {
            Outcome::Stopped => assert!(stop < records, "it does not get on"),
            Outcome::Start(start, _) => {
                assert_eq!((value(&start, "a").as_deref(), start.next[0]), (Some("2"), Offset(3)));
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_store_that_was_open_is_closed_as_it_is_by_whoever_is_stopped_before_it_reads() {
    for stops_after in 0..2 {
        let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
        three_words(&bench, &mut kafka);
        let mut run = Run::new(&bench, &kafka);
        run.open = Run::new(&bench, &kafka).start(&mut kafka).0.store;
        kafka.stops_after = Some(stops_after);
        assert!(matches!(run.go(&mut kafka), Outcome::Stopped));
        kafka.stops_after = None;
        let (start, report) = Run::new(&bench, &kafka).start(&mut kafka);
        assert_eq!((report.replayed.records, report.rebuilt), (0, None));
        assert_eq!(value(&start, "a").as_deref(), Some("2"));
    }
}

/// Changelog records of `at_least_once`, by hand: `3.7 a=1` is a row of commit 7 of writer 3,
/// `3.7 @5` its position record at offset 5, `-` a record that compaction took.
fn stamped(kafka: &mut FakeKafka, lines: &[&str]) {
    use prost::Message;
    for line in lines {
        let Some((stamp, row)) = line.split_once(' ') else {
            kafka.gap();
            continue;
        };
        let (writer, number) = stamp.split_once('.').unwrap();
        let (writer, number) = (writer.parse().unwrap(), number.parse().unwrap());
        if let Some(offset) = row.strip_prefix('@') {
            let position = crate::store::Position {
                inputs: vec![PositionInput {
                    topic: "words".into(),
                    topic_id: "words-id".into(),
                    offset: offset.parse().unwrap(),
                    unbound: false,
                    first: Some(0),
                    number: None,
                }],
                revision: 1,
                incarnation: "life".into(),
                guarantee: crate::store::PositionGuarantee::AtLeastOnce.into(),
                writer,
                commit: number,
                ..crate::store::Position::default()
            };
            kafka.append(crate::store::POSITION, Some(&position.encode_to_vec()), Some((writer, number)));
            let committed = CommittedOffset { offset: Offset(0), metadata: String::new() };
            kafka.offsets.insert(0, committed);
        } else {
            let (key, value) = row.split_once('=').unwrap();
            let key = [b"\x01\x06counts", key.as_bytes()].concat();
            kafka.append(&key, Some(value.as_bytes()), Some((writer, number)));
        }
    }
}

/// What `a` and `b` are after a restore of these records, and the next writer.
fn restored(lines: &[&str]) -> (Option<String>, Option<String>, u64) {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, lines);
    let (start, _) = Run::new(&bench, &kafka).start(&mut kafka);
    (value(&start, "a"), value(&start, "b"), start.writer)
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn under_at_least_once_only_closed_commits_are_applied() {
    let closed = ["1.1 a=1", "1.1 b=1", "1.1 @2"];
    assert_eq!(restored(&closed), (some("1"), some("1"), 2));
    let tail = [&closed[..], &["1.2 a=9", "1.2 b=9"]].concat();
    assert_eq!(restored(&tail), (some("1"), some("1"), 2), "the tail was never closed");
    let begun_again = [&tail[..], &["2.1 a=2", "2.1 @3"]].concat();
    assert_eq!(restored(&begun_again), (some("2"), some("1"), 3), "another writer closes its own only");
    let same_writer = [&tail[..], &["1.3 a=3", "1.3 @3"]].concat();
    assert_eq!(restored(&same_writer), (some("3"), some("1"), 2), "and so does another commit");
}

#[test]
fn an_unclosed_writer_is_never_followed_by_one_of_the_same_number() {
    assert_eq!(restored(&["1.1 a=1", "1.1 @1", "5.1 a=9"]).2, 6);
    // Not even when the store was closed at the end of the log in between.
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1", "5.1 a=9"]);
    for _ in 0..2 {
        let (start, _) = Run::new(&bench, &kafka).start(&mut kafka);
        assert_eq!(start.writer, 6);
        start.store.unwrap().close().unwrap();
    }
}

#[test]
fn a_zombies_records_do_not_count_once_its_successor_has_written() {
    let lines = ["1.1 a=1", "1.1 @1", "2.1 a=2", "2.1 @2", "1.2 a=9", "1.2 b=9", "1.2 @9"];
    assert_eq!(restored(&lines), (some("2"), None, 3));
    let in_between = ["1.1 a=1", "1.1 @1", "2.1 a=2", "1.2 b=9", "2.1 @2", "1.2 @9"];
    assert_eq!(restored(&in_between), (some("2"), None, 3));
}

fn at_least_once<'a>(bench: &'a Bench, kafka: &FakeKafka) -> Run<'a> {
    let mut run = Run::new(bench, kafka);
    run.config.guarantee = Guarantee::AtLeastOnce;
    run
}

fn began(bench: &Bench, kafka: &mut FakeKafka) -> Task {
    let run = at_least_once(bench, kafka);
    let config = run.config.clone();
    let (start, _) = run.start(kafka);
    task(config, start)
}

fn seal_and_commit(task: &mut Task, kafka: &mut FakeKafka) {
    let sealed = task.seal(kafka.now_ms).unwrap().unwrap();
    kafka.commit(&sealed);
    commit(task, sealed);
}

/// What a start finds that has the log alone.
fn without_its_store(task: Task, bench: &Bench, kafka: &mut FakeKafka) -> Start {
    task.close(None).store.unwrap().close().unwrap();
    Store::destroy(&bench.budget, &bench.dir.path().join("0")).unwrap();
    at_least_once(bench, kafka).start(kafka).0
}

#[test]
fn without_transactions_a_start_commits_its_position_before_it_handles_a_record() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut task = began(&bench, &mut kafka);
    let applied = task.apply(records(0, ["a"]), TakenAt::default()).unwrap();
    assert_eq!((applied.ok, applied.ignored), (0, 1));
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(sealed.changelog.as_ref().unwrap().keys.len(), 1, "the position record alone");
    commit(&mut task, sealed);
    assert_eq!(task.apply(records(0, ["a"]), TakenAt::default()).unwrap().ok, 1);
}

#[test]
fn a_first_commit_that_comes_late_takes_back_nothing_of_a_successor_with_the_same_number() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1", "2.1 @1", "2.2 a=2", "2.1 @1", "2.2 @2", "2.1 @1"]);
    let (start, _) = Run::new(&bench, &kafka).start(&mut kafka);
    assert_eq!((value(&start, "a"), start.next[0], start.writer), (some("2"), Offset(2), 3));
}

#[test]
fn a_commit_that_is_closed_after_its_successor_has_read_the_log_is_undone_by_its_first() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1", "1.2 a=9", "1.2 c=9"]);
    let mut task = began(&bench, &mut kafka);
    stamped(&mut kafka, &["1.2 @9"]);
    seal_and_commit(&mut task, &mut kafka);
    let start = without_its_store(task, &bench, &mut kafka);
    assert_eq!((value(&start, "a"), value(&start, "c"), start.next[0]), (some("1"), None, Offset(1)));
}

#[test]
fn compaction_takes_no_committed_value_for_a_row_of_a_commit_that_was_never_closed() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 b=1", "1.1 @2", "1.2 a=9", "1.2 c=9"]);
    let mut task = began(&bench, &mut kafka);
    seal_and_commit(&mut task, &mut kafka);
    kafka.compact(usize::MAX);
    let start = without_its_store(task, &bench, &mut kafka);
    assert_eq!((value(&start, "a"), value(&start, "b"), value(&start, "c")), (some("1"), some("1"), None));
    assert_eq!((start.next[0], start.rewrites.keys.len()), (Offset(2), 0));
}

#[test]
fn compaction_takes_no_committed_value_for_a_row_of_a_commit_that_was_refused() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut task = began(&bench, &mut kafka);
    seal_and_commit(&mut task, &mut kafka);
    task.apply(records(0, ["a"]), TakenAt::default()).unwrap();
    seal_and_commit(&mut task, &mut kafka);
    task.apply(records(1, ["a"]), TakenAt::default()).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    kafka.rows(&refused, 1);
    task.drop_uncommitted(Some(refused)).unwrap();
    // Whatever becomes of its record, nothing is written for it.
    seal_and_commit(&mut task, &mut kafka);
    kafka.compact(usize::MAX);
    let start = without_its_store(task, &bench, &mut kafka);
    assert_eq!((value(&start, "a"), start.next[0]), (some("1"), Offset(1)));
}

#[test]
fn rows_of_a_refused_commit_are_met_again_by_a_start_while_its_record_is_still_looked_for() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut task = began(&bench, &mut kafka);
    seal_and_commit(&mut task, &mut kafka);
    task.apply(records(0, ["a", "b"]), TakenAt::default()).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    kafka.rows(&refused, 2);
    task.refuse(refused, "too large", false).unwrap();
    task.apply(records(0, ["a", "b"]), TakenAt::default()).unwrap();
    // It holds one record, and as many rows as the refused one.
    seal_and_commit(&mut task, &mut kafka);
    task.close(None).store.unwrap().close().unwrap();

    let mut task = began(&bench, &mut kafka);
    seal_and_commit(&mut task, &mut kafka);
    kafka.compact(usize::MAX);
    let start = without_its_store(task, &bench, &mut kafka);
    assert_eq!((value(&start, "a"), value(&start, "b"), start.next[0]), (some("1"), None, Offset(1)));
}

#[test]
fn what_is_written_once_more_is_no_larger_than_an_overlay_and_no_record_is_handled_before_all_of_it_is() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 b=1", "1.1 @2", "1.2 a=9", "1.2 b=9"]);
    let mut run = at_least_once(&bench, &kafka);
    run.config.overlay_bytes_max = 1;
    let config = run.config.clone();
    let (start, _) = run.start(&mut kafka);
    let mut task = task(config, start);
    let mut stood = Vec::new();
    while task.is_adopting() {
        let sealed = task.seal(0).unwrap().unwrap();
        kafka.commit(&sealed);
        let rows = sealed.changelog.as_ref().unwrap().keys.len();
        commit(&mut task, sealed);
        stood.push((rows, task.store.as_ref().unwrap().progress().changelog_next));
    }
    // Each with its position record. As long as one is left, a start would have to read of it.
    assert_eq!(stood, [(2, Offset(3)), (2, Offset(9))]);
    kafka.compact(usize::MAX);
    let start = without_its_store(task, &bench, &mut kafka);
    assert_eq!((value(&start, "a"), value(&start, "b")), (some("1"), some("1")));
}

#[test]
fn a_start_that_reads_closed_commits_again_writes_nothing_of_them_once_more() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1", "1.2 c=9", "2.1 b=1", "2.1 @2"]);
    for _ in 0..2 {
        let (start, _) = at_least_once(&bench, &kafka).start(&mut kafka);
        assert_eq!((value(&start, "b"), start.rewrites.keys.len()), (some("1"), 1), "`c` alone");
        start.store.unwrap().close().unwrap();
    }
}

#[test]
fn a_store_takes_nothing_of_a_commit_that_passes_for_a_closed_one_since_compaction_was_there() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1", "1.2 a=9", "1.3 b=3", "1.3 @3"]);
    at_least_once(&bench, &kafka).start(&mut kafka).0.store.unwrap().close().unwrap();
    kafka.log[3] = None;
    let (start, _) = at_least_once(&bench, &kafka).start(&mut kafka);
    assert_eq!((value(&start, "a"), value(&start, "b"), start.next[0]), (some("1"), some("3"), Offset(3)));
}

#[test]
fn a_tail_is_no_older_for_rows_before_it_that_do_not_count() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1", "1.2 b=9"]);
    kafka.now_ms = 50_000 * SECOND;
    stamped(&mut kafka, &["2.1 @1", "2.2 a=2"]);
    let run = |kafka: &FakeKafka| {
        let mut run = at_least_once(&bench, kafka);
        run.rules.delete_retention = Duration::from_secs(864_000);
        run
    };
    // The second one reads again from the row of 1.2, and knows the position record behind it.
    for _ in 0..2 {
        let (start, _) = run(&kafka).start(&mut kafka);
        assert_eq!((value(&start, "a"), start.next[0]), (some("1"), Offset(1)));
        start.store.unwrap().close().unwrap();
    }
}

#[test]
fn a_commit_whose_position_record_was_compacted_away_counts() {
    let lines = ["1.1 a=1", "-", "1.2 b=2", "-", "-", "1.4 a=9", "1.5 b=3", "1.5 @5"];
    // Commit 1.4 has nothing missing behind it, so nothing closed it.
    assert_eq!(restored(&lines), (some("1"), some("3"), 2));
}

#[test]
fn an_old_unclosed_tail_halts_or_is_applied_by_policy() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1", "1.2 a=2"]);
    kafka.now_ms = 43_201 * SECOND;
    let reason = Run::new(&bench, &kafka).halt(&mut kafka);
    assert!(reason.contains("1 records of an unfinished commit, from offset 2"), "{reason}");
    let mut run = Run::new(&bench, &kafka);
    run.rules.old_tail = OldTail::Apply;
    let (start, report) = run.start(&mut kafka);
    assert_eq!((report.tail_applied, value(&start, "a")), (1, some("2")));
}

#[test]
fn an_old_unclosed_tail_is_no_younger_for_a_restore_that_was_stopped_in_it_or_has_halted_before() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    stamped(&mut kafka, &["1.1 a=1", "1.1 @1"]);
    kafka.now_ms = 43_200 * SECOND;
    // One that was never closed lies before it.
    stamped(&mut kafka, &["1.2 c=2", "2.1 a=2", "2.1 b=2"]);
    kafka.now_ms += SECOND;
    let run = |kafka: &FakeKafka| {
        let mut run = Run::new(&bench, kafka);
        run.rules.delete_retention = Duration::from_secs(864_000);
        run
    };
    // Offsets, bounds, and all but the last record.
    kafka.stops_after = Some(6);
    assert!(matches!(run(&kafka).go(&mut kafka), Outcome::Stopped));
    kafka.stops_after = None;
    for _ in 0..2 {
        let reason = run(&kafka).halt(&mut kafka);
        assert!(reason.contains("2 records of an unfinished commit, from offset 3"), "{reason}");
    }
}

#[test]
fn a_stateless_task_recovers_without_touching_the_disk() {
    let (bench, mut kafka) = (Bench::new(), FakeKafka::default());
    let mut run = Run::new(&bench, &kafka);
    run.config.stores = Arc::new(Stores::new(&[]).unwrap());
    let (start, _) = run.start(&mut kafka);
    assert!(start.store.is_none());
    assert!(!bench.dir.path().join("0").exists());
}
