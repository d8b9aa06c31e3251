//! What runs in the background: retention, expiry, a smaller journal, and steps of compaction.

use std::io;

use uuid::Uuid;

use super::time::Timer;
use super::topics::Topic;
use super::{Core, Now};
use crate::journal::Entry;
use crate::log::{Cleaned, Job};

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

    /// Partitions for which a compaction pass is worth it.
    pub fn compaction_due(&self, now: Now) -> Vec<(Uuid, i32)> {
        let due = |(id, topic): (Uuid, &Topic)| {
            let logs = topic.partitions.iter().enumerate().filter(|_| topic.settings.compact);
            let due = logs.filter(|(_, log)| log.compaction_due(&topic.settings, now.wall));
            due.map(|(index, _)| (id, index as i32)).collect::<Vec<_>>()
        };
        self.topics.iter().flat_map(due).collect()
    }

    /// Closes the open segments of all compacted topics and returns their partitions.
    pub fn close_compacted(&mut self) -> io::Result<Vec<(Uuid, i32)>> {
        let mut closed = Vec::new();
        for (id, topic) in self.topics.iter_mut().filter(|(_, topic)| topic.settings.compact) {
            for (index, log) in topic.partitions.iter_mut().enumerate() {
                log.roll()?;
                closed.push((id, index as i32));
            }
        }
        Ok(closed)
    }

    /// A compaction pass over a partition, to be run without the lock.
    pub fn plan_compaction(&self, (id, partition): (Uuid, i32), now: Now) -> Option<Job> {
        let settings = &self.topics.get(id)?.settings;
        Some(self.topics.log(id, partition)?.plan(settings, now.wall))
    }

    /// Puts the result of a pass in place. The topic may have been deleted meanwhile.
    pub fn apply_compaction(&mut self, (id, partition): (Uuid, i32), cleaned: Cleaned) -> io::Result<()> {
        match self.topics.log_mut(id, partition) {
            Some((log, _)) => log.apply(cleaned),
            None => Ok(()),
        }
    }

    /// Forces everything to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        for (_, topic) in self.topics.iter_mut() {
            for log in &mut topic.partitions {
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
        let rewritten = self.journal.as_mut().map_or(Ok(()), |journal| journal.rewrite(&entries));
        if let Err(error) = rewritten {
            tracing::error!(%error, "cannot rewrite the metadata journal");
        }
    }
}
