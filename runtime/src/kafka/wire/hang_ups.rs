//! TLS handshakes that brokers end without a word. One that stops or starts does so for a moment; if it goes on, a person has to
//! hear what to set, once and not among the errors of every try.
//!
//! Of the node as a whole: all its own connections speak the same TLS.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::access::Address;

/// So long, and so often, no handshake comes to its end before it is told.
const TOLD_AFTER: Duration = Duration::from_secs(30);
const TOLD_AFTER_TRIES: u32 = 5;

/// Since the last handshake that came to its end.
#[derive(Debug)]
struct HangUps {
    since: Option<Instant>,
    tries: u32,
    is_told: bool,
}

impl HangUps {
    const NONE: HangUps = HangUps { since: None, tries: 0, is_told: false };

    /// One more; true if a person should hear of it.
    fn add(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.tries = self.tries.saturating_add(1);
        let goes_on = self.tries >= TOLD_AFTER_TRIES && now.saturating_duration_since(since) >= TOLD_AFTER;
        goes_on && !std::mem::replace(&mut self.is_told, true)
    }
}

static HANG_UPS: Mutex<HangUps> = Mutex::new(HangUps::NONE);

/// A broker has ended a handshake.
pub(super) fn add(address: &Address) {
    let is_due = HANG_UPS.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now());
    if is_due {
        tracing::warn!(
            %address,
            "for {} s every TLS handshake of the node's own client has been ended by a broker: if the port speaks TLS, and librdkafka \
             gets through, leave reading and writing to it (kafka.client: librdkafka); if not, see kafka.security_protocol",
            TOLD_AFTER.as_secs()
        );
    }
}

/// One came to its end.
pub(super) fn end() {
    *HANG_UPS.lock().unwrap_or_else(PoisonError::into_inner) = HangUps::NONE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_brokers_go_on_hanging_up_is_told_once_and_that_one_restarts_is_not() {
        let (began, mut hang_ups) = (Instant::now(), HangUps::NONE);
        let mut told = |seconds: &[u64]| {
            let is_told = |second: &u64| hang_ups.add(began + Duration::from_secs(*second));
            seconds.iter().copied().filter(is_told).collect::<Vec<u64>>()
        };
        assert!(told(&[0, 0, 1, 1, 2, 3]).is_empty(), "a restart, which all clients meet");
        assert_eq!(told(&[29, 30, 31, 600]), [30]);
        hang_ups = HangUps::NONE;
        assert!(!hang_ups.add(began) && !hang_ups.add(began + TOLD_AFTER), "two are no habit");
    }
}
