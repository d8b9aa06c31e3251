//! How long work ends that nobody wants any more.
//!
//! ```text
//!   Interest --stop--> Stop, as many as are needed
//!      |                  |
//!   dropped ---------> raised, for good: a wait ends at once, work at its next look
//! ```
//! Whoever waits sleeps on a channel that ends with the interest: nobody looks again and again, and no holder can forget to
//! say that he has gone.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, never, select};

use super::SourceError;

/// Held for as long as something that takes long is wanted.
#[derive(Debug)]
pub struct Interest {
    stop: Stop,
    /// Nothing is ever sent.
    _wanted: Sender<()>,
}

impl Default for Interest {
    fn default() -> Interest {
        let (wanted, raised) = bounded(0);
        Interest { stop: Stop { raised }, _wanted: wanted }
    }
}

impl Interest {
    /// Of work that ends with this interest.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }
}

/// Tells work that nobody wants it any more. A look is cheap, though not so cheap that every record should have one.
#[derive(Debug, Clone)]
pub struct Stop {
    raised: Receiver<()>,
}

impl Stop {
    /// Of work that goes on to its end.
    pub fn never() -> Stop {
        Stop { raised: never() }
    }

    pub fn is_raised(&self) -> bool {
        matches!(self.raised.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Ready once it is raised: for whoever waits for something else as well.
    pub fn raised(&self) -> &Receiver<()> {
        &self.raised
    }

    /// Lets that time pass; false = it is raised, or was meanwhile.
    pub fn pause(&self, time: Duration) -> bool {
        !matches!(self.raised.recv_timeout(time), Err(RecvTimeoutError::Disconnected))
    }

    /// Has a thread of its own do what cannot be interrupted, and waits for what comes of it until this is raised. From then
    /// on that thread goes on for nobody: the work must have an end by itself, and what it comes to is dropped there.
    pub fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        if self.is_raised() {
            return Err(SourceError::Stopped);
        }
        let (ending, ended) = bounded::<()>(0);
        let thread = std::thread::Builder::new().name("aside".to_owned()).spawn(move || {
            // Dropped behind the work, by a panic as well.
            let _ending = ending;
            work()
        });
        let thread =
            thread.map_err(|error| SourceError::Unavailable(format!("no thread to ask on: {error}")))?;
        select! {
            recv(ended) -> _ => {}
            recv(self.raised) -> _ => return Err(SourceError::Stopped),
        }
        match thread.join() {
            Ok(done) => Ok(done),
            // As if it had not been done aside.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any test may take.
    const FOR_EVER: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_stop_is_raised_by_the_end_of_its_interest_and_by_nothing_else() {
        let interest = Interest::default();
        let stops = [interest.stop(), interest.stop()];
        drop(interest.stop());
        assert!(stops.iter().all(|stop| !stop.is_raised() && stop.pause(Duration::ZERO)));
        drop(interest);
        assert!(stops.iter().all(|stop| stop.is_raised() && !stop.pause(FOR_EVER)));
        let never = Stop::never();
        assert!(!never.is_raised() && never.pause(Duration::from_millis(1)));
    }

    #[test]
    fn whoever_pauses_is_woken() {
        let interest = Interest::default();
        let stop = interest.stop();
        let pausing = std::thread::spawn(move || stop.pause(FOR_EVER));
        drop(interest);
        assert!(!pausing.join().expect("no panic"));
    }

    #[test]
    fn what_is_done_aside_is_left_alone_once_nobody_wants_it() {
        assert_eq!(Stop::never().aside(|| 7), Ok(7));
        let interest = Interest::default();
        let stop = interest.stop();
        let (begin, begun) = bounded(1);
        let (release, released) = bounded::<()>(0);
        let (tell, told) = bounded(1);
        let asking = std::thread::spawn(move || {
            stop.aside(move || {
                let _ = begin.send(());
                // Ends when the test says so.
                let _ = released.recv();
                let _ = tell.send(());
            })
        });
        begun.recv().expect("it begins");
        drop(interest);
        assert_eq!(asking.join().expect("no panic"), Err(SourceError::Stopped));
        assert!(told.is_empty(), "it was not waited for");
        drop(release);
        told.recv().expect("it comes to its end all the same");
    }

    #[test]
    fn nothing_is_begun_aside_that_nobody_wants() {
        let stop = Interest::default().stop();
        let begun: Result<(), SourceError> = stop.aside(|| panic!("it was begun"));
        assert_eq!(begun, Err(SourceError::Stopped));
    }

    #[test]
    #[should_panic(expected = "no luck")]
    fn a_panic_aside_is_one_of_whoever_waits() {
        let _: Result<(), SourceError> = Stop::never().aside(|| panic!("no luck"));
    }
}
