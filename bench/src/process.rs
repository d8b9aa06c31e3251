//! Child processes, their CPU time and their memory, as Linux tells them.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// User and system time that a process has used so far, all threads, in nanoseconds: `/proc` counts in ticks of 10 ms.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: writes the clock's number where it is told to.
    let error = unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid)?, &raw mut clock) };
    ensure!(error == 0, "process {pid}: {}", std::io::Error::from_raw_os_error(error));
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time where it is told to.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("process {pid}"));
    }
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
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
        while cpu_time(std::process::id()).expect("own process") < before + Duration::from_millis(50) {
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
