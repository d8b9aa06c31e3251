//! Producers with sequence numbers: repetitions are recognised, gaps and zombies refused.

use crate::cluster::{connect, read, topic, values};
use crate::raw::{Raw, Stamp, batch, produce_raw, retry};
use kafka_protocol::messages::InitProducerIdRequest;

fn producer_id(raw: &mut Raw) -> (i64, i16) {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(60_000)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    // Apache Kafka may still be reserving its first block of ids.
    let response = retry(|| {
        let response = raw.call(&request, 4);
        (response.error_code, response)
    });
    assert_eq!(response.error_code, 0);
    (response.producer_id.0, response.producer_epoch)
}

fn stamp((id, epoch): (i64, i16), sequence: i32) -> Stamp {
    Stamp { id, epoch, sequence, transactional: false }
}

#[test]
fn producer_ids_are_never_given_twice() {
    let mut raw = connect();
    let first = producer_id(&mut raw);
    let second = producer_id(&mut raw);
    assert_ne!(first.0, second.0);
    assert_eq!((first.1, second.1), (0, 0));
}

#[test]
fn a_repeated_batch_is_acknowledged_at_its_first_offset_and_stored_once() {
    let topic = topic("repeated", 1, &[]);
    let mut raw = connect();
    let producer = producer_id(&mut raw);
    for sequence in 0..5 {
        let value = sequence.to_string();
        let placed = produce_raw(&mut raw, &topic, None, batch(stamp(producer, sequence), &[&value]));
        assert_eq!((placed.error_code, placed.base_offset), (0, i64::from(sequence)));
    }
    for sequence in (0..5).rev() {
        let value = sequence.to_string();
        let placed = produce_raw(&mut raw, &topic, None, batch(stamp(producer, sequence), &[&value]));
        assert_eq!((placed.error_code, placed.base_offset), (0, i64::from(sequence)), "sequence {sequence}");
    }
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")), ["0", "1", "2", "3", "4"]);
}

#[test]
fn a_repetition_older_than_the_last_five_batches_is_refused() {
    let topic = topic("too-old", 1, &[]);
    let mut raw = connect();
    let producer = producer_id(&mut raw);
    for sequence in 0..6 {
        assert_eq!(
            produce_raw(&mut raw, &topic, None, batch(stamp(producer, sequence), &["v"])).error_code,
            0
        );
    }
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp(producer, 0), &["v"])).error_code, 45);
}

#[test]
fn a_gap_in_the_sequence_is_refused() {
    let topic = topic("gap", 1, &[]);
    let mut raw = connect();
    let producer = producer_id(&mut raw);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp(producer, 0), &["a", "b"])).error_code, 0);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp(producer, 3), &["d"])).error_code, 45);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp(producer, 2), &["c"])).error_code, 0);
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")), ["a", "b", "c"]);
}

#[test]
fn a_new_epoch_starts_at_zero_and_shuts_the_old_one_out() {
    let topic = topic("epochs", 1, &[]);
    let mut raw = connect();
    let (id, epoch) = producer_id(&mut raw);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp((id, epoch), 0), &["a"])).error_code, 0);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp((id, epoch + 1), 1), &["x"])).error_code, 45);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp((id, epoch + 1), 0), &["b"])).error_code, 0);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp((id, epoch), 1), &["x"])).error_code, 47);
    assert_eq!(values(&read(&topic, 0, 0, "read_committed")), ["a", "b"]);
}

#[test]
fn an_unknown_producer_may_start_anywhere() {
    let topic = topic("anywhere", 1, &[]);
    let mut raw = connect();
    let producer = producer_id(&mut raw);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp(producer, 7), &["a"])).error_code, 0);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp(producer, 8), &["b"])).error_code, 0);
}

#[test]
fn sequences_go_on_at_zero_after_the_largest() {
    let topic = topic("wrap", 1, &[]);
    let mut raw = connect();
    let producer = producer_id(&mut raw);
    let last = stamp(producer, i32::MAX);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(last, &["a"])).error_code, 0);
    assert_eq!(produce_raw(&mut raw, &topic, None, batch(stamp(producer, 0), &["b"])).error_code, 0);
}
