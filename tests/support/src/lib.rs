//! What tests of several crates share: guests built from source, and certificates.

pub mod certificates;

pub use proptest;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tidemill::wasm::build::cargo_build;

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The component of a guest crate, named by its directory in the workspace (`"plugins/count"`).
///
/// Built by cargo in a target directory of its own inside the shared one, so it costs once per
/// change, and once per process to read. Panics if the guest does not build.
pub fn build_guest(dir: &str) -> Arc<[u8]> {
    static BUILT: Mutex<Option<HashMap<String, Arc<[u8]>>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    if let Some(component) = built.get(dir) {
        return component.clone();
    }
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => workspace().join("target"),
    };
    match cargo_build(&workspace().join(dir), Some(&target.join("guests"))) {
        Ok(guest) => {
            let component: Arc<[u8]> = guest.component.into();
            built.insert(dir.into(), component.clone());
            component
        }
        Err(error) => panic!("guest {dir}: {error}"),
    }
}
