//! Counts records per key and emits the new count.
//!
//! Input `in`: any records with a key; one without fails as `decode`. Output `out`: the key,
//! and its count so far as decimal text. Store `counts`: key to count (`u64`).
//!
//! ```yaml
//! name: word-count
//! module: count.wasm
//! inputs:  { in: { topic: words } }
//! outputs: { out: { topic: word-counts } }
//! ```

use tidemill_sdk::{Context, Failure, Handler, Record, Store};

pub struct Count {
    counts: Store<u64>,
}

impl Handler for Count {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let count = self.counts.get(ctx, record.key()?)?.unwrap_or(0) + 1;
        self.counts.put(ctx, record.key()?, &count);
        ctx.emit("out", record.key()?, count)
    }
}

tidemill_sdk::export!(Count {
    inputs: ["in"],
    outputs: ["out"],
    stores: ["counts" { prefetch }],
});

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, Outcome, record};

    #[test]
    fn every_record_raises_the_count_of_its_key() {
        let mut driver = Driver::<Count>::new();
        driver.feed(["a", "b", "a"].map(|key| record("in").key(key)));
        driver.restart();
        driver.feed([record("in").key("a")]);
        assert_eq!(driver.emitted("out"), ["a=1", "b=1", "a=2", "a=3"]);
        assert_eq!(driver.state::<u64>("counts", "a"), Some(3));
        assert_eq!(driver.state_reads(), 0, "the node hands the counts over with the batch");
    }

    #[test]
    fn a_record_without_a_key_fails_and_counts_nothing() {
        let mut driver = Driver::<Count>::new();
        let outcomes = driver.feed([record("in").value("x"), record("in").key("a")]);
        assert_eq!(outcomes, [Outcome::Decode("the record has no key".into()), Outcome::Ok]);
        assert_eq!(driver.emitted("out"), ["a=1"]);
    }
}
