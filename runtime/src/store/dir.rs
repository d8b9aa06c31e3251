//! The state directory: where each task's database lies, whether the disk can be used, and what in
//! it belongs to nobody any more.
//!
//! Layout: `<state_dir>/<deployment>/<incarnation>/<partition>/`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::StoreError;

#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// What a state directory was found to be like at start (ST-34).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDirCheck {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

impl StateDir {
    /// Makes the directory if need be and checks that it can be written to and has at least
    /// `free_bytes_min` bytes left.
    pub fn open(root: &Path, free_bytes_min: u64) -> Result<(StateDir, StateDirCheck), StoreError> {
        let shown = root.display();
        fs::create_dir_all(root).map_err(|error| {
            StoreError::Io(format!(
                "cannot make state directory {shown}: {error}; create it or set another one"
            ))
        })?;
        probe(root).map_err(|error| {
            StoreError::Io(format!(
                "cannot write to state directory {shown}: {error}; give the node's user write permission"
            ))
        })?;
        let space = rustix::fs::statvfs(root)
            .map_err(|error| StoreError::Io(format!("cannot ask for free space of {shown}: {error}")))?;
        let check = StateDirCheck {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
        };
        if check.free_bytes < free_bytes_min {
            return Err(StoreError::Io(format!(
                "state directory {shown} has {} MiB free, at least {} MiB are needed; free some space or set another directory",
                check.free_bytes >> 20,
                free_bytes_min >> 20,
            )));
        }
        Ok((StateDir { root: root.to_path_buf() }, check))
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

fn probe(root: &Path) -> io::Result<()> {
    let path = root.join(format!(".probe-{}", std::process::id()));
    let written = fs::File::create(&path).and_then(|mut file| file.write_all(b"probe"));
    let removed = fs::remove_file(&path);
    written.and(removed)
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
    fn a_state_directory_is_made_checked_and_cleared_of_strangers() {
        let root = tempfile::tempdir().unwrap();
        let (dir, check) = StateDir::open(&root.path().join("state"), 1).unwrap();
        assert!(check.free_bytes > 0 && check.total_bytes >= check.free_bytes);

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
    fn a_full_disk_is_named_before_anything_is_written_to_it() {
        let root = tempfile::tempdir().unwrap();
        let error = StateDir::open(root.path(), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("MiB free"), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), b"").unwrap();
        let error = StateDir::open(&root.path().join("file/state"), 0).unwrap_err();
        assert!(error.to_string().contains("cannot make state directory"), "{error}");
    }
}
