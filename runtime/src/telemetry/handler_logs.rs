//! The last lines that handlers have logged, by deployment: a bounded ring each, in memory.
//!
//! Whoever writes has shortened and escaped the text, and has counted what it held back; a line takes one
//! lock, and there are only so many lines a second. Readers ask for what is new since they asked last, and
//! are told how many lines they have missed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// How much a line matters, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Milliseconds since the epoch.
    pub time_ms: i64,
    pub partition: i32,
    pub level: Level,
    pub text: String,
}

impl Line {
    /// What it counts for against the bound: its text, and what is around it.
    fn bytes(&self) -> usize {
        self.text.len() + size_of::<Line>()
    }
}

/// Bounds of one deployment's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBounds {
    pub lines: usize,
    pub bytes: usize,
}

/// The lines of one deployment on this node.
#[derive(Debug)]
pub struct LogRing {
    bounds: LogBounds,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Number of the first line in `lines`; lines are counted from 0.
    first: u64,
    /// Lines that were held back before they came here.
    held_back: u64,
}

/// How far a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Since {
    line: u64,
    held_back: u64,
}

impl Since {
    /// Number of the next line.
    pub fn line(self) -> u64 {
        self.line
    }
}

impl LogRing {
    pub fn new(bounds: LogBounds) -> LogRing {
        LogRing { bounds, kept: Mutex::default() }
    }

    pub fn push(&self, partition: i32, level: Level, text: &str) {
        let line = Line { time_ms: wall_ms(), partition, level, text: text.to_owned() };
        let mut kept = self.lock();
        kept.bytes += line.bytes();
        kept.lines.push_back(line);
        while kept.lines.len() > self.bounds.lines || kept.bytes > self.bounds.bytes {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.bytes();
            kept.first += 1;
        }
    }

    /// Lines that were too many a second.
    pub fn held_back(&self, lines: u64) {
        self.lock().held_back += lines;
    }

    /// The last `limit` of the lines that are kept and wanted, in their order, and where to go on from.
    pub fn kept(&self, limit: usize, wanted: impl Fn(&Line) -> bool) -> (Vec<Line>, Since) {
        let kept = self.lock();
        let mut lines: Vec<Line> =
            kept.lines.iter().rev().filter(|line| wanted(line)).take(limit).cloned().collect();
        lines.reverse();
        let since = Since { line: kept.first + kept.lines.len() as u64, held_back: kept.held_back };
        (lines, since)
    }

    /// From that line on. A number beyond the last is from an earlier life of the node: then from the first.
    pub fn from(&self, line: u64) -> Since {
        let kept = self.lock();
        let is_past = line <= kept.first + kept.lines.len() as u64;
        Since { line: if is_past { line } else { kept.first }, held_back: kept.held_back }
    }

    /// The first `limit` lines that are wanted since then, how many were lost meanwhile, wanted or not, and
    /// where to go on from.
    pub fn since(
        &self,
        since: Since,
        limit: usize,
        wanted: impl Fn(&Line) -> bool,
    ) -> (Vec<Line>, u64, Since) {
        let kept = self.lock();
        let overtaken = kept.first.saturating_sub(since.line);
        let dropped = overtaken + kept.held_back.saturating_sub(since.held_back);
        let mut next = since.line.max(kept.first);
        let mut lines = Vec::new();
        for line in kept.lines.iter().skip((next - kept.first) as usize) {
            if lines.len() == limit {
                break;
            }
            next += 1;
            if wanted(line) {
                lines.push(line.clone());
            }
        }
        (lines, dropped, Since { line: next, held_back: kept.held_back })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rings of a node.
#[derive(Debug)]
pub struct HandlerLogs {
    bounds: LogBounds,
    rings: Mutex<BTreeMap<String, Arc<LogRing>>>,
}

impl HandlerLogs {
    pub fn new(bounds: LogBounds) -> HandlerLogs {
        HandlerLogs { bounds, rings: Mutex::default() }
    }

    /// The ring of a deployment; the same one as long as it is deployed.
    pub fn ring(&self, deployment: &str) -> Arc<LogRing> {
        let mut rings = self.lock();
        let ring = rings.entry(deployment.to_owned()).or_insert_with(|| Arc::new(LogRing::new(self.bounds)));
        Arc::clone(ring)
    }

    /// The lines of a deployment that is gone go with it.
    pub fn forget(&self, deployment: &str) {
        self.lock().remove(deployment);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<LogRing>>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn the_oldest_lines_go_when_there_are_too_many_or_they_are_too_long() {
        let ring = LogRing::new(LogBounds { lines: 3, bytes: 10_000 });
        for text in ["a", "b", "c", "d"] {
            ring.push(0, Level::Info, text);
        }
        assert_eq!(texts(&ring.kept(9, |_| true).0), ["b", "c", "d"]);
        assert_eq!(texts(&ring.kept(2, |_| true).0), ["c", "d"]);
        ring.push(1, Level::Error, &"x".repeat(9_930));
        assert_eq!(ring.kept(9, |_| true).0.len(), 1);
        ring.push(0, Level::Info, &"y".repeat(20_000));
        assert_eq!(ring.kept(9, |_| true).0.len(), 0, "not even one may exceed the bound");
    }

    #[test]
    fn a_reader_gets_each_line_once_and_is_told_what_it_missed() {
        let ring = LogRing::new(LogBounds { lines: 3, bytes: 10_000 });
        ring.push(0, Level::Info, "a");
        let (_, since) = ring.kept(0, |_| true);
        ring.push(0, Level::Info, "b");
        ring.push(1, Level::Warn, "c");
        let (lines, dropped, since) = ring.since(since, 1, |_| true);
        assert_eq!((texts(&lines), dropped), (vec!["b"], 0));
        let (lines, dropped, since) = ring.since(since, 9, |line| line.level >= Level::Warn);
        assert_eq!((texts(&lines), dropped), (vec!["c"], 0));
        for text in ["d", "e", "f", "g", "h"] {
            ring.push(0, Level::Info, text);
        }
        ring.held_back(10);
        let (lines, dropped, since) = ring.since(since, 9, |_| true);
        assert_eq!((texts(&lines), dropped), (vec!["f", "g", "h"], 12));
        assert_eq!(ring.since(since, 9, |_| true), (vec![], 0, since));
        assert_eq!(ring.from(since.line()), since);
        assert_eq!(texts(&ring.since(ring.from(1_000), 9, |_| true).0), ["f", "g", "h"]);
    }
}
