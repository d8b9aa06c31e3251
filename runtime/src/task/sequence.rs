//! Numbers that a producer gives to the records of a key, and what it tells when they do not follow each other.
//!
//! ```text
//!   number    5    6    9      8            8            10
//!   tells     -    -    loss   reordering   repetition   -
//! ```
//!
//! A key's first number is its start. What breaks its sequence is counted and logged, and the record is handled
//! like any other: what to do about it is for whoever can read the records again. A record is heard once, when it
//! is passed, whatever becomes of it: a dead letter has not been lost, and a repetition that the inbox refuses
//! breaks nothing. What has been heard is a row of the inbox ([`super::inbox`]), which changes in the commit that
//! passes the record.

use std::time::Duration;

use hashbrown::HashMap;

use super::{TakenAt, Task, TaskError};
use crate::config::deployment::Gaps;
use crate::record::Batch;
use crate::store::Table;
use crate::telemetry::Level;

/// Numbers below the highest of a key that are told apart: one that is further below begins the key anew, so
/// that a producer which counts from the start again is not reported for ever.
const WINDOW: u32 = u64::BITS;
/// Between two lines of the log about one task.
const LINE_PAUSE: Duration = Duration::from_secs(10);
/// What a line shows of a key, in bytes before they are escaped.
const KEY_BYTES_SHOWN: usize = 100;

/// What has been heard of a key of an input. On disk and in Kafka since 0.2: little endian, add at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    /// The horizon then; ms since the epoch. The date of the row.
    horizon_ms: i64,
    pub highest: u64,
    /// Which of the numbers below the highest have come, from the next lower one (bit 0) on.
    pub below: u64,
    /// Of the last record that was heard.
    pub offset: u64,
}

/// What a number tells that does not follow the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// Numbers are missing before it: records are lost, or come later.
    Loss,
    /// It is below the highest, and had not come.
    Reordering,
    /// It had come.
    Repetition,
}

impl Heard {
    fn encode(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.horizon_ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.highest.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.below.to_le_bytes());
        bytes[24..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Heard> {
        let (fields, _) = bytes.as_chunks::<8>();
        let [horizon_ms, highest, below, offset] = *fields.first_chunk::<4>()?;
        Some(Heard {
            horizon_ms: i64::from_le_bytes(horizon_ms),
            highest: u64::from_le_bytes(highest),
            below: u64::from_le_bytes(below),
            offset: u64::from_le_bytes(offset),
        })
    }

    fn hear(&mut self, number: u64) -> Option<Break> {
        if let Some(above) = number.checked_sub(self.highest) {
            if above == 0 {
                return Some(Break::Repetition);
            }
            let shift = u32::try_from(above).unwrap_or(u32::MAX);
            // The highest so far is the one `above` below.
            let was_highest = 1u64.checked_shl(shift - 1).unwrap_or(0);
            self.below = self.below.checked_shl(shift).unwrap_or(0) | was_highest;
            self.highest = number;
            return (above > 1).then_some(Break::Loss);
        }
        let below = self.highest - number;
        if below > WINDOW.into() {
            (self.highest, self.below) = (number, 0);
            return Some(Break::Reordering);
        }
        let bit = 1 << (below - 1);
        let had_come = self.below & bit != 0;
        self.below |= bit;
        Some(if had_come { Break::Repetition } else { Break::Reordering })
    }
}

/// Keeps an input in disorder from filling the log.
#[derive(Debug, Default)]
pub struct Lines {
    last: Option<Duration>,
    held_back: u64,
}

impl Lines {
    /// How many were held back before this one; none = it is held back, too.
    fn next(&mut self, now: Duration) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_sub(last) < LINE_PAUSE) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

impl Task {
    /// Hears the numbers of the first `rows` records of a batch, as far as they have not been passed yet.
    pub(super) fn hear(&mut self, batch: &Batch, rows: usize, taken: TakenAt) -> Result<(), TaskError> {
        let Some(next) = self.next(batch.input).filter(|_| !batch.numbers.is_empty()) else { return Ok(()) };
        let first = batch.offsets[..rows].partition_point(|&offset| (offset as u64) < next.0);
        let input = self.numbers.number(batch.input).to_be_bytes();
        // Names of the records' sequences, end to end: number of the input, and key.
        let mut names = Vec::with_capacity(batch.keys.bytes().len() + 2 * (rows - first));
        let mut numbered = Vec::with_capacity(rows - first);
        for (row, key) in batch.keys.iter().enumerate().take(rows).skip(first) {
            if let (Some(key), Some(number)) = (key, batch.numbers[row]) {
                let start = names.len();
                names.extend_from_slice(&input);
                names.extend_from_slice(key);
                numbered.push((row, number, start..names.len()));
            }
        }
        let mut places: HashMap<&[u8], usize> = HashMap::with_capacity(numbered.len());
        let mut distinct: Vec<&[u8]> = Vec::with_capacity(numbered.len());
        for (.., name) in &numbered {
            places.entry(&names[name.clone()]).or_insert_with_key(|name| {
                distinct.push(*name);
                distinct.len() - 1
            });
        }
        let mut heard: Vec<Option<Heard>> = vec![None; distinct.len()];
        self.view
            .rows(Table::Sequences, &distinct, |place, row| heard[place] = row.and_then(Heard::decode))?;
        for (row, number, name) in &numbered {
            let known = &mut heard[places[&names[name.clone()]]];
            *known = self.hear_one(batch, *row, (*number, *known), taken);
        }
        for (name, heard) in distinct.into_iter().zip(heard) {
            let Some(heard) = heard else { continue };
            self.view.set_row(Table::Sequences, name, Some(&heard.encode()));
        }
        Ok(())
    }

    /// Answers what is known of the record's key now.
    fn hear_one(
        &mut self,
        batch: &Batch,
        row: usize,
        (number, known): (u64, Option<Heard>),
        taken: TakenAt,
    ) -> Option<Heard> {
        let inbox = self.inbox.as_mut()?;
        let (offset, timestamp_ms) = (batch.offsets[row] as u64, batch.timestamps[row]);
        // A record that is read again, after a reset of the position, is no repetition of itself.
        let known = known
            .filter(|heard| heard.offset < offset && inbox.is_current(heard.horizon_ms, timestamp_ms, taken));
        let horizon_ms = inbox.pass(timestamp_ms, taken);
        inbox.has_news = true;
        let Some(mut heard) = known else {
            return Some(Heard { horizon_ms, highest: number, below: 0, offset });
        };
        let expected = heard.highest.saturating_add(1);
        let told = heard.hear(number).filter(|&told| told != Break::Loss || inbox.gaps() == Gaps::Report);
        if let Some(told) = told {
            self.report(told, batch, row, (expected, number), taken);
        }
        Some(Heard { horizon_ms, offset, ..heard })
    }

    fn report(
        &mut self,
        told: Break,
        batch: &Batch,
        row: usize,
        (expected, found): (u64, u64),
        taken: TakenAt,
    ) {
        let (counter, what) = match told {
            Break::Loss => (&self.metrics.sequence_losses, "numbers are missing before it"),
            Break::Reordering => (&self.metrics.sequence_reorderings, "it comes behind a later one"),
            Break::Repetition => (&self.metrics.sequence_repetitions, "its number has come before"),
        };
        counter.add(1);
        let Some(held_back) = self.inbox.as_mut().and_then(|inbox| inbox.lines.next(taken.monotonic)) else {
            return;
        };
        let key = batch.keys.row(row).unwrap_or_default();
        let key = key[..key.len().min(KEY_BYTES_SHOWN)].escape_ascii().to_string();
        let topic = self.config.inputs.get(usize::from(batch.input)).map_or("", |input| input.topic.as_str());
        let (deployment, partition, offset) = (&self.config.deployment, self.partition, batch.offsets[row]);
        tracing::warn!(
            deployment,
            topic,
            partition,
            offset,
            key,
            expected,
            found,
            held_back,
            "a record breaks the sequence of its key: {what}"
        );
        if let Some(log) = &self.log {
            let line = format!(
                "record {topic}/{partition} at offset {offset} breaks the sequence of its key {key}: {what}; expected \
                 {expected}, found {found}, {held_back} such lines held back"
            );
            log.push(partition, Level::Warn, &line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(numbers: &[u64]) -> Vec<Option<Break>> {
        let (&first, rest) = numbers.split_first().expect("a start");
        let mut heard = Heard { horizon_ms: 0, highest: first, below: 0, offset: 0 };
        rest.iter()
            .map(|&number| {
                heard = Heard::decode(&heard.encode()).expect("as it was written");
                heard.hear(number)
            })
            .collect()
    }

    #[test]
    fn a_number_tells_loss_reordering_or_repetition_by_what_has_come() {
        use Break::{Loss, Reordering, Repetition};
        assert_eq!(
            told(&[5, 6, 9, 8, 8, 9, 6, 7, 10, 4]),
            [
                None,
                Some(Loss),
                Some(Reordering),
                Some(Repetition),
                Some(Repetition),
                Some(Repetition),
                Some(Reordering),
                None,
                Some(Reordering)
            ]
        );
        // The window's edge on both sides, and the edges of the numbers.
        assert_eq!(told(&[0, 64, 0]), [Some(Loss), Some(Repetition)]);
        assert_eq!(told(&[0, 65, 1]), [Some(Loss), Some(Reordering)]);
        assert_eq!(
            told(&[1, u64::MAX, u64::MAX, u64::MAX - 64]),
            [Some(Loss), Some(Repetition), Some(Reordering)]
        );
    }

    #[test]
    fn a_producer_that_counts_from_the_start_again_is_reported_once() {
        assert_eq!(told(&[1_000, 1, 2, 3]), [Some(Break::Reordering), None, None]);
    }

    /// Whatever comes: what is told is what a set of everything that has come tells, within the window.
    #[test]
    fn what_is_told_agrees_with_a_set_of_all_numbers() {
        let mut random = 7u64;
        let mut numbers = vec![100u64];
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let highest = *numbers.iter().max().expect("not empty");
            numbers.push((highest + 4).saturating_sub((random >> 33) % 40));
        }
        let mut come = std::collections::BTreeSet::from([numbers[0]]);
        for (at, told) in told(&numbers).into_iter().enumerate() {
            let number = numbers[at + 1];
            let highest = *come.last().expect("not empty");
            let expected = match number {
                _ if number == highest + 1 => None,
                _ if number > highest => Some(Break::Loss),
                _ if come.contains(&number) => Some(Break::Repetition),
                _ => Some(Break::Reordering),
            };
            assert_eq!(told, expected, "{number} after {highest}");
            come.insert(number);
        }
    }
}
