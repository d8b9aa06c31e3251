//! Interleaved rounds: in each round every contender runs once, in a new order, and only ratios
//! within a round are compared, because the machine drifts between rounds more than within one.

use std::fmt;

use serde::Serialize;

use crate::segments::Segments;
use crate::terms::Metric;
use crate::threads::ByThread;

/// What one run has shown.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// User and system time of the contender's process, all threads.
    pub cpu_seconds_per_million: f64,
    pub records_per_second: f64,
    /// From its start to its end.
    pub peak_rss_mib: f64,
    pub broker_cpu_seconds_per_million: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Latency>,
    /// What a node counts itself of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    /// From the deploy of a new module to the first record that comes out of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployed_ms: Option<f64>,
    /// CPU time per record, by thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads_ns: Option<ByThread>,
}

/// From the moment at which a record was due to be written to its arrival at a `read_committed` reader.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
    pub mean: f64,
    /// What of that is the writer's.
    pub written_late: Late,
}

/// From the moment at which a record was due to be written to the moment at which the writer's client had it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Late {
    pub p99: f64,
    pub max: f64,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p95, p99, p99_9, max, written_late, .. } = self;
        write!(f, "p50 {p50:.1} p95 {p95:.1} p99 {p99:.1} p99.9 {p99_9:.1} max {max:.1} ms")?;
        write!(f, ", written late by {:.1} (p99) and {:.1} (max)", written_late.p99, written_late.max)
    }
}

impl Figures {
    /// `None` for what this run did not measure.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Cpu => Some(self.cpu_seconds_per_million),
            Metric::PeakRss => Some(self.peak_rss_mib),
            Metric::P50 => self.latency_ms.map(|latency| latency.p50),
            Metric::P95 => self.latency_ms.map(|latency| latency.p95),
            Metric::P99 => self.latency_ms.map(|latency| latency.p99),
            Metric::Committed => self.segments.map(|segments| segments.committed),
            Metric::Commit => self.segments.map(|segments| segments.commit_ms),
            Metric::NoCommit => self.segments.map(|segments| segments.others_ms),
            Metric::Call => self.segments.map(|segments| segments.call_p95_ms),
            Metric::Handled => self.segments.map(|segments| segments.handled),
            Metric::DeadLetters => self.segments.map(|segments| segments.dead_letters),
            Metric::Deployed => self.deployed_ms,
            // Of a restart, which is no run, and of other programs.
            Metric::FirstOutput
            | Metric::RestoredKeys
            | Metric::RestoredMegabytes
            | Metric::Gap
            | Metric::OwnMemory => None,
        }
    }
}

/// What one kill has shown.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Comeback {
    pub first_output_seconds: f64,
    /// From the kill to the first new output, whenever it was started again: a recovery time objective is measured by
    /// that.
    pub rto_ms: f64,
    /// How much of what came in is lost, in time: 0 if as many records came out as were written around the kill. `None` if
    /// not; how many are missing is told by `records_missing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<f64>,
    /// Records that were written and did not come out; below 0, so many more came out.
    pub records_missing: i64,
    /// `None` if the stores were there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_keys_per_second: Option<f64>,
    /// `None` also if it does not say how much it has read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_megabytes_per_second: Option<f64>,
}

impl Comeback {
    /// What is wrong with what came out, if anything is.
    pub fn fault(&self) -> Option<String> {
        match self.records_missing {
            0 => None,
            missing if missing > 0 => Some(format!("{missing} records are missing")),
            missing => Some(format!("{} records came out too often", -missing)),
        }
    }

    /// `None` for what it does not show.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::FirstOutput => Some(self.first_output_seconds),
            Metric::RestoredKeys => self.restored_keys_per_second,
            Metric::RestoredMegabytes => self.restored_megabytes_per_second,
            Metric::Cpu
            | Metric::PeakRss
            | Metric::P50
            | Metric::P95
            | Metric::P99
            | Metric::Committed
            | Metric::Commit
            | Metric::NoCommit
            | Metric::Call
            | Metric::Handled
            | Metric::DeadLetters
            | Metric::Deployed
            | Metric::Gap
            | Metric::OwnMemory => None,
        }
    }
}

/// Median and range of some rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let odd = values.len() % 2 == 1;
        let median = if odd { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Spread { median, min, max })
    }
}

/// Three digits that count.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median >= 100.0 {
            0
        } else if self.median >= 10.0 {
            1
        } else {
            2
        };
        write!(f, "{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.min, self.max)
    }
}

/// Contender numbers in an order of the round's own, the same in every suite: nobody always follows the same one.
pub fn order(contenders: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..contenders).collect();
    order.sort_by_key(|&number| mixed(((round as u64) << 32) | number as u64));
    order
}

/// The output function of SplitMix64, which makes another number of every number.
pub fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_rounds_is_median_minimum_and_maximum() {
        let spread = Spread::of([3.0, 1.0, 2.0]).expect("values");
        assert_eq!(spread.to_string(), "2.00 (1.00..3.00)");
        assert_eq!(Spread::of([1.0, 2.0]).expect("values").median, 1.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn every_round_runs_every_contender_once() {
        let mut orders = std::collections::BTreeSet::new();
        for round in 0..5 {
            let mut ran = order(3, round);
            orders.insert(ran.clone());
            ran.sort_unstable();
            assert_eq!(ran, [0, 1, 2]);
        }
        assert!(orders.len() > 2, "always in the same order: {orders:?}");
    }
}
