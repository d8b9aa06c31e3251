//! Outboxes: rows, deliveries in order per key, acknowledgements that outlive an overlay, bounds.

use std::time::Duration;

use prost::Message;
use tidemill_proto::v1::LetterFilter;

use super::*;
use crate::config::failures::Backoff;
use crate::ports::{Delivery, Handler as HandlerPort, Landed, Landing, TopicRecord};
use crate::record::headers;
use crate::store::{OutboxRow, POSITION, Position};
use crate::task::redrive::{LetterPage, Redrive};

/// Emits each record's value twice: to the topic and to the outbox; a value `none` only to the topic.
struct Twice;

impl HandlerPort for Twice {
    fn handle(&mut self, batch: &Batch, _: Order, _: Prefetched, _: &mut View) -> Result<Effects, Fault> {
        let mut effects = Effects::default();
        for (row, (key, value)) in batch.keys.iter().zip(batch.values.iter()).enumerate() {
            effects.statuses.push(Status::Ok);
            effects.reasons.push(None);
            for output in [0, HOOK] {
                let emissions = &mut effects.emissions;
                if output == HOOK && value == Some(b"none") {
                    continue;
                }
                emissions.sources.push(row as u32);
                emissions.outputs.push(output);
                emissions.partitions.push(-1);
                emissions.timestamps.push(batch.timestamps[row]);
                emissions.keys.push(key);
                emissions.values.push(value);
                emissions.headers.push(None);
            }
        }
        Ok(effects)
    }

    fn renew(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn used(&self) -> Duration {
        Duration::ZERO
    }
}

const HOOK: u16 = 2;

fn rule() -> OutboxRule {
    OutboxRule {
        name: "hook".into(),
        rows: 10,
        bytes: 1 << 20,
        in_flight: 4,
        retry: Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) },
        attempts: Some(2),
    }
}

fn hooked(rule: OutboxRule) -> TaskConfig {
    let mut config = parking(Failures::halt());
    config.outputs.push(OutputRule {
        topic: "the outbox of hook".into(),
        record_bytes_max: 9_000,
        outbox: Some(Arc::new(rule)),
        ..OutputRule::default()
    });
    config.outputs[0].ids = true;
    config
}

fn task(bench: &mut Bench, rule: OutboxRule) -> Task {
    let config = Arc::new(hooked(rule));
    let next = vec![Offset(0)];
    let start = adopted(start(Some(bench.store()), next, 1));
    Task::new(config, PARTITION, Box::new(Twice), start).unwrap()
}

fn at(ms: u64) -> TakenAt {
    TakenAt { monotonic: Duration::from_millis(ms), wall_ms: 1_000_000 + ms as i64 }
}

fn taken(task: &mut Task, ms: u64) -> Vec<Delivery> {
    std::iter::from_fn(|| task.delivery(at(ms).monotonic, |_| true).unwrap()).collect()
}

fn keys(deliveries: &[Delivery]) -> Vec<String> {
    let text = |bytes: &Option<Vec<u8>>| String::from_utf8(bytes.clone().unwrap_or_default()).unwrap();
    deliveries.iter().map(|delivery| text(&delivery.key)).collect()
}

fn land(task: &mut Task, delivery: &Delivery, landed: Landed, ms: u64) -> bool {
    let landing = Landing { partition: PARTITION, sequence: delivery.sequence, landed };
    task.landed(&landing, at(ms)).unwrap() != Settled::Open
}

fn failed() -> Landed {
    Landed::Transient { reason: "out of order".into(), after: None }
}

fn seal_and_commit(task: &mut Task) {
    let sealed = task.seal(0).unwrap().unwrap();
    commit(task, sealed);
}

#[test]
fn a_row_is_delivered_after_its_commit_in_order_per_key_and_deleted_by_another() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    task.apply(records(0, ["a", "a", "b"]), at(0)).unwrap();
    assert_eq!(taken(&mut task, 0), [], "nothing before the commit");
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(sealed.changelog.as_ref().unwrap().keys.len(), 4, "three rows and the position record");
    let named = sealed.emissions[0].rows().nth(1).unwrap().headers.unwrap().to_vec();
    assert_eq!(
        headers::decode(&named).unwrap(),
        [(ID_HEADER, Some(&b"life/words-id/3/1/0"[..]))],
        "emissions to a topic carry their ids if asked to"
    );
    assert_eq!(taken(&mut task, 0), [], "nor while it is under way");
    commit(&mut task, sealed);

    let first = taken(&mut task, 1);
    assert_eq!(keys(&first), ["a", "b"], "one of a key at a time, the oldest first");
    assert_eq!((first[0].id.as_str(), first[0].sequence), ("life/words-id/3/0/1", 1));
    assert!(land(&mut task, &first[0], Landed::Delivered, 2));
    let second = taken(&mut task, 2);
    assert_eq!((keys(&second), second[0].sequence), (vec!["a".to_owned()], 2), "the next of the key");
    assert!(!land(&mut task, &first[0], Landed::Delivered, 2), "a landing counts once");

    let pending = task.pending();
    assert_eq!((pending.records, pending.acknowledged), (0, 1));
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(sealed.offsets[0].offset, Offset(3), "offsets that did not move fence it all the same");
    let rows = sealed.changelog.as_ref().unwrap();
    assert_eq!((rows.keys.len(), rows.values.row(0)), (2, None), "the row's deletion, and the position");
    commit(&mut task, sealed);
    assert_eq!(task.outbox_status()[0].rows, 2);
}

#[test]
fn an_acknowledgement_outlives_a_dropped_overlay_and_a_row_that_was_never_committed_does_not() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    task.apply(records(0, ["a", "b"]), at(0)).unwrap();
    seal_and_commit(&mut task);
    let sent = taken(&mut task, 1);
    land(&mut task, &sent[0], Landed::Delivered, 1);
    land(&mut task, &sent[1], Landed::Permanent { reason: "404".into() }, 1);
    task.apply(records(2, ["a"]), at(2)).unwrap();
    let refused = task.seal(0).unwrap().unwrap();
    assert_eq!(refused.emissions.len(), 2, "the dead letter, and what the record emitted");
    task.drop_uncommitted(Some(refused)).unwrap();

    assert_eq!(taken(&mut task, 3), [], "neither again, nor what was dropped");
    assert_eq!(task.pending().acknowledged, 2);
    let sealed = task.seal(0).unwrap().unwrap();
    assert_eq!(emitted(&sealed), ["b="], "the dead letter is there again");
    commit(&mut task, sealed);
    assert!(!task.has_outbox_rows());
    task.apply(records(2, ["a"]), at(2)).unwrap();
    seal_and_commit(&mut task);
    let again = taken(&mut task, 4);
    assert_eq!((again[0].sequence, again[0].id.as_str()), (3, "life/words-id/3/2/1"));
}

#[test]
fn a_failed_row_is_tried_again_later_and_buried_after_the_last_attempt() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    task.apply(records(0, ["a", "a"]), at(0)).unwrap();
    seal_and_commit(&mut task);
    let sent = taken(&mut task, 0);
    assert!(!land(&mut task, &sent[0], failed(), 0));
    assert_eq!(taken(&mut task, 49), [], "half of the pause at least, and the key waits");
    let again = taken(&mut task, 100);
    assert_eq!(again, sent, "the same row, the same id");
    let slow = Landed::Transient { reason: "429".into(), after: Some(Duration::from_secs(5)) };
    assert!(!land(&mut task, &again[0], slow, 100));
    assert_eq!(taken(&mut task, 5_099), [], "as long as the destination asks for");
    let again = taken(&mut task, 5_100);
    assert!(land(&mut task, &again[0], failed(), 5_200), "the second retry was the last");
    let sealed = task.seal(0).unwrap().unwrap();
    let letter = sealed.emissions[0].rows().next().unwrap();
    assert_eq!((letter.output, sealed.emissions[0].len()), (1, 1));
    let own = letter.headers.unwrap().to_vec();
    let all = headers::decode(&own).unwrap();
    let text = |name: &str| {
        let value = all.iter().find(|(found, _)| *found == name).unwrap().1.unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    assert_eq!((text("outbox_destination"), text("attempts")), ("hook".into(), "3".into()));
    assert_eq!((text("error_type"), text("tidemill-id")), ("OutboxDeliveryError".into(), sent[0].id.clone()));
    assert_eq!(text("correlation_id"), "life/words-id/3/0", "the place of its record");
    assert_eq!((text("original_topic"), text("original_offset")), ("words".into(), "0".into()));
    commit(&mut task, sealed);
    assert_eq!(taken(&mut task, 5_300)[0].sequence, 2, "its key is free");
}

/// The dead letter that a commit emits first, as it lies in its topic.
fn letter_of(sealed: &Sealed, offset: u64) -> TopicRecord {
    let row = sealed.emissions[0].rows().next().unwrap();
    let bytes = |column: Option<&[u8]>| column.map(<[u8]>::to_vec);
    TopicRecord {
        offset: Offset(offset),
        timestamp_ms: 0,
        key: bytes(row.key),
        value: bytes(row.value),
        headers: bytes(row.headers),
    }
}

#[test]
fn what_could_not_be_delivered_comes_back_as_a_row_with_its_id_and_not_for_ever() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    task.apply(records(0, ["a", "a"]), at(0)).unwrap();
    seal_and_commit(&mut task);
    let never = || Landed::Permanent { reason: "404".into() };
    let first = taken(&mut task, 0).remove(0);
    land(&mut task, &first, never(), 0);
    let mut sealed = task.seal(0).unwrap().unwrap();
    for round in 0..3 {
        let letter = letter_of(&sealed, round);
        commit(&mut task, sealed);
        if round == 0 {
            let behind = taken(&mut task, 1).remove(0);
            land(&mut task, &behind, Landed::Delivered, 1);
        }
        let redrive = Redrive {
            id: round + 1,
            discard: false,
            filter: LetterFilter::default(),
            retries_max: 2,
            topic_id: "dead-id".into(),
            end: Offset(round + 1),
            asked_at_ms: 7,
        };
        let mut page = LetterPage { records: [letter].into(), next: Some(redrive.end), log_start: Offset(0) };
        let given = task.give_back(&redrive, &mut page, 10).unwrap().letters;
        let progress = task.progress(redrive.id).unwrap();
        if round == 2 {
            assert_eq!((given, progress.over_limit), (0, 1), "it came back twice");
            return;
        }
        assert_eq!((given, progress.ok), (1, 1));
        assert_eq!(taken(&mut task, 2), [], "not before the commit is known");
        seal_and_commit(&mut task);
        let again = taken(&mut task, 3).remove(0);
        assert_eq!((&again.id, &again.key, &again.value), (&first.id, &first.key, &first.value));
        assert_eq!(again.sequence, 3 + round, "behind the rows that are there");
        land(&mut task, &again, never(), 3);
        sealed = task.seal(0).unwrap().unwrap();
    }
}

#[test]
fn a_full_outbox_blocks_the_input_and_it_goes_on_with_a_tenth_free() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    let ten = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    task.apply(records(0, ten), at(0)).unwrap();
    assert!(!task.is_blocked());
    let applied = task.apply(records(10, ["k"]), at(0)).unwrap();
    assert_eq!((applied.ok, applied.ignored), (0, 1));
    assert!(task.blocked_reason().unwrap().starts_with("paused: the outbox of hook holds 10 rows"));
    assert_eq!(task.next(0), Some(Offset(10)), "exactly before the record");
    seal_and_commit(&mut task);
    let sent = taken(&mut task, 1);
    assert_eq!(sent.len(), 4, "as many as may be in flight");
    land(&mut task, &sent[0], Landed::Delivered, 1);
    assert_eq!(task.unblock(), None, "delivered, but not deleted yet");
    seal_and_commit(&mut task);
    assert_eq!(task.unblock().map(|positions| positions[0].1), Some(Offset(10)));
    task.apply(records(10, ["k"]), at(2)).unwrap();
    assert_eq!(task.next(0), Some(Offset(11)));
}

#[test]
fn rows_are_shown_as_far_as_one_answer_holds_them_and_the_next_one_goes_on() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    let large = OutboxRow { output: "hook".into(), value: Some(vec![0; 1 << 20]), ..OutboxRow::default() };
    (0..7).for_each(|_| task.keep(&large));
    let shown = |after| -> Vec<u64> {
        let rows = task.outbox_rows(Some("hook"), after, 100).unwrap();
        rows.iter().map(|row| row.status.sequence).collect()
    };
    assert_eq!((shown(0), shown(4), shown(7)), (vec![1, 2, 3, 4], vec![5, 6, 7], vec![]));
}

#[test]
fn rows_move_with_the_store_and_numbers_are_never_used_twice() {
    let mut bench = Bench::new();
    let mut first = task(&mut bench, rule());
    first.apply(records(0, ["a", "a"]), at(0)).unwrap();
    seal_and_commit(&mut first);
    let sent = taken(&mut first, 0);
    land(&mut first, &sent[0], Landed::Delivered, 0);
    seal_and_commit(&mut first);
    let sent = taken(&mut first, 0);
    land(&mut first, &sent[0], Landed::Delivered, 0);
    seal_and_commit(&mut first);
    first.apply(records(2, ["a"]), at(0)).unwrap();
    seal_and_commit(&mut first);
    let in_air = taken(&mut first, 0).remove(0);

    let start =
        |parts: Parts| Start { first: Some(vec![Offset(0)]), ..start(parts.store, vec![Offset(3)], 2) };
    let config = Arc::new(hooked(rule()));
    let mut second =
        Task::new(Arc::clone(&config), PARTITION, Box::new(Twice), start(first.close(None))).unwrap();
    second.is_in_air(in_air.sequence);
    assert_eq!(taken(&mut second, 0), [], "what its former life has in the air is waited for");
    assert!(land(&mut second, &in_air, Landed::Delivered, 0));
    seal_and_commit(&mut second);
    assert!(!second.has_outbox_rows());

    let mut third =
        Task::new(Arc::clone(&config), PARTITION, Box::new(Twice), start(second.close(None))).unwrap();
    third.apply(records(3, ["a"]), at(0)).unwrap();
    seal_and_commit(&mut third);
    assert_eq!(taken(&mut third, 0)[0].sequence, 4, "although no row was left");
}

/// Written by somebody else, or damaged: the numbers behind it would come to an end.
#[test]
fn a_row_with_a_number_that_no_task_gets_to_is_an_error_that_names_it() {
    for number in [u64::MAX - 1, u64::MAX] {
        let parked = [&[0x04u8, 1][..], &number.to_be_bytes(), &[0, 0]].concat();
        let row = [&[0x03u8][..], &number.to_be_bytes()].concat();
        let position = Position { outbox_next: number, ..Position::default() }.encode_to_vec();
        let rows = [
            (parked.as_slice(), &b""[..], "parked record"),
            (row.as_slice(), &b""[..], "outbox row"),
            (POSITION, position.as_slice(), "outbox row"),
        ];
        for (key, value, what) in rows {
            let bench = Bench::new();
            let mut store = bench.store();
            let progress = store.progress();
            store.write(std::iter::once((key, Some(value))), progress).unwrap();
            let start = adopted(start(Some(store), vec![Offset(0)], 1));
            let task = Task::new(Arc::new(hooked(rule())), PARTITION, Box::new(Twice), start);
            let told = format!("state store is corrupt: {what}: no task gives one the number {number}");
            assert_eq!(task.err().map(|error| error.to_string()), Some(told));
        }
    }
}

#[test]
fn a_person_may_try_again_at_once_or_discard() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    task.apply(records(0, ["a", "b"]), at(0)).unwrap();
    seal_and_commit(&mut task);
    let sent = taken(&mut task, 0);
    land(&mut task, &sent[0], failed(), 0);
    land(&mut task, &sent[1], failed(), 0);
    assert_eq!(taken(&mut task, 1), []);
    let shown = task.outbox_rows(Some("hook"), 0, 10).unwrap();
    assert_eq!((shown.len(), shown[0].status.attempts), (2, 1));
    assert_eq!(
        (shown[0].status.reason.as_str(), shown[0].row.key.as_deref()),
        ("out of order", Some(&b"a"[..]))
    );
    assert_eq!(task.retry_outbox(Some("hook"), &[1]), 1);
    assert_eq!(keys(&taken(&mut task, 1)), ["a"]);
    assert_eq!(task.discard_outbox(None, &[]), 1, "the one that is under way is left alone");
    seal_and_commit(&mut task);
    assert_eq!(task.outbox_status()[0].rows, 1);
}

#[test]
fn a_row_whose_commit_is_not_known_is_not_discarded_because_it_may_be_dropped_and_come_again() {
    let mut bench = Bench::new();
    let mut task = task(&mut bench, rule());
    task.apply(records(0, ["a"]), at(0)).unwrap();
    seal_and_commit(&mut task);
    task.apply(records(1, ["b"]), at(1)).unwrap();
    assert_eq!(task.discard_outbox(None, &[2]), 0, "not by its number");
    assert_eq!(task.discard_outbox(Some("hook"), &[]), 1, "nor with all that wait");
    let refused = task.seal(0).unwrap().unwrap();
    assert_eq!(task.discard_outbox(None, &[]), 0, "nor while its commit is under way");
    task.drop_uncommitted(Some(refused)).unwrap();
    task.apply(records(1, ["b"]), at(2)).unwrap();
    seal_and_commit(&mut task);
    assert_eq!(keys(&taken(&mut task, 3)), ["b"], "the one that was discarded stays so");
    assert_eq!(task.outbox_status()[0].rows, 1);
}
