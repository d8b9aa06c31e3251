//! `tidemill new`: a handler's crate to change.

use std::path::PathBuf;

use serde_json::json;

use super::failure::Failure;
use super::output::View;
use super::{Global, Outcome};
use crate::wasm::build::{ScaffoldError, scaffold};

const EXAMPLES: &str = "\
Examples:
  tidemill new word-count
  tidemill new word-count --sdk ../tidemill/sdk";

/// Make a new handler: a crate that builds, whose test passes, and that deploys as it is
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct New {
    /// Name of the crate and of its directory
    name: String,
    /// Use the SDK in this directory instead of a copy of its own
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
    /// Where to make the directory
    #[arg(long, default_value = ".", value_name = "DIR")]
    parent: PathBuf,
}

impl New {
    pub fn run(self, global: &Global) -> Outcome {
        let dir = scaffold(&self.name, &self.parent, self.sdk.as_deref()).map_err(|error| match error {
            ScaffoldError::Name(_) | ScaffoldError::NoSdk { .. } => Failure::usage(error.to_string()),
            ScaffoldError::Exists(_) => Failure::refused(error.to_string()),
            ScaffoldError::Write { .. } => Failure::failed(error.to_string()),
        })?;
        let shown = dir.strip_prefix(".").unwrap_or(&dir).display();
        let line = format!(
            "made {shown}: src/lib.rs is the handler, deployment.yaml says where it runs\n\
             next: cd {shown}, tidemill test, tidemill topics create words counts, tidemill apply -f deployment.yaml"
        );
        View::line(line, json!({ "directory": dir })).print(global.output)
    }
}
