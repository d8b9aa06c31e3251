//! W6: within its window each id has exactly one effect, beyond it one again, and the inbox stays small.
//!
//! The model is the contract of `docs/inbox.md`, played over the input as it lies in Kafka: a record
//! repeats what was seen if the id's date is less than a TTL before the horizon, or before its own time
//! if that is later. The output must be what the model lets through, record for record, linked by the
//! same arithmetic as W2.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;

use super::Verdict;
use super::chain::link;
use crate::dedupe::lines::{self, In, Out};
use crate::dedupe::plan::parse_value;
use crate::dedupe::sizes::Size;
use crate::evidence::Run;

/// Less of any of these would prove little.
const PART_MIN: f64 = 0.02;
/// Rows of the topic that are not new may be so many times what a TTL brings.
const ROWS_MAX: f64 = 1.5;
/// Rows written in the last so many ms are new: what has expired is trimmed after the next commit, and Kafka
/// has to do it. A node that catches up writes those of several TTLs in this time.
const NEW_MS: u64 = 3_000;
/// What is held late in the run may be so many times what is held early in it.
const GROWTH_MAX: f64 = 1.5;
/// Tables below this are write buffers that were just written, whatever the run is.
const BYTES_MIN: u64 = 8 << 20;

#[derive(Debug, Default)]
struct Counts {
    records: u64,
    ids: u64,
    effects: u64,
    /// Of those, effects of ids that had one before, more than a TTL ago.
    again: u64,
    refused: u64,
    /// Records older than one before them.
    late: u64,
}

/// One partition by the contract.
#[derive(Default)]
struct Model {
    /// What each id is dated with.
    seen: HashMap<String, i64>,
    horizon_ms: i64,
    newest_ms: i64,
}

impl Model {
    /// True if this record has its effects.
    fn takes(&mut self, record: &In, ttl_ms: i64, counts: &mut Counts) -> bool {
        counts.records += 1;
        counts.late += u64::from(record.timestamp_ms < self.newest_ms);
        self.newest_ms = self.newest_ms.max(record.timestamp_ms);
        let now_ms = self.horizon_ms.max(record.timestamp_ms);
        let before = self.seen.get(&record.id).copied();
        if before.is_some_and(|date| date + ttl_ms > now_ms) {
            counts.refused += 1;
            return false;
        }
        match before {
            Some(_) => counts.again += 1,
            None => counts.ids += 1,
        }
        counts.effects += 1;
        self.horizon_ms = now_ms;
        self.seen.insert(record.id.clone(), now_ms);
        true
    }
}

pub fn check(directory: &Path, run: &Run, ttl_ms: i64, verdict: &mut Verdict) -> Result<()> {
    let mut counts = Counts::default();
    let mut missing = lines::sent(directory)?;
    let sent: u64 = missing.iter().map(|bits| u64::from(bits.count_ones())).sum();
    let mut wrong = Vec::new();
    for partition in 0..run.partitions {
        let mut model = Model::default();
        let mut due = Vec::new();
        let mut refused = HashMap::new();
        lines::each_input(directory, partition, |record| {
            if !tick_off(&record, &mut missing) {
                verdict
                    .invalid
                    .push(format!("the input holds {}, which was not sent, or twice", record.value));
            }
            match model.takes(&record, ttl_ms, &mut counts) {
                true => due.push((record.key, record.value)),
                false => drop(refused.insert(record.value, record.offset)),
            }
            Ok(())
        })?;
        wrong.extend(compare(directory, partition, &due, &refused)?);
    }
    if let Some(id) = missing.iter().position(|bits| *bits != 0) {
        verdict.invalid.push(format!("an acknowledged record of id {id} is not in the input"));
    }
    proofs(&counts, sent, verdict);
    verdict.notes.push(format!(
        "W6: {} ids in {} records, {} late: {} effects ({} of ids seen more than a TTL before), {} refused",
        counts.ids, counts.records, counts.late, counts.effects, counts.again, counts.refused
    ));
    verdict.violations("W6", wrong);
    sizes(directory, &counts, verdict)
}

/// False for a record that nobody was told the arrival of, or that is there twice.
fn tick_off(record: &In, missing: &mut [u8]) -> bool {
    let Some((id, time)) = parse_value(record.value.as_bytes()) else { return false };
    let Some(bits) = missing.get_mut(id as usize) else { return false };
    let was = *bits;
    *bits &= !(1u8 << time.min(7));
    was != *bits
}

/// A run without the things it is about is invalid.
fn proofs(counts: &Counts, sent: u64, verdict: &mut Verdict) {
    let part = |number: u64| number as f64 / counts.records.max(1) as f64;
    for (what, number) in [
        ("repetitions", counts.refused),
        ("late records", counts.late),
        ("ids after their TTL", counts.again),
    ] {
        if part(number) < PART_MIN {
            verdict.invalid.push(format!("{number} {what} in {} records prove little", counts.records));
        }
    }
    if sent != counts.records {
        verdict.invalid.push(format!("{sent} records were acknowledged and {} are there", counts.records));
    }
}

/// What is wrong with a partition of the output.
fn compare(
    directory: &Path,
    partition: i32,
    due: &[(String, String)],
    refused: &HashMap<String, i64>,
) -> Result<Vec<String>> {
    let mut left: HashMap<&str, u32> = due.iter().map(|(_, value)| (value.as_str(), 1)).collect();
    let mut heads: HashMap<String, (u64, u64)> = HashMap::new();
    let (mut wrong, mut at) = (Vec::new(), 0);
    lines::each_output(directory, partition, |Out { offset, key, value }| {
        let place = format!("output {partition}@{offset}");
        let mut parts = value.rsplitn(3, ',');
        let (found, count, text) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        match left.get_mut(text) {
            Some(times @ 1) => *times = 0,
            Some(_) => wrong.push(format!("{place}: record {text} has its effects twice")),
            None => wrong.push(match refused.get(text) {
                Some(input) => format!(
                    "{place}: record {text} has effects, although its id was seen less than a TTL before (input {partition}@{input})"
                ),
                None => format!("{place}: nobody sent {text}"),
            }),
        }
        if due.get(at).is_none_or(|(_, value)| value != text) && wrong.is_empty() {
            wrong.push(format!("{place}: {text} is out of order, expected {:?}", due.get(at)));
        }
        at += 1;
        let head = heads.entry(key).or_default();
        *head = (head.0 + 1, link(head.1, text));
        if (count, found) != (head.0.to_string().as_str(), head.1.to_string().as_str()) && wrong.is_empty() {
            wrong.push(format!(
                "{place}: {text} was handled upon the wrong state: {count},{found}, not {head:?}"
            ));
        }
        Ok(())
    })?;
    let lost = left.iter().filter(|(_, times)| **times == 1);
    wrong.extend(lost.map(|(text, _)| format!("partition {partition}: record {text} has no effects")));
    Ok(wrong)
}

/// Bounded and flat: what the inbox holds does not grow with what has passed through it.
fn sizes(directory: &Path, counts: &Counts, verdict: &mut Verdict) -> Result<()> {
    let sizes = lines::sizes(directory)?;
    let Some(last) = sizes.iter().map(|size| size.ids).max().filter(|_| sizes.len() >= 20) else {
        verdict.invalid.push(format!("{} looks at the sizes prove little", sizes.len()));
        return Ok(());
    };
    // Ids are counted by reading along, which may have stood still.
    if last < counts.effects / 2 {
        verdict.invalid.push(format!("{last} ids were seen in the inbox's topic, of {}", counts.effects));
    }
    // First occurrences are spread evenly over twelve TTLs, and nearly everything else lies among them.
    let a_ttl = last as f64 / 12.0;
    let most = |from: f64, to: f64, what: fn(&Size) -> u64| {
        let within = |ids: u64| (from..to).contains(&(ids as f64 / last as f64));
        sizes.iter().filter(|size| within(size.ids)).map(what).max().unwrap_or(0)
    };
    let rows = most(0.2, 1.1, |size| size.rows);
    let old = most_old_rows(&sizes);
    let (early_bytes, late_bytes) = (most(0.2, 0.55, |size| size.bytes), most(0.55, 1.1, |size| size.bytes));
    verdict.notes.push(format!(
        "W6: of {last} ids the inbox's topic held {rows} at most, {old} of them older than {NEW_MS} ms, the stores {early_bytes} bytes early and {late_bytes} late"
    ));
    if old as f64 > ROWS_MAX * a_ttl && counts.ids > 10_000 {
        verdict.violation(
            "W6",
            format!("the inbox's topic held {old} rows that were not new, and a TTL brings {a_ttl:.0}"),
        );
    }
    if late_bytes as f64 > (early_bytes.max(BYTES_MIN)) as f64 * GROWTH_MAX {
        verdict.violation(
            "W6",
            format!("the stores grew from {early_bytes} to {late_bytes} bytes over the run"),
        );
    }
    Ok(())
}

/// The most rows that any look found beyond those written in the last [`NEW_MS`]. Time in which nothing is
/// written does not count: without commits nothing is trimmed.
fn most_old_rows(sizes: &[Size]) -> u64 {
    let (mut most, mut busy_ms, mut looks) = (0, 0, Vec::with_capacity(sizes.len()));
    for (before, now) in sizes.iter().zip(&sizes[1..]) {
        if now.ids > before.ids {
            busy_ms += now.at_ms - before.at_ms;
        }
        looks.push((busy_ms, now.ids));
        let then = looks.iter().rfind(|(at_ms, _)| at_ms + NEW_MS <= busy_ms);
        let new = now.ids.saturating_sub(then.map_or(0, |&(_, ids)| ids));
        most = most.max(now.rows.saturating_sub(new));
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_last_seconds_are_new_and_time_without_commits_does_not_age_them() {
        let look = |at_ms, ids, rows| Size { at_ms, ids, rows, bytes: 0 };
        let caught_up = [look(0, 0, 0), look(1_000, 50_000, 50_000), look(2_000, 100_000, 100_000)];
        assert_eq!(most_old_rows(&caught_up), 0);
        let stood_still = [&caught_up[..], &[look(60_000, 100_000, 100_000)]].concat();
        assert_eq!(most_old_rows(&stood_still), 0);
        let went_on = [&stood_still[..], &[look(63_000, 101_000, 101_000)]].concat();
        assert_eq!(most_old_rows(&went_on), 100_000, "nobody trimmed");
    }

    fn record(id: &str, timestamp_ms: i64) -> In {
        In { offset: 0, timestamp_ms, id: id.into(), key: "k".into(), value: String::new() }
    }

    #[test]
    fn the_model_is_the_contract() {
        let (mut model, mut counts) = (Model::default(), Counts::default());
        let mut takes = |id: &str, ms: i64| model.takes(&record(id, ms), 100, &mut counts);
        assert!(takes("a", 1_000) && !takes("a", 1_050) && takes("b", 1_060));
        // A late id is dated with the horizon, so it is kept as long as any other.
        assert!(takes("late", 900) && !takes("late", 1_159));
        // A repetition moves nothing: the horizon is still that of b.
        assert!(!takes("a", 1_099) && takes("a", 1_100));
        assert!(!takes("b", 1_159) && takes("b", 1_160));
        assert_eq!((counts.ids, counts.again, counts.effects), (3, 2, 5));
    }
}
