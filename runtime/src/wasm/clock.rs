//! CPU time of the calling thread: what a handler has used, however starved the machine is. And the
//! other reason to end a call early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// CPU time that the calling thread has used since it started.
pub fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the duration of the call, which writes
    // nothing else and keeps no pointer.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    debug_assert_eq!(result, 0, "every supported kernel has a thread CPU clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The CPU time that one call into a guest may use.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowance {
    started: Duration,
    allowed: Duration,
}

impl Allowance {
    /// Starts now, on this thread.
    pub fn start(allowed: Duration) -> Allowance {
        Allowance { started: thread_cpu_time(), allowed }
    }

    /// Must be asked on the thread that started it.
    pub fn is_used_up(&self) -> bool {
        thread_cpu_time().saturating_sub(self.started) > self.allowed
    }
}

/// Ends the calls of all instances that share it, once raised, within a tick, and every later one.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
