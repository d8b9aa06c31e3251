//! Who this node is: an id made once and kept in the state directory, which one process at a time
//! may use.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::FileLock;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("state directory {0} is used by another running node; give each node a state_dir of its own")]
    InUse(PathBuf),
    #[error("{path}: {reason}; check the directory's owner and permissions, or set state_dir")]
    Disk { path: PathBuf, reason: io::Error },
    #[error(
        "{path} says node {found}, the configuration says {wanted}; a state directory belongs to one node"
    )]
    Other { path: PathBuf, found: String, wanted: String },
}

/// Holds the state directory for as long as it lives.
#[derive(Debug)]
pub struct Identity {
    pub node_id: String,
    _lock: FileLock,
}

impl Identity {
    /// Locks the directory and reads the id, or makes one.
    pub fn open(state_dir: &Path, configured: Option<&str>) -> Result<Identity, IdentityError> {
        let path = state_dir.join("node.lock");
        let lock = match FileLock::take(&path) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse(state_dir.to_owned())),
            Err(TryLockError::Error(reason)) => return Err(disk(&path, reason)),
        };
        let path = state_dir.join("node.id");
        let kept = match std::fs::read_to_string(&path) {
            Ok(kept) => Some(kept.trim().to_owned()).filter(|kept| !kept.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(reason) => return Err(disk(&path, reason)),
        };
        if let (Some(found), Some(wanted)) = (&kept, configured)
            && found != wanted
        {
            return Err(IdentityError::Other { path, found: found.clone(), wanted: wanted.to_owned() });
        }
        let node_id = match kept {
            Some(kept) => kept,
            None => {
                let made = configured.map_or_else(generate, str::to_owned);
                std::fs::write(&path, &made).map_err(|reason| disk(&path, reason))?;
                made
            }
        };
        Ok(Identity { node_id, _lock: lock })
    }
}

/// Short enough to read out, long enough not to meet another of the same fleet.
fn generate() -> String {
    let full = uuid::Uuid::new_v4().simple().to_string();
    format!("node-{}", &full[..8])
}

fn disk(path: &Path, reason: io::Error) -> IdentityError {
    IdentityError::Disk { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_its_directory_to_itself() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Identity::open(dir.path(), None).expect("opens");
        assert!(matches!(Identity::open(dir.path(), None), Err(IdentityError::InUse(_))));
        let id = first.node_id.clone();
        drop(first);
        assert_eq!(Identity::open(dir.path(), None).expect("opens again").node_id, id);
        let other = Identity::open(dir.path(), Some("other"));
        assert!(matches!(other, Err(IdentityError::Other { .. })));
    }
}
