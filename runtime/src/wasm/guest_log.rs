//! What guests write to the log: shortened, escaped, and only so many lines a second, because a
//! guest may be wrong in a loop and its text may come from a record.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::abi::Level;
use crate::telemetry::{self, LogRing, TaskMetrics};

/// Longest line, in bytes as it is kept and shown; what says that it was cut comes on top.
const LINE_BYTES_MAX: usize = 1024;

/// That lines are dropped is said at the first one, and again after this long.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// The lines a second that a deployment's handlers have on this node, all tasks together. An instance
/// made anew has none of its own.
#[derive(Debug)]
pub struct LogRate {
    begun: Instant,
    lines_max: u32,
    /// Second since `begun` (upper 32 bits) and lines in it (lower 32 bits).
    window: AtomicU64,
    /// Seconds since `begun` when it was last said that lines are dropped, plus one.
    said: AtomicU64,
}

impl LogRate {
    pub fn new(lines_max: u32) -> LogRate {
        LogRate { begun: Instant::now(), lines_max, window: AtomicU64::new(0), said: AtomicU64::new(0) }
    }

    /// Takes one line out of this second's; false when there is none left.
    fn take(&self) -> bool {
        let second = self.begun.elapsed().as_secs() << 32;
        let step = |window: u64| {
            let lines = if window & !0xffff_ffff == second { window & 0xffff_ffff } else { 0 };
            (lines < self.lines_max.into()).then_some(second | (lines + 1))
        };
        self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }

    /// True for one of those who drop a line, now and then.
    fn may_say(&self) -> bool {
        let now = self.begun.elapsed().as_secs() + 1;
        let step = |said: u64| (said == 0 || now - said.min(now) >= SAY_EVERY.as_secs()).then_some(now);
        self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

/// One task's part of the log.
#[derive(Debug)]
pub struct GuestLog {
    deployment: Arc<str>,
    partition: i32,
    rate: Arc<LogRate>,
    /// Where dropped lines are counted, if anywhere.
    metrics: Option<Arc<TaskMetrics>>,
    /// The last error of the call in progress: a panic says there what the trap cannot.
    last_error: Option<String>,
    /// Where lines are kept for whoever asks; none for a module that is only tried out.
    ring: Option<Arc<LogRing>>,
}

impl GuestLog {
    pub fn new(
        deployment: Arc<str>,
        partition: i32,
        rate: Arc<LogRate>,
        metrics: Option<Arc<TaskMetrics>>,
    ) -> GuestLog {
        GuestLog { deployment, partition, rate, metrics, last_error: None, ring: None }
    }

    /// Keeps lines there as well.
    pub fn kept_in(self, ring: Option<Arc<LogRing>>) -> GuestLog {
        GuestLog { ring, ..self }
    }

    pub fn begin_call(&mut self) {
        self.last_error = None;
    }

    pub fn take_last_error(&mut self) -> Option<String> {
        self.last_error.take()
    }

    pub fn write(&mut self, level: Level, text: &str) {
        let admitted = self.admit();
        if let Some(ring) = self.ring.as_ref().filter(|_| !admitted) {
            ring.held_back(1);
        }
        if !admitted && level != Level::Error {
            return;
        }
        let line = escaped(text);
        if admitted {
            let (deployment, partition) = (&*self.deployment, self.partition);
            match level {
                Level::Error => tracing::error!(deployment, partition, "{line}"),
                Level::Warn => tracing::warn!(deployment, partition, "{line}"),
                Level::Info => tracing::info!(deployment, partition, "{line}"),
                Level::Debug => tracing::debug!(deployment, partition, "{line}"),
            }
            if let Some(ring) = &self.ring {
                ring.push(partition, kept_as(level), &line);
            }
        }
        if level == Level::Error {
            self.last_error = Some(line);
        }
    }

    fn admit(&self) -> bool {
        if self.rate.take() {
            return true;
        }
        if let Some(metrics) = &self.metrics {
            metrics.log_lines_dropped.add(1);
        }
        if self.rate.may_say() {
            let (deployment, partition, lines_max) = (&*self.deployment, self.partition, self.rate.lines_max);
            tracing::warn!(
                deployment,
                partition,
                "the handler logs more than limits.log_lines ({lines_max}) a second; what is above is dropped, and counted as \
                 tidemill_log_lines_dropped"
            );
        }
        false
    }
}

fn kept_as(level: Level) -> telemetry::Level {
    match level {
        Level::Error => telemetry::Level::Error,
        Level::Warn => telemetry::Level::Warn,
        Level::Info => telemetry::Level::Info,
        Level::Debug => telemetry::Level::Debug,
    }
}

/// The text on one line of at most `LINE_BYTES_MAX` bytes, without anything that a terminal obeys.
fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LINE_BYTES_MAX));
    for char in text.chars() {
        let start = line.len();
        match is_obeyed(char) {
            true => line.extend(char.escape_unicode()),
            false => line.push(char),
        }
        if line.len() > LINE_BYTES_MAX {
            line.truncate(start);
            let _ = write!(line, "... ({} bytes)", text.len());
            break;
        }
    }
    line
}

/// Control characters, and those that turn the direction of what follows or end a line.
fn is_obeyed(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_short_line_whatever_the_guest_writes() {
        assert_eq!(escaped("a\nb\u{1b}[31m\u{202e}c"), "a\\u{a}b\\u{1b}[31m\\u{202e}c");
        for char in ["é", "\0", "\u{9b}"] {
            let long = escaped(&char.repeat(LINE_BYTES_MAX));
            assert!(long.ends_with(" bytes)") && long.len() < LINE_BYTES_MAX + 32, "{long}");
            assert!(!long.chars().any(char::is_control), "{long}");
        }
        assert_eq!(escaped(&"x".repeat(LINE_BYTES_MAX)).len(), LINE_BYTES_MAX);
    }

    #[test]
    fn a_flood_is_cut_to_the_deployments_lines_and_counted_but_the_last_error_is_kept() {
        const LINES: u32 = 100_000;
        let (rate, metrics) = (Arc::new(LogRate::new(10)), Arc::<TaskMetrics>::default());
        let log =
            |partition| GuestLog::new("d".into(), partition, Arc::clone(&rate), Some(Arc::clone(&metrics)));
        let begun = Instant::now();
        let ring = Arc::new(LogRing::new(telemetry::LogBounds { lines: 5, bytes: 1 << 20 }));
        let (_, before) = ring.kept(0, |_| true);
        let mut first = log(0).kept_in(Some(Arc::clone(&ring)));
        for line in 0..LINES {
            first.write(Level::Error, &line.to_string());
        }
        let seconds = begun.elapsed().as_secs() + 1;
        let passed = u64::from(LINES) - metrics.log_lines_dropped.get();
        assert!((10..=10 * (seconds + 1)).contains(&passed), "{passed} lines in {seconds} s");
        assert_eq!(first.take_last_error(), Some((LINES - 1).to_string()));
        let (kept, dropped, _) = ring.since(before, usize::MAX, |line| line.level == telemetry::Level::Error);
        assert_eq!(kept.len() as u64 + dropped, u64::from(LINES), "every lost line is counted");
        // Another task, and an instance made anew, have no lines of their own.
        let (before, begun) = (metrics.log_lines_dropped.get(), Instant::now());
        (0..100).for_each(|_| log(1).write(Level::Info, "x"));
        let may_pass = 10 * (begun.elapsed().as_secs() + 2);
        assert!(metrics.log_lines_dropped.get() + may_pass >= before + 100);
    }

    #[test]
    fn that_lines_are_dropped_is_said_once_and_not_for_every_line() {
        let rate = LogRate::new(0);
        assert_eq!((0..1_000).filter(|_| rate.may_say()).count(), 1);
    }
}
