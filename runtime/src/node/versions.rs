//! The versions of a deployment as people see them: one after the other, and against each other.

use tidemill_proto::v1 as proto;

use super::handle::{ControlError, Handle, ownership, store_info};
use super::history::Version;
use super::registered::Registered;
use crate::config::changes::Change;
use crate::config::deployment::DeploymentSpec;
use crate::config::manifest::Manifest;

impl Handle {
    /// The newest first.
    pub fn history(&self, name: &str) -> Result<proto::HistoryResponse, ControlError> {
        let registered = self.registered(name)?;
        let current = registered.version();
        let versions = registered.history.iter().rev();
        Ok(proto::HistoryResponse {
            versions: versions.map(|version| shown(version, current)).collect(),
            forgotten: registered.history.forgotten(),
        })
    }

    pub fn diff(&self, request: &proto::DiffRequest) -> Result<proto::DiffResponse, ControlError> {
        let registered = self.registered(&request.name)?;
        let to = if request.to == 0 { registered.version() } else { request.to };
        let from = if request.from == 0 { to.saturating_sub(1) } else { request.from };
        if from == 0 {
            let name = &request.name;
            return Err(ControlError::Precondition(format!("version {to} of {name} has none before it")));
        }
        let (before, after) = (version(&registered, from)?, version(&registered, to)?);
        let changes = before.changes_to(after).into_iter().map(change).collect();
        Ok(proto::DiffResponse { from, to, changes })
    }
}

/// One of those that the node remembers.
pub(super) fn version(registered: &Registered, number: u64) -> Result<&Version, ControlError> {
    registered.history.get(number).map(AsRef::as_ref).ok_or_else(|| {
        ControlError::NotFound(format!(
            "{} has no version {number}; it has {} to {}",
            registered.name,
            registered.history.forgotten() + 1,
            registered.version()
        ))
    })
}

pub(super) fn change(change: Change) -> proto::Change {
    proto::Change { field: change.field, before: change.before, after: change.after }
}

fn shown(version: &Version, current: u64) -> proto::Version {
    proto::Version {
        version: version.number,
        revision: version.revision,
        module: version.module.clone(),
        document: version.document.clone(),
        author: version.author.clone(),
        deployed_at_ms: version.deployed_at_ms,
        rollback_to: version.rollback_to.unwrap_or(0),
        automatic: version.automatic,
        reason: version.reason.clone(),
        current: version.number == current,
        stores: serde_json::from_str::<Manifest>(&version.manifest)
            .map(|manifest| manifest.stores.iter().map(store_info).collect())
            .unwrap_or_default(),
        dropped_stores: version.dropped.clone(),
        ownership: DeploymentSpec::parse(&version.document).ok().map(|spec| ownership(&spec.ownership)),
    }
}
