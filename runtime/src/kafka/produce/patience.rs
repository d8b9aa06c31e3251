//! How long things may take: deadlines, and the pauses between two tries.
//!
//! Brokers that go fail every producer of a fleet at once. With pauses of the same length all of them would be back at
//! once, too, and again after each that is too short: so of each pause between a half and all of it is waited.

use std::time::{Duration, Instant};

use crate::config::jitter::spread;
use crate::kafka::chance;

/// No configuration means more; keeps arithmetic with instants within bounds.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A socket takes no time-out of zero.
const SHORTEST: Duration = Duration::from_millis(1);

/// One try has no less, unless less is left: to send a batch on a slow way, and to answer it, takes time.
const TRY_MIN: Duration = Duration::from_secs(2);

/// When a call has to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub fn after(patience: Duration) -> Deadline {
        Deadline(Instant::now() + patience.min(LONGEST))
    }

    /// That long from now, unless this one comes first.
    pub fn within(self, patience: Duration) -> Deadline {
        Deadline(self.0.min(Deadline::after(patience).0))
    }

    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }

    /// In half of the time that is left.
    pub fn half(self) -> Deadline {
        Deadline::after(self.left() / 2)
    }

    /// Of one try: half of the time that is left, so that another one can follow if this one hangs.
    pub fn share(self) -> Deadline {
        self.within((self.left() / 2).max(TRY_MIN))
    }

    /// How long one step may take that would otherwise have `most`; never zero.
    pub fn step(self, most: Duration) -> Duration {
        self.left().min(most).max(SHORTEST)
    }
}

/// Pauses between tries: doubled from the first to the longest, before chance.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub fn new((first, longest): (Duration, Duration)) -> Pauses {
        Pauses { next: first, longest }
    }

    /// Lets the next pause pass, or up to a half less. False = the time is up.
    pub fn wait(&mut self, until: Deadline) -> bool {
        std::thread::sleep(spread(self.next, chance()).min(until.left()));
        self.next = (self.next * 2).min(self.longest);
        !until.has_passed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_put_off() {
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(1_000));
        let until = Deadline::after(soon);
        assert_eq!(until.within(late), until);
        assert!(Deadline::after(late).within(soon).left() <= soon);
        assert!(until.half().left() <= soon / 2);
        assert_eq!(until.share(), until, "what is left is too little for two tries");
        assert!(Deadline::after(late).share().left() <= late / 2);
        assert!(until.step(late) <= soon);
    }

    #[test]
    fn a_step_after_the_deadline_is_short_and_not_zero() {
        let until = Deadline::after(Duration::ZERO);
        assert!(until.has_passed());
        assert_eq!(until.step(Duration::from_secs(1)), SHORTEST);
        assert!(Deadline::after(Duration::MAX).left() <= LONGEST, "no overflow");
    }

    #[test]
    fn pauses_grow_to_their_bound_and_end_with_the_time() {
        let mut pauses = Pauses::new((Duration::from_micros(1), Duration::from_micros(3)));
        let until = Deadline::after(Duration::from_secs(60));
        assert!(pauses.wait(until) && pauses.wait(until));
        assert_eq!(pauses.next, Duration::from_micros(3));
        assert!(!pauses.wait(Deadline::after(Duration::ZERO)));
    }
}
