//! Failure events: one for each verdict, in the commit that carries it out.

use tidemill_proto::v1::ParkedFilter;

use super::super::unpark::Unpark;
use super::parking::{Patient, SECOND_MS, failures};
use super::*;
use crate::config::failures::{Policy, Then};

fn telling(failures: Failures) -> TaskConfig {
    let mut config = parking(failures);
    config.outputs.push(OutputRule {
        topic: "events".into(),
        record_bytes_max: 100_000,
        ..OutputRule::default()
    });
    config.events = Some(EventsRule { output: 2, source: "/tidemill/dev/count".into() });
    config
}

/// Verdict, offset and attempts of every event, in order.
fn told(sealed: &Sealed) -> Vec<String> {
    let mut told = Vec::new();
    for row in sealed.emissions.iter().flat_map(|emissions| emissions.rows()) {
        if row.output == 2 {
            let event: serde_json::Value = serde_json::from_slice(row.value.unwrap()).unwrap();
            let data = &event["data"];
            let text = |name: &str| data[name].to_string().replace('"', "");
            told.push(format!("{} {} {}", text("verdict"), text("original_offset"), text("attempts")));
        }
    }
    told
}

/// Commits what there is; the ids of its events, in order.
fn commit_ids(task: &mut Task) -> Vec<String> {
    let sealed = task.seal(0).unwrap().expect("something to commit");
    let mut ids = Vec::new();
    for row in sealed.emissions.iter().flat_map(|emissions| emissions.rows()) {
        if row.output == 2 {
            let event: serde_json::Value = serde_json::from_slice(row.value.unwrap()).unwrap();
            ids.push(event["id"].as_str().unwrap().to_owned());
        }
    }
    commit(task, sealed);
    ids
}

fn commit_told(task: &mut Task) -> Vec<String> {
    let sealed = task.seal(0).unwrap().expect("something to commit");
    let told = told(&sealed);
    commit(task, sealed);
    told
}

#[test]
fn every_failure_is_told_with_what_it_leads_to_in_the_same_commit() {
    let mut bench = Bench::new();
    let policies = Failures::by_kind(|kind| match kind {
        FailureKind::Transient => *failures(Then::DeadLetter, 1).policy(kind),
        FailureKind::Permanent => Policy::default_for(kind, Then::DeadLetter),
        FailureKind::Decode => Policy::default_for(kind, Then::Skip),
        _ => Policy::default_for(kind, Then::Park),
    });
    let mut patient = Patient::new(&mut bench, telling(policies));
    patient.apply(0, &["a!flaky", "a", "b!fail", "c!garbled", "d!trap", "e"]);
    assert_eq!(
        commit_told(&mut patient.task),
        ["retry_scheduled 0 1", "dead_lettered 2 1", "skipped 3 1", "parked 4 1"]
    );
    patient.retry_after(10 * SECOND_MS);
    assert_eq!(commit_told(&mut patient.task), ["dead_lettered 0 2"], "what waits has not failed");
}

#[test]
fn a_halt_is_told_although_nothing_else_is_to_be_committed_and_moves_nothing() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(telling(Failures::halt()));
    task.apply(records(0, ["a!fail", "a"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().expect("the event");
    assert_eq!((told(&sealed), sealed.records), (vec!["halted 0 1".into()], 0));
    commit(&mut task, sealed);
    assert!(!task.is_running());
    assert_eq!((task.next(0), task.committed_offset(0)), (Some(Offset(0)), Some(Offset(0))));
    assert!(task.pending().is_empty(), "once");
}

#[test]
fn an_event_that_the_broker_refuses_is_not_sent_again_and_again() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(telling(Failures::skip()));
    task.apply(records(0, ["a!fail"]), TakenAt::default()).unwrap();
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(told(&sealed), ["skipped 0 1"]);
    task.refuse(sealed, "by a policy of the topic", true).unwrap();
    task.apply(records(0, ["a!fail"]), TakenAt::default()).unwrap();
    assert_eq!(commit_told(&mut task), [""; 0]);
    assert_eq!(task.committed_offset(0), Some(Offset(1)));
}

#[test]
fn what_is_dropped_by_hand_is_told() {
    for (discard, expected) in [(false, "dead_lettered 0 1"), (true, "discarded 0 1")] {
        let mut bench = Bench::new();
        let mut patient = Patient::new(&mut bench, telling(failures(Then::Park, 0)));
        patient.apply(0, &["a!fail"]);
        assert_eq!(commit_told(&mut patient.task), ["parked 0 1"]);
        let what = Unpark::Drop { filter: ParkedFilter::default(), waiting: false, discard };
        let mut unparking = patient.task.begin_unpark(what).unwrap().unwrap();
        assert!(patient.task.unpark(&mut unparking, patient.taken()).unwrap());
        assert_eq!(commit_told(&mut patient.task), [expected]);
    }
}

#[test]
fn a_failure_after_a_release_is_news_and_no_repetition_of_the_one_before() {
    let mut bench = Bench::new();
    let mut patient = Patient::new(&mut bench, telling(failures(Then::Park, 0)));
    patient.apply(0, &["a!fail"]);
    let mut ids = commit_ids(&mut patient.task);
    for _ in 0..2 {
        let what = Unpark::Release { filter: ParkedFilter::default() };
        let mut unparking = patient.task.begin_unpark(what).unwrap().unwrap();
        assert!(patient.task.unpark(&mut unparking, patient.taken()).unwrap());
        assert_eq!(patient.retry_after(0), 1);
        ids.extend(commit_ids(&mut patient.task));
    }
    let place = "life/words-id/3/0/1/0";
    assert_eq!(ids, ["1", "1.1", "2.1"].map(|attempt| format!("{place}/{attempt}/parked")));
}

#[test]
fn a_dropped_commit_tells_nothing_and_an_event_that_does_not_fit_is_left_out() {
    let mut bench = Bench::new();
    let mut config = telling(Failures::skip());
    let mut task = bench.task_with(config.clone());
    task.apply(records(0, ["a!fail"]), TakenAt::default()).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    task.drop_uncommitted(Some(refused)).unwrap();
    task.apply(records(0, ["a!fail"]), TakenAt::default()).unwrap();
    assert_eq!(commit_told(&mut task), ["skipped 0 1"]);

    config.outputs[2].record_bytes_max = 1000;
    let mut bench = Bench::new();
    let mut task = bench.task_with(config);
    task.apply(records(0, ["a!fail", "a"]), TakenAt::default()).unwrap();
    assert_eq!(commit_told(&mut task), [""; 0]);
    assert_eq!(read(&task, "a").as_deref(), Some("1"));
}
