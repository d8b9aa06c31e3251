//! What a task checks before effects enter the overlay: that the statuses keep the order that was
//! asked for, and that Kafka would take the records.

use std::sync::Arc;

use super::outbox::OutboxRule;
use crate::config::deployment::Emit;
use crate::effects::{Effects, Emissions, Order, Status, Writes};

/// Times that a topic with `message.timestamp.type=CreateTime` accepts, as distances from the
/// broker's clock; ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampRule {
    /// `message.timestamp.before.max.ms`
    pub before_max_ms: i64,
    /// `message.timestamp.after.max.ms`
    pub after_max_ms: i64,
}

/// What an output's topic refuses, and what is done with its records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputRule {
    /// Of an output with an outbox it only stands in messages.
    pub topic: String,
    /// `max.message.bytes`; of a batch, but a record alone in its batch is bound by it too.
    pub record_bytes_max: usize,
    /// Compacted topics refuse records without a key.
    pub compacted: bool,
    /// None = the broker sets the time itself.
    pub timestamps: Option<TimestampRule>,
    /// Its records carry their id.
    pub ids: bool,
    pub emit: Emit,
    /// Its records become rows of the outbox.
    pub outbox: Option<Arc<OutboxRule>>,
}

/// The most that Kafka's format adds to a record alone in its batch: 61 bytes of batch header, the
/// record's own varints, and what a stamp of writer and commit adds to a changelog record.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 160;

/// The first record whose effects Kafka would refuse, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub row: usize,
    pub reason: String,
}

/// Statuses must have the form that the order promises; anything else means that records ran, or did
/// not run, that must not have. Nothing of such a call can be trusted.
pub(super) fn check_statuses(statuses: &[Status], order: Order, records: usize) -> Result<(), String> {
    if statuses.len() != records {
        return Err(format!("{} statuses for {records} records", statuses.len()));
    }
    match order {
        Order::None => match statuses.iter().position(|&status| status == Status::Blocked) {
            Some(row) => Err(format!("record {row} is blocked although nothing may be held back")),
            None => Ok(()),
        },
        Order::All => {
            let failed = statuses.iter().position(|&status| status != Status::Ok).unwrap_or(records);
            if statuses.get(failed) == Some(&Status::Blocked) {
                return Err(format!("record {failed} is blocked although none before it failed"));
            }
            match statuses.iter().skip(failed + 1).position(|&status| status != Status::Blocked) {
                Some(after) => {
                    Err(format!("record {} was run although record {failed} had failed", failed + 1 + after))
                }
                None => Ok(()),
            }
        }
        // Which keys failed is the handler's knowledge; a blocked record without a failure is a lie.
        Order::Key => {
            let failed = statuses.iter().position(|&status| status != Status::Ok);
            match failed.and_then(|row| statuses.get(row)) {
                Some(Status::Blocked) => Err("a record is blocked although none before it failed".into()),
                _ => Ok(()),
            }
        }
    }
}

/// Limits that effects are held against.
pub(super) struct Checks<'a> {
    pub outputs: &'a [OutputRule],
    pub changelog_bytes_max: usize,
    /// Bytes that the layout adds to a state key, at most.
    pub prefix_bytes_max: usize,
    /// ms since the epoch.
    pub wall_ms: i64,
}

impl Checks<'_> {
    /// The first `ok` record of the call with an effect that would be refused. Costs a pass over the
    /// timestamps when nothing is near a limit.
    pub fn first_refused(&self, effects: &Effects, scratch: &[Writes]) -> Option<Refused> {
        let mut first: Option<Refused> = None;
        let mut refuse = |source: u32, reason: String| {
            let row = source as usize;
            let ok = effects.statuses.get(row) == Some(&Status::Ok);
            if ok && first.as_ref().is_none_or(|first| row < first.row) {
                first = Some(Refused { row, reason });
            }
        };
        if self.is_near_limits(&effects.emissions) {
            self.emissions(&effects.emissions, &mut refuse);
        }
        for writes in scratch.iter().chain([&effects.writes]) {
            self.writes(writes, &mut refuse);
        }
        first
    }

    fn is_near_limits(&self, emissions: &Emissions) -> bool {
        if emissions.is_empty() {
            return false;
        }
        let bytes_max = self.outputs.iter().map(|output| output.record_bytes_max).min().unwrap_or(0);
        let (mut earliest, mut latest) = (i64::MAX, i64::MIN);
        for &timestamp in &emissions.timestamps {
            earliest = earliest.min(timestamp);
            latest = latest.max(timestamp);
        }
        emissions.bytes() + RECORD_OVERHEAD_BYTES > bytes_max
            || emissions.outputs.iter().any(|&output| usize::from(output) >= self.outputs.len())
            || self.outputs.iter().any(|output| {
                self.time_refusal(output, earliest).or_else(|| self.time_refusal(output, latest)).is_some()
                    || output.compacted && emissions.keys.lengths().iter().any(|&length| length < 0)
            })
    }

    fn emissions(&self, emissions: &Emissions, refuse: &mut impl FnMut(u32, String)) {
        let rows = emissions.sources.iter().zip(&emissions.outputs).zip(&emissions.timestamps);
        let lengths =
            emissions.keys.lengths().iter().zip(emissions.values.lengths()).zip(emissions.headers.lengths());
        for (((&source, &output), &timestamp), ((&key, &value), &headers)) in rows.zip(lengths) {
            let Some(output) = self.outputs.get(usize::from(output)) else {
                refuse(source, format!("there is no output {output}"));
                continue;
            };
            let bytes: usize = [key, value, headers].iter().map(|&length| length.max(0) as usize).sum();
            if bytes + RECORD_OVERHEAD_BYTES > output.record_bytes_max {
                refuse(
                    source,
                    format!(
                        "a record of {bytes} bytes for topic {} is above its max.message.bytes of {}",
                        output.topic, output.record_bytes_max
                    ),
                );
            }
            if output.compacted && key < 0 {
                refuse(
                    source,
                    format!("a record without a key for topic {}, which is compacted", output.topic),
                );
            }
            if let Some(reason) = self.time_refusal(output, timestamp) {
                refuse(source, reason);
            }
        }
    }

    fn time_refusal(&self, output: &OutputRule, timestamp: i64) -> Option<String> {
        // -1 is "no timestamp", which every topic takes.
        if timestamp < -1 {
            return Some(format!("timestamp {timestamp} for topic {} is before 1970", output.topic));
        }
        let rule = output.timestamps.filter(|_| timestamp >= 0)?;
        let early = timestamp < self.wall_ms.saturating_sub(rule.before_max_ms);
        let late = timestamp > self.wall_ms.saturating_add(rule.after_max_ms);
        (early || late).then(|| {
            format!(
                "timestamp {timestamp} is outside what topic {} accepts ({} ms before to {} ms after now)",
                output.topic, rule.before_max_ms, rule.after_max_ms
            )
        })
    }

    fn writes(&self, writes: &Writes, refuse: &mut impl FnMut(u32, String)) {
        let overhead = RECORD_OVERHEAD_BYTES + self.prefix_bytes_max;
        if writes.keys.bytes().len() + writes.values.bytes().len() + overhead <= self.changelog_bytes_max {
            return;
        }
        let lengths = writes.keys.lengths().iter().zip(writes.values.lengths());
        for (&source, (&key, &value)) in writes.sources.iter().zip(lengths) {
            let bytes = key.max(0) as usize + value.max(0) as usize;
            if bytes + overhead > self.changelog_bytes_max {
                refuse(
                    source,
                    format!(
                        "a state entry of {bytes} bytes is above the changelog's max.message.bytes of {}",
                        self.changelog_bytes_max
                    ),
                );
            }
        }
    }
}
