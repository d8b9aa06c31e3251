//! Waiting for a condition, with a deadline. There is no other sleep in these tests.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Asks until the answer is `Ok`, and panics with what was seen last after `limit`.
///
/// `look` answers `Err(what it saw)` while the condition does not hold.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => give_up_after(limit, started, what, &seen),
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Asks until there is an answer, or until `limit` has passed. Between two questions it waits as
/// long as the last one took, so that asking takes half a core at most.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let asked = Instant::now();
        let answer = look();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(asked.elapsed().max(LOOK_EVERY));
    }
}

/// [`until`], for a look that is a conversation.
pub async fn until_told<T, E: Debug>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) => give_up_after(limit, started, what, &seen),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[track_caller]
fn give_up_after(limit: Duration, started: Instant, what: &str, seen: &dyn Debug) {
    assert!(started.elapsed() <= limit, "waited {limit:?} until {what}; saw {seen:#?}");
}
