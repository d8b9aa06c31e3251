//! The live table: redrawn in place on a terminal, one plain line a second elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use flights::client::DEPLOYMENT;
use flights::statistics::Statistics;
use tidemill_proto::v1::PartitionLag;

/// What one drawing shows.
pub struct Snapshot<'a> {
    pub fed: u64,
    pub total: u64,
    pub lag: &'a [PartitionLag],
    pub groups: &'a BTreeMap<String, Statistics>,
    pub airlines: &'a BTreeMap<String, String>,
}

pub struct Table {
    in_place: bool,
    /// Lines of the last drawing, to move up over.
    drawn: usize,
    last_line: Option<Instant>,
    /// Flights counted at earlier times, for the rate.
    history: Vec<(Instant, u64)>,
}

impl Table {
    pub fn new() -> Table {
        Table { in_place: io::stdout().is_terminal(), drawn: 0, last_line: None, history: Vec::new() }
    }

    pub fn draw(&mut self, snapshot: &Snapshot<'_>) {
        let counted = counted(snapshot.groups);
        let rate = self.rate(counted);
        let summary = format!(
            "flights fed {} of {}   counted {}   {} records/s   lag {}",
            grouped(snapshot.fed),
            grouped(snapshot.total),
            grouped(counted),
            grouped(rate),
            grouped(snapshot.lag.iter().map(|partition| partition.records).sum()),
        );
        if self.in_place {
            let text = format!("{summary}\n\n{}", carriers(snapshot));
            if self.drawn > 0 {
                // Up, and clear from there on.
                print!("\x1b[{}A\x1b[J", self.drawn);
            }
            print!("{text}");
            self.drawn = text.lines().count();
        } else if self.last_line.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
            println!("{summary}");
            self.last_line = Some(Instant::now());
        }
        let _ = io::Write::flush(&mut io::stdout());
    }

    /// The last drawing, whole on any output.
    pub fn finish(&mut self, snapshot: &Snapshot<'_>) {
        self.last_line = None;
        self.draw(snapshot);
        if !self.in_place {
            print!("\n{}", carriers(snapshot));
        }
    }

    /// Records a second over the last two seconds.
    fn rate(&mut self, counted: u64) -> u64 {
        let now = Instant::now();
        self.history.push((now, counted));
        self.history.retain(|(then, _)| now - *then <= Duration::from_secs(2));
        let (then, before) = self.history[0];
        let seconds = (now - then).as_secs_f64();
        if seconds > 0.0 { (counted.saturating_sub(before) as f64 / seconds) as u64 } else { 0 }
    }
}

/// Flights in all carriers' totals, cancelled ones included.
pub fn counted(groups: &BTreeMap<String, Statistics>) -> u64 {
    totals(groups).map(|(_, group)| group.count + group.missing).sum()
}

/// The groups of a whole carrier; a group of one day has the day in its key.
fn totals(groups: &BTreeMap<String, Statistics>) -> impl Iterator<Item = (&String, &Statistics)> {
    groups.iter().filter(|(key, _)| !key.contains('/'))
}

fn carriers(snapshot: &Snapshot<'_>) -> String {
    let mut text = String::new();
    let shown =
        |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:<28} {:>8} {:>9} {:>11} {:>8} {:>8}   (departure delay, minutes)",
        "carrier", "flights", "cancelled", "mean", "min", "max"
    );
    for (carrier, group) in totals(snapshot.groups) {
        let name = snapshot.airlines.get(carrier).map_or("", String::as_str);
        let _ = writeln!(
            text,
            "{:<28} {:>8} {:>9} {:>11} {:>8} {:>8}",
            format!("{carrier} {name}"),
            grouped(group.count),
            grouped(group.missing),
            shown(group.mean, 2),
            shown(group.min, 0),
            shown(group.max, 0),
        );
    }
    let halted = snapshot.lag.iter().find(|partition| !partition.reason.is_empty());
    if let Some(partition) = halted {
        let of = if partition.deployment.is_empty() { DEPLOYMENT } else { &partition.deployment };
        let _ = writeln!(text, "\n{of}, partition {}: {}", partition.partition, partition.reason);
    }
    text
}

/// 27004 as 27,004.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let grouped = [0, 999, 1_000, 27_004, 1_234_567].map(grouped);
        assert_eq!(grouped, ["0", "999", "1,000", "27,004", "1,234,567"]);
    }
}
