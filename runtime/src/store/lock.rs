//! A file that says a directory is taken.

use std::fs::{File, TryLockError};
use std::path::Path;

/// Held until dropped, or until the process ends.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// `WouldBlock` = somebody else holds it.
    pub fn take(path: &Path) -> Result<FileLock, TryLockError> {
        let file = File::create(path).map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(FileLock(file))
    }
}

impl Drop for FileLock {
    /// Explicitly, not by closing the file: a child process that is being started has copies of all
    /// our descriptors until it runs its own program, and the lock would stay with its copy so long.
    fn drop(&mut self) {
        // It fails only for a descriptor that is none.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_free_once_dropped_whoever_has_a_copy_of_its_descriptor() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let lock = FileLock::take(&path).expect("free");
        let _copy = lock.0.try_clone().expect("a copy, as a fork makes one");
        assert!(matches!(FileLock::take(&path), Err(TryLockError::WouldBlock)));
        drop(lock);
        FileLock::take(&path).expect("free again");
    }
}
