//! The handler host: everything that touches wasmtime.
//!
//! ```text
//! bytes --load--> Module --link--> Linked --instantiate--> WasmHandler (implements ports::Handler)
//!         checked,          per deployment:       per task: one instance, replaced
//!         compiled (apart), config, limits        after a trap, a time-out, `renew`
//!         described
//! ```
//!
//! Invariants:
//! - What a guest returns is hostile until `check` has seen it; nothing unchecked leaves this module.
//! - A guest can use no more memory, table space, CPU time or output than its deployment's `Limits`,
//!   and nothing it does ends the process or another guest.
//! - A component may import `tidemill:handler/state` and `/log` and nothing else: no WASI, no clock,
//!   no randomness. A replay therefore sees what the first run saw.
//! - Calls are synchronous, on the caller's thread. The only thread here is the epoch ticker.

mod abi;
pub mod build;
mod check;
mod clock;
pub mod compiler;
mod engine;
mod guest_log;
mod imports;
mod inspect;
mod instance;
mod limits;
mod loaded;
mod module;

pub use clock::thread_cpu_time;
pub use compiler::Compiler;
pub use instance::{Linked, WasmHandler};
pub use module::{MODULE_BYTES_MAX, Module, ModuleError};
