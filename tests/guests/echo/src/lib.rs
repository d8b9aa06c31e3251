//! Passes every record through: the stateless handler that benchmarks measure.

use tidemill_sdk::{Context, Failure, Handler, Record};

pub struct Echo {}

impl Handler for Echo {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        ctx.emit("out", record.key_or_null(), record.value_or_null())
    }
}

tidemill_sdk::export!(Echo { inputs: ["in"], outputs: ["out"] });
