//! The state directory: where each task's database lies, and what of it waits to be collected.
//!
//! | path below `<state_dir>` | what |
//! |---|---|
//! | `<deployment>/<incarnation>/<partition>/` | the database of a task |
//! | `<deployment>/<incarnation>/<partition>.unused` | since when it is of no use, as was found: ms since the epoch, decimal |
//!
//! On disk since 0.1, the marks since 0.2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::StoreError;

#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// A directory that holds the database of a task, or did.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoreDir {
    pub deployment: String,
    pub incarnation: String,
    pub partition: i32,
    pub path: PathBuf,
}

/// What its files say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Files {
    pub bytes: u64,
    /// When the last of them was written; ms since the epoch.
    pub written_ms: i64,
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

    /// Every directory that has the place of a database. What has another place is nobody's business.
    pub fn stores(&self) -> Result<Vec<StoreDir>, StoreError> {
        let mut found = Vec::new();
        for deployment in directories(&self.root)? {
            for incarnation in directories(&deployment)? {
                for path in directories(&incarnation)? {
                    let Ok(partition) = name(&path).parse() else { continue };
                    let (deployment, incarnation) = (name(&deployment), name(&incarnation));
                    found.push(StoreDir { deployment, incarnation, partition, path });
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Since when a directory is marked as of no use; none when it is not.
    pub fn unused_since(&self, store: &StoreDir) -> Option<i64> {
        fs::read_to_string(mark(store)).ok()?.trim().parse().ok()
    }

    /// The mark survives the node, so that a restart does not begin the wait anew.
    pub fn mark_unused(&self, store: &StoreDir, since_ms: i64) -> Result<(), StoreError> {
        let path = mark(store);
        fs::write(&path, since_ms.to_string())
            .map_err(|error| StoreError::Io(format!("cannot write {}: {error}", path.display())))
    }

    /// Takes the mark away, if there is one.
    pub fn unmark(&self, store: &StoreDir) -> Result<(), StoreError> {
        let path = mark(store);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io(format!("cannot delete {}: {error}", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Deletes a directory that nobody has open, its mark, and what is empty above it.
    pub fn remove(&self, store: &StoreDir) -> Result<(), StoreError> {
        remove(&store.path)?;
        self.unmark(store)?;
        // Both fail when something is left in them, which is then as it should be.
        if let Some(incarnation) = store.path.parent() {
            let _ = fs::remove_dir(incarnation);
            let _ = incarnation.parent().map(fs::remove_dir);
        }
        Ok(())
    }
}

impl StoreDir {
    /// What cannot be read counts for nothing: it may be going just now.
    pub fn files(&self) -> Files {
        let mut files = Files::default();
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            files.bytes += metadata.len();
            let written = metadata.modified().unwrap_or(UNIX_EPOCH);
            files.written_ms = files.written_ms.max(ms(written));
        }
        files
    }
}

fn mark(store: &StoreDir) -> PathBuf {
    store.path.with_extension("unused")
}

fn ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn directories(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error: io::Error| StoreError::Io(format!("cannot list {}: {error}", path.display()));
    let mut found = Vec::new();
    let entries = match fs::read_dir(path) {
        // It has gone since its parent was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            found.push(entry.path());
        }
    }
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
    fn directories_are_listed_marked_and_removed_with_what_is_empty_above_them() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&root.path().join("state")).unwrap();
        for (deployment, incarnation, partition) in [("a", "one", 0), ("a", "two", 10), ("b", "three", 1)] {
            let path = dir.store(deployment, incarnation, partition);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("000001.sst"), [0; 100]).unwrap();
        }
        fs::create_dir_all(dir.path().join("a/one/lost+found")).unwrap();
        let stores = dir.stores().unwrap();
        let names: Vec<_> =
            stores.iter().map(|store| (store.incarnation.as_str(), store.partition)).collect();
        assert_eq!(names, [("one", 0), ("two", 10), ("three", 1)]);
        assert_eq!(stores[0].files().bytes, 100);
        assert!(stores[0].files().written_ms > 1_600_000_000_000);

        assert_eq!(dir.unused_since(&stores[1]), None);
        dir.mark_unused(&stores[1], 7).unwrap();
        assert_eq!(dir.unused_since(&stores[1]), Some(7));
        assert_eq!(dir.stores().unwrap(), stores, "a mark is no store");
        dir.unmark(&stores[1]).unwrap();
        assert_eq!(dir.unused_since(&stores[1]), None);

        dir.mark_unused(&stores[1], 7).unwrap();
        for store in &stores {
            dir.remove(store).unwrap();
        }
        assert!(!dir.path().join("a/two").exists() && !dir.path().join("b").exists());
        assert!(dir.path().join("a/one/lost+found").exists(), "what is not ours stays");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), b"").unwrap();
        let error = StateDir::open(&root.path().join("file/state")).unwrap_err();
        assert!(error.to_string().contains("cannot make"), "{error}");
    }
}
