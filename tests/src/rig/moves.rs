//! What it costs the chain's partitions when its tasks move between nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::fleet::Fleet;
use super::round::Stage;

/// A node and which of its lives.
type Home = (usize, u32);

/// Pauses of partitions that moved.
#[derive(Debug, Clone, Default)]
pub struct Pauses(Vec<Duration>);

impl Pauses {
    pub fn add(&mut self, other: Pauses) {
        self.0.extend(other.0);
    }

    pub fn moved(&self) -> usize {
        self.0.len()
    }

    /// The pause that this part of them does not exceed.
    fn percentile(&self, part: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, all] = [0.5, 0.99, 1.0].map(|part| self.percentile(part).as_secs_f64());
        write!(f, "{} moved, paused p50 {half:.2} s, p99 {most:.2} s, max {all:.2} s", self.moved())
    }
}

/// What an action did to the partitions.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    pub pauses: Pauses,
    /// Longest standstill of the partitions that did not move.
    pub stayed: Vec<Duration>,
}

/// Does something that moves tasks, and waits until what was sent meanwhile has come out. A partition
/// that stays where it is must not be stopped by it, however shortly.
#[track_caller]
pub fn moving(stage: &mut Stage, what: &str, action: impl FnOnce(&mut Stage)) -> Moves {
    let before = homes(&stage.fleet);
    let read = log_lengths(&stage.fleet);
    stage.watch.mark();
    action(stage);
    stage.catch_up();
    let gaps = stage.watch.gaps();
    let after = homes(&stage.fleet);
    let mut moves = Moves::default();
    for (partition, gap) in (0..).zip(gaps) {
        let home = after.get(&partition).filter(|home| before.get(&partition) == Some(*home));
        let Some(&(node, _)) = home else {
            moves.pauses.0.push(gap);
            continue;
        };
        let log = stage.fleet.log(node);
        let since = log.get(read[node]..).unwrap_or_default();
        let stopped = since.lines().find(|line| event(line).is_some_and(|event| event.is_of(partition)));
        assert_eq!(stopped, None, "{what}: partition {partition} stays at n{node} and was stopped");
        moves.stayed.push(gap);
    }
    let still = moves.stayed.iter().max().copied().unwrap_or_default().as_secs_f64();
    println!(
        "  {what}: {}; {} stayed, without output {still:.2} s at most",
        moves.pauses,
        moves.stayed.len()
    );
    moves
}

/// Who runs the chain's task of which partition, by what the nodes have said.
fn homes(fleet: &Fleet) -> BTreeMap<i32, Home> {
    let mut homes = BTreeMap::new();
    for node in (0..fleet.len()).filter(|node| fleet.is_running(*node)) {
        for partition in held(&fleet.log(node)) {
            homes.insert(partition, (node, fleet.lives(node)));
        }
    }
    homes
}

/// Partitions of the chain that a node runs, from its log since its last start.
pub fn held(log: &str) -> BTreeSet<i32> {
    let mut held = BTreeSet::new();
    for event in log.lines().filter_map(event) {
        match event {
            Event::Starts(partition) => drop(held.insert(partition)),
            Event::Goes(partitions) => held.retain(|partition| !partitions.contains(partition)),
        }
    }
    held
}

fn log_lengths(fleet: &Fleet) -> Vec<usize> {
    (0..fleet.len()).map(|node| fleet.log(node).len()).collect()
}

enum Event {
    Starts(i32),
    Goes(Vec<i32>),
}

impl Event {
    fn is_of(&self, partition: i32) -> bool {
        match self {
            Event::Starts(started) => *started == partition,
            Event::Goes(gone) => gone.contains(&partition),
        }
    }
}

/// What a line says of the chain's tasks.
fn event(line: &str) -> Option<Event> {
    if !line.contains("deployment=\"chain\"") && !line.contains("deployment=chain ") {
        return None;
    }
    let field = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split_ascii_whitespace().next()
    };
    if line.contains(" task starts ") {
        return Some(Event::Starts(field(" partition=")?.parse().ok()?));
    }
    let goes = line.contains(" revoked ") || line.contains(" lost ");
    let partitions = field(" partitions=").filter(|_| goes)?;
    Some(Event::Goes(partitions.split(',').filter_map(|partition| partition.parse().ok()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_which_tasks_a_node_has() {
        let log = "\
INFO assigned deployment=chain worker=0 partitions=0,1,2
INFO task starts deployment=\"chain\" partition=0 offset=\"5\"
INFO task starts deployment=\"chain\" partition=1 offset=\"5\"
INFO task starts deployment=\"copy\" partition=3 offset=\"5\"
INFO task starts deployment=\"chain\" partition=2 offset=\"5\"
INFO revoked deployment=chain worker=0 partitions=0,2
WARN lost deployment=copy worker=0 partitions=1
";
        assert_eq!(held(log), BTreeSet::from([1]));
    }

    #[test]
    fn percentiles_are_of_the_pauses_themselves() {
        let pauses = Pauses((1..=200).map(Duration::from_secs).collect());
        assert_eq!(pauses.percentile(0.5), Duration::from_secs(100));
        assert_eq!(pauses.percentile(0.99), Duration::from_secs(198));
        assert_eq!(pauses.percentile(1.0), Duration::from_secs(200));
    }
}
