//! Where the CPU time of a process goes, by what its threads do, so that the rows sum up to the whole.
//!
//! `/proc` counts a thread's time in ticks of 10 ms, which is a few nanoseconds of each of a million records. What the
//! process's own clock says beyond all rows is in `others`: every other thread, those that have ended, and what
//! rounding leaves.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};

/// What is told apart. librdkafka's threads have the same names in every client of a process.
pub const ROWS: [&str; 6] = [
    "worker",
    "commit",
    "fetching",
    "librdkafka, brokers",
    "librdkafka, main threads",
    "RocksDB, its own threads",
];
/// The thread that takes records and handles them; the loop's only one.
pub const WORKER: usize = 0;
/// Makes batches of what is produced and sends them, if that is the node's own producer.
pub const COMMIT: usize = 1;
/// The node's own threads of brokers; in the loop librdkafka's do that.
const FETCHING: usize = 2;
/// In a node they have heartbeats and what is read or written by librdkafka still; in the loop all records.
const BROKERS: usize = 3;
const MAIN: usize = 4;
const ROCKSDB: usize = 5;

/// The kernel keeps no more of a name.
const NAME_BYTES_MAX: usize = 15;
/// A tick is a hundredth of a second on every Linux.
const TICK_NS: f64 = 1e7;

/// What the threads of a contender are called.
#[derive(Debug, Clone)]
pub struct Names {
    worker: String,
    /// Of nobody, if there is none.
    commit: String,
}

impl Names {
    /// A deployment with one worker.
    pub fn of_deployment(name: &str) -> Names {
        Names { worker: cut(&format!("{name}-0")), commit: cut(&format!("{name}-0-commit")) }
    }

    /// A program with one thread of its own.
    pub fn of_program(name: &str) -> Names {
        Names { worker: cut(name), commit: String::new() }
    }

    /// False if their names are too long to tell them apart.
    pub fn are_distinct(&self) -> bool {
        self.worker != self.commit
    }

    fn row(&self, name: &str) -> Option<usize> {
        match name {
            name if name == self.worker => Some(WORKER),
            name if name == self.commit => Some(COMMIT),
            name if name.starts_with("fetch-") => Some(FETCHING),
            name if name.starts_with("rdk:broker") => Some(BROKERS),
            name if name.starts_with("rdk:") => Some(MAIN),
            name if name.starts_with("rocksdb:") => Some(ROCKSDB),
            _ => None,
        }
    }
}

fn cut(name: &str) -> String {
    name.chars().take(NAME_BYTES_MAX).collect()
}

/// Name, user and system time so far, in ticks, of each thread, by its number.
pub struct Threads(HashMap<u32, (String, [u64; 2])>);

impl Threads {
    pub fn now(pid: u32) -> Result<Threads> {
        let mut threads = HashMap::new();
        let path = format!("/proc/{pid}/task");
        for task in fs::read_dir(&path).with_context(|| path.clone())? {
            // One that ends just now is not there any more.
            let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else { continue };
            let (number, name, ticks) = parse(&stat).with_context(|| format!("{path}: {stat}"))?;
            threads.insert(number, (name.to_owned(), ticks));
        }
        Ok(Threads(threads))
    }

    /// Nanoseconds per record since an earlier moment, of which the process's clock says that `whole` was used.
    pub fn since(&self, before: &Threads, names: &Names, whole: Duration, records: u64) -> ByThread {
        let per_record = |ns: f64| ns / records as f64;
        let mut by_thread = ByThread { others: per_record(whole.as_nanos() as f64), ..ByThread::default() };
        for (number, (name, ticks)) in &self.0 {
            let Some(row) = names.row(name) else { continue };
            let earlier = before.0.get(number).map_or([0; 2], |(_, ticks)| *ticks);
            for (part, (now, earlier)) in ticks.iter().zip(earlier).enumerate() {
                let ns = per_record(now.saturating_sub(earlier) as f64 * TICK_NS);
                by_thread.rows[row][part] += ns;
                by_thread.others -= ns;
            }
        }
        by_thread
    }
}

/// Number, name, user and system time of a thread's `stat`.
fn parse(stat: &str) -> Option<(u32, &str, [u64; 2])> {
    let (number, rest) = stat.split_once(" (")?;
    // The name may have any characters.
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11).map(str::parse::<u64>);
    Some((number.parse().ok()?, name, [times.next()?.ok()?, times.next()?.ok()?]))
}

/// Nanoseconds per record.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ByThread {
    /// User and system time of each of [`ROWS`].
    pub rows: [[f64; 2]; ROWS.len()],
    pub others: f64,
}

impl ByThread {
    /// Of some runs, so that the rows still sum up, which medians would not; `None` of no run.
    pub fn mean(runs: impl Iterator<Item = ByThread>) -> Option<ByThread> {
        let (mut mean, mut count) = (ByThread::default(), 0.0);
        for run in runs {
            count += 1.0;
            // The mean moves by the new one's share of its distance.
            let toward = |mean: &mut f64, new: f64| *mean += (new - *mean) / count;
            for (mean, new) in mean.rows.iter_mut().flatten().zip(run.rows.into_iter().flatten()) {
                toward(mean, new);
            }
            toward(&mut mean.others, run.others);
        }
        (count > 0.0).then_some(mean)
    }

    pub fn whole(&self) -> f64 {
        self.rows.iter().flatten().sum::<f64>() + self.others
    }
}

/// By the rows' names: user and system time; of `others` both together.
impl Serialize for ByThread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rows = ROWS.into_iter().zip(self.rows.iter().map(|row| row.to_vec()));
        serializer.collect_map(rows.chain([("others", vec![self.others])]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(of: &[(u32, &str, [u64; 2])]) -> Threads {
        Threads(of.iter().map(|&(number, name, ticks)| (number, (name.to_owned(), ticks))).collect())
    }

    #[test]
    fn rows_and_the_rest_are_what_the_clock_of_the_process_says() {
        let names = Names::of_deployment("b4-zipf-2-0");
        let before = threads(&[(1, "tidemill", [5, 5]), (2, "b4-zipf-2-0-0", [100, 10])]);
        let after = threads(&[
            (1, "tidemill", [9, 5]),
            (2, "b4-zipf-2-0-0", [150, 12]),
            (3, "b4-zipf-2-0-0-c", [20, 0]),
            (4, "rdk:broker1", [7, 3]),
            (5, "rdk:broker-1", [0, 1]),
            (6, "rdk:main", [1, 0]),
            (7, "fetch-1", [2, 1]),
        ]);
        let by_thread = after.since(&before, &names, Duration::from_secs(1), 1_000_000);
        let rows = [[500.0, 20.0], [200.0, 0.0], [20.0, 10.0], [70.0, 40.0], [10.0, 0.0], [0.0, 0.0]];
        assert_eq!(by_thread.rows, rows);
        assert!((by_thread.others - 130.0).abs() < 1e-6, "{by_thread:?}");
        assert!((by_thread.whole() - 1_000.0).abs() < 1e-6);
    }

    #[test]
    fn a_thread_is_read_whatever_its_name() {
        let stat = "17 (a) b (c) R 1 1 1 0 -1 4194304 158 0 0 0 42 7 0 0 20 0 1 0 93398 3133440";
        assert_eq!(parse(stat), Some((17, "a) b (c", [42, 7])));
        let own = Threads::now(std::process::id()).expect("this process");
        assert!(!own.0.is_empty());
    }

    #[test]
    fn the_mean_of_runs_sums_up_to_the_mean_of_their_wholes() {
        let run = |ns: f64| ByThread { rows: [[ns, 1.0]; ROWS.len()], others: 2.0 * ns };
        let mean = ByThread::mean([run(1.0), run(2.0), run(6.0)].into_iter()).expect("runs");
        let rows = ROWS.len() as f64;
        assert!((mean.whole() - ((rows + 2.0) * 3.0 + rows)).abs() < 1e-9, "{mean:?}");
        assert_eq!(ByThread::mean(std::iter::empty()), None);
    }
}
