//! What guests write to the log: shortened, escaped, and only so many lines a second, because a
//! guest may be wrong in a loop and its text may come from a record.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::abi::Level;

/// Longest line, in bytes of the guest's text.
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
}

impl GuestLog {
    pub fn new(deployment: Arc<str>, partition: i32) -> GuestLog {
        GuestLog { deployment, partition, window: Instant::now(), lines: 0, dropped: 0, last_error: None }
    }

    pub fn begin_call(&mut self) {
        self.last_error = None;
    }

    pub fn take_last_error(&mut self) -> Option<String> {
        self.last_error.take()
    }

    pub fn write(&mut self, level: Level, text: &str) {
        let admitted = self.admit();
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

/// At most `LINE_BYTES_MAX` bytes of the text, on one line, without control characters.
fn escaped(text: &str) -> String {
    let short = &text[..text.floor_char_boundary(LINE_BYTES_MAX)];
    let mut line = String::with_capacity(short.len());
    for char in short.chars() {
        if char.is_control() {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    if short.len() < text.len() {
        let _ = write!(line, "... ({} bytes)", text.len());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_short_line_whatever_the_guest_writes() {
        assert_eq!(escaped("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        let long = escaped(&"é".repeat(LINE_BYTES_MAX));
        assert!(long.ends_with("... (2048 bytes)") && long.len() < LINE_BYTES_MAX + 32, "{long}");
    }

    #[test]
    fn a_flood_is_cut_to_so_many_lines_but_the_last_error_is_kept() {
        let mut log = GuestLog::new("d".into(), 0);
        for line in 0..10 * LINES_MAX {
            log.write(Level::Error, &line.to_string());
        }
        assert_eq!(log.dropped, u64::from(9 * LINES_MAX));
        assert_eq!(log.take_last_error(), Some((10 * LINES_MAX - 1).to_string()));
    }
}
