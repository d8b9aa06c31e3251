//! A circuit breaker: a destination that fails again and again is left alone for a while.
//!
//! ```text
//!   Closed --failures in a row--> Open --its time is over--> HalfOpen (one delivery is let through)
//!      ^                            ^                            |
//!      |                            +----------- fails ----------+
//!      +------------------ succeeds -----------------------------+
//! ```
//!
//! A destination that refuses a delivery for good has answered: that is no failure of its own.

use std::time::{Duration, Instant};

use crate::config::outbox::BreakerSpec;
use crate::telemetry::BreakerState;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

#[derive(Debug)]
pub struct Breaker {
    spec: BreakerSpec,
    state: State,
}

impl Breaker {
    pub fn new(spec: BreakerSpec) -> Breaker {
        Breaker { spec, state: State::Closed { failures: 0 } }
    }

    /// A delivery would be let through.
    pub fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => until <= now,
            State::HalfOpen => false,
        }
    }

    /// Lets a delivery through, or not. Whoever is let through reports back.
    pub fn enter(&mut self, now: Instant) -> bool {
        let admits = self.admits(now);
        if admits && matches!(self.state, State::Open { .. }) {
            self.state = State::HalfOpen;
        }
        admits
    }

    pub fn succeeded(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// True if this opened it.
    pub fn failed(&mut self, now: Instant) -> bool {
        let failures = match self.state {
            State::Closed { failures } => failures + 1,
            State::HalfOpen => self.spec.failures,
            // Sent before it opened.
            State::Open { .. } => return false,
        };
        let opens = failures >= self.spec.failures;
        self.state = match opens {
            true => State::Open { until: now + self.spec.open },
            false => State::Closed { failures },
        };
        opens
    }

    /// Somebody asks for another attempt at once. True if the breaker was open.
    pub fn knock(&mut self, now: Instant) -> bool {
        let was_open = matches!(self.state, State::Open { .. });
        if was_open {
            self.state = State::Open { until: now };
        }
        was_open
    }

    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen => BreakerState::HalfOpen,
        }
    }

    /// How long it stays open.
    pub fn remaining(&self, now: Instant) -> Duration {
        match self.state {
            State::Open { until } => until.saturating_duration_since(now),
            State::Closed { .. } | State::HalfOpen => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_through_when_its_time_is_over() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut breaker = Breaker::new(BreakerSpec { failures: 3, open: Duration::from_millis(100) });
        for _ in 0..2 {
            assert!(breaker.enter(at(0)) && !breaker.failed(at(0)));
        }
        breaker.succeeded();
        assert!(!breaker.failed(at(0)) && !breaker.failed(at(0)), "only failures in a row count");
        assert!(breaker.failed(at(0)));
        assert!(!breaker.failed(at(1)), "one that was under way is no news");
        assert_eq!(
            (breaker.state(), breaker.remaining(at(40))),
            (BreakerState::Open, Duration::from_millis(60))
        );
        assert!(!breaker.enter(at(99)));

        assert!(breaker.enter(at(100)) && !breaker.enter(at(100)), "one and no other");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.failed(at(101)), "and opens again at the first failure");
        breaker.knock(at(110));
        assert!(breaker.enter(at(110)), "a person may ask for it earlier");
        breaker.succeeded();
        assert!(breaker.enter(at(110)) && breaker.enter(at(110)));
    }
}
