//! Write tidemill handlers in Rust.
//!
//! A handler is a type with one function, called once per record:
//!
//! ```
//! use tidemill_sdk::{Context, Failure, Handler, Record, Store};
//!
//! struct Count { counts: Store<u64> }
//!
//! impl Handler for Count {
//!     fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
//!         let count = self.counts.get(ctx, record.key()?)?.unwrap_or(0) + 1;
//!         self.counts.put(ctx, record.key()?, &count);
//!         ctx.emit("counts", record.key()?, &count)
//!     }
//! }
//!
//! tidemill_sdk::export!(Count { inputs: ["words"], outputs: ["counts"], stores: ["counts"] });
//!
//! // An ordinary test drives it natively; no broker, no Wasm.
//! use tidemill_sdk::testing::{Driver, record};
//! let mut driver = Driver::<Count>::new();
//! driver.feed([record("words").key("a"), record("words").key("b"), record("words").key("a")]);
//! assert_eq!(driver.emitted("counts"), ["a=1", "b=1", "a=2"]);
//! assert_eq!(driver.state::<u64>("counts", "a"), Some(2));
//! ```
//!
//! What a record asks for (emissions, state) is kept if `handle` returns `Ok` and dropped as a whole
//! if it returns a [`Failure`]. The handler itself is not state: the node may drop and remake it
//! between any two batches, so what must last goes into a [`Store`].
//!
//! # Declaring a handler
//!
//! [`export!`] takes the type and
//!
//! | key | meaning |
//! |---|---|
//! | `inputs: ["words"]` | logical names; a deployment binds them to topics |
//! | `outputs: ["counts"]` | likewise |
//! | `stores: ["counts" { prefetch }]` | each lives in the field of its name (`-` becomes `_`) |
//! | `config: rules` | the field that takes the deployment's `config:`, by its `serde::Deserialize` |
//! | `wants_headers: true` | records come with their headers, which costs a little |
//!
//! Options of a store: `prefetch`, its keys are the records' own, so the node hands their values over
//! with the batch; `ordered`, it is scanned; `schema: 2`, the version of the form in which values are written;
//! `reads: [1]`, further versions that the handler understands, without which a node refuses to let it loose
//! on what they wrote; `field: name`, the field that holds it if not that of its name.
//!
//! # Side outputs
//!
//! A record that is fine but not for the main way goes to an output of its own; one that the handler cannot
//! take at all is a [`Failure`], and the deployment's failure policy says what becomes of it.
//!
//! ```
//! use tidemill_sdk::{Context, Failure, Handler, Record, Store};
//! use tidemill_sdk::testing::{Driver, record};
//!
//! const LATE_MS: i64 = 60_000;
//!
//! /// Passes readings on; those that are a minute behind the newest of their sensor go aside.
//! struct Readings { newest: Store<i64> }
//!
//! impl Handler for Readings {
//!     fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
//!         let at = record.timestamp().ok_or_else(|| Failure::permanent("a reading without a time"))?;
//!         let newest = self.newest.get(ctx, record.key()?)?.unwrap_or(at);
//!         if at < newest - LATE_MS {
//!             return ctx.emit("late", record.key()?, record.value()?);
//!         }
//!         self.newest.put(ctx, record.key()?, &at.max(newest));
//!         ctx.emit("readings", record.key()?, record.value()?)
//!     }
//! }
//!
//! tidemill_sdk::export!(Readings { inputs: ["in"], outputs: ["readings", "late"], stores: ["newest"] });
//!
//! let at = |value: &str, ms| record("in").key("s1").value(value).timestamp(ms);
//! let mut driver = Driver::<Readings>::new();
//! driver.feed([at("a", 100_000), at("b", 30_000), at("c", 90_000)]);
//! assert_eq!(driver.emitted("readings"), ["s1=a", "s1=c"]);
//! assert_eq!(driver.emitted("late"), ["s1=b"]);
//! ```
//!
//! # Layout
//!
//! | module | what lives there |
//! |---|---|
//! | [`testing`] | the driver for tests |
//! | [`guest`] | the glue between handler and ABI, the same natively and in Wasm |
//! | `record`, `context`, `emit`, `store`, `payload`, `failure` | what a handler sees |
//! | `state` | cache and undo of one call |
//! | [`bindings`] | generated from the WIT world |

// The macros of the examples and of the tests name this crate from outside.
extern crate self as tidemill_sdk;

#[allow(unsafe_code, clippy::all, clippy::undocumented_unsafe_blocks, missing_docs)]
pub mod bindings {
    //! Generated from `wit/handler.wit`.
    wit_bindgen::generate!({
        path: "wit",
        world: "handler",
        pub_export_macro: true,
        export_macro_name: "export_component",
        default_bindings_module: "tidemill_sdk::bindings",
    });
}

mod column;
mod context;
mod emit;
mod failure;
pub mod guest;
mod payload;
mod random;
mod record;
mod state;
mod store;
pub mod testing;

pub use context::{Context, Level};
pub use emit::Emission;
pub use failure::Failure;
pub use payload::{Json, Null, Payload};
pub use record::{Header, Headers, Record};
pub use store::{Bytes, Kind, Scan, Store, Value};
pub use tidemill_sdk_macros::export;

/// User code: what to do with one record.
pub trait Handler: Sized {
    /// Handles one record. Effects go through `ctx` and the handler's stores and are kept if this
    /// returns `Ok`; a [`Failure`] drops all of them.
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure>;
}
