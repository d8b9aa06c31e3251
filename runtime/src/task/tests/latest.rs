//! An output with `emit: commit`: what of a commit's emissions is sent, and what is not.

use std::collections::BTreeMap;

use super::policy::commit_against_a_broker_that_refuses_b;
use super::*;
use crate::config::deployment::Emit;
use crate::config::failures::Then;
use crate::record::headers;

fn at_commit(mut config: TaskConfig) -> TaskConfig {
    config.outputs[0].emit = Emit::Commit;
    config
}

fn apply(task: &mut Task, batch: Batch) -> Applied {
    task.apply(batch, TakenAt::default()).unwrap()
}

fn seal_and_commit(task: &mut Task) -> Vec<String> {
    let sealed = task.seal(0).unwrap().unwrap();
    let seen = emitted(&sealed);
    commit(task, sealed);
    seen
}

#[test]
fn a_commit_sends_the_last_record_of_each_key_in_the_order_of_the_last_ones() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(at_commit(config(Failures::halt())));
    apply(&mut task, records(0, ["a", "b", "a"]));
    apply(&mut task, records(3, ["c", "b", "a"]));
    assert!(task.pending().bytes > 0);
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["c=1", "b=2", "a=3"]);
    assert_eq!((sealed.records, sealed.emissions.len()), (6, 1));
    commit(&mut task, sealed);
    assert_eq!(read(&task, "a").as_deref(), Some("3"));
    apply(&mut task, records(6, ["b"]));
    assert_eq!(seal_and_commit(&mut task), ["b=3"], "what has been sent is not sent again");
}

#[test]
fn what_is_emitted_while_a_commit_is_under_way_is_the_next_ones() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(at_commit(config(Failures::halt())));
    apply(&mut task, records(0, ["a", "a"]));
    let first = task.seal(0).unwrap().unwrap();
    apply(&mut task, records(2, ["a", "a", "b"]));
    assert_eq!(emitted(&first), ["a=2"]);
    commit(&mut task, first);
    assert_eq!(seal_and_commit(&mut task), ["a=4", "b=1"]);
}

/// The handler hands over what failed records emit as well.
#[test]
fn the_emission_of_a_record_that_fails_is_not_sent_and_replaces_none() {
    for failing in ["a!fail", "a!trap", "a!huge", "a!big", "a!old"] {
        let mut bench = Bench::new();
        let mut task = bench.task_with(at_commit(config(Failures::skip())));
        let applied = apply(&mut task, records(0, ["a", "b", failing, "b"]));
        assert_eq!((applied.ok, applied.failed), (3, 1), "{failing}");
        assert_eq!(seal_and_commit(&mut task), ["a=1", "b=2"], "{failing}");
    }
}

#[test]
fn what_is_dropped_is_neither_sent_nor_replaced() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(at_commit(config(Failures::halt())));
    apply(&mut task, records(0, ["a", "b"]));
    let refused = task.seal(0).unwrap().unwrap();
    apply(&mut task, records(2, ["c", "b"]));
    task.drop_uncommitted(Some(refused)).unwrap();
    assert_eq!(task.pending(), Pending::default());
    apply(&mut task, records(0, ["a", "b", "c"]));
    assert_eq!(seal_and_commit(&mut task), ["a=1", "b=1", "c=1"]);
}

/// Of the last two, the first try sends one.
#[test]
fn each_record_whose_emission_the_broker_refuses_is_found_whichever_it_had_replaced() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(at_commit(config(Failures::skip())));
    let input = ["a", "c", "a", "b", "c", "d", "a", "e", "b", "b"];
    let (kafka, _) = commit_against_a_broker_that_refuses_b(&mut task, &input);
    let last: BTreeMap<&str, &str> = kafka.iter().filter_map(|sent| sent.split_once('=')).collect();
    assert_eq!(last, BTreeMap::from([("a", "3"), ("c", "2"), ("d", "1"), ("e", "1")]));
    assert_eq!((task.committed_offset(0), task.is_careful()), (Some(Offset(10)), false));
    assert_eq!(task.stats().failures[FailureKind::Limit as usize], 3);
}

#[test]
fn letters_are_all_sent_whatever_their_key() {
    let mut bench = Bench::new();
    let mut task = bench.task_with(at_commit(parking(Failures::at_once(Then::DeadLetter))));
    apply(&mut task, records(0, ["a", "a!fail", "a", "a!garbled", "a"]));
    let sealed = task.seal(0).unwrap().unwrap();
    let outputs = sealed.emissions.iter().flat_map(|emissions| emissions.rows().map(|row| row.output));
    assert_eq!(outputs.collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(emitted(&sealed).last().map(String::as_str), Some("a=3"));
}

#[test]
fn what_is_sent_has_the_id_and_the_correlation_of_its_own_record() {
    let mut bench = Bench::new();
    let mut config = at_commit(config(Failures::halt()));
    config.outputs[0].ids = true;
    config.correlation = true;
    let mut task = bench.task_with(config);
    apply(&mut task, records(0, ["a", "b", "a"]));
    let sealed = task.seal(0).unwrap().unwrap();
    let ids: Vec<Vec<u8>> = sealed.emissions[0]
        .rows()
        .map(|row| {
            let own = headers::decode(row.headers.unwrap()).unwrap();
            let value = |name: &str| own.iter().find(|(found, _)| *found == name).unwrap().1.unwrap();
            [value("causation-id"), b" caused ", value(ID_HEADER)].concat()
        })
        .collect();
    assert_eq!(
        ids,
        [b"life/words-id/3/1 caused life/words-id/3/1/0", b"life/words-id/3/2 caused life/words-id/3/2/0",]
    );
}

#[test]
fn emissions_that_replace_each_other_do_not_fill_an_overlay() {
    let fills = |config: TaskConfig| {
        let mut bench = Bench::new();
        let mut task = bench.task_with(config);
        (0..200).any(|call| {
            apply(&mut task, records(call * 500, ["a"; 500]));
            task.is_full()
        })
    };
    let bounded = || TaskConfig { overlay_bytes_max: 2 << 20, ..config(Failures::halt()) };
    assert!(fills(bounded()));
    assert!(!fills(at_commit(bounded())));
}

#[test]
fn another_revision_may_send_each_record_or_the_last_ones() {
    let mut bench = Bench::new();
    let mut task = bench.task(Failures::halt());
    let mut next = 0;
    for (revision, emit, expected) in
        [(1, Emit::Each, &["a=1", "a=2"][..]), (2, Emit::Commit, &["a=4"]), (3, Emit::Each, &["a=5", "a=6"])]
    {
        if revision > 1 {
            let mut config = TaskConfig { revision, ..config(Failures::halt()) };
            config.outputs[0].emit = emit;
            task.adopt(Arc::new(config), Box::new(Counter::default())).unwrap();
            assert!(seal_and_commit(&mut task).is_empty());
        }
        apply(&mut task, records(next, ["a", "a"]));
        next += 2;
        assert_eq!(seal_and_commit(&mut task), expected);
    }
}
