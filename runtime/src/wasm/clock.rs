//! CPU time of the calling thread: what a handler has used, however starved the machine is. And the
//! other reason to end a call early.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// Ends the calls of all instances that share it, once it is due, within a tick, and every later one.
#[derive(Debug, Clone)]
pub struct Interrupt {
    /// Nanoseconds of [`uptime`].
    due: Arc<AtomicU64>,
}

impl Default for Interrupt {
    fn default() -> Interrupt {
        Interrupt { due: Arc::new(AtomicU64::new(u64::MAX)) }
    }
}

impl Interrupt {
    /// Due after this time, or earlier if that was said before.
    pub fn raise_in(&self, patience: Duration) {
        self.due.fetch_min(uptime().saturating_add(patience.as_nanos() as u64), Ordering::Relaxed);
    }

    pub fn is_raised(&self) -> bool {
        let due = self.due.load(Ordering::Relaxed);
        due != u64::MAX && due <= uptime()
    }
}

/// Nanoseconds since the first call.
fn uptime() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_raised_when_it_is_due_and_never_put_off() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.is_raised());
        interrupt.raise_in(Duration::from_secs(3600));
        assert!(!interrupt.clone().is_raised());
        interrupt.raise_in(Duration::ZERO);
        interrupt.raise_in(Duration::from_secs(3600));
        assert!(interrupt.clone().is_raised());
    }
}
