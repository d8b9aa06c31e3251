//! Counts the records of a key, and fails those that are told to, so that a loss, a repetition or a wrong order
//! of what failed shows in the counts.
//!
//! Input `in`: any key, and `SEQUENCE,KIND`. Output `out`: the key, and `SEQUENCE,COUNT`. Store `counts`: of each key.
//!
//! | kind | what becomes of the record |
//! |---|---|
//! | `ok` | it is counted |
//! | `flaky` | it fails as transient the first time that an instance meets it |
//! | `bad` | it fails for good, unless the configuration says `mended: true` |

use std::cell::RefCell;
use std::collections::HashSet;

use serde::Deserialize;
use tidemill_sdk::{Context, Failure, Handler, Record, Store};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    mended: bool,
}

pub struct Poison {
    config: Config,
    counts: Store<u64>,
}

std::thread_local! {
    /// Flaky records that this instance has met and that have not succeeded. What is forgotten with the instance
    /// fails once more.
    static MET: RefCell<HashSet<Vec<u8>>> = RefCell::default();
}

impl Handler for Poison {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let (key, text) = (record.key()?, record.text()?);
        let (sequence, kind) = text.split_once(',').ok_or_else(|| Failure::decode("no SEQUENCE,KIND"))?;
        let name = [key, b"/", sequence.as_bytes()].concat();
        match kind {
            "flaky" if MET.with_borrow_mut(|met| met.insert(name.clone())) => {
                return Err(Failure::transient("the first time"));
            }
            "bad" if !self.config.mended => return Err(Failure::permanent("poison")),
            "flaky" => drop(MET.with_borrow_mut(|met| met.remove(&name))),
            "ok" | "bad" => {}
            other => return Err(Failure::decode(format!("{other} is no kind"))),
        }
        let count = self.counts.get(ctx, key)?.unwrap_or(0) + 1;
        self.counts.put(ctx, key, &count);
        ctx.emit("out", key, format!("{sequence},{count}"))
    }
}

tidemill_sdk::export!(Poison {
    config: config,
    inputs: ["in"],
    outputs: ["out"],
    stores: ["counts" { prefetch }],
});

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn what_fails_is_not_counted_and_what_is_flaky_fails_once() {
        let mut driver = Driver::<Poison>::new();
        let feed = |driver: &mut Driver<Poison>, text| {
            driver.feed([record("in").key("k").value(text)]);
        };
        for text in ["0,ok", "1,flaky", "1,flaky", "2,bad", "3,ok"] {
            feed(&mut driver, text);
        }
        assert_eq!(driver.emitted("out"), ["k=0,1", "k=1,2", "k=3,3"]);
    }
}
