//! `tidemill new`: a crate that builds, whose test passes, and that deploys as it is.
//!
//! The SDK's sources are part of this program and are written into the new crate (`.tidemill/sdk`),
//! because a dependency by path is the one kind that works on every machine, whatever registry it
//! reaches. They are of this node's own version, so they speak its ABI.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the SDK lies in a new crate.
const SDK_DIR: &str = ".tidemill/sdk";

/// Longest name: it becomes part of topic names.
const NAME_LEN_MAX: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum ScaffoldError {
    #[error(
        "`{0}` cannot name a handler: use 1 to {NAME_LEN_MAX} of a-z, 0-9 and `-`, beginning with a letter"
    )]
    Name(String),
    #[error("{0} exists already; choose another name, or remove it")]
    Exists(PathBuf),
    #[error("{path} is no tidemill-sdk: it has no Cargo.toml")]
    NoSdk { path: PathBuf },
    #[error("cannot write {path}: {error}")]
    Write { path: PathBuf, error: io::Error },
}

macro_rules! sdk_files {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../../../sdk/", $path)))),*]
    };
}

/// Every file of the SDK, by its path in it.
const SDK: [(&str, &str); 17] = sdk_files![
    "Cargo.toml",
    "macros/Cargo.toml",
    "macros/src/lib.rs",
    "src/column.rs",
    "src/context.rs",
    "src/emit.rs",
    "src/failure.rs",
    "src/guest.rs",
    "src/lib.rs",
    "src/payload.rs",
    "src/random.rs",
    "src/record.rs",
    "src/state.rs",
    "src/store.rs",
    "src/testing.rs",
    "src/testing/node.rs",
    "wit/handler.wit",
];

/// Writes the crate `name` into `parent` and returns its directory. With `sdk` the crate depends on
/// the SDK in that directory instead of a copy of its own.
pub fn scaffold(name: &str, parent: &Path, sdk: Option<&Path>) -> Result<PathBuf, ScaffoldError> {
    let plain = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-';
    let starts_well = name.starts_with(|char: char| char.is_ascii_lowercase());
    if !starts_well || name.len() > NAME_LEN_MAX || !name.chars().all(plain) {
        return Err(ScaffoldError::Name(name.into()));
    }
    let dir = parent.join(name);
    if dir.exists() {
        return Err(ScaffoldError::Exists(dir));
    }
    let sdk = match sdk {
        Some(path) => {
            let missing = |_| ScaffoldError::NoSdk { path: path.into() };
            path.join("Cargo.toml").canonicalize().map_err(missing)?;
            path.canonicalize().map_err(missing)?.display().to_string()
        }
        None => {
            for (path, text) in SDK {
                write(&dir.join(SDK_DIR).join(path), text)?;
            }
            SDK_DIR.into()
        }
    };
    let fill = |template: &str| {
        template
            .replace("{{name}}", name)
            .replace("{{version}}", env!("CARGO_PKG_VERSION"))
            .replace("{{sdk}}", &sdk)
    };
    write(&dir.join("Cargo.toml"), &fill(include_str!("template/Cargo.toml.txt")))?;
    write(&dir.join("src/lib.rs"), &fill(include_str!("template/lib.rs.txt")))?;
    write(&dir.join("deployment.yaml"), &fill(include_str!("template/deployment.yaml.txt")))?;
    write(&dir.join(".gitignore"), &fill(include_str!("template/gitignore.txt")))?;
    Ok(dir)
}

fn write(path: &Path, text: &str) -> Result<(), ScaffoldError> {
    let error = |error| ScaffoldError::Write { path: path.into(), error };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(error)?;
    }
    fs::write(path, text).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_sdk_is_in_the_copy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
        let mut found = BTreeSet::new();
        for dir in ["", "macros", "macros/src", "src", "src/testing", "wit"] {
            for entry in fs::read_dir(root.join(dir)).expect("the SDK is beside this crate") {
                let entry = entry.expect("its directories can be read");
                if entry.path().is_file() {
                    found.insert(Path::new(dir).join(entry.file_name()).display().to_string());
                }
            }
        }
        assert_eq!(found, SDK.map(|(path, _)| path.to_owned()).into());
    }

    #[test]
    fn a_new_crate_is_complete_and_never_overwrites() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = scaffold("word-count", parent.path(), None).expect("written");
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("its manifest");
        assert!(manifest.contains("name = \"word-count\"") && manifest.contains("path = \".tidemill/sdk\""));
        assert!(dir.join(".tidemill/sdk/macros/src/lib.rs").is_file());
        let yaml = fs::read_to_string(dir.join("deployment.yaml")).expect("its deployment");
        assert!(yaml.contains("module: ."), "{yaml}");
        assert!(matches!(scaffold("word-count", parent.path(), None), Err(ScaffoldError::Exists(_))));
    }

    #[test]
    fn names_that_cannot_be_topics_and_crates_are_refused() {
        for name in ["", "Word", "1st", "a_b", "../a", &"a".repeat(101)] {
            let parent = tempfile::tempdir().expect("a temporary directory");
            assert!(matches!(scaffold(name, parent.path(), None), Err(ScaffoldError::Name(_))), "{name}");
        }
    }
}
