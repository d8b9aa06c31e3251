//! Interleaved rounds: in each round every contender runs once, in a new order, and only ratios
//! within a round are compared, because the machine drifts between rounds more than within one.

use std::fmt;
use std::time::Duration;

/// One contender's run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// User and system time of the contender's process.
    pub cpu: Duration,
    pub wall: Duration,
    pub records: u64,
}

impl Run {
    /// CPU-seconds per million records.
    pub fn cpu_per_million(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.records as f64
    }

    pub fn records_per_second(&self) -> f64 {
        self.records as f64 / self.wall.as_secs_f64()
    }
}

/// Median and range of some rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
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

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}..{:.2})", self.median, self.min, self.max)
    }
}

/// Contender numbers in an order that starts with another one each round.
pub fn order(contenders: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |position| (position + round) % contenders)
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
        for round in 0..5 {
            let mut ran: Vec<usize> = order(3, round).collect();
            assert_eq!(ran[0], round % 3);
            ran.sort();
            assert_eq!(ran, [0, 1, 2]);
        }
    }
}
