//! Sockets for librdkafka, at a bounded pace.
//!
//! librdkafka backs off between two attempts to connect, unless something asks for the broker: each such
//! request expedites the next attempt, and an admin request asks again at every change of the connection's
//! state. So while a broker is down one request comes to thousands of attempts a second. A broker has a
//! thread of its own, which makes its sockets; here it waits.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// Between two attempts of a broker's thread, once it has made the first few.
const INTERVAL: Duration = Duration::from_millis(100);
/// Attempts that wait for nothing: the addresses of a name, and a connection that was just closed.
const BURST: u32 = 5;

/// When the next attempt is due, were all evenly spaced.
#[derive(Debug, Clone, Copy, Default)]
struct Pace(Option<Instant>);

impl Pace {
    /// Takes the next turn; how long it has to be waited for.
    fn take(&mut self, now: Instant) -> Duration {
        let due = self.0.filter(|due| *due > now).unwrap_or(now);
        self.0 = Some(due + INTERVAL);
        due.saturating_duration_since(now).saturating_sub(INTERVAL * (BURST - 1))
    }
}

thread_local! {
    static PACE: Cell<Pace> = const { Cell::new(Pace(None)) };
}

/// Makes a socket, as librdkafka itself would, when it is this thread's turn. No lock is held meanwhile.
pub(super) unsafe extern "C" fn on_socket(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    _: *mut c_void,
) -> c_int {
    let wait = PACE.with(|pace| {
        let mut turns = pace.get();
        let wait = turns.take(Instant::now());
        pace.set(turns);
        wait
    });
    if !wait.is_zero() {
        std::thread::sleep(wait);
    }
    // SAFETY: the call takes integers and answers a descriptor that is the caller's, or -1.
    unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::partitions::Partitions;
    use super::super::{Client, Kind};
    use super::*;

    #[test]
    fn a_few_attempts_are_free_and_those_after_them_evenly_spaced() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let waits: Vec<Duration> = (0..BURST + 3).map(|_| pace.take(start)).collect();
        assert!(waits[..BURST as usize].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[BURST as usize..], [INTERVAL, INTERVAL * 2, INTERVAL * 3]);
        let rested = start + INTERVAL * (2 * BURST + 3);
        assert!((0..BURST).all(|_| pace.take(rested).is_zero()), "they come back with time");
        assert_eq!(pace.take(rested), INTERVAL);
    }

    /// A broker that is down, or hangs up at once: without a pace this was thousands of connections.
    #[test]
    fn an_admin_request_does_not_storm_a_broker_that_hangs_up() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let accepted = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&accepted);
        // Ends with the process; a listener has no other way to be woken.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                drop(connection);
            }
        });
        let settings = [("bootstrap.servers".to_owned(), address)];
        let client = Client::new(Kind::Producer, &settings, "test").expect("a client");
        let wait = Duration::from_secs(2);
        let answer = client.list_offsets(&Partitions::one("t", 0, -1), false, wait);
        assert!(answer.is_err(), "nobody can have answered");
        let most = BURST + 1 + (wait.as_millis() / INTERVAL.as_millis()) as u32 * 2;
        let accepted = accepted.load(Ordering::SeqCst);
        assert!((2..=most).contains(&accepted), "{accepted} connections in {wait:?}; {most} are allowed");
    }
}
