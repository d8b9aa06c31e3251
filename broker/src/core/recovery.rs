//! From journal and logs to a `Core`, and from a `Core` to the entries that lead to it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use uuid::Uuid;

use super::fetch::Waiting;
use super::time::{Timer, Timers};
use super::topics::{Topic, Topics, topic_directory};
use super::{Core, Identity, Now};
use crate::config::{Config, Fsync};
use crate::error::Error;
use crate::group::{Effects, Group, Membership};
use crate::journal::{Entry, Journal};
use crate::log::Log;
use crate::settings::Settings;

/// A topic as the journal knows it.
struct Known {
    name: String,
    partitions: i32,
    overrides: BTreeMap<String, String>,
}

/// What replaying the journal yields besides the core's own tables.
#[derive(Default)]
struct Replay {
    topics: HashMap<Uuid, Known>,
    starts: HashMap<(Uuid, i32), i64>,
    memberships: HashMap<String, Membership>,
}

impl Core {
    /// Builds the state: from the journal if there is a data directory, else empty.
    pub fn open(config: Config, mut identity: Identity, now: Now) -> Result<Core, Error> {
        let (journal, entries) = match &config.data_dir {
            None => (None, Vec::new()),
            Some(data) => {
                let (journal, entries) = Journal::open(data.join("metadata.journal"), config.fsync)?;
                (Some(journal), entries)
            }
        };
        match entries.first() {
            Some(Entry::Cluster { id, .. }) => identity.cluster_id = id.clone(),
            _ => identity.cluster_id = Uuid::new_v4().simple().to_string()[..22].to_owned(),
        }
        let mut core = Core {
            config,
            identity,
            topics: Topics::default(),
            groups: HashMap::new(),
            transactions: HashMap::new(),
            remaining: HashMap::new(),
            next_producer_id: 0,
            reserved_producer_ids: 0,
            memory_bytes: 0,
            journal,
            waiting: Waiting::default(),
            timers: Timers::default(),
            replies: Vec::new(),
        };
        let fresh = entries.is_empty();
        let mut replay = Replay::default();
        for entry in entries {
            core.replay(entry, &mut replay, now);
        }
        core.next_producer_id = core.reserved_producer_ids;
        if fresh {
            let id = core.identity.cluster_id.clone();
            // Without it the directory would get another id at the next start; nothing worse.
            let _ = core.record(&Entry::Cluster { version: 1, id });
        }
        core.open_topics(replay.topics, &replay.starts, now)?;
        core.restore_groups(replay.memberships, now);
        core.resume_transactions(now);
        core.timers.set(now.mono, Timer::AbortScan);
        core.timers.set(now.mono, Timer::Maintenance);
        Ok(core)
    }

    /// Applies one entry, just as the request did that wrote it.
    fn replay(&mut self, entry: Entry, replay: &mut Replay, now: Now) {
        match entry {
            Entry::Cluster { .. } => {}
            Entry::Topic { name, id, partitions, settings } => {
                replay.topics.insert(id, Known { name, partitions, overrides: settings });
            }
            Entry::TopicDeleted { id } => {
                if let Some(known) = replay.topics.remove(&id) {
                    self.groups.values_mut().for_each(|group| group.offsets.delete_topic(&known.name));
                }
            }
            Entry::LogStart { id, partition, offset } => {
                replay.starts.insert((id, partition), offset);
            }
            Entry::ProducerIds { next } => self.reserved_producer_ids = next,
            Entry::Group { group, membership } => {
                self.replayed_group(&group, now);
                replay.memberships.insert(group, membership);
            }
            Entry::GroupDeleted { group } => {
                self.groups.remove(&group);
                replay.memberships.remove(&group);
            }
            Entry::Offsets { group, offsets } => {
                let group = self.replayed_group(&group, now);
                offsets.into_iter().for_each(|committed| group.offsets.commit(committed));
            }
            Entry::OffsetsDeleted { group, partitions } => {
                let group = self.replayed_group(&group, now);
                for (topic, partition) in partitions {
                    group.offsets.delete(&topic, partition);
                }
            }
            Entry::PendingOffsets { group, producer_id, offsets } => {
                let group = self.replayed_group(&group, now);
                offsets.into_iter().for_each(|c| group.offsets.commit_pending(producer_id, c));
            }
            Entry::OffsetsDecided { group, producer_id, commit } => {
                self.replayed_group(&group, now).offsets.decide(producer_id, commit);
            }
            Entry::Transaction { id, state } => {
                self.transactions.insert(id, state);
            }
        }
    }

    fn replayed_group(&mut self, group: &str, now: Now) -> &mut Group {
        self.groups.entry(group.to_owned()).or_insert_with(|| Group::new(now.wall))
    }

    fn open_topics(
        &mut self,
        known: HashMap<Uuid, Known>,
        starts: &HashMap<(Uuid, i32), i64>,
        now: Now,
    ) -> Result<(), Error> {
        let sync = self.config.fsync == Fsync::EveryWrite;
        for (id, Known { name, partitions, overrides }) in known {
            let mut logs = Vec::new();
            for partition in 0..partitions {
                let Some(directory) = self.partition_directory(id, partition) else { continue };
                let failed = |source| Error::Directory { path: directory.clone(), source };
                std::fs::create_dir_all(&directory).map_err(failed)?;
                let start = starts.get(&(id, partition)).copied().unwrap_or(0);
                logs.push(Log::open(directory, start, sync, now.wall)?);
            }
            let settings = Settings::new(&overrides);
            self.topics.insert(id, Topic { name, overrides, settings, partitions: logs });
        }
        self.remove_strays();
        Ok(())
    }

    /// Removes directories of topics that were deleted or never got into the journal.
    fn remove_strays(&self) {
        let Some(data) = &self.config.data_dir else { return };
        let Ok(entries) = std::fs::read_dir(data.join("topics")) else { return };
        for entry in entries.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse::<Uuid>().ok());
            let stray = id.filter(|id| self.topics.get(*id).is_none());
            if let Some(id) = stray {
                let path: PathBuf = topic_directory(data, id);
                if let Err(error) = std::fs::remove_dir_all(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a deleted topic");
                }
            }
        }
    }

    fn restore_groups(&mut self, memberships: HashMap<String, Membership>, now: Now) {
        for (group_id, membership) in memberships {
            let mut effects = Effects::default();
            let Some(group) = self.groups.get_mut(&group_id) else { continue };
            group.restore(membership, now.mono, &mut effects);
            self.carry_out(&group_id, effects, now);
        }
    }

    /// Goes on with transactions that were decided when the broker stopped. Open ones stay open
    /// until their time-out or their producer's return.
    fn resume_transactions(&mut self, now: Now) {
        let decided = self.transactions.iter().filter(|(_, t)| t.state.preparing().is_some());
        let decided: Vec<_> = decided.map(|(id, t)| (id.clone(), t.clone())).collect();
        for (id, transaction) in decided {
            self.begin_markers(&id, &transaction);
            self.write_markers(&id, now);
        }
    }

    /// The shortest journal that leads to this state.
    pub(super) fn snapshot(&self) -> Vec<Entry> {
        let id = self.identity.cluster_id.clone();
        let mut entries =
            vec![Entry::Cluster { version: 1, id }, Entry::ProducerIds { next: self.reserved_producer_ids }];
        for (id, topic) in self.topics.iter() {
            entries.push(Entry::Topic {
                name: topic.name.clone(),
                id,
                partitions: topic.partitions.len() as i32,
                settings: topic.overrides.clone(),
            });
            for (partition, log) in topic.partitions.iter().enumerate() {
                if log.start() > 0 {
                    let partition = partition as i32;
                    entries.push(Entry::LogStart { id, partition, offset: log.start() });
                }
            }
        }
        for (name, group) in &self.groups {
            let membership = group.settled.clone();
            entries.push(Entry::Group { group: name.clone(), membership });
            let offsets = group.offsets.iter().cloned().collect();
            entries.push(Entry::Offsets { group: name.clone(), offsets });
            for (producer_id, offsets) in group.offsets.pending() {
                entries.push(Entry::PendingOffsets { group: name.clone(), producer_id, offsets });
            }
        }
        for (id, state) in &self.transactions {
            entries.push(Entry::Transaction { id: id.clone(), state: state.clone() });
        }
        entries
    }
}
