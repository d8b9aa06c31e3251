//! Misbehaves on command: a record's value says how. One guest proves every limit of the host.
//!
//! Honest commands go through the SDK. The SDK cannot tell a lie, so `lie ..` commands answer the
//! batch by hand, below it.

use std::hint::black_box;

use serde::Deserialize;
use tidemill_sdk::{Bytes, Context, Failure, Handler, Record, Store};

/// With `config: { always: COMMAND }` every record is that command.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    always: Option<String>,
    /// Before its command each record puts a row of its own, emits, and has the node hold both: a failure has
    /// something to take back.
    write_first: bool,
}

pub struct Hostile {
    config: Config,
    state: Store<Bytes>,
}

impl Handler for Hostile {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        if self.config.write_first {
            self.write_first(record, ctx)?;
        }
        let text = match &self.config.always {
            Some(command) => command.as_str(),
            None => record.text()?,
        };
        let (command, argument) = text.split_once(' ').unwrap_or((text, ""));
        let number = argument.parse::<usize>().unwrap_or(1);
        match command {
            "pass" => Ok(()),
            "ok" => ctx.emit("out", record.key_or_null(), "ok"),
            "transient" => Err(Failure::transient("try again")),
            "permanent" => Err(Failure::permanent("never")),
            "loop" => loop {
                black_box(0);
            },
            "spin" => {
                // So many million steps: slow, but it ends.
                for step in 0..number * 1_000_000 {
                    black_box(step);
                }
                Ok(())
            }
            "alloc" => {
                // So many MiB at once.
                black_box(vec![1u8; number << 20]);
                Ok(())
            }
            "ask" => {
                // So many MiB at once, and it can do without.
                let mut bytes = Vec::<u8>::new();
                let answer = bytes.try_reserve_exact(number << 20);
                black_box(&mut bytes);
                ctx.emit("out", "asked", if answer.is_ok() { "granted" } else { "refused" })
            }
            "bomb" => {
                // Until there is no more, all of it touched.
                let mut hoard = Vec::new();
                loop {
                    hoard.push(black_box(vec![1u8; 1 << 20]));
                }
            }
            "fill" => {
                // So many MiB written by single instructions, twice.
                let mut bytes = vec![1u8; number << 20];
                black_box(&mut bytes).fill(2);
                Err(Failure::permanent(format!("filled {} bytes", black_box(bytes).len())))
            }
            "dig" => {
                let depth = self.dig(ctx, 0)?;
                Err(Failure::permanent(depth.to_string()))
            }
            "recurse" => Err(Failure::permanent(recurse(1).to_string())),
            "panic" => panic!("as told"),
            "divide" => Err(Failure::permanent((1 / black_box(0)).to_string())),
            "emit" => {
                for _ in 0..number {
                    ctx.emit("out", "k", "v")?;
                }
                Ok(())
            }
            "big" => ctx.emit("out", "k", vec![b'x'; number]),
            "log" => {
                for line in 0..number {
                    ctx.log(tidemill_sdk::Level::Info, line);
                }
                Ok(())
            }
            "line" => {
                // So many MiB in one line.
                ctx.log(tidemill_sdk::Level::Info, "x".repeat(number << 20));
                Ok(())
            }
            "flood" => {
                for line in 0..number {
                    ctx.log(tidemill_sdk::Level::Info, line);
                }
                Err(Failure::permanent("logged"))
            }
            "put" => {
                self.state.put(ctx, argument, b"v");
                Ok(())
            }
            "hoard" => {
                // So many KiB, each time under a key that no other record has.
                self.state.put(ctx, record.offset().to_le_bytes(), &vec![b'x'; number << 10]);
                Ok(())
            }
            // So many MiB at once, handed over by scanning.
            "hand-over" => {
                for entry in 0..number {
                    self.state.put(ctx, entry.to_le_bytes(), &vec![0; 1 << 20]);
                }
                self.state.scan("").next(ctx).map(drop)
            }
            // Writes, hands over by scanning, then fails: nothing of it may be seen later.
            "scan-then-fail" => {
                self.state.put(ctx, argument, b"v");
                let mut scan = self.state.scan("");
                while scan.next(ctx)?.is_some() {}
                Err(Failure::permanent("after the scan"))
            }
            "count" => {
                let mut scan = self.state.scan("");
                let mut count = 0u64;
                while scan.next(ctx)?.is_some() {
                    count += 1;
                }
                ctx.emit("out", "count", count)
            }
            "random" => {
                let mut bytes = [0u8; 16];
                let drawn = getrandom::fill(&mut bytes);
                drawn.map_err(|error| Failure::permanent(error.to_string()))?;
                ctx.emit("out", "random", bytes.as_slice())
            }
            "remember" => {
                REMEMBERED.set(REMEMBERED.get() + 1);
                ctx.emit("out", "remembered", REMEMBERED.get())
            }
            other => Err(Failure::permanent(format!("unknown command {other}"))),
        }
    }
}

impl Hostile {
    fn write_first(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let mut key = [b'm'; 9];
        key[1..].copy_from_slice(&record.offset().to_be_bytes());
        self.state.put(ctx, key, b"written");
        ctx.emit("out", record.key_or_null(), "written")?;
        // A scan hands over what was written so far.
        self.state.range(key, None).next(ctx).map(drop)
    }

    /// Asks the host at every depth, so that the host's own frames lie on the deepest stack.
    #[allow(unconditional_recursion)]
    fn dig(&self, ctx: &mut Context, depth: u32) -> Result<u32, Failure> {
        self.state.get(ctx, depth.to_le_bytes())?;
        let below = self.dig(ctx, black_box(depth + 1))?;
        Ok(black_box(below) + 1)
    }
}

std::thread_local! {
    /// Instance memory, which no handler should rely on.
    static REMEMBERED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    black_box(recurse(black_box(depth + 1)) + depth)
}

tidemill_sdk::export!(Hostile {
    config: config,
    inputs: ["in"],
    outputs: ["out"],
    stores: ["state" { ordered }],
});
