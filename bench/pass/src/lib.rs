//! Passes every record as it is: what the native loop does, as a handler.

use tidemill_sdk::{Context, Failure, Handler, Record};

/// Copies key, value and timestamp.
pub struct Pass {}

impl Handler for Pass {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        ctx.emit("out", record.key_or_null(), record.value_or_null())
    }
}

tidemill_sdk::export!(Pass { inputs: ["in"], outputs: ["out"] });

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn what_goes_in_comes_out() {
        let mut driver = Driver::<Pass>::new();
        driver.feed([record("in").key("k").value("v")]);
        assert_eq!(driver.emitted("out"), ["k=v"]);
    }
}
