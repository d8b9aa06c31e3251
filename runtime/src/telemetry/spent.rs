//! Where the time of a task goes: at every moment it does, or waits for, one thing of a few, so that the
//! parts add up to the whole.
//!
//! Its worker adds to the parts once a turn of its loop. A turn that takes long, because a handler does,
//! would show only at its end, so a reader counts what is under way as well. The window of the last
//! seconds is made from samples that are taken once a second, away from the data plane.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What a task does with a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Its worker waits for records.
    Fetch = 0,
    /// In the handler, and taking its effects over.
    Handler = 1,
    /// The handler waits for state to be read.
    State = 2,
    /// A commit is prepared, waited for or settled, and there is nothing else to do.
    Commit = 3,
    /// Its worker is busy with another task.
    Others = 4,
    /// Its state is restored, or it waits for that.
    Restore = 5,
    Halted = 6,
    /// There is no room to park another failed record.
    Paused = 7,
}

const ACTIVITIES: usize = 8;

impl Activity {
    /// With the names that metrics and people use.
    pub const ALL: [(Activity, &'static str); ACTIVITIES] = [
        (Activity::Fetch, "fetch"),
        (Activity::Handler, "handler"),
        (Activity::State, "state"),
        (Activity::Commit, "commit"),
        (Activity::Others, "others"),
        (Activity::Restore, "restore"),
        (Activity::Halted, "halted"),
        (Activity::Paused, "paused"),
    ];
}

/// Samples that are kept, one a second: what is recent.
const SAMPLES_MAX: usize = 30;

/// The parts of a task's time since the process began. One writer: the worker that has the task.
#[derive(Debug, Default)]
pub struct Spent {
    nanos: [AtomicU64; ACTIVITIES],
    /// What is under way and has not been added: see [`Under`].
    under_way: AtomicU64,
    recent: Mutex<VecDeque<Parts>>,
}

/// Time by activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts([Duration; ACTIVITIES]);

impl Parts {
    pub fn get(&self, activity: Activity) -> Duration {
        self.0[activity as usize]
    }

    pub fn whole(&self) -> Duration {
        self.0.iter().sum()
    }

    fn since(&self, before: &Parts) -> Parts {
        Parts(std::array::from_fn(|part| self.0[part].saturating_sub(before.0[part])))
    }
}

impl Spent {
    pub fn add(&self, activity: Activity, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos[activity as usize].fetch_add(nanos, Ordering::Relaxed);
    }

    /// Something begins that may take long; [`Spent::end`] says that it has been, or will be, added.
    pub fn begin(&self, activity: Activity) {
        // 61 bits of nanoseconds are 73 years; the lowest three say what it is.
        self.under_way.store((since_start() << 3) | activity as u64, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.under_way.store(0, Ordering::Relaxed);
    }

    pub fn seconds(&self, activity: Activity) -> f64 {
        self.nanos[activity as usize].load(Ordering::Relaxed) as f64 / 1e9
    }

    /// What has been since the process began, with what is under way.
    fn now(&self) -> Parts {
        let mut parts =
            Parts(std::array::from_fn(|part| Duration::from_nanos(self.nanos[part].load(Ordering::Relaxed))));
        let under_way = self.under_way.load(Ordering::Relaxed);
        if under_way != 0 {
            let took = since_start().saturating_sub(under_way >> 3);
            parts.0[(under_way & 7) as usize] += Duration::from_nanos(took);
        }
        parts
    }

    /// To be called once a second while the task is here.
    pub fn sample(&self) {
        let mut recent = self.lock();
        if recent.len() == SAMPLES_MAX {
            recent.pop_front();
        }
        recent.push_back(self.now());
    }

    /// Of the last [`SAMPLES_MAX`] seconds, as far as there are samples; none before the first one.
    pub fn recent(&self) -> Option<Parts> {
        let oldest = self.lock().front().copied()?;
        Some(self.now().since(&oldest))
    }

    /// The task is not here any more: what comes next has nothing to do with what was.
    pub fn forget_recent(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Parts>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nanoseconds since this was asked first, and never 0.
fn since_start() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_recent_is_the_difference_to_the_oldest_sample() {
        let spent = Spent::default();
        assert_eq!(spent.recent(), None);
        spent.add(Activity::Fetch, ms(500));
        spent.sample();
        spent.add(Activity::Handler, ms(30));
        spent.add(Activity::Fetch, ms(70));
        let recent = spent.recent().expect("there is a sample");
        assert_eq!((recent.get(Activity::Handler), recent.get(Activity::Fetch)), (ms(30), ms(70)));
        assert_eq!(recent.whole(), ms(100));
        for _ in 0..SAMPLES_MAX {
            spent.sample();
        }
        assert_eq!(spent.recent().map(|recent| recent.whole()), Some(ms(0)), "the first one is forgotten");
        assert_eq!(spent.seconds(Activity::Fetch), 0.57, "nothing is forgotten here");
        spent.forget_recent();
        assert_eq!(spent.recent(), None);
    }

    #[test]
    fn a_call_that_is_under_way_counts_before_it_ends_and_once() {
        let spent = Spent::default();
        spent.sample();
        spent.begin(Activity::Handler);
        let deadline = Instant::now() + ms(20);
        while Instant::now() < deadline {
            std::hint::spin_loop();
        }
        let recent = spent.recent().expect("there is a sample");
        assert!(recent.get(Activity::Handler) >= ms(20) && recent.whole() == recent.get(Activity::Handler));
        spent.add(Activity::Handler, ms(20));
        spent.end();
        assert_eq!(spent.recent().map(|recent| recent.whole()), Some(ms(20)));
    }
}
