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

/// Names of a process's threads, and how many have each; numbers in them are left out.
pub fn thread_names(pid: u32) -> Vec<(String, usize)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut names = std::collections::BTreeMap::<String, usize>::new();
    for task in tasks {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let name = name.trim().trim_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        *names.entry(name).or_default() += 1;
    }
    names.into_iter().collect()
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
