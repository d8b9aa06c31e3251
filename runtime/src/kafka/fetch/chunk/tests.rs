//! Batches made by hand, whole and broken, and what a chunk makes of them.

use tidemill_batches::testing::{NewBatch, NewRecord};
use tidemill_batches::{HEADER_LEN, assemble, assign_offset, marker, seal, walk};

use super::*;
use crate::record::headers;

/// Offset, timestamp, key, value, headers.
type Row = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>);

/// More than a chunk of any test but one holds.
const MOST: usize = 1 << 20;

fn read(records: Bytes, from: i64, aborted: Vec<Aborted>) -> (Chunk, Option<Damage>) {
    Chunk::read(records, from, aborted, MOST)
}

fn plenty() -> Room {
    Room { rows: usize::MAX, bytes: usize::MAX }
}

fn answer(batches: &[Bytes]) -> Bytes {
    batches.iter().flatten().copied().collect()
}

/// A chunk of batches that are as they should be.
fn chunk(batches: &[Bytes], from: i64) -> Chunk {
    let (chunk, damage) = read(answer(batches), from, Vec::new());
    assert_eq!(damage, None);
    chunk
}

/// Takes everything, with headers.
fn take_all(chunk: &mut Chunk) -> (Batch, Result<(), Damage>) {
    let mut out = Batch::default();
    let taken = chunk.take(0, &mut plenty(), true, &mut out, &mut |_, _| ());
    (out, taken)
}

fn rows(out: &Batch) -> Vec<Row> {
    assert_eq!([out.timestamps.len(), out.keys.len(), out.values.len()], [out.len(); 3]);
    assert!(out.headers.is_empty() || out.headers.len() == out.len());
    let own = |row: Option<&[u8]>| row.map(<[u8]>::to_vec);
    (0..out.len())
        .map(|row| {
            let (key, value, headers) = (out.keys.row(row), out.values.row(row), out.headers.row(row));
            (out.offsets[row], out.timestamps[row], own(key), own(value), own(headers))
        })
        .collect()
}

fn values(out: &Batch) -> Vec<String> {
    out.values.iter().map(|value| String::from_utf8_lossy(value.unwrap()).into_owned()).collect()
}

/// Everything of a chunk that holds no damage.
fn values_of(mut chunk: Chunk) -> Vec<String> {
    let (out, taken) = take_all(&mut chunk);
    assert_eq!(taken, Ok(()));
    assert!(chunk.is_empty() && chunk.bytes() == 0);
    values(&out)
}

fn end_of_transaction(offset: i64, producer_id: i64, commit: bool) -> Bytes {
    let mut batch = marker(producer_id, 0, commit, 0);
    assign_offset(&mut batch, offset, 0);
    batch.freeze()
}

/// Keys and values that are null, empty, and neither; times before and after the base; headers.
fn mixed(base_offset: i64) -> NewBatch {
    let mut batch = NewBatch::at(base_offset);
    batch.header.base_timestamp = 1_000;
    let long = b"abc".repeat(100);
    let headers = [("name", Some(&b"value"[..])), ("null", None)];
    batch
        .put("a", "1")
        .push(&NewRecord { timestamp_delta: 5, value: Some(b""), ..NewRecord::default() })
        .push(&NewRecord { timestamp_delta: -5, key: Some(b""), headers: &headers, ..NewRecord::default() })
        .push(&NewRecord { key: Some(b"b"), value: Some(&long), ..NewRecord::default() })
}

/// What comes of [`mixed`].
fn mixed_rows(base_offset: i64) -> Vec<Row> {
    let own = |bytes: &[u8]| Some(bytes.to_vec());
    let headers = headers::encode([("name", Some(&b"value"[..])), ("null", None)].into_iter());
    vec![
        (base_offset, 1_000, own(b"a"), own(b"1"), None),
        (base_offset + 1, 1_005, None, own(b""), None),
        (base_offset + 2, 995, own(b""), None, Some(headers)),
        (base_offset + 3, 1_000, own(b"b"), own(&b"abc".repeat(100)), None),
    ]
}

#[test]
fn batches_become_columns_whatever_they_are_compressed_with() {
    for codec in 0..=4 {
        let batches = [mixed(7).codec(codec).build(), mixed(11).codec(codec).build()];
        let mut chunk = chunk(&batches, 7);
        let bytes = 2 * (size_of::<Run>() + mixed(7).records.len());
        assert_eq!((chunk.next, chunk.bytes()), (15, bytes), "codec {codec}");
        let (out, taken) = take_all(&mut chunk);
        assert_eq!(taken, Ok(()));
        assert_eq!(rows(&out), [mixed_rows(7), mixed_rows(11)].concat(), "codec {codec}");
        assert!(chunk.is_empty() && chunk.bytes() == 0);
    }
}

#[test]
fn what_is_not_compressed_is_not_copied_before_it_is_taken() {
    let bytes = mixed(0).build();
    let (chunk, _) = read(bytes.clone(), 0, Vec::new());
    assert_eq!(chunk.runs[0].records.as_ptr(), bytes[HEADER_LEN..].as_ptr());
}

#[test]
fn headers_have_rows_only_if_they_are_wanted() {
    let mut out = Batch::default();
    let taken = chunk(&[mixed(0).build()], 0).take(0, &mut plenty(), false, &mut out, &mut |_, _| ());
    assert_eq!((taken, out.len(), out.headers.len()), (Ok(()), 4, 0));
}

#[test]
fn nothing_is_a_chunk_without_anything() {
    let mut chunk = chunk(&[], 41);
    assert_eq!((chunk.next, chunk.leader_epoch, chunk.is_empty()), (41, -1, true));
    assert_eq!(take_all(&mut chunk).0.len(), 0);
}

#[test]
fn a_fetch_may_begin_and_a_take_go_on_in_the_middle_of_a_batch() {
    for codec in [0, 4] {
        let batches = [mixed(0).codec(codec).build(), mixed(4).codec(codec).build()];
        for from in 0..8 {
            let (out, taken) = take_all(&mut chunk(&batches, from));
            assert_eq!(taken, Ok(()));
            assert_eq!(out.offsets, (from..8).collect::<Vec<_>>());
            let mut later = Batch::default();
            chunk(&batches, 0).take(from, &mut plenty(), true, &mut later, &mut |_, _| ()).unwrap();
            assert_eq!(rows(&later), rows(&out));
        }
    }
}

#[test]
fn a_last_batch_that_is_cut_short_ends_a_chunk_and_alone_is_damage() {
    let batches = [mixed(0).build(), mixed(4).codec(2).build()];
    let all = answer(&batches);
    for end in 0..all.len() {
        let (mut chunk, damage) = read(all.slice(..end), 0, Vec::new());
        let next = if end < batches[0].len() { 0 } else { 4 };
        assert_eq!(chunk.next, next, "{end} bytes");
        assert_eq!(take_all(&mut chunk).0.offsets, (0..next).collect::<Vec<_>>());
        let short = Damage { offset: 0, error: BatchError::Short };
        assert_eq!(damage, (next == 0 && end > 0).then_some(short), "{end} bytes");
    }
}

#[test]
fn what_compaction_removed_is_passed_over() {
    let gaps = NewBatch::at(0).put("a", "0").gap(3).put("a", "4").gap(5).build();
    let batches = [gaps, NewBatch::at(12).gap(6).build()];
    let offsets = |from| take_all(&mut chunk(&batches, from)).0.offsets;
    assert_eq!([offsets(0), offsets(2), offsets(5)], [vec![0, 4], vec![4], vec![]]);
    assert_eq!((chunk(&batches[..1], 0).next, chunk(&batches, 0).next), (10, 18));
    let emptied = chunk(&batches[1..], 10);
    assert_eq!((emptied.next, emptied.is_empty()), (18, true));
}

#[test]
fn markers_move_the_position_and_are_not_records() {
    let mut last = marker(1, 0, false, 0);
    assign_offset(&mut last, 3, 8);
    let data = |offset, value| NewBatch::at(offset).transaction(1).put("k", value).build();
    let batches = [data(0, "a"), end_of_transaction(1, 1, true), data(2, "b"), last.freeze()];
    let mut read = chunk(&batches, 0);
    assert_eq!((read.next, read.leader_epoch), (4, 8), "the marker is the last batch");
    assert_eq!(take_all(&mut read).0.offsets, [0, 2]);
    assert!(chunk(&batches[3..], 3).is_empty());
    // A marker of which compaction has left the header.
    let mut emptied = NewBatch::at(4).transaction(1).gap(1);
    emptied.header.attributes |= 0x20;
    assert_eq!(chunk(&[emptied.build()], 4).next, 5);
}

#[test]
fn a_control_batch_that_does_not_say_what_it_is_is_damage() {
    let mut batch = NewBatch::at(3).transaction(1).put("k", "v");
    batch.header.attributes |= 0x20;
    let (chunk, damage) = read(batch.build(), 3, Vec::new());
    assert_eq!((chunk.next, damage), (3, Some(Damage { offset: 3, error: BatchError::Record })));
}

#[test]
fn aborted_transactions_are_left_out_and_those_around_them_are_not() {
    let data =
        |offset, producer_id, value| NewBatch::at(offset).transaction(producer_id).put("k", value).build();
    let mut idempotent = NewBatch::at(9).transaction(1).put("k", "no transaction");
    idempotent.header.attributes = 0;
    let batches = [
        data(0, 1, "aborted"),
        data(1, 2, "of another"),
        data(2, 1, "aborted"),
        NewBatch::at(3).put("k", "of nobody").build(),
        end_of_transaction(4, 1, false),
        data(5, 1, "committed later"),
        data(6, 2, "of another"),
        end_of_transaction(7, 2, true),
        end_of_transaction(8, 1, true),
        idempotent.build(),
        data(10, 1, "aborted again"),
        data(11, 1, "aborted again"),
        end_of_transaction(12, 1, false),
        data(13, 1, "committed at last"),
        end_of_transaction(14, 1, true),
    ];
    let kept =
        ["of another", "of nobody", "committed later", "of another", "no transaction", "committed at last"];
    let aborted = |first_offset| Aborted { producer_id: 1, first_offset };
    for aborted in [[aborted(0), aborted(10)], [aborted(10), aborted(0)]] {
        let (chunk, damage) = read(answer(&batches), 0, aborted.to_vec());
        assert_eq!((chunk.next, damage), (15, None));
        assert_eq!(values_of(chunk), kept);
        // The transaction began before what was asked for.
        let (chunk, _) = read(answer(&batches[2..]), 2, aborted.to_vec());
        assert_eq!(values_of(chunk), kept[1..]);
    }
    assert_eq!(values_of(chunk(&batches, 0)).len(), 10, "without a word of it nothing is left out");
}

#[test]
fn a_batch_that_is_left_out_is_not_decompressed() {
    let mut aborted = NewBatch::at(0).transaction(1).put("k", "v").codec(4);
    let garbage = assemble(&aborted.header, b"garbage").freeze();
    let (chunk, damage) = read(garbage, 0, vec![Aborted { producer_id: 1, first_offset: 0 }]);
    assert_eq!((chunk.next, chunk.is_empty(), damage), (1, true, None));
    aborted.header.base_offset = 5;
    let batches = [mixed(0).build(), assemble(&aborted.header, b"garbage").freeze()];
    let (chunk, damage) = read(answer(&batches), 0, Vec::new());
    assert_eq!((chunk.next, damage), (4, Some(Damage { offset: 4, error: BatchError::Compression })));
}

#[test]
fn the_time_of_an_append_is_that_of_every_record() {
    let mut batch = mixed(0);
    batch.header.attributes |= 0x08;
    batch.header.max_timestamp = 7_777;
    assert_eq!(take_all(&mut chunk(&[batch.build()], 0)).0.timestamps, [7_777; 4]);
    let mut timeless = NewBatch::at(0);
    timeless.header.base_timestamp = -1;
    let timeless = timeless.put("k", "v").put("k", "v").build();
    assert_eq!(take_all(&mut chunk(&[timeless], 0)).0.timestamps, [-1; 2]);
}

#[test]
fn what_comes_before_damage_is_kept() {
    let good = mixed(0).build();
    let broken = |at: usize, byte: u8| {
        let mut batch = mixed(4).build().to_vec();
        batch[at] = byte;
        Bytes::from(batch)
    };
    let mut negative = mixed(4);
    negative.header.base_offset = -1;
    for (bad, error) in [
        (broken(HEADER_LEN + 3, 99), BatchError::Crc),
        (broken(16, 1), BatchError::Magic),
        (broken(26, 0), BatchError::Header),
        (negative.build(), BatchError::Header),
    ] {
        let batches = [good.clone(), bad, mixed(8).build()];
        let (mut chunk, damage) = read(answer(&batches), 0, Vec::new());
        assert_eq!((chunk.next, damage), (4, Some(Damage { offset: 4, error })));
        assert_eq!(rows(&take_all(&mut chunk).0), mixed_rows(0));
    }
}

#[test]
fn batches_that_go_back_bring_nothing_twice() {
    let batches = [mixed(4).build(), mixed(0).build(), mixed(6).build()];
    let mut chunk = chunk(&batches, 4);
    assert_eq!(chunk.next, 10);
    assert_eq!(take_all(&mut chunk).0.offsets, [4, 5, 6, 7, 8, 9]);
}

#[test]
fn small_rooms_bring_the_same_rows_as_one() {
    let batches = [mixed(0).build(), mixed(4).codec(3).build(), mixed(8).gap(4).build(), mixed(16).build()];
    let (all, _) = take_all(&mut chunk(&batches, 1));
    for (max_rows, max_bytes) in
        [(1, 1_000), (2, 1_000), (5, 1_000), (1_000, 1), (1_000, 7), (1_000, 310), (3, 302)]
    {
        let mut chunk = chunk(&batches, 1);
        let (mut from, mut taken) = (1, Vec::new());
        while !chunk.is_empty() {
            let mut room = Room { rows: max_rows, bytes: max_bytes };
            let mut out = Batch::default();
            chunk.take(from, &mut room, true, &mut out, &mut |_, _| ()).unwrap();
            assert!((1..=max_rows).contains(&out.len()));
            assert!(out.len() == 1 || out.bytes() <= max_bytes);
            assert_eq!(room.rows, max_rows - out.len());
            assert!(chunk.is_empty() || room.is_used_up());
            from = out.next().unwrap().0 as i64;
            taken.extend(rows(&out));
        }
        assert_eq!(taken, rows(&all), "{max_rows} rows, {max_bytes} bytes");
    }
}

#[test]
fn a_record_that_does_not_fit_waits_and_one_that_never_would_comes_alone() {
    fn record(value: &[u8]) -> NewRecord<'_> {
        NewRecord { value: Some(value), ..NewRecord::default() }
    }
    let batch = NewBatch::at(0).push(&record(&[0; 10])).push(&record(&[1; 10])).push(&record(&[2; 100]));
    let mut chunk = chunk(&[batch.put("", "small").build()], 0);
    let mut taken = |room: &mut Room, out: &mut Batch| {
        chunk.take(0, room, false, out, &mut |_, _| ()).unwrap();
        std::mem::take(&mut out.offsets)
    };
    let (mut room, mut out) = (Room { rows: 9, bytes: 15 }, Batch::default());
    assert_eq!(taken(&mut room, &mut out), [0]);
    assert_eq!(room, Room { rows: 8, bytes: 0 });
    assert_eq!(taken(&mut room, &mut out), Vec::<i64>::new(), "no room, no records");

    let (mut room, mut out) = (Room { rows: 9, bytes: 15 }, Batch::default());
    assert_eq!(taken(&mut room, &mut out), [1]);
    let (mut room, mut out) = (Room { rows: 9, bytes: 15 }, Batch::default());
    assert_eq!(taken(&mut room, &mut out), [2]);
    assert_eq!(room, Room { rows: 8, bytes: 0 });

    let (mut room, mut out) = (Room { rows: 9, bytes: 15 }, Batch::default());
    assert_eq!(taken(&mut room, &mut out), [3]);
    assert_eq!(room, Room { rows: 8, bytes: 10 });
}

#[test]
fn the_epoch_of_a_batch_is_told_once_with_the_first_record_that_came_of_it() {
    let batch = |base_offset, leader_epoch| {
        let mut batch = mixed(base_offset);
        batch.header.leader_epoch = leader_epoch;
        batch.build()
    };
    let mut chunk = chunk(&[batch(0, 1), batch(4, 1), batch(8, 2), batch(12, 5)], 0);
    assert_eq!(chunk.leader_epoch, 5);
    let mut told = Vec::new();
    let mut from = 5;
    while !chunk.is_empty() {
        let mut out = Batch::default();
        let mut room = Room { rows: 1, ..plenty() };
        chunk
            .take(from, &mut room, false, &mut out, &mut |offset, epoch| told.push((offset, epoch)))
            .unwrap();
        from += 1;
    }
    assert_eq!(told, [(5, 1), (8, 2), (12, 5)]);
}

/// How many records come of a good batch, 0 to 3, and one that lies, and the damage behind them.
fn take_lie(lie: &NewBatch) -> (i64, Damage) {
    let mut chunk = chunk(&[mixed(0).build(), lie.build()], 0);
    let (out, taken) = take_all(&mut chunk);
    let count = rows(&out).len() as i64;
    assert_eq!(out.offsets, (0..count).collect::<Vec<_>>());
    let (none, again) = take_all(&mut chunk);
    assert_eq!((none.len(), again, chunk.is_empty()), (0, taken, false), "damage stays where it is");
    (count, taken.unwrap_err())
}

#[test]
fn a_batch_that_lies_about_its_records_is_damage_behind_those_that_are_there() {
    let damage = |offset| Damage { offset, error: BatchError::Record };
    let three = || NewBatch::at(4).put("k", "0").put("k", "1").put("k", "2");

    let mut more = three().gap(7);
    more.header.count = 10;
    assert_eq!(take_lie(&more), (7, damage(7)), "fewer records than were told");

    let mut fewer = three();
    fewer.header.count = 2;
    assert_eq!(take_lie(&fewer), (6, damage(6)), "more records than were told");

    let mut twice = NewBatch::at(4).put("k", "0");
    twice.header.last_offset_delta -= 1;
    let twice = twice.put("k", "0 again").gap(3);
    assert_eq!(take_lie(&twice), (5, damage(5)), "an offset that does not rise");

    let mut beyond = NewBatch::at(4).put("k", "0").gap(3).put("k", "4");
    beyond.header.last_offset_delta = 3;
    assert_eq!(take_lie(&beyond), (5, damage(5)), "an offset behind the last one");

    let mut huge = three().gap(i32::MAX - 3);
    huge.header.count = i32::MAX;
    assert_eq!(take_lie(&huge), (7, damage(7)), "a count that nothing could hold");
}

#[test]
fn records_that_are_cut_off_are_damage_at_the_first_that_is_not_whole() {
    let whole = mixed(4);
    // Where each of them ends.
    let ends: Vec<usize> = walk(&whole.records)
        .map(|record| record.unwrap().raw.len())
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect();
    for end in 0..whole.records.len() {
        let mut cut = whole.clone();
        cut.records.truncate(end);
        let there = ends.iter().filter(|&&at| at <= end).count() as i64;
        let damage = Damage { offset: 4 + there, error: BatchError::Record };
        assert_eq!(take_lie(&cut), (4 + there, damage), "{end} bytes");
    }
}

/// Reads and takes whatever it is, record by record.
fn survive(bytes: Bytes) {
    let (mut chunk, _) = read(bytes, 1, vec![Aborted { producer_id: 1, first_offset: 0 }]);
    let mut from = 1;
    loop {
        let (mut out, mut room) = (Batch::default(), Room { rows: 1, bytes: 10 });
        let taken = chunk.take(from, &mut room, true, &mut out, &mut |_, _| ());
        rows(&out);
        assert!(out.offsets.iter().all(|&offset| offset >= from));
        if taken.is_err() || chunk.is_empty() {
            return;
        }
        from = out.next().expect("there was room for a record").0 as i64;
    }
}

#[test]
fn no_flipped_bit_of_a_batch_with_a_right_checksum_makes_reading_panic() {
    for codec in 0..=4 {
        let good = mixed(0).transaction(2).codec(codec).build();
        // The checksum itself is computed anew; the length says where the batch ends.
        for (at, bit) in (12..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut flipped = good.to_vec();
            flipped[at] ^= 1 << bit;
            seal(&mut flipped);
            flipped.extend_from_slice(&mixed(4).build());
            survive(flipped.into());
        }
    }
}

#[test]
fn no_flipped_bit_of_a_length_or_an_offset_makes_reading_panic() {
    let good = answer(&[mixed(0).build(), end_of_transaction(4, 1, false), mixed(5).build()]);
    for (at, bit) in (0..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut flipped = good.to_vec();
        flipped[at] ^= 1 << bit;
        survive(flipped.into());
    }
}

#[test]
fn a_chunk_ends_once_its_batches_unpack_to_as_much_as_it_may_hold() {
    let zeros = vec![0u8; MOST / 2 + 1];
    let record = NewRecord { value: Some(&zeros), ..NewRecord::default() };
    let batch = |offset| NewBatch::at(offset).push(&record).codec(4).build();
    assert!(batch(0).len() < 10_000);
    let batches = [batch(0), batch(1), batch(2)];
    let mut chunk = chunk(&batches, 0);
    assert_eq!((chunk.next, chunk.bytes() / MOST), (2, 1));
    assert_eq!(take_all(&mut chunk).0.offsets, [0, 1]);
    let (chunk, _) = read(batches[2].clone(), chunk.next, Vec::new());
    assert_eq!(chunk.next, 3, "the rest is fetched from there");
    // However large it is, the first batch comes.
    assert_eq!(Chunk::read(answer(&batches), 0, Vec::new(), 1).0.next, 1);
}

#[test]
fn what_is_detached_is_the_same_and_no_part_of_the_answer() {
    let bytes = answer(&[mixed(0).build(), mixed(4).codec(2).build()]);
    let mut detached = read(bytes.clone(), 0, Vec::new()).0;
    let size = detached.bytes();
    detached.detach();
    assert_eq!(detached.bytes(), size);
    assert!(detached.runs.iter().all(|run| !bytes.as_ptr_range().contains(&run.records.as_ptr())));
    assert_eq!(rows(&take_all(&mut detached).0), [mixed_rows(0), mixed_rows(4)].concat());
}
