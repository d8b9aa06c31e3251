//! Orders, joined in state with their payments and led through a saga ([`saga`]).
//!
//! | input | key | values |
//! |---|---|---|
//! | `orders` | order | `order.created` |
//! | `payments` | order | `payment.authorized`, `payment.failed`, `payment.refunded` |
//! | `warehouse` | order | `inventory.reserved`, `inventory.rejected`, `inventory.released`, `shipment.booked`, `shipment.failed` |
//!
//! | output | key | values |
//! |---|---|---|
//! | `commands` | order | `inventory.reserve`, `payment.charge`, `shipment.request`, `payment.refund`, `inventory.release` |
//! | `outcomes` | order | `order.confirmed`, `order.cancelled` |
//! | `webhook` | order | the same, to a URL that wants to be called |
//! | `queue` | order | `customer.notified` |
//!
//! The inputs share their keys and their number of partitions, so everything about an order meets in one task
//! and its store `orders` is a join of the three. The deployment's inbox refuses repeated events by their `id`, so
//! a step is never taken twice; ids of what is emitted are made of order and step, so those who receive
//! it can do the same.

pub mod saga;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tidemill_sdk::{Context, Failure, Handler, Json, Record, Store};

use saga::{Command, Event, Saga, Unexpected};

/// Every event and command: fields that one does not have are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    order: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "str::is_empty")]
    customer: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "str::is_empty")]
    sku: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_zero")]
    quantity: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    cents: u32,
    #[serde(default, borrow, skip_serializing_if = "str::is_empty")]
    country: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "str::is_empty")]
    reason: Cow<'a, str>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What is known of an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub saga: Saga,
    /// Steps taken so far.
    pub steps: u32,
    pub customer: String,
    pub sku: String,
    pub quantity: u32,
    pub cents: u32,
    pub country: String,
    /// Why it does not get further.
    pub reason: String,
}

impl Order {
    fn take(&mut self, message: &Message<'_>) {
        self.customer = message.customer.clone().into_owned();
        self.sku = message.sku.clone().into_owned();
        (self.quantity, self.cents) = (message.quantity, message.cents);
        self.country = message.country.clone().into_owned();
    }

    /// What is said about it. Its id is the same whenever this step is taken again, by another node after a
    /// crash for example.
    fn message<'a>(&'a self, number: &'a str, kind: &'a str) -> Json<Message<'a>> {
        Json(Message {
            id: format!("{number}/{}-{kind}", self.steps).into(),
            r#type: kind.into(),
            order: number.into(),
            customer: self.customer.as_str().into(),
            sku: self.sku.as_str().into(),
            quantity: self.quantity,
            cents: self.cents,
            country: self.country.as_str().into(),
            reason: self.reason.as_str().into(),
        })
    }
}

pub struct Orders {
    orders: Store<Json<Order>>,
}

impl Handler for Orders {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let message: Message<'_> = record.json()?;
        if record.key()? != message.order.as_bytes() {
            return Err(Failure::permanent(format!("its key is not the order {}", message.order)));
        }
        let event = event(&message)?;
        let number = &*message.order;
        let mut order = self.orders.get(ctx, number)?.unwrap_or_default();
        let next = order.saga.on(event).map_err(|Unexpected { step, event }| {
            Failure::permanent(format!(
                "{event:?} makes no sense for order {}, which is {step:?}",
                message.order
            ))
        })?;
        match event {
            Event::Created => order.take(&message),
            _ if !message.reason.is_empty() => order.reason = message.reason.clone().into_owned(),
            _ => {}
        }
        if let Some(command) = next {
            order.steps += 1;
            emit(ctx, number, &order, command)?;
        }
        self.orders.put(ctx, number, &order);
        Ok(())
    }
}

/// What a message says happened; one that breaks a rule fails for ever.
fn event(message: &Message<'_>) -> Result<Event, Failure> {
    Ok(match &*message.r#type {
        "order.created" if message.quantity == 0 || message.cents == 0 => {
            return Err(Failure::permanent("an order has a quantity and a price"));
        }
        "order.created" => Event::Created,
        "payment.authorized" => Event::Paid,
        "payment.failed" => Event::Declined,
        "payment.refunded" => Event::Refunded,
        "inventory.reserved" => Event::Reserved,
        "inventory.rejected" => Event::Rejected,
        "inventory.released" => Event::Released,
        "shipment.booked" => Event::Booked,
        "shipment.failed" => Event::NotBooked,
        other => return Err(Failure::permanent(format!("`{other}` is no event of an order"))),
    })
}

fn emit(ctx: &mut Context, number: &str, order: &Order, command: Command) -> Result<(), Failure> {
    let (output, kind) = match command {
        Command::Reserve => ("commands", "inventory.reserve"),
        Command::Charge => ("commands", "payment.charge"),
        Command::Ship => ("commands", "shipment.request"),
        Command::Refund => ("commands", "payment.refund"),
        Command::Release => ("commands", "inventory.release"),
        Command::Confirm => ("outcomes", "order.confirmed"),
        Command::Cancel => ("outcomes", "order.cancelled"),
    };
    ctx.emit(output, number, order.message(number, kind))?;
    if output == "outcomes" {
        ctx.emit("webhook", number, order.message(number, kind))?;
        ctx.emit("queue", number, order.message(number, "customer.notified"))?;
    }
    Ok(())
}

tidemill_sdk::export!(Orders {
    inputs: ["orders", "payments", "warehouse"],
    outputs: ["commands", "outcomes", "webhook", "queue"],
    stores: ["orders" { prefetch }],
});

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, Outcome, record};

    const CREATED: &str = r#"{"id":"e1","type":"order.created","order":"o-1","customer":"c-1","sku":"lamp","quantity":2,"cents":4980}"#;

    fn says(kind: &str) -> String {
        format!(r#"{{"id":"x-{kind}","type":"{kind}","order":"o-1"}}"#)
    }

    #[test]
    fn an_order_is_led_to_its_confirmation_and_everybody_is_told() {
        let mut driver = Driver::<Orders>::new();
        driver.feed([record("orders").key("o-1").value(CREATED)]);
        for (input, kind) in [
            ("warehouse", "inventory.reserved"),
            ("payments", "payment.authorized"),
            ("warehouse", "shipment.booked"),
        ] {
            // Between any two records the node may forget the instance.
            driver.restart();
            assert_eq!(driver.feed([record(input).key("o-1").value(says(kind))]), [Outcome::Ok]);
        }
        let commands = driver.emitted("commands");
        let kinds = ["inventory.reserve", "payment.charge", "shipment.request"];
        assert!(
            commands.len() == 3 && commands.iter().zip(kinds).all(|(command, kind)| command.contains(kind))
        );
        assert!(
            commands[1].contains(r#""id":"o-1/2-payment.charge""#) && commands[1].contains(r#""cents":4980"#)
        );
        for output in ["outcomes", "webhook"] {
            assert!(driver.emitted(output)[0].contains("order.confirmed"), "{output}");
        }
        assert!(driver.emitted("queue")[0].contains("customer.notified"));
    }

    #[test]
    fn a_refused_shipment_is_compensated_and_says_why() {
        let mut driver = Driver::<Orders>::new();
        driver.feed([record("orders").key("o-1").value(CREATED)]);
        let failed = r#"{"id":"f","type":"shipment.failed","order":"o-1","reason":"no carrier"}"#;
        for (input, value) in [
            ("warehouse", says("inventory.reserved")),
            ("payments", says("payment.authorized")),
            ("warehouse", failed.to_owned()),
            ("payments", says("payment.refunded")),
            ("warehouse", says("inventory.released")),
        ] {
            driver.feed([record(input).key("o-1").value(value)]);
        }
        let commands = driver.emitted("commands");
        assert!(commands[3].contains("payment.refund") && commands[4].contains("inventory.release"));
        let outcome = &driver.emitted("outcomes")[0];
        assert!(outcome.contains("order.cancelled") && outcome.contains("no carrier"), "{outcome}");
    }

    #[test]
    fn poison_fails_for_ever_and_changes_nothing() {
        let mut driver = Driver::<Orders>::new();
        let free = CREATED.replace("4980", "0");
        let outcomes = driver.feed([
            record("orders").key("o-1").value("not JSON"),
            record("orders").key("o-1").value(free),
            record("orders").key("o-2").value(CREATED),
            record("warehouse").key("o-1").value(says("inventory.reserved")),
        ]);
        assert!(matches!(&outcomes[0], Outcome::Decode(_)), "{outcomes:?}");
        assert!(matches!(&outcomes[1], Outcome::Blocked | Outcome::Permanent(_)), "{outcomes:?}");
        assert!(matches!(&outcomes[2], Outcome::Permanent(reason) if reason.contains("key")), "{outcomes:?}");
        assert_eq!(driver.emissions(), []);
        assert!(driver.keys("orders").is_empty());
    }
}
