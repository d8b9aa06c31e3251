//! What a scene delivers to, and has under its hands.
//!
//! ```text
//!   start --> well --misbehave--> in trouble --recover--> well --vanish--> gone --come_back--> well
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;

use super::chapters::Order;
use super::mirror::Mirror;
use super::queue::Queue;
use super::rabbit::Rabbit;
use super::stage::KEYS;
use super::webhook::Webhook;
use crate::cluster::Cluster;

/// Something that a receiver was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub id: String,
    pub sequence: u64,
    pub key: String,
    pub body: Vec<u8>,
    /// The correlation id; empty where nobody asks for it.
    pub correlation: String,
    /// When, milliseconds since the epoch; none if the receiver does not say.
    pub at_ms: Option<i64>,
}

/// How a receiver misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It takes its time.
    Slow,
    /// It is there and answers nothing. An attempt takes as long as it may then, so each state of a breaker lasts.
    Hung,
    /// It is well and is not, in turn.
    Flapping,
    /// It says that it cannot.
    Failing,
    /// It asks to be left alone for a while.
    Busy,
    /// It never takes what is marked.
    Refusing,
    /// It answers everything twice.
    Twice,
    /// It has no place for what comes, and sends it back.
    Unroutable,
}

/// A kind of receiver, one for each way in which an outbox delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Webhook,
    Rabbit,
    Mirror,
}

impl Kind {
    /// Starts one. `broker` is what another Kafka cluster is. Otherwise what is not installed, and how it is.
    pub fn start(self, broker: &str) -> Result<Box<dyn Receiver>, String> {
        let receiver: Box<dyn Receiver> = match self {
            Kind::Webhook => Box::new(Webhook::start()),
            Kind::Rabbit => {
                Rabbit::is_installed()?;
                Box::new(Queue::start())
            }
            Kind::Mirror => Box::new(Mirror::start(Cluster::named(broker))),
        };
        Ok(receiver)
    }
}

pub trait Receiver {
    /// Where to, as an output's mapping says it: `http: { url: ... }`.
    fn place(&self) -> String;

    /// Of loopback, where deliveries come in.
    fn port(&self) -> u16;

    /// All ways in which it can misbehave, in the order in which a scene goes through them.
    fn troubles(&self) -> &'static [Trouble];

    /// One of them, until it recovers. It was well before.
    fn misbehave(&mut self, trouble: Trouble);

    fn recover(&mut self);

    /// It dies in the middle of whatever it does, and nobody listens any more.
    fn vanish(&mut self);

    /// It listens where it did, and has all that it had acknowledged.
    fn come_back(&mut self);

    /// What it has taken since the last time; of each key in the order of arrival.
    fn arrived(&mut self) -> Vec<Arrival>;

    /// The same once nobody delivers to it any more: with what it had read of a connection that is gone.
    fn settled(&mut self) -> Vec<Arrival> {
        self.arrived()
    }

    /// What holds for a key while it misbehaves.
    fn order_in_trouble(&self) -> Order;

    /// Takes a little longer from now on, so that something is under way at any moment. What is written to a disk
    /// before it is acknowledged takes long enough by itself.
    fn dawdle(&mut self) {}

    /// Of the feed while it misbehaves: a multiple of the number of partitions.
    fn keys(&self) -> u64 {
        KEYS
    }
}

/// How a process is slow: that much of the time it stands still.
pub const SLOW: Rhythm = Rhythm { stopped: Duration::from_millis(60), running: Duration::from_millis(20) };
/// How it flaps: longer than an attempt may take.
pub const FLAPPING: Rhythm =
    Rhythm { stopped: Duration::from_millis(1_500), running: Duration::from_millis(1_500) };

#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    stopped: Duration,
    running: Duration,
}

/// Stops processes and lets them go on, in turn, until it is dropped; they run then.
pub struct Stutter {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stutter {
    pub fn start(rhythm: Rhythm, signal: impl Fn(Signal) + Send + 'static) -> Stutter {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                signal(Signal::STOP);
                std::thread::sleep(rhythm.stopped);
                signal(Signal::CONT);
                std::thread::sleep(rhythm.running);
            }
        });
        Stutter { over, thread: Some(thread) }
    }
}

impl Drop for Stutter {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only sends signals.
            let _ = thread.join();
        }
    }
}
