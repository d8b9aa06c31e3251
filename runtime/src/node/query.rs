//! Reads of committed state: one partition, one snapshot, one position.
//!
//! Runs on threads of the control plane; never sees an overlay, and never answers empty for state
//! that it does not have.

use tidemill_proto::v1 as proto;

use super::board::TaskEntry;
use super::handle::ControlError;
use super::registered::Registered;
use super::runtime::NodeRuntime;
use crate::config::manifest::Manifest;
use crate::record::Offset;
use crate::store::{Position, Snapshot, StoreError, StoreReader};
use crate::telemetry::TaskState;

pub fn get(
    node: &NodeRuntime,
    request: &proto::GetStateRequest,
) -> Result<proto::GetStateResponse, ControlError> {
    let target = Target::find(node, &request.deployment, &request.store, request.partition)?;
    let (value, read_at) = target.read(node, |snapshot| snapshot.get(&request.store, &request.key))?;
    let entries = value
        .map(|value| proto::StateEntry { partition: target.partition, key: request.key.clone(), value })
        .into_iter()
        .collect();
    Ok(proto::GetStateResponse { entries, read_at: vec![read_at] })
}

/// `page_token` is the last key of the page before; `next_page_token` of the answer likewise.
pub fn scan(
    node: &NodeRuntime,
    request: &proto::ScanStateRequest,
) -> Result<proto::ScanStateResponse, ControlError> {
    let target = Target::find(node, &request.deployment, &request.store, request.partition)?;
    let start = match request.page_token.as_slice() {
        [] => request.prefix.clone(),
        // The least key above the last one.
        last => [last, &[0]].concat(),
    };
    let end = prefix_end(&request.prefix);
    let (page, read_at) =
        target.read(node, |snapshot| snapshot.scan(&request.store, &start, end.as_deref(), request.limit))?;
    let entries: Vec<_> = page
        .keys
        .iter()
        .zip(page.values.iter())
        .map(|(key, value)| proto::StateEntry {
            partition: target.partition,
            key: key.unwrap_or_default().to_vec(),
            value: value.unwrap_or_default().to_vec(),
        })
        .collect();
    let next_page_token = match entries.last() {
        Some(last) if page.more => last.key.clone(),
        _ => Vec::new(),
    };
    Ok(proto::ScanStateResponse { entries, read_at: vec![read_at], next_page_token })
}

/// Positions in the form in which every answer shows them.
pub fn positions(
    positions: &[(u16, Offset)],
    inputs: &[String],
    partition: i32,
) -> Vec<proto::InputPosition> {
    positions
        .iter()
        .map(|(input, offset)| proto::InputPosition {
            topic: inputs.get(usize::from(*input)).cloned().unwrap_or_default(),
            partition,
            offset: offset.0,
        })
        .collect()
}

struct Target {
    partition: i32,
    reader: StoreReader,
    inputs: Vec<String>,
}

impl Target {
    fn find(
        node: &NodeRuntime,
        name: &str,
        store: &str,
        partition: Option<i32>,
    ) -> Result<Target, ControlError> {
        let view = node.control_log.view();
        let registered = view
            .deployments
            .get(name)
            .ok_or_else(|| ControlError::NotFound(format!("{name} is not deployed")))?;
        let manifest = manifest(registered)?;
        if !manifest.stores.iter().any(|known| known.name == store) {
            let names: Vec<_> = manifest.stores.iter().map(|store| store.name.as_str()).collect();
            return Err(ControlError::NotFound(match names.as_slice() {
                [] => format!("{name} has no stores"),
                names => format!("{name} has no store {store}; it has {}", names.join(", ")),
            }));
        }
        let Some(partition) = partition else {
            return Err(ControlError::Invalid(vec!["a local read names its partition".into()]));
        };
        let task = node.board(name).and_then(|board| board.task(partition));
        let reader = readable(name, partition, task)?;
        Ok(Target { partition, reader, inputs: registered.topics() })
    }

    /// Value and position under one snapshot.
    fn read<T>(
        &self,
        node: &NodeRuntime,
        read: impl FnOnce(&Snapshot<'_>) -> Result<T, StoreError>,
    ) -> Result<(T, proto::StatePosition), ControlError> {
        let answer = self.reader.snapshot(|snapshot| Ok((read(snapshot)?, snapshot.position()?)));
        let (value, position) = answer.map_err(|error| match error {
            StoreError::Closed => {
                ControlError::Unavailable(format!("partition {} is moving; try again", self.partition))
            }
            error => ControlError::Internal(error.to_string()),
        })?;
        Ok((value, self.true_at(node, position)))
    }

    fn true_at(&self, node: &NodeRuntime, position: Option<Position>) -> proto::StatePosition {
        let inputs = position.map(|position| position.inputs).unwrap_or_default();
        proto::StatePosition {
            partition: self.partition,
            positions: inputs
                .into_iter()
                .filter(|input| self.inputs.contains(&input.topic))
                .map(|input| proto::InputPosition {
                    topic: input.topic,
                    partition: self.partition,
                    offset: input.offset,
                })
                .collect(),
            node: node.id.clone(),
            cluster: node.cluster_id.clone(),
        }
    }
}

fn manifest(registered: &Registered) -> Result<&Manifest, ControlError> {
    let manifest = registered.parsed.manifest.as_ref();
    manifest.map_err(|error| ControlError::Internal(format!("manifest of {}: {error}", registered.name)))
}

fn readable(name: &str, partition: i32, task: Option<TaskEntry>) -> Result<StoreReader, ControlError> {
    let Some(task) = task else {
        return Err(ControlError::Unavailable(format!(
            "partition {partition} of {name} is not on this node"
        )));
    };
    match (task.state, task.reader) {
        (TaskState::Running | TaskState::Halted, Some(reader)) => Ok(reader),
        (TaskState::Halted, None) => Err(ControlError::Precondition(format!(
            "partition {partition} of {name} is halted and its state cannot be read: {}",
            task.reason
        ))),
        _ => Err(ControlError::Unavailable(format!(
            "partition {partition} of {name} is restoring, {} changelog records to go; try again",
            task.metrics.restore_remaining.get()
        ))),
    }
}

/// The least byte string above everything that starts with `prefix`; none when there is no such.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_above_all_that_starts_with_it() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(&[1, 0xff]), Some(vec![2]));
        assert_eq!(prefix_end(&[0xff]), None);
        assert_eq!(prefix_end(b""), None);
    }
}
