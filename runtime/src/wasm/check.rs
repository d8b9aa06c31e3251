//! Judges what a guest returned. Whatever passes is consistent and within the deployment's limits;
//! whatever does not is refused as a whole, because a guest that breaks the ABI once cannot be
//! trusted with the rest of its answer.

use super::abi::{RawColumn, RawEffects, RawEmissions, RawWrites};
use crate::config::deployment::Limits;
use crate::effects::{Effects, Emissions, Order, Status, Writes};
use crate::record::{Batch, Column, ColumnError, first_wrong, headers as encoding};

/// Longest reason of a failed record, in bytes.
const REASON_BYTES_MAX: i32 = 1024;

/// What a write costs the node beside its key and value, nearly: an entry of the overlay. A guest has it for 14 bytes.
const WRITE_ROW_BYTES: u64 = 64;

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("column `{column}`: {error}")]
    Column { column: &'static str, error: ColumnError },
    #[error("`{column}` has {rows} rows where {expected} are due")]
    Rows { column: &'static str, rows: usize, expected: usize },
    #[error("an effect names record {source_index} of {records}, after record {previous}")]
    Source { source_index: u32, previous: u32, records: usize },
    #[error("an emission names output {0}, which the manifest does not have")]
    Output(u16),
    #[error("store {0} is not in the manifest")]
    Store(u16),
    #[error("put-many outside of `handle`, where there are no records")]
    NoRecords,
    #[error("a write has no key")]
    NullKey,
    #[error("an emission names partition {0}")]
    Partition(i32),
    #[error("an emission has the timestamp {0}")]
    Timestamp(i64),
    #[error("the headers of emission {0} are malformed")]
    Headers(usize),
    #[error("record {record} has the unknown status {status}")]
    Status { record: usize, status: u8 },
    #[error("record {0} is reported as held back, but no earlier record of its key failed")]
    HeldBack(usize),
    #[error("record {0} was run although an earlier record of its key failed")]
    NotHeldBack(usize),
    /// Within the ABI, but more than the deployment allows.
    #[error("record {record} of the batch: {what}, {max} allowed")]
    TooMuch { record: usize, what: String, max: u64 },
}

impl Refusal {
    /// Whether a larger limit would have let it pass.
    pub fn is_limit(&self) -> bool {
        matches!(self, Refusal::TooMuch { .. })
    }
}

/// What the answer is judged against.
pub struct Terms<'a> {
    pub batch: &'a Batch,
    pub order: Order,
    pub limits: &'a Limits,
    pub outputs: u16,
    pub stores: u16,
}

/// Checks a whole answer. `bytes` counts what each record emits and writes; what `put-many` took is
/// in it already.
pub fn effects(raw: RawEffects, terms: &Terms<'_>, bytes: &mut [u64]) -> Result<Effects, Refusal> {
    let records = terms.batch.len();
    let statuses = statuses(&raw.status, terms)?;
    let reasons = column("reason", raw.reason, records)?;
    if let Some(record) = first_wrong(reasons.lengths(), |length| length > REASON_BYTES_MAX) {
        let what = format!("a reason of {} bytes", reasons.lengths()[record]);
        return Err(Refusal::TooMuch { record, what, max: REASON_BYTES_MAX as u64 });
    }
    let writes = writes(raw.write, terms.stores, bytes, terms.limits.emit_bytes)?;
    rows_within(&writes.sources, terms.limits.memory_bytes)?;
    let emissions = emissions(raw.emit, terms, bytes)?;
    Ok(Effects { emissions, writes, statuses, reasons })
}

/// Checks writes and adds their sizes to `bytes`, which has one entry per record of the batch.
pub fn writes(raw: RawWrites, stores: u16, bytes: &mut [u64], bytes_max: u64) -> Result<Writes, Refusal> {
    let rows = raw.source.len();
    sources(&raw.source, bytes.len())?;
    rows_of("write.store", raw.store.len(), rows)?;
    if let Some(row) = first_wrong(&raw.store, |store| store >= stores) {
        return Err(Refusal::Store(raw.store[row]));
    }
    let keys = column("write.key", raw.key, rows)?;
    let values = column("write.value", raw.value, rows)?;
    if first_wrong(keys.lengths(), |length| length < 0).is_some() {
        return Err(Refusal::NullKey);
    }
    for ((&source, key), value) in raw.source.iter().zip(keys.lengths()).zip(values.lengths()) {
        bytes[source as usize] += size(*key) + size(*value);
    }
    within("emitted and written bytes", bytes, bytes_max)?;
    Ok(Writes { sources: raw.source, stores: raw.store, keys, values })
}

/// The rows of all records together cost the node no more memory than the guest may have.
fn rows_within(sources: &[u32], memory_bytes: u64) -> Result<(), Refusal> {
    let max = memory_bytes / WRITE_ROW_BYTES;
    match usize::try_from(max).ok().and_then(|max| sources.get(max)) {
        None => Ok(()),
        Some(&record) => {
            let what = format!("{} writes in one call", sources.len());
            Err(Refusal::TooMuch { record: record as usize, what, max })
        }
    }
}

fn emissions(raw: RawEmissions, terms: &Terms<'_>, bytes: &mut [u64]) -> Result<Emissions, Refusal> {
    let rows = raw.source.len();
    sources(&raw.source, bytes.len())?;
    rows_of("emit.output", raw.output.len(), rows)?;
    rows_of("emit.partition", raw.partition.len(), rows)?;
    rows_of("emit.timestamp", raw.timestamp.len(), rows)?;
    if let Some(row) = first_wrong(&raw.output, |output| output >= terms.outputs) {
        return Err(Refusal::Output(raw.output[row]));
    }
    if let Some(row) = first_wrong(&raw.partition, |partition| partition < -1) {
        return Err(Refusal::Partition(raw.partition[row]));
    }
    let keys = column("emit.key", raw.key, rows)?;
    let values = column("emit.value", raw.value, rows)?;
    let headers = column("emit.headers", raw.headers, rows)?;
    // Most batches emit no headers at all.
    if first_wrong(headers.lengths(), |length| length >= 0).is_some() {
        let malformed = headers.iter().position(|row| row.is_some_and(|row| encoding::check(row).is_err()));
        if let Some(row) = malformed {
            return Err(Refusal::Headers(row));
        }
    }
    let lengths = keys.lengths().iter().zip(values.lengths()).zip(headers.lengths());
    for (&source, ((key, value), headers)) in raw.source.iter().zip(lengths) {
        bytes[source as usize] += size(*key) + size(*value) + size(*headers);
    }
    within("emitted and written bytes", bytes, terms.limits.emit_bytes)?;
    emissions_per_record(&raw.source, terms.limits.emit_records)?;

    let mut timestamps = raw.timestamp;
    for (timestamp, &source) in timestamps.iter_mut().zip(&raw.source) {
        match *timestamp {
            -1 => *timestamp = terms.batch.timestamps[source as usize],
            0.. => {}
            other => return Err(Refusal::Timestamp(other)),
        }
    }
    Ok(Emissions {
        sources: raw.source,
        outputs: raw.output,
        partitions: raw.partition,
        timestamps,
        keys,
        values,
        headers,
    })
}

/// A null row has no bytes.
fn size(length: i32) -> u64 {
    length.max(0) as u64
}

fn within(what: &str, amounts: &[u64], max: u64) -> Result<(), Refusal> {
    match first_wrong(amounts, |amount| amount > max) {
        None => Ok(()),
        Some(record) => Err(Refusal::TooMuch { record, what: format!("{} {what}", amounts[record]), max }),
    }
}

/// Sources rise, so a record's emissions are a run: it is over the limit exactly if some row has the
/// same source as the row `max` places before it.
fn emissions_per_record(sources: &[u32], max: u32) -> Result<(), Refusal> {
    let max_rows = max as usize;
    match sources.iter().zip(sources.iter().skip(max_rows)).find(|(first, later)| first == later) {
        None => Ok(()),
        Some((&record, _)) => {
            let record = record as usize;
            Err(Refusal::TooMuch { record, what: format!("more than {max} emissions"), max: max.into() })
        }
    }
}

fn sources(sources: &[u32], records: usize) -> Result<(), Refusal> {
    let rise = sources.windows(2).fold(true, |rise, pair| rise & (pair[0] <= pair[1]));
    if rise && sources.last().is_none_or(|&last| (last as usize) < records) {
        return Ok(());
    }
    let mut previous = 0;
    for &source_index in sources {
        if source_index < previous || source_index as usize >= records {
            return Err(Refusal::Source { source_index, previous, records });
        }
        previous = source_index;
    }
    Ok(())
}

fn rows_of(column: &'static str, rows: usize, expected: usize) -> Result<(), Refusal> {
    if rows == expected { Ok(()) } else { Err(Refusal::Rows { column, rows, expected }) }
}

fn column(name: &'static str, raw: RawColumn, rows: usize) -> Result<Column, Refusal> {
    rows_of(name, raw.lengths.len(), rows)?;
    Column::from_parts(raw.bytes, raw.lengths).map_err(|error| Refusal::Column { column: name, error })
}

/// Decodes the statuses and sees to it that a guest neither runs a record out of order nor holds one
/// back without cause: the first would break the order of a key, the second stop the task for ever.
fn statuses(raw: &[u8], terms: &Terms<'_>) -> Result<Vec<Status>, Refusal> {
    rows_of("status", raw.len(), terms.batch.len())?;
    // Of most batches every record was handled.
    if first_wrong(raw, |status| status != Status::Ok as u8).is_none() {
        return Ok(vec![Status::Ok; raw.len()]);
    }
    let decode = |(record, &status)| Status::from_abi(status).ok_or(Refusal::Status { record, status });
    let statuses = raw.iter().enumerate().map(decode).collect::<Result<Vec<_>, _>>()?;
    held_back(&statuses, terms)?;
    Ok(statuses)
}

fn held_back(statuses: &[Status], terms: &Terms<'_>) -> Result<(), Refusal> {
    let mut failed = false;
    let mut failed_keys = Vec::new();
    for ((record, &status), key) in statuses.iter().enumerate().zip(terms.batch.keys.iter()) {
        let due = match terms.order {
            Order::All => failed,
            Order::Key => key.is_some() && failed_keys.contains(&key),
            Order::None => false,
        };
        match (status, due) {
            (Status::Blocked, false) => return Err(Refusal::HeldBack(record)),
            (Status::Blocked, true) | (Status::Ok, false) => {}
            (_, true) => return Err(Refusal::NotHeldBack(record)),
            (Status::Transient | Status::Permanent | Status::Decode | Status::Schema, false) => {
                failed = true;
                failed_keys.push(key);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits() -> Limits {
        Limits {
            memory_bytes: 1 << 20,
            batch_time: Duration::from_millis(10),
            emit_bytes: 20,
            emit_records: 2,
            table_elements: 10,
            ..Limits::default()
        }
    }

    /// Four records with the keys a, b, a and null.
    fn batch() -> Batch {
        let mut batch =
            Batch { offsets: vec![0, 1, 2, 3], timestamps: vec![10, 11, 12, 13], ..Batch::default() };
        for key in [Some(&b"a"[..]), Some(b"b"), Some(b"a"), None] {
            batch.keys.push(key);
            batch.values.push(None);
        }
        batch
    }

    fn raw_column(rows: &[Option<&[u8]>]) -> RawColumn {
        let mut column = Column::default();
        rows.iter().for_each(|row| column.push(*row));
        column.into()
    }

    /// One emission of record 1, one write of record 2, all four records ok.
    fn answer() -> RawEffects {
        RawEffects {
            emit: RawEmissions {
                source: vec![1],
                output: vec![0],
                partition: vec![-1],
                timestamp: vec![-1],
                key: raw_column(&[Some(b"k")]),
                value: raw_column(&[None]),
                headers: raw_column(&[Some(&[2, 2, b'h', 1])]),
            },
            write: RawWrites {
                source: vec![2],
                store: vec![0],
                key: raw_column(&[Some(b"k")]),
                value: raw_column(&[Some(b"v")]),
            },
            status: vec![0; 4],
            reason: raw_column(&[None; 4]),
        }
    }

    fn judge(order: Order, raw: RawEffects) -> Result<Effects, Refusal> {
        let (batch, limits) = (batch(), limits());
        effects(raw, &Terms { batch: &batch, order, limits: &limits, outputs: 1, stores: 1 }, &mut [0; 4])
    }

    fn refusal(change: impl FnOnce(&mut RawEffects)) -> Refusal {
        let mut raw = answer();
        change(&mut raw);
        judge(Order::Key, raw).expect_err("the answer is refused")
    }

    #[test]
    fn an_honest_answer_passes_with_its_timestamps_resolved() {
        let effects = judge(Order::Key, answer()).expect("passes");
        assert_eq!(effects.emissions.timestamps, [11]);
        assert_eq!((effects.writes.len(), effects.statuses), (1, vec![Status::Ok; 4]));
    }

    #[test]
    fn lying_lengths_and_missing_rows_are_refused() {
        assert!(matches!(refusal(|raw| raw.emit.key.lengths[0] = 2), Refusal::Column { .. }));
        assert!(matches!(refusal(|raw| raw.emit.key.lengths[0] = -2), Refusal::Column { .. }));
        assert!(matches!(refusal(|raw| raw.write.value.lengths.push(-1)), Refusal::Rows { .. }));
        assert!(matches!(refusal(|raw| raw.emit.partition.clear()), Refusal::Rows { .. }));
        assert!(matches!(refusal(|raw| raw.status.truncate(3)), Refusal::Rows { .. }));
        assert!(matches!(refusal(|raw| raw.reason = raw_column(&[])), Refusal::Rows { .. }));
    }

    #[test]
    fn indices_out_of_range_are_refused() {
        assert!(matches!(refusal(|raw| raw.emit.source[0] = 4), Refusal::Source { .. }));
        assert_eq!(refusal(|raw| raw.emit.output[0] = 1), Refusal::Output(1));
        assert_eq!(refusal(|raw| raw.write.store[0] = 1), Refusal::Store(1));
        assert_eq!(refusal(|raw| raw.emit.partition[0] = -2), Refusal::Partition(-2));
        assert_eq!(refusal(|raw| raw.emit.timestamp[0] = -2), Refusal::Timestamp(-2));
        assert_eq!(refusal(|raw| raw.status[1] = 6), Refusal::Status { record: 1, status: 6 });
        assert_eq!(refusal(|raw| raw.write.key = raw_column(&[None])), Refusal::NullKey);
    }

    #[test]
    fn sources_that_fall_are_refused() {
        let refusal = refusal(|raw| {
            raw.write = RawWrites {
                source: vec![2, 1],
                store: vec![0; 2],
                key: raw_column(&[Some(&b"k"[..]); 2]),
                value: raw_column(&[None; 2]),
            }
        });
        assert!(matches!(refusal, Refusal::Source { source_index: 1, previous: 2, .. }));
    }

    #[test]
    fn malformed_headers_are_refused() {
        // A number of headers and a length that 32 bits do not hold: those who keep 32 of them read 0.
        let (many, long) = ([0x80u8, 0x80, 0x80, 0x80, 0x10], [2u8, 0, 0x80, 0x80, 0x80, 0x80, 0x10]);
        let bad: [&[u8]; 8] = [&[], &[2], &[2, 2], &[2, 1, 1], &[0, 0], &[0xff; 9], &many, &long];
        for headers in bad {
            let refusal = refusal(|raw| raw.emit.headers = raw_column(&[Some(headers)]));
            assert!(
                matches!(refusal, Refusal::Headers(0) | Refusal::Column { .. }),
                "{headers:?}: {refusal}"
            );
        }
    }

    #[test]
    fn one_record_cannot_take_more_than_its_share() {
        let big = [0u8; 30];
        let too_much = refusal(|raw| raw.emit.value = raw_column(&[Some(&big)]));
        assert!(too_much.is_limit() && matches!(too_much, Refusal::TooMuch { record: 1, .. }), "{too_much}");
        let too_many = refusal(|raw| {
            raw.emit = RawEmissions {
                source: vec![3; 3],
                output: vec![0; 3],
                partition: vec![-1; 3],
                timestamp: vec![-1; 3],
                key: raw_column(&[None; 3]),
                value: raw_column(&[None; 3]),
                headers: raw_column(&[None; 3]),
            }
        });
        assert!(matches!(too_many, Refusal::TooMuch { record: 3, .. }), "{too_many}");
    }

    #[test]
    fn writes_of_nothing_are_counted_by_what_they_cost_the_node() {
        let writes = |rows: usize| {
            let mut raw = answer();
            raw.write = RawWrites {
                source: vec![2; rows],
                store: vec![0; rows],
                key: raw_column(&vec![Some(&b""[..]); rows]),
                value: raw_column(&vec![None; rows]),
            };
            judge(Order::Key, raw).map(|effects| effects.writes.len())
        };
        let max = (1 << 20) / 64;
        assert_eq!(writes(max), Ok(max));
        let too_many = writes(max + 1).expect_err("more than the guest's memory is worth");
        assert!(matches!(too_many, Refusal::TooMuch { record: 2, .. }), "{too_many}");
    }

    #[test]
    fn a_failed_record_holds_back_exactly_what_the_order_says() {
        let statuses = |order, statuses: [u8; 4]| {
            let mut raw = answer();
            raw.status = statuses.to_vec();
            judge(order, raw).map(|_| ())
        };
        assert_eq!(statuses(Order::Key, [1, 0, 3, 0]), Ok(()));
        assert_eq!(statuses(Order::Key, [5, 4, 3, 0]), Ok(()));
        assert_eq!(statuses(Order::Key, [1, 0, 0, 0]), Err(Refusal::NotHeldBack(2)));
        assert_eq!(statuses(Order::Key, [0, 1, 3, 0]), Err(Refusal::HeldBack(2)));
        assert_eq!(statuses(Order::All, [2, 3, 3, 3]), Ok(()));
        assert_eq!(statuses(Order::All, [2, 3, 3, 0]), Err(Refusal::NotHeldBack(3)));
        assert_eq!(statuses(Order::None, [2, 0, 2, 0]), Ok(()));
        assert_eq!(statuses(Order::None, [2, 0, 3, 0]), Err(Refusal::HeldBack(2)));
    }
}
