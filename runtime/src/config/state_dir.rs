//! Is the state directory fit for use? Asked once at a node's start and by `tidemill doctor`.

use std::io::ErrorKind;
use std::path::Path;

use super::problem::Problems;
use super::units::show_bytes;

/// Creates the directory if need be, proves that it can be written, and looks at the space left.
pub fn check(path: &Path, free_min_bytes: u64) -> Result<(), Problems> {
    let refuse = |message: String| Err(Problems::one("state_dir", message));
    let shown = path.display();
    if let Err(error) = std::fs::create_dir_all(path) {
        return refuse(match error.kind() {
            ErrorKind::PermissionDenied => {
                format!(
                    "{shown} cannot be created, permission denied: change its owner or choose another directory"
                )
            }
            _ => format!("{shown} cannot be created: {error}"),
        });
    }
    if let Err(error) = tempfile::Builder::new().prefix(".write-test").tempfile_in(path) {
        return refuse(match error.kind() {
            ErrorKind::PermissionDenied => {
                format!(
                    "{shown} cannot be written, permission denied: change its owner or choose another directory"
                )
            }
            _ => format!("{shown} cannot be written: {error}"),
        });
    }
    match free_bytes(path) {
        Ok(free) if free < free_min_bytes => refuse(format!(
            "{shown} has {} free, less than state_free_min ({}): free some space or choose another directory",
            show_bytes(free & !0xF_FFFF),
            show_bytes(free_min_bytes)
        )),
        Ok(_) => Ok(()),
        Err(error) => refuse(format!("the free space of {shown} is unknown: {error}")),
    }
}

/// Bytes that this user may still write below `path`.
pub fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_space_or_below_a_file_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(check(&dir.path().join("new"), 1), Ok(()));
        let problems = check(dir.path(), u64::MAX).expect_err("no disk is that large");
        assert!(problems.to_string().contains("state_free_min"), "{problems}");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("written");
        let problems = check(&file.join("below"), 1).expect_err("a file has no children");
        assert!(problems.to_string().starts_with("state_dir: "), "{problems}");
    }
}
