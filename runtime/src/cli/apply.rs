//! `tidemill apply`: carries out every document of a file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::failure::{Failure, in_file};
use super::plan::show_plan;
use super::upload::{Options, Upload, Work, carry_out, load_module, relative_to};
use super::{Global, Outcome, client};
use crate::config::documents::Document;

const EXAMPLES: &str = "\
Examples:
  tidemill apply -f pipeline.yaml
  tidemill apply -f rekey.yaml -f delays.yaml --wait
  tidemill apply -f pipeline.yaml --dry-run
  tidemill apply -f pipeline.yaml --drop-store counts
  tidemill apply -f topics.yaml -f pipeline.yaml --raise-partitions";

/// Deploy every document of a file, and make the topics that it describes
///
/// A module's path is relative to the file: a .wasm file, or the directory of a handler's crate,
/// which is built first. The node checks all documents, and the plan is shown, before anything is
/// changed; what is deployed already stays untouched, and what somebody else has changed since the
/// plan is refused. Names may occur once, in whichever file. Topics, documents of the kind `topic`,
/// are made and changed before anything is deployed, and never deleted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Apply {
    /// File of one or more YAML documents; - is standard input
    #[arg(long, short, required = true, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Give topics as many partitions as their documents say, where they have fewer: keys move
    #[arg(long)]
    raise_partitions: bool,
    #[command(flatten)]
    options: Options,
}

impl Apply {
    pub fn run(self, global: &Global) -> Outcome {
        let mut work = read_all(&self.file)?;
        work.topics.raise_partitions = self.raise_partitions;
        if let Some(twice) = named_twice(&work.uploads) {
            return Err(Failure::refused(format!("{twice} is deployed by two documents; keep one of them")));
        }
        client::block_on(async {
            let channel = client::connect(global).await?;
            carry_out(&channel, work, &self.options, show_plan).await?.print(global.output)
        })
    }
}

/// Every document of these files, or what is wrong with each of them.
fn read_all(files: &[PathBuf]) -> Result<Work, Failure> {
    let (mut work, mut failures) = (Work::default(), Vec::new());
    for file in files {
        match read(file) {
            Ok(read) => {
                work.topics.documents.extend(read.topics.documents);
                work.uploads.extend(read.uploads);
            }
            Err(failure) => failures.push(failure),
        }
    }
    Failure::all(failures).map_or(Ok(work), Err)
}

/// Within a file the documents' own check says so, with the line.
fn named_twice(uploads: &[Upload]) -> Option<&str> {
    let mut seen = BTreeSet::new();
    uploads.iter().map(|upload| upload.name.as_str()).find(|name| !seen.insert(*name))
}

/// Every document of a file, those of deployments with their modules.
pub fn read(file: &Path) -> Result<Work, Failure> {
    let shown = file.display();
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| Failure::usage(format!("{shown} cannot be read: {error}")))?;
    let (mut work, mut failures) = (Work::default(), Vec::new());
    for (text, document) in Document::split(&text).map_err(|problems| in_file(&problems, &shown))? {
        match document {
            Document::Topic(_) => work.topics.documents.push(text),
            Document::Deployment(spec) => match load_module(&relative_to(file, &spec.module)) {
                Ok(module) => work.uploads.push(Upload { name: spec.name, document: text, module }),
                Err(failure) => failures.push(failure),
            },
        }
    }
    let several = failures.len() > 1;
    match Failure::all(failures) {
        None => Ok(work),
        Some(failure) if several => Err(failure.at(shown)),
        Some(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Kind;
    use super::*;

    #[test]
    fn what_is_wrong_with_any_file_or_module_is_said_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let document =
            |name: &str| format!("name: {name}\nmodule: {name}.wasm\ninputs: {{ in: {{ topic: t }} }}\n");
        let modules = file("modules.yaml", &format!("{}---\n{}", document("one"), document("two")));
        let typo = file("typo.yaml", &document("three").replace("module", "modul"));
        let failure = read_all(&[modules, typo]).err().expect("none of them is right");
        assert_eq!(failure.kind, Kind::Refused);
        for said in ["modules.yaml: 2 problems", "one.wasm", "two.wasm", "typo.yaml:2: modul"] {
            assert!(failure.message.contains(said), "{said}: {failure}");
        }
    }
}
