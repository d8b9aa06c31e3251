//! Batches, and where each partition starts and stops, whoever fetches.

use std::time::{Duration, Instant};

use super::Consumer;
use crate::kafka::fetch::Fetcher;
use crate::kafka::ffi::KafkaError;
use crate::kafka::source_error;
use crate::ports::{Source, SourceError, Taken};
use crate::record::{InputPartition, Offset};

impl Source for Consumer {
    /// As the port says; what was appended to `out` counts even when the call fails. A partition
    /// that comes out as [`Taken::Failed`] stays stopped until it is started again.
    fn take(&mut self, wait: Duration, out: &mut Vec<Taken>) -> Result<(), SourceError> {
        let deadline = Instant::now() + wait;
        let mut outcome = Ok(());
        match &mut self.fetcher {
            Some(fetcher) => fetcher.tend(),
            None => {
                outcome = self.go_on();
                self.fetch_started();
            }
        }
        loop {
            if !self.raw.has_pending() {
                let has_arrived = || self.fetcher.as_ref().is_some_and(|fetcher| fetcher.has_arrived());
                self.raw.fill_wait(self.spec.batch_records, deadline, has_arrived);
            }
            self.serve_group(out)?;
            self.copy_pending(out)?;
            self.copy_fetched(out);
            // Everything taken may have been outdated; only the deadline ends an empty wait.
            if !out.is_empty() || Instant::now() >= deadline {
                return outcome;
            }
        }
    }

    fn listen(&mut self, wait: Duration, out: &mut Vec<Taken>) -> Result<(), SourceError> {
        match &mut self.fetcher {
            Some(fetcher) => fetcher.tend(),
            None => self.hold(),
        }
        self.raw.fill_wait(self.spec.batch_records, Instant::now() + wait, || false);
        self.serve_group(out)?;
        // Errors, and what librdkafka had fetched before it was held.
        self.copy_pending(out)
    }

    fn start(&mut self, partition: InputPartition, at: Offset) -> Result<(), SourceError> {
        let Some(index) = self.slot(partition) else {
            return Err(SourceError::Unavailable(format!("{partition:?} is not assigned")));
        };
        self.is_unanswered("cannot start a partition")?;
        self.stop_slot(index);
        let next = at.0 as i64;
        let epoch = self.spec.epochs.before(self.topic(partition), partition.partition, next);
        let run = match &mut self.fetcher {
            Some(fetcher) => Some(fetcher.start(partition, next, epoch)),
            None => {
                let told = |error: KafkaError| source_error("cannot start a partition", &error);
                self.start_messages(partition, at).map_err(told)?;
                None
            }
        };
        self.slots[index].run(next, run);
        Ok(())
    }

    fn stop(&mut self, partition: InputPartition) -> Result<(), SourceError> {
        let Some(index) = self.slot(partition) else { return Ok(()) };
        self.stop_slot(index);
        if self.fetcher.is_some() {
            return Ok(());
        }
        let list = self.list([(partition, 0)]);
        self.raw.pause(&list).map_err(|error| source_error("cannot stop a partition", &error))
    }

    fn position(&self, partition: InputPartition) -> Option<Offset> {
        let slot = &self.slots[self.slot(partition)?];
        if !slot.is_running() {
            return None;
        }
        let position = if self.fetcher.is_some() { slot.position } else { self.message_position(slot) };
        position.filter(|position| *position >= slot.next).map(|position| Offset(position as u64))
    }

    fn obstacle(&self) -> Option<String> {
        let of_fetching = self.fetcher.as_ref().and_then(Fetcher::obstacle);
        of_fetching.or_else(|| match self.membership.is_valid() {
            // A member is let in where its group is.
            true => None,
            false => self.raw.client().shared().shut_out().map(|error| error.to_string()),
        })
    }
}
