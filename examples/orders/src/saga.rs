//! The saga of one order: reserve, charge, ship; and if a step fails, undo the steps before it.
//!
//! A plain state machine: an event in, commands out. It knows nothing of records, topics or stores, so every
//! path through it can be walked by a test, and is.
//!
//! ```text
//!   Awaited --created--> Reserving --reserved--> Charging --paid--> Shipping --booked--> Confirmed
//!                            |                      |                  |
//!                            | rejected             | declined         | not booked
//!                            v                      v                  v
//!                        Undoing: refund what was paid, release what was reserved --> Cancelled
//! ```
//!
//! A payment may come before its order (the two are different topics, and topics have no order between them):
//! then nothing is charged. One that comes after the order was cancelled is refunded.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Something is known of the order, but not the order itself.
    #[default]
    Awaited,
    Reserving,
    Charging,
    Shipping,
    Confirmed,
    Undoing,
    Cancelled,
}

/// What happens to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    Created,
    Reserved,
    Rejected,
    Paid,
    Declined,
    Booked,
    NotBooked,
    Refunded,
    Released,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    Reserve,
    Charge,
    Ship,
    Refund,
    Release,
    /// Tell the world.
    Confirm,
    /// Tell the world.
    Cancel,
}

/// An event that makes no sense here: for a person to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unexpected {
    pub step: Step,
    pub event: Event,
}

/// How far an order is, and what is to be undone if it does not get further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Saga {
    pub step: Step,
    pub reserved: bool,
    pub paid: bool,
    /// The world has been told that it is cancelled.
    pub told: bool,
}

impl Saga {
    /// Takes one step. After an error nothing has changed.
    pub fn on(&mut self, event: Event) -> Result<Option<Command>, Unexpected> {
        let mut next = *self;
        let command = next.step(event).ok_or(Unexpected { step: self.step, event })?;
        *self = next;
        Ok(command)
    }

    /// None = it makes no sense here.
    fn step(&mut self, event: Event) -> Option<Option<Command>> {
        Some(match (self.step, event) {
            // Wherever an order is, a payment is noted; what it changes depends on where that is.
            (step, Event::Paid) if !self.paid && step != Step::Confirmed => {
                self.paid = true;
                match step {
                    Step::Charging => self.go(Step::Shipping, Command::Ship),
                    Step::Cancelled => self.undo(),
                    // An order that waits for its payment already, or for something to be undone, gets to it.
                    _ => None,
                }
            }
            (Step::Awaited, Event::Created) => self.go(Step::Reserving, Command::Reserve),
            (Step::Reserving, Event::Reserved) => {
                self.reserved = true;
                match self.paid {
                    true => self.go(Step::Shipping, Command::Ship),
                    false => self.go(Step::Charging, Command::Charge),
                }
            }
            (Step::Shipping, Event::Booked) => self.go(Step::Confirmed, Command::Confirm),
            (Step::Reserving, Event::Rejected)
            | (Step::Charging, Event::Declined)
            | (Step::Shipping, Event::NotBooked) => self.undo(),
            (Step::Undoing, Event::Refunded) if self.paid => {
                self.paid = false;
                self.undo()
            }
            (Step::Undoing, Event::Released) if self.reserved => {
                self.reserved = false;
                self.undo()
            }
            _ => return None,
        })
    }

    fn go(&mut self, step: Step, command: Command) -> Option<Command> {
        self.step = step;
        Some(command)
    }

    /// One compensation at a time, the last step first.
    fn undo(&mut self) -> Option<Command> {
        match (self.paid, self.reserved) {
            (true, _) => self.go(Step::Undoing, Command::Refund),
            (false, true) => self.go(Step::Undoing, Command::Release),
            (false, false) => {
                self.step = Step::Cancelled;
                (!std::mem::replace(&mut self.told, true)).then_some(Command::Cancel)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn walk(events: &[Event]) -> (Saga, Vec<Command>) {
        let mut saga = Saga::default();
        let commands = events.iter().filter_map(|&event| saga.on(event).expect("makes sense")).collect();
        (saga, commands)
    }

    #[test]
    fn an_order_is_reserved_charged_and_shipped() {
        let (saga, commands) = walk(&[Event::Created, Event::Reserved, Event::Paid, Event::Booked]);
        assert_eq!(saga.step, Step::Confirmed);
        assert_eq!(commands, [Command::Reserve, Command::Charge, Command::Ship, Command::Confirm]);
    }

    #[test]
    fn a_payment_that_came_first_is_not_charged_again() {
        let (_, commands) = walk(&[Event::Paid, Event::Created, Event::Reserved, Event::Booked]);
        assert_eq!(commands, [Command::Reserve, Command::Ship, Command::Confirm]);
    }

    #[test]
    fn what_was_done_is_undone_in_reverse() {
        let started = [Event::Created, Event::Reserved, Event::Paid, Event::NotBooked];
        let (saga, commands) = walk(&[&started[..], &[Event::Refunded, Event::Released]].concat());
        assert_eq!(saga, Saga { step: Step::Cancelled, told: true, ..Saga::default() });
        assert_eq!(commands[3..], [Command::Refund, Command::Release, Command::Cancel]);
    }

    #[test]
    fn a_payment_for_a_cancelled_order_goes_back() {
        let events = [Event::Created, Event::Rejected, Event::Paid, Event::Refunded];
        let (saga, commands) = walk(&events);
        assert_eq!((saga.step, saga.paid), (Step::Cancelled, false));
        assert_eq!(commands, [Command::Reserve, Command::Cancel, Command::Refund], "told once");
    }

    /// What a partner may answer to a command.
    fn answers(command: Command) -> &'static [Event] {
        match command {
            Command::Reserve => &[Event::Reserved, Event::Rejected],
            Command::Charge => &[Event::Paid, Event::Declined],
            Command::Ship => &[Event::Booked, Event::NotBooked],
            Command::Refund => &[Event::Refunded],
            Command::Release => &[Event::Released],
            Command::Confirm | Command::Cancel => &[],
        }
    }

    /// Every path there is, with the customer paying by himself at any moment as well.
    #[test]
    fn every_path_ends_confirmed_or_with_nothing_reserved_and_nothing_paid() {
        let mut paths = vec![(Saga::default(), vec![Event::Created], false)];
        let (mut seen, mut ends) = (HashSet::new(), 0);
        while let Some((saga, due, prepaid)) = paths.pop() {
            if !seen.insert((saga, due.clone(), prepaid)) {
                continue;
            }
            if due.is_empty() {
                ends += 1;
                let is_done = saga.step == Step::Confirmed && saga.reserved && saga.paid;
                let is_undone = saga.step == Step::Cancelled && !saga.reserved && !saga.paid && saga.told;
                assert!(is_done || is_undone, "{saga:?}");
            }
            let may_prepay = !prepaid && !due.iter().any(|event| matches!(event, Event::Paid));
            for event in due.iter().copied().chain(may_prepay.then_some(Event::Paid)) {
                let mut saga = saga;
                let prepaid = prepaid || !due.contains(&event);
                // Paid twice, or after the confirmation: a person's business, and nothing has changed.
                let Ok(command) = saga.on(event) else { continue };
                let alternatives = match command {
                    Some(command) if !answers(command).is_empty() => answers(command),
                    // The answer that was due still is, unless this was it.
                    _ if due.contains(&event) => &[],
                    _ => &due[..],
                };
                match alternatives {
                    [] => paths.push((saga, Vec::new(), prepaid)),
                    some => some.iter().for_each(|&answer| paths.push((saga, vec![answer], prepaid))),
                }
            }
        }
        assert!(ends >= 4, "{ends} ends");
    }
}
