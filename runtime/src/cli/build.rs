//! `tidemill build`: a handler's crate to a module that can be deployed.

use std::path::PathBuf;

use serde_json::json;

use super::failure::Failure;
use super::output::View;
use super::{Global, Outcome};
use crate::config::units::show_bytes;
use crate::wasm::MODULE_BYTES_MAX;
use crate::wasm::build::cargo_build;

const EXAMPLES: &str = "\
Examples:
  tidemill build
  tidemill build plugins/rekey --out modules/rekey.wasm";

/// Build a handler's crate and make it a component
///
/// For keeping or shipping a module: `apply` and `deploy` build crates by themselves.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Build {
    /// Directory of the crate
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where to put the module [default: DIR/NAME.wasm]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Build {
    pub fn run(self, global: &Global) -> Outcome {
        let built = cargo_build(&self.dir, None).map_err(|error| Failure::refused(error.to_string()))?;
        let out = self.out.unwrap_or_else(|| self.dir.join(format!("{}.wasm", built.name)));
        let cannot = |error| Failure::failed(format!("{} cannot be written: {error}", out.display()));
        if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(cannot)?;
        }
        // Beside it, then renamed: whoever reads the module meanwhile reads a whole one.
        let partial = out.with_extension("wasm.partial");
        std::fs::write(&partial, &built.component).map_err(cannot)?;
        std::fs::rename(&partial, &out).map_err(cannot)?;
        let bytes = built.component.len();
        let size = format!("{:.1} KiB", bytes as f64 / 1024.0);
        if bytes > MODULE_BYTES_MAX {
            let limit = show_bytes(MODULE_BYTES_MAX as u64);
            eprintln!("note: {size} is more than the {limit} that a node takes");
        }
        let line = format!("built {}, {size}", out.display());
        View::line(line, json!({ "module": out, "bytes": bytes })).print(global.output)
    }
}
