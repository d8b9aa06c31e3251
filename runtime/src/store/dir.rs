//! The state directory: where each task's database lies, and what in it belongs to nobody any more.
//!
//! Layout: `<state_dir>/<deployment>/<incarnation>/<partition>/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;

#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Makes the directory if need be. Whether it is fit for use was asked before
    /// (`config::state_dir`).
    pub fn open(root: &Path) -> Result<StateDir, StoreError> {
        fs::create_dir_all(root).map_err(|error| {
            StoreError::Io(format!(
                "cannot make {}: {error}; create it, or set another state_dir",
                root.display()
            ))
        })?;
        Ok(StateDir { root: root.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where the database of a task lies.
    pub fn store(&self, deployment: &str, incarnation: &str, partition: i32) -> PathBuf {
        self.root.join(deployment).join(incarnation).join(partition.to_string())
    }

    /// Deletes the directories of deployments and incarnations that `keep` does not know; answers
    /// what was deleted. Only to be asked once the registry has been read to its end.
    pub fn collect(&self, keep: impl Fn(&str, &str) -> bool) -> Result<Vec<PathBuf>, StoreError> {
        let mut collected = Vec::new();
        for deployment in directories(&self.root)? {
            for incarnation in directories(&deployment)? {
                if !keep(&name(&deployment), &name(&incarnation)) {
                    remove(&incarnation)?;
                    collected.push(incarnation);
                }
            }
            // Fails when something is left in it, which is then as it should be.
            let _ = fs::remove_dir(&deployment);
        }
        Ok(collected)
    }
}

fn directories(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error: io::Error| StoreError::Io(format!("cannot list {}: {error}", path.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io(format!("cannot delete {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_made_and_cleared_of_strangers() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&root.path().join("state")).unwrap();
        for (deployment, incarnation) in [("a", "one"), ("a", "two"), ("b", "three")] {
            fs::create_dir_all(dir.store(deployment, incarnation, 0)).unwrap();
        }
        let collected =
            dir.collect(|deployment, incarnation| (deployment, incarnation) == ("a", "two")).unwrap();
        assert_eq!(collected.len(), 2);
        assert!(dir.store("a", "two", 0).exists());
        assert!(!dir.path().join("b").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), b"").unwrap();
        let error = StateDir::open(&root.path().join("file/state")).unwrap_err();
        assert!(error.to_string().contains("cannot make"), "{error}");
    }
}
