//! What a task is recovered from: a reader of its group's offsets and its logs, and what the registry knows of where it
//! began.

use std::sync::Arc;

use tidemill_proto::v1::StartedEntry;
use tidemill_proto::v1::control_entry::Entry;

use super::{Asked, Context};
use crate::config::deployment::Start as StartRule;
use crate::kafka::admin::{At, Topic};
use crate::kafka::recovery::{Impatient, LogReader, Logs, Untouched};
use crate::node::clients::restore_kafka;
use crate::ports::{Recovery, SourceError, Stop};
use crate::task::recovery::{Known, Started};

impl Context {
    /// What the task is recovered from.
    pub(super) fn source(self: &Arc<Self>, asked: &Asked) -> Result<Impatient, SourceError> {
        let (partition, stop) = (asked.partition, asked.stop.clone());
        let source = self.ask(&asked.stop, move |context| context.connect(partition, &stop))??;
        Ok(Impatient::new(source, asked.stop.clone()))
    }

    fn connect(&self, partition: i32, stop: &Stop) -> Result<Box<dyn Recovery>, SourceError> {
        if self.is_untouched(partition) {
            return Ok(Box::new(Untouched));
        }
        let revision = &self.revision;
        let inputs = revision.inputs.iter().map(|input| input.topic.clone()).collect();
        let logs = Logs {
            changelog: revision.changelog.as_ref().map(|changelog| changelog.topic.clone()),
            inbox: revision.inbox.clone(),
        };
        let reader = LogReader::new(&restore_kafka(&self.node), &revision.group, inputs, logs)?;
        Ok(Box::new(reader.telling(self.node.epochs.of(&revision.group)).until(stop)))
    }

    /// True for a task that keeps nothing and has never begun, if its group has no offset for it either. Nobody can
    /// commit one meanwhile: whoever does has the partition, and has told the registry before where it begins.
    fn is_untouched(&self, partition: i32) -> bool {
        let Known { started, first_commit } = self.known(partition);
        let has_begun = started.iter().any(Option::is_some) || first_commit.contains(&true);
        if has_begun || !self.is_stateless() {
            return false;
        }
        let inputs = self.revision.inputs.iter();
        let inputs: Vec<(String, i32)> = inputs.map(|input| (input.topic.clone(), partition)).collect();
        match self.node.admin.stable_group_offsets(&self.revision.group, &inputs) {
            Ok(found) => found.len() == inputs.len() && found.iter().all(|found| found.offset.is_none()),
            Err(error) => {
                let deployment = &self.revision.registered.name;
                tracing::debug!(deployment, partition, %error, "offsets are asked for by a client of its own");
                false
            }
        }
    }

    /// That this life of the deployment began with this changelog, unless the registry knows that. For tasks that have
    /// committed to it: one that was only found may be the former life's, which is about to go.
    pub(super) fn changelog_began(&self) -> Result<Option<Entry>, String> {
        let registered = &self.revision.registered;
        let Some(changelog) = &self.revision.changelog else { return Ok(None) };
        if self.node.control_log.view().began_with(&registered.incarnation, &changelog.topic).is_some() {
            return Ok(None);
        }
        let found = self.node.admin.describe_topics(std::slice::from_ref(&changelog.topic));
        let found = found.map_err(|error| error.to_string())?.into_iter().flatten().next();
        // Brokers without ids of topics have nothing to tell; of another one, whoever commits to it tells.
        let is_it = |found: &Topic| !found.id.is_nil() && found.id.to_string() == changelog.topic_id;
        Ok(found.filter(is_it).map(|_| {
            Entry::Started(StartedEntry {
                deployment: registered.name.clone(),
                incarnation: registered.incarnation.clone(),
                topic: changelog.topic.clone(),
                topic_id: changelog.topic_id.clone(),
                ..StartedEntry::default()
            })
        }))
    }

    pub(super) fn known(&self, partition: i32) -> Known {
        let view = self.node.control_log.view();
        let incarnation = &self.revision.registered.incarnation;
        let started = |topic: &str| {
            let began = view.started(incarnation, topic, partition)?;
            Some(Started { topic_id: began.topic_id.clone(), offset: began.offset })
        };
        Known {
            started: self.revision.inputs.iter().map(|input| started(&input.topic)).collect(),
            first_commit: self
                .revision
                .inputs
                .iter()
                .map(|input| view.has_committed(incarnation, &input.topic, partition))
                .collect(),
        }
    }

    /// Resolves `start:` to an offset and writes it to the registry, where the first answer wins.
    pub(super) fn resolve(&self, partition: i32, inputs: &[u16]) -> Result<(), String> {
        let registered = &self.revision.registered;
        for &input in inputs {
            let Some(input) = self.revision.inputs.get(usize::from(input)) else { continue };
            // A partition that was added to the topic since: nothing of it may be missed.
            let at = match input.start {
                _ if partition >= registered.first_partitions => At::Start,
                StartRule::Earliest => At::Start,
                StartRule::Latest => At::End,
                StartRule::Timestamp(ms) => At::Time(ms),
            };
            let offsets = self.node.admin.offsets(&[(input.topic.clone(), partition)], at);
            let offset = match offsets {
                Ok(offsets) => offsets.first().copied().unwrap_or_default(),
                Err(error) => return Err(error.to_string()),
            };
            let entry = StartedEntry {
                deployment: registered.name.clone(),
                incarnation: registered.incarnation.clone(),
                topic: input.topic.clone(),
                topic_id: input.topic_id.clone(),
                partition,
                offset: offset.0,
            };
            self.node.control_log.propose(Entry::Started(entry)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
