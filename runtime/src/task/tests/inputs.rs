//! Inputs that change from version to version: whatever is kept stays with the topic that it came from, wherever
//! that stands among the inputs, or whether it does.

use prost::Message;
use tidemill_proto::v1::ParkedFilter;

use super::super::recovery::{Decision, Facts, Known, Started, decide};
use super::parking::{Patient, SECOND_MS, failures};
use super::sequences::sequences;
use super::unpark::{counts, drop_of, of, release, unpark};
use super::*;
use crate::config::deployment::{Gaps, IdSource, InboxSpec};
use crate::config::failures::Then;
use crate::effects::{Emitted, EmittedRow};
use crate::ports::CommittedOffset;
use crate::record::headers;
use crate::store::{POSITION, Table};
use crate::task::numbers::NO_ID;

fn with_inputs(config: TaskConfig, topics: &[&str]) -> TaskConfig {
    let input = |topic: &&str| TaskInput { topic: (*topic).into(), topic_id: format!("{topic}-id") };
    TaskConfig { inputs: topics.iter().map(input).collect(), ..config }
}

/// Parks what is flaky, and names what it emits by its record.
fn parking_of(topics: &[&str]) -> TaskConfig {
    let mut config = with_inputs(parking(failures(Then::Park, 3)), topics);
    config.outputs[0].ids = true;
    config
}

/// The same, and remembers records by their offsets.
fn remembering_of(topics: &[&str]) -> TaskConfig {
    let id = Some(vec![IdSource::Offset]);
    let inbox = Some(InboxSpec { id, sequence: None, ttl: Duration::from_secs(3_600) });
    TaskConfig { inbox, ..parking_of(topics) }
}

/// The next version, with these inputs, as recovery has it go on; it has adopted itself.
fn next_version(patient: Patient, topics: &[&str]) -> Patient {
    let Patient { task, healed, now_ms } = patient;
    let former = TaskConfig::clone(task.config());
    let config = with_inputs(TaskConfig { revision: former.revision + 1, ..former }, topics);
    let store = task.close(None).store.unwrap();
    let position = store.position().unwrap();
    let committed = |topic: &&str| {
        let recorded = position.inputs.iter().find(|recorded| recorded.topic == **topic)?;
        Some(CommittedOffset { offset: Offset(recorded.offset), metadata: String::new() })
    };
    let committed: Vec<Option<CommittedOffset>> = topics.iter().map(committed).collect();
    let started = |topic: &&str| Some(Started { topic_id: format!("{topic}-id"), offset: Offset(0) });
    let known = Known { started: topics.iter().map(started).collect(), first_commit: Vec::new() };
    let decision = decide(&Facts {
        config: &config,
        partition: PARTITION,
        position: Some(position),
        writer_seen: 0,
        committed: &committed,
        known: &known,
    });
    let Decision::Start { next, writer, unbound, first } = decision else { panic!("it does not start") };
    let start = Start { store: Some(store), next, writer, unbound, first, rewrites: Rewrites::default() };
    let counter = Counter { healed: Arc::clone(&healed), ..Counter::default() };
    let task = Task::new(Arc::new(config), PARTITION, Box::new(counter), start).unwrap();
    let mut patient = Patient { task, healed, now_ms };
    patient.commit();
    patient
}

fn apply(patient: &mut Patient, input: u16, from: i64, keys: &[&str]) -> Applied {
    let taken = patient.taken();
    patient.task.apply(Batch { input, ..records(from, keys.iter().copied()) }, taken).unwrap()
}

/// The first three offsets of inputs: how many of them have an effect, and how many are repetitions.
fn assert_handled(patient: &mut Patient, expected: &[(u16, usize, usize)]) {
    for &(input, ok, duplicates) in expected {
        let applied = apply(patient, input, 0, &["k", "l", "m"]);
        assert_eq!((applied.ok, applied.duplicates), (ok, duplicates), "input {input}");
    }
}

/// Text of a header that is there.
fn header(row: &EmittedRow<'_>, name: &str) -> String {
    let value = headers::find(row.headers.unwrap(), name).unwrap().unwrap();
    String::from_utf8(value.to_vec()).unwrap()
}

/// Commits what there is; the ids of what it emitted.
fn commit_ids(patient: &mut Patient) -> Vec<String> {
    let sealed = patient.task.seal(0).unwrap().expect("something to commit");
    let rows = sealed.emissions.iter().flat_map(Emitted::rows);
    let ids = rows.map(|row| header(&row, ID_HEADER)).collect();
    commit(&mut patient.task, sealed);
    ids
}

/// Commits what there is; of which records it has dead letters.
fn commit_letters(patient: &mut Patient) -> Vec<String> {
    let sealed = patient.task.seal(0).unwrap().expect("something to commit");
    let letters = sealed.emissions.iter().flat_map(Emitted::rows).filter(|row| row.output == 1);
    let place = |row: EmittedRow<'_>| {
        format!("{}/{}", header(&row, "original_topic"), header(&row, "original_offset"))
    };
    let letters = letters.map(place).collect();
    commit(&mut patient.task, sealed);
    letters
}

#[test]
fn a_parked_record_is_still_one_of_its_topic_when_another_has_taken_its_place() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking_of(&["a"]));
    apply(&mut patient, 0, 5, &["k!flaky"]);
    patient.commit();

    let mut patient = next_version(patient, &["b", "a"]);
    assert_eq!(apply(&mut patient, 0, 5, &["k"]).waiting, 1, "one of b, at the same offset");
    patient.heal();
    assert_eq!(patient.retry_after(10 * SECOND_MS), 2);
    assert_eq!(commit_ids(&mut patient), ["life/a-id/3/5/0", "life/b-id/3/5/0"]);
    assert_eq!(patient.task.parked(), (0, 0));
}

#[test]
fn where_brokers_have_no_ids_records_of_two_inputs_are_told_apart_by_their_topics() {
    let mut bench = Bench::new();
    let mut config = parking_of(&["a", "b"]);
    config.inputs.iter_mut().for_each(|input| input.topic_id = NO_ID.into());
    let mut patient = Patient::new(&mut bench, config.clone());
    apply(&mut patient, 0, 5, &["k"]);
    apply(&mut patient, 1, 5, &["k"]);
    assert_eq!(commit_ids(&mut patient), ["life/a/3/5/0", "life/b/3/5/0"]);
    assert_eq!(config.record_at("life/b/3/5"), ("b", "5"));

    let of_before = format!("life/{NO_ID}/3/5");
    assert_eq!(config.record_at(&of_before), ("", "5"), "it may be of either");
    config.inputs.pop();
    assert_eq!(config.record_at(&of_before), ("a", "5"));
}

#[test]
fn what_is_parked_of_a_topic_that_is_no_input_is_held_until_it_is_one_again() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking_of(&["a"]));
    apply(&mut patient, 0, 5, &["k!flaky"]);
    patient.commit();
    patient.heal();

    let mut patient = next_version(patient, &["b"]);
    assert_eq!(patient.retry_after(3_600 * SECOND_MS), 0, "nobody is there to handle it");
    assert_eq!(counts(&unpark(&mut patient, release(&[]))), (0, 0, 0), "whoever wants it tried");
    assert_eq!(apply(&mut patient, 0, 0, &["k"]).waiting, 1, "the order of its key stays");
    assert_eq!(patient.retry_after(SECOND_MS), 0);
    patient.commit();
    patient.task.drop_uncommitted(None).unwrap();
    assert_eq!(patient.retry_after(SECOND_MS), 0, "also as the store has it");

    let mut patient = next_version(patient, &["b", "a"]);
    assert_eq!(patient.retry_after(0), 2);
    assert_eq!(commit_ids(&mut patient), ["life/a-id/3/5/0", "life/b-id/3/0/0"]);
}

#[test]
fn what_is_parked_of_a_topic_that_is_no_input_stops_no_other_and_counts_again_when_it_is_one() {
    let mut bench = Bench::new();
    let mut config = parking_of(&["a"]);
    config.failures.parked.records = 2;
    let mut patient = Patient::new(&mut bench, config);
    apply(&mut patient, 0, 5, &["k!flaky", "l!flaky", "m!flaky"]);
    patient.commit();
    assert!(patient.task.is_blocked(), "a has filled the park");

    let mut patient = next_version(patient, &["b"]);
    apply(&mut patient, 0, 0, &["n!flaky", "k", "o!flaky", "p"]);
    patient.commit();
    assert_eq!((patient.task.next(0), patient.task.parked().0), (Some(Offset(2)), 4), "room for two of b");
    let reason = patient.task.blocked_reason().unwrap();
    assert!(reason.starts_with("paused: 2 records") && reason.contains("; 2 more are of topics"), "{reason}");
    unpark(&mut patient, drop_of(of(&["n"]), false, true));
    assert!(patient.task.unblock().is_some(), "there is room for b again");
    patient.commit();

    let mut patient = next_version(patient, &["b", "a"]);
    assert_eq!(apply(&mut patient, 0, 2, &["q!flaky"]).ok, 0);
    assert!(patient.task.is_blocked(), "three are parked, and two allowed");
    patient.heal();
    assert_eq!(patient.retry_after(10 * SECOND_MS), 3);
    assert_eq!(patient.task.parked(), (0, 0));
}

#[test]
fn what_is_parked_of_a_topic_that_is_no_input_can_be_dropped_and_its_letter_names_that() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking_of(&["a"]));
    apply(&mut patient, 0, 5, &["k!flaky", "k"]);
    patient.commit();
    patient.heal();

    let mut patient = next_version(patient, &["b"]);
    assert_eq!(apply(&mut patient, 0, 0, &["k"]).waiting, 1);
    patient.commit();
    let of_topic = |topic: &str| ParkedFilter { topics: vec![topic.into()], ..ParkedFilter::default() };
    assert_eq!(
        counts(&unpark(&mut patient, drop_of(of_topic("b"), true, false))),
        (0, 0, 0),
        "it is not first"
    );
    // The second one of a has not been tried, and never will be.
    assert_eq!(counts(&unpark(&mut patient, drop_of(of_topic("a"), false, false))), (1, 2, 0));
    assert_eq!(commit_letters(&mut patient), ["a/5", "a/6"]);
    assert_eq!(counts(&unpark(&mut patient, drop_of(of(&["k"]), false, false))), (0, 0, 0), "b has its turn");
    assert_eq!(patient.retry_after(0), 1);
    assert_eq!(commit_ids(&mut patient), ["life/b-id/3/0/0"]);
}

#[test]
fn an_offset_that_was_seen_of_one_topic_is_no_repetition_of_another_that_has_taken_its_place() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, remembering_of(&["a"]));
    assert_eq!(apply(&mut patient, 0, 0, &["k", "l"]).ok, 2);
    patient.commit();

    let mut patient = next_version(patient, &["b", "a"]);
    let applied = apply(&mut patient, 0, 0, &["k", "l"]);
    assert_eq!((applied.ok, applied.duplicates), (2, 0), "of b");
    // As if they were read again.
    patient.task.next[1] = Offset(0);
    let applied = apply(&mut patient, 1, 0, &["k", "l", "k"]);
    assert_eq!((applied.ok, applied.duplicates), (1, 2), "of a");
}

/// A new life of a deployment that keeps nothing but its inbox, with these inputs, at the beginning of each.
fn reset(patient: Patient, bench: &Bench, config: TaskConfig) -> Patient {
    let ids = patient.task.reader().unwrap().rows(Table::Inbox, b"", 100).unwrap();
    let keys: Vec<Vec<u8>> = ids.keys.iter().map(|key| [b"\x02", key.unwrap()].concat()).collect();
    let dir = bench.dir.path().join("reset");
    let mut store = Store::create(&bench.budget, &dir, &identity()).unwrap();
    let progress = store.progress();
    store.write(keys.iter().map(Vec::as_slice).zip(ids.values.iter()), progress).unwrap();
    let next = vec![Offset(0); config.inputs.len()];
    let start = start(Some(store), next, 1);
    let task = Task::new(Arc::new(config), PARTITION, Box::new(Counter::default()), start).unwrap();
    let mut patient = Patient { task, ..patient };
    patient.commit();
    patient
}

#[test]
fn ids_that_outlive_a_reset_are_still_those_of_their_topics_and_of_none_that_was_made_again() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, remembering_of(&["a"]));
    apply(&mut patient, 0, 0, &["k", "l", "m"]);
    patient.commit();
    let mut patient = next_version(patient, &["b", "a"]);
    apply(&mut patient, 0, 0, &["k"]);
    patient.commit();

    let mut config = remembering_of(&["b", "c", "a", "d"]);
    config.inputs[0].topic_id = "made-again".into();
    let mut patient = reset(patient, &bench, config);
    assert_handled(&mut patient, &[(0, 3, 0), (1, 3, 0), (2, 0, 3), (3, 3, 0)]);
    patient.commit();
    assert_eq!(numbers(&patient), ["b 2", "c 3", "a 0", "d 4"]);
}

/// The store as a program of before inputs had numbers leaves it.
fn as_before_numbers(patient: &mut Patient) {
    let store = patient.task.store.as_mut().unwrap();
    let (mut position, progress) = (store.position().unwrap().clone(), store.progress());
    position.inputs.iter_mut().for_each(|input| input.number = None);
    let position = position.encode_to_vec();
    let rows = [(POSITION, Some(position.as_slice())), (&b"\x02"[..], None)];
    store.write(rows.into_iter(), progress).unwrap();
}

#[test]
fn ids_of_before_there_were_numbers_outlive_a_reset_with_the_topic_that_has_moved_since() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, remembering_of(&["a"]));
    apply(&mut patient, 0, 0, &["k", "l", "m"]);
    patient.commit();
    as_before_numbers(&mut patient);

    // No record comes between the two.
    let patient = next_version(patient, &["b", "a"]);
    let mut patient = reset(patient, &bench, remembering_of(&["b", "a"]));
    assert_handled(&mut patient, &[(0, 3, 0), (1, 0, 3)]);
}

#[test]
fn ids_of_before_there_were_numbers_are_named_also_after_a_commit_that_was_dropped() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, remembering_of(&["a"]));
    apply(&mut patient, 0, 0, &["k"]);
    patient.commit();
    as_before_numbers(&mut patient);

    let config = Arc::clone(patient.task.config());
    let start = start(patient.task.close(None).store, vec![Offset(1)], 2);
    let mut task = Task::new(config, PARTITION, Box::new(Counter::default()), start).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    task.drop_uncommitted(Some(refused)).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    commit(&mut task, sealed);
    let named = task.reader().unwrap().snapshot(|snapshot| snapshot.row(Table::Inbox, b"")).unwrap();
    assert!(named.is_some());
}

/// Breaks that have been counted once this record is in.
fn heard(patient: &mut Patient, input: u16, offset: i64, number: &str) -> u64 {
    let batch = with_header(records(offset, ["k"]), "number", [Some(number)]);
    let taken = patient.taken();
    patient.task.apply(Batch { input, ..batch }, taken).unwrap();
    let metrics = &patient.task.metrics;
    metrics.sequence_losses.get() + metrics.sequence_reorderings.get() + metrics.sequence_repetitions.get()
}

#[test]
fn a_sequence_goes_on_in_its_topic_wherever_that_stands() {
    let mut bench = Bench::new();
    let config = TaskConfig { inbox: Some(sequences(Gaps::Report)), ..parking_of(&["a"]) };
    let mut patient = Patient::new(&mut bench, config);
    assert_eq!(heard(&mut patient, 0, 0, "7"), 0);
    patient.commit();

    let mut patient = next_version(patient, &["b", "a"]);
    assert_eq!(heard(&mut patient, 0, 5, "7"), 0, "the start of b");
    assert_eq!(heard(&mut patient, 1, 1, "8"), 0, "the next one of a");
    assert_eq!(heard(&mut patient, 1, 2, "8"), 1);
}

/// Of every input in the position record.
fn numbers(patient: &Patient) -> Vec<String> {
    let position = patient.task.store.as_ref().unwrap().position().unwrap();
    let show = |input: &PositionInput| {
        let unbound = if input.unbound { " unbound" } else { "" };
        format!("{} {}{unbound}", input.topic, input.number.unwrap())
    };
    position.inputs.iter().map(show).collect()
}

#[test]
fn a_new_input_gets_a_number_that_none_has_had_and_one_that_comes_back_has_its_own() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking_of(&["a", "b"]));
    apply(&mut patient, 0, 0, &["k"]);
    patient.commit();
    assert_eq!(numbers(&patient), ["a 0", "b 1"]);
    let patient = next_version(patient, &["a"]);
    assert_eq!(numbers(&patient), ["a 0", "b 1 unbound"]);
    let patient = next_version(patient, &["c", "a"]);
    assert_eq!(numbers(&patient), ["c 2", "a 0", "b 1 unbound"]);
    let patient = next_version(patient, &["b", "d"]);
    assert_eq!(numbers(&patient), ["b 1", "d 3", "c 2 unbound", "a 0 unbound"]);
}

#[test]
fn rows_of_before_there_were_numbers_are_of_the_input_that_had_their_place() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking_of(&["a", "b"]));
    apply(&mut patient, 1, 5, &["k!flaky"]);
    patient.commit();
    as_before_numbers(&mut patient);

    let mut patient = next_version(patient, &["c", "b"]);
    patient.heal();
    assert_eq!(patient.retry_after(10 * SECOND_MS), 1);
    assert_eq!(commit_ids(&mut patient), ["life/b-id/3/5/0"]);
    assert_eq!(numbers(&patient), ["c 2", "b 1", "a 0 unbound"]);
}
