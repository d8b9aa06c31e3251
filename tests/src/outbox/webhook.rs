//! A receiver of webhooks, in this process.

use std::time::Duration;

use tidemill_sink::{HttpSink, Mode, Received};

use super::chapters::Order;
use super::receiver::{Arrival, Receiver, Trouble};
use super::stage::MARK;
use crate::programs::free_address;

/// How long it takes for one of them when it is slow.
const SLOW: Duration = Duration::from_millis(50);

pub struct Webhook {
    sink: HttpSink,
    /// Requests that were told.
    told: usize,
}

impl Webhook {
    pub fn start() -> Webhook {
        Webhook { sink: HttpSink::start_at(&free_address()), told: 0 }
    }
}

impl Receiver for Webhook {
    fn place(&self) -> String {
        format!("http: {{ url: '{}', format: binary }}", self.sink.url())
    }

    fn port(&self) -> u16 {
        self.sink.address().port()
    }

    fn troubles(&self) -> &'static [Trouble] {
        &[
            Trouble::Slow,
            Trouble::Hung,
            Trouble::Flapping,
            Trouble::Failing,
            Trouble::Busy,
            Trouble::Refusing,
            Trouble::Twice,
        ]
    }

    fn misbehave(&mut self, trouble: Trouble) {
        self.sink.set(match trouble {
            Trouble::Slow => Mode::Slow(SLOW),
            Trouble::Hung => Mode::Hang,
            Trouble::Flapping => Mode::Flap,
            Trouble::Failing => Mode::Status(500),
            Trouble::Busy => Mode::RetryAfter { seconds: 1 },
            Trouble::Refusing => Mode::Refuse(MARK),
            Trouble::Twice => Mode::AcceptTwice,
            Trouble::Unroutable => panic!("a webhook is never {trouble:?}"),
        });
    }

    fn recover(&mut self) {
        self.sink.set(Mode::Accept);
    }

    fn vanish(&mut self) {
        self.sink.close();
    }

    fn come_back(&mut self) {
        self.sink.reopen();
    }

    /// What it has applied, whatever it answered.
    fn arrived(&mut self) -> Vec<Arrival> {
        let fresh = self.sink.received_since(self.told);
        self.told += fresh.len();
        fresh.into_iter().filter(|one| one.applied).map(arrival).collect()
    }

    /// What it applies it applies when it comes in, so an attempt that was given up cannot come to pass later.
    fn order_in_trouble(&self) -> Order {
        Order::Repeats
    }

    fn dawdle(&mut self) {
        self.sink.set(Mode::Slow(SLOW));
    }
}

fn arrival(one: Received) -> Arrival {
    Arrival {
        id: one.id().to_owned(),
        sequence: one.sequence(),
        key: one.header("ce-partitionkey").unwrap_or_default().to_owned(),
        at_ms: Some(one.at_ms),
        correlation: String::new(),
        body: one.body,
    }
}
