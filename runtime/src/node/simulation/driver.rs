//! The commit half without its thread: the loop steps it, and while a worker waits for an outcome
//! the world goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::process::Process;
use super::world::World;
use crate::node::commit::{CommitHalf, Done, Driver, Request};

/// A commit half, where the loop and its worker find it.
pub struct Half {
    pub process: Arc<Process>,
    place: Mutex<Place>,
}

struct Place {
    half: CommitHalf,
    busy: bool,
    done: Option<Done>,
}

impl Half {
    pub fn new(process: &Arc<Process>, half: CommitHalf) -> Arc<Half> {
        let place = Mutex::new(Place { half, busy: false, done: None });
        Arc::new(Half { process: Arc::clone(process), place })
    }

    pub fn is_busy(&self) -> bool {
        self.lock().busy
    }

    /// One step of the request under way. Nothing that it calls comes back to this half.
    pub fn step(&self) {
        let mut place = self.lock();
        if place.busy
            && !self.process.is_dead()
            && let Some(done) = self.process.call(|| place.half.step())
        {
            place.busy = false;
            place.done = Some(done);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct LoopDriver {
    pub world: Arc<World>,
    pub half: Arc<Half>,
}

impl Driver for LoopDriver {
    fn start(&mut self, request: Request) -> bool {
        let mut place = self.half.lock();
        place.half.begin(request);
        place.busy = true;
        true
    }

    fn poll(&mut self) -> Option<Done> {
        self.half.lock().done.take()
    }

    fn wait(&mut self) -> Option<Done> {
        loop {
            if let Some(done) = self.poll() {
                return Some(done);
            }
            if self.half.process.is_dead() {
                return None;
            }
            if self.world.lock().random.one_in(2) && !self.world.is_paused(&self.half.process) {
                self.half.step();
            } else {
                self.world.turn();
            }
        }
    }
}
