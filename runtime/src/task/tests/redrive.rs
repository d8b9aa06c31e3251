//! Letters that come back: once, in their records' order, ahead of what is parked, counted.

use std::collections::VecDeque;

use tidemill_proto::v1::{LetterFilter, OffsetRange};

use super::parking::{Patient, SECOND_MS, failures};
use super::*;
use crate::config::deployment::{IdSource, InboxSpec};
use crate::config::failures::Then;
use crate::ports::TopicRecord;
use crate::record::headers;
use crate::store::{RedriveProgress, Table};
use crate::task::letter::Letter;
use crate::task::redrive::{LetterPage, Redrive, accepts, progress_of};

/// The dead-letter topic of the task's partition.
#[derive(Default)]
struct Topic(Vec<TopicRecord>);

impl Topic {
    /// Commits what the task has, and keeps its letters. Answers what else it emitted.
    fn commit(&mut self, patient: &mut Patient) -> Vec<String> {
        let Some(sealed) = patient.task.seal(0).unwrap() else { return Vec::new() };
        let mut others = Vec::new();
        for row in sealed.emissions.iter().flat_map(|emissions| emissions.rows()) {
            let bytes = |column: Option<&[u8]>| column.map(<[u8]>::to_vec);
            let text = |column: Option<&[u8]>| String::from_utf8(bytes(column).unwrap()).unwrap();
            match row.output {
                1 => self.0.push(TopicRecord {
                    offset: Offset(self.0.len() as u64),
                    timestamp_ms: patient.now_ms,
                    key: bytes(row.key),
                    value: bytes(row.value),
                    headers: bytes(row.headers),
                }),
                _ => others.push(format!("{}={}", text(row.key), text(row.value))),
            }
        }
        commit(&mut patient.task, sealed);
        others
    }

    fn letters(&self) -> Vec<Letter> {
        self.0.iter().map(|record| Letter::read(record).expect("a letter")).collect()
    }

    /// `key@original offset retry count`
    fn shown(&self) -> Vec<String> {
        let key = |letter: &Letter| String::from_utf8(letter.key.clone().unwrap()).unwrap();
        let shown =
            |letter: &Letter| format!("{}@{} {}", key(letter), letter.original_offset, letter.retry_count);
        self.letters().iter().map(shown).collect()
    }

    /// All that is there now.
    fn redrive(&self, id: u64, filter: LetterFilter) -> Redrive {
        let end = Offset(self.0.len() as u64);
        Redrive {
            id,
            discard: false,
            filter,
            retries_max: 5,
            topic_id: "dead-id".into(),
            end,
            asked_at_ms: 0,
        }
    }

    fn page(&self, redrive: &Redrive, from: u64) -> LetterPage {
        let wanted = |record: &&TopicRecord| (from..redrive.end.0).contains(&record.offset.0);
        let records: VecDeque<TopicRecord> = self.0.iter().filter(wanted).cloned().collect();
        LetterPage { records, next: Some(redrive.end), log_start: Offset(0) }
    }

    /// Gives back what is left of a redrive.
    fn run(&self, patient: &mut Patient, redrive: &Redrive) -> usize {
        let from = patient.task.progress(redrive.id).unwrap().next;
        let mut page = self.page(redrive, from);
        patient.task.give_back(redrive, &mut page, usize::MAX).unwrap().letters
    }
}

fn everything() -> LetterFilter {
    LetterFilter::default()
}

/// A task whose keys `b` and `c` have letters, while `b` is parked with a later record.
fn bereaved(bench: &mut Bench) -> (Patient, Topic) {
    let mut patient = Patient::new(bench, parking(failures(Then::DeadLetter, 1)));
    let mut topic = Topic::default();
    // One by one: within a call what follows a failure of its key waits for its outcome.
    for (offset, key) in (0..).zip(["b!fail", "a", "b!garbled", "c!fail", "b!flaky", "b"]) {
        patient.apply(offset, &[key]);
    }
    assert_eq!(topic.commit(&mut patient), ["a=1"]);
    assert_eq!(topic.shown(), ["b@0 0", "b@2 0", "c@3 0"]);
    assert_eq!(patient.rows(), ["b@4 1", "b@5 0"]);
    (patient, topic)
}

#[test]
fn a_redrive_goes_on_after_its_commit_was_refused_although_no_input_comes() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 1)));
    let mut topic = Topic::default();
    patient.apply(0, &["c!fail"]);
    topic.commit(&mut patient);
    let redrive = topic.redrive(1, everything());
    assert_eq!((topic.run(&mut patient, &redrive), patient.retry_after(0)), (1, 1));
    let sealed = patient.task.seal(0).unwrap().unwrap();
    patient.task.refuse(sealed, "another task's record", false).unwrap();
    assert!(patient.task.is_careful(), "the record may be at fault");
    assert_eq!(patient.retry_after(0), 0, "it is a letter again");
    assert_eq!(topic.run(&mut patient, &redrive), 1);
}

#[test]
fn letters_of_a_key_are_tried_in_their_records_order_ahead_of_what_is_parked() {
    let mut bench = Bench::new();
    let (mut patient, mut topic) = bereaved(&mut bench);
    // The commands that failed are known to the handler by their values, so give it others.
    for record in &mut topic.0 {
        record.value = Some(b"mark".to_vec());
    }
    let redrive = topic.redrive(7, everything());
    let mut page = topic.page(&redrive, 0);
    // Against the order of their records.
    page.records.swap(0, 1);
    page.next = None;
    assert_eq!(patient.task.give_back(&redrive, &mut page, usize::MAX).unwrap().letters, 3);
    topic.commit(&mut patient);
    assert_eq!(patient.rows(), ["b@0 0", "b@2 0", "c@3 0", "b@4 1", "b@5 0"]);
    assert_eq!(patient.apply(6, &["b"]).waiting, 1);
    assert_eq!(
        patient.retry_after(0),
        3,
        "the parked head is not due yet, and the letters do not wait for it"
    );
    assert_eq!(topic.commit(&mut patient), ["b=1", "b=2", "c=1"]);
    patient.heal();
    assert_eq!(patient.retry_after(SECOND_MS), 3);
    assert_eq!(topic.commit(&mut patient), ["b=3", "b=4", "b=5"]);
}

#[test]
fn a_letter_comes_back_once_whatever_is_dropped_and_whoever_asks_again() {
    let mut bench = Bench::new();
    let (mut patient, mut topic) = bereaved(&mut bench);
    let first = topic.redrive(7, everything());
    // What is dropped was never given back.
    assert_eq!(topic.run(&mut patient, &first), 3);
    let refused = patient.task.seal(0).unwrap().unwrap();
    patient.task.drop_uncommitted(Some(refused)).unwrap();
    assert_eq!(patient.task.progress(7).unwrap(), RedriveProgress::default());
    assert_eq!(patient.task.parked().0, 2);
    // Two of them, and a crash.
    let mut page = topic.page(&first, 0);
    assert_eq!(patient.task.give_back(&first, &mut page, 2).unwrap().letters, 2);
    assert_eq!(page.records.len(), 1);
    topic.commit(&mut patient);
    let config = Arc::clone(patient.task.config());
    let store = patient.task.close(None).store;
    let next = vec![Offset(6)];
    let start = adopted(start(store, next, 2));
    let task = Task::new(config, PARTITION, Box::new(Counter::default()), start).unwrap();
    let mut patient = Patient { task, ..Patient::new(&mut Bench::new(), parking(failures(Then::Park, 0))) };
    assert_eq!(topic.run(&mut patient, &first), 1, "it goes on where it was");
    let second = topic.redrive(8, everything());
    assert_eq!(topic.run(&mut patient, &second), 0, "they are marked");
    topic.commit(&mut patient);
    let known = progress_of(patient.task.reader().unwrap()).unwrap();
    let shown: Vec<_> = known.iter().map(|(id, at)| (*id, at.next, at.given, at.marked, at.ended)).collect();
    assert_eq!(shown, [(7, 3, 3, 0, true), (8, 3, 0, 3, true)]);
}

#[test]
fn what_fails_again_is_a_new_letter_until_it_came_back_too_often() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 0)));
    let mut topic = Topic::default();
    patient.apply(0, &["b!fail", "c!fail"]);
    topic.commit(&mut patient);
    for id in 1..=6 {
        let redrive = topic.redrive(id, everything());
        let given = topic.run(&mut patient, &redrive);
        assert_eq!(given, if id <= 5 { 2 } else { 0 }, "redrive {id}");
        patient.retry_after(0);
        topic.commit(&mut patient);
        let progress = patient.task.progress(id).unwrap();
        let left = if id <= 5 { 0 } else { 2 };
        assert_eq!((progress.given, progress.again), (given as u64, given as u64));
        assert_eq!((progress.over_limit, progress.ok, progress.ended), (left, 0, true));
    }
    assert_eq!(patient.task.metrics.over_limit.get(), 2, "somebody is to be alerted");
    let counts: Vec<u32> = topic.letters().iter().map(|letter| letter.retry_count).collect();
    assert_eq!(counts, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    assert!(topic.letters().iter().all(|letter| letter.original_offset < 2 && letter.attempts == 1));
}

#[test]
fn what_a_redrive_is_not_about_stays_and_can_be_given_back_later() {
    let mut bench = Bench::new();
    let (mut patient, mut topic) = bereaved(&mut bench);
    let key = LetterFilter { keys: vec![b"c".to_vec()], ..everything() };
    let narrow = topic.redrive(1, key);
    assert_eq!(topic.run(&mut patient, &narrow), 1);
    let garbled = LetterFilter { error_types: vec!["decode".into()], ..everything() };
    let discard = Redrive { discard: true, ..topic.redrive(2, garbled) };
    assert_eq!(topic.run(&mut patient, &discard), 1);
    topic.commit(&mut patient);
    assert_eq!(patient.rows(), ["c@3 0", "b@4 1", "b@5 0"], "nothing comes of a discard");
    let rest = topic.redrive(3, everything());
    assert_eq!(topic.run(&mut patient, &rest), 1);
    let progress = patient.task.progress(3).unwrap();
    assert_eq!((progress.given, progress.marked, progress.ended), (1, 2, true));
}

#[test]
fn letters_of_others_and_of_no_input_are_left() {
    let mut bench = Bench::new();
    let (mut patient, mut topic) = bereaved(&mut bench);
    let rewrite = |record: &mut TopicRecord, name: &str, value: &[u8]| {
        let bytes = record.headers.take().unwrap();
        let all = headers::decode(&bytes).unwrap().into_iter();
        let all: Vec<_> =
            all.map(|(found, old)| (found, if found == name { Some(value) } else { old })).collect();
        record.headers = Some(headers::encode(all.into_iter()));
    };
    rewrite(&mut topic.0[0], "deployment_incarnation", b"an earlier life");
    rewrite(&mut topic.0[1], "deployment", b"another");
    rewrite(&mut topic.0[2], "original_topic", b"no input");
    topic.0.push(TopicRecord { offset: Offset(3), headers: None, ..topic.0[0].clone() });
    let redrive = topic.redrive(1, everything());
    assert_eq!(topic.run(&mut patient, &redrive), 0);
    let progress = patient.task.progress(1).unwrap();
    assert_eq!((progress.next, progress.unbound, progress.marked, progress.ended), (4, 1, 0, true));
}

#[test]
fn records_wait_for_a_letter_of_their_key_although_their_deployment_parks_nothing() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::DeadLetter, 0)));
    let mut topic = Topic::default();
    patient.apply(0, &["b!fail"]);
    topic.commit(&mut patient);
    topic.0[0].value = Some(b"mark".to_vec());
    let redrive = topic.redrive(1, everything());
    topic.run(&mut patient, &redrive);
    assert_eq!(patient.apply(1, &["a", "b", "a"]).waiting, 1);
    patient.retry_after(0);
    assert_eq!(topic.commit(&mut patient), ["a=1", "a=2", "b=1", "b=2"]);
}

#[test]
fn a_letter_whose_record_was_sent_again_and_handled_meanwhile_has_no_second_effect() {
    let mut bench = Bench::new();
    let inbox = InboxSpec { id: Some(vec![IdSource::Key]), sequence: None, ttl: Duration::from_secs(3_600) };
    let config = TaskConfig { inbox: Some(inbox), ..parking(failures(Then::DeadLetter, 0)) };
    let mut patient = Patient::new(&mut bench, config);
    let mut topic = Topic::default();
    patient.apply(0, &["b!fail"]);
    topic.commit(&mut patient);
    patient.apply(1, &["b"]);
    assert_eq!(topic.commit(&mut patient), ["b=1"], "what failed does not count as seen");
    topic.0[0].value = Some(b"mark".to_vec());
    let redrive = topic.redrive(1, everything());
    assert_eq!((topic.run(&mut patient, &redrive), patient.retry_after(0)), (1, 1));
    assert_eq!(topic.commit(&mut patient), [""; 0]);
    let progress = patient.task.progress(1).unwrap();
    assert_eq!((progress.ok, progress.again, patient.task.metrics.duplicates.get()), (1, 0, 1));
}

#[test]
fn letters_leave_half_of_the_park_to_records_that_fail() {
    let mut bench = Bench::new();
    let mut config = parking(failures(Then::DeadLetter, 0));
    config.failures.parked.records = 4;
    let mut patient = Patient::new(&mut bench, config);
    let mut topic = Topic::default();
    patient.apply(0, &["a!fail", "b!fail", "c!fail", "d!fail", "e!fail"]);
    topic.commit(&mut patient);
    let redrive = topic.redrive(1, everything());
    let mut page = topic.page(&redrive, 0);
    let mut give = |patient: &mut Patient, most| {
        let given = patient.task.give_back(&redrive, &mut page, most).unwrap();
        (given.letters, given.waits)
    };
    assert_eq!(give(&mut patient, usize::MAX), (2, true));
    assert_eq!(give(&mut patient, usize::MAX), (0, true));
    let reason = patient.task.letters_reason().expect("a reason");
    assert!(reason.starts_with("letters wait: 2 records (") && reason.contains(" allows 4 ("), "{reason}");
    patient.retry_after(0);
    assert_eq!(patient.task.letters_reason(), None);
    assert_eq!(give(&mut patient, 1), (1, false), "and at most what is asked for");
    assert_eq!(patient.task.progress(1).unwrap().next, 3);
}

#[test]
fn a_page_that_cannot_be_taken_now_is_not_used_up_although_it_holds_nothing() {
    let mut bench = Bench::new();
    let mut config = parking(failures(Then::DeadLetter, 9));
    config.failures.parked.records = 1;
    let mut patient = Patient::new(&mut bench, config);
    let redrive = Topic::default().redrive(1, everything());
    patient.apply(0, &["b!flaky", "b"]);
    assert!(patient.task.is_blocked());
    let mut page = LetterPage { next: Some(redrive.end), ..LetterPage::default() };
    assert!(!patient.task.give_back(&redrive, &mut page, 1).unwrap().is_used_up);
    patient.heal();
    patient.retry_after(SECOND_MS);
    patient.task.unblock().expect("there is room");
    assert!(patient.task.give_back(&redrive, &mut page, 1).unwrap().is_used_up);
    assert!(patient.task.progress(1).unwrap().ended);
}

#[test]
fn marks_go_when_their_letters_have() {
    let mut bench = Bench::new();
    let (mut patient, mut topic) = bereaved(&mut bench);
    let first = topic.redrive(1, everything());
    topic.run(&mut patient, &first);
    topic.commit(&mut patient);
    let rows =
        |patient: &Patient| patient.task.reader().unwrap().rows(Table::Letters, b"", 100).unwrap().keys.len();
    assert_eq!(rows(&patient), 4, "three marks and the progress");
    let second = topic.redrive(2, everything());
    patient.task.begin_redrive(&second, Offset(2), 2).unwrap();
    topic.commit(&mut patient);
    assert_eq!(rows(&patient), 1, "the mark of the letter that is left");
}

#[test]
fn a_filter_wants_all_that_it_says() {
    let letter = Letter {
        offset: 17,
        key: Some(b"k".to_vec()),
        failed_at_ms: 1_000,
        error_type: "DecodeError".into(),
        error_class: "decode".into(),
        revision: 7,
        ..Letter::default()
    };
    let matching = LetterFilter {
        keys: vec![b"k".to_vec(), b"l".to_vec()],
        error_types: vec!["DecodeError".into()],
        from_ms: Some(1_000),
        to_ms: Some(1_001),
        versions: vec![7],
        partitions: Vec::new(),
        offsets: vec![OffsetRange { from: 17, to: 18 }],
        revisions: Vec::new(),
    };
    assert!(accepts(&matching, &letter) && accepts(&everything(), &letter));
    let within = |from, to| {
        let revisions = vec![OffsetRange { from, to }];
        LetterFilter { versions: vec![5], revisions, ..matching.clone() }
    };
    assert!(accepts(&within(5, 8), &letter), "of the version that began with revision 5");
    let wrong = [
        LetterFilter { keys: vec![b"l".to_vec()], ..matching.clone() },
        LetterFilter { error_types: vec!["trap".into()], ..matching.clone() },
        LetterFilter { from_ms: Some(1_001), ..matching.clone() },
        LetterFilter { to_ms: Some(1_000), ..matching.clone() },
        LetterFilter { versions: vec![8], ..matching.clone() },
        within(5, 7),
        LetterFilter { offsets: vec![OffsetRange { from: 0, to: 17 }], ..matching.clone() },
    ];
    for filter in wrong {
        assert!(!accepts(&filter, &letter), "{filter:?}");
    }
}
