//! Reads a range of one partition, whole records, outside any group.

use super::bounds;
use super::config::KafkaConfig;
use super::ffi::Message;
use super::reader::{PartitionReader, TO_THE_END};
use super::recovery::read_until;
use crate::ports::{SourceError, Stop, TopicRecord};
use crate::record::Offset;

/// Sees committed records only.
pub struct TopicScan {
    reader: PartitionReader,
    topic: String,
    partition: i32,
}

impl TopicScan {
    pub fn new(config: &KafkaConfig, topic: &str, partition: i32) -> Result<TopicScan, SourceError> {
        let reader = PartitionReader::new(config, "tidemill-scan", true, TO_THE_END)?;
        Ok(TopicScan { reader, topic: topic.to_owned(), partition })
    }

    /// Where the partition begins, and where it ends.
    pub fn bounds(&self) -> Result<(Offset, Offset), SourceError> {
        bounds(self.reader.raw().client(), &self.topic, self.partition, &Stop::never())
    }

    /// Reads from the first offset, which the log must have, until the position reaches the second; waits for
    /// transactions that are not decided. `apply` answers false to stop early.
    pub fn scan(
        &mut self,
        (from, to): (Offset, Offset),
        apply: &mut dyn FnMut(TopicRecord) -> bool,
    ) -> Result<(), SourceError> {
        if from >= to {
            return Ok(());
        }
        self.reader.open(&self.topic, self.partition, from)?;
        let result = read_until(&mut self.reader, to, &Stop::never(), &mut |message| {
            message.offset() < to.0 as i64 && apply(whole(message))
        });
        self.reader.close();
        result
    }
}

fn whole(message: &Message) -> TopicRecord {
    let mut headers = Vec::new();
    let has_headers = message.headers(&mut headers);
    TopicRecord {
        offset: Offset(message.offset() as u64),
        timestamp_ms: message.timestamp(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.value().map(<[u8]>::to_vec),
        headers: has_headers.then_some(headers),
    }
}
