//! From a crate to a component: what `tidemill build` and `tidemill new` do.

mod cargo;
mod scaffold;

pub use cargo::{BuildError, Built, cargo_build};
pub use scaffold::{ScaffoldError, scaffold};

use wit_component::ComponentEncoder;

/// Why a core module cannot be made a component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ComponentiseError(String);

/// Wraps a core module, built for `wasm32-unknown-unknown` with tidemill-sdk, into a component. What
/// the component imports and exports stands in a custom section that the SDK put into the module.
pub fn componentise(core: &[u8]) -> Result<Vec<u8>, ComponentiseError> {
    ComponentEncoder::default()
        .module(core)
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(|error| ComponentiseError(format!("{error:#}")))
}
