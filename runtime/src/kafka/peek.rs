//! Looks at single records: how old is the one that a partition continues with?

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::config::KafkaConfig;
use super::reader::{PartitionReader, TO_THE_END};
use crate::ports::SourceError;
use crate::record::Offset;

/// A look that takes longer has no answer: whoever asks wants it now.
const LOOK_WAIT: Duration = Duration::from_millis(500);

/// One at a time.
pub struct Peek {
    reader: Mutex<PartitionReader>,
}

impl Peek {
    pub fn new(config: &KafkaConfig) -> Result<Peek, SourceError> {
        Ok(Peek { reader: Mutex::new(PartitionReader::new(config, "tidemill-peek", true, TO_THE_END)?) })
    }

    /// Timestamp of the first committed record at or after an offset, milliseconds since the epoch;
    /// none when there is none, or no answer in time.
    pub fn timestamp_ms(&self, topic: &str, partition: i32, at: Offset) -> Option<i64> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.open(topic, partition, at).ok()?;
        let deadline = Instant::now() + LOOK_WAIT;
        let mut found = None;
        while found.is_none() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let polled = reader.poll(left, &mut |message| {
                found = Some(message.timestamp());
                false
            });
            if polled.is_err() {
                break;
            }
        }
        reader.close();
        found.filter(|&timestamp_ms| timestamp_ms >= 0)
    }
}
