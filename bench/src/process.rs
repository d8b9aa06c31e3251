//! CPU time of a child process, from Linux's `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// `/proc/PID/stat` counts in ticks of 10 ms on every Linux there is (USER_HZ is part of its ABI).
const TICK: Duration = Duration::from_millis(10);

/// User and system time that a live (or dead, not yet reaped) process has used so far, all threads.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second field is the program's name in brackets, which may hold anything.
    let (_, rest) = stat.rsplit_once(')').with_context(|| path.clone())?;
    let field = |index: usize| -> Result<u32> {
        let text = rest.split_ascii_whitespace().nth(index).with_context(|| path.clone())?;
        Ok(text.parse()?)
    };
    // Fields 14 and 15 of the file: utime and stime.
    Ok((field(11)? + field(12)?) * TICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_in_the_cpu_time_of_a_process() {
        let before = cpu_time(std::process::id()).expect("own process");
        let started = std::time::Instant::now();
        let mut sum = 0u64;
        while cpu_time(std::process::id()).expect("own process") < before + TICK * 5 {
            assert!(started.elapsed() < Duration::from_secs(60), "burning did not count");
            sum = (0..100_000u64).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
    }
}
