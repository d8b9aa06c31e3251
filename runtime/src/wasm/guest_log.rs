//! What guests write to the log: shortened, escaped, and only so many lines a second, because a
//! guest may be wrong in a loop and its text may come from a record.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::abi::Level;
use crate::telemetry::{self, LogRing};

/// Longest line, in bytes as it is kept and shown; what says that it was cut comes on top.
const LINE_BYTES_MAX: usize = 1024;

/// Lines a second of one task.
const LINES_MAX: u32 = 100;

const WINDOW: Duration = Duration::from_secs(1);

/// One task's share of the log.
#[derive(Debug)]
pub struct GuestLog {
    deployment: Arc<str>,
    partition: i32,
    window: Instant,
    lines: u32,
    dropped: u64,
    /// The last error of the call in progress: a panic says there what the trap cannot.
    last_error: Option<String>,
    /// Where lines are kept for whoever asks; none for a module that is only tried out.
    ring: Option<Arc<LogRing>>,
}

impl GuestLog {
    pub fn new(deployment: Arc<str>, partition: i32) -> GuestLog {
        GuestLog {
            deployment,
            partition,
            window: Instant::now(),
            lines: 0,
            dropped: 0,
            last_error: None,
            ring: None,
        }
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

    fn admit(&mut self) -> bool {
        if self.window.elapsed() >= WINDOW {
            if self.dropped > 0 {
                let (deployment, partition, dropped) = (&*self.deployment, self.partition, self.dropped);
                tracing::warn!(
                    deployment,
                    partition,
                    dropped,
                    "the handler logs too much; lines were dropped"
                );
            }
            (self.window, self.lines, self.dropped) = (Instant::now(), 0, 0);
        }
        self.lines = self.lines.saturating_add(1);
        let admitted = self.lines <= LINES_MAX;
        self.dropped += u64::from(!admitted);
        admitted
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
    fn a_flood_is_cut_to_so_many_lines_but_the_last_error_is_kept() {
        let ring = Arc::new(LogRing::new(telemetry::LogBounds { lines: 5, bytes: 1 << 20 }));
        let mut log = GuestLog::new("d".into(), 0).kept_in(Some(Arc::clone(&ring)));
        let (_, before) = ring.kept(0, |_| true);
        for line in 0..10 * LINES_MAX {
            log.write(Level::Error, &line.to_string());
        }
        assert_eq!(log.dropped, u64::from(9 * LINES_MAX));
        assert_eq!(log.take_last_error(), Some((10 * LINES_MAX - 1).to_string()));
        let (kept, dropped, _) = ring.since(before, usize::MAX, |line| line.level == telemetry::Level::Error);
        assert_eq!((kept.len(), dropped), (5, u64::from(10 * LINES_MAX) - 5), "every lost line is counted");
    }
}
