//! Counts per input and key: two inputs that share a store, so that a task which ran without its
//! partition of either would be seen in the numbers.
//!
//! Output `out`: key `<input>/<key>`, value the count so far.

use tidemill_sdk::{Context, Failure, Handler, Record, Store};

pub struct Pair {
    counts: Store<u64>,
}

impl Handler for Pair {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let key = [record.input().as_bytes(), b"/", record.key()?].concat();
        let count = self.counts.get(ctx, &key)?.unwrap_or(0) + 1;
        self.counts.put(ctx, &key, &count);
        ctx.emit("out", &key, count)
    }
}

tidemill_sdk::export!(Pair { inputs: ["left", "right"], outputs: ["out"], stores: ["counts"] });
