//! Editing state by hand: checked, recorded, then handed to the worker that runs the task.

use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, bounded};
use sha2::{Digest, Sha256};
use tidemill_proto::v1 as proto;
use tidemill_proto::v1::control_entry::Entry;
use tidemill_proto::v1::edit_state_request::Change;

use super::board::TaskEntry;
use super::change::AUTHOR_BYTES_MAX;
use super::edits::{EditRequest, Edited};
use super::handle::ControlError;
use super::query::Target;
use super::runtime::NodeRuntime;
use crate::config::Problem;
use crate::config::manifest::StoreKind;
use crate::task::Edit;
use crate::telemetry::TaskState;

/// Of a key that is edited by hand: it is kept in the control topic for ever.
const KEY_BYTES_MAX: usize = 64 << 10;

/// Edits one key of one task that this node runs; answers when that is committed.
pub fn edit(
    node: &NodeRuntime,
    request: proto::EditStateRequest,
    until: Instant,
) -> Result<proto::EditStateResponse, ControlError> {
    let target = Target::find(node, &request.deployment, &request.store, Some(request.partition))?;
    let value = check(&request, target.kind).map_err(ControlError::Invalid)?;
    let (name, partition) = (&request.deployment, request.partition);
    let board = node.board(name).ok_or_else(|| target.absent(node))?;
    // Nothing is sent yet, so what restores may be waited for.
    let settled = |task: Option<&TaskEntry>| task.is_none_or(|task| task.state != TaskState::Restoring);
    let Some(task) = board.wait_for(partition, until, settled) else { return Err(target.absent(node)) };
    match task.state {
        TaskState::Running => {}
        TaskState::Halted => {
            return Err(ControlError::Precondition(format!(
                "partition {partition} of {name} is halted, and an edit goes through its task: mend what halted it first ({})",
                task.reason
            )));
        }
        TaskState::Restoring | TaskState::Absent => return Err(target.restoring(&task)),
    }
    let recorded = node.control_log.propose(Entry::Edit(proto::EditEntry {
        deployment: name.clone(),
        incarnation: node.control_log.view().life(name).unwrap_or_default().to_owned(),
        store: request.store.clone(),
        partition,
        key: request.key.clone(),
        value_digest: value.as_ref().map(|value| Sha256::digest(value).to_vec()).unwrap_or_default(),
        author: request.author.clone(),
    }));
    recorded.map_err(ControlError::not_recorded)?;
    tracing::info!(
        deployment = name,
        partition,
        store = request.store,
        author = request.author,
        deletes = value.is_none(),
        "state is edited by hand"
    );
    let (reply, outcome) = bounded(1);
    let edit = Edit { store: request.store, key: request.key, value };
    let busy =
        || ControlError::Unavailable(format!("partition {partition} of {name} takes no edit now; try again"));
    if !board.edit(EditRequest { partition, edit, reply }) {
        return Err(busy());
    }
    let left = until.saturating_duration_since(Instant::now());
    let unknown = "the edit may be committed or not: read the key (`tidemill state get`), and repeat the edit if it is not \
                   there";
    match outcome.recv_timeout(left) {
        Ok(Edited::Done(at)) => {
            let positions = super::query::positions(&at, &target.inputs, partition);
            Ok(proto::EditStateResponse { edited_at: Some(target.read_at(node, &task, positions)) })
        }
        Ok(Edited::Refused(reason)) => Err(ControlError::Invalid(vec![Problem::at("change", reason)])),
        Ok(Edited::NotRunning(reason)) => Err(ControlError::Unavailable(format!(
            "partition {partition} of {name} takes no edit now ({reason}); nothing was changed; try again"
        ))),
        Ok(Edited::Unknown) => {
            Err(ControlError::Unknown(format!("partition {partition} of {name} was recovered: {unknown}")))
        }
        Err(RecvTimeoutError::Disconnected) => Err(ControlError::Unknown(format!(
            "the worker of partition {partition} of {name} has ended: {unknown}"
        ))),
        Err(RecvTimeoutError::Timeout) => Err(ControlError::Deadline(format!(
            "no commit of partition {partition} of {name} in time: {unknown}"
        ))),
    }
}

/// The value to put, none to delete; or everything that is wrong with a request.
fn check(request: &proto::EditStateRequest, kind: StoreKind) -> Result<Option<Vec<u8>>, Vec<Problem>> {
    let mut problems = Vec::new();
    if request.key.len() > KEY_BYTES_MAX {
        problems.push(Problem::at(
            "key",
            format!("it has {} bytes; at most {KEY_BYTES_MAX} are taken", request.key.len()),
        ));
    }
    if request.author.len() > AUTHOR_BYTES_MAX {
        problems.push(Problem::at(
            "author",
            format!("it has {} bytes; at most {AUTHOR_BYTES_MAX} are taken", request.author.len()),
        ));
    }
    let value = match &request.change {
        Some(Change::Delete(true)) => Ok(None),
        Some(Change::Text(text)) => kind.parse(text).map(Some).map_err(|reason| Problem::at("text", reason)),
        Some(Change::Value(value)) if kind != StoreKind::Bytes && kind.text(value).is_none() => {
            Err(Problem::at(
                "value",
                format!(
                    "these bytes are no {}, which the store holds; `text` is easier to get right",
                    kind.as_str()
                ),
            ))
        }
        Some(Change::Value(value)) => Ok(Some(value.clone())),
        Some(Change::Delete(false)) | None => {
            Err(Problem::at("change", "give a value, a text, or delete: true"))
        }
    };
    match value {
        Ok(value) if problems.is_empty() => Ok(value),
        Ok(_) => Err(problems),
        Err(problem) => Err([problems, vec![problem]].concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_fits_its_store_or_says_everything_that_is_wrong() {
        let request = |change| proto::EditStateRequest { change, ..proto::EditStateRequest::default() };
        let put = request(Some(Change::Text("7".into())));
        assert_eq!(check(&put, StoreKind::U64), Ok(Some(7u64.to_le_bytes().to_vec())));
        assert_eq!(check(&request(Some(Change::Delete(true))), StoreKind::Json), Ok(None));
        let wrong = proto::EditStateRequest {
            author: "x".repeat(AUTHOR_BYTES_MAX + 1),
            ..request(Some(Change::Value(b"seven".to_vec())))
        };
        assert_eq!(check(&wrong, StoreKind::U64).map_err(|problems| problems.len()), Err(2));
        assert_eq!(check(&request(None), StoreKind::Bytes).map_err(|problems| problems.len()), Err(1));
    }
}
