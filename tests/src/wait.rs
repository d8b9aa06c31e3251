//! Waiting for a condition, with a deadline. There is no other sleep in these tests.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Asks until the answer is `Some`, and panics with the last `None`'s story after `limit`.
///
/// `look` answers `Err(what it saw)` while the condition does not hold.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if started.elapsed() > limit => {
                panic!("waited {limit:?} until {what}; saw {seen:?}");
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Asks until there is an answer, or until `limit` has passed.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = look();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
