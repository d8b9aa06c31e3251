//! Reads an order from JSON, adds up what it comes to, and writes all of it again: what the native loop
//! does, which uses the same [`Order`], as a handler.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tidemill_sdk::{Context, Failure, Handler, Json, Record};

/// An order as JSON, 500 bytes.
pub const SAMPLE: &str = concat!(
    r#"{"id":7340021,"status":"new","customer":{"id":52817,"name":"Ada Example","#,
    r#""email":"ada@example.org","city":"Bremen"},"currency":"EUR","#,
    r#""items":[{"sku":"TM-0001-BLUE","quantity":2,"price":1999},{"sku":"TM-0002-GREEN","#,
    r#""quantity":1,"price":4950},{"sku":"TM-0417-SAND","quantity":12,"price":75},"#,
    r#"{"sku":"TM-9130-SLATE","quantity":3,"price":12900}],"#,
    r#""note":"Please leave the parcel with the neighbours on the ground floor if nobody answers "#,
    r#"the door, and ring twice before you go away. Many thanks!","total":0}"#,
);

/// Text is borrowed from the record where JSON does not escape it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order<'a> {
    id: u64,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    customer: Customer<'a>,
    #[serde(borrow)]
    currency: Cow<'a, str>,
    #[serde(borrow)]
    items: Vec<Item<'a>>,
    #[serde(borrow)]
    note: Cow<'a, str>,
    total: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Customer<'a> {
    id: u64,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    email: Cow<'a, str>,
    #[serde(borrow)]
    city: Cow<'a, str>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    sku: Cow<'a, str>,
    quantity: u64,
    /// In cents.
    price: u64,
}

impl Order<'_> {
    /// Adds up the items, and says so.
    pub fn total_up(&mut self) {
        self.total = self.items.iter().map(|item| item.quantity * item.price).sum();
        self.status = Cow::Borrowed("totalled");
    }
}

/// Totals up every order.
pub struct Orders {}

impl Handler for Orders {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let mut order: Order<'_> = record.json()?;
        order.total_up();
        ctx.emit("out", record.key_or_null(), Json(order))
    }
}

tidemill_sdk::export!(Orders { inputs: ["in"], outputs: ["out"] });

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn an_order_comes_out_with_its_total_and_is_otherwise_the_same() {
        assert_eq!(SAMPLE.len(), 500);
        let mut driver = Driver::<Orders>::new();
        driver.feed([record("in").key("k").value(SAMPLE)]);
        let expected = SAMPLE.replace("\"new\"", "\"totalled\"").replace("\"total\":0", "\"total\":48548");
        assert_eq!(driver.emitted("out"), [format!("k={expected}")]);
    }
}
