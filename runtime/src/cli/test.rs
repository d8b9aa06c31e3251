//! `tidemill test`: a handler's own tests, natively, without a broker.

use std::path::PathBuf;
use std::process::Command;

use super::failure::Failure;
use super::{Global, Outcome};

const EXAMPLES: &str = "\
Examples:
  tidemill test
  tidemill test plugins/rekey
  tidemill test -- --nocapture";

/// Run the tests of a handler's crate
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Test {
    /// Directory of the crate
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Passed on to the tests, as by `cargo test -- ARGUMENTS`
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Test {
    pub fn run(self, _global: &Global) -> Outcome {
        let manifest = self.dir.join("Cargo.toml");
        if !manifest.is_file() {
            let message = format!("{} is no crate: it has no Cargo.toml", self.dir.display());
            return Err(Failure::usage(message));
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["test", "--manifest-path"])
            .arg(&manifest)
            .arg("--")
            .args(&self.arguments)
            .status()
            .map_err(|error| {
                Failure::failed(format!("cannot run cargo: {error}; install Rust from https://rustup.rs"))
            })?;
        if status.success() { Ok(()) } else { Err(Failure::failed("the tests failed (see above)")) }
    }
}
