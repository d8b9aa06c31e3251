//! How often it is said that brokers cannot be sent to: when that begins, then ever more seldom, and when it is over.
//!
//! A producer tries twice a second and longer than anybody reads. What comes and goes begins anew each time, so that counts
//! against the same pauses: after a while it is a line in five minutes, whatever brokers do.

use std::time::{Duration, Instant};

/// Between two lines, at first and at most: doubled in between.
const TELL_AFTER: Duration = Duration::from_secs(5);
const TELL_AFTER_MAX: Duration = Duration::from_secs(300);

/// Of one producer.
#[derive(Debug)]
pub(super) struct Outage {
    /// None = everything is acknowledged.
    began: Option<Instant>,
    failures: u64,
    /// The last line, and how long there is none after it.
    told: Option<Instant>,
    pause: Duration,
    /// This one, not only one before.
    is_told: bool,
}

impl Outage {
    pub fn none() -> Outage {
        Outage { began: None, failures: 0, told: None, pause: TELL_AFTER, is_told: false }
    }

    /// Something could not be sent, or has no answer. How often since it began, if that is to be said now.
    pub fn failed(&mut self, now: Instant) -> Option<u64> {
        let is_due = |told: Option<Instant>, pause: Duration| told.is_none_or(|told| now >= told + pause);
        if self.began.is_none() {
            (self.began, self.failures) = (Some(now), 0);
            if is_due(self.told, TELL_AFTER_MAX) {
                (self.told, self.pause) = (None, TELL_AFTER);
            }
        }
        self.failures += 1;
        if !is_due(self.told, self.pause) {
            return None;
        }
        if self.told.is_some() {
            self.pause = (self.pause * 2).min(TELL_AFTER_MAX);
        }
        (self.told, self.is_told) = (Some(now), true);
        Some(self.failures)
    }

    /// Everything is acknowledged. For how long it was not, if anything was said of that.
    pub fn over(&mut self, now: Instant) -> Option<Duration> {
        let began = self.began.take()?;
        std::mem::take(&mut self.is_told).then(|| now.saturating_duration_since(began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds at which a failure every half second is said, of so many.
    fn told(outage: &mut Outage, began: Instant, seconds: std::ops::Range<u64>) -> Vec<u64> {
        let at = |half: u64| began + Duration::from_millis(half * 500);
        let halves = seconds.start * 2..seconds.end * 2;
        halves.filter(|half| outage.failed(at(*half)).is_some()).map(|half| half / 2).collect()
    }

    #[test]
    fn what_goes_on_is_said_at_once_then_ever_more_seldom_and_once_when_it_is_over() {
        let (mut outage, began) = (Outage::none(), Instant::now());
        let after = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(outage.over(began), None, "there was nothing");
        assert_eq!(told(&mut outage, began, 0..1_000), [0, 5, 15, 35, 75, 155, 315, 615, 915]);
        assert_eq!(outage.over(after(1_000)), Some(Duration::from_secs(1_000)));
        assert_eq!(outage.over(after(1_001)), None, "once");
        assert_eq!(told(&mut outage, began, 1_002..1_003), [0; 0], "it comes and goes");
        assert_eq!(outage.over(after(1_003)), None, "nothing was said of this one");
        assert_eq!(outage.failed(after(5_000)), Some(1), "another one, long after");
        assert_eq!(outage.failed(after(5_005)), Some(2), "soon again");
    }
}
