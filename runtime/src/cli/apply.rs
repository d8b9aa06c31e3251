//! `tidemill apply`: deploys every document of a file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::failure::{Failure, in_file};
use super::plan::show_plan;
use super::upload::{Options, Upload, carry_out, load_module, relative_to};
use super::{Global, Outcome, client};
use crate::config::document::split_documents;

const EXAMPLES: &str = "\
Examples:
  tidemill apply -f pipeline.yaml
  tidemill apply -f rekey.yaml -f delays.yaml --wait
  tidemill apply -f pipeline.yaml --dry-run
  tidemill apply -f pipeline.yaml --drop-store counts";

/// Deploy every document of a file
///
/// A module's path is relative to the file: a .wasm file, or the directory of a handler's crate,
/// which is built first. The node checks all documents, and the plan is shown, before anything is
/// changed; what is deployed already stays untouched, and what somebody else has changed since the
/// plan is refused. Names may occur once, in whichever file.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Apply {
    /// File of one or more YAML documents; - is standard input
    #[arg(long, short, required = true, value_name = "FILE")]
    file: Vec<PathBuf>,
    #[command(flatten)]
    options: Options,
}

impl Apply {
    pub fn run(self, global: &Global) -> Outcome {
        let mut uploads = Vec::new();
        for file in &self.file {
            uploads.extend(read(file)?);
        }
        if let Some(twice) = named_twice(&uploads) {
            return Err(Failure::refused(format!("{twice} is deployed by two documents; keep one of them")));
        }
        client::block_on(async {
            let channel = client::connect(global).await?;
            carry_out(&channel, uploads, &self.options, show_plan).await?.print(global.output)
        })
    }
}

/// Within a file the documents' own check says so, with the line.
fn named_twice(uploads: &[Upload]) -> Option<&str> {
    let mut seen = BTreeSet::new();
    uploads.iter().map(|upload| upload.name.as_str()).find(|name| !seen.insert(*name))
}

/// Every document of a file, with its module.
pub fn read(file: &Path) -> Result<Vec<Upload>, Failure> {
    let shown = file.display();
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| Failure::usage(format!("{shown} cannot be read: {error}")))?;
    let parts = split_documents(&text).map_err(|problems| in_file(&problems, shown))?;
    let upload = |(document, spec): (String, crate::config::deployment::DeploymentSpec)| {
        let module = load_module(&relative_to(file, &spec.module))?;
        Ok(Upload { name: spec.name, document, module })
    };
    parts.into_iter().map(upload).collect()
}
