//! Counts down something that only so many may do at once.

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::ports::Stop;

/// As many as lie in a channel are free.
pub struct Permits {
    free: Receiver<()>,
    back: Sender<()>,
}

/// Gives its permit back when dropped.
pub struct Permit<'a>(&'a Permits);

impl Permits {
    pub fn new(count: usize) -> Permits {
        let (back, free) = bounded(count);
        let permits = Permits { free, back };
        (0..count).for_each(|_| permits.free_one());
        permits
    }

    /// Waits for one that is free; none once nobody wants it any more.
    pub fn take(&self, stop: &Stop) -> Option<Permit<'_>> {
        if stop.is_raised() {
            return None;
        }
        select! {
            recv(self.free) -> _ => Some(Permit(self)),
            recv(stop.raised()) -> _ => None,
        }
    }

    fn free_one(&self) {
        // There is room for all of them.
        let _ = self.back.try_send(());
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.free_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Interest;

    #[test]
    fn so_many_have_a_permit_at_once_and_the_next_one_when_one_is_back() {
        let (permits, never) = (Permits::new(2), Stop::never());
        let first = permits.take(&never);
        let _second = permits.take(&never);
        assert!(permits.free.is_empty());
        std::thread::scope(|scope| {
            let third = scope.spawn(|| permits.take(&never).is_some());
            drop(first);
            assert!(third.join().expect("no panic"));
        });
        assert_eq!(permits.free.len(), 1);
    }

    #[test]
    fn who_is_not_wanted_any_more_waits_for_none_and_takes_none_from_others() {
        let permits = Permits::new(1);
        let held = permits.take(&Stop::never());
        let interest = Interest::default();
        let stop = interest.stop();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| permits.take(&stop).is_none());
            drop(interest);
            assert!(waiting.join().expect("no panic"));
        });
        drop(held);
        assert!(permits.take(&stop).is_none(), "not even one that is free");
        assert!(permits.take(&Stop::never()).is_some());
    }
}
