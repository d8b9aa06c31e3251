//! A circuit breaker: a destination that fails again and again is left alone for a while.
//!
//! ```text
//!   Closed --failures in a row--> Open --its time is over--> HalfOpen (one delivery is let through)
//!      ^                            ^                            |
//!      |                            +----------- fails ----------+
//!      +------------------ succeeds -----------------------------+
//! ```
//!
//! A destination that refuses a delivery for good has answered: that is no failure of its own. One that asks to be
//! left alone (`Retry-After`) gets that at once, however few have failed, and nothing that was under way ends it; by
//! itself that is no trouble, and if the one that is let through then fails too, they are two in a row.
//!
//! A destination that goes fails every node of a fleet at once, and each deployment that sends to it: each waits a part
//! of its pause of its own, so that they do not all try it at once when it is back.

use std::time::{Duration, Instant};

use crate::config::jitter::spread;
use crate::config::outbox::BreakerSpec;
use crate::ports::AFTER_MAX;
use crate::telemetry::BreakerState;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen,
}

#[derive(Debug)]
pub struct Breaker {
    spec: BreakerSpec,
    made: Instant,
    state: State,
    /// In a row.
    failures: u32,
    /// The destination has asked to be left alone until then.
    asked: Option<Instant>,
}

impl Breaker {
    pub fn new(spec: BreakerSpec, now: Instant) -> Breaker {
        Breaker { spec, made: now, state: State::Closed, failures: 0, asked: None }
    }

    /// A delivery would be let through.
    pub fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
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

    /// The destination has answered.
    pub fn succeeded(&mut self, now: Instant) {
        self.failures = 0;
        self.close(now, None);
    }

    /// `after` is how long the destination asks to be left alone. True if there were too many failures in a row.
    pub fn failed(&mut self, now: Instant, after: Option<Duration>) -> bool {
        self.asked = self.asked.max(after.map(|after| now + after.min(AFTER_MAX)));
        if let State::Open { until } = self.state {
            // Sent before it opened.
            self.close(now, Some(until));
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let opens = self.failures >= self.spec.failures;
        self.close(now, opens.then(|| now + self.pause(now)));
        opens
    }

    /// How long it opens: by the nanosecond of its life in which it does, which is another one in each breaker, and
    /// nothing else.
    fn pause(&self, now: Instant) -> Duration {
        spread(self.spec.open, now.saturating_duration_since(self.made).as_nanos() as u64)
    }

    /// Nothing was sent, for what the delivery is, so the next one decides.
    pub fn unsent(&mut self, now: Instant) {
        if self.state == State::HalfOpen {
            self.state = State::Open { until: now };
        }
    }

    /// Closes, unless it is to stay open until then or the destination has asked for it.
    fn close(&mut self, now: Instant, until: Option<Instant>) {
        let until = until.max(self.asked.filter(|&asked| asked > now));
        self.state = until.map_or(State::Closed, |until| State::Open { until });
    }

    /// Somebody asks for another attempt at once. True if the breaker was open.
    pub fn knock(&mut self, now: Instant) -> bool {
        let was_open = matches!(self.state, State::Open { .. });
        if was_open {
            self.state = State::Open { until: now };
            self.asked = None;
        }
        was_open
    }

    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen => BreakerState::HalfOpen,
        }
    }

    /// How long it stays open.
    pub fn remaining(&self, now: Instant) -> Duration {
        match self.state {
            State::Open { until } => until.saturating_duration_since(now),
            State::Closed | State::HalfOpen => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_through_when_its_time_is_over() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut breaker = Breaker::new(BreakerSpec { failures: 3, open: Duration::from_millis(100) }, start);
        for _ in 0..2 {
            assert!(breaker.enter(at(0)) && !breaker.failed(at(0), None));
        }
        breaker.succeeded(at(0));
        assert!(!breaker.failed(at(0), None) && !breaker.failed(at(0), None), "only failures in a row count");
        assert!(breaker.failed(at(0), None));
        let open = breaker.remaining(at(0));
        assert!(!breaker.failed(at(1), None), "one that was under way is no news");
        assert_eq!(
            (breaker.state(), breaker.remaining(at(40))),
            (BreakerState::Open, open - Duration::from_millis(40))
        );
        let over = start + open;
        assert!(!breaker.enter(over - Duration::from_nanos(1)));

        assert!(breaker.enter(over) && !breaker.enter(over), "one and no other");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.failed(at(101), None), "and opens again at the first failure");
        breaker.knock(at(110));
        assert!(breaker.enter(at(110)), "a person may ask for it earlier");
        breaker.succeeded(at(110));
        assert!(breaker.enter(at(110)) && breaker.enter(at(110)));
    }

    #[test]
    fn breakers_that_open_together_do_not_try_together_and_none_waits_longer_than_its_pause() {
        let (start, open) = (Instant::now(), Duration::from_millis(100));
        let pause = |nanos| {
            let mut breaker = Breaker::new(BreakerSpec { failures: 1, open }, start);
            let now = start + Duration::from_nanos(nanos);
            assert!(breaker.failed(now, None));
            breaker.remaining(now)
        };
        let pauses: BTreeSet<Duration> = (0..8).map(pause).collect();
        assert_eq!(pauses.len(), 8, "each another: {pauses:?}");
        assert!(pauses.iter().all(|pause| (open / 2..=open).contains(pause)), "{pauses:?}");
    }

    #[test]
    fn a_destination_that_asks_to_be_left_alone_is_and_that_is_no_trouble() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let after = |s: u64| Some(Duration::from_secs(s));
        let mut breaker = Breaker::new(BreakerSpec { failures: 3, open: Duration::from_secs(10) }, start);
        assert!(!breaker.failed(at(0), after(0)) && breaker.enter(at(0)), "a second that is none");
        assert!(!breaker.failed(at(0), after(30)), "it is not too many failures");
        assert_eq!(
            (breaker.state(), breaker.remaining(at(0))),
            (BreakerState::Open, Duration::from_secs(30))
        );
        breaker.succeeded(at(1));
        assert!(!breaker.enter(at(29)), "what was under way does not end it");
        breaker.failed(at(2), after(5));
        assert!(!breaker.enter(at(29)), "nor shortens it");
        breaker.failed(at(2), after(40));
        assert!(!breaker.enter(at(41)) && breaker.enter(at(42)), "but it may ask for more");
        assert!(
            !breaker.failed(at(42), None) && breaker.enter(at(42)),
            "the first failure of three in a row"
        );
        assert!(!breaker.failed(at(42), None) && breaker.failed(at(42), after(20)));
        assert_eq!(breaker.remaining(at(42)), Duration::from_secs(20), "the longer of both");
        assert!(breaker.knock(at(43)) && breaker.enter(at(43)), "a person may ask for it earlier");
        breaker.succeeded(at(43));
        assert_eq!(breaker.state(), BreakerState::Closed, "and then it is over");

        breaker.failed(at(50), after(86_400));
        assert_eq!(breaker.remaining(at(50)), AFTER_MAX, "nobody is left alone for longer");
    }

    #[test]
    fn a_delivery_that_was_not_sent_decides_nothing() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerSpec { failures: 1, open: Duration::ZERO }, now);
        breaker.unsent(now);
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(breaker.failed(now, None) && breaker.enter(now) && !breaker.enter(now));
        breaker.unsent(now);
        assert_eq!(breaker.state(), BreakerState::Open, "a dead destination is not taken for one that lives");
        assert!(breaker.enter(now) && breaker.failed(now, None), "the next one has decided");
    }
}
