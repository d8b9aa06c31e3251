//! Where it is measured: what the kernel, the JVM and the checkout say, and what the host takes away meanwhile.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub java: String,
    pub kafka: &'static str,
    pub librdkafka: String,
    pub tidemill: &'static str,
    /// What was checked out; `None` outside a checkout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Of the last minute, before the first run: what others did.
    pub load_before: f64,
}

impl Machine {
    pub fn look() -> Result<Machine> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: f64 = kib.context("MemTotal")?.trim().trim_end_matches(" kB").parse()?;
        let java = Command::new("java").arg("-version").output().context("java")?;
        let java = String::from_utf8_lossy(&java.stderr).into_owned();
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Machine {
            cpu: model
                .map(|model| model.trim_start_matches([' ', '\t', ':']))
                .unwrap_or("unknown")
                .to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (kib / 1_048_576.0 * 10.0).round() / 10.0,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            java: java.lines().next().unwrap_or("unknown").to_owned(),
            kafka: tidemill_kafka_harness::VERSION,
            librdkafka: rdkafka::util::get_rdkafka_version().1,
            tidemill: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            load_before: load.split(' ').next().unwrap_or_default().parse()?,
        })
    }
}

/// The short name of the checkout's commit, with a `+` if files differ from it that are no results and no text.
fn commit() -> Option<String> {
    const NOT_CODE: [&str; 3] = [":(top,exclude)bench/results", ":(top,exclude)docs", ":(top,exclude)*.md"];
    let git = |arguments: &[&str]| {
        Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()
    };
    let head = git(&["rev-parse", "--short", "HEAD"]).filter(|head| head.status.success())?;
    let same = git(&[&["diff", "--quiet", "HEAD", "--"][..], &NOT_CODE].concat())?.status.success();
    let head = String::from_utf8_lossy(&head.stdout);
    Some(format!("{}{}", head.trim(), if same { "" } else { "+" }))
}

/// CPU time of all cores so far, in ticks.
pub struct Ticks {
    all: u64,
    /// In which there was work here, and the host ran other machines.
    stolen: u64,
}

impl Ticks {
    pub fn now() -> Result<Ticks> {
        Ticks::parse(&fs::read_to_string("/proc/stat")?).context("/proc/stat")
    }

    /// The share of all CPU time since then that was stolen, 0 to 1.
    pub fn stolen_since(&self) -> Result<f64> {
        Ok(Ticks::now()?.stolen_after(self))
    }

    fn stolen_after(&self, before: &Ticks) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / all as f64
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal, and guests, who are in the first two.
    fn parse(stat: &str) -> Option<Ticks> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks = line.split_whitespace().take(8).map(|ticks| ticks.parse().ok());
        let ticks: Vec<u64> = ticks.collect::<Option<_>>()?;
        Some(Ticks { all: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stolen_is_a_share_of_all_time_since() {
        let parse = |text: &str| Ticks::parse(text).expect("a line of /proc/stat");
        let before = parse("cpu  100 0 50 800 10 0 5 35 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n");
        let after = parse("cpu  150 0 60 820 10 0 5 55 9 0\n");
        assert_eq!(after.stolen_after(&before), 0.2);
        assert_eq!(before.stolen_after(&before), 0.0);
        assert!(Ticks::parse("cpu  1 2 3\n").is_none());
        Ticks::now().expect("this machine's");
    }
}
