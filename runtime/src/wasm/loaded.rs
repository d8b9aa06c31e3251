//! Modules that are loaded, by digest: deployments of the same module share its native code, and a module is loaded
//! once for its plan, its deploy and its start.
//!
//! A module goes when nobody has it any more and others have been loaded since.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Module;
use super::module::Contents;

/// Of modules that are kept although nobody may have them, the last ones, bytes. Their native code has a few times as
/// many.
const KEPT_BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
pub(super) struct Loaded(Mutex<State>);

#[derive(Default)]
struct State {
    /// Those that somebody has are among them.
    known: HashMap<String, Weak<Contents>>,
    /// With their bytes, the last one first.
    kept: VecDeque<(Module, usize)>,
}

impl Loaded {
    pub fn get(&self, digest: &str) -> Option<Module> {
        self.lock().known.get(digest)?.upgrade().map(Module)
    }

    /// `bytes`: of the module, not of its code.
    pub fn keep(&self, module: &Module, bytes: usize) {
        let mut state = self.lock();
        if bytes <= KEPT_BYTES_MAX {
            state.kept.push_front((module.clone(), bytes));
            while state.kept.iter().map(|(_, bytes)| bytes).sum::<usize>() > KEPT_BYTES_MAX {
                state.kept.pop_back();
            }
        }
        state.known.retain(|_, contents| contents.strong_count() > 0);
        state.known.insert(module.digest().to_owned(), Arc::downgrade(&module.0));
    }

    /// A panic elsewhere leaves a module too many at worst.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
