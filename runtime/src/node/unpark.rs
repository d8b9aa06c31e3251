//! Parked records as operators see them, and their hand in them: checked, recorded in the control topic, then
//! handed to the worker that runs the task.

use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use prost::Message;
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;

use super::change::{AUTHOR_BYTES_MAX, refuse, too_long};
use super::handle::{ControlError, Handle};
use super::parked_keys::{self, Wanted};
use super::query::Target;
use super::registered::Registered;
use crate::config::Problem;
use crate::config::deployment::DeploymentSpec;
use crate::config::failures::FailureKind;
use crate::config::manifest::StoreKind;
use crate::task::unpark::{Unpark, Unparked};
use crate::telemetry::TaskState;

/// Requests that wait for one worker.
pub const REQUESTS_MAX: usize = 64;
/// Of a filter: it is kept in the control topic for ever.
const FILTER_BYTES_MAX: usize = 64 << 10;

/// A request for one task. Dropping `reply` without an answer says that the worker is no more.
#[derive(Debug)]
pub struct UnparkRequest {
    pub partition: i32,
    pub what: Unpark,
    pub reply: Sender<Answer>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// By commits that are known.
    Done(Unparked),
    /// Nothing was changed: the task takes no request now.
    NotRunning(&'static str),
    /// Some of it may be committed: the task was recovered, or went elsewhere, with a commit under way.
    Unknown,
}

impl Handle {
    /// Parked keys of one partition that this node runs, as of its last commit.
    pub fn parked_list(
        &self,
        request: &proto::ListParkedRequest,
        until: Instant,
    ) -> Result<proto::ListParkedResponse, ControlError> {
        let registered = self.registered(&request.deployment)?;
        let spec = keeps(&registered)?;
        let filter = checked(&request.filter, "")?;
        let target = Target::of(&registered, StoreKind::Bytes, request.partition)?;
        let task = target.wait(&self.node, &[], until)?;
        let place = (request.partition.unwrap_or_default(), target.inputs.as_slice());
        let wanted = Wanted {
            filter,
            order: spec.failures.order,
            revision: task.revision,
            after: &request.page_token,
            limit: request.limit as usize,
        };
        let ((keys, next), _) =
            target.read(&self.node, &task, &[], |snapshot| parked_keys::page(snapshot, place, &wanted))?;
        Ok(proto::ListParkedResponse { keys, next_page_token: next.unwrap_or_default() })
    }

    /// Has parked keys of one partition that this node runs tried now; answers when that is committed.
    pub fn parked_release(
        &self,
        request: &proto::ReleaseParkedRequest,
        until: Instant,
    ) -> Result<proto::ReleaseParkedResponse, ControlError> {
        let filter = checked(&request.filter, &request.author)?;
        let what = Unpark::Release { filter };
        let asked =
            Asked { deployment: &request.deployment, partition: request.partition, author: &request.author };
        let Unparked { keys, records, .. } = self.unpark(&asked, what, until)?;
        Ok(proto::ReleaseParkedResponse { keys, records })
    }

    /// Gives parked records of one partition that this node runs up; answers when that is committed.
    pub fn parked_drop(
        &self,
        request: &proto::DropParkedRequest,
        until: Instant,
    ) -> Result<proto::DropParkedResponse, ControlError> {
        let filter = checked(&request.filter, &request.author)?;
        let what = Unpark::Drop { filter, waiting: request.waiting, discard: request.discard };
        let asked =
            Asked { deployment: &request.deployment, partition: request.partition, author: &request.author };
        let Unparked { keys, records, left, reason } = self.unpark(&asked, what, until)?;
        Ok(proto::DropParkedResponse { keys, records, left, reason })
    }

    /// Refuses a drop that no partition can carry out, whatever is parked.
    pub fn parked_drop_refusal(&self, request: &proto::CountDropRequest) -> Result<(), ControlError> {
        let registered = self.registered(&request.deployment)?;
        let spec = keeps(&registered)?;
        checked(&request.filter, "")?;
        if request.discard { Ok(()) } else { buries(&request.deployment, spec) }
    }

    fn unpark(&self, asked: &Asked<'_>, what: Unpark, until: Instant) -> Result<Unparked, ControlError> {
        let Asked { deployment: name, author, .. } = *asked;
        let registered = self.registered(name)?;
        let spec = keeps(&registered)?;
        if matches!(what, Unpark::Drop { discard: false, .. }) {
            buries(name, spec)?;
        }
        let target = Target::of(&registered, StoreKind::Bytes, asked.partition)?;
        let partition = asked.partition.unwrap_or_default();
        let board = self.node.board(name).ok_or_else(|| target.absent(&self.node))?;
        let task = board.task(partition).ok_or_else(|| target.absent(&self.node))?;
        match task.state {
            TaskState::Running => {}
            TaskState::Halted => {
                return Err(ControlError::Precondition(format!(
                    "partition {partition} of {name} is halted, and what is parked goes through its task: mend what halted \
                     it first ({})",
                    task.reason
                )));
            }
            TaskState::Restoring | TaskState::Absent => return Err(target.restoring(&task)),
        }
        let entry = entry(&registered, asked, &what);
        tracing::warn!(
            deployment = name,
            partition,
            drop = entry.drop,
            waiting = entry.waiting,
            discard = entry.discard,
            author,
            "parked records are released or dropped by hand"
        );
        self.node.control_log.propose(Entry::Unpark(entry)).map_err(ControlError::not_recorded)?;
        let (reply, outcome) = bounded(1);
        if !board.unpark(UnparkRequest { partition, what, reply }) {
            let message = format!("partition {partition} of {name} takes no request now; try again");
            return Err(ControlError::Unavailable(message));
        }
        let unknown = format!("some of it may be committed: look at `tidemill parked list {name}`");
        match outcome.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Answer::Done(done)) => Ok(done),
            Ok(Answer::NotRunning(reason)) => Err(ControlError::Unavailable(format!(
                "partition {partition} of {name} takes no request now ({reason}); nothing was changed; try again"
            ))),
            Ok(Answer::Unknown) => Err(ControlError::Unknown(format!(
                "partition {partition} of {name} was recovered: {unknown}"
            ))),
            Err(RecvTimeoutError::Disconnected) => Err(ControlError::Unknown(format!(
                "the worker of partition {partition} of {name} has ended: {unknown}"
            ))),
            Err(RecvTimeoutError::Timeout) => Err(ControlError::Deadline(format!(
                "no commit of partition {partition} of {name} in time; what was asked may still come to pass: {unknown}"
            ))),
        }
    }
}

/// Who asks, checked with the filter, and of which task.
struct Asked<'a> {
    deployment: &'a str,
    partition: Option<i32>,
    author: &'a str,
}

fn entry(registered: &Registered, asked: &Asked<'_>, what: &Unpark) -> proto::UnparkEntry {
    let (filter, drop, waiting, discard) = match what {
        Unpark::Release { filter } => (filter, false, false, false),
        Unpark::Drop { filter, waiting, discard } => (filter, true, *waiting, *discard),
    };
    proto::UnparkEntry {
        deployment: registered.name.clone(),
        incarnation: registered.incarnation.clone(),
        partition: asked.partition.unwrap_or_default(),
        filter: Some(filter.clone()),
        drop,
        waiting,
        discard,
        author: asked.author.to_owned(),
    }
}

/// A deployment that may have parked records. One that parks nothing may have those of an earlier version, or
/// letters on their way back.
fn keeps(registered: &Registered) -> Result<&DeploymentSpec, ControlError> {
    let spec = registered.parsed.spec.as_ref().map_err(|problems| ControlError::Unmet(problems.clone()))?;
    if spec.failures.keeps_records() || registered.keeps_state() {
        return Ok(spec);
    }
    Err(ControlError::Precondition(format!(
        "{} keeps nothing, so nothing of it is parked: its `failures:` neither try records again nor say `then: park`",
        registered.name
    )))
}

/// A deployment whose dropped records have somewhere to go.
fn buries(name: &str, spec: &DeploymentSpec) -> Result<(), ControlError> {
    if spec.writes_letters() {
        return Ok(());
    }
    Err(ControlError::Precondition(format!(
        "{name} has no dead-letter topic that dropped records could go to: give its `failures:` a block \
         `dead_letters: {{}}` and deploy it, or discard them (`tidemill parked drop --discard`)"
    )))
}

/// A filter, or everything that is wrong with it and with who asks.
fn checked(filter: &Option<proto::ParkedFilter>, author: &str) -> Result<proto::ParkedFilter, ControlError> {
    let filter = filter.clone().unwrap_or_default();
    let mut problems = Vec::from_iter(too_long("author", author, AUTHOR_BYTES_MAX));
    if filter.encoded_len() > FILTER_BYTES_MAX {
        let message = format!("it has {} bytes; at most {FILTER_BYTES_MAX} are taken", filter.encoded_len());
        problems.push(Problem::at("filter", message));
    }
    let known = FailureKind::ALL.map(FailureKind::as_str);
    for kind in filter.kinds.iter().filter(|kind| !known.contains(&kind.as_str())) {
        let message = format!("`{kind}` is no kind of failure: there are {}", known.join(", "));
        problems.push(Problem::at("filter.kinds", message));
    }
    refuse(problems)?;
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_match_is_refused_with_all_that_is_wrong() {
        let filter = proto::ParkedFilter {
            keys: vec![vec![0; FILTER_BYTES_MAX]],
            kinds: vec!["transient".into(), "permanently".into(), "".into()],
            ..proto::ParkedFilter::default()
        };
        let long = "x".repeat(AUTHOR_BYTES_MAX + 1);
        let refused = checked(&Some(filter), &long);
        let Err(ControlError::Invalid(problems)) = refused else { panic!("it is refused") };
        let wrong: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(wrong, ["author", "filter", "filter.kinds", "filter.kinds"]);
        assert_eq!(checked(&None, "").expect("everything"), proto::ParkedFilter::default());
    }
}
