//! The decisions of recovery, as functions of facts: may this store be used, and where does the task
//! begin. Nothing here reads or writes anything.
//!
//! The rule behind the table: a task with a store begins where its position record says, and the
//! group's committed offset must agree; a task without one follows its group. Whatever else is found
//! halts, because going on would count something twice or not at all.

use crate::faults::{Bug, planted};
use crate::ports::CommittedOffset;
use crate::record::Offset;
use crate::store::{Position, PositionGuarantee, PositionInput, Progress};
use crate::task::seal::decode_metadata;
use crate::task::{TaskConfig, numbered};

/// The registry's `started` entry of one input partition: where it begins before its first commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub topic_id: String,
    pub offset: Offset,
}

/// What the registry knows about a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// By input.
    pub started: Vec<Option<Started>>,
    /// By input: a commit that covered it is known to have succeeded once, so its offset cannot be
    /// missing.
    pub first_commit: Vec<bool>,
}

impl Known {
    fn has_committed(&self, input: usize) -> bool {
        self.first_commit.get(input).copied().unwrap_or(false)
    }
}

/// Everything a decision rests on.
pub struct Facts<'a> {
    pub config: &'a TaskConfig,
    pub partition: i32,
    /// The last committed position record, read to the changelog's end.
    pub position: Option<&'a Position>,
    /// The highest writer number that any changelog record carried, committed or not.
    pub writer_seen: u64,
    /// The group's stable offsets, by input.
    pub committed: &'a [Option<CommittedOffset>],
    pub known: &'a Known,
}

/// Where a task begins, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Start {
        next: Vec<Offset>,
        writer: u64,
        unbound: Vec<PositionInput>,
        /// By input: where this revision began, if a commit of it was found.
        first: Option<Vec<Offset>>,
    },
    /// An offset that must exist is missing: fetch again after a fresh coordinator look-up for
    /// several seconds, then halt for this reason.
    Missing(String),
    /// These inputs have no `started` entry yet: resolve `start:`, write it to the registry, ask again.
    Unresolved(Vec<u16>),
    Halt(String),
}

/// What to do with a store that was found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreVerdict {
    Use,
    Rebuild(String),
    Halt(String),
}

/// Judges a store by its changelog's bounds. `retention_ms` is the changelog's
/// `delete.retention.ms`: a deletion older than that may be gone from the log.
pub fn judge_store(
    progress: Progress,
    (log_start, log_end): (Offset, Offset),
    retention_ms: i64,
    wall_ms: i64,
) -> StoreVerdict {
    let next = progress.changelog_next;
    if next > log_end {
        return StoreVerdict::Halt(format!(
            "the store has applied its changelog up to offset {next}, but the changelog ends at {log_end}: it has lost records \
             or was made again; to go on with what the changelog holds, delete the store's directory and start the node again"
        ));
    }
    if next == log_end {
        // Nothing missed.
        return StoreVerdict::Use;
    }
    if next < log_start {
        return StoreVerdict::Halt(cut_off(next, log_start));
    }
    if next == Offset(0) {
        // Nothing applied yet.
        return StoreVerdict::Use;
    }
    let age_ms = wall_ms.saturating_sub(progress.changelog_ms);
    if age_ms <= retention_ms / 2 {
        return StoreVerdict::Use;
    }
    let why = format!(
        "it is {} s behind its changelog, more than half of delete.retention.ms ({} s): deletions may be gone from the log",
        age_ms / 1000,
        retention_ms / 1000
    );
    match log_start {
        Offset(0) => StoreVerdict::Rebuild(why),
        _ => StoreVerdict::Halt(format!("{why}; {}", cut_off(Offset(0), log_start))),
    }
}

/// Why a store that ends at `next` cannot be brought up from a log that begins later. Compaction never
/// moves a log's beginning, so somebody deleted what is missing, and a value may have been in it.
pub fn cut_off(next: Offset, log_start: Offset) -> String {
    format!(
        "the changelog begins at offset {log_start} and the store needs it from {next}: what was in between has been deleted, by \
         kafka-delete-records or by a cleanup.policy other than compact; put back a copy of the store that ends at {log_start} \
         or later, or delete the deployment and deploy it again to begin anew"
    )
}

/// Decides where a task begins.
pub fn decide(facts: &Facts<'_>) -> Decision {
    if let Some(reason) = facts.started_elsewhere() {
        return Decision::Halt(reason);
    }
    if facts.config.is_stateless() {
        return facts.stateless();
    }
    match facts.position {
        Some(position) => facts.at_position(position),
        None => facts.without_position(),
    }
}

/// What is wrong with an input whose topic has another id than the deployment began with.
pub fn made_again(deployment: &str, topic: &str, expected: &str, found: &str) -> String {
    format!(
        "topic {topic} has id {found}, but deployment {deployment} began with {expected}: it was deleted and made again, so offsets \
         mean other records; delete the deployment and deploy it again to begin anew"
    )
}

impl Facts<'_> {
    /// A topic that was deleted and made again since its start was resolved.
    fn started_elsewhere(&self) -> Option<String> {
        for (input, started) in self.config.inputs.iter().zip(&self.known.started) {
            if let Some(started) = started.as_ref().filter(|started| started.topic_id != input.topic_id) {
                return Some(self.made_again(&input.topic, &started.topic_id, &input.topic_id));
            }
        }
        None
    }

    /// An earlier revision kept nothing, so its offsets were the whole truth: this one, which keeps
    /// something, begins where they stand. A commit with a store leaves no metadata, so an offset that
    /// has some was committed last by a task without one.
    fn after_stateless(&self) -> bool {
        let mut found = self.committed.iter().zip(&self.config.inputs).filter_map(|(committed, input)| {
            let metadata = decode_metadata(&committed.as_ref()?.metadata);
            Some(metadata.is_some_and(|metadata| {
                metadata.topic_id == input.topic_id
                    && metadata.incarnation == self.config.incarnation
                    && metadata.revision < self.config.revision
            }))
        });
        found.next().is_some_and(|first| first && found.all(|other| other))
    }

    /// No position record: the task never committed, or its changelog is not what it was.
    fn without_position(&self) -> Decision {
        if self.after_stateless() {
            return self.stateless();
        }
        let found = self
            .committed
            .iter()
            .zip(&self.config.inputs)
            .find_map(|(committed, input)| committed.as_ref().map(|committed| (committed, input)));
        let changelog = self.changelog();
        if let Some((committed, input)) = found {
            return Decision::Halt(format!(
                "group {} has committed offset {} of {}, but {changelog} has no position record: the changelog was emptied or \
                 made again, or the offset was set by hand; delete the deployment and deploy it again, or delete the group's offsets \
                 to begin anew",
                self.config.group,
                committed.offset,
                self.at(&input.topic),
            ));
        }
        if self.known.first_commit.contains(&true) {
            return Decision::Missing(format!(
                "{changelog} has no position record and group {} no offset of {}, although this task has committed before: \
                 both were lost; delete the deployment and deploy it again to begin anew",
                self.config.group,
                self.inputs(),
            ));
        }
        self.start(vec![None; self.config.inputs.len()], Vec::new(), 0, None)
    }

    fn at_position(&self, position: &Position) -> Decision {
        if position.incarnation != self.config.incarnation {
            return Decision::Halt(format!(
                "{} belongs to incarnation {} of deployment {}, this is {}: a former deployment of that name left it behind; \
                 delete that topic, or deploy under another name",
                self.changelog(),
                position.incarnation,
                self.config.deployment,
                self.config.incarnation,
            ));
        }
        let mut next = Vec::with_capacity(self.config.inputs.len());
        for (index, input) in self.config.inputs.iter().enumerate() {
            let committed = self.committed.get(index).and_then(Option::as_ref);
            let Some(recorded) = position.inputs.iter().find(|recorded| recorded.topic == input.topic) else {
                // New in this revision: it begins at its own start.
                if let Some(committed) = committed {
                    return Decision::Halt(format!(
                        "group {} has committed offset {} of {}, of which {} knows nothing; delete that offset with \
                         kafka-consumer-groups --group {} --topic {} --delete-offsets",
                        self.config.group,
                        committed.offset,
                        self.at(&input.topic),
                        self.changelog(),
                        self.config.group,
                        input.topic,
                    ));
                }
                next.push(None);
                continue;
            };
            if recorded.topic_id != input.topic_id {
                return Decision::Halt(self.made_again(&input.topic, &recorded.topic_id, &input.topic_id));
            }
            match self.compare(index, position, recorded, committed) {
                Ok(offset) => next.push(Some(offset)),
                Err(decision) => return decision,
            }
        }
        let is_bound =
            |recorded: &PositionInput| self.config.inputs.iter().any(|input| input.topic == recorded.topic);
        let unbound = numbered(position).filter(|(_, recorded)| !is_bound(recorded));
        // The next record may have them in another order.
        let unbound = unbound.map(|(number, recorded)| PositionInput {
            unbound: true,
            number: Some(number),
            ..recorded.clone()
        });
        let unbound = unbound.collect();
        let first = (position.revision == self.config.revision).then(|| self.first(position)).flatten();
        self.start(next, unbound, position.writer, first)
    }

    /// Where the revision of a position record began, in the order of this one's inputs.
    fn first(&self, position: &Position) -> Option<Vec<Offset>> {
        let first = |topic: &str| {
            let recorded = position.inputs.iter().find(|recorded| recorded.topic == topic)?;
            recorded.first.map(Offset)
        };
        self.config.inputs.iter().map(|input| first(&input.topic)).collect()
    }

    /// The position record against the group's offset, for one input.
    fn compare(
        &self,
        input: usize,
        position: &Position,
        recorded: &PositionInput,
        committed: Option<&CommittedOffset>,
    ) -> Result<Offset, Decision> {
        let (topic, is_unbound) = (&recorded.topic, recorded.unbound);
        let recorded = Offset(recorded.offset);
        let at_least_once = position.guarantee() == PositionGuarantee::AtLeastOnce;
        let fix = format!(
            "to go on where the state is, run kafka-consumer-groups --group {} --topic {topic}:{} --reset-offsets \
             --to-offset {recorded} --execute; to begin anew, delete the deployment and deploy it again",
            self.config.group, self.partition,
        );
        let Some(committed) = committed else {
            if planted(Bug::MissingIsNew) {
                let started = self.known.started.get(input).and_then(Option::as_ref);
                return Ok(started.map_or(recorded, |started| started.offset));
            }
            // The first commit's record is written before its offsets.
            let is_first = at_least_once && !self.known.has_committed(input);
            // Kafka forgets, after a while, the offsets of topics that a group no longer reads.
            if is_first || is_unbound {
                return Ok(recorded);
            }
            return Err(Decision::Missing(format!(
                "group {} has no offset of {}, although {} has a position record at {recorded}: it expired or was deleted; {fix}",
                self.config.group,
                self.at(topic),
                self.changelog(),
            )));
        };
        let offset = committed.offset;
        if planted(Bug::PositionIgnored) {
            return Ok(offset);
        }
        let how = match offset.cmp(&recorded) {
            std::cmp::Ordering::Equal => return Ok(recorded),
            // Offsets are committed after the record, so they may be behind it.
            std::cmp::Ordering::Less if at_least_once => return Ok(recorded),
            std::cmp::Ordering::Less => "behind",
            std::cmp::Ordering::Greater => "ahead of",
        };
        Err(Decision::Halt(format!(
            "group {}'s offset {offset} of {} is {how} the position record at {recorded} in {}: it was set by another program, \
             or the changelog lost records; {fix}",
            self.config.group,
            self.at(topic),
            self.changelog(),
        )))
    }

    /// Without a store the group's offset is all there is, wherever an operator put it.
    fn stateless(&self) -> Decision {
        let mut next = Vec::with_capacity(self.config.inputs.len());
        let mut covered_by_this_revision = false;
        let mut first = Vec::with_capacity(self.config.inputs.len());
        for (input, committed) in self.config.inputs.iter().zip(self.committed) {
            let Some(committed) = committed else {
                next.push(None);
                continue;
            };
            if let Some(metadata) = decode_metadata(&committed.metadata) {
                if metadata.topic_id != input.topic_id {
                    return Decision::Halt(self.made_again(
                        &input.topic,
                        &metadata.topic_id,
                        &input.topic_id,
                    ));
                }
                if metadata.incarnation != self.config.incarnation {
                    return Decision::Halt(format!(
                        "group {}'s offset of {} was committed by incarnation {} of deployment {}, this is {}: a former deployment \
                         of that name left it behind; delete the group's offsets, or deploy under another name",
                        self.config.group,
                        self.at(&input.topic),
                        metadata.incarnation,
                        self.config.deployment,
                        self.config.incarnation,
                    ));
                }
                // A commit covers all inputs of its revision.
                covered_by_this_revision |= metadata.revision == self.config.revision;
                let of_this_revision = metadata.first.filter(|_| metadata.revision == self.config.revision);
                first.extend(of_this_revision.map(Offset));
            }
            next.push(Some(committed.offset));
        }
        // An input that is new in this revision has no offset before its first commit.
        let is_missing = |input: usize| {
            let covered = covered_by_this_revision || self.known.has_committed(input);
            next[input].is_none() && covered && !planted(Bug::MissingIsNew)
        };
        if let Some((_, input)) = (0..).zip(&self.config.inputs).find(|(index, _)| is_missing(*index)) {
            return Decision::Missing(format!(
                "group {} has no offset of {}, although this task has committed before: it expired or was deleted; set it with \
                 kafka-consumer-groups --group {} --topic {}:{} --reset-offsets --to-offset OFFSET --execute",
                self.config.group,
                self.at(&input.topic),
                self.config.group,
                input.topic,
                self.partition,
            ));
        }
        let first = (first.len() == self.config.inputs.len()).then_some(first);
        self.start(next, Vec::new(), 0, first)
    }

    /// Fills in the resolved starts of the inputs that have no offset of their own.
    fn start(
        &self,
        next: Vec<Option<Offset>>,
        unbound: Vec<PositionInput>,
        writer: u64,
        first: Option<Vec<Offset>>,
    ) -> Decision {
        let mut unresolved = Vec::new();
        let mut resolved = Vec::with_capacity(next.len());
        for (index, next) in next.into_iter().enumerate() {
            let started =
                self.known.started.get(index).and_then(Option::as_ref).map(|started| started.offset);
            match next.or(started) {
                Some(offset) => resolved.push(offset),
                None => unresolved.push(index as u16),
            }
        }
        if !unresolved.is_empty() {
            return Decision::Unresolved(unresolved);
        }
        let seen = writer.max(self.writer_seen);
        match seen.checked_add(1) {
            Some(writer) => Decision::Start { next: resolved, writer, unbound, first },
            None => Decision::Halt(format!(
                "{} has a record of writer {seen}, behind which there is none: it was not written by this deployment, or it is \
                 damaged; delete the deployment and deploy it again to begin anew",
                self.changelog()
            )),
        }
    }

    fn made_again(&self, topic: &str, expected: &str, found: &str) -> String {
        made_again(&self.config.deployment, topic, expected, found)
    }

    fn at(&self, topic: &str) -> String {
        format!("{topic}/{}", self.partition)
    }

    fn changelog(&self) -> String {
        format!("changelog {}/{}", self.config.changelog.topic, self.partition)
    }

    fn inputs(&self) -> String {
        let inputs: Vec<_> = self.config.inputs.iter().map(|input| self.at(&input.topic)).collect();
        inputs.join(", ")
    }
}
