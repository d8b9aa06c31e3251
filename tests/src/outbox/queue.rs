//! A queue of a real RabbitMQ, behind an exchange.

use std::time::Duration;

use rustix::process::{Signal, kill_process_group};

use super::chapters::Order;
use super::rabbit::Rabbit;
use super::receiver::{Arrival, FLAPPING, Receiver, Rhythm, SLOW, Stutter, Trouble};
use crate::wait::until;

/// Of the queue, its exchange and its routing key.
const NAME: &str = "w7";
/// Until a server has done with the connections of the dead.
const SETTLE_MAX: Duration = Duration::from_secs(30);

pub struct Queue {
    /// Ends before the server does.
    stutter: Option<Stutter>,
    rabbit: Rabbit,
    trouble: Option<Trouble>,
}

impl Queue {
    pub fn start() -> Queue {
        let rabbit = Rabbit::start();
        rabbit.make_refusing_queue(NAME);
        rabbit.make_exchange(NAME);
        rabbit.bind(NAME);
        Queue { stutter: None, rabbit, trouble: None }
    }

    fn stutter(&mut self, rhythm: Rhythm) {
        let group = self.rabbit.group();
        self.stutter = Some(Stutter::start(rhythm, move |signal| {
            // Gone already is as good.
            let _ = kill_process_group(group, signal);
        }));
    }
}

impl Receiver for Queue {
    fn place(&self) -> String {
        format!("amqp: {{ url: '{}', exchange: {NAME}, routing_key: {NAME} }}", self.rabbit.url())
    }

    fn port(&self) -> u16 {
        self.rabbit.port()
    }

    fn troubles(&self) -> &'static [Trouble] {
        &[Trouble::Unroutable, Trouble::Failing, Trouble::Slow, Trouble::Hung, Trouble::Flapping]
    }

    fn misbehave(&mut self, trouble: Trouble) {
        match trouble {
            // Mandatory messages come back.
            Trouble::Unroutable => self.rabbit.unbind(NAME),
            // Whatever comes is answered with a nack.
            Trouble::Failing => self.rabbit.allow(NAME, Some(0)),
            Trouble::Slow => self.stutter(SLOW),
            Trouble::Hung => self.rabbit.signal(Signal::STOP),
            Trouble::Flapping => self.stutter(FLAPPING),
            Trouble::Busy | Trouble::Refusing | Trouble::Twice => panic!("RabbitMQ is never {trouble:?}"),
        }
        self.trouble = Some(trouble);
    }

    fn recover(&mut self) {
        self.stutter = None;
        self.rabbit.signal(Signal::CONT);
        match self.trouble.take() {
            Some(Trouble::Unroutable) => self.rabbit.bind(NAME),
            Some(Trouble::Failing) => self.rabbit.allow(NAME, None),
            _ => {}
        }
    }

    fn vanish(&mut self) {
        self.rabbit.kill();
    }

    fn come_back(&mut self) {
        self.rabbit.run();
    }

    fn arrived(&mut self) -> Vec<Arrival> {
        self.rabbit.empty(NAME)
    }

    /// A server that has closed the connection of a dead node may still have its messages on their way to the queue, in
    /// the connection's channel.
    fn settled(&mut self) -> Vec<Arrival> {
        until("RabbitMQ has ended the channels of the dead", SETTLE_MAX, || match self.rabbit.is_alone() {
            true => Ok(()),
            false => Err("not yet"),
        });
        self.arrived()
    }

    /// What was given up may lie in a connection to a server that stands still, and be taken when it goes on.
    fn order_in_trouble(&self) -> Order {
        Order::Any
    }
}
