//! Files that somebody names to the program, read up to a bound: what is named may be a device, which says nothing of
//! how much it holds.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Of a file that holds a secret and nothing else. The longest are private keys, of a few KiB.
const SECRET_KIB_MAX: u64 = 64;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// By the bound, in bytes.
    #[error("it has more than the {0} bytes that are read")]
    TooLarge(u64),
}

/// All that a file holds, unless it is more than so many bytes.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    // One more, to tell a file that is too large from one that is just not.
    let read = File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if read as u64 > bytes_max { Err(ReadError::TooLarge(bytes_max)) } else { Ok(bytes) }
}

/// The secret that a file holds, without the end of its last line. What is wrong is said without it.
pub fn secret(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let bytes = read(path, SECRET_KIB_MAX << 10).map_err(|error| match error {
        ReadError::TooLarge(_) => format!(
            "{shown} is larger than {SECRET_KIB_MAX} KiB, the most for a secret: name a file that holds it and nothing else"
        ),
        ReadError::Io(error) => format!("{shown} cannot be read: {error}"),
    })?;
    let text = String::from_utf8(bytes).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Refuses what is no regular file. Of one that a deployment's document names: who wrote that is not who runs the node,
/// and whoever reads a pipe waits for as long as nobody writes to it.
pub fn expect_regular(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(format!("{} is no regular file", path.display())),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_one_without_an_end_is_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "12345678").expect("written");
        assert_eq!(read(file.path(), 8).expect("just not too large"), b"12345678");
        assert!(matches!(read(file.path(), 7), Err(ReadError::TooLarge(7))));
        assert!(matches!(read(Path::new("/dev/zero"), 8), Err(ReadError::TooLarge(8))));
        assert!(matches!(read(Path::new("/nowhere"), 8), Err(ReadError::Io(_))));
    }

    #[test]
    fn what_is_no_regular_file_is_told_from_one() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(expect_regular(file.path()), Ok(()));
        for (path, why) in [
            ("/dev/zero", "/dev/zero is no regular file"),
            ("/", "/ is no regular file"),
            ("/nowhere", "/nowhere cannot be read"),
        ] {
            let refused = expect_regular(Path::new(path)).expect_err(path);
            assert!(refused.starts_with(why), "{refused}");
        }
    }
}
