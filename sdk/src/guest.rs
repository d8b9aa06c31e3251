//! The glue between a handler and the ABI: what `export!` expands to, and the loop over a batch.
//!
//! The loop is the same natively and in Wasm; only the [`Host`] behind it differs. Not for handler
//! authors: they see [`crate::Handler`], [`crate::Context`] and [`crate::testing`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::tidemill::handler::types::{Effects, Order, Page, Prefetched, Records, Writes};
use crate::column::{Column, Rows};
use crate::context::Level;
use crate::failure::Kind as FailureKind;
use crate::random;
use crate::state::hash;
use crate::store::{Kind, Value};
use crate::{Context, Failure, Handler, Record, Store};

/// What a module says about itself; as JSON it is the manifest.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Declaration {
    pub inputs: &'static [&'static str],
    pub outputs: &'static [&'static str],
    pub stores: &'static [StoreDeclaration],
    pub wants_headers: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct StoreDeclaration {
    pub name: &'static str,
    #[serde(rename = "type")]
    pub kind: Kind,
    pub schema: u32,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    pub reads: &'static [u32],
    pub prefetch: bool,
    pub ordered: bool,
}

impl Declaration {
    pub fn manifest(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A handler as `export!` declares it.
pub trait Definition: Handler {
    fn declaration() -> Declaration;
    /// Makes an instance from the deployment's `config`, as JSON.
    fn create(config: &[u8]) -> Result<Self, String>;
}

/// The store of that index in the manifest.
pub fn store<V: Value>(index: u16) -> Store<V> {
    Store::at(index)
}

/// The kind of the store in a field, found by type.
pub const fn kind_of<H, V: Value>(_: fn(&H) -> &Store<V>) -> Kind {
    V::KIND
}

/// Decodes the deployment's `config`; a missing one is an empty object, so that `#[serde(default)]`
/// makes it optional.
pub fn config<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let json = if is_empty_config(json) { b"{}" } else { json };
    serde_json::from_slice(json).map_err(|error| format!("config: {error}"))
}

/// Refuses a `config` that nothing would read.
pub fn no_config(json: &[u8]) -> Result<(), String> {
    if is_empty_config(json) { Ok(()) } else { Err("config: this handler takes none".into()) }
}

fn is_empty_config(json: &[u8]) -> bool {
    matches!(json.trim_ascii(), b"" | b"null" | b"{}")
}

/// The node, as a handler's instance sees it.
pub trait Host {
    fn get(&mut self, store: u16, key: &[u8]) -> Option<Vec<u8>>;
    fn scan(&mut self, store: u16, start: &[u8], end: Option<&[u8]>, limit: u32) -> Page;
    fn put_many(&mut self, writes: &Writes);
    fn log(&mut self, level: Level, text: &str);
}

/// A host without state, for handlers that keep none.
pub struct NoNode;

impl Host for NoNode {
    fn get(&mut self, _: u16, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn scan(&mut self, _: u16, _: &[u8], _: Option<&[u8]>, _: u32) -> Page {
        Page { key: Column::new(), value: Column::new(), more: false }
    }

    fn put_many(&mut self, _: &Writes) {}

    fn log(&mut self, _: Level, _: &str) {}
}

/// A batch that is lent for a call: what [`Records`] holds, wherever it lies. A column is its bytes and lengths.
#[derive(Clone, Copy)]
pub struct Lent<'a> {
    pub input: &'a [u16],
    pub partition: i32,
    pub offset: &'a [i64],
    pub timestamp: &'a [i64],
    pub key: (&'a [u8], &'a [i32]),
    pub value: (&'a [u8], &'a [i32]),
    pub headers: (&'a [u8], &'a [i32]),
    pub order: Order,
}

impl<'a> From<&'a Records> for Lent<'a> {
    fn from(batch: &'a Records) -> Lent<'a> {
        Lent {
            input: &batch.input,
            partition: batch.partition,
            offset: &batch.offset,
            timestamp: &batch.timestamp,
            key: (&batch.key.bytes, &batch.key.lengths),
            value: (&batch.value.bytes, &batch.value.lengths),
            headers: (&batch.headers.bytes, &batch.headers.lengths),
            order: batch.order,
        }
    }
}

/// A record's outcome, as the ABI numbers it.
pub(crate) mod status {
    pub const OK: u8 = 0;
    pub const TRANSIENT: u8 = 1;
    pub const PERMANENT: u8 = 2;
    pub const BLOCKED: u8 = 3;
    pub const DECODE: u8 = 4;
    pub const SCHEMA: u8 = 5;
}

/// One instance of a handler.
pub struct Guest<H> {
    handler: H,
    ctx: Context,
    inputs: &'static [&'static str],
    failed: Failed,
}

impl<H: Definition> Guest<H> {
    pub fn create(config: &[u8], host: Box<dyn Host>) -> Result<Guest<H>, String> {
        let declaration = H::declaration();
        Ok(Guest {
            handler: H::create(config)?,
            ctx: Context::new(host, declaration.outputs),
            inputs: declaration.inputs,
            failed: Failed::default(),
        })
    }

    /// Runs every record of the batch that no earlier failure holds back.
    pub fn handle(&mut self, batch: &Records, prefetched: Prefetched) -> Effects {
        self.handle_lent(&Lent::from(batch), prefetched)
    }

    /// The same, of a batch that is the caller's.
    pub fn handle_lent(&mut self, batch: &Lent<'_>, prefetched: Prefetched) -> Effects {
        let count = batch.offset.len();
        let mut statuses = vec![status::OK; count];
        let mut reasons = Column::nulls(count);
        self.ctx.begin(prefetched);
        self.failed.clear();

        let [mut keys, mut values, mut headers] = [batch.key, batch.value, batch.headers].map(Rows::of);
        for (index, &offset) in batch.offset.iter().enumerate() {
            let record = Record {
                key: keys.next().flatten(),
                value: values.next().flatten(),
                headers: headers.next().flatten().unwrap_or_default(),
                input: self.inputs[usize::from(batch.input[index])],
                partition: batch.partition,
                offset,
                timestamp: batch.timestamp[index],
            };
            random::begin(batch.input[index], batch.partition, offset);
            if let Err((status, failure)) = self.record(index as u32, &record, batch.order) {
                statuses[index] = status;
                reasons.set(index, failure.short_reason().as_bytes());
            }
        }
        self.ctx.finish(statuses, reasons)
    }

    #[inline]
    fn record(&mut self, index: u32, record: &Record<'_>, order: Order) -> Result<(), (u8, Failure)> {
        if self.failed.any && self.failed.hold_back(order, record.key) {
            return Err((status::BLOCKED, Failure::transient("an earlier record of its key failed")));
        }
        self.ctx.begin_record(index, record);
        let result = self.handler.handle(record, &mut self.ctx);
        let Err((kind, failure)) = self.ctx.end_record(result) else {
            return Ok(());
        };
        self.failed.note(record.key);
        let status = match kind {
            FailureKind::Transient => status::TRANSIENT,
            FailureKind::Permanent => status::PERMANENT,
            FailureKind::Decode => status::DECODE,
            FailureKind::Schema => status::SCHEMA,
        };
        Err((status, failure))
    }
}

/// The keys whose records failed in this batch.
#[derive(Default)]
struct Failed {
    any: bool,
    keys: Vec<(u64, Vec<u8>)>,
}

impl Failed {
    fn clear(&mut self) {
        self.any = false;
        self.keys.clear();
    }

    #[cold]
    fn note(&mut self, key: Option<&[u8]>) {
        self.any = true;
        // Records without a key have no order among themselves.
        if let Some(key) = key {
            self.keys.push((hash(0, key), key.to_vec()));
        }
    }

    /// Whether a failure of this batch holds back a record with that key.
    fn hold_back(&self, order: Order, key: Option<&[u8]>) -> bool {
        match order {
            Order::All => true,
            Order::None => false,
            Order::Key => key.is_some_and(|key| {
                let hash = hash(0, key);
                self.keys.iter().any(|(failed, bytes)| *failed == hash && bytes == key)
            }),
        }
    }
}

/// The node, through the imports of the component.
#[cfg(target_arch = "wasm32")]
pub mod component {
    use super::*;
    use crate::bindings::tidemill::handler::{log, state};

    struct Node;

    impl Host for Node {
        fn get(&mut self, store: u16, key: &[u8]) -> Option<Vec<u8>> {
            state::get(store, key)
        }

        fn scan(&mut self, store: u16, start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
            state::scan(store, start, end, limit)
        }

        fn put_many(&mut self, writes: &Writes) {
            state::put_many(writes);
        }

        fn log(&mut self, level: Level, text: &str) {
            let level = match level {
                Level::Error => log::Level::Error,
                Level::Warn => log::Level::Warn,
                Level::Info => log::Level::Info,
                Level::Debug => log::Level::Debug,
            };
            write_line(level, text);
        }
    }

    /// Of a line, as many bytes as a node takes. It bounds what a call hands over, and ends one that hands over more.
    const LINE_BYTES_MAX: usize = 64 << 10;

    fn write_line(level: log::Level, text: &str) {
        log::write(level, &text[..text.floor_char_boundary(LINE_BYTES_MAX)]);
    }

    /// `init`: makes the instance, and sees to it that a panic says where it happened before it traps.
    pub fn init<H: Definition>(config: &[u8]) -> Result<Guest<H>, String> {
        std::panic::set_hook(Box::new(|panic| {
            write_line(log::Level::Error, &panic.to_string());
        }));
        Guest::create(config, Box::new(Node))
    }
}

/// The component's exports. Native builds have none: several handlers may be linked into one test.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_guest {
    ($handler:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::bindings::tidemill::handler::types::{Effects, Prefetched, Records};
            use $crate::guest::{Definition, Guest, component};

            struct Exported;

            ::std::thread_local! {
                static GUEST: ::std::cell::RefCell<Option<Guest<$handler>>> =
                    const { ::std::cell::RefCell::new(None) };
            }

            impl $crate::bindings::Guest for Exported {
                fn describe() -> Vec<u8> {
                    <$handler as Definition>::declaration().manifest()
                }

                fn init(config: Vec<u8>) -> Result<(), String> {
                    let guest = component::init::<$handler>(&config)?;
                    GUEST.with_borrow_mut(|slot| *slot = Some(guest));
                    Ok(())
                }

                fn handle(batch: Records, state: Prefetched) -> Effects {
                    GUEST.with_borrow_mut(|guest| match guest {
                        Some(guest) => guest.handle(&batch, state),
                        None => panic!("the node calls init before handle"),
                    })
                }
            }

    $crate::bindings::export_component!(Exported with_types_in $crate::bindings);
        };
    };
}
