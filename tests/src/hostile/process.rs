//! What the kernel says of a process.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at the memory of a process.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory.
    pub rss_kib: u64,
    pub threads: u64,
    pub descriptors: u64,
    pub mappings: u64,
}

impl Usage {
    /// Of a process that runs.
    pub fn of(pid: u32) -> Usage {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        Usage {
            rss_kib: field("VmRSS:"),
            threads: field("Threads:"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |fds| fds.count() as u64),
            mappings: maps.lines().count() as u64,
        }
    }
}

/// A linear memory is followed by the addresses that it may grow into, which nobody may touch: 4 GiB less its size.
const NEVER_TOUCHED_MIN: u64 = 2 << 30;

/// Resident memory of a process that is the linear memory of its guests, in KiB.
pub fn linear_kib(pid: u32) -> u64 {
    linear_kib_in(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default())
}

/// A guest's memory is one or more writable mappings without a gap (its data come from an image in a file), up to
/// where the untouchable ones begin.
fn linear_kib_in(smaps: &str) -> u64 {
    let (mut linear, mut end, mut run, mut is_writable) = (0u64, 0u64, 0u64, false);
    for line in smaps.lines() {
        if let Some((from, to, access)) = mapping(line) {
            is_writable = access.starts_with("rw");
            if from == end && access.starts_with("---") && to - from >= NEVER_TOUCHED_MIN {
                linear += run;
            }
            if from != end || !is_writable {
                run = 0;
            }
            end = to;
        } else if let Some(kib) = line.strip_prefix("Rss:").filter(|_| is_writable) {
            run += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        }
    }
    linear
}

/// The line that begins a mapping: from, to, and what may be done with it.
fn mapping(line: &str) -> Option<(u64, u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let address = |hexadecimal| u64::from_str_radix(hexadecimal, 16).ok();
    Some((address(from)?, address(to)?, words.next()?))
}

/// CPU time of the machine and of some processes with the children that they have waited for, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    whole: u64,
    busy: u64,
    own: u64,
}

impl Ticks {
    pub fn now(own: &[u32]) -> Ticks {
        let numbers = |text: &str| -> Vec<u64> {
            // Some are -1, which is of no interest but has its place.
            text.split_ascii_whitespace().filter_map(|n| n.parse::<i64>().ok()).map(|n| n as u64).collect()
        };
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let cpu = numbers(stat.lines().next().unwrap_or_default());
        let whole: u64 = cpu.iter().take(8).sum();
        // Idle and waiting for disks.
        let idle: u64 = cpu.iter().skip(3).take(2).sum();
        let of = |pid: &u32| -> u64 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Behind the name, which may have any characters: the state, then numbers from the fourth on.
            let fields = stat.rsplit(") ").next().map(numbers).unwrap_or_default();
            fields.iter().skip(10).take(4).sum()
        };
        Ticks { whole, busy: whole - idle, own: own.iter().map(of).sum() }
    }

    /// The share of the machine that others have used since, of 1.
    pub fn foreign(self, since: Ticks) -> f64 {
        let others = (self.busy - since.busy).saturating_sub(self.own.saturating_sub(since.own));
        others as f64 / (self.whole - since.whole).max(1) as f64
    }

    /// What the processes have used since. A tick is a hundredth of a second on every Linux.
    pub fn own_seconds(self, since: Ticks) -> f64 {
        self.own.saturating_sub(since.own) as f64 / 100.0
    }
}

/// Names of a process's threads, and how many have each, with a `*` for every number in them.
pub fn thread_names(pid: u32) -> Vec<(String, usize)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut names = std::collections::BTreeMap::<String, usize>::new();
    for task in tasks {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        *names.entry(without_numbers(name.trim())).or_default() += 1;
    }
    names.into_iter().collect()
}

fn without_numbers(name: &str) -> String {
    let mut kept = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '0'..='9' if kept.ends_with('*') => {}
            '0'..='9' => kept.push('*'),
            _ => kept.push(c),
        }
    }
    kept
}

/// Watches the largest resident memory of a process until it is asked.
pub struct Peak {
    stop: Arc<AtomicBool>,
    kib: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Peak {
    pub fn watch(pid: u32) -> Peak {
        let (stop, kib) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (theirs, most) = (Arc::clone(&stop), Arc::clone(&kib));
        let thread = std::thread::spawn(move || {
            while !theirs.load(Ordering::Relaxed) {
                let status = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
                let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
                most.fetch_max(pages.unwrap_or(0) * 4, Ordering::Relaxed);
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Peak { stop, kib, thread }
    }

    pub fn kib(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // It does nothing that could panic.
        let _ = self.thread.join();
        self.kib.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_differ_by_a_number_have_one_name() {
        assert_eq!(
            ["small-7-0-commi", "small-71-0-comm"].map(without_numbers),
            ["small-*-*-commi", "small-*-*-comm"]
        );
        assert_eq!(without_numbers("tokio-rt-worker"), "tokio-rt-worker");
    }

    #[test]
    fn linear_memory_is_what_is_writable_right_before_the_addresses_that_it_may_grow_into() {
        let mappings = [
            ("00001000-00003000 rw-p 00000000 00:00 0 [heap]", 8),
            ("10000000-12000000 r--p 00000000 00:00 0", 5),
            ("12000000-12010000 rw-p 00000000 00:01 7 /memfd:wasm-memory-image (deleted)", 40),
            ("12010000-12110000 rw-p 00000000 00:00 0", 100),
            ("12110000-112000000 ---p 00000000 00:00 0", 0),
            // An arena of the allocator: less is reserved.
            ("200000000-200021000 rw-p 00000000 00:00 0", 1_000),
            ("200021000-204000000 ---p 00000000 00:00 0", 0),
            // Something before a gap is none.
            ("300000000-300021000 rw-p 00000000 00:00 0", 10_000),
            ("300022000-402000000 ---p 00000000 00:00 0", 0),
        ];
        let smaps: Vec<String> = mappings
            .iter()
            .map(|(mapping, kib)| format!("{mapping}\nSize:  9 kB\nRss:   {kib} kB\nVmFlags: rd wr\n"))
            .collect();
        assert_eq!(linear_kib_in(&smaps.concat()), 140);
    }
}
