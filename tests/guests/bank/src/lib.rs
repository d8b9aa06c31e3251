//! Workload W1: transfers between accounts, as two deployments of this one handler.
//!
//! | role | input `in` | output `out` | store `balances` |
//! |---|---|---|---|
//! | `split` | transfer id to `FROM,TO,AMOUNT` | account to `ID,DELTA`, twice | - |
//! | `book` | account to `ID,DELTA` | account to `ID,DELTA,BALANCE` | account to balance (`i64`) |

use serde::Deserialize;
use tidemill_sdk::{Context, Failure, Handler, Record, Store};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Split,
    Book,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    role: Role,
}

pub struct Bank {
    config: Config,
    balances: Store<i64>,
}

impl Handler for Bank {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        match self.config.role {
            Role::Split => split(record, ctx),
            Role::Book => self.book(record, ctx),
        }
    }
}

fn split(record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
    let id = String::from_utf8_lossy(record.key()?);
    let mut parts = record.text()?.split(',');
    let (Some(from), Some(to), Some(Ok(amount))) =
        (parts.next(), parts.next(), parts.next().map(str::parse::<i64>))
    else {
        return Err(Failure::permanent("a transfer is FROM,TO,AMOUNT"));
    };
    ctx.emit("out", from, format!("{id},{}", -amount).as_str())?;
    ctx.emit("out", to, format!("{id},{amount}").as_str())
}

impl Bank {
    fn book(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let text = record.text()?;
        let delta = text.split_once(',').and_then(|(_, delta)| delta.parse::<i64>().ok());
        let delta = delta.ok_or_else(|| Failure::permanent("an entry is ID,DELTA"))?;
        let balance = self.balances.get(ctx, record.key()?)?.unwrap_or(0) + delta;
        self.balances.put(ctx, record.key()?, &balance);
        ctx.emit("out", record.key()?, format!("{text},{balance}").as_str())
    }
}

tidemill_sdk::export!(Bank {
    inputs: ["in"],
    outputs: ["out"],
    stores: ["balances" { prefetch }],
    config: config,
});

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn a_transfer_is_one_debit_and_one_credit_and_both_are_booked() {
        let mut split = Driver::<Bank>::with_config(r#"{"role": "split"}"#);
        split.feed([record("in").key("t1").value("a,b,5")]);
        assert_eq!(split.emitted("out"), ["a=t1,-5", "b=t1,5"]);

        let mut book = Driver::<Bank>::with_config(r#"{"role": "book"}"#);
        book.feed([record("in").key("a").value("t1,-5"), record("in").key("a").value("t2,7")]);
        assert_eq!(book.emitted("out"), ["a=t1,-5,-5", "a=t2,7,2"]);
    }
}
