//! What runs in the background: retention, compaction, expiry, a smaller journal.

use std::io;

use super::time::Timer;
use super::{Core, Now};
use crate::journal::Entry;

impl Core {
    /// One background pass.
    pub(super) fn maintain(&mut self, now: Now) {
        let interval = self.config.maintenance_interval.as_millis() as u64;
        self.timers.set(now.mono + interval.max(1), Timer::Maintenance);
        let expired_before = now.wall - self.config.producer_expiry.as_millis() as i64;
        let mut moved = Vec::new();
        for (id, topic) in self.topics.iter_mut() {
            for (index, log) in topic.partitions.iter_mut().enumerate() {
                log.producers.expire(expired_before);
                match log.retain(&topic.settings, now.wall) {
                    Ok(false) => {}
                    Ok(true) => moved.push((id, index as i32, log.start())),
                    Err(error) => tracing::error!(%error, topic = %topic.name, "retention failed"),
                }
                if topic.settings.compact && log.compaction_due(&topic.settings, now.wall) {
                    if let Err(error) = log.compact(&topic.settings, now.wall) {
                        tracing::error!(%error, topic = %topic.name, "compaction failed");
                    }
                }
            }
        }
        for (id, partition, offset) in moved {
            let _ = self.record(&Entry::LogStart { id, partition, offset });
            self.wake(id, partition);
        }
        self.memory_bytes = self.topics.iter().flat_map(|(_, t)| &t.partitions).map(|log| log.size()).sum();
        self.groups.retain(|_, group| !group.forgettable());
        self.shrink_journal();
    }

    /// Closes all segments of compacted topics and compacts what may be compacted.
    pub fn compact_now(&mut self, now: Now) -> io::Result<()> {
        for (_, topic) in self.topics.iter_mut() {
            if topic.settings.compact {
                for log in &mut topic.partitions {
                    log.roll()?;
                    log.compact(&topic.settings, now.wall)?;
                }
            }
        }
        Ok(())
    }

    /// Forces everything to the disk.
    pub fn sync(&self) -> io::Result<()> {
        for (_, topic) in self.topics.iter() {
            for log in &topic.partitions {
                log.sync()?;
            }
        }
        self.journal.as_ref().map_or(Ok(()), |journal| journal.sync())
    }

    /// Bytes of all logs, as of the last pass plus what was appended since.
    pub(super) fn memory_used(&self) -> u64 {
        self.memory_bytes
    }

    fn shrink_journal(&mut self) {
        if !self.journal.as_ref().is_some_and(|journal| journal.rewrite_due()) {
            return;
        }
        let entries = self.snapshot();
        if let Some(journal) = &mut self.journal {
            if let Err(error) = journal.rewrite(&entries) {
                tracing::error!(%error, "cannot rewrite the metadata journal");
            }
        }
    }
}
