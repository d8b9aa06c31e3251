//! Counts per key in a store whose declaration a test chooses, by changing [`FORM`] in the binary: a
//! module of its own for every form, out of one build.
//!
//! Values of schema 1 are a `u64`, those of schema 2 a text `count=N`; it writes the one it declares and
//! reads both. Output `out`: the key, and the count as text.

use std::hint::black_box;

use tidemill_sdk::guest::{Declaration, Definition, StoreDeclaration, store};
use tidemill_sdk::{Bytes, Context, Failure, Handler, Kind, Record, Store};

/// `FORM`, then the schema, another one that it reads or `-`, the type (`u` or `t`), and the store: `c` for
/// `counts`, `o` for `others`, `-` for none.
static FORM: [u8; 8] = *b"FORM1-uc";

fn form() -> [u8; 4] {
    let form = black_box(&FORM);
    [form[4], form[5], form[6], form[7]]
}

pub struct Forms {
    counts: Store<Bytes>,
}

impl Handler for Forms {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let key = record.key()?;
        let [schema, _, _, name] = form();
        if name == b'-' {
            return ctx.emit("out", key, "0");
        }
        let count = self.counts.get(ctx, key)?.map_or(Ok(0), |value| read(&value))? + 1;
        let value = match schema {
            b'1' => count.to_le_bytes().to_vec(),
            _ => format!("count={count}").into_bytes(),
        };
        self.counts.put(ctx, key, &value);
        ctx.emit("out", key, count.to_string().as_str())
    }
}

fn read(value: &[u8]) -> Result<u64, Failure> {
    if let Some(text) = value.strip_prefix(b"count=") {
        let text = String::from_utf8_lossy(text);
        return text.parse().map_err(|_| Failure::permanent("a count that is none"));
    }
    let bytes = value.try_into().map_err(|_| Failure::permanent("a form that nobody knows"))?;
    Ok(u64::from_le_bytes(bytes))
}

impl Definition for Forms {
    fn declaration() -> Declaration {
        let [schema, reads, kind, name] = form();
        let number = |digit: u8| u32::from(digit - b'0');
        let stores = (name != b'-').then(|| StoreDeclaration {
            name: if name == b'c' { "counts" } else { "others" },
            kind: if kind == b'u' { Kind::U64 } else { Kind::Utf8 },
            schema: number(schema),
            reads: if reads == b'-' { &[] } else { Box::leak(Box::new([number(reads)])) },
            prefetch: true,
            ordered: false,
        });
        let stores = Vec::from_iter(stores).leak();
        Declaration { inputs: &["in"], outputs: &["out"], stores, wants_headers: false }
    }

    fn create(_: &[u8]) -> Result<Forms, String> {
        Ok(Forms { counts: store(0) })
    }
}

tidemill_sdk::__export_guest!(Forms);
