//! What operators see of outboxes, and their hand in them.
//!
//! Rows are a task's own, so whoever asks about them is answered by its worker, between two batches; what
//! destinations are like is known to the relays. A pause is the fleet's, so it is in the registry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;

use super::board::TaskEntry;
use super::change::{AUTHOR_BYTES_MAX, refuse, too_long};
use super::handle::{ControlError, Handle};
use super::history::Version;
use super::registered::Registered;
use super::runtime::NodeRuntime;
use crate::config::deployment::DeploymentSpec;
use crate::config::problem::Problem;
use crate::record::headers;
use crate::relay::type_of;
use crate::task::ShownRow;
use crate::telemetry::{BreakerState, TaskState};

/// Requests that wait for one worker.
pub const REQUESTS_MAX: usize = 64;
/// Rows of one answer.
const ROWS_MAX: u32 = 1_000;
const ROWS_DEFAULT: u32 = 100;
/// Of a value that is shown.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// Sequence numbers of one request.
const SEQUENCES_MAX: usize = 10_000;

/// What is asked of a task's outbox.
#[derive(Debug)]
pub enum Ask {
    Show {
        destination: Option<String>,
        after: u64,
        limit: usize,
    },
    Retry {
        destination: Option<String>,
        sequences: Vec<u64>,
    },
    Discard {
        destination: Option<String>,
        sequences: Vec<u64>,
    },
    /// How many rows the same discard would delete.
    Count {
        destination: Option<String>,
        sequences: Vec<u64>,
    },
}

/// A request for one task. Dropping `reply` without an answer says that the worker is no more.
#[derive(Debug)]
pub struct OutboxRequest {
    pub partition: i32,
    pub ask: Ask,
    pub reply: Sender<Answer>,
}

/// What became of a request.
#[derive(Debug)]
pub enum Answer {
    /// With the time on the worker's clock, which the rows' due times are on.
    Rows(Vec<ShownRow>, Duration),
    /// So many rows are tried, have been deleted by a commit that is known, or would be.
    Done(u64),
    NotRunning(&'static str),
    /// The rows may be deleted or not: the task was recovered, or went elsewhere, with the commit under way.
    Unknown,
    Failed(String),
}

impl Handle {
    /// The outboxes of one partition that this node runs.
    pub fn outbox_list(
        &self,
        request: &proto::ListOutboxRequest,
    ) -> Result<proto::ListOutboxResponse, ControlError> {
        let partition = request.partition.unwrap_or_default();
        let name = &request.deployment;
        running(&self.node, name, partition)?;
        let states = self.node.relays.states(name);
        let mut outboxes = Vec::new();
        for (destination, cells) in self.node.telemetry.outboxes(name, partition) {
            let station = states.iter().find(|state| state.name == destination);
            if station.is_none() && cells.rows.get() == 0 {
                continue;
            }
            let mut state = proto::OutboxState {
                destination,
                partition,
                node: self.node.id.clone(),
                rows: cells.rows.get(),
                bytes: cells.bytes.get(),
                in_flight: cells.in_flight.get(),
                oldest_seconds: (cells.oldest_ms.get() > 0).then(|| cells.age_s()),
                full: cells.full.get() > 0,
                ..proto::OutboxState::default()
            };
            if let Some(station) = station {
                state.way = station.way.to_owned();
                state.paused = station.paused;
                state.set_breaker(shown_breaker(station.breaker));
                state.breaker_opens_ms = station.opens_again.as_millis() as u64;
                let metrics = &station.metrics;
                (state.delivered, state.failed, state.refused) =
                    (metrics.deliveries.get(), metrics.failed.get(), metrics.refused.get());
            }
            outboxes.push(state);
        }
        Ok(proto::ListOutboxResponse { outboxes })
    }

    /// Rows of one partition that this node runs.
    pub fn outbox_show(
        &self,
        request: &proto::ShowOutboxRequest,
        until: Instant,
    ) -> Result<proto::ShowOutboxResponse, ControlError> {
        let limit = if request.limit == 0 { ROWS_DEFAULT } else { request.limit };
        if limit > ROWS_MAX {
            let message = format!("is {limit}; a page holds 1 to {ROWS_MAX} rows");
            return Err(ControlError::Invalid(vec![Problem::at("limit", message)]));
        }
        let destination = named(&request.destination);
        let ask = Ask::Show { destination, after: request.after, limit: limit as usize };
        match self.ask(&request.deployment, request.partition, ask, until)? {
            Answer::Rows(rows, now) => {
                if rows.is_empty() {
                    self.may_hold(&request.deployment, request.partition, &request.destination)?;
                }
                let states = self.node.relays.states(&request.deployment);
                let event_type = |output: &str| match states.iter().find(|state| state.name == output) {
                    Some(state) => state.event_type.clone(),
                    // The running version has no such destination.
                    None => format!("{}.{output}", request.deployment),
                };
                let rows = rows.into_iter().map(|row| shown(&event_type(&row.row.output), row, now));
                Ok(proto::ShowOutboxResponse { rows: rows.collect() })
            }
            Answer::Unknown => Err(unread(&request.deployment, request.partition)),
            other => Err(unanswered(&request.deployment, request.partition, &other)),
        }
    }

    /// Tries rows of one partition that this node runs.
    pub fn outbox_retry(
        &self,
        request: &proto::RetryOutboxRequest,
        until: Instant,
    ) -> Result<proto::RetryOutboxResponse, ControlError> {
        let (destination, sequences) = chosen(&request.author, &request.rows, request.partition)?;
        let partition = request.partition.unwrap_or_default();
        let ask = Ask::Retry { destination, sequences };
        match self.ask(&request.deployment, partition, ask, until)? {
            Answer::Done(rows) => {
                if rows == 0 {
                    self.may_hold(&request.deployment, partition, destination_of(&request.rows))?;
                }
                Ok(proto::RetryOutboxResponse { rows })
            }
            other => Err(unanswered(&request.deployment, partition, &other)),
        }
    }

    /// Deletes rows of one partition that this node runs; answers when that is committed.
    pub fn outbox_discard(
        &self,
        request: &proto::DiscardOutboxRequest,
        until: Instant,
    ) -> Result<proto::DiscardOutboxResponse, ControlError> {
        let (destination, sequences) = chosen(&request.author, &request.rows, request.partition)?;
        let partition = request.partition.unwrap_or_default();
        tracing::warn!(
            deployment = request.deployment,
            partition,
            destination,
            author = request.author,
            "outbox rows are discarded by hand"
        );
        let ask = Ask::Discard { destination, sequences };
        match self.ask(&request.deployment, partition, ask, until)? {
            Answer::Done(rows) => {
                if rows == 0 {
                    self.may_hold(&request.deployment, partition, destination_of(&request.rows))?;
                }
                Ok(proto::DiscardOutboxResponse { rows })
            }
            other => Err(unanswered(&request.deployment, partition, &other)),
        }
    }

    /// Counts the rows of one partition that this node runs which the same discard would delete.
    pub fn outbox_count(
        &self,
        request: &proto::CountDiscardRequest,
        until: Instant,
    ) -> Result<proto::CountDiscardResponse, ControlError> {
        let (destination, sequences) = chosen("", &request.rows, request.partition)?;
        let partition = request.partition.unwrap_or_default();
        let ask = Ask::Count { destination, sequences };
        match self.ask(&request.deployment, partition, ask, until)? {
            Answer::Done(rows) => {
                if rows == 0 {
                    self.may_hold(&request.deployment, partition, destination_of(&request.rows))?;
                }
                Ok(proto::CountDiscardResponse { rows })
            }
            Answer::Unknown => Err(unread(&request.deployment, partition)),
            other => Err(unanswered(&request.deployment, partition, &other)),
        }
    }

    pub fn outbox_pause(
        &self,
        request: proto::PauseOutboxRequest,
    ) -> Result<proto::PauseOutboxResponse, ControlError> {
        let proto::PauseOutboxRequest { deployment, destination, author } = request;
        let paused = self.set_outbox_paused(&deployment, &destination, &author, true)?;
        Ok(proto::PauseOutboxResponse { paused })
    }

    pub fn outbox_resume(
        &self,
        request: proto::ResumeOutboxRequest,
    ) -> Result<proto::ResumeOutboxResponse, ControlError> {
        let proto::ResumeOutboxRequest { deployment, destination, author } = request;
        let paused = self.set_outbox_paused(&deployment, &destination, &author, false)?;
        Ok(proto::ResumeOutboxResponse { paused })
    }

    /// Answers what is paused then.
    fn set_outbox_paused(
        &self,
        deployment: &str,
        destination: &str,
        author: &str,
        paused: bool,
    ) -> Result<Vec<String>, ControlError> {
        refuse(too_long("author", author, AUTHOR_BYTES_MAX))?;
        let view = self.latest()?;
        let registered = self.registered(deployment)?;
        let known = destinations(&registered);
        let already = view.outbox_paused(deployment);
        let all: BTreeSet<String> = if paused { known.clone() } else { already.clone() };
        let wanted = match destination {
            "" if all.is_empty() && registered.spec().is_some_and(|spec| !spec.has_outbox()) => {
                return Err(absent(&registered, "", None));
            }
            "" => all,
            name if known.contains(name) || already.contains(name) => BTreeSet::from([name.to_owned()]),
            name => return Err(absent(&registered, name, None)),
        };
        for destination in wanted.into_iter().filter(|name| already.contains(name) != paused) {
            let entry = proto::OutboxPauseEntry {
                deployment: deployment.to_owned(),
                incarnation: registered.incarnation.clone(),
                destination,
                paused,
                author: author.to_owned(),
            };
            self.propose(deployment, Entry::OutboxPause(entry))?;
        }
        Ok(self.latest()?.outbox_paused(deployment).into_iter().collect())
    }

    /// Refuses a destination, or all of them for the empty name, that no version of this life has had; of one that only an
    /// earlier version had, answers what is to be said where it has left no rows. Asks no task, so whoever misspells a
    /// name hears of that, whatever the tasks do.
    pub fn outbox_refusal(
        &self,
        deployment: &str,
        destination: &str,
    ) -> Result<Option<ControlError>, ControlError> {
        let registered = self.registered(deployment)?;
        if may_have(&registered, destination) {
            return Ok(None);
        }
        let refusal = absent(&registered, destination, None);
        if may_have_had(&registered, destination) { Ok(Some(refusal)) } else { Err(refusal) }
    }

    /// Nothing was found by the task of a partition that this node runs: refuses what can hold nothing there, because the
    /// version does not have it, and an earlier one has left no row of it. Judged by nothing else, and not before the task
    /// was asked, because it alone knows its rows from the first moment.
    fn may_hold(&self, name: &str, partition: i32, destination: &str) -> Result<(), ControlError> {
        let registered = self.registered(name)?;
        let is_left = || {
            let outboxes = self.node.telemetry.outboxes(name, partition);
            let meant = |known: &str| destination.is_empty() || known == destination;
            outboxes.iter().any(|(known, cells)| meant(known) && cells.rows.get() > 0)
        };
        if may_have(&registered, destination) || is_left() {
            return Ok(());
        }
        Err(absent(&registered, destination, Some(partition)))
    }

    fn ask(&self, name: &str, partition: i32, ask: Ask, until: Instant) -> Result<Answer, ControlError> {
        running(&self.node, name, partition)?;
        let (reply, answer) = bounded(1);
        let board = self.node.board(name);
        if !board.is_some_and(|board| board.ask_outbox(OutboxRequest { partition, ask, reply })) {
            let message = format!("partition {partition} of {name} takes no request now; try again");
            return Err(ControlError::Unavailable(message));
        }
        match answer.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => Err(ControlError::Deadline(format!(
                "partition {partition} of {name} has not answered in time; what was asked may still come to pass"
            ))),
            Err(RecvTimeoutError::Disconnected) => Ok(Answer::Unknown),
        }
    }
}

/// The task of a partition that this node runs.
fn running(node: &NodeRuntime, name: &str, partition: i32) -> Result<TaskEntry, ControlError> {
    let task = node.board(name).and_then(|board| board.task(partition));
    let Some(task) = task else {
        let message = format!("partition {partition} of {name} is not on this node; try again");
        return Err(ControlError::Unavailable(message));
    };
    match task.state {
        TaskState::Running => Ok(task),
        TaskState::Halted => Err(ControlError::Precondition(format!(
            "partition {partition} of {name} is halted, and nothing of it is delivered: mend what halted it first ({})",
            task.reason
        ))),
        TaskState::Restoring | TaskState::Absent => {
            Err(ControlError::Unavailable(format!("partition {partition} of {name} is restoring; try again")))
        }
    }
}

/// The worker has ended before it answered, and nothing was to be changed.
fn unread(name: &str, partition: i32) -> ControlError {
    ControlError::Unavailable(format!("the worker of partition {partition} of {name} has ended; try again"))
}

fn unanswered(name: &str, partition: i32, answer: &Answer) -> ControlError {
    match answer {
        Answer::NotRunning(why) => ControlError::Unavailable(format!(
            "partition {partition} of {name} takes no request now ({why}); nothing was changed; try again"
        )),
        Answer::Failed(why) => ControlError::Internal(format!("partition {partition} of {name}: {why}")),
        Answer::Unknown | Answer::Rows(..) | Answer::Done(_) => ControlError::Unknown(format!(
            "partition {partition} of {name} was recovered, or its worker has ended: what was asked may be done or not; look \
             at `tidemill outbox show {name} --partition {partition}`"
        )),
    }
}

fn destinations(registered: &Registered) -> BTreeSet<String> {
    let spec = registered.spec();
    spec.iter().flat_map(|spec| spec.destinations()).map(|(name, _)| name.clone()).collect()
}

/// The running version has that destination, or any for the empty name. Of one that cannot be read nobody can say that
/// it has none.
fn may_have(registered: &Registered, destination: &str) -> bool {
    registered.spec().is_none_or(|spec| has(spec, destination))
}

/// An earlier version of this life had it, or nobody can say that none had: some are forgotten, or cannot be read.
fn may_have_had(registered: &Registered, destination: &str) -> bool {
    let had = |version: &Arc<Version>| {
        let spec = DeploymentSpec::parse(&version.document);
        spec.ok().is_none_or(|spec| has(&spec, destination))
    };
    let history = &registered.history;
    registered.ledger.may_hold_rows() && (history.forgotten() > 0 || history.iter().any(had))
}

fn has(spec: &DeploymentSpec, destination: &str) -> bool {
    match destination {
        "" => spec.has_outbox(),
        name => spec.destinations().any(|(known, _)| known == name),
    }
}

/// There is no such destination, or none at all for the empty name; nor, where a partition was looked at, a row of it.
fn absent(registered: &Registered, destination: &str, partition: Option<i32>) -> ControlError {
    let name = &registered.name;
    if destination.is_empty() {
        let whose = partition.map_or_else(String::new, |partition| format!("partition {partition} "));
        return ControlError::Precondition(format!(
            "{name} has no outbox, and {whose}no row that an earlier version left; `http:`, `amqp:` or `kafka:` in an output \
             of its document gives it one"
        ));
    }
    let known = Vec::from_iter(destinations(registered));
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    ControlError::NotFound(format!("{name} has no destination {destination}; it has {known}"))
}

/// Empty = every one.
pub fn destination_of(rows: &Option<proto::OutboxRows>) -> &str {
    rows.as_ref().map_or("", |rows| rows.destination.as_str())
}

/// The partitions in which rows of a destination wait, or of any for the empty name.
pub fn holding(states: &[proto::OutboxState], destination: &str) -> BTreeSet<i32> {
    let is_meant = |state: &&proto::OutboxState| {
        state.rows > 0 && (destination.is_empty() || state.destination == destination)
    };
    states.iter().filter(is_meant).map(|state| state.partition).collect()
}

fn named(destination: &str) -> Option<String> {
    (!destination.is_empty()).then(|| destination.to_owned())
}

/// Destination and sequence numbers of a request, or everything that is wrong with it, its author included. Rows are named
/// by their partition and number, so the one is nothing without the other.
pub fn chosen(
    author: &str,
    rows: &Option<proto::OutboxRows>,
    partition: Option<i32>,
) -> Result<(Option<String>, Vec<u64>), ControlError> {
    let proto::OutboxRows { destination, sequences } = rows.clone().unwrap_or_default();
    let mut problems = Vec::from_iter(too_long("author", author, AUTHOR_BYTES_MAX));
    if !sequences.is_empty() && partition.is_none() {
        problems.push(Problem::at("partition", "sequence numbers are a partition's own: name it"));
    }
    if sequences.len() > SEQUENCES_MAX {
        let message = format!("{} are named; at most {SEQUENCES_MAX} are taken", sequences.len());
        problems.push(Problem::at("sequences", message));
    }
    refuse(problems)?;
    Ok((named(&destination), sequences))
}

/// `event_type` is the destination's.
fn shown(event_type: &str, ShownRow { status, row }: ShownRow, now: Duration) -> proto::ShownOutboxRow {
    let list =
        if row.headers.is_empty() { Vec::new() } else { headers::decode(&row.headers).unwrap_or_default() };
    let text = |value: Option<&[u8]>| std::str::from_utf8(value.unwrap_or_default()).ok().map(str::to_owned);
    let header = |name: &str, value| Some(proto::OutboxHeader { name: name.to_owned(), value });
    let mut value = row.value;
    if let Some(value) = &mut value {
        value.truncate(VALUE_BYTES_MAX);
    }
    proto::ShownOutboxRow {
        sequence: status.sequence,
        r#type: type_of(&list, event_type).to_owned(),
        headers: list.iter().filter_map(|(name, value)| header(name, text(*value)?)).collect(),
        destination: row.output,
        id: row.id,
        key: row.key,
        value,
        timestamp_ms: row.timestamp_ms,
        created_ms: row.created_ms,
        attempts: status.attempts,
        reason: status.reason,
        in_flight: status.in_flight,
        held: status.held,
        due_ms: status.due.map_or(0, |due| due.saturating_sub(now).as_millis() as u64),
    }
}

fn shown_breaker(state: BreakerState) -> proto::BreakerState {
    match state {
        BreakerState::Closed => proto::BreakerState::Closed,
        BreakerState::HalfOpen => proto::BreakerState::HalfOpen,
        BreakerState::Open => proto::BreakerState::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_those_with_rows_of_the_destination_each_once() {
        let state = |destination: &str, partition, rows| proto::OutboxState {
            destination: destination.into(),
            partition,
            rows,
            ..proto::OutboxState::default()
        };
        let states =
            [state("a", 0, 0), state("a", 2, 1), state("a", 3, 1), state("b", 2, 4), state("b", 1, 2)];
        assert_eq!(holding(&states, "a"), BTreeSet::from([2, 3]));
        assert_eq!(holding(&states, ""), BTreeSet::from([1, 2, 3]));
        assert_eq!(holding(&states, "c"), BTreeSet::new());
    }

    #[test]
    fn rows_that_cannot_be_chosen_are_refused_with_all_that_is_wrong() {
        let rows = |sequences| Some(proto::OutboxRows { destination: "out".into(), sequences });
        let refused = chosen(&"x".repeat(AUTHOR_BYTES_MAX + 1), &rows(vec![7; SEQUENCES_MAX + 1]), None);
        let Err(ControlError::Invalid(problems)) = refused else { panic!("it is refused") };
        let wrong: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(wrong, ["author", "partition", "sequences"]);
        let one = chosen("me", &rows(vec![7]), Some(0)).expect("one row");
        assert_eq!(one, (Some("out".to_owned()), vec![7]));
        assert_eq!(chosen("", &None, None).expect("every row"), (None, Vec::new()));
    }
}
