//! An operator releases or drops parked records: in the order of their key, in one commit, nothing in silence.

use tidemill_proto::v1::ParkedFilter;

use super::parking::{Patient, SECOND_MS, failures};
use super::*;
use crate::config::failures::{ParkOrder, Then};
use crate::task::unpark::{Unpark, Unparked};

/// Of a park that nothing but a person, or another version, empties.
fn held(bench: &mut Bench) -> Patient {
    Patient::new(bench, parking(failures(Then::Park, 0)))
}

pub fn of(keys: &[&str]) -> ParkedFilter {
    ParkedFilter { keys: keys.iter().map(|key| key.as_bytes().to_vec()).collect(), ..ParkedFilter::default() }
}

pub fn release(keys: &[&str]) -> Unpark {
    Unpark::Release { filter: of(keys) }
}

pub fn drop_of(filter: ParkedFilter, waiting: bool, discard: bool) -> Unpark {
    Unpark::Drop { filter, waiting, discard }
}

/// Carries a request out to its end.
pub fn unpark(patient: &mut Patient, what: Unpark) -> Unparked {
    let taken = patient.taken();
    let mut unparking = patient.task.begin_unpark(what).unwrap().expect("it may be now");
    while !patient.task.unpark(&mut unparking, taken).unwrap() {}
    unparking.done
}

pub fn counts(done: &Unparked) -> (u64, u64, u64) {
    (done.keys, done.records, done.left)
}

#[test]
fn a_released_key_is_handled_in_order_before_later_records_of_it() {
    let mut bench = Bench::new();
    let mut patient = held(&mut bench);
    patient.apply(0, &["b!flaky", "b", "c!flaky", "a"]);
    assert_eq!(patient.commit(), ["a=1"]);
    assert_eq!(patient.retry_after(SECOND_MS), 0, "held");

    patient.heal();
    assert_eq!(counts(&unpark(&mut patient, release(&["b"]))), (1, 2, 0));
    let applied = patient.apply(4, &["b", "c"]);
    assert_eq!((applied.ok, applied.waiting), (0, 2), "until its turn has come nothing overtakes it");
    assert_eq!(patient.retry_after(0), 3);
    patient.apply(6, &["b"]);
    assert_eq!(patient.commit(), ["b=1", "b=2", "b=3", "b=4"]);
    assert_eq!(patient.rows(), ["c@2 1", "c@5 0"], "the other one is still held");
}

#[test]
fn a_release_that_helps_nothing_leaves_the_key_as_it_was_with_its_attempts_counted_anew() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::Park, 1)));
    patient.apply(0, &["b!flaky", "b"]);
    assert_eq!(patient.retry_after(SECOND_MS), 1, "the last attempt");
    patient.commit();
    assert_eq!(patient.rows(), ["b@0 2", "b@1 0"]);
    unpark(&mut patient, release(&[]));
    assert_eq!(patient.retry_after(0), 1);
    patient.commit();
    assert_eq!(patient.rows(), ["b@0 1", "b@1 0"]);
    assert_eq!(patient.retry_after(SECOND_MS), 1, "one more attempt is its due");
    assert_eq!(patient.retry_after(3_600 * SECOND_MS), 0, "and then it is held again");
}

#[test]
fn a_release_is_forgotten_with_its_overlay_and_outlives_its_commit() {
    let mut bench = Bench::new();
    let mut patient = held(&mut bench);
    patient.apply(0, &["b!flaky"]);
    patient.commit();
    patient.heal();
    unpark(&mut patient, release(&["b"]));
    let refused = patient.task.seal(0).unwrap().expect("a commit of its own");
    patient.task.drop_uncommitted(Some(refused)).unwrap();
    assert_eq!(patient.retry_after(SECOND_MS), 0, "held, as committed");

    unpark(&mut patient, release(&["b"]));
    patient.commit();
    let again = patient.task.drop_uncommitted(None);
    assert!(again.is_ok());
    assert_eq!(patient.retry_after(0), 1);
    assert_eq!(patient.commit(), ["b=1"]);
}

#[test]
fn a_dropped_record_is_a_letter_in_the_commit_that_frees_its_key() {
    let mut bench = Bench::new();
    let mut patient = held(&mut bench);
    patient.apply(0, &["b!flaky", "b", "c!garbled", "c"]);
    patient.commit();
    let done = unpark(&mut patient, drop_of(of(&["b", "absent"]), false, false));
    assert_eq!(counts(&done), (1, 1, 0));
    assert_eq!(patient.retry_after(0), 1, "the one behind it has its turn");
    assert_eq!(patient.commit(), ["b=flaky", "b=1"], "letter and effect");
    assert_eq!(patient.rows(), ["c@2 1", "c@3 0"]);

    let kinds = ParkedFilter { kinds: vec!["decode".into()], held: true, ..ParkedFilter::default() };
    assert_eq!(counts(&unpark(&mut patient, drop_of(kinds, true, false))), (1, 2, 0));
    assert_eq!(patient.retry_after(0), 0, "nothing is left to try");
    assert_eq!(patient.commit(), ["c=garbled", "c="], "in their order");
    assert_eq!((patient.rows().len(), patient.task.parked()), (0, (0, 0)));
}

#[test]
fn what_is_chosen_to_be_dropped_is_dropped_and_never_what_comes_to_stand_in_its_place() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, parking(failures(Then::Park, 5)));
    patient.apply(0, &["b!flaky", "b", "c!flaky", "c"]);
    patient.commit();
    let taken = patient.taken();
    let mut unparking = patient.task.begin_unpark(drop_of(of(&["b"]), false, true)).unwrap().unwrap();
    patient.heal();
    assert_eq!(patient.retry_after(SECOND_MS), 2, "c is tried; b is spoken for");
    while !patient.task.unpark(&mut unparking, taken).unwrap() {}
    assert_eq!(counts(&unparking.done), (1, 1, 0));
    assert_eq!(patient.retry_after(0), 1);
    assert_eq!(patient.commit(), ["c=1", "c=2", "b=1"], "without a letter");

    // A key whose first record has not been tried is no failure that anybody has seen.
    patient.apply(4, &["d!garbled", "d"]);
    unpark(&mut patient, drop_of(of(&["d"]), false, false));
    assert_eq!(counts(&unpark(&mut patient, drop_of(of(&["d"]), false, false))), (0, 0, 0));
    patient.retry_after(0);
    assert_eq!(patient.commit(), ["d=garbled", "d=1"]);
}

#[test]
fn a_record_that_cannot_be_a_letter_stays_parked_and_is_told_of() {
    let mut bench = Bench::new();
    let mut config = parking(failures(Then::Park, 0));
    config.outputs[1].record_bytes_max = 600;
    let mut patient = Patient::new(&mut bench, config);
    let long = format!("{}!flaky", "k".repeat(200));
    let next = "k".repeat(200);
    patient.apply(0, &[&long, &next]);
    patient.commit();
    let done = unpark(&mut patient, drop_of(ParkedFilter::default(), true, false));
    assert_eq!(counts(&done), (0, 0, 2), "what is behind it stays as well");
    assert!(done.reason.contains("above the max.message.bytes"), "{}", done.reason);
    assert_eq!(patient.commit(), [""; 0]);
    assert_eq!(patient.rows().len(), 2);
    assert_eq!(patient.retry_after(SECOND_MS), 0, "held as before");
    assert_eq!(counts(&unpark(&mut patient, drop_of(ParkedFilter::default(), true, true))), (1, 2, 0));
    patient.commit();
    assert_eq!(patient.rows().len(), 0);
}

#[test]
fn without_order_every_record_is_chosen_by_itself_and_a_drop_makes_room() {
    let mut bench = Bench::new();
    let mut config = parking(failures(Then::Park, 0));
    config.failures.order = ParkOrder::None;
    config.failures.parked.records = 2;
    let mut patient = Patient::new(&mut bench, config);
    patient.apply(0, &["b!flaky", "b!flaky", "b!flaky"]);
    patient.commit();
    assert!(patient.task.is_blocked());
    let second = ParkedFilter { offset: Some(1), ..of(&["b"]) };
    assert_eq!(counts(&unpark(&mut patient, drop_of(second, false, false))), (1, 1, 0));
    assert_eq!(counts(&unpark(&mut patient, drop_of(of(&["c"]), false, true))), (0, 0, 0));
    assert_eq!(counts(&unpark(&mut patient, drop_of(of(&["b"]), false, true))), (1, 1, 0));
    assert_eq!(patient.commit(), ["b=flaky"]);
    let positions = patient.task.unblock().expect("there is room");
    assert_eq!(positions[0].1, Offset(2));
}
