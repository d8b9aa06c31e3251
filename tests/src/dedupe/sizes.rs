//! What the inbox takes while it runs: rows of its topic, bytes of the stores on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{IDS, PARTITIONS};
use crate::reading::reading;

const LOOK_EVERY: Duration = Duration::from_millis(250);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Since the first look.
    pub at_ms: u64,
    /// Offsets that the inbox's topic has given out: how far the run is.
    pub ids: u64,
    /// Of those, the ones that are still there.
    pub rows: u64,
    pub bytes: u64,
}

/// Looks now and then, on a thread of its own.
pub struct Sizes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Size>>,
}

impl Sizes {
    pub fn start(bootstrap: &str, stores: Vec<PathBuf>) -> Result<Sizes> {
        let consumer: BaseConsumer = reading(bootstrap, "sizes", true).create()?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (began, mut sizes) = (Instant::now(), Vec::new());
            while !told.load(Ordering::Relaxed) {
                // A broker that does not answer is looked at again.
                if let Ok((ids, rows)) = topic(&consumer) {
                    let at_ms = began.elapsed().as_millis() as u64;
                    sizes.push(Size {
                        at_ms,
                        ids,
                        rows,
                        bytes: stores.iter().map(|store| bytes(store)).sum(),
                    });
                }
                std::thread::sleep(LOOK_EVERY);
            }
            sizes
        });
        Ok(Sizes { stop, thread })
    }

    pub fn finish(self) -> Vec<Size> {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread shows as too few looks.
        self.thread.join().unwrap_or_default()
    }
}

fn topic(consumer: &BaseConsumer) -> Result<(u64, u64)> {
    let (mut ids, mut rows) = (0, 0);
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(IDS, partition, ANSWER_MAX)?;
        ids += high.max(0) as u64;
        rows += (high - low).max(0) as u64;
    }
    Ok((ids, rows))
}

/// Of the tables below a directory, which may change meanwhile.
fn bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes(&entry.path()),
        Ok(_) if entry.path().extension().is_some_and(|kind| kind == "sst") => {
            entry.metadata().map_or(0, |file| file.len())
        }
        _ => 0,
    };
    entries.flatten().map(size).sum()
}
