//! What the inbox takes while it runs: rows of its topic, bytes of the stores on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;

use super::{IDS, PARTITIONS};
use crate::reading::{assign, reading};

const LOOK_EVERY: Duration = Duration::from_millis(250);
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What has been fetched is there at once.
const POLL_MAX: Duration = Duration::from_millis(1);
/// First byte of the key of a record of several ids (docs/formats/topics.md).
const PACKED: u8 = 0x08;

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Since the first look.
    pub at_ms: u64,
    /// Ids that were written to the inbox's topic: how far the run is.
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
        let mut topic = Topic::read(bootstrap)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (began, mut sizes) = (Instant::now(), Vec::new());
            while !told.load(Ordering::Relaxed) {
                // A broker that does not answer is looked at again.
                if let Ok((ids, rows)) = topic.look() {
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

/// The inbox's topic, read along: how many ids a record has is in its key.
struct Topic {
    consumer: BaseConsumer,
    /// By partition: the offset of each record, and how many ids there are up to its end.
    records: Vec<Vec<(i64, u64)>>,
}

impl Topic {
    fn read(bootstrap: &str) -> Result<Topic> {
        // What is trimmed before it is read is passed over.
        let consumer: BaseConsumer =
            reading(bootstrap, "sizes", true).set("auto.offset.reset", "earliest").create()?;
        assign(&consumer, IDS, 0..PARTITIONS, Offset::Beginning)?;
        Ok(Topic { consumer, records: vec![Vec::new(); PARTITIONS as usize] })
    }

    /// How many ids have been written, and how many of them are still there.
    fn look(&mut self) -> Result<(u64, u64)> {
        // An error ends it for now; librdkafka goes on by itself.
        while let Some(Ok(record)) = self.consumer.poll(POLL_MAX) {
            let ids = match record.key() {
                Some(&[PACKED, high, low]) => u64::from(u16::from_be_bytes([high, low])),
                _ => 1,
            };
            let records = &mut self.records[record.partition() as usize];
            let before = records.last().map_or(0, |&(_, ids)| ids);
            records.push((record.offset(), before + ids));
        }
        let (mut ids, mut rows) = (0, 0);
        for (partition, records) in self.records.iter().enumerate() {
            let (low, _) = self.consumer.fetch_watermarks(IDS, partition as i32, ANSWER_MAX)?;
            let trimmed = records.partition_point(|&(offset, _)| offset < low);
            let below = |records: &[(i64, u64)]| records.last().map_or(0, |&(_, ids)| ids);
            ids += below(records);
            rows += below(records) - below(&records[..trimmed]);
        }
        Ok((ids, rows))
    }
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
