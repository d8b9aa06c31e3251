//! Modules that are loaded, by digest: deployments of the same module share its native code, and a module is loaded
//! once for its plan, its deploy and its start.
//!
//! A module goes when nobody has it any more and others have been loaded since.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Module;
use super::module::Contents;

/// Of modules that are kept although nobody may have them, the last ones, bytes of native code: a module that is made
/// to grow when it is compiled has many times as many as its own.
const KEPT_BYTES_MAX: usize = 16 << 20;

pub(super) struct Loaded {
    kept_bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Those that somebody has are among them.
    known: HashMap<String, Weak<Contents>>,
    /// The last one first.
    kept: VecDeque<Module>,
}

impl Default for Loaded {
    fn default() -> Loaded {
        Loaded::keeping(KEPT_BYTES_MAX)
    }
}

impl Loaded {
    fn keeping(kept_bytes_max: usize) -> Loaded {
        Loaded { kept_bytes_max, state: Mutex::default() }
    }

    pub fn get(&self, digest: &str) -> Option<Module> {
        self.lock().known.get(digest)?.upgrade().map(Module)
    }

    /// Answers the module that everybody is to have: that of somebody else who has loaded the same meanwhile.
    pub fn keep(&self, module: Module) -> Module {
        let mut state = self.lock();
        if let Some(first) = state.known.get(module.digest()).and_then(Weak::upgrade) {
            return Module(first);
        }
        if module.code_bytes() <= self.kept_bytes_max {
            state.kept.push_front(module.clone());
            while state.kept.iter().map(Module::code_bytes).sum::<usize>() > self.kept_bytes_max {
                state.kept.pop_back();
            }
        }
        state.known.retain(|_, contents| contents.strong_count() > 0);
        state.known.insert(module.digest().to_owned(), Arc::downgrade(&module.0));
        module
    }

    /// A panic elsewhere leaves a module too many at worst.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tidemill_test_support::build_guest;

    use super::*;

    #[test]
    fn modules_that_nobody_has_are_kept_by_the_bytes_of_their_native_code_the_last_one_longest() {
        let guests = [build_guest("bench/pass"), build_guest("plugins/count")];
        let modules = guests.each_ref().map(|guest| Module::load(guest).expect("it loads"));
        let digests = modules.each_ref().map(|module| module.digest().to_owned());
        let bytes = modules.each_ref().map(Module::code_bytes);
        drop(modules);
        let (all, least) = (bytes[0] + bytes[1], bytes[0].min(bytes[1]));
        for (room, are_kept) in [(all, [true, true]), (all - 1, [false, true]), (least - 1, [false, false])] {
            let loaded = Loaded::keeping(room);
            for (guest, digest) in guests.iter().zip(&digests) {
                let module = loaded.keep(Module::load(guest).expect("it loads"));
                assert!(loaded.get(digest).is_some(), "somebody has it");
                drop(module);
            }
            let kept = digests.each_ref().map(|digest| loaded.get(digest).is_some());
            assert_eq!(kept, are_kept, "{bytes:?} in {room}");
        }
    }

    #[test]
    fn who_loads_a_module_at_the_same_moment_as_another_has_the_same_one() {
        let (loaded, guest) = (Loaded::keeping(0), build_guest("bench/pass"));
        let [first, second] = [(); 2].map(|()| Module::load(&guest).expect("it loads"));
        let [first, second] = [first, second].map(|module| loaded.keep(module));
        assert!(Arc::ptr_eq(&first.0, &second.0));
    }
}
