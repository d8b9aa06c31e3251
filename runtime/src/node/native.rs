//! Handlers that are linked into a program instead of those of its modules, to measure what Wasm costs. Nothing of it is
//! in a program that was built without the feature `native`; `tidemill` never has it.
//!
//! Whatever else a node does with a module it does all the same: it checks, compiles and links it. Only the handlers of
//! tasks come from elsewhere.

use std::sync::OnceLock;

use crate::config::manifest::Manifest;
use crate::ports::Handler;

/// Makes the handler of a task, by what its module says about itself.
pub type Factory = fn(&Manifest) -> Result<Box<dyn Handler>, String>;

static FACTORY: OnceLock<Factory> = OnceLock::new();

/// Handlers come from there. Called before anything runs; of several, the first stays.
pub fn run_with(factory: Factory) {
    let _ = FACTORY.set(factory);
}

pub(super) fn factory() -> Option<Factory> {
    FACTORY.get().copied()
}
