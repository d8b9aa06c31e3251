//! Workload W7: every record of a key is linked to the one before it, and each link goes to a topic and out of
//! Kafka as well. What is lost, repeated or overtaken on the way out shows in the links.
//!
//! Input `in`: any key, any text. Outputs `out` and `hook`: the key, and `TEXT,COUNT,LINK`. Store `heads`: key to
//! `COUNT,LINK`. The first link of a key is 0; the next is FNV-1a (64 bits) over the eight little-endian bytes
//! of the link before it, then the text.

use tidemill_sdk::{Context, Failure, Handler, Record, Store};

pub struct Courier {
    heads: Store<String>,
}

impl Handler for Courier {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let (key, text) = (record.key()?, record.text()?);
        let (count, link) = match self.heads.get(ctx, key)? {
            Some(head) => parse(&head).ok_or_else(|| Failure::permanent(format!("{head} is no head")))?,
            None => (0, 0),
        };
        let head = format!("{},{}", count + 1, next(link, text));
        self.heads.put(ctx, key, head.as_str());
        let line = format!("{text},{head}");
        ctx.emit("out", key, line.as_str())?;
        ctx.emit("hook", key, line.as_str())
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

tidemill_sdk::export!(Courier {
    inputs: ["in"],
    outputs: ["out", "hook"],
    stores: ["heads" { prefetch }],
});

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_sdk::testing::{Driver, record};

    #[test]
    fn every_link_goes_both_ways() {
        let mut driver = Driver::<Courier>::new();
        driver.feed(["a", "b"].map(|text| record("in").key("k").value(text)));
        let expected = [format!("k=a,1,{}", next(0, "a")), format!("k=b,2,{}", next(next(0, "a"), "b"))];
        assert_eq!(driver.emitted("out"), expected);
        assert_eq!(driver.emitted("hook"), expected);
    }
}
