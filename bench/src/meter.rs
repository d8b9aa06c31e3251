//! What the calling thread uses: CPU time and, where the machine counts them, instructions.
//!
//! Who else is on the machine moves times and hardly moves instructions. Most virtual machines have no counters, and
//! kernels keep them from whoever may not see them (`kernel.perf_event_paranoid`); then there is time alone.

use std::ffi::c_long;
use std::fs::File;
use std::io::{self, Read};
use std::ops::AddAssign;
use std::os::fd::FromRawFd;
use std::time::Duration;

use tidemill::wasm::thread_cpu_time;

/// What some work has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    pub time: Duration,
    /// In user mode; 0 where nobody counts them.
    pub instructions: u64,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, more: Spent) {
        self.time += more.time;
        self.instructions += more.instructions;
    }
}

pub struct Meter {
    /// `None` where instructions are not counted.
    counter: Option<File>,
    last: Spent,
}

impl Meter {
    /// To be read on the thread that makes it, whose use it tells.
    pub fn of_this_thread() -> Meter {
        Meter { counter: count_instructions().ok(), last: Spent::default() }
    }

    pub fn start(&mut self) {
        self.last = self.now();
    }

    /// Since the start or the last lap.
    pub fn lap(&mut self) -> Spent {
        let now = self.now();
        let before = std::mem::replace(&mut self.last, now);
        Spent {
            time: self.last.time - before.time,
            instructions: self.last.instructions.saturating_sub(before.instructions),
        }
    }

    fn now(&self) -> Spent {
        let mut count = [0; 8];
        let is_read = self.counter.as_ref().is_some_and(|mut file| file.read_exact(&mut count).is_ok());
        let instructions = if is_read { u64::from_ne_bytes(count) } else { 0 };
        Spent { time: thread_cpu_time(), instructions }
    }
}

/// The first version of the kernel's `perf_event_attr`, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_kind: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_kind: u32,
    breakpoint_address: u64,
}

const HARDWARE: u32 = 0;
const INSTRUCTIONS: u64 = 1;
/// Always counted while the thread runs, or not at all.
const PINNED: u64 = 1 << 2;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
const THIS_THREAD: c_long = 0;
const ANY_CPU: c_long = -1;
const NO_GROUP: c_long = -1;
const CLOSE_ON_EXEC: c_long = 1 << 3;

/// Reading it answers how many instructions the calling thread has executed since.
fn count_instructions() -> io::Result<File> {
    let attributes = EventAttributes {
        kind: HARDWARE,
        size: size_of::<EventAttributes>() as u32,
        config: INSTRUCTIONS,
        flags: PINNED | EXCLUDE_KERNEL | EXCLUDE_HYPERVISOR,
        ..EventAttributes::default()
    };
    // SAFETY: the call reads as many bytes of the attributes as they say they have, and keeps no pointer.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            THIS_THREAD,
            ANY_CPU,
            NO_GROUP,
            CLOSE_ON_EXEC,
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was made just now, so that nobody else closes it.
    Ok(unsafe { File::from_raw_fd(descriptor as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lap_tells_what_was_used_since_the_one_before() {
        let mut meter = Meter::of_this_thread();
        let work = |rounds: u64| (0..rounds).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        meter.start();
        work(20_000_000);
        let (long, short) = (meter.lap(), meter.lap());
        assert!(long.time > short.time, "{long:?} {short:?}");
        // Where they are counted, a round of the loop is one at least.
        assert!(long.instructions == 0 || long.instructions > 20_000_000, "{long:?}");
        assert!(short.instructions < 20_000_000, "{short:?}");
    }
}
