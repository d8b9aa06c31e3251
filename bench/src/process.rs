//! Child processes and their CPU time, from Linux's `/proc`.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// `/proc/PID/stat` counts in ticks of 10 ms on every Linux there is (USER_HZ is part of its ABI).
const TICK: Duration = Duration::from_millis(10);

/// User and system time that a process has used so far: all threads, and children that have ended.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second field is the program's name in brackets, which may hold anything.
    let (_, rest) = text.rsplit_once(')').with_context(|| path.clone())?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |index: usize| fields.get(index).copied().with_context(|| path.clone());
    // Fields 14 to 17 of the file: utime and stime of all threads, and of the children that have ended.
    let mut ticks = 0;
    for index in 11..=14 {
        ticks += field(index)?.parse::<u32>()?;
    }
    Ok(ticks * TICK)
}

/// The most memory that a process has had resident so far, in mebibytes.
pub fn peak_rss_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).with_context(|| path.clone())?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| path.clone())?;
    Ok(kib / 1_024.0)
}

/// Runs a program to its end. What it says is told if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = || [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, said());
    Ok(())
}

/// A child that does not outlive this value.
pub struct Running(pub Child);

impl Running {
    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended with {status}"),
        }
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only if it is gone already.
        let _ = self.kill();
    }
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

    #[test]
    fn a_program_that_fails_is_an_error_with_what_it_said() {
        let mut failing = Command::new("sh");
        let error = run(failing.args(["-c", "echo sorry; exit 3"])).expect_err("has failed");
        assert!(error.to_string().contains("sorry"), "{error}");
        run(&mut Command::new("true")).expect("runs");
    }
}
