//! A TCP proxy that understands just enough of Kafka's protocol to lose, hold or repeat one request.
//!
//! ```text
//!  client --requests--> [ rules ] --> broker
//!         <--[ rules ]--responses--
//! ```
//!
//! A broker behind it must advertise its address, or clients go around it. Every frame is a length
//! (i32) and that many bytes: a request begins with api key (i16), version (i16) and correlation id
//! (i32), a response with the correlation id alone.

mod connection;
mod rule;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub use rule::{Action, Direction, Rule};
use rule::{Active, Frame};

/// Api keys of the requests that the tests have rules for.
pub mod api {
    pub const PRODUCE: i16 = 0;
    pub const FETCH: i16 = 1;
    pub const OFFSET_FETCH: i16 = 9;
    pub const FIND_COORDINATOR: i16 = 10;
    pub const JOIN_GROUP: i16 = 11;
    pub const HEARTBEAT: i16 = 12;
    pub const SYNC_GROUP: i16 = 14;
    pub const INIT_PRODUCER_ID: i16 = 22;
    pub const ADD_PARTITIONS_TO_TXN: i16 = 24;
    pub const ADD_OFFSETS_TO_TXN: i16 = 25;
    pub const END_TXN: i16 = 26;
    pub const WRITE_TXN_MARKERS: i16 = 27;
    pub const TXN_OFFSET_COMMIT: i16 = 28;
}

/// The proxy. Dropping it closes every connection.
pub struct Kfault {
    /// Where clients are to connect, and what the broker is to advertise.
    pub address: String,
    shared: Arc<Shared>,
}

/// A rule in force.
pub struct Handle(Arc<Active>);

struct Shared {
    upstream: OnceLock<String>,
    rules: Mutex<Vec<Arc<Active>>>,
    /// Both ends of every connection, to close them all.
    sockets: Mutex<Vec<TcpStream>>,
    /// Nothing passes and nobody is let in.
    cut: AtomicBool,
    /// Nothing passes, and nobody is told.
    stalled: Mutex<bool>,
    moves: Condvar,
}

impl Kfault {
    /// Listens on a free port; connections wait until [`Kfault::forward_to`].
    pub fn bind() -> Kfault {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let shared = Arc::new(Shared {
            upstream: OnceLock::new(),
            rules: Mutex::default(),
            sockets: Mutex::default(),
            cut: AtomicBool::new(false),
            stalled: Mutex::new(false),
            moves: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        // Ends with the process; a listener has no other way to be woken.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                theirs.admit(client);
            }
        });
        Kfault { address, shared }
    }

    /// Names the broker, once.
    pub fn forward_to(&self, upstream: &str) {
        self.shared.upstream.set(upstream.to_owned()).expect("the broker is named once");
    }

    /// Puts a rule in force, after those that are.
    pub fn add(&self, rule: Rule) -> Handle {
        let active = Arc::new(Active::new(rule));
        lock(&self.shared.rules).push(Arc::clone(&active));
        Handle(active)
    }

    /// Cuts every connection and lets nobody in; `false` ends that.
    pub fn cut(&self, cut: bool) {
        self.shared.cut.store(cut, Ordering::SeqCst);
        if cut {
            self.shared.close_all();
        }
    }

    /// Lets nothing through on connections that stay open, as a network that loses every packet;
    /// `false` ends that, and what was sent meanwhile arrives.
    pub fn stall(&self, stalled: bool) {
        *lock(&self.shared.stalled) = stalled;
        self.shared.moves.notify_all();
    }
}

impl Drop for Kfault {
    fn drop(&mut self) {
        self.cut(true);
        self.stall(false);
    }
}

impl Handle {
    /// How often the rule was applied.
    pub fn hits(&self) -> u32 {
        self.0.hits()
    }

    /// Takes the rule out of force; what it holds stays held.
    pub fn end(&self) {
        self.0.end();
    }

    /// Sends what was held on to the broker, and waits for its answer: the bytes after the
    /// correlation id. None if there is none in time.
    pub fn release(&self, wait: Duration) -> Option<Vec<u8>> {
        self.0.release(wait)
    }
}

impl Shared {
    fn admit(self: &Arc<Shared>, client: TcpStream) {
        let Some(upstream) = self.upstream.get() else { return };
        if self.cut.load(Ordering::SeqCst) {
            return;
        }
        let Ok(broker) = TcpStream::connect(upstream) else { return };
        // Fails for a socket that is closed already; then so does everything after it.
        let _ = (client.set_nodelay(true), broker.set_nodelay(true));
        if let (Ok(one), Ok(other)) = (client.try_clone(), broker.try_clone()) {
            lock(&self.sockets).extend([one, other]);
        }
        connection::run(self, client, broker);
    }

    fn close_all(&self) {
        for socket in lock(&self.sockets).drain(..) {
            // Fails if it is closed.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The first rule that wants this frame, once anything passes at all.
    fn rule_for(&self, frame: &Frame) -> Option<Arc<Active>> {
        drop(self.moves.wait_while(lock(&self.stalled), |stalled| *stalled));
        lock(&self.rules).iter().find(|rule| rule.wants(frame)).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
