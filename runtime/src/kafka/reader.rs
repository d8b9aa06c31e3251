//! Reads one partition outside any group, from a given offset on.
//!
//! The position passes transaction markers, aborted records and what compaction removed: the
//! fetcher reports the end of the partition with the offset it has reached, whatever it found there.

use std::time::{Duration, Instant};

use super::config::KafkaConfig;
use super::ffi::consumer::Consumer;
use super::ffi::partitions::Partitions;
use super::ffi::{Code, KafkaError, Message};
use super::{is_damage, source_error};
use crate::ports::SourceError;
use crate::record::Offset;

/// Messages of one consume call: enough that the call costs nothing per record.
const BATCH: usize = 2_000;

/// How long a broker may hold back the answer to a fetch that finds nothing. A reader that follows
/// a log is woken by data, whatever this says.
pub(super) const FOLLOW: Duration = Duration::from_millis(500);

/// The same for a reader that wants to know that it has reached the end: where the last thing in a
/// log is a transaction marker, only the answer to a fetch that found nothing says so.
pub(super) const TO_THE_END: Duration = Duration::from_millis(20);

/// Why nothing comes of a partition of which nothing at all was heard.
const UNANSWERED: &str = "no broker that leads it answers";

pub(super) struct PartitionReader {
    raw: Consumer,
    topic: String,
    partition: i32,
    /// Next offset to hand out.
    position: i64,
    /// What has come instead of records since the last of them, and when.
    heard: Option<(Heard, Instant)>,
}

enum Heard {
    /// There is no more that may be read. Told once.
    End,
    /// It is tried again.
    Trouble(String),
}

impl PartitionReader {
    /// `committed` hides open and aborted transactions. `group` names whose committed offsets the
    /// handle may be asked for; no group is joined. `end_wait` is [`FOLLOW`] or [`TO_THE_END`].
    pub fn new(
        config: &KafkaConfig,
        group: &str,
        committed: bool,
        end_wait: Duration,
    ) -> Result<PartitionReader, SourceError> {
        let raw = Consumer::new(&config.reader(group, committed, end_wait), group)
            .map_err(|error| SourceError::Refused(error.to_string()))?;
        Ok(PartitionReader { raw, topic: String::new(), partition: 0, position: 0, heard: None })
    }

    pub fn raw(&self) -> &Consumer {
        &self.raw
    }

    /// Starts reading a partition, in place of what was read before.
    pub fn open(&mut self, topic: &str, partition: i32, from: Offset) -> Result<(), SourceError> {
        let list = Partitions::one(topic, partition, from.0 as i64);
        self.raw.assign(Some(&list)).map_err(|error| source_error(topic, &error))?;
        self.raw.discard_all();
        topic.clone_into(&mut self.topic);
        self.partition = partition;
        self.position = from.0 as i64;
        self.heard = None;
        Ok(())
    }

    /// Stops reading.
    pub fn close(&mut self) {
        let _ = self.raw.assign(None);
        self.raw.discard_all();
    }

    pub fn position(&self) -> Offset {
        Offset(self.position as u64)
    }

    /// What is read.
    pub fn place(&self) -> String {
        format!("{} [{}]", self.topic, self.partition)
    }

    /// Why nothing may have come since then, as far as the client has said.
    pub fn silence(&self, since: Instant) -> String {
        let since = self.heard.as_ref().map_or(since, |(_, at)| since.max(*at));
        let error = self.raw.client().shared().error_since(since);
        match (&self.heard, error) {
            (Some((Heard::Trouble(reason), _)), _) => reason.clone(),
            (Some((Heard::End, _)), None) => "is a transaction still open?".to_owned(),
            // It may be a broker's that has nothing to do with it.
            (Some((Heard::End, _)), Some(error)) => {
                format!("is a transaction still open, or its leader away? Kafka's client says: {error}")
            }
            (None, None) => UNANSWERED.to_owned(),
            (None, Some(error)) => format!("{UNANSWERED}: {error}"),
        }
    }

    /// Hands out what there is, waiting for the first of it. `apply` answers false to stop early,
    /// and so does this.
    pub fn poll(
        &mut self,
        wait: Duration,
        apply: &mut dyn FnMut(&Message) -> bool,
    ) -> Result<bool, SourceError> {
        if !self.raw.has_pending() {
            self.raw.fill_wait(BATCH, Instant::now() + wait, || false);
        }
        while let Some(message) = self.raw.front() {
            // Messages of a partition read earlier were fetched before it was given up.
            if message.partition() == self.partition && !message.is_error() {
                let go_on = message.offset() < self.position || {
                    self.position = message.offset() + 1;
                    self.heard = None;
                    apply(message)
                };
                self.raw.pop();
                if !go_on {
                    return Ok(false);
                }
                continue;
            }
            let event = (message.error(), message.partition(), message.offset(), message.topic());
            self.raw.pop();
            if let (Some(error), partition, offset, topic) = event {
                self.event(&error, (&topic, partition), offset)?;
            }
        }
        Ok(true)
    }

    fn event(&mut self, error: &KafkaError, of: (&str, i32), offset: i64) -> Result<(), SourceError> {
        if error.is(Code::RD_KAFKA_RESP_ERR__PARTITION_EOF) {
            if of == (self.topic.as_str(), self.partition) {
                self.position = self.position.max(offset);
                self.heard = Some((Heard::End, Instant::now()));
            }
            return Ok(());
        }
        if let Some(fatal) = self.raw.client().fatal() {
            return Err(SourceError::Fatal(fatal.to_string()));
        }
        if is_damage(error) {
            return Err(damaged(&self.topic, self.partition, offset, &error.to_string()));
        }
        match source_error(&self.place(), error) {
            // Retried inside librdkafka; whoever waits has a deadline.
            SourceError::Unavailable(reason) => {
                tracing::debug!(%reason, "reading a partition");
                self.heard = Some((Heard::Trouble(reason), Instant::now()));
                Ok(())
            }
            other => Err(other),
        }
    }
}

/// That a batch of a log cannot be read, whoever reads, and what to do about it.
pub(super) fn damaged(topic: &str, partition: i32, offset: i64, why: &str) -> SourceError {
    SourceError::Refused(format!(
        "{topic} [{partition}] cannot be read at offset {offset}: the batch of records there is damaged, on the broker's disk or on the \
         way; once it is whole (a replica that is whole can be made leader, or its log segment copied) it is to be tried again: \
         `tidemill restart NAME --partition {partition}`. Kafka's client says: {why}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_nothing_comes_is_what_the_client_has_said_since() {
        let began = Instant::now();
        let nowhere = KafkaConfig::new("127.0.0.1:1");
        let mut reader = PartitionReader::new(&nowhere, "g", true, TO_THE_END).expect("a client");
        reader.open("t", 3, Offset(0)).expect("it begins");
        assert_eq!((reader.place().as_str(), reader.silence(began).as_str()), ("t [3]", UNANSWERED));
        while reader.silence(began) == UNANSWERED {
            assert!(began.elapsed() < Duration::from_secs(20), "it has not said that nobody is there");
            reader.poll(Duration::from_millis(100), &mut |_| true).expect("it is tried again");
        }
        let said = reader.silence(began);
        assert!(said.contains("InfraConnectionError"), "{said}");
    }
}
