//! Questions about one id: has a partition's inbox seen it, when, and whose record was it.
//!
//! Answered like a read of state, from one snapshot: whether an id is still remembered is judged by the
//! horizon of the position that the answer is true at.

use std::time::Instant;

use tidemill_proto::v1 as proto;

use super::handle::ControlError;
use super::query::Target;
use super::registered::Registered;
use super::runtime::NodeRuntime;
use crate::config::Problem;
use crate::config::manifest::StoreKind;
use crate::store::{StoreError, Table};
use crate::task::{ID_BYTES_MAX, Seen, topic_at};

pub fn get(
    node: &NodeRuntime,
    request: &proto::GetInboxRequest,
    until: Instant,
) -> Result<proto::GetInboxResponse, ControlError> {
    let name = &request.deployment;
    let view = node.control_log.view();
    let registered = view
        .deployments
        .get(name)
        .ok_or_else(|| ControlError::NotFound(format!("{name} is not deployed")))?;
    let ttl_ms = ttl_ms(registered)?;
    if request.id.is_empty() || request.id.len() > ID_BYTES_MAX {
        let reason = format!("has {} bytes; ids have 1 to {ID_BYTES_MAX}", request.id.len());
        return Err(ControlError::Invalid(vec![Problem::at("id", reason)]));
    }
    let target = Target::of(registered, StoreKind::Bytes, request.partition)?;
    let task = target.wait(node, &request.at_least, until)?;
    let ((seen, position), read_at) = target.read(node, &task, &request.at_least, |snapshot| {
        let row = snapshot.row(Table::Inbox, &request.id)?;
        let seen = row.map(|row| Seen::decode(&row).ok_or_else(unreadable)).transpose()?;
        Ok((seen, snapshot.position()?))
    })?;
    let horizon_ms = position.as_ref().map_or(i64::MIN, |position| position.inbox_horizon_ms);
    let topic = |seen: Seen| topic_at(position.as_ref(), &target.inputs, seen.input.into());
    let entry = seen.map(|seen| proto::SeenId {
        partition: request.partition.unwrap_or_default(),
        topic: topic(seen).map(|(topic, _)| topic.to_owned()).unwrap_or_default(),
        offset: seen.offset,
        seen_at_ms: seen.horizon_ms,
        expires_at_ms: seen.horizon_ms.saturating_add(ttl_ms),
        expired: horizon_ms >= seen.horizon_ms.saturating_add(ttl_ms),
        revision: seen.revision,
        version: registered.history.at(seen.revision).map_or(0, |version| version.number),
    });
    Ok(proto::GetInboxResponse { entries: entry.into_iter().collect(), read_at: vec![read_at] })
}

fn ttl_ms(registered: &Registered) -> Result<i64, ControlError> {
    let name = &registered.name;
    let spec = registered.parsed.spec.as_ref().map_err(|problems| ControlError::Unmet(problems.clone()))?;
    let inbox = spec.inbox.as_ref().filter(|inbox| inbox.id.is_some()).ok_or_else(|| {
        ControlError::Precondition(format!(
            "{name} has no inbox with an `id`, so it remembers no ids; `inbox: {{ id: ..., ttl: ... }}` in its document gives it one"
        ))
    })?;
    Ok(i64::try_from(inbox.ttl.as_millis()).unwrap_or(i64::MAX))
}

fn unreadable() -> StoreError {
    StoreError::Corrupt("a row of the inbox is not readable".into())
}
