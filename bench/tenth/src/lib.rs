//! Passes a tenth of the records, those whose key ends in the digit 0, and drops the others: what the
//! native loop does, as a handler.

use tidemill_sdk::{Context, Failure, Handler, Record};

/// Looks at the last byte of the key and nothing else.
pub struct Tenth {}

impl Handler for Tenth {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        if !record.key()?.ends_with(b"0") {
            return Ok(());
        }
        ctx.emit("out", record.key_or_null(), record.value_or_null())
    }
}

tidemill_sdk::export!(Tenth { inputs: ["in"], outputs: ["out"] });

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn a_tenth_of_consecutive_numbers_comes_out() {
        let mut driver = Driver::<Tenth>::new();
        driver.feed((10..30).map(|number: u32| record("in").key(number.to_string()).value("v")));
        assert_eq!(driver.emitted("out"), ["10=v", "20=v"]);
    }
}
