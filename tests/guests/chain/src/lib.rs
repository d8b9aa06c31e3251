//! Workload W2: every record of a key is linked to the one before it, so that a record lost, repeated,
//! reordered or handled upon stale state changes every later link of its key for ever.
//!
//! Input `in`: any key, any text. Output `out`: the key, and `TEXT,COUNT,LINK`. Store `heads`: key to
//! `COUNT,LINK`. The first link of a key is 0; the next is FNV-1a (64 bits) over the eight
//! little-endian bytes of the link before it, then the text.
//!
//! With `config: { remember: true }` the handler keeps the heads in its own memory as well and
//! believes that memory first. That is allowed, because the node drops an instance whenever it drops
//! what was not committed; and it is how a test sees that the node does.
//!
//! With `config: { version: N }` the output is `TEXT,COUNT,LINK,N`, so that everybody sees which version of
//! the deployment handled a record. With `config: { fails: P }` it fails P records of a hundred, chosen by
//! their text. With `config: { spin: N }` it takes N million steps over each record before anything else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;

use serde::Deserialize;
use tidemill_sdk::{Context, Failure, Handler, Record, Store};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    remember: bool,
    version: Option<u64>,
    #[serde(default)]
    fails: u64,
    #[serde(default)]
    spin: u64,
    #[serde(skip)]
    heads: RefCell<HashMap<Vec<u8>, String>>,
}

pub struct Chain {
    config: Config,
    heads: Store<String>,
}

impl Handler for Chain {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        for step in 0..self.config.spin * 1_000_000 {
            black_box(step);
        }
        let (key, text) = (record.key()?, record.text()?);
        if next(0, text) % 100 < self.config.fails {
            return Err(Failure::permanent("as the configuration says"));
        }
        let remembered = match self.config.remember {
            true => self.config.heads.borrow().get(key).cloned(),
            false => None,
        };
        let head = match remembered {
            Some(head) => Some(head),
            None => self.heads.get(ctx, key)?,
        };
        let (count, link) = match &head {
            Some(head) => parse(head).ok_or_else(|| Failure::permanent(format!("{head} is no head")))?,
            None => (0, 0),
        };
        let head = format!("{},{}", count + 1, next(link, text));
        self.heads.put(ctx, key, head.as_str());
        let out = match self.config.version {
            Some(version) => format!("{text},{head},{version}"),
            None => format!("{text},{head}"),
        };
        ctx.emit("out", key, out.as_str())?;
        if self.config.remember {
            self.config.heads.borrow_mut().insert(key.to_vec(), head);
        }
        Ok(())
    }
}

fn parse(head: &str) -> Option<(u64, u64)> {
    let (count, link) = head.split_once(',')?;
    Some((count.parse().ok()?, link.parse().ok()?))
}

fn next(link: u64, text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = link.to_le_bytes().into_iter().chain(text.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, step)
}

tidemill_sdk::export!(Chain {
    inputs: ["in"],
    outputs: ["out"],
    stores: ["heads" { prefetch }],
    config: config,
});

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn every_link_depends_on_all_before_it() {
        for config in ["{}", r#"{"remember": true}"#] {
            let mut driver = Driver::<Chain>::with_config(config);
            driver.feed(["a", "b", "a"].map(|text| record("in").key("k").value(text)));
            let (first, second) = (next(0, "a"), next(next(0, "a"), "b"));
            let third = next(second, "a");
            let expected = [format!("k=a,1,{first}"), format!("k=b,2,{second}"), format!("k=a,3,{third}")];
            assert_eq!(driver.emitted("out"), expected);
            assert_eq!(driver.state::<String>("heads", "k"), Some(format!("3,{third}")));
        }
    }
}
