//! Stands in for warehouse, bank and carrier: answers each command at once, so that the example needs
//! nobody else. What it says depends on the command alone.
//!
//! | command | answer | unless |
//! |---|---|---|
//! | `inventory.reserve` | `inventory.reserved` | the sku is in `out_of_stock`: `inventory.rejected` |
//! | `payment.charge` | `payment.authorized` | it is above `credit_cents`: `payment.failed` |
//! | `shipment.request` | `shipment.booked` | the country is in `unreachable`: `shipment.failed` |
//! | `payment.refund`, `inventory.release` | `payment.refunded`, `inventory.released` | |

use serde::{Deserialize, Serialize};
use tidemill_sdk::{Context, Failure, Handler, Json, Record};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    out_of_stock: Vec<String>,
    credit_cents: u32,
    unreachable: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Command<'a> {
    id: &'a str,
    r#type: &'a str,
    order: &'a str,
    #[serde(default)]
    sku: &'a str,
    #[serde(default)]
    cents: u32,
    #[serde(default)]
    country: &'a str,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    id: String,
    r#type: &'a str,
    order: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

pub struct Partners {
    config: Config,
}

impl Handler for Partners {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let command: Command<'_> = record.json()?;
        let has = |list: &[String], word: &str| list.iter().any(|listed| listed == word);
        let (output, kind, reason) = match command.r#type {
            "inventory.reserve" if has(&self.config.out_of_stock, command.sku) => {
                ("warehouse", "inventory.rejected", "out of stock")
            }
            "inventory.reserve" => ("warehouse", "inventory.reserved", ""),
            "payment.charge" if command.cents > self.config.credit_cents => {
                ("payments", "payment.failed", "declined by the bank")
            }
            "payment.charge" => ("payments", "payment.authorized", ""),
            "shipment.request" if has(&self.config.unreachable, command.country) => {
                ("warehouse", "shipment.failed", "no carrier goes there")
            }
            "shipment.request" => ("warehouse", "shipment.booked", ""),
            "payment.refund" => ("payments", "payment.refunded", ""),
            "inventory.release" => ("warehouse", "inventory.released", ""),
            other => return Err(Failure::permanent(format!("`{other}` is no command"))),
        };
        let id = format!("{}/{kind}", command.id);
        ctx.emit(output, command.order, Json(Answer { id, r#type: kind, order: command.order, reason }))
    }
}

tidemill_sdk::export!(Partners { inputs: ["commands"], outputs: ["payments", "warehouse"], config: config });

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn each_command_is_answered_by_what_it_says() {
        let config = r#"{"out_of_stock": ["moon"], "credit_cents": 100, "unreachable": ["AQ"]}"#;
        let mut driver = Driver::<Partners>::with_config(config);
        for (command, output, answer) in [
            (r#""type":"inventory.reserve","sku":"lamp""#, "warehouse", "inventory.reserved"),
            (r#""type":"inventory.reserve","sku":"moon""#, "warehouse", "inventory.rejected"),
            (r#""type":"payment.charge","cents":100"#, "payments", "payment.authorized"),
            (r#""type":"payment.charge","cents":101"#, "payments", "payment.failed"),
            (r#""type":"shipment.request","country":"FR""#, "warehouse", "shipment.booked"),
            (r#""type":"shipment.request","country":"AQ""#, "warehouse", "shipment.failed"),
            (r#""type":"payment.refund""#, "payments", "payment.refunded"),
        ] {
            let value = format!(r#"{{"id":"c","order":"o-1",{command}}}"#);
            driver.feed([record("commands").key("o-1").value(value)]);
            let last = driver.emitted(output).pop().unwrap_or_default();
            assert!(last.starts_with("o-1=") && last.contains(answer), "{command}: {last}");
        }
    }
}
