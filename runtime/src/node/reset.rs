//! Offset reset: a deployment begins a new life at positions of an operator's choice.
//!
//! ```text
//!   paused, group empty -> resolve positions -> registry: new incarnation, its beginnings -> old group and changelog go
//! ```
//!
//! One entry of the log ends the old life and says where the new one begins; what the old one has in
//! Kafka goes as after a delete. Until it is gone the deployment cannot be resumed, so that no task ever
//! starts between the two. A reset that was interrupted is completed by the next one.
//!
//! State is that of a position, and a compacted changelog cannot give back an earlier one. So a
//! deployment with state only goes back to the beginning, without state. Whatever else belongs to a
//! position (parked records, the inbox) is wiped with it, in [`NodeRuntime::retire`].
//!
//! An inbox alone is no state of a position: it says what has had its effects. A deployment that keeps
//! nothing else goes anywhere and keeps it, so that what is handled again has no second effect. It does
//! not go back to records that are older than the inbox remembers.

use std::time::{SystemTime, UNIX_EPOCH};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::reset_request::To;

use super::handle::{ControlError, Handle};
use super::registered::Registered;
use crate::config::problem::Problem;
use crate::config::units;
use crate::kafka::admin::{AdminError, At, Topic};
use crate::record::Offset;

#[cfg(doc)]
use super::runtime::NodeRuntime;

impl Handle {
    pub fn reset(&self, request: proto::ResetRequest) -> Result<proto::ResetResponse, ControlError> {
        super::change::bounded("author", &request.author, super::change::AUTHOR_BYTES_MAX)?;
        let view = self.latest()?;
        if let Some(incarnation) = view.retiring(&request.name) {
            self.retire(&request.name, incarnation)?;
        }
        let current = self.registered(&request.name)?;
        super::change::expect(&view, &request.name, request.expected_revision)?;
        let to = request.to.ok_or_else(|| {
            ControlError::Invalid(vec![Problem::at("to", "say earliest, latest, an offset or a time")])
        })?;
        self.may_reset(&current, &to)?;
        let topics = self.inputs(&current)?;
        let beginnings = self.resolve(&topics, &to)?;
        let from = self.committed(&current, &topics)?;
        self.is_remembered(&current, &beginnings, &from)?;
        let wipes_state = current.keeps_state() && !current.keeps_only_ids();
        let answer = proto::ResetResponse { from, to: positions(&beginnings), wipes_state };
        if request.dry_run {
            return Ok(answer);
        }
        self.is_stopped(&current)?;
        let entry = proto::ResetEntry {
            name: current.name.clone(),
            expected_revision: current.revision,
            incarnation: uuid::Uuid::new_v4().simple().to_string(),
            partitions: topics.first().map_or(0, |topic| topic.partitions),
            beginnings: beginnings
                .into_iter()
                .map(|(topic, partition, offset)| proto::Beginning {
                    topic: topic.name.clone(),
                    topic_id: topic.id.to_string(),
                    partition,
                    offset: offset.0,
                })
                .collect(),
            author: request.author,
        };
        self.propose(&current.name, Entry::Reset(entry))?;
        self.retire(&current.name, &current.incarnation)?;
        Ok(answer)
    }

    fn may_reset(&self, current: &Registered, to: &To) -> Result<(), ControlError> {
        let name = &current.name;
        let is_bound = current.keeps_state() && !current.keeps_only_ids();
        if is_bound && !matches!(to, To::Earliest(_)) {
            return Err(ControlError::Precondition(format!(
                "{name} keeps state, and a compacted changelog cannot give back the state of another position: reset it \
                 to earliest, which wipes its state and its inbox, or deploy it under a fresh name with the `start:` you want"
            )));
        }
        Ok(())
    }

    /// Of a deployment that keeps its ids: what was handled and would be handled again is within the TTL.
    fn is_remembered(
        &self,
        current: &Registered,
        beginnings: &[(&Topic, i32, Offset)],
        committed: &[proto::InputPosition],
    ) -> Result<(), ControlError> {
        let inbox = current.spec().and_then(|spec| spec.inbox.as_ref()).filter(|inbox| inbox.id.is_some());
        let Some(inbox) = inbox.filter(|_| current.keeps_only_ids()) else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_ms = now.saturating_sub(inbox.ttl).as_millis() as i64;
        let partitions: Vec<(String, i32)> =
            beginnings.iter().map(|(topic, partition, _)| (topic.name.clone(), *partition)).collect();
        let remembered = self.node.admin.offsets(&partitions, At::Time(since_ms))?;
        let forgotten = beginnings.iter().zip(remembered).filter_map(|((topic, partition, to), from)| {
            let handled = committed.iter().find(|at| (&at.topic, at.partition) == (&topic.name, *partition));
            let first = from.0.min(handled.map_or(0, |at| at.offset));
            (to.0 < first).then(|| {
                Problem::at(
                    "to",
                    format!(
                        "{}/{partition} from {to} on was handled, and below {first} it is older than the inbox remembers (ttl {}): \
                         it would have its effects again; go back to {first} at most, or deploy it under a fresh name",
                        topic.name,
                        units::show_duration(inbox.ttl)
                    ),
                )
            })
        });
        let forgotten: Vec<Problem> = forgotten.collect();
        if forgotten.is_empty() { Ok(()) } else { Err(ControlError::Unmet(forgotten)) }
    }

    /// Nothing may commit for the old life any more.
    fn is_stopped(&self, current: &Registered) -> Result<(), ControlError> {
        let name = &current.name;
        if !current.paused {
            return Err(ControlError::Precondition(format!(
                "{name} runs: `tidemill pause {name}` first, then reset it, then `tidemill resume {name}`"
            )));
        }
        let group = self.node.group(name);
        let members = match self.node.admin.describe_group(&group) {
            Ok(description) => description.members,
            Err(AdminError::Missing { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        if members.is_empty() {
            return Ok(());
        }
        let names: Vec<String> =
            members.into_iter().map(|member| member.instance_id.unwrap_or(member.client_id)).collect();
        Err(ControlError::Precondition(format!(
            "group {group} still has members ({}): they leave within moments of a pause, or when their session ends; \
             try again",
            names.join(", ")
        )))
    }

    fn inputs(&self, current: &Registered) -> Result<Vec<Topic>, ControlError> {
        let names = current.topics();
        let found = self.node.admin.describe_topics(&names)?;
        let missing: Vec<&str> = names
            .iter()
            .zip(&found)
            .filter_map(|(name, topic)| topic.is_none().then_some(name.as_str()))
            .collect();
        match missing.as_slice() {
            [] => Ok(found.into_iter().flatten().collect()),
            missing => Err(ControlError::Precondition(format!(
                "the inputs {} do not exist any more",
                missing.join(", ")
            ))),
        }
    }

    /// The first record of each partition; an offset that no partition's log has is refused.
    fn resolve<'a>(
        &self,
        topics: &'a [Topic],
        to: &To,
    ) -> Result<Vec<(&'a Topic, i32, Offset)>, ControlError> {
        let places: Vec<(&Topic, i32)> = topics
            .iter()
            .flat_map(|topic| (0..topic.partitions).map(move |partition| (topic, partition)))
            .collect();
        let partitions: Vec<(String, i32)> =
            places.iter().map(|(topic, partition)| (topic.name.clone(), *partition)).collect();
        let offsets = |at| self.node.admin.offsets(&partitions, at);
        let found = match to {
            To::Earliest(_) => offsets(At::Start)?,
            To::Latest(_) => offsets(At::End)?,
            To::TimestampMs(ms) => offsets(At::Time(*ms))?,
            To::Offset(offset) => {
                let (starts, ends) = (offsets(At::Start)?, offsets(At::End)?);
                let outside = partitions.iter().zip(starts.iter().zip(&ends)).filter_map(
                    |((topic, partition), (start, end))| {
                        let is_inside = (start.0..=end.0).contains(offset);
                        (!is_inside).then(|| {
                            Problem::at(
                                "to",
                                format!("{topic}/{partition} holds {start} to {end}, not {offset}"),
                            )
                        })
                    },
                );
                let outside: Vec<Problem> = outside.collect();
                if !outside.is_empty() {
                    return Err(ControlError::Unmet(outside));
                }
                vec![Offset(*offset); partitions.len()]
            }
        };
        Ok(places
            .into_iter()
            .zip(found)
            .map(|((topic, partition), offset)| (topic, partition, offset))
            .collect())
    }

    /// Where the group stands now.
    fn committed(
        &self,
        current: &Registered,
        topics: &[Topic],
    ) -> Result<Vec<proto::InputPosition>, ControlError> {
        let partitions: Vec<(String, i32)> = topics
            .iter()
            .flat_map(|topic| (0..topic.partitions).map(|partition| (topic.name.clone(), partition)))
            .collect();
        let committed =
            match self.node.admin.group_offsets(&self.node.group(&current.name), Some(&partitions)) {
                Ok(committed) => committed,
                Err(AdminError::Missing { .. }) => Vec::new(),
                Err(error) => return Err(error.into()),
            };
        let shown = |at: crate::kafka::admin::GroupOffset| {
            let offset = at.offset?.0;
            Some(proto::InputPosition { topic: at.topic, partition: at.partition, offset })
        };
        Ok(committed.into_iter().filter_map(shown).collect())
    }
}

fn positions(beginnings: &[(&Topic, i32, Offset)]) -> Vec<proto::InputPosition> {
    let one = |(topic, partition, offset): &(&Topic, i32, Offset)| proto::InputPosition {
        topic: topic.name.clone(),
        partition: *partition,
        offset: offset.0,
    };
    beginnings.iter().map(one).collect()
}
