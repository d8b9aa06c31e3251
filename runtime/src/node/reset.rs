//! Offset reset: a deployment begins a new life at positions of an operator's choice.
//!
//! ```text
//!   paused, group empty -> resolve positions -> registry: new incarnation, its beginnings -> old group and changelog go
//! ```
//!
//! One entry of the log ends the old life and says where the new one begins; what the old one has in
//! Kafka goes as after a delete. Until it is gone the deployment cannot be resumed, so that no task ever
//! starts between the two. A reset that was interrupted is completed by the next one; a dry run only says so.
//!
//! State is that of a position, and a compacted changelog cannot give back an earlier one. So a
//! deployment with state only goes back to the beginning, without state. Whatever else belongs to a
//! position (parked records, the inbox) is wiped with it, in [`NodeRuntime::retire`]. Rows that an earlier version of
//! the life left in the changelog are state as well: whether they are there still nobody knows without a task.
//!
//! An inbox alone is no state of a position: it says what has had its effects. A deployment that keeps
//! nothing else goes anywhere and keeps it, so that what is handled again has no second effect. It does
//! not go back to records that are older than the inbox remembers.
//!
//! Going forward loses what was not handled, so it is only done for a request that accepts the loss.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::reset_request::To;

use super::change::{AUTHOR_BYTES_MAX, expect, refuse, too_long};
use super::handle::{ControlError, Handle};
use super::registered::Registered;
use super::registry::Registry;
use crate::config::problem::Problem;
use crate::config::units;
use crate::kafka::admin::{AdminError, At, Topic};
use crate::record::Offset;
use crate::task::CLOCK_SLACK_MS;

#[cfg(doc)]
use super::runtime::NodeRuntime;

impl Handle {
    pub fn reset(&self, request: proto::ResetRequest) -> Result<proto::ResetResponse, ControlError> {
        let long = too_long("author", &request.author, AUTHOR_BYTES_MAX);
        let Some(to) = request.to.filter(is_somewhere) else {
            let nowhere = Problem::at("to", "say earliest: true, latest: true, an offset or a time");
            return Err(ControlError::Invalid(long.into_iter().chain([nowhere]).collect()));
        };
        refuse(long)?;
        let view = self.latest()?;
        let interrupted = view.retiring(&request.name);
        if let Some(incarnation) = interrupted.filter(|_| !request.dry_run) {
            self.retire(&request.name, incarnation)?;
        }
        let current = self.registered_in(&view, &request.name)?;
        expect(&view, &request.name, request.expected_revision)?;
        self.may_reset(&current, &to)?;
        let topics = self.inputs(&current)?;
        let beginnings = self.resolve(&topics, &to)?;
        // What the group still says then is of the life before.
        let from = match interrupted {
            Some(_) => Vec::new(),
            None => self.committed(&current, &topics)?,
        };
        self.is_remembered(&view, &current, &beginnings, &from)?;
        let skipped = self.skipped(&view, &current, &beginnings, &from)?;
        let wipes_state = current.keeps_state() && !current.keeps_only_ids();
        let to = positions(&beginnings);
        let (skips, completes) = (skipped.records, interrupted.is_some());
        let answer = proto::ResetResponse { from, to, wipes_state, skipped: skips, completes };
        if request.dry_run {
            return Ok(answer);
        }
        self.is_stopped(&current)?;
        skipped.is_accepted(&current.name, request.accept_loss)?;
        if skipped.records > 0 {
            let (records, author) = (skipped.records, &request.author);
            tracing::warn!(deployment = current.name, records, author, "a reset passes over records");
        }
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
        if !is_bound || matches!(to, To::Earliest(_)) {
            return Ok(());
        }
        Err(ControlError::Precondition(if current.keeps_only_left_rows() {
            format!(
                "rows of an outbox, or parked records, of an earlier version of {name} may lie in its changelog, which a reset \
                 deletes: to have them delivered or handled, deploy a version that does first; then reset it to earliest, \
                 which wipes what is left, and its inbox, or deploy it under a fresh name with the `start:` you want"
            )
        } else {
            format!(
                "{name} keeps state, and a compacted changelog cannot give back the state of another position: reset it \
                 to earliest, which wipes its state and its inbox, or deploy it under a fresh name with the `start:` you want"
            )
        }))
    }

    /// Of a deployment that keeps its ids: what was handled and would be handled again is within the TTL.
    fn is_remembered(
        &self,
        view: &Registry,
        current: &Registered,
        beginnings: &[(&Topic, i32, Offset)],
        committed: &[proto::InputPosition],
    ) -> Result<(), ControlError> {
        let inbox = current.spec().and_then(|spec| spec.inbox.as_ref()).filter(|inbox| inbox.id.is_some());
        let Some(inbox) = inbox.filter(|_| current.keeps_only_ids()) else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_ms = remembered_since_ms(now, inbox.ttl);
        let remembered = self.node.admin.offsets(&places(beginnings), At::Time(since_ms))?;
        let forgotten = beginnings.iter().zip(remembered).filter_map(|(&(topic, partition, to), from)| {
            let handled = handled_to(view, &current.incarnation, (topic, partition), committed);
            let first = handled.map_or(from, |handled| from.min(handled));
            (to < first).then(|| {
                Problem::at(
                    "to",
                    format!(
                        "{}/{partition} from {to} on was handled, or may have been, and below {first} it is older than the \
                         inbox remembers (ttl {}): it would have its effects again; go back to {first} at most, or deploy it under a fresh name",
                        topic.name,
                        units::show_duration(inbox.ttl)
                    ),
                )
            })
        });
        let forgotten: Vec<Problem> = forgotten.collect();
        if forgotten.is_empty() { Ok(()) } else { Err(ControlError::Unmet(forgotten)) }
    }

    /// What was not handled and lies before the beginnings.
    fn skipped(
        &self,
        view: &Registry,
        current: &Registered,
        beginnings: &[(&Topic, i32, Offset)],
        committed: &[proto::InputPosition],
    ) -> Result<Skipped, ControlError> {
        let life = &current.incarnation;
        let starts = self.node.admin.offsets(&places(beginnings), At::Start)?;
        let mut skipped = Skipped { records: 0, is_known: true };
        for ((topic, partition, to), start) in beginnings.iter().zip(starts) {
            let handled = committed.iter().find(|at| (&at.topic, at.partition) == (&topic.name, *partition));
            let next = match handled {
                Some(at) => Some(Offset(at.offset)),
                // A committed offset that is gone says nothing.
                None if view.has_committed(life, &topic.name, *partition) => None,
                None => view.started(life, &topic.name, *partition).map(|began| began.offset),
            };
            // Offsets of a topic that was deleted and made again since are those of other records.
            let is_same = view.began_with(life, &topic.name).is_none_or(|id| id == topic.id.to_string());
            skipped.add(next.filter(|_| is_same), start, *to);
        }
        Ok(skipped)
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

/// Records that a reset passes over.
#[derive(Debug, PartialEq, Eq)]
struct Skipped {
    records: u64,
    /// False = some of them may have been handled: nobody knows how far a partition is.
    is_known: bool,
}

impl Skipped {
    /// A partition whose log begins at `start`, and of which `next` would be handled next.
    fn add(&mut self, next: Option<Offset>, start: Offset, to: Offset) {
        let from = next.map_or(start, |next| next.max(start));
        let records = to.0.saturating_sub(from.0);
        self.records += records;
        self.is_known &= next.is_some() || records == 0;
    }

    fn is_accepted(&self, name: &str, accept_loss: bool) -> Result<(), ControlError> {
        if accept_loss || self.records == 0 {
            return Ok(());
        }
        let (records, how) = (self.records, if self.is_known { "" } else { "up to " });
        Err(ControlError::Precondition(format!(
            "{how}{records} records before that position were not handled by {name}, and never would be: \
             --accept-loss (`accept_loss`) says that they may be lost"
        )))
    }
}

/// Up to where a partition may have been handled, in this life or one before it; none = nobody knows.
fn handled_to(
    view: &Registry,
    life: &str,
    (topic, partition): (&Topic, i32),
    committed: &[proto::InputPosition],
) -> Option<Offset> {
    if let Some(at) = committed.iter().find(|at| (&at.topic, at.partition) == (&topic.name, partition)) {
        return Some(Offset(at.offset));
    }
    // A committed offset that is gone says nothing.
    if view.has_committed(life, &topic.name, partition) {
        return None;
    }
    // A life that was reset and has not run is behind one that handled what lies before its beginning.
    let began = view.started(life, &topic.name, partition);
    let began = began.filter(|began| began.topic_id == topic.id.to_string());
    Some(began.map_or(Offset(0), |began| began.offset))
}

/// Of the two that are true or nothing, `false` says nothing.
fn is_somewhere(to: &To) -> bool {
    !matches!(to, To::Earliest(false) | To::Latest(false))
}

/// What is older may be forgotten. The inbox measures ages from its horizon, which may be ahead of the clock.
fn remembered_since_ms(now: Duration, ttl: Duration) -> i64 {
    now.saturating_sub(ttl).as_millis() as i64 + CLOCK_SLACK_MS
}

fn places(beginnings: &[(&Topic, i32, Offset)]) -> Vec<(String, i32)> {
    beginnings.iter().map(|(topic, partition, _)| (topic.name.clone(), *partition)).collect()
}

fn positions(beginnings: &[(&Topic, i32, Offset)]) -> Vec<proto::InputPosition> {
    let one = |(topic, partition, offset): &(&Topic, i32, Offset)| proto::InputPosition {
        topic: topic.name.clone(),
        partition: *partition,
        offset: offset.0,
    };
    beginnings.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::proposal::proposal;

    #[test]
    fn what_lies_before_a_life_was_handled_and_of_a_committed_offset_that_is_gone_nobody_knows() {
        let topic = Topic { name: "t".into(), id: uuid::Uuid::nil(), partitions: 2, replication: 1 };
        let mut view = Registry::default();
        let (incarnation, topic_id) = ("i".to_owned(), topic.id.to_string());
        let began = proto::StartedEntry {
            incarnation: incarnation.clone(),
            topic: "t".into(),
            topic_id,
            offset: 7,
            ..proto::StartedEntry::default()
        };
        view.apply(Offset(0), 1, &proposal(Entry::Started(began)));
        let at = |offset| proto::InputPosition { topic: "t".into(), partition: 0, offset };
        let handled = |view: &Registry, partition, committed: &[proto::InputPosition]| {
            handled_to(view, "i", (&topic, partition), committed).map(|offset| offset.0)
        };
        assert_eq!(handled(&view, 0, &[]), Some(7));
        assert_eq!(handled(&view, 0, &[at(9)]), Some(9));
        assert_eq!(handled(&view, 1, &[at(9)]), Some(0), "it never began");
        let first = proto::FirstCommitEntry { incarnation, topics: vec!["t".into()], ..Default::default() };
        view.apply(Offset(1), 1, &proposal(Entry::FirstCommit(first)));
        assert_eq!(handled(&view, 0, &[]), None);
    }

    #[test]
    fn what_lies_between_is_lost_and_what_nobody_knows_of_may_be() {
        let skipped = |next: Option<u64>, start, to| {
            let mut skipped = Skipped { records: 0, is_known: true };
            skipped.add(next.map(Offset), Offset(start), Offset(to));
            (skipped.records, skipped.is_known)
        };
        assert_eq!(skipped(Some(100), 0, 1_500), (1_400, true), "forward");
        assert_eq!(skipped(Some(100), 0, 100), (0, true), "where it stands");
        assert_eq!(skipped(Some(100), 0, 20), (0, true), "back");
        assert_eq!(skipped(Some(100), 400, 1_500), (1_100, true), "what Kafka has deleted is lost already");
        assert_eq!(skipped(None, 400, 1_500), (1_100, false), "it cannot be told");
        assert_eq!(skipped(None, 400, 400), (0, true), "nothing is there that could be lost");
    }

    #[test]
    fn loss_is_refused_with_its_size_unless_it_is_accepted() {
        let refused = |records, is_known, accept_loss| {
            let outcome = Skipped { records, is_known }.is_accepted("copy", accept_loss);
            outcome.err().map(|error| error.to_string()).unwrap_or_default()
        };
        let known = refused(1_400, true, false);
        assert!(known.starts_with("1400 records") && known.contains("--accept-loss"), "{known}");
        assert!(refused(7, false, false).starts_with("up to 7 records"));
        assert_eq!((refused(7, false, true), refused(0, true, false)), (String::new(), String::new()));
    }

    #[test]
    fn an_inbox_whose_horizon_is_ahead_of_the_clock_has_forgotten_more() {
        let now = Duration::from_millis(1_736_899_200_000);
        let hour = Duration::from_secs(3_600);
        assert_eq!(remembered_since_ms(now, hour), 1_736_899_200_000 - 3_600_000 + 60_000);
        assert_eq!(remembered_since_ms(now, Duration::ZERO), 1_736_899_260_000, "nothing is remembered");
    }
}
